//! `preforkd unban`.

use std::rc::Rc;

use super::Supervisor;
use super::service::ServiceState;
use crate::admission::SourceName;
use crate::control::Answer;
use crate::journal::{Level, MessageId};
use crate::sys::time::Monotonic;

impl Supervisor {
    /// Lifts the penalties of all sources that have a client in common with `wanted`, and its bans, at one service or all.
    ///
    /// Bans are lifted only if they are of nobody else: whoever lets one address in does not mean its whole network.
    pub(super) fn unban(&mut self, wanted: SourceName, service: Option<&str>, user: Option<u32>) -> Answer {
        let is_banned_from = |name| self.state.bans.is_about(name);
        if let Some(answer) = self.unknown_service(service.filter(|name| !is_banned_from(name))) {
            return answer;
        }
        let now = Monotonic::now();
        let mut lines = Vec::new();
        let is_meant = |state: &Rc<ServiceState>| service.is_none_or(|wanted| wanted == state.name);
        for service_state in self.state.services.alive().filter(is_meant) {
            let name = service_state.name.as_str();
            let mut forgiven =
                service_state.scoreboard.sources().forgive(now, |source| source.overlaps(&wanted));
            forgiven.sort();
            for source in forgiven {
                self.log.event(
                    Level::Notice,
                    Some(MessageId::Penalty),
                    Some(name),
                    format_args!("{source} has no penalty any more, by unban"),
                );
                lines.push(format!("{name}: lifted the penalty of {source}"));
            }
        }
        lines.extend(self.lift_bans(wanted, service, user));
        let left = self.state.bans.left(wanted, service);
        if !left.is_empty() {
            return Answer::refused([lines, left].concat().join("\n"));
        }
        if lines.is_empty() {
            lines.push(match wanted {
                SourceName::Prefix(prefix) => format!("nobody in {prefix} has a penalty or a ban"),
                user => format!("{user} has no penalty and no ban"),
            });
        }
        Answer::Done(lines.join("\n"))
    }
}
