//! `penalties` and what belongs to it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::DeString;

use crate::admission::Prefixes;
use crate::config::diagnostic::nearest;
use crate::config::value::{Fault, Value, duration};

/// What a source has done that costs it something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Offence {
    /// Its connection process was killed by a fault of its own memory or code.
    Crash,
    /// A deadline ended its connection.
    Timeout,
    /// Its connection process exited with this status.
    Exit(u8),
}

/// What offences cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Penalties {
    /// By offence, each once; empty if there are none.
    pub(crate) amounts: Vec<(Offence, Duration)>,
    /// How much has to come together before the source is refused.
    pub(crate) threshold: Duration,
    /// How much can come together.
    pub(crate) longest: Duration,
    /// Who never has any.
    pub(crate) exempt: Prefixes,
}

impl Default for Penalties {
    fn default() -> Self {
        let (threshold, longest) = (Duration::from_secs(15), Duration::from_secs(600));
        Penalties { amounts: Vec::new(), threshold, longest, exempt: Prefixes::default() }
    }
}

impl Penalties {
    /// What this costs, if anything.
    pub(crate) fn amount(&self, offence: Offence) -> Option<Duration> {
        self.amounts.iter().find(|(other, _)| *other == offence).map(|(_, amount)| *amount)
    }
}

/// More than a day, in milliseconds, is not a penalty but a rule.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// One entry of the table.
pub(super) fn entry(key: &Spanned<DeString<'_>>, value: &Value<'_>) -> Result<(Offence, Duration), Fault> {
    let name = key.get_ref().as_ref();
    let status = || name.parse().ok().filter(|_| !name.starts_with('+')).map(Offence::Exit);
    let offence = match name {
        "crash" => Offence::Crash,
        "timeout" => Offence::Timeout,
        _ => status().ok_or_else(|| {
            let help = match nearest(name, ["crash", "timeout"]) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None => "write crash, timeout, or an exit status from 0 to 255".to_owned(),
            };
            Fault::new(key.span(), format!("there is no penalty for \"{name}\"")).help(help)
        })?,
    };
    Ok((offence, amount(value)?))
}

/// How long a penalty may be.
pub(super) fn amount(value: &Value<'_>) -> Result<Duration, Fault> {
    let amount = duration(value)?;
    if amount <= LONGEST {
        return Ok(amount);
    }
    let fault = Fault::new(value.span(), "a penalty of more than 24 hours");
    Err(fault.help("write \"24h\" or less; to refuse somebody for good, use deny"))
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Offence::Crash => f.write_str("crash"),
            Offence::Timeout => f.write_str("timeout"),
            Offence::Exit(status) => status.fmt(f),
        }
    }
}
