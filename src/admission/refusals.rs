//! Connections that were refused: counted one by one, reported together.

use std::fmt;
use std::time::Duration;

use super::Refusal;
use crate::pace::Every;
use crate::sys::time::Monotonic;

/// How long refusals are collected before they are reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What has been refused since the last report.
#[derive(Debug)]
pub(crate) struct Refusals {
    collected: Collected,
    report_at: Option<Monotonic>,
    complaint: Every,
}

/// How many, by reason.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Collected([u64; Refusal::ALL.len()]);

impl Default for Refusals {
    fn default() -> Self {
        Refusals { collected: Collected::default(), report_at: None, complaint: Every::new(REPORT_INTERVAL) }
    }
}

impl Refusals {
    /// One was refused.
    pub(crate) fn collect(&mut self, why: Refusal) {
        if let Some(count) = self.collected.0.get_mut(why as usize) {
            *count += 1;
        }
        // The first is reported at once: who tries out a rule looks for it.
        self.report_at.get_or_insert_with(Monotonic::now);
    }

    /// Whether to say more about this one. Not about each.
    pub(crate) fn complains(&mut self) -> bool {
        self.complaint.is_due(Monotonic::now())
    }

    /// When the next report is due.
    pub(crate) fn report_at(&self) -> Option<Monotonic> {
        self.report_at
    }

    /// What is to be reported now, if it is time. Without a refusal in the meantime there is no report, and nothing to
    /// wake up for.
    pub(crate) fn due(&mut self) -> Option<Collected> {
        self.report_at.filter(|at| *at <= Monotonic::now())?;
        self.rest()
    }

    /// All that has not been reported, due or not.
    pub(crate) fn rest(&mut self) -> Option<Collected> {
        let collected = std::mem::take(&mut self.collected);
        let any = collected.0.iter().any(|count| *count > 0);
        self.report_at = any.then(|| Monotonic::now() + REPORT_INTERVAL);
        any.then_some(collected)
    }
}

impl fmt::Display for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum: u64 = self.0.iter().sum();
        write!(f, "refused {sum} {}", if sum == 1 { "connection" } else { "connections" })?;
        let mut reasons = Refusal::ALL.iter().zip(self.0).filter(|(_, count)| *count > 0).peekable();
        let mut before = ": ";
        while let Some((why, count)) = reasons.next() {
            // With a single reason the number is said already.
            match before == ": " && reasons.peek().is_none() {
                true => write!(f, "{before}by {}", why.cause())?,
                false => write!(f, "{before}{count} by {}", why.cause())?,
            }
            before = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_every_reason() {
        let mut collected = Collected::default();
        collected.0[Refusal::Access as usize] = 1;
        assert_eq!(collected.to_string(), "refused 1 connection: by allow and deny");
        collected.0[Refusal::Rate as usize] = 12;
        let text = "refused 13 connections: 1 by allow and deny, 12 by rate_per_source";
        assert_eq!(collected.to_string(), text);
    }
}
