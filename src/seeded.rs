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

/// So many turns of a test; a hundredth of them in an interpreter, which takes about a thousand times as long for each.
#[allow(dead_code, reason = "tests/ takes only the seed")]
pub(crate) const fn turns(all: u32) -> u32 {
    if cfg!(miri) { all / 100 } else { all }
}
