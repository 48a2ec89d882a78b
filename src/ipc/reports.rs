//! What a connection process tells its worker: why it could not become what it should, or what its handler has moved.
//!
//! One pipe for all of a worker's children, closed on exec: a message is smaller than PIPE_BUF, so two never mix, and it
//! is read when somebody is reaped, so it wakes nobody. For room in it waits who has to say more than how much was moved,
//! when the client has nothing to wait for any more. A handler keeps it, and what comes out of it is believed as far as a
//! handler can be: it may lie about how much it has moved, or that it has refused somebody, even in the name of another, and
//! it may keep the pipe full, so that others wait or are not heard.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::admission::{Deadline, Refusal};
use crate::client::{Connection, Traffic};
use crate::config::{Job, Limit, ServiceConfig};
use crate::sys::time::nanos;
use crate::sys::wait::Pid;
use crate::sys::{fd, memory, process};

/// With this code a connection process ends that could not begin.
pub(crate) const FAILED_TO_BEGIN: u8 = 126;

/// What it was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// setpgid(2).
    Group = 1,
    /// setpriority(2).
    Nice,
    /// setrlimit(2).
    Limits,
    /// chroot(2).
    Root,
    /// chdir(2).
    Directory,
    /// setgroups(2).
    Groups,
    /// setresgid(2).
    Gid,
    /// setresuid(2).
    User,
    /// dup2(2), close_range(2).
    Descriptors,
    /// sigprocmask(2).
    Signals,
    /// prctl(2).
    Privileges,
    /// landlock_restrict_self(2).
    Domain,
    /// seccomp(2).
    Filter,
    /// epoll_ctl(2), accept(2).
    Wait,
    /// execve(2).
    Exec,
}

impl Step {
    const ALL: [Step; 15] = [
        Step::Group,
        Step::Nice,
        Step::Limits,
        Step::Root,
        Step::Directory,
        Step::Groups,
        Step::Gid,
        Step::User,
        Step::Descriptors,
        Step::Signals,
        Step::Privileges,
        Step::Domain,
        Step::Filter,
        Step::Wait,
        Step::Exec,
    ];

    fn attempt(self) -> &'static str {
        match self {
            Step::Group => "cannot make a process group",
            Step::Nice => "cannot set nice",
            Step::Limits => "cannot set limits",
            Step::Root => "cannot enter chroot",
            Step::Directory => "cannot enter working_directory",
            Step::Groups => "cannot take on the supplementary groups",
            Step::Gid => "cannot take on group",
            Step::User => "cannot become user",
            Step::Descriptors => "cannot arrange descriptors",
            Step::Signals => "cannot unblock signals",
            Step::Privileges => "cannot give up to gain privileges",
            Step::Domain => "cannot enter its Landlock domain",
            Step::Filter => "cannot have its system calls filtered",
            Step::Wait => "cannot wait for a connection",
            Step::Exec => "cannot start",
        }
    }
}

/// Why a connection process could not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    step: Step,
    errno: i32,
}

impl Failure {
    pub(crate) fn new(step: Step, error: &io::Error) -> Self {
        Failure { step, errno: error.raw_os_error().unwrap_or(0) }
    }

    /// What kind of error it was.
    pub(crate) fn kind(self) -> io::ErrorKind {
        io::Error::from_raw_os_error(self.errno).kind()
    }

    /// For the record: what could not be done, to what, and why; and the way out if it was not permitted.
    pub(crate) fn explain(self, service: &ServiceConfig) -> String {
        let reason = crate::sys::error_text(self.errno);
        let what = match self.object(service) {
            Some(object) => format!("{} {object}: {reason}", self.step.attempt()),
            None => format!("{}: {reason}", self.step.attempt()),
        };
        match self.way_out().filter(|_| self.kind() == io::ErrorKind::PermissionDenied) {
            Some(way_out) => format!("{what}; {way_out}"),
            None => what,
        }
    }

