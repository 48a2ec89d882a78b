//! `warm` and what belongs to it, as it was written.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use crate::config::checked::WarmPoint;
use crate::config::value::{Applied, Fault, Faults, TomlValue, choice, duration, one_or_more, set, text};

/// What the keys have said.
#[derive(Debug, Default)]
pub(in crate::config) struct WarmDraft {
    pub(in crate::config) point: Option<Option<WarmPoint>>,
    pub(in crate::config) max_age: Option<Duration>,
    pub(in crate::config) watch: Vec<Spanned<PathBuf>>,
}

impl WarmDraft {
    /// Whether programs are to be started ahead.
    pub(in crate::config) fn is_wanted(&self) -> bool {
        self.point.flatten().is_some()
    }
}

const WORDS: [(&str, Option<WarmPoint>); 3] =
    [("no", None), ("start", Some(WarmPoint::Start)), ("spare", Some(WarmPoint::Spare))];

/// `warm`
pub(super) fn decode(draft: &mut WarmDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.point, choice(value, &WORDS))
}

/// `warm_max_age`
pub(super) fn decode_max_age(draft: &mut WarmDraft, value: &TomlValue<'_>) -> Applied {
    let age = duration(value)?;
    if age < Duration::from_secs(1) {
        let fault = Fault::new(value.span(), "a warm program would be replaced before anybody could call");
        return Err(fault.help("write \"1s\" at least").into());
    }
    draft.max_age = Some(age);
    Ok(())
}

/// `warm_watch`
pub(super) fn decode_watch(draft: &mut WarmDraft, value: &TomlValue<'_>) -> Applied {
    let mut faults = Faults::new();
    for entry in one_or_more(value) {
        match text(entry) {
            Ok(path) if path.starts_with('/') => {
                draft.watch.push(Spanned::new(entry.span(), path.into()));
            }
            Ok(path) => {
                let fault = Fault::new(entry.span(), format!("\"{path}\" is not absolute"));
                faults.push(fault.help("write it from / on"));
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}
