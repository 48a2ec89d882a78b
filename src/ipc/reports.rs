//! What a connection process tells its worker. Whoever captures one may lie about itself, and that is all:
//!
//! | what | when | how |
//! |---|---|---|
//! | why it could not begin; that a spare has refused somebody | before anything of a stranger runs in it | the pipe of its worker's children, which it closes then |
//! | what its handler has moved; that a deadline was behind it | at its end | an [`ExitNote`], which the kernel keeps with its exit code |
//! | that a connection has ended, and it waits for the next; that one is refused | as long as it lives, if it serves several | a pipe of its own, in the place of the other |
//!
//! A message is smaller than PIPE_BUF, so two never mix. The first pipe is read when somebody is reaped, so it wakes nobody
//! by itself, and who has no room there waits for it: it can only be full of what is true. A program has none of this.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::admission::{Deadline, Refusal};
use crate::client::{Connection, Traffic};
use crate::config::{Job, Limit, ServiceConfig};
use crate::sys::exit_words::{self, ExitWords};
use crate::sys::time::nanos;
use crate::sys::wait::{Ended, Ending, Pid};
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
    /// clone(2), within a namespace of processes.
    Process,
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
    const ALL: [Step; 16] = [
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
        Step::Process,
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
            Step::Process => "cannot make a process in its namespace of processes",
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
    /// Its handler has come to its end; the process waits for the next connection.
    Ended(Served),
    /// A spare has closed a connection that is not let in, and goes on waiting.
    Refused(Refusal),
}

/// What a handler's process leaves about itself at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitNote {
    /// Its handler has come to its end.
    Served(Traffic),
    /// Its handler had a deadline behind it, see [`super::TIMED_OUT`].
    TimedOut(Deadline, Traffic),
    /// It was the first process of a namespace, which no signal ends: this one has ended the process that it was there for.
    Killed(i32),
    /// Its handler has panicked.
    Panicked(Traffic),
}

/// In the second word of a note: that it is one, and its kind. No kind has all bits, so no note has.
const IS_NOTE: u64 = 1 << (usize::BITS - 1);
const KIND_SHIFT: u32 = usize::BITS - 4;

/// The kinds beyond those of deadlines.
const KILLED: u64 = 6;
const PANICKED: u64 = 5;

/// More bytes than this are said to be so many.
const MOST_BYTES: u64 = (1 << KIND_SHIFT) - 1;

impl ExitNote {
    /// Makes sure that the children of this process can leave one.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`, with the way out.
    pub(crate) fn make_room() -> io::Result<()> {
        exit_words::make_room().map_err(|error| {
            let text = format!(
                "the limit on file locks cannot be lifted ({error}), by which connection processes say what they have moved; \
                 take LimitLOCKS= out of preforkd's unit, or \"ulimit -x\" out of what starts it"
            );
            io::Error::new(error.kind(), text)
        })
    }

    /// Leaves it, before this process exits; also in a signal handler.
    #[inline]
    pub(crate) fn leave(self) {
        // It fails only if another process of this user has lowered the limit, who could as well have ended this one.
        let _ = exit_words::leave(self.to_words());
    }

    /// What this child has left, that has ended and was not reaped yet.
    pub(crate) fn of(child: Pid) -> Option<Self> {
        exit_words::of(child).and_then(ExitNote::from_words)
    }

    pub(crate) fn to_words(self) -> ExitWords {
        // A match of them all has its table in a page that a child would fetch for this alone.
        let (kind, traffic) = if let ExitNote::Served(traffic) = self { (0, traffic) } else { self.others() };
        let sent = traffic.sent.min(MOST_BYTES);
        [traffic.received.min(MOST_BYTES), IS_NOTE | kind << KIND_SHIFT | sent]
    }

    #[cold]
    #[inline(never)]
    fn others(self) -> (u64, Traffic) {
        match self {
            ExitNote::Served(traffic) => (0, traffic),
            ExitNote::TimedOut(deadline, traffic) => (1 + deadline as u64, traffic),
            ExitNote::Killed(signal) => (KILLED, Traffic { received: 0, sent: signal.unsigned_abs().into() }),
            ExitNote::Panicked(traffic) => (PANICKED, traffic),
        }
    }

    /// From words that anything may have been left in.
    pub(crate) fn from_words([received, rest]: ExitWords) -> Option<Self> {
        let traffic = Traffic { received, sent: rest & MOST_BYTES };
        if rest & IS_NOTE == 0 || received > MOST_BYTES {
            return None;
        }
        match rest >> KIND_SHIFT & 7 {
            0 => Some(ExitNote::Served(traffic)),
            KILLED => {
                let is_signal = received == 0 && (1..=64).contains(&traffic.sent);
                is_signal.then_some(ExitNote::Killed(traffic.sent as i32))
            }
            PANICKED => Some(ExitNote::Panicked(traffic)),
            kind => Some(ExitNote::TimedOut(Deadline::from_number(kind as u8 - 1)?, traffic)),
        }
    }

