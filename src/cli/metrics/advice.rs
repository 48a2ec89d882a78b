//! Whether clients are to be sent to a service, and how much of it is taken.

use crate::control::{Condition, ServiceStatus, Status, WorkerState};

/// Whether clients are to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Advice {
    /// They are.
    Ready,
    /// No more, though who is there is served; why.
    Drains(String),
    /// Nobody would serve them; why.
    Down(String),
}

impl Advice {
    /// Of one service, or of all; `None` if there is no such service.
    pub(super) fn of(status: &Status, service: Option<&str>) -> Option<Advice> {
        let meant = meant(status, service)?;
        let whole = match status.state {
            Condition::Running | Condition::Reloading => None,
            Condition::Starting => Some(Advice::Down("preforkd is starting".to_owned())),
            Condition::Draining => Some(Advice::Drains("preforkd is draining".to_owned())),
            Condition::Ending => Some(Advice::Down("preforkd is ending".to_owned())),
        };
        let mut worst = whole.unwrap_or(Advice::Ready);
        for one in meant.into_iter().map(of_service) {
            if one.rank() > worst.rank() {
                worst = one;
            }
        }
        Some(worst)
    }

    fn rank(&self) -> u8 {
        match self {
            Advice::Ready => 0,
            Advice::Drains(_) => 1,
            Advice::Down(_) => 2,
        }
    }
}

fn of_service(service: &ServiceStatus) -> Advice {
    let name = &service.name;
    let accepts = |state| service.workers.iter().any(|worker| worker.state == state);
    match &service.down {
        Some(reason) => Advice::Down(format!("{name} is down: {reason}")),
        None if service.paused => Advice::Drains(format!("{name} is paused")),
        None if service.lameduck => Advice::Drains(format!("{name} is a lame duck")),
        None if !accepts(WorkerState::Accepting) => {
            Advice::Down(format!("{name} has no worker that accepts"))
        }
        None => match service.unreachable.first() {
            Some(unreachable) => Advice::Down(format!("{name}: {unreachable}")),
            None => Advice::Ready,
        },
    }
}

/// The services that are meant, without those that were removed and only have connections left.
fn meant<'a>(status: &'a Status, service: Option<&str>) -> Option<Vec<&'a ServiceStatus>> {
    let is_in_force = |one: &&ServiceStatus| one.down.is_some() || !one.listen.is_empty();
    let in_force = status.services.iter().filter(is_in_force);
    let meant: Vec<_> = in_force.filter(|one| service.is_none_or(|wanted| wanted == one.name)).collect();
    (service.is_none() || !meant.is_empty()).then_some(meant)
}

/// How much is free of the connections that a service may have, or of those of the fullest of all, in percent; never none,
/// which would mean that nobody is to be sent.
pub(super) fn free_percent(status: &Status, service: Option<&str>) -> u64 {
    let free = |one: &ServiceStatus| {
        let (active, limit) = (u64::from(one.active), u64::from(one.max_connections).max(1));
        100 * limit.saturating_sub(active) / limit
    };
    meant(status, service).unwrap_or_default().into_iter().map(free).min().unwrap_or(100).max(1)
}
