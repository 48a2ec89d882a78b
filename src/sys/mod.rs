//! Every system call that std does not wrap, and every `unsafe` block.
//!
//! A function here takes and returns owned or borrowed descriptors, reports errno as `io::Error`, and decides nothing.

pub(crate) mod wait;
