//! How long times were, as a distribution over bounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long times were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimesStatus {
    /// Bounds, ascending; each is within.
    pub(crate) bounds_us: Vec<u64>,
    /// How many were within each bound and not the one before, and one more: beyond the last.
    pub(crate) within: Vec<u64>,
    pub(crate) sum_us: u64,
}

impl TimesStatus {
    /// Those that have come since it was like this.
    pub(crate) fn since(&self, before: &TimesStatus) -> TimesStatus {
        let earlier = before.within.iter().copied().chain(std::iter::repeat(0));
        TimesStatus {
            bounds_us: self.bounds_us.clone(),
            within: self.within.iter().zip(earlier).map(|(now, before)| now.saturating_sub(before)).collect(),
            sum_us: self.sum_us.saturating_sub(before.sum_us),
        }
    }

    /// Adds others, of the same bounds.
    pub(crate) fn add(&mut self, others: &TimesStatus) {
        if self.within.is_empty() {
            self.clone_from(others);
            return;
        }
        for (here, more) in self.within.iter_mut().zip(&others.within) {
            *here = here.saturating_add(*more);
        }
        self.sum_us = self.sum_us.saturating_add(others.sum_us);
    }

    /// Within what time this part of them was, between 0 and 1, as if they were spread evenly between two bounds; of those beyond
    /// the last bound it says that one. `None` if there are none.
    pub(crate) fn within_which(&self, part: f64) -> Option<Duration> {
        let all: u64 = self.within.iter().fold(0, |sum, one| sum.saturating_add(*one));
        if all == 0 {
            return None;
        }
        let mut rest = part * all as f64;
        let mut lower = 0;
        for (bound, here) in self.bounds_us.iter().zip(&self.within) {
            let count = *here as f64;
            if *here > 0 && rest <= count {
                let from_lower = bound.saturating_sub(lower) as f64 * rest / count;
                return Some(Duration::from_micros(lower.saturating_add(from_lower as u64)));
            }
            rest -= count;
            lower = *bound;
        }
        Some(Duration::from_micros(lower))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(within: [u64; 3]) -> TimesStatus {
        TimesStatus { bounds_us: vec![100, 1000], within: within.to_vec(), sum_us: 7 }
    }

    #[test]
    fn a_part_of_them_is_within_a_time() {
        let micros = |within, part| times(within).within_which(part).map(|time| time.as_micros());
        assert_eq!(micros([0, 0, 0], 0.5), None);
        assert_eq!(TimesStatus::default().within_which(0.5), None);
        assert_eq!(micros([10, 0, 0], 0.5), Some(50));
        assert_eq!(micros([0, 10, 0], 0.5), Some(550));
        assert_eq!(micros([50, 50, 0], 0.5), Some(100));
        assert_eq!(micros([50, 50, 0], 0.99), Some(982));
        assert_eq!(micros([0, 0, 1], 0.99), Some(1000));
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let since = times([5, 6, 7]).since(&times([1, 6, 9]));
        assert_eq!(since.within, [4, 0, 0]);
        assert_eq!(times([5, 6, 7]).since(&TimesStatus::default()).within, [5, 6, 7]);
        let mut sum = TimesStatus::default();
        sum.add(&times([1, 2, 3]));
        sum.add(&times([1, 1, 1]));
        assert_eq!((sum.within, sum.sum_us), (vec![2, 3, 4], 14));
    }
}
