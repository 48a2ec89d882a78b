//! `preforkd unban`.

use std::rc::Rc;

use super::Supervisor;
use super::service::ServiceState;
use crate::admission::SourceName;
use crate::control::Answer;
use crate::journal::{Level, MessageId};
use crate::sys::time::Monotonic;

impl Supervisor {
    /// Lifts the penalties of all sources that have a client in common with `wanted`, at one service or all.
    pub(super) fn unban(&self, wanted: SourceName, service: Option<&str>) -> Answer {
        if let Some(answer) = self.unknown_service(service) {
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
        if lines.is_empty() {
            lines.push(match wanted {
                SourceName::Prefix(prefix) => format!("nobody in {prefix} has a penalty"),
                user => format!("{user} has no penalty"),
            });
        }
        Answer::Done(lines.join("\n"))
    }
}
