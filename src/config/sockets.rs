//! What the keys of a service mean for the kinds of its listeners: who may use the files of its Unix sockets, and which
//! keys could do nothing there.

use toml::Spanned;

use super::accounts::{Accounts, id};
use super::draft::ServiceDraft;
use super::service::{Machine, find_group, find_user};
use super::value::{Fault, Faults, one_or_more};
use super::{Account, Address, SocketAccess};
use crate::config::document::Section;

/// The kinds of listeners that a service has.
#[derive(Debug, Clone, Copy, Default)]
struct Kinds {
    tcp: bool,
    /// Unix sockets that have a file.
    file: bool,
    /// Unix sockets with an abstract name.
    name: bool,
    /// Of what systemd passes nobody knows yet what it is.
    passed: bool,
}

impl Kinds {
    /// `None` if not all of them are known: faults have been reported.
    fn of(section: &Section<'_>, draft: &ServiceDraft) -> Option<Self> {
        let written = section.table.get("listen").map_or(0, |listen| one_or_more(listen).len());
        if section.partial || draft.listen.len() != written {
            return None;
        }
        let mut kinds = Kinds::default();
        for address in &draft.listen {
            let kind = match address.get_ref() {
                Address::Tcp(_) | Address::Any(_) => &mut kinds.tcp,
                Address::Unix(_) => &mut kinds.file,
                Address::Abstract(_) => &mut kinds.name,
                Address::Activated(_) => &mut kinds.passed,
            };
            *kind = true;
        }
        Some(kinds)
    }

    /// Why there is no file of a Unix socket that `key` could be about; `None` if there is.
    fn without_file(self, key: &str) -> Option<(&'static str, String)> {
        let remove = |what: &str| format!("remove {key}, or {what}");
        match self {
            Kinds { file: true, .. } | Kinds { tcp: false, name: false, passed: false, .. } => None,
            Kinds { passed: true, tcp: false, name: false, .. } => Some((
                "systemd makes the file of a socket that it passes",
                format!("remove {key}, and write {} into the .socket unit", in_unit(key)),
            )),
            Kinds { name: true, tcp: false, .. } => Some((
                "an abstract name is no file, and whoever is on this machine may connect",
                remove("say with allow who may, or listen at a path, as in \"unix:/run/x.sock\""),
            )),
            _ => Some((
                "the service has no Unix socket with a file",
                remove("add one, as in \"unix:/run/x.sock\""),
            )),
        }
    }
}

/// What systemd.socket(5) calls it.
fn in_unit(key: &str) -> &'static str {
    match key {
        "socket_user" => "SocketUser=",
        "socket_group" => "SocketGroup=",
        _ => "SocketMode=",
    }
}

/// Keys that are written and could do nothing.
pub(super) fn idle(section: &Section<'_>, draft: &ServiceDraft) -> Faults {
    let mut faults = Faults::new();
    let Some(kinds) = Kinds::of(section, draft) else { return faults };
    for key in ["socket_user", "socket_group", "socket_mode"] {
        let written = section.span(key).zip(kinds.without_file(key));
        faults.extend(
            written.map(|(span, (why, help))| {
                Fault::new(span, format!("{key} can do nothing: {why}")).help(help)
            }),
        );
    }
    faults
}

/// Who may use the files of Unix sockets; `None` if a key of it has a fault that has been reported.
pub(super) fn access(draft: &ServiceDraft, machine: &Machine<'_>) -> Result<Option<SocketAccess>, Faults> {
    let accounts: &Accounts = &machine.accounts;
    let mut faults = Faults::new();
    for name in [&draft.socket_user, &draft.socket_group].into_iter().flatten() {
        machine.waits_for_account(name.get_ref());
    }
    let user = draft.socket_user.as_ref().map(|name| {
        let number = id(name.get_ref());
        let found = find_user(name, accounts)?.map(|user| user.uid).or(number);
        Ok(found.map(|id| Account { name: name.get_ref().clone(), id }))
    });
    let group = draft.socket_group.as_ref().map(|name| {
        let group = find_group(name, accounts)?;
        Ok(Some(Account { name: name.get_ref().clone(), id: group.gid }))
    });
    let mut keep = |found: Option<Result<Option<Account>, Fault>>| {
        found.transpose().map_err(|fault| faults.push(fault)).ok().flatten().flatten()
    };
    let (user, group) = (keep(user), keep(group));
    if faults.is_empty() {
        Ok(draft.socket_mode.map(|mode| SocketAccess { user, group, mode }))
    } else {
        Err(faults)
    }
}

/// Abstract names of a service that lets everybody in.
pub(super) fn open_names(section: &Section<'_>, draft: &ServiceDraft) -> Faults {
    let is_open = section.span("allow").is_none();
    let open =
        draft.listen.iter().filter(|address| is_open && matches!(address.get_ref(), Address::Abstract(_)));
    let doubt = |address: &Spanned<Address>| {
        Fault::new(address.span(), format!("everybody on this machine may connect to {}", address.get_ref()))
            .help("say with allow who may, or listen at a path, whose socket_mode says it")
    };
    open.map(doubt).collect()
}
