//! `preforkd unban`.

use super::Supervisor;
use crate::admission::Prefix;
use crate::control::Answer;
use crate::journal::{Level, MessageId};
use crate::sys::time::Monotonic;

impl Supervisor {
    /// Lifts the penalties of all sources that have an address in common with `prefix`, at one service or all.
    pub(super) fn unban(&self, prefix: Prefix, service: Option<&str>) -> Answer {
        if let Some(unknown) = service.filter(|name| !self.services.contains_key(*name)) {
            let names: Vec<_> = self.services.keys().map(String::as_str).collect();
            return Answer::Refused(format!(
                "there is no service \"{unknown}\"; the services are {}",
                names.join(", ")
            ));
        }
        let now = Monotonic::now();
        let mut lines = Vec::new();
        for (name, service_state) in
            self.service_states().filter(|(name, _)| service.is_none_or(|wanted| wanted == *name))
        {
            let mut forgiven =
                service_state.scoreboard.sources().forgive(now, |source| source.overlaps(&prefix));
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
            lines.push(format!("nobody in {prefix} has a penalty"));
        }
        Answer::Done(lines.join("\n"))
    }
}
