//! The log: what is written, in which form, and where it goes.
//!
//! Writing a record never waits, fails or panics. What the target cannot take is counted, and the count is reported
//! as soon as something gets through again. If nobody is at the target, records go to stderr until somebody is.
//! On stderr a worker writes the records of one turn with one call, in their order.

mod datagram;
mod escape;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod forms;
mod gathered;
mod message_id;
mod native;
mod record;
mod settings;
mod stderr;
mod syslog;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use crate::pace::Every;
use crate::sys::dontfork::DontForkAlloc;
use crate::sys::time::Monotonic;

use datagram::SendError;
use gathered::Gathered;
use native::Native;
use record::{Body, Entry};
use stderr::Stderr;
use syslog::Syslog;

pub(crate) use self::escape::is_special;
pub(crate) use self::message_id::MessageId;
pub(crate) use self::record::Remote;
pub(crate) use self::record::{ConnectionRecord, Exit, LeftOut, OutputLine};
pub(crate) use self::settings::{Level, LogSettings, LogTarget, Records};

/// How often lost records are reported at most: while the target is full, a report only takes the place of a record.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// In which records are formatted. A worker writes it for every connection, and its children have no use for it.
type Buffer = allocator_api2::vec::Vec<u8, DontForkAlloc>;

/// The log of one process; each opens its own after it was exec'ed.
pub(crate) struct Log {
    /// As whose records they are known.
    name: &'static str,
    level: Cell<Level>,
    dropped: Cell<u64>,
    /// Records of connections wait for [`Log::flush`].
    gathers: bool,
    sink: RefCell<Sink>,
}

impl Log {
    /// Of the program with this name. Never fails: what cannot be opened falls back to stderr and says so.
    pub(crate) fn open(settings: LogSettings, name: &'static str) -> Log {
        let stderr = io::stderr();
        let journal_stream = std::env::var("JOURNAL_STREAM").ok();
        Log::open_at(settings, name, &Places::real(stderr.as_fd(), journal_stream.as_deref()))
    }

    /// The same, but records of connections are written by [`Log::flush`], or with what is written next.
    pub(crate) fn gathering(self) -> Log {
        Log { gathers: true, ..self }
    }

    /// Goes on with other settings; the count of lost records stays.
    pub(crate) fn reopen(&self, settings: LogSettings) {
        let mut sink = Log::open(settings, self.name).sink.into_inner();
        if let Ok(mut old) = self.sink.try_borrow_mut() {
            sink.reported = old.reported;
            *old = sink;
        }
        self.level.set(settings.level);
    }

    fn open_at(settings: LogSettings, name: &'static str, places: &Places<'_>) -> Log {
        let (sink, problem) = Sink::open(settings.target, name, places);
        let (level, dropped) = (Cell::new(settings.level), Cell::new(0));
        let log = Log { name, level, dropped, gathers: false, sink: RefCell::new(sink) };
        if let Some(problem) = problem {
            log.error(None, format_args!("{problem}; the log goes to stderr"));
        }
        log
    }

    /// An event of preforkd itself. It may have several lines.
    pub(crate) fn event(
        &self,
        level: Level,
        id: Option<MessageId>,
        service: Option<&str>,
        text: fmt::Arguments<'_>,
    ) {
        self.write(&Entry { level, id, service, body: Body::Event(text) });
    }

    /// Something does not work and somebody must act.
    pub(crate) fn error(&self, service: Option<&str>, text: fmt::Arguments<'_>) {
        self.event(Level::Error, None, service, text);
    }

    /// Something is wrong; preforkd goes on by itself.
    pub(crate) fn warning(&self, service: Option<&str>, text: fmt::Arguments<'_>) {
        self.event(Level::Warning, None, service, text);
    }

    /// For those who look for a fault.
    pub(crate) fn debug(&self, service: Option<&str>, text: fmt::Arguments<'_>) {
        self.event(Level::Debug, None, service, text);
    }

    /// The one record of a connection, when it has ended.
    pub(crate) fn connection(&self, record: &ConnectionRecord<'_>) {
        let entry = Entry {
            level: record.level(),
            id: Some(record.message_id()),
            service: Some(record.service),
            body: Body::Connection(record),
        };
        if !self.gathers || entry.level > self.level.get() {
            return self.write(&entry);
        }
        match self.sink.try_borrow_mut().map(|mut sink| sink.gather(&entry)) {
            Ok(Gathering::Gathered) => {}
            Ok(Gathering::Full) => self.flush(),
            Ok(Gathering::Never) => self.write(&entry),
            Err(_) => self.dropped.set(self.dropped.get() + 1),
        }
    }

    /// Writes what was gathered.
    pub(crate) fn flush(&self) {
        if let Ok(mut sink) = self.sink.try_borrow_mut() {
            self.flush_into(&mut sink);
        }
    }

    fn flush_into(&self, sink: &mut Sink) {
        match sink.flush() {
            None => {}
            Some(0) => sink.report(self.level.get(), self.dropped.get()),
            Some(lost) => self.dropped.set(self.dropped.get() + lost),
        }
    }

    /// A line that a program wrote to stderr.
    pub(crate) fn output(&self, line: &OutputLine<'_>) {
        self.write(&Entry {
            level: if line.text.is_ok() { Level::Info } else { Level::Warning },
            id: None,
            service: Some(line.service),
            body: Body::Output(line),
        });
    }

