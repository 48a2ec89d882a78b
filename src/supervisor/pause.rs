//! `preforkd pause`, `resume` and `drain`: services that accept nobody for a while; `lameduck`: services that go on, but
//! balancers are told to send no more.
//!
//! A service that is paused has no workers, and no program has a listener of it. Its listeners stay open, so its clients wait in the queue, and whoever comes after
//! its queue is full waits for the kernel's next try. Connections go on under workers that retire. So it stays over reloads
//! and upgrades, of which the new workers still have to show that they could serve, and until preforkd ends.

use std::rc::Rc;

use super::Supervisor;
use super::service::{Service, ServiceState};
use super::wording::plural;
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
        if let Some(why) = self.phase.why_not_running() {
            return Answer::not_now(why);
        }
        self.end_recovery();
        if !self.changes.are_idle() {
            let reason = self.waits_for().map(|what| format!(", and waits for {what}")).unwrap_or_default();
            return Answer::not_now(format!(
                "preforkd is being changed{reason}; ask again when that is done"
            ));
        }
        let meant = self.services_meant(service);
        let mut lines = self.down_among(service);
        if meant.is_empty() {
            let nothing = || vec!["there is no service".to_owned()];
            return Answer::not_now(
                Some(lines).filter(|lines| !lines.is_empty()).unwrap_or_else(nothing).join("\n"),
            );
        }
        for state in meant {
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
        let not_running = || self.phase.why_not_running().map(Answer::not_now);
        if let Some(answer) = self.unknown_service(Some(service)).or_else(not_running) {
            return answer;
        }
        let Some(state) = self.services_meant(Some(service)).pop() else {
            return Answer::not_now(format!("{service} is not served; balancers are told so"));
        };
        if state.is_lameduck() {
            return Answer::Done(format!("{service}: is a lame duck already"));
        }
        state.set_lameduck(true);
        let text = match state.is_paused() {
            false => "is a lame duck: it serves on, and balancers are told to send it no more clients",
            true => {
                "is a lame duck, and paused: balancers are told to send it no clients, also when it accepts again"
            }
        };
        self.log.event(Level::Notice, Some(MessageId::ServicePaused), Some(service), format_args!("{text}"));
        self.systemd.status(&self.state.summary());
        Answer::Done(format!("{service}: {text}"))
    }

    /// Of those that are meant, what is down and has nothing that could be paused: it accepts as soon as it can be served.
    fn down_among(&self, service: Option<&str>) -> Vec<String> {
        let down = self.state.generation.down().iter();
        let meant = down.filter(|(name, _)| service.is_none_or(|wanted| wanted == name.as_str()));
        meant
            .map(|(name, down)| {
                format!("{name}: is down, and accepts as soon as it can be served: {}", down.reason)
            })
            .collect()
    }

    /// What those wait for who have asked for a drain.
    pub(super) fn drains_wait_for(&self) -> Option<String> {
        let of = |awaited: &AwaitedDrain| {
            let busy = |state: &Rc<ServiceState>| {
                let live = self.state.live_of(state);
                (live > 0)
                    .then(|| format!("{live} {} of {}", plural(live as usize, "connection"), state.name))
            };
            let busy: Vec<_> =
                self.services_meant(awaited.service.as_deref()).iter().filter_map(busy).collect();
            match (awaited.until, busy.is_empty()) {
                (AtRest::Connections, false) => format!("{} to end", busy.join(", ")),
                _ => "workers that are to accept no more".to_owned(),
            }
        };
        self.drains.0.first().map(of)
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
                let mut lines = self.down_among(service.as_deref());
                lines.extend(meant.iter().map(|one| format!("{}: paused, and has no connections", one.name)));
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
