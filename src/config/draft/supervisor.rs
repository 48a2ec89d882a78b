//! `[supervisor]` and `[log]` as they were written.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use crate::config::address::Address;
use crate::config::checked::CgroupUse;
use crate::config::diagnostic::nearest;
use crate::config::value::{Applied, Fault, Faults, TomlValue, name_or_number, path, table};
use crate::journal::{Level, LogTarget};

/// `[supervisor]` as written.
#[derive(Debug, Default)]
pub(crate) struct SupervisorDraft {
    pub(crate) control_socket: Option<PathBuf>,
    pub(crate) control_access: ControlAccessDraft,
    pub(crate) drain_timeout: Option<Duration>,
    pub(crate) strict_start: Option<bool>,
    pub(crate) cgroup: Option<CgroupUse>,
}

/// `[log]` as written.
#[derive(Debug, Default)]
pub(crate) struct LogDraft {
    pub(crate) target: Option<LogTarget>,
    pub(crate) level: Option<Level>,
}

/// `control_access` as written.
#[derive(Debug, Default)]
pub(crate) struct ControlAccessDraft {
    pub(in crate::config) user: Option<Spanned<String>>,
    pub(in crate::config) look: Option<Spanned<String>>,
    pub(in crate::config) act: Option<Spanned<String>>,
}

/// The path of the control socket; the same rules as for `unix:`.
pub(super) fn socket_path(value: &TomlValue<'_>) -> Result<PathBuf, Fault> {
    let path = path(value)?;
    match format!("unix:{}", path.get_ref().display()).parse::<Address>() {
        Ok(_) => Ok(path.into_inner()),
        Err(why) => Err(Fault::new(value.span(), why.to_string())),
    }
}

/// `control_access`
pub(super) fn control_access(draft: &mut SupervisorDraft, value: &TomlValue<'_>) -> Applied {
    let mut access = ControlAccessDraft::default();
    let mut faults = Faults::new();
    for (key, value) in table(value)? {
        let place = match key.get_ref().as_ref() {
            "user" => &mut access.user,
            "look" => &mut access.look,
            "act" => &mut access.act,
            other => {
                let help = match nearest(other, ["user", "look", "act"]) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => "write user for its owner, look and act for groups".to_owned(),
                };
                let message = format!("unknown key \"{other}\" in control_access");
                faults.push(Fault::new(key.span(), message).help(help));
                continue;
            }
        };
        match name_or_number(value) {
            Ok(name) => *place = Some(Spanned::new(value.span(), name)),
            Err(fault) => faults.push(fault),
        }
    }
    draft.control_access = access;
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}
