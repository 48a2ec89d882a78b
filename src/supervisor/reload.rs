//! Reload: asked for, refused, rejected.

use super::ending::Phase;
use super::rollout::Purpose;
use super::{ConfigSource, Fatal, Supervisor};
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::exit;
use crate::journal::MessageId;

impl Supervisor {
    /// Reads the configuration again and begins to put it in force.
    pub(super) fn reload(&mut self, clients: Vec<ClientId>) {
        if !matches!(self.phase, Phase::Running) {
            self.refuse_all(clients, "preforkd is not running yet, or is ending; nothing was reloaded");
            return;
        }
        if self.rollout.is_some() {
            // What is under way may have read the files before the last change.
            self.reload_wanted.get_or_insert_default().extend(clients);
            return;
        }
        if matches!(self.source, ConfigSource::CommandLine) {
            self.refuse_all(
                clients,
                "this preforkd was configured on the command line; there is no file to reload",
            );
            return;
        }
        // It would forget the reload; it begins again when that is done.
        if self.trial.is_some() {
            let waiting = self.end_trial();
            self.upgrade_wanted.get_or_insert_default().extend(waiting);
        }
        self.systemd.reloading();
        let result = match self.source.load() {
            Err(errors) => Err(Fatal { text: errors.to_string(), code: exit::CONFIG }),
            Ok(loaded) => {
                for warning in loaded.warnings.iter() {
                    self.log.warning(None, format_args!("{warning}"));
                }
                self.begin_rollout(loaded.config, clients.clone(), Purpose::Reload)
            }
        };
        if let Err(error) = result {
            self.reject(clients, &error.to_string());
        }
    }

    fn refuse_all(&mut self, clients: impl IntoIterator<Item = ClientId>, reason: &str) {
        self.log.warning(None, format_args!("reload refused: {reason}"));
        for client in clients {
            self.answer(client, &Answer::Refused(reason.to_owned()));
        }
    }

    pub(super) fn begin_wanted_reload(&mut self) {
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
