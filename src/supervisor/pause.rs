//! `preforkd pause`, `resume` and `drain`: services that accept nobody for a while; `lameduck`: services that go on, but
//! balancers are told to send no more.
//!
//! A service that is paused has no workers, and no program has a listener of it. Its listeners stay open, so its clients wait in the queue, and whoever comes after
//! its queue is full waits for the kernel's next try. Connections go on under workers that retire. So it stays over reloads
//! and upgrades, of which the new workers still have to show that they could serve, and until preforkd ends.

use std::rc::Rc;

use super::Supervisor;
use super::service::{Service, ServiceState};
use super::workers::WorkerProcess;
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::journal::{Level, MessageId};

/// Who waits until services have come to rest.
#[derive(Debug, Default)]
pub(super) struct AwaitedDrains(Vec<AwaitedDrain>);

#[derive(Debug)]
struct AwaitedDrain {
    client: ClientId,
    /// `None` for all.
    service: Option<String>,
    until: AtRest,
    /// What to say then.
    lines: String,
}

/// How far a service that is paused has come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtRest {
    /// Nobody accepts any more: a worker that was told to stop, and a spare, may do so once more before they hear it.
    Accepting,
    /// The last connection has ended, too.
    Connections,
}

impl Supervisor {
    /// A service, or all, accept nobody from now on. Answers when that is so, or the connections have ended as well.
    pub(super) fn pause(&mut self, service: Option<String>, client: ClientId, until: AtRest) {
        match self.set_paused(service.as_deref(), true) {
            Answer::Done(lines) => self.drains.0.push(AwaitedDrain { client, service, until, lines }),
            refused => self.answer([client], &refused),
        }
    }

    /// A service accepts again, or all do.
    pub(super) fn resume_services(&mut self, service: Option<&str>) -> Answer {
        self.set_paused(service, false)
    }

    fn set_paused(&mut self, service: Option<&str>, paused: bool) -> Answer {
        if let Some(answer) = self.unknown_service(service) {
            return answer;
        }
        self.end_recovery();
        if !self.is_running() || !self.changes.are_idle() {
            let reason = self.waits_for().map(|what| format!(", and waits for {what}")).unwrap_or_default();
            return Answer::refused(format!(
                "preforkd is being changed{reason}; ask again when that is done"
            ));
        }
        let mut lines = Vec::new();
        for state in self.services_meant(service) {
            if !paused && state.is_lameduck() {
                state.set_lameduck(false);
                self.log.event(
                    Level::Notice,
                    Some(MessageId::ServicePaused),
                    Some(&state.name),
                    format_args!("is no lame duck any more: balancers may send it clients again"),
                );
                if !state.is_paused() {
                    lines.push(format!("{}: balancers may send it clients again", state.name));
                    continue;
                }
            }
            if state.is_paused() == paused {
                lines.push(format!(
                    "{}: {} already",
                    state.name,
                    if paused { "is paused" } else { "accepts" }
                ));
                continue;
            }
            state.set_paused(paused);
            let text = if paused { "is paused: clients wait in its queue" } else { "accepts again" };
            self.log.event(
                Level::Notice,
                Some(MessageId::ServicePaused),
                Some(&state.name),
                format_args!("{text}"),
            );
            lines.push(format!("{}: {text}", state.name));
            if paused {
                let of_it = self.state.workers.iter_mut().filter(|worker| worker.service() == state.name);
                of_it.for_each(|worker| worker.retire_unless_it_has());
                self.state.end_programs(&state.name);
            }
        }
        self.systemd.status(&self.state.summary());
        Answer::Done(lines.join("\n"))
    }

    /// A service goes on, but whoever asks for balancers is told that they are to send it no more. So it stays over reloads
    /// and upgrades, until it is resumed.
    pub(super) fn make_lameduck(&mut self, service: &str) -> Answer {
        if let Some(answer) = self.unknown_service(Some(service)) {
            return answer;
        }
        let Some(state) = self.services_meant(Some(service)).pop() else {
            return Answer::refused(format!("{service} is not served; balancers are told so"));
        };
        if state.is_lameduck() {
            return Answer::Done(format!("{service}: is a lame duck already"));
        }
        state.set_lameduck(true);
        let text = "is a lame duck: it serves on, and balancers are told to send it no more clients";
        self.log.event(Level::Notice, Some(MessageId::ServicePaused), Some(service), format_args!("{text}"));
        self.systemd.status(&self.state.summary());
        Answer::Done(format!("{service}: {text}"))
    }

    /// The services in force that are meant.
    fn services_meant(&self, service: Option<&str>) -> Vec<Rc<ServiceState>> {
        let services = self.state.generation.services();
        let meant = services.filter(|one: &&Service| service.is_none_or(|wanted| wanted == one.name()));
        meant.map(|one| Rc::clone(one.state())).collect()
    }

    /// Answers those who wait for what has come to rest by now.
    pub(super) fn advance_drains(&mut self) {
        for awaited in std::mem::take(&mut self.drains.0) {
            match self.at_rest(&awaited) {
                Some(answer) => self.answer([awaited.client], &answer),
                None => self.drains.0.push(awaited),
            }
        }
    }

    /// What to say if these services have come to rest, or somebody has had them accept again.
    fn at_rest(&self, awaited: &AwaitedDrain) -> Option<Answer> {
        let AwaitedDrain { service, until, lines, .. } = awaited;
        let meant = self.services_meant(service.as_deref());
        if let Some(resumed) = meant.iter().find(|state| !state.is_paused()) {
            let name = &resumed.name;
            return Some(Answer::refused(format!("{name} accepts again: somebody has resumed it")));
        }
        let state = &self.state;
        let accepts = |one: &Rc<ServiceState>| {
            state.workers.of_service(&one.name).any(WorkerProcess::has_listeners)
                || state.adopted.has_spares(&one.name)
        };
        if meant.iter().any(accepts) {
            return None;
        }
        match until {
            AtRest::Accepting => Some(Answer::Done(lines.clone())),
            AtRest::Connections => meant.iter().all(|one| state.live_of(one) == 0).then(|| {
                let lines: Vec<_> =
                    meant.iter().map(|one| format!("{}: paused, and has no connections", one.name)).collect();
                Answer::Done(lines.join("\n"))
            }),
        }
    }

    /// Tells those who wait for a drain that they will not hear of its end.
    pub(super) fn give_up_drains(&mut self, reason: &str) {
        let clients: Vec<_> =
            std::mem::take(&mut self.drains.0).into_iter().map(|awaited| awaited.client).collect();
        self.answer(clients, &Answer::refused(reason));
    }
}
