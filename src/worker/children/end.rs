//! The end of a connection, whoever has reaped its process: its worker, or the supervisor if that is dead.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use crate::admission::sources::Punished;
use crate::admission::{Admission, Offence, Sentence};
use crate::client::{Client, ConnectionId};
use crate::config::ServiceConfig;
use crate::ipc::reports::Failure;
use crate::journal::{ConnectionRecord, Exit, Level, Log, MessageId, Records};
use crate::scoreboard::{Count, CountUp, CountedTime, Scoreboard, Slot, micros};
use crate::sys::cgroup::TreeUsage;
use crate::sys::wait::{Ended, Ending, Pid};

/// What the end of a connection is entered in: counters, the log, the account of its source.
pub(crate) struct Books<'a> {
    /// The name of the service.
    pub(crate) service: &'a str,
    pub(crate) log: &'a Log,
    pub(crate) counters: &'a dyn CountUp,
    /// `None` if the service was removed.
    pub(crate) in_force: Option<InForce<'a>>,
    /// What a failure is explained by, in a worker.
    pub(crate) config: Option<&'a ServiceConfig>,
}

/// What is in force for a service, as far as it concerns the ends of its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InForce<'a> {
    /// What their ends cost.
    pub(crate) admission: &'a Admission,
    /// Which of them are written.
    pub(crate) records: Records,
}

/// A connection that has ended. Its slot goes with it, when all is entered.
#[derive(Debug)]
pub(super) struct Finished<'a, S: Deref<Target = Scoreboard>> {
    pub(super) id: ConnectionId,
    pub(super) client: Client,
    pub(super) ended: Ended,
    pub(super) how: How<'a>,
    /// Bytes from and to the client, if somebody knows.
    pub(super) bytes: Option<(u64, u64)>,
    /// What was used in its cgroup, if it had one.
    pub(super) usage: Option<TreeUsage>,
    /// How long it was until a process had it, if somebody knows.
    pub(super) waited: Option<Duration>,
    /// Its program had been started before.
    pub(super) warm: bool,
    pub(super) slot: &'a Slot<S>,
}

/// How a connection came to its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum How<'a> {
    /// As the log says it.
    Exit(Exit<'a>),
    /// Its process could not begin.
    Failed(Failure),
}

impl Books<'_> {
    /// Enters the end of a connection.
    pub(super) fn enter<S: Deref<Target = Scoreboard>>(&self, finished: &Finished<'_, S>) {
        let Finished { id, client, ended, how, bytes, usage, waited, warm, slot } = finished;
        let explained = match how {
            How::Failed(failure) => Some(self.explain(*failure)),
            How::Exit(_) => None,
        };
        let exit = match (how, &explained) {
            (How::Exit(exit), _) => *exit,
            (How::Failed(_), reason) => Exit::NotStarted(reason.as_deref().unwrap_or_default()),
        };
        self.counters.count(Count::Completed);
        if ended.ending.is_crash() || exit == Exit::Panicked {
            self.counters.count(Count::Crashes);
        }
        if matches!(exit, Exit::TimedOut(_)) {
            self.counters.count(Count::Timeouts);
        }
        let record = ConnectionRecord::new(self.service, *id, client, ended, exit);
        let record = ConnectionRecord { bytes: *bytes, usage: *usage, warm: *warm, ..record };
        // Of one that was lost its worker may have counted all this before it died.
        if exit != Exit::Lost {
            self.count_use(&record, *waited);
        }
        let is_written = match self.in_force.map_or(Records::All, |in_force| in_force.records) {
            Records::All => true,
            Records::Failures => !matches!(exit, Exit::Ended(Ending::Exited(0))),
            Records::None => false,
        };
        if is_written {
            self.log.connection(&record);
        }
        let (Some(offence), Some(in_force)) = (offence(exit), self.in_force) else { return };
        if let Some(sentence) = in_force.admission.punish(client, offence, slot.scoreboard().sources()) {
            self.counters.count(Count::Penalties);
            self.log_sentence(*id, &sentence);
        }
    }

    /// Counts what a connection has used, as its record has it.
    fn count_use(&self, record: &ConnectionRecord<'_>, waited: Option<Duration>) {
        let (received, sent) = record.bytes.unwrap_or_default();
        self.counters.count_time(CountedTime::Duration, record.duration);
        if let Some(waited) = waited {
            self.counters.count_time(CountedTime::Wait, waited);
        }
        self.counters.count_more(Count::CpuMicros, micros(record.cpu()));
        self.counters.count_more(Count::BytesReceived, received);
        self.counters.count_more(Count::BytesSent, sent);
    }

    /// Enters the end of a connection of which nobody knows how that was.
    pub(crate) fn lost<S: Deref<Target = Scoreboard>>(
        &self,
        id: ConnectionId,
        client: &Client,
        pid: Pid,
        slot: &Slot<S>,
    ) {
        let (ended, how) = (Ended { pid, ..Ended::default() }, How::Exit(Exit::Lost));
        self.enter(&Finished {
            id,
            client: *client,
            ended,
            how,
            bytes: None,
            usage: None,
            waited: None,
            warm: false,
            slot,
        });
    }

    /// Enters the end of a connection that never got a process.
    pub(crate) fn not_started<S: Deref<Target = Scoreboard>>(
        &self,
        id: ConnectionId,
        client: &Client,
        reason: &str,
        slot: &Slot<S>,
    ) {
        let (client, ended, how) = (*client, Ended::default(), How::Exit(Exit::NotStarted(reason)));
        self.enter(&Finished {
            id,
            client,
            ended,
            how,
            bytes: None,
            usage: None,
            waited: None,
            warm: false,
            slot,
        });
    }

    pub(super) fn explain(&self, failure: Failure) -> String {
        self.config.map_or_else(|| failure.kind().to_string(), |service| failure.explain(service))
    }

    fn log_sentence(&self, id: ConnectionId, sentence: &Sentence) {
        let Sentence { source, offence, amount, threshold, punished } = *sentence;
        let what = match offence {
            Offence::Crash => "crashed".to_owned(),
            Offence::Timeout => "timed out".to_owned(),
            Offence::Exit(status) => format!("exited {status}"),
        };
        let (amount, total) = (Seconds(amount), Seconds(punished.total));
        let (level, follows) = match punished {
            Punished { waits: true, waited: false, .. } => {
                (Level::Notice, format!("it is refused for {total} from now on"))
            }
            Punished { waits: true, .. } => (Level::Info, format!("it is refused for {total} more")),
            _ => {
                let threshold = Seconds(threshold);
                (Level::Info, format!("with {threshold} it would be refused, and has {total}"))
            }
        };
        self.log.event(
            level,
            Some(MessageId::Penalty),
            Some(self.service),
            format_args!("{source} has a penalty of {amount}, because connection {id} {what}: {follows}"),
        );
    }
}

/// What a connection did that ended so; `None` if that is nothing in itself.
fn offence(exit: Exit<'_>) -> Option<Offence> {
    match exit {
        Exit::TimedOut(_) => Some(Offence::Timeout),
        Exit::Ended(Ending::Exited(status)) => Some(Offence::Exit(status)),
        Exit::Ended(_) | Exit::Panicked => exit.is_crash().then_some(Offence::Crash),
        Exit::NotStarted(_) | Exit::Killed | Exit::Lost => None,
    }
}

/// A time as a person writes it.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs_f64() {
            seconds if seconds.fract() == 0.0 => write!(f, "{seconds:.0} s"),
            seconds => write!(f, "{seconds:.1} s"),
        }
    }
}
