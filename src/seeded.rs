//! Random numbers for tests.

/// Numbers that the seed repeats: `PREFORKD_SEED`, or another in each run. It is shown when the test fails.
#[allow(clippy::print_stdout, reason = "cargo shows it with the failure")]
pub(crate) fn random() -> fastrand::Rng {
    let seed = match std::env::var("PREFORKD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("PREFORKD_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
