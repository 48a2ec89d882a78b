//! Who gets in: rules by prefix, user and group, what a source may take and what it has to suffer, and the PROXY header that names the
//! real client.
//!
//! Nothing on the path of a connection allocates.

mod admit;
mod answers;
pub(crate) mod bans;
pub(crate) mod caller;
mod caller_sets;
pub(crate) mod callers;
mod crc32c;
mod deadlines;
mod policy;
pub(crate) mod prefix;
pub(crate) mod proxy;
mod refusal;
mod refusals;
pub(crate) mod rules;
pub(crate) mod sources;
mod table;

pub(crate) use admit::{Admission, Sentence};
pub(crate) use caller::{Caller, LocalUser, SourceName};
pub(crate) use caller_sets::CallerSets;
pub(crate) use callers::{Callers, Listed};
pub(crate) use deadlines::{ActivityWatch, Deadline, Deadlines, EndCause, TERM_TO_KILL, Verdict};
pub(crate) use policy::{
    LONGEST_MESSAGE, Offence, Overload, Penalties, Policy, Rate, RateUnit, SourceLimits,
};
pub(crate) use prefix::Prefix;
pub(crate) use refusal::Refusal;
pub(crate) use refusals::Refusals;
pub(crate) use rules::Rules;
