//! Connections that were refused: counted one by one, reported together.

use std::time::{Duration, Instant};

use crate::config::Level;
use crate::journal::{Log, MessageId};

/// How long refusals are collected before they are reported.
const TOGETHER: Duration = Duration::from_secs(10);

/// What has been refused since the last report.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_rules: u64,
    report_at: Option<Instant>,
}

impl Refusals {
    /// One was refused by `allow` and `deny`.
    pub(super) fn by_rules(&mut self) {
        self.by_rules += 1;
        // The first is reported at once: who tries out a rule looks for it.
        self.report_at.get_or_insert_with(Instant::now);
    }

    /// When the next report is due.
    pub(super) fn report_at(&self) -> Option<Instant> {
        self.report_at
    }

    /// Writes the report if it is due. Without a refusal in the meantime there is none, and nothing to wake up for.
    pub(super) fn report(&mut self, log: &Log, service: &str) {
        let now = Instant::now();
        if self.report_at.is_none_or(|at| now < at) {
            return;
        }
        let refused = std::mem::take(&mut self.by_rules);
        self.report_at = (refused > 0).then(|| now + TOGETHER);
        if refused > 0 {
            let connections = if refused == 1 { "connection" } else { "connections" };
            log.event(
                Level::Notice,
                Some(MessageId::Refused),
                Some(service),
                format_args!("refused {refused} {connections}: not let in by allow and deny"),
            );
        }
    }
}
