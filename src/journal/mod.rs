//! The log: what is written, in which form, and where it goes.
