//! Any sequence of calls, refusals, failing forks, deaths of whatever process, reloads and upgrades leaves every count at
//! what lives: for the service, and for each source.
//!
//! The steps are random. `PREFORKD_SEED` repeats those of a run; their timing is the machine's.

mod check;
mod client;
mod random;
#[path = "../../../src/seeded.rs"]
mod seeded;
mod settings;
mod world;

use random::Random;
use settings::Kind;
use world::World;

use crate::support::{root, say};

const STEPS: usize = 600;
const BETWEEN_CHECKS: usize = 50;

/// Says what has led to a failure.
struct History {
    seed: u64,
    steps: Vec<String>,
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = &self.steps[self.steps.len().saturating_sub(30)..];
            say(&format!(
                "PREFORKD_SEED={}, after {} steps; the last of them:\n{}",
                self.seed,
                self.steps.len(),
                last.join("\n")
            ));
        }
    }
}

fn any_sequence(name: &str, user: u32, kind: Kind) {
    let seed = seeded::seed();
    say(&format!("{name}: PREFORKD_SEED={seed}"));
    let user = root("to make fork fail").then_some(user);
    // Each kind has steps of its own.
    let mut world = World::new(kind, Random::new(seed ^ u64::from(user.unwrap_or(0))), user);
    let mut history = History { seed, steps: Vec::new() };
    for number in 1..=STEPS {
        let step = world.step();
        history.steps.push(format!("{number}: {step}"));
        if number % BETWEEN_CHECKS == 0 {
            world.check();
        }
    }
    world.check_the_end();
}

#[test]
fn all_counts_are_what_lives_with_a_handler() {
    any_sequence("a handler", 61_121, Kind { job: "handler = \"echo\"", spares: false, several: false });
}

#[test]
fn all_counts_are_what_lives_with_a_handler_and_spares() {
    any_sequence("spares", 61_122, Kind { job: "handler = \"echo\"", spares: true, several: false });
}

#[test]
fn all_counts_are_what_lives_with_spares_that_serve_several() {
    any_sequence("several", 61_123, Kind { job: "handler = \"echo\"", spares: true, several: true });
}

#[test]
fn all_counts_are_what_lives_with_a_program() {
    any_sequence("a program", 61_124, Kind { job: "exec = [\"/bin/cat\"]", spares: false, several: false });
}

#[test]
fn all_counts_are_what_lives_with_a_program_and_spares() {
    let job = "exec = [\"/bin/cat\"]";
    any_sequence("a program with spares", 61_125, Kind { job, spares: true, several: false });
}
