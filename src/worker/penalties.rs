//! What a connection's end costs its source.

use std::time::Duration;

use super::Worker;
use crate::admission::sources::Punished;
use crate::admission::{Offence, Prefix};
use crate::client::{Client, ConnectionId};
use crate::journal::{Level, MessageId};
use crate::sys::time;
use crate::sys::wait::Ending;

/// What a process did that ended so; `None` if that is nothing in itself.
pub(super) fn offence(ending: Ending, timed_out: bool) -> Option<Offence> {
    match ending {
        _ if timed_out => Some(Offence::Timeout),
        Ending::Exited(status) => Some(Offence::Exit(status)),
        Ending::Killed(_) => ending.is_crash().then_some(Offence::Crash),
    }
}

impl Worker {
    /// Punishes the source of a connection if the service names this as an offence.
    pub(super) fn punish(&self, client: &Client, offence: Option<Offence>) {
        let Some(offence) = offence else { return };
        let sources = self.scoreboard.sources();
        let now = time::monotonic_usec();
        let punished = self.spec.gate().punish(client.peer, offence, now, sources);
        if let Some((source, amount, punished)) = punished {
            self.log_penalty(self.id(client.number), offence, source, amount, punished);
        }
    }

    fn log_penalty(
        &self,
        id: ConnectionId,
        offence: Offence,
        source: Prefix,
        amount: Duration,
        punished: Punished,
    ) {
        let what = match offence {
            Offence::Crash => "crashed".to_owned(),
            Offence::Timeout => "timed out".to_owned(),
            Offence::Exit(status) => format!("exited {status}"),
        };
        let amount = Seconds(amount);
        let total = Seconds(Duration::from_nanos(punished.total));
        let (level, follows) = match punished {
            Punished { waits: true, waited: false, .. } => {
                (Level::Notice, format!("it is refused for {total} from now on"))
            }
            Punished { waits: true, .. } => (Level::Info, format!("it is refused for {total} more")),
            _ => {
                let threshold = Seconds(self.plan.service.admission.penalties.threshold);
                (Level::Info, format!("with {threshold} it would be refused, and has {total}"))
            }
        };
        self.log.event(
            level,
            Some(MessageId::Penalty),
            Some(&self.plan.service.name),
            format_args!("{source} has a penalty of {amount}, because connection {id} {what}: {follows}"),
        );
    }
}

/// A time as a person writes it.
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_secs_f64() {
            seconds if seconds.fract() == 0.0 => write!(f, "{seconds:.0} s"),
            seconds => write!(f, "{seconds:.1} s"),
        }
    }
}
