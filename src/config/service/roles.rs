//! Who workers and built-in handlers are, where the supervisor is root.
//!
//! A worker stands before the processes of its service with a user of its own, whom none of them is: see
//! [`crate::sys::process::stand_before`]. So that is no user of any service. A built-in handler needs nothing that belongs to
//! anybody, and is a user whom nobody else is.

use crate::config::checked::{Job, ServiceConfig, UserIds, WorkerIds};
use crate::config::machine::Machine;
use crate::config::machine::accounts::Accounts;
use crate::config::machine::named::is_mapped;

/// The user of the package, systemd/preforkd.sysusers.
const PACKAGED: &str = "preforkd";

/// Debian reserves them, and systemd gives none of them to anybody: Debian Policy 9.2.2, "Users, Groups, UIDs and GIDs on
/// systemd Systems". A namespace of 65,536 users has them too.
const UNOWNED: std::ops::RangeInclusive<u32> = 65_520..=65_533;

/// A number that nobody is, and nothing belongs to.
fn unowned(accounts: &Accounts) -> impl Iterator<Item = u32> {
    let (users, groups) = (accounts.users(), accounts.groups());
    UNOWNED.rev().filter(move |id| {
        users.iter().all(|user| user.uid != *id)
            && groups.iter().all(|group| group.gid != *id)
            && is_mapped(*id)
    })
}

/// Whom the connection processes of a service become that says `given`.
pub(super) fn user_of(job: &Job, given: Option<UserIds>, machine: &Machine<'_>) -> Option<UserIds> {
    let is_named = given.as_ref().is_some_and(|user| user.is_named);
    if is_named || matches!(job, Job::Exec(_)) || !machine.becomes_others {
        return given;
    }
    let Some(id) = unowned(&machine.accounts).next() else { return given };
    let own = || UserIds {
        name: id.to_string(),
        is_named: false,
        group: None,
        uid: id,
        gid: id,
        groups: vec![id],
        range: None,
    };
    Some(given.map_or_else(own, |given| UserIds { uid: id, ..given }))
}

/// Says who the workers of all services are: where connection processes are root, nobody else than the supervisor. Who may make
/// a process of root is root.
pub(in crate::config) fn assign_workers(services: &mut [ServiceConfig], machine: &Machine<'_>) {
    if !machine.becomes_others {
        return;
    }
    let taken: Vec<_> =
        services.iter().filter_map(|service| service.identity.user.as_ref()).map(UserIds::users).collect();
    let accounts = &machine.accounts;
    let users = accounts.users();
    let named =
        [PACKAGED, "nobody"].into_iter().filter_map(|name| users.iter().find(|user| user.name == name));
    let named =
        named.map(|user| (user.uid, user.gid)).filter(|(uid, gid)| is_mapped(*uid) && is_mapped(*gid));
    let mut all = named.chain(unowned(accounts).map(|id| (id, id)));
    let Some((uid, gid)) = all.find(|(uid, _)| *uid != 0 && !taken.iter().any(|users| users.contains(uid)))
    else {
        return;
    };
    for service in services {
        let user = service.identity.user.as_ref().filter(|user| user.uid != 0);
        service.identity.worker = user.map(|_| WorkerIds { uid, gid });
    }
}
