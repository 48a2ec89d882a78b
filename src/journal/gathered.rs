//! Records that are written together: their text, and where each ends in it.

use allocator_api2::vec::Vec;

use super::{Buffer, Level};
use crate::sys::dontfork::DontForkAlloc;

/// What was gathered.
pub(super) struct Gathered {
    text: Buffer,
    ends: Vec<(usize, Level), DontForkAlloc>,
}

impl Gathered {
    /// Nothing.
    pub(super) fn new() -> Self {
        let nothing = || DontForkAlloc::new();
        Gathered { text: Buffer::new_in(nothing()), ends: Vec::new_in(nothing()) }
    }

    /// Adds what `format` appends.
    pub(super) fn add(&mut self, level: Level, format: impl FnOnce(&mut Buffer)) {
        format(&mut self.text);
        self.ends.push((self.text.len(), level));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn length(&self) -> usize {
        self.text.len()
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Each with what stands between it and the one before.
    pub(super) fn records(&self) -> impl Iterator<Item = (Level, &[u8])> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|(end, _)| *end));
        let pieces = begins.zip(&self.ends);
        pieces.filter_map(|(begin, (end, level))| Some((*level, self.text.get(begin..*end)?)))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.ends.len()
    }

    /// How many end after so many bytes.
    pub(super) fn count_beyond(&self, bytes: usize) -> u64 {
        self.ends.iter().filter(|(end, _)| *end > bytes).count() as u64
    }

    /// Forgets all, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}
