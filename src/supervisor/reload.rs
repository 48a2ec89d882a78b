//! Reload: asked for, refused, rejected.

use super::ending::Phase;
use super::loader::Loader;
use super::rollout::Purpose;
use super::{ConfigSource, Supervisor};
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::journal::MessageId;
use crate::sys::time::Monotonic;

impl Supervisor {
    /// Whether a configuration is being read, or a generation is on its way.
    pub(super) fn is_reloading(&self) -> bool {
        self.loader.is_some() || self.rollout.is_some()
    }

    /// Has the configuration read again, to put it in force.
    pub(super) fn reload(&mut self, clients: Vec<ClientId>) {
        if !matches!(self.phase, Phase::Running) {
            self.refuse_all(clients, "preforkd is not running yet, or is ending; nothing was reloaded");
            return;
        }
        if self.is_reloading() {
            // What is under way may have read the files before the last change.
            self.reload_wanted.get_or_insert_default().extend(clients);
            return;
        }
        let ConfigSource::File { path, .. } = &self.source else {
            self.refuse_all(
                clients,
                "this preforkd was configured on the command line; there is no file to reload",
            );
            return;
        };
        let begun = Loader::begin(path, clients.clone(), self.workers.descriptor_limit(), &self.poller);
        // It would forget the reload; it begins again when that is done.
        if self.trial.is_some() {
            let waiting = self.end_trial();
            self.upgrade_wanted.get_or_insert_default().extend(waiting);
        }
        self.systemd.reloading();
        match begun {
            Ok(loader) => self.loader = Some(loader),
            Err(error) => self.reject(clients, &format!("cannot start to read the configuration: {error}")),
        }
    }

    /// The configuration has been read, or cannot be, or the time for it is over.
    pub(super) fn advance_loader(&mut self, now: Monotonic) {
        let Some(outcome) = self.loader.as_mut().and_then(|loader| loader.hear(now)) else { return };
        let clients = self.loader.take().map(|loader| loader.end(&self.poller)).unwrap_or_default();
        let begun = outcome.and_then(|mut checked| {
            for warning in checked.warnings {
                self.log.warning(None, format_args!("{warning}"));
            }
            self.source.adjust(&mut checked.config);
            self.begin_rollout(checked.config, clients.clone(), Purpose::Reload)
                .map_err(|error| error.to_string())
        });
        if let Err(reason) = begun {
            self.reject(clients, &reason);
        }
    }

    fn refuse_all(&mut self, clients: impl IntoIterator<Item = ClientId>, reason: &str) {
        self.log.warning(None, format_args!("reload refused: {reason}"));
        for client in clients {
            self.answer(client, &Answer::Refused(reason.to_owned()));
        }
    }

    /// Begins a reload that had to wait, if it need not any more.
    pub(super) fn begin_wanted_reload(&mut self) {
        if self.is_reloading() {
            return;
        }
        if let Some(clients) = self.reload_wanted.take() {
            self.reload(clients);
        }
    }

    pub(super) fn reject(&mut self, clients: Vec<ClientId>, reason: &str) {
        let reason = reason.trim_end();
        self.reloads.failed += 1;
        self.last_reload_failed = true;
        self.log.event(
            crate::journal::Level::Error,
            Some(MessageId::ReloadRejected),
            None,
            format_args!("reload rejected, generation {} stays in force: {reason}", self.generation),
        );
        self.systemd.ready(&format!("{}; the last reload was rejected", self.summary()));
        for client in clients {
            self.answer(client, &Answer::Refused(reason.to_owned()));
        }
    }
}