    /// Records that were lost since this process opened its log.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    fn write(&self, entry: &Entry<'_>) {
        if entry.level > self.level.get() {
            return;
        }
        // Borrowed already: the text of a record has tried to log while it was formatted.
        if let Ok(mut sink) = self.sink.try_borrow_mut() {
            self.flush_into(&mut sink);
            if sink.write(entry) {
                sink.report(self.level.get(), self.dropped.get());
                return;
            }
        }
        self.dropped.set(self.dropped.get() + 1);
    }
}

/// Where things are; tests have them elsewhere.
struct Places<'a> {
    journal: &'a Path,
    syslog: &'a Path,
    stderr: BorrowedFd<'a>,
    journal_stream: Option<&'a str>,
}

impl<'a> Places<'a> {
    fn real(stderr: BorrowedFd<'a>, journal_stream: Option<&'a str>) -> Self {
        let journal = Path::new("/run/systemd/journal/socket");
        Places { journal, syslog: Path::new("/dev/log"), stderr, journal_stream }
    }
}

enum Target {
    Journal(Native),
    Syslog(Syslog),
    Stderr,
}

/// What has become of a record that was to be gathered.
enum Gathering {
    Gathered,
    /// The same, and it is time to write.
    Full,
    /// This target takes one record at a time.
    Never,
}

/// Where records go, and the buffer in which all are formatted.
struct Sink {
    target: Target,
    stderr: Stderr,
    buffer: Buffer,
    gathered: Gathered,
    /// Nobody is at the target, and stderr was told.
    away: bool,
    /// Of the lost records, how many were reported, and when the next may be.
    reported: u64,
    report: Every,
}

impl Sink {
    /// Also says what could not be opened.
    fn open(target: LogTarget, name: &'static str, places: &Places<'_>) -> (Sink, Option<String>) {
        let journal = stderr::is_journal(places.stderr, places.journal_stream);
        let opened = match target {
            LogTarget::Journal => Native::open(places.journal, name).map(Target::Journal),
            LogTarget::Auto if journal => Native::open(places.journal, name).map(Target::Journal),
            LogTarget::Syslog => Syslog::open(places.syslog, name).map(Target::Syslog),
            LogTarget::Auto | LogTarget::Stderr => Ok(Target::Stderr),
        };
        let (target, problem) = match opened {
            Ok(target) => (target, None),
            Err(error) => (Target::Stderr, Some(format!("cannot make a socket for the log: {error}"))),
        };
        let stderr = Stderr::open(places.stderr, journal);
        let (buffer, gathered) = (Buffer::with_capacity_in(1024, DontForkAlloc::new()), Gathered::new());
        let report = Every::new(REPORT_INTERVAL);
        (Sink { target, stderr, buffer, gathered, away: false, reported: 0, report }, problem)
    }

    /// Whether the record was taken.
    fn write(&mut self, entry: &Entry<'_>) -> bool {
        let sent = match &mut self.target {
            Target::Journal(journal) => journal.send(entry, &mut self.buffer),
            Target::Syslog(syslog) => syslog.send(entry, &mut self.buffer),
            Target::Stderr => self.stderr.send(entry, &mut self.buffer),
        };
        match sent {
            Ok(()) => {
                self.away = false;
                true
            }
            Err(SendError::Full) => false,
            Err(SendError::Away(error)) => self.write_elsewhere(entry, &error),
        }
    }

    fn gather(&mut self, entry: &Entry<'_>) -> Gathering {
        // A daemon is sent what there is at once: if it dies, what is on its way to it is lost. Nor can several records share a
        // datagram, as the protocol says: since systemd 253 journald reads the first alone, and drops the others unseen.
        if !matches!(self.target, Target::Stderr) {
            return Gathering::Never;
        }
        self.gathered.add(|text| self.stderr.format(entry, text));
        if self.gathered.text().len() < stderr::ENOUGH { Gathering::Gathered } else { Gathering::Full }
    }

    /// Writes what was gathered, if anything was. Returns how many records were lost.
    fn flush(&mut self) -> Option<u64> {
        if self.gathered.is_empty() {
            return None;
        }
        let written = self.stderr.send_text(self.gathered.text());
        let lost = self.gathered.count_beyond(written);
        self.gathered.clear();
        Some(lost)
    }

    fn write_elsewhere(&mut self, entry: &Entry<'_>, error: &io::Error) -> bool {
        let path = match &self.target {
            Target::Journal(journal) => journal.path(),
            Target::Syslog(syslog) => syslog.path(),
            Target::Stderr => return false,
        };
        if !self.away {
            self.away = true;
            let path = path.display();
            let _ = self.stderr.send(
                &Entry {
                    level: Level::Warning,
                    id: None,
                    service: None,
                    body: Body::Event(format_args!(
                        "the log at {path}: {error}; records go to stderr until it is back"
                    )),
                },
                &mut self.buffer,
            );
        }
        self.stderr.send(entry, &mut self.buffer).is_ok()
    }

    /// Reports what was lost, now that a record got through; if the report does not, a later one tells the sum.
    fn report(&mut self, level: Level, dropped: u64) {
        if dropped > self.reported && level >= Level::Warning && self.report.is_due(Monotonic::now()) {
            let lost = dropped - self.reported;
            if self.write(&Entry {
                level: Level::Warning,
                id: Some(MessageId::RecordsDropped),
                service: None,
                body: Body::Event(format_args!("{lost} log records were lost: the log could not take them")),
            }) {
                self.reported = dropped;
            }
        }
    }
}
