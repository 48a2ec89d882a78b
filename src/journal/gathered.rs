//! Records that are written together: their text, and where each ends in it.

use allocator_api2::vec::Vec;

use super::Buffer;
use crate::sys::dontfork::DontForkAlloc;

/// What was gathered.
pub(super) struct Gathered {
    text: Buffer,
    ends: Vec<usize, DontForkAlloc>,
}

impl Gathered {
    /// Nothing.
    pub(super) fn new() -> Self {
        let nothing = DontForkAlloc::new;
        Gathered { text: Buffer::new_in(nothing()), ends: Vec::new_in(nothing()) }
    }

    /// Adds what `format` appends.
    pub(super) fn add(&mut self, format: impl FnOnce(&mut Buffer)) {
        format(&mut self.text);
        self.ends.push(self.text.len());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Each by itself.
    pub(super) fn records(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).filter_map(|(begin, end)| self.text.get(begin..*end))
    }

    /// How many end after so many bytes.
    pub(super) fn count_beyond(&self, bytes: usize) -> u64 {
        self.ends.iter().filter(|end| **end > bytes).count() as u64
    }

    /// Forgets all, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}
