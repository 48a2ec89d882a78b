//! A watch for processes that have ended and that nobody reaps.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::proc;

/// Looks all the time; when it is dropped, the test fails if a zombie got older than a second.
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

/// A zombie is no event to those who are not its parent, so this samples.
fn watch(ancestor: i32, stopped: &AtomicBool) -> Vec<String> {
    let mut since: HashMap<(i32, u64), Instant> = HashMap::new();
    let mut old = HashMap::new();
    while !stopped.load(Ordering::Relaxed) {
        let zombies: Vec<_> =
            proc::descendants(ancestor).into_iter().filter(|process| process.state == 'Z').collect();
        since.retain(|key, _| zombies.iter().any(|zombie| (zombie.pid, zombie.start) == *key));
        for zombie in zombies {
            let key = (zombie.pid, zombie.start);
            let age = since.entry(key).or_insert_with(Instant::now).elapsed();
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
