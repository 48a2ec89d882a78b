//! A watch for processes that have ended and that nobody reaps.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::proc::{self, Process};

/// Looks all the time; when it is dropped, the test fails if a zombie got older than a second although its parent slept,
/// or had the processor and did something else.
pub(crate) struct ZombieWatch {
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<Vec<String>>>,
}

impl ZombieWatch {
    /// Watches everything below this process.
    pub(crate) fn below(ancestor: i32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watcher = std::thread::spawn(move || watch(ancestor, &stopped));
        Self { stop, watcher: Some(watcher) }
    }
}

/// A zombie that was seen, and the processor time that its parent had had by then.
struct Sighting {
    at: Instant,
    parent_ticks: u64,
}

impl Sighting {
    fn of(parent: Option<&Process>) -> Self {
        Self { at: Instant::now(), parent_ticks: parent.map_or(0, |parent| parent.ticks) }
    }

    /// A parent that wants to run, and under the load of a test is not let for a second and more, has neglected nothing.
    fn excuses(&self, parent: &Process) -> bool {
        parent.state == 'R' && parent.ticks < self.parent_ticks + 20
    }
}

/// A zombie is no event to those who are not its parent, so this samples.
fn watch(ancestor: i32, stopped: &AtomicBool) -> Vec<String> {
    let mut since: HashMap<(i32, u64), Sighting> = HashMap::new();
    let mut old = HashMap::new();
    while !stopped.load(Ordering::Relaxed) {
        let zombies: Vec<_> =
            proc::descendants(ancestor).into_iter().filter(|process| process.state == 'Z').collect();
        since.retain(|key, _| zombies.iter().any(|zombie| (zombie.pid, zombie.start) == *key));
        for zombie in zombies {
            let key = (zombie.pid, zombie.start);
            let parent = proc::process(zombie.parent);
            let sighting = since.entry(key).or_insert_with(|| Sighting::of(parent.as_ref()));
            if parent.as_ref().is_some_and(|parent| sighting.excuses(parent)) {
                sighting.at = Instant::now();
            }
            let age = sighting.at.elapsed();
            if age > Duration::from_secs(1) {
                old.insert(key, format!("{zombie:?} is a zombie for {age:?}"));
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    old.into_values().collect()
}

impl Drop for ZombieWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let old = self.watcher.take().unwrap().join().unwrap();
        if !std::thread::panicking() {
            assert!(old.is_empty(), "{old:#?}");
        }
    }
}