    fn object(self, service: &ServiceConfig) -> Option<String> {
        let identity = &service.identity;
        let user = identity.user.as_ref();
        match (self.step, &service.job) {
            (Step::Exec, Job::Exec(program)) => Some(program.path.display().to_string()),
            (Step::Root, _) => identity.chroot.as_ref().map(|path| path.display().to_string()),
            (Step::Directory, _) => {
                identity.working_directory.as_ref().map(|path| path.display().to_string())
            }
            (Step::Nice, _) => identity.nice.map(|nice| nice.to_string()),
            (Step::Limits, _) => too_high(&service.limits),
            (Step::Groups, _) => user.map(|user| format!("of {}", user.name)),
            (Step::Gid, _) => user.map(|user| {
                user.group.clone().unwrap_or_else(|| format!("{} of user {}", user.gid, user.name))
            }),
            (Step::User, _) => user.map(|user| user.name.clone()),
            _ => None,
        }
    }

    fn way_out(self) -> Option<&'static str> {
        match self.step {
            Step::Nice => Some("a value that low needs LimitNICE= of preforkd's unit, or root"),
            Step::Limits => Some("raise the limit of preforkd's unit, or have it run as root"),
            Step::Root | Step::Groups | Step::Gid | Step::User => {
                Some("preforkd must run as root for it, see root.conf in preforkd.systemd(7)")
            }
            _ => None,
        }
    }
}

/// Which limits are above what this process may have, as its connection processes are.
fn too_high(limits: &[Limit]) -> Option<String> {
    let described = limits.iter().filter_map(|limit| {
        let (_, hard) = process::limits(limit.kind.resource).ok()?;
        (limit.value > hard).then(|| format!("({} may be at most {hard})", limit.kind.name))
    });
    described.reduce(|all, one| format!("{all} {one}"))
}

/// Where a child that shares its worker's memory leaves why it could not begin. The pipe may be full, and who would read it
/// waits for this child.
#[derive(Debug, Default)]
pub(crate) struct FailureWord(AtomicU64);

