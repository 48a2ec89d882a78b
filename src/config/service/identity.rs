//! `user` and `group`: who the connection processes of a service become.

use std::ops::RangeInclusive;

use toml::Spanned;

use crate::config::checked::{ServiceConfig, UserIds, UserRange};
use crate::config::document::Section;
use crate::config::draft::{KillModeWord, ServiceDraft};
use crate::config::machine::Machine;
use crate::config::machine::accounts::{Accounts, Group};
use crate::config::machine::named::{find_group, find_user, is_mapped, unanswered, unknown_user};
use crate::config::value::{Fault, Faults, id};
use crate::sys::process;

/// Who the connection processes become.
pub(super) fn user_ids(draft: &ServiceDraft, machine: &Machine<'_>) -> Result<Option<UserIds>, Faults> {
    let accounts = &machine.accounts;
    for name in [&draft.user, &draft.group].into_iter().flatten() {
        machine.waits_for_account(name.get_ref());
    }
    let mut faults = Faults::new();
    let group = draft.group.as_ref().map(|name| find_group(name, accounts)).transpose();
    let group = group.unwrap_or_else(|fault| {
        faults.push(fault);
        None
    });
    let ids = match (&draft.user, &group) {
        (None, _) if draft.user_range.is_some() => match range_ids(draft, group, machine) {
            Ok(ids) => ids,
            Err(fault) => {
                faults.push(fault);
                None
            }
        },
        (None, None) => None,
        (None, Some(group)) => Some(UserIds {
            name: group.name.clone(),
            is_named: false,
            group: Some(group.name.clone()),
            uid: process::user_id(),
            gid: group.gid,
            groups: vec![group.gid],
            range: None,
        }),
        (Some(name), _) => match become_user(name, group.as_ref(), draft.group.is_some(), accounts) {
            Ok(ids) => Some(ids),
            Err(fault) => {
                faults.push(fault);
                None
            }
        },
    };
    if faults.is_empty() { Ok(ids) } else { Err(faults) }
}

fn become_user(
    name: &Spanned<String>,
    group: Option<&Group>,
    group_is_given: bool,
    accounts: &Accounts,
) -> Result<UserIds, Fault> {
    let user = find_user(name, accounts)?;
    let (uid, gid) = match (&user, id(name.get_ref())) {
        (Some(user), _) => (user.uid, group.map_or(user.gid, |group| group.gid)),
        // A group that was not found has been reported; the number stands for it meanwhile.
        (None, Some(uid)) if group_is_given => (uid, group.map_or(uid, |group| group.gid)),
        (None, Some(uid)) => {
            let message = format!("user {uid} has no entry in passwd(5) that would tell its group");
            return Err(Fault::new(name.span(), message).help("add group = \"NAME\" or a number"));
        }
        (None, None) => return Err(unknown_user(name, accounts)),
    };
    let mut groups = match user {
        Some(user) => accounts.memberships(&user.name).map_err(|why| unanswered(name, &why))?,
        None => Vec::new(),
    };
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let group = group.map(|group| group.name.clone());
    Ok(UserIds { name: name.get_ref().clone(), is_named: true, group, uid, gid, groups, range: None })
}

/// From here on users are other things than people and services.
const FIRST_OF_PEOPLE: u32 = 1000;

/// Whom systemd makes up for `DynamicUser=`, and those that are nobody: "Users, Groups, UIDs and GIDs on systemd Systems".
const NOT_FREE: RangeInclusive<u32> = 61_184..=65_535;

/// A user for each connection.
fn range_ids(
    draft: &ServiceDraft,
    group: Option<Group>,
    machine: &Machine<'_>,
) -> Result<Option<UserIds>, Fault> {
    let Some(range) = &draft.user_range else { return Ok(None) };
    let (first, last) = *range.get_ref();
    let fault = |message: String, help: String| Err(Fault::new(range.span(), message).help(help));
    if first < FIRST_OF_PEOPLE || (first <= *NOT_FREE.end() && last >= *NOT_FREE.start()) {
        let (low, high) = (NOT_FREE.start(), NOT_FREE.end());
        return fault(
            format!(
                "users below {FIRST_OF_PEOPLE} and from {low} to {high} are the system's, systemd's, or nobody's"
            ),
            "take numbers that this machine gives nobody, for example from 70000 on".to_owned(),
        );
    }
    let users = machine.accounts.users();
    if let Some(user) = users.iter().find(|user| (first..=last).contains(&user.uid)) {
        let message = format!("user {} has number {}, which is in the range", user.name, user.uid);
        return fault(
            message,
            "take numbers that this machine gives nobody: what they run is killed".to_owned(),
        );
    }
    let groups = machine.accounts.groups();
    let is_taken = |group: &&Group| draft.group.is_none() && (first..=last).contains(&group.gid);
    if let Some(group) = groups.iter().find(is_taken) {
        let message = format!("group {} has number {}, which is in the range", group.name, group.gid);
        let help = "take numbers that this machine gives nobody, or set group, which is the group of all of them then";
        return fault(message, help.to_owned());
    }
    if let Some(id) = [first, last].into_iter().find(|id| !is_mapped(*id)) {
        let message = format!("the user namespace of preforkd does not have user {id}");
        return fault(message, "take others, or give that container more".to_owned());
    }
    let count = last - first + 1;
    if let Some(most) = draft.max_connections.filter(|most| *most > count) {
        return fault(
            format!(
                "the range has {count} users, and max_connections is {most}: each connection needs one of its own"
            ),
            format!("set max_connections = {count} or lower, or take more users"),
        );
    }
    if draft.kill_mode == Some(KillModeWord::Process) {
        return fault(
            "with a user for each connection, what one leaves behind cannot go on: a later one would be the same user"
                .to_owned(),
            "remove kill_mode, or take one user".to_owned(),
        );
    }
    if !draft.credentials.is_empty() {
        return fault(
            "credentials are for one user, and nobody else can read them".to_owned(),
            "remove credentials, or take one user".to_owned(),
        );
    }
    let with_groups = group.is_none();
    let gid = group.as_ref().map_or(first, |group| group.gid);
    Ok(Some(UserIds {
        name: format!("{first}-{last}"),
        is_named: true,
        uid: first,
        gid,
        groups: group.iter().map(|group| group.gid).collect(),
        group: group.map(|group| group.name),
        range: Some(UserRange { count, with_groups }),
    }))
}

/// Why this service cannot have its range of users: somebody else is one of them.
pub(in crate::config) fn range_of_others(
    name: &str,
    section: &Section<'_>,
    services: &[ServiceConfig],
) -> Option<Fault> {
    let user = |service: &ServiceConfig| service.identity.user.clone();
    let own = services.iter().find(|service| service.name == name).and_then(user)?;
    own.range?;
    let (span, own) = (section.span("user")?, own.users());
    services.iter().filter(|other| other.name != name).find_map(|other| {
        let users = user(other)?.users();
        let first = *users.start().max(own.start());
        own.contains(&first).then_some(()).filter(|()| users.contains(&first))?;
        let message = format!("user {first} of the range is one of service {}, too", other.name);
        Some(Fault::new(span.clone(), message).help("give each service users of its own"))
    })
}
