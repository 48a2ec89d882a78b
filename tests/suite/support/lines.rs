//! Lines (or datagrams) that a process wrote, as they come, for tests that wait for one.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::PATIENCE;

/// Everything written so far; clones see the same.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    /// Collects what comes out of `source` until its end.
    pub(crate) fn follow(source: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                writer.push(super::text(line.strip_suffix(b"\n").unwrap_or(&line)));
                line.clear();
            }
        });
        lines
    }

    /// Adds a line.
    pub(crate) fn push(&self, line: String) {
        let (lines, news) = &*self.0;
        lines.lock().unwrap().push(line);
        news.notify_all();
    }

    /// All lines until now.
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// How many lines there are now; what comes later is after this mark.
    pub(crate) fn mark(&self) -> usize {
        self.0.0.lock().unwrap().len()
    }

    /// How many lines are like this.
    pub(crate) fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.all().iter().filter(|line| wanted(line)).count()
    }

    /// The first line that is like this; waits for it.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_after(0, what, wanted)
    }

    /// The first line after the mark that is like this; waits for it.
    pub(crate) fn wait_after(&self, mark: usize, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let (lines, news) = &*self.0;
        let deadline = Instant::now() + PATIENCE;
        let mut lines = lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().skip(mark).find(|line| wanted(line)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen = lines.join("\n  ");
                drop(lines); // a poisoned lock would hide this in what the Drop of Running says
                panic!("no {what} within {PATIENCE:?}; there was:\n  {seen}");
            }
            lines = news.wait_timeout(lines, left).unwrap().0;
        }
    }
}
