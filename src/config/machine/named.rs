//! Users and groups that a configuration names: who they are on this machine, or what is wrong with the name.

use toml::Spanned;

use super::Machine;
use super::accounts::{Accounts, Group, Unanswered, User};
use crate::config::diagnostic::nearest;
use crate::config::value::{Fault, id};

/// `None` for a number that has no entry.
pub(in crate::config) fn find_user(
    name: &Spanned<String>,
    accounts: &Accounts,
) -> Result<Option<User>, Fault> {
    match accounts.user(name.get_ref()).map_err(|why| unanswered(name, &why))? {
        None if id(name.get_ref()).is_none() => Err(unknown_user(name, accounts)),
        found => Ok(found),
    }
}

pub(in crate::config) fn find_group(name: &Spanned<String>, accounts: &Accounts) -> Result<Group, Fault> {
    if let Some(group) = accounts.group(name.get_ref()).map_err(|why| unanswered(name, &why))? {
        return Ok(group);
    }
    if let Some(gid) = id(name.get_ref()) {
        return Ok(Group { name: gid.to_string(), gid, members: Vec::new() });
    }
    let groups = accounts.groups();
    let message = format!("\"{}\" is no group of this machine", name.get_ref());
    let near = nearest(name.get_ref(), groups.iter().map(|group| group.name.as_str()));
    Err(Fault::new(name.span(), message).help(suggestion(near, "groups", "/etc/group")))
}

/// The id of a user who may be a client.
pub(in crate::config) fn client_user(name: &Spanned<String>, machine: &Machine<'_>) -> Result<u32, Fault> {
    machine.waits_for_account(name.get_ref());
    let user = find_user(name, &machine.accounts)?.map(|user| user.uid).or(id(name.get_ref()));
    let uid = user.ok_or_else(|| unknown_user(name, &machine.accounts))?;
    is_seen(name, "user", uid, "/proc/self/uid_map").map(|()| uid)
}

/// The id of a group that a client may have.
pub(in crate::config) fn client_group(name: &Spanned<String>, machine: &Machine<'_>) -> Result<u32, Fault> {
    machine.waits_for_account(name.get_ref());
    let gid = find_group(name, &machine.accounts)?.gid;
    is_seen(name, "group", gid, "/proc/self/gid_map").map(|()| gid)
}

/// Whether the user namespace of this process has the user and the group of this number.
pub(in crate::config) fn is_mapped(id: u32) -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"].into_iter().all(|map| is_in(id, map))
}

fn is_in(id: u32, map: &str) -> bool {
    let map = std::fs::read_to_string(map).unwrap_or_default();
    let has = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        first.zip(count).is_some_and(|(first, count)| (first..first + count).contains(&id.into()))
    };
    map.trim().is_empty() || map.lines().any(has)
}

/// In a user namespace that does not have it, every client looks like nobody, user_namespaces(7).
fn is_seen(name: &Spanned<String>, what: &str, id: u32, map: &str) -> Result<(), Fault> {
    if is_in(id, map) {
        return Ok(());
    }
    let message =
        format!("preforkd cannot see who is {what} {}: its user namespace does not have it", name.get_ref());
    Err(Fault::new(name.span(), message)
        .help("write PrivateUsers=no into the unit, as the drop-in programs.conf does"))
}

pub(in crate::config) fn unanswered(name: &Spanned<String>, why: &Unanswered) -> Fault {
    Fault::new(name.span(), why.to_string())
        .help("see whom nsswitch.conf(5) has it ask, and try getent on the command line")
}

pub(in crate::config) fn unknown_user(name: &Spanned<String>, accounts: &Accounts) -> Fault {
    let users = accounts.users();
    let message = format!("\"{}\" is no user of this machine", name.get_ref());
    let near = nearest(name.get_ref(), users.iter().map(|user| user.name.as_str()));
    Fault::new(name.span(), message).help(suggestion(near, "users", "/etc/passwd"))
}

fn suggestion(near: Option<&str>, what: &str, file: &str) -> String {
    match near {
        Some(name) => format!("did you mean \"{name}\"? ({what} come from {file} and getent)"),
        None => format!("{what} come from {file} and getent"),
    }
}