impl FailureWord {
    pub(crate) fn set(&self, failure: Failure) {
        let step = u64::from(failure.step as u8);
        self.0.store(step << 32 | u64::from(failure.errno.unsigned_abs()), Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Failure> {
        let word = self.0.load(Relaxed);
        let step = Step::ALL.into_iter().find(|step| u64::from(*step as u8) == word >> 32)?;
        Some(Failure { step, errno: (word & 0x7fff_ffff) as i32 })
    }
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildReport {
    /// It could not begin; it ends with [`FAILED_TO_BEGIN`].
    Failed(Failure),
    /// Its handler has come to its end, and the process with it.
    Served(Traffic),
    /// Its handler has come to its end; the process waits for the next connection.
    Ended(Served),
    /// A spare has closed a connection that is not let in, and goes on waiting.
    Refused(Refusal),
    /// Its handler had a deadline behind it; it ends, see [`super::TIMED_OUT`].
    TimedOut(Deadline, Traffic),
}

/// A connection that has ended, and whose process goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Served {
    /// Which; what its row says by then may be about another.
    pub(crate) connection: Connection,
    /// What the process would have exited with.
    pub(crate) code: u8,
    /// What the handler has moved.
    pub(crate) traffic: Traffic,
    /// User and system time of this connection.
    pub(crate) cpu: Duration,
}

/// Sender, kind and code; three numbers; a connection.
const LENGTH: usize = 8 + NUMBERS * 8;
const NUMBERS: usize = 3 + Connection::WORDS;

/// How often as many as fit the buffer are read at once: more than the 64 KiB that a pipe holds. A handler that never
/// stops writing must not hold us up.
const READS_AT_ONCE: usize = 100;

/// How long a process waits for room for its report: another may keep the pipe full.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// The kinds of reports that are no failures.
const SERVED: u8 = 0;
const ENDED: u8 = u8::MAX;
const REFUSED: u8 = u8::MAX - 1;
const TIMED_OUT: u8 = u8::MAX - 2;

impl ChildReport {
    pub(crate) fn encode(self, sender: Pid) -> [u8; LENGTH] {
        let mut connection = [0; Connection::WORDS];
        let (kind, code, numbers) = match self {
            ChildReport::Served(traffic) => (SERVED, 0, [traffic.received, traffic.sent, 0]),
            ChildReport::Ended(served) => {
                connection = served.connection.to_words();
                (ENDED, served.code, [served.traffic.received, served.traffic.sent, nanos(served.cpu)])
            }
            ChildReport::Refused(why) => (REFUSED, why as u8, [0; 3]),
            ChildReport::TimedOut(deadline, traffic) => {
                (TIMED_OUT, deadline as u8, [traffic.received, traffic.sent, 0])
            }
            ChildReport::Failed(failure) => {
                (failure.step as u8, 0, [u64::from(failure.errno.unsigned_abs()), 0, 0])
            }
        };
        let mut message = [0; LENGTH];
        message[..4].copy_from_slice(&sender.to_ne_bytes());
        message[4..6].copy_from_slice(&[kind, code]);
        let words = numbers.into_iter().chain(connection);
        for (place, number) in message[8..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        message
    }

    pub(crate) fn decode(message: &[u8]) -> Option<(Pid, ChildReport)> {
        let message = message.first_chunk::<LENGTH>()?;
        let (pid, rest) = message.split_first_chunk::<4>()?;
        let (&[kind, code, ..], rest) = rest.split_first_chunk::<4>()?;
        let mut words = [0; NUMBERS];
        for (word, bytes) in words.iter_mut().zip(rest.chunks_exact(8)) {
            *word = u64::from_ne_bytes(*bytes.first_chunk()?);
        }
        let [first, second, third, connection @ ..] = words;
        let traffic = Traffic { received: first, sent: second };
        let report = match kind {
            SERVED => ChildReport::Served(traffic),
            REFUSED => ChildReport::Refused(Refusal::from_number(code)?),
            TIMED_OUT => ChildReport::TimedOut(Deadline::from_number(code)?, traffic),
            ENDED => {
                let connection = Connection::from_words(connection)?;
                let cpu = Duration::from_nanos(third);
                ChildReport::Ended(Served { connection, code, traffic, cpu })
            }
            kind => {
                let step = Step::ALL.into_iter().find(|step| *step as u8 == kind)?;
                ChildReport::Failed(Failure { step, errno: i32::try_from(first).ok()? })
            }
        };
        Some((Pid::from_ne_bytes(*pid), report))
    }
}

/// The pipe, in the worker.
#[derive(Debug)]
pub(crate) struct Reports {
    read: File,
    write: BorrowedFd<'static>,
}

impl Reports {
    /// A new pipe.
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = fd::pipe()?;
        fd::set_nonblocking(write.as_fd(), true)?;
        Ok(Reports { read: read.into(), write: fd::for_ever(write) })
    }

    /// For those who are to report.
    pub(crate) fn reporter(&self) -> Reporter {
        Reporter(self.write)
    }

    /// Hands on all that has come. A process reports before it ends, so its report is there when it is reaped.
    pub(crate) fn read(&self, mut take: impl FnMut(Pid, ChildReport)) {
        let mut buffer = [0; LENGTH * 32];
        for _ in 0..READS_AT_ONCE {
            let length = (&self.read).read(&mut buffer).unwrap_or(0);
            let messages = buffer.get(..length).unwrap_or_default().chunks_exact(LENGTH);
            messages.filter_map(ChildReport::decode).for_each(|(pid, report)| take(pid, report));
            if length < buffer.len() {
                return;
            }
        }
    }
}

/// The pipe, in a connection process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reporter(BorrowedFd<'static>);

impl Reporter {
    pub(crate) fn descriptor(self) -> BorrowedFd<'static> {
        self.0
    }

    /// Says what went wrong, before this process exits. Waits for room: without it the end would be one of a client's
    /// doing, and might be punished.
    pub(crate) fn failed(self, failure: Failure) {
        self.deliver(ChildReport::Failed(failure));
    }

    /// Says what was moved. If the worker has let the pipe fill up, the record goes without.
    pub(crate) fn served(self, traffic: Traffic) {
        let _ = self.send(ChildReport::Served(traffic));
    }

    /// Says that a connection was not let in, and wakes the worker. Waits for room, rather than refuse somebody who is not
    /// counted.
    pub(crate) fn refused(self, why: Refusal, wake: BorrowedFd<'_>) {
        self.wake_and_deliver(ChildReport::Refused(why), Some(REPORT_TIMEOUT), wake);
    }

    /// Says that a connection has ended and the process goes on, and wakes the worker. Waits for room: a report that is
    /// lost would be a connection that never ended.
    pub(crate) fn ended(self, served: Served, wake: BorrowedFd<'_>) {
        self.wake_and_deliver(ChildReport::Ended(served), None, wake);
    }

    /// Says that a deadline has passed, before this process exits; also in a signal handler. Waits for room: without it
    /// the end would be no timeout, and its source go unpunished.
    pub(crate) fn timed_out(self, deadline: Deadline, traffic: Traffic) {
        self.deliver(ChildReport::TimedOut(deadline, traffic));
    }

    fn wake_and_deliver(self, report: ChildReport, patience: Option<Duration>, wake: BorrowedFd<'_>) {
        if self.send(report).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            // Who has filled the pipe may have woken nobody.
            memory::ring(wake);
            let _ = fd::write_message(self.0, &report.encode(process::id()), patience);
        }
        memory::ring(wake);
    }