    /// How a process has ended of which the kernel says this, and which has left such a note.
    pub(crate) fn correct(note: Option<Self>, ended: Ended) -> Ended {
        match note {
            Some(ExitNote::Killed(signal)) => Ended { ending: Ending::Killed(signal), ..ended },
            _ => ended,
        }
    }

    /// What was moved.
    pub(crate) fn traffic(self) -> Traffic {
        match self {
            ExitNote::Served(traffic) | ExitNote::TimedOut(_, traffic) | ExitNote::Panicked(traffic) => {
                traffic
            }
            ExitNote::Killed(_) => Traffic::default(),
        }
    }

    /// Which deadline had passed.
    pub(crate) fn deadline(self) -> Option<Deadline> {
        match self {
            ExitNote::TimedOut(deadline, _) => Some(deadline),
            ExitNote::Served(_) | ExitNote::Killed(_) | ExitNote::Panicked(_) => None,
        }
    }
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

/// So much is read by one call.
const AT_ONCE: usize = LENGTH * 32;

/// And so often: more than the 64 KiB that a pipe holds.
pub(crate) const READS_AT_ONCE: usize = 100;

/// How long a process waits for room for its report: its worker may be stopped.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// The kinds of reports that are no failures.
const ENDED: u8 = u8::MAX;
const REFUSED: u8 = u8::MAX - 1;

impl ChildReport {
    pub(crate) fn encode(self, sender: Pid) -> [u8; LENGTH] {
        let mut connection = [0; Connection::WORDS];
        let (kind, code, numbers) = match self {
            ChildReport::Ended(served) => {
                connection = served.connection.to_words();
                (ENDED, served.code, [served.traffic.received, served.traffic.sent, nanos(served.cpu)])
            }
            ChildReport::Refused(why) => (REFUSED, why as u8, [0; 3]),
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
        let report = match kind {
            REFUSED => ChildReport::Refused(Refusal::from_number(code)?),
            ENDED => {
                let connection = Connection::from_words(connection)?;
                let traffic = Traffic { received: first, sent: second };
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

/// The end of a pipe that the worker reads.
#[derive(Debug)]
pub(crate) struct Reports(File);

/// What a process that has a pipe for itself has made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnPipe {
    /// It has said something, and there may be more.
    Heard,
    /// It says nothing now.
    Silent,
    /// Nobody can write to it any more.
    Closed,
    /// It has written what no honest process does.
    Abused,
}

impl Reports {
    /// A new pipe, and its end for who is to report.
    pub(crate) fn create() -> io::Result<(Reports, OwnedFd)> {
        let (read, write) = fd::pipe()?;
        fd::set_nonblocking(write.as_fd(), true)?;
        Ok((Reports(read.into()), write))
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Hands on all that has come. A process reports before it ends, so its report is there when it is reaped.
    pub(crate) fn read(&self, mut take: impl FnMut(Pid, ChildReport)) {
        let mut buffer = [0; AT_ONCE];
        for _ in 0..READS_AT_ONCE {
            let length = (&self.0).read(&mut buffer).unwrap_or(0);
            let messages = buffer.get(..length).unwrap_or_default().chunks_exact(LENGTH);
            messages.filter_map(ChildReport::decode).for_each(|(pid, report)| take(pid, report));
            if length < buffer.len() {
                return;
            }
        }
    }

    /// Hands on some of what has come from the process that has the other end for itself.
    pub(crate) fn read_own(&self, owner: Pid, mut take: impl FnMut(ChildReport)) -> OwnPipe {
        let mut buffer = [0; AT_ONCE];
        let length = match (&self.0).read(&mut buffer) {
            Ok(0) => return OwnPipe::Closed,
            Ok(length) => length,
            Err(_) => return OwnPipe::Silent,
        };
        for message in buffer.get(..length).unwrap_or_default().chunks(LENGTH) {
            match ChildReport::decode(message) {
                Some((pid, report)) if pid == owner => take(report),
                _ => return OwnPipe::Abused,
            }
        }
        OwnPipe::Heard
    }
}

/// The other end, in a connection process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reporter(BorrowedFd<'static>);

impl Reporter {
    /// For the children of a process that makes them for as long as it is there.
    pub(crate) fn for_ever(write: OwnedFd) -> Self {
        Reporter(fd::for_ever(write))
    }

    pub(crate) fn descriptor(self) -> BorrowedFd<'static> {
        self.0
    }

    /// In a child: from now on this is the other end of a pipe of its own.
    pub(crate) fn replace(self, own: BorrowedFd<'_>) -> io::Result<()> {
        fd::replace(self.0, own)
    }

    /// Says what went wrong, before this process exits. Waits for room: without it the end would be one of a client's
    /// doing, and might be punished.
    pub(crate) fn failed(self, failure: Failure) {
        // The worker is gone if it fails, and the supervisor knows of its death.
        let _ = self.deliver(ChildReport::Failed(failure), Some(REPORT_TIMEOUT));
    }

    /// Says that a connection was not let in, and wakes the worker. Waits for room, rather than refuse somebody who is not
    /// counted.
    pub(crate) fn refused(self, why: Refusal, wake: BorrowedFd<'_>) {
        let report = ChildReport::Refused(why);
        let sent = fd::write(self.0, &report.encode(process::outer_id()));
        if sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            // Who has filled the pipe may have woken nobody.
            memory::ring(wake);
            let _ = self.deliver(report, Some(REPORT_TIMEOUT));
        }
        memory::ring(wake);
    }

    /// Says that a connection has ended and the process goes on. Waits for room: a report that is lost would be a connection
    /// that never ended.
    pub(crate) fn ended(self, served: Served) {
        let _ = self.deliver(ChildReport::Ended(served), None);
    }

    fn deliver(self, report: ChildReport, patience: Option<Duration>) -> io::Result<()> {
        fd::write_message(self.0, &report.encode(process::outer_id()), patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::sys::socket::Peer;
    use crate::sys::time::Monotonic;

    fn pipe() -> (Reports, Reporter) {
        let (reports, reporter) = Reports::create().unwrap();
        (reports, Reporter::for_ever(reporter))
    }

    fn served() -> Served {
        let client = Client {
            peer: Peer::Unix(None),
            accepted: Monotonic::from_nanos(5),
            header: None,
            is_exempt: false,
            listener: 0,
        };
        let connection = Connection { number: 9, client, until: Monotonic::NEVER };
        let traffic = Traffic { received: u64::MAX, sent: 7 };
        Served { connection, code: 7, traffic, cpu: Duration::from_nanos(3) }
    }

    #[test]
    fn reports_come_through_whole() {
        let (reports, reporter) = pipe();
        let wake = memory::event().unwrap();
        let failure = Failure::new(Step::Exec, &io::Error::from_raw_os_error(2));
        reporter.failed(failure);
        reporter.ended(served());
        reporter.refused(Refusal::Access, wake.as_fd());
        let mut heard = Vec::new();
        reports.read(|pid, report| heard.push((pid, report)));
        let said = [
            ChildReport::Failed(failure),
            ChildReport::Ended(served()),
            ChildReport::Refused(Refusal::Access),
        ];
        assert_eq!(heard, said.map(|report| (process::id(), report)));
    }

    #[test]
    fn notes_come_through_whole() {
        let deadlines = [Deadline::FirstByte, Deadline::Idle, Deadline::Lifetime];
        for traffic in [Traffic::default(), Traffic { received: 5, sent: 1 << 40 }] {
            let timed_out = deadlines.map(|deadline| ExitNote::TimedOut(deadline, traffic));
            for note in [&[ExitNote::Served(traffic), ExitNote::Killed(15)], &timed_out[..]].concat() {
                let [first, second] = note.to_words();
                assert!(first <= second && second != u64::MAX);
                assert_eq!(ExitNote::from_words([first, second]), Some(note));
            }
        }
        let much = ExitNote::Served(Traffic { received: u64::MAX, sent: u64::MAX }).to_words();
        let most = Traffic { received: MOST_BYTES, sent: MOST_BYTES };
        assert_eq!(ExitNote::from_words(much), Some(ExitNote::Served(most)));
        let no_kind = IS_NOTE | 7 << KIND_SHIFT;
        for nothing in
            [[0, 0], [0, 1], [7, MOST_BYTES], [u64::MAX; 2], [MOST_BYTES + 1, IS_NOTE], [0, no_kind]]
        {
            assert_eq!(ExitNote::from_words(nothing), None);
        }
    }

    #[test]
    fn who_has_a_pipe_for_itself_speaks_for_itself_alone() {
        let (reports, reporter) = pipe();
        let me = process::id();
        let read = |owner| {
            let mut heard = Vec::new();
            (reports.read_own(owner, |report| heard.push(report)), heard)
        };
        assert_eq!(read(me), (OwnPipe::Silent, vec![]));
        reporter.ended(served());
        assert_eq!(read(me), (OwnPipe::Heard, vec![ChildReport::Ended(served())]));
        reporter.ended(served());
        assert_eq!(read(me + 1), (OwnPipe::Abused, vec![]));
        reporter.ended(served());
        fd::write(reporter.0, b"more").unwrap();
        assert_eq!(read(me).0, OwnPipe::Abused);
    }

    #[test]
    fn a_process_that_never_stops_writing_holds_nobody_up() {
        let (reports, own) = Reports::create().unwrap();
        let mut pipe = File::from(own);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let _ = io::Write::write(&mut pipe, &[7; 32 * 1024]);
                }
            });
            (0..100).for_each(|_| reports.read(|_, _| ()));
            (0..100).for_each(|_| _ = reports.read_own(1, |_| ()));
            stop.store(true, Relaxed);
        });
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
