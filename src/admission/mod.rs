//! Who gets in: rules by prefix, and the PROXY header that names the real client.
//!
//! Nothing here does I/O, and nothing on the path of a connection allocates.

mod crc32c;
mod outline;
pub(crate) mod prefix;
pub(crate) mod prefixes;
pub(crate) mod proxy;
pub(crate) mod refusal;
pub(crate) mod rules;
mod table;

pub(crate) use outline::Outline;
pub(crate) use prefix::Prefix;
pub(crate) use prefixes::{Listed, Prefixes};
pub(crate) use refusal::Refusal;
pub(crate) use rules::Rules;