    fn deliver(self, report: ChildReport) {
        // The worker is gone if it fails, and the supervisor knows of its death.
        let _ = fd::write_message(self.0, &report.encode(process::id()), Some(REPORT_TIMEOUT));
    }

    fn send(self, report: ChildReport) -> io::Result<usize> {
        fd::write(self.0, &report.encode(process::id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::sys::socket::Peer;
    use crate::sys::time::Monotonic;

    #[test]
    fn reports_come_through_whole() {
        let reports = Reports::new().unwrap();
        let reporter = reports.reporter();
        let wake = memory::event().unwrap();
        let failure = Failure::new(Step::Exec, &io::Error::from_raw_os_error(2));
        let traffic = Traffic { received: u64::MAX, sent: 7 };
        reporter.served(traffic);
        reporter.failed(failure);
        let client = Client {
            peer: Peer::Unix(None),
            accepted: Monotonic::from_nanos(5),
            header: None,
            is_exempt: false,
        };
        let connection = Connection { number: 9, client, until: Monotonic::NEVER };
        let served = Served { connection, code: 7, traffic, cpu: Duration::from_nanos(3) };
        reporter.ended(served, wake.as_fd());
        let deadlines = [Deadline::FirstByte, Deadline::Idle, Deadline::Lifetime];
        deadlines.into_iter().for_each(|deadline| reporter.timed_out(deadline, traffic));
        let mut heard = Vec::new();
        reports.read(|_, report| heard.push(report));
        let first = [ChildReport::Served(traffic), ChildReport::Failed(failure), ChildReport::Ended(served)];
        let last = deadlines.map(|deadline| ChildReport::TimedOut(deadline, traffic));
        assert_eq!(heard, [first, last].concat());
    }

    #[test]
    fn nobody_waits_for_a_worker_that_does_not_read() {
        let reports = Reports::new().unwrap();
        (0..10_000).for_each(|_| reports.reporter().served(Traffic::default()));
    }

    #[test]
    fn a_process_that_never_stops_writing_holds_nobody_up() {
        let reports = Reports::new().unwrap();
        let mut pipe = File::from(reports.write.try_clone_to_owned().unwrap());
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = io::Write::write(&mut pipe, &[7; 32 * 1024]);
                }
            });
            (0..100).for_each(|_| reports.read(|_, _| ()));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        // Nor does the end of its nonsense become the beginning of what others say.
        reports.read(|_, _| ());
        reports.reporter().served(Traffic { received: 1, sent: 2 });
        let mut heard = Vec::new();
        reports.read(|_, report| heard.push(report));
        assert_eq!(heard, [ChildReport::Served(Traffic { received: 1, sent: 2 })]);
    }

    #[test]
    fn a_word_tells_every_step_and_error() {
        let word = FailureWord::default();
        assert_eq!(word.get(), None);
        for step in Step::ALL {
            for errno in [0, 2, libc::EHWPOISON] {
                let failure = Failure { step, errno };
                word.set(failure);
                assert_eq!(word.get(), Some(failure));
            }
        }
    }

    #[test]
    fn nonsense_is_no_report() {
        assert_eq!(ChildReport::decode(&[0x7f; LENGTH]), None);
        assert_eq!(ChildReport::decode(&[0; LENGTH - 1]), None);
    }
}
