//! `control_access`: who may use the control socket besides root and preforkd's own user.

use toml::Spanned;

use crate::config::checked::{Account, ControlAccess, ServiceConfig, UserIds};
use crate::config::draft::ControlAccessDraft;
use crate::config::machine::Machine;
use crate::config::machine::named::{client_group, client_user};
use crate::config::value::{Fault, Faults};

/// The number of who is not known in a user namespace, user_namespaces(7).
const NOT_KNOWN: u32 = 65_534;

/// With the ids of this machine. Who is served must not be who may act.
pub(in crate::config) fn resolve(
    draft: &ControlAccessDraft,
    services: &[ServiceConfig],
    machine: &Machine<'_>,
) -> Result<ControlAccess, Faults> {
    let mut faults = Faults::new();
    let mut keep = |name: &Option<Spanned<String>>, key: &str| {
        let name = name.as_ref()?;
        let found = match key {
            "user" => client_user(name, machine),
            _ => client_group(name, machine),
        };
        match found.and_then(|id| is_apart(name, key, id, services).map(|()| id)) {
            Ok(id) => Some(Account { name: name.get_ref().clone(), id }),
            Err(fault) => {
                faults.push(fault);
                None
            }
        }
    };
    let access = ControlAccess {
        user: keep(&draft.user, "user"),
        look: keep(&draft.look, "look"),
        act: keep(&draft.act, "act"),
    };
    if faults.is_empty() { Ok(access) } else { Err(faults) }
}

/// Whether whom a stranger has taken over would have this id: not only then, but then for sure, he would control preforkd.
fn is_apart(name: &Spanned<String>, key: &str, id: u32, services: &[ServiceConfig]) -> Result<(), Fault> {
    let name_of_it = name.get_ref();
    if id == NOT_KNOWN {
        let message =
            format!("control_access.{key}: {name_of_it} is what the kernel calls whom it does not know");
        return Err(Fault::new(name.span(), message).help("name a user or a group that somebody is meant by"));
    }
    let has = |user: &UserIds| {
        let last = user.range.map_or(0, |range| range.count.saturating_sub(1));
        match key {
            "user" => (user.uid..=user.uid.saturating_add(last)).contains(&id),
            _ => {
                let of_its_own = user.range.is_some_and(|range| range.with_groups)
                    && (user.gid..=user.gid.saturating_add(last)).contains(&id);
                user.gid == id || user.groups.contains(&id) || of_its_own
            }
        }
    };
    let is_served = |service: &&ServiceConfig| service.identity.user.as_ref().is_some_and(has);
    let Some(service) = services.iter().find(is_served) else { return Ok(()) };
    let what = if key == "user" { "are user" } else { "are in group" };
    let message = format!(
        "control_access.{key}: connection processes of service \"{}\" {what} {name_of_it}, so that whoever takes one over \
         could use the control socket",
        service.name
    );
    Err(Fault::new(name.span(), message).help("choose another, or give the service another user"))
}
