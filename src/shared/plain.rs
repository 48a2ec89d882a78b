use std::sync::atomic::Ordering::Relaxed;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::atomic::AtomicU64;

/// What can be shared between processes: plain bytes, any of which are a value, without padding, references or anything
/// that has to be dropped.
///
/// Numbers and arrays of them are; `bool`, `char`, references, `Vec` and `String` are not. Everything that is
/// [`FromBytes`], [`IntoBytes`], [`Immutable`] and [`Copy`] is, so a structure of plain things has to derive these from the
/// crate [`zerocopy`], version 0.8. That is what makes memory which a hostile connection has overwritten wrong, but never
/// undefined.
///
/// ```
/// use preforkd::shared::Plain;
/// use zerocopy::{FromBytes, Immutable, IntoBytes};
///
/// #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
/// #[repr(C)]
/// struct Seats { left: u32, sold: u32 }
///
/// fn is_plain<T: Plain>() {}
/// is_plain::<Seats>();
/// is_plain::<[u8; 32]>();
/// ```
///
/// Addresses mean nothing in another process, and not all bytes are a `bool`:
///
/// ```compile_fail,E0277
/// # fn is_plain<T: preforkd::shared::Plain>() {}
/// is_plain::<&'static str>();
/// ```
/// ```compile_fail,E0277
/// # fn is_plain<T: preforkd::shared::Plain>() {}
/// is_plain::<bool>();
/// ```
/// ```compile_fail,E0277
/// # fn is_plain<T: preforkd::shared::Plain>() {}
/// is_plain::<std::sync::atomic::AtomicU32>();
/// ```
pub trait Plain: Copy + FromBytes + IntoBytes + Immutable + 'static {}

impl<T: Copy + FromBytes + IntoBytes + Immutable + 'static> Plain for T {}

const WORD: usize = size_of::<u64>();

/// How many words a value takes.
pub(super) const fn words<T>() -> usize {
    size_of::<T>().div_ceil(WORD)
}

/// The value in these words.
pub(super) fn load<T: Plain>(words: &[AtomicU64]) -> T {
    let mut value = T::new_zeroed();
    let mut chunks = value.as_mut_bytes().chunks_exact_mut(WORD);
    let mut words = words.iter();
    for (word, chunk) in words.by_ref().take(size_of::<T>() / WORD).zip(chunks.by_ref()) {
        chunk.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
    }
    let rest = chunks.into_remainder();
    if let (false, Some(word)) = (rest.is_empty(), words.next()) {
        let word = word.load(Relaxed).to_ne_bytes();
        rest.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    }
    value
}

/// Puts a value into words.
pub(super) fn store<T: Plain>(words: &[AtomicU64], value: &T) {
    for (chunk, word) in value.as_bytes().chunks(WORD).zip(words) {
        let mut bytes = [0; WORD];
        bytes.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        word.store(u64::from_ne_bytes(bytes), Relaxed);
    }
}
