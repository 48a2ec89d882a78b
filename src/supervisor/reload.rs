//! Reload: asked for, refused, rejected.

use super::changes::Change;
use super::loader::{Loader, ReadingTask};
use super::purpose::Purpose;
use super::{ConfigSource, Supervisor};
use crate::config::Tolerance;
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::journal::{Level, MessageId};
use crate::sys::time::Monotonic;

impl Supervisor {
    /// Has the configuration read again, to put it in force.
    pub(super) fn reload(&mut self, clients: Vec<ClientId>) {
        if let Some(why) = self.phase.why_not_running() {
            return self.refuse(clients, why);
        }
        self.end_recovery();
        if self.changes.are_of_configuration() {
            // What is under way may have read the files before the last change.
            self.changes.want_reload(clients);
            return;
        }
        let ConfigSource::File { path, .. } = &self.invocation.source else {
            let why = "this preforkd was configured on the command line; there is no file to reload";
            return self.refuse(clients, why);
        };
        // A reload is all or nothing, but what was down before does not stand in the way of the rest.
        let unavailable = self.state.generation.config().unavailable.reasons.into_keys().collect();
        let task = ReadingTask { path: path.clone(), snapshot: None, tolerance: Tolerance::Of(unavailable) };
        let limit = self.state.workers.descriptor_limit();
        let begun = Loader::begin(&task, Purpose::Reload, clients.clone(), limit, &self.poller);
        // It would forget the reload; it begins again when that is done.
        if let Some(waiting) = self.end_trial() {
            self.changes.want_upgrade(waiting);
        }
        self.systemd.reloading();
        match begun {
            Ok(loader) => self.changes.begin(Change::Reading(loader)),
            Err(error) => self.reject(clients, &format!("cannot start to read the configuration: {error}")),
        }
    }

    /// The configuration has been read, or cannot be, or the time for it is over.
    pub(super) fn advance_loader(&mut self, now: Monotonic) {
        let Some(outcome) = self.changes.loader().and_then(|loader| loader.hear(now)) else { return };
        let Some(Change::Reading(loader)) = self.changes.end() else { return };
        let purpose = loader.purpose();
        let clients = loader.end(&self.poller);
        if purpose == Purpose::Recovery {
            return self.try_checked(outcome);
        }
        let begun = outcome.and_then(|mut checked| {
            for warning in checked.warnings {
                self.log.warning(None, format_args!("{warning}"));
            }
            self.invocation.source.adjust(&mut checked.config);
            self.begin_rollout(checked.config, clients.clone(), Purpose::Reload)
                .map_err(|error| error.to_string())
        });
        if let Err(reason) = begun {
            self.reject(clients, &reason);
        }
    }

    /// It cannot be reloaded, whatever the files say.
    fn refuse(&mut self, clients: Vec<ClientId>, reason: &str) {
        self.log.warning(None, format_args!("reload refused: {reason}"));
        self.answer(clients, &Answer::not_now(reason));
    }

    /// Begins a reload that had to wait, if it need not any more.
    pub(super) fn begin_wanted_reload(&mut self) {
        if let Some(clients) = self.changes.take_reload() {
            self.reload(clients);
        }
    }

    /// A reload has failed, and the generation in force stays there.
    pub(super) fn reject(&mut self, clients: Vec<ClientId>, reason: &str) {
        let reason = reason.trim_end();
        self.state.history.was_rejected();
        let number = self.state.generation.number();
        self.log.event(
            Level::Error,
            Some(MessageId::ReloadRejected),
            None,
            format_args!("reload rejected, generation {number} stays in force: {reason}"),
        );
        self.systemd.ready(&format!("{}; the last reload was rejected", self.state.summary()));
        self.answer(clients, &Answer::refused(reason));
    }
}
