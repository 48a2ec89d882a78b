//! The keys about admission: from text to a [`Policy`](crate::admission::Policy).

pub(super) mod decode;
pub(super) mod draft;
pub(super) mod keys;
mod penalties;
