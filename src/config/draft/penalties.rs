//! `penalties` and what belongs to it.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeString;

use crate::admission::Offence;
use crate::config::diagnostic::nearest;
use crate::config::value::{Fault, TomlValue, duration};

/// More than a day, in milliseconds, is not a penalty but a rule.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// One entry of the table.
pub(super) fn entry(
    key: &Spanned<DeString<'_>>,
    value: &TomlValue<'_>,
) -> Result<(Offence, Duration), Fault> {
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
pub(super) fn amount(value: &TomlValue<'_>) -> Result<Duration, Fault> {
    let amount = duration(value)?;
    if amount <= LONGEST {
        return Ok(amount);
    }
    let fault = Fault::new(value.span(), "a penalty of more than 24 hours");
    Err(fault.help("write \"24h\" or less; to refuse somebody for good, use deny"))
}
