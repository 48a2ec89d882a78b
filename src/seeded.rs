//! Random numbers for tests, here and in `tests/`.

/// A seed that repeats what a test did: `PREFORKD_SEED`, or another in each run. It is shown when the test fails.
#[allow(clippy::print_stdout, reason = "cargo shows it with the failure")]
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("PREFORKD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("PREFORKD_SEED={seed}");
    seed
}
