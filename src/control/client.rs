//! The side of the commands that talk to a running supervisor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{Answer, ControlError, Request};
use crate::config::Accounts;
use crate::exit;
use crate::sys::fd::{self, PollFlags};
use crate::sys::time::Monotonic;
use crate::sys::{process, socket, stream};

/// The pause before another try to connect to a supervisor whose queue is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// The longest answer, all its replies together; the status of a thousand services has less.
const LONGEST_ANSWER: usize = 64 << 20;

/// So much is read at once.
const PIECE: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No supervisor at this path.
    #[error("no preforkd answers at {path}: {source}{hint}")]
    Unreachable {
        /// The control socket.
        path: String,
        /// What connect(2) said.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// It is there, but this user may not connect.
    #[error("not permitted to talk to {path}; only {who} may (try sudo)")]
    NotPermitted {
        /// The control socket.
        path: String,
        /// Whom its file lets in.
        who: String,
    },
    /// This user may not have that done.
    #[error("not permitted: {0}")]
    Denied(ControlError),
    /// It does not know what was asked for.
    #[error("{0}")]
    NotUnderstood(ControlError),
    /// It went away in the middle.
    #[error("preforkd at {path} closed the connection without an answer: {reason}")]
    NoAnswer {
        /// The control socket.
        path: String,
        /// What was wrong.
        reason: String,
    },
    /// It is there and does not answer.
    #[error("preforkd at {path} has not answered within {limit} s: {waits_for}")]
    Late {
        /// The control socket.
        path: String,
        /// How long it had, in seconds.
        limit: u64,
        /// What it is waiting for, as far as can be seen from outside.
        waits_for: String,
    },
}

impl AskError {
    /// With which code to exit.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            AskError::NotPermitted { .. } | AskError::Denied(_) => exit::NOT_PERMITTED,
            AskError::Unreachable { .. }
            | AskError::NoAnswer { .. }
            | AskError::NotUnderstood(_)
            | AskError::Late { .. } => exit::UNAVAILABLE,
        }
    }
}

/// Asks the supervisor at `path` and waits for its answer, for no longer than `limit`.
pub(crate) fn ask(path: &Path, request: &Request, limit: Duration) -> Result<Answer, AskError> {
    ask_and(path, request, limit, || ()).map(|(answer, ())| answer)
}

/// The same, with something to do while the supervisor looks for its answer.
pub(crate) fn ask_and<T>(
    path: &Path,
    request: &Request,
    limit: Duration,
    meanwhile: impl FnOnce() -> T,
) -> Result<(Answer, T), AskError> {
    let until = Monotonic::now() + limit;
    let name = path.display().to_string();
    let late = |waits_for| AskError::Late { path: name.clone(), limit: limit.as_secs(), waits_for };
    let stream = connect(path, until).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => AskError::NotPermitted { path: name.clone(), who: who_may(path) },
        io::ErrorKind::WouldBlock => late(
            "so many wait for it that the queue of its control socket is full; it may be stopped".to_owned(),
        ),
        kind => AskError::Unreachable { path: name.clone(), source, hint: hint(kind) },
    })?;
    let no_answer = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => late(what_it_does(path, stream.as_fd(), request)),
        // What spoke another protocol before this one closes at the end of a line that is none of its own.
        io::ErrorKind::UnexpectedEof => AskError::NoAnswer {
            path: name.clone(),
            reason: "it has gone, or is of an older version; then restart it".to_owned(),
        },
        _ => AskError::NoAnswer { path: name.clone(), reason: error.to_string() },
    };
    call(stream.as_fd(), request, until).map_err(no_answer)?;
    let done = meanwhile();
    match hear(stream.as_fd(), request, until).map_err(no_answer)? {
        Answer::Failed(failure @ (ControlError::NotPermitted { .. } | ControlError::PermissionDenied)) => {
            Err(AskError::Denied(failure))
        }
        Answer::Failed(
            failure @ (ControlError::InterfaceNotFound { .. }
            | ControlError::MethodNotFound { .. }
            | ControlError::InvalidParameter { .. }),
        ) => Err(AskError::NotUnderstood(failure)),
        answer => Ok((answer, done)),
    }
}

/// Whom the file of a control socket lets in.
fn who_may(path: &Path) -> String {
    let file = std::fs::metadata(path).ok();
    let group = file.filter(|file| file.mode() & 0o060 == 0o060).map(|file| file.gid());
    match group {
        None => "root and the user that preforkd runs as".to_owned(),
        Some(gid) => {
            let known = Accounts::default().group(&gid.to_string()).ok().flatten();
            let name = known.map_or_else(|| gid.to_string(), |group| group.name);
            format!("root, the user that preforkd runs as, and whoever is in group {name}")
        }
    }
}

fn hint(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "; is it running, and is --control the path that it was started with?",
        io::ErrorKind::ConnectionRefused => "; the socket is there, but the process that made it is gone",
        _ => "",
    }
}

fn connect(path: &Path, until: Monotonic) -> io::Result<OwnedFd> {
    loop {
        match socket::connect_unix(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Monotonic::now() < until => {
                std::thread::sleep(CONNECT_PAUSE);
            }
            connected => return connected,
        }
    }
}

fn call(stream: BorrowedFd<'_>, request: &Request, until: Monotonic) -> io::Result<()> {
    let mut call = request.call(request.takes_more())?;
    // Of the newline a preforkd that is older than this protocol takes notice.
    call.extend_from_slice(b"\n\0");
    let mut unsent = call.as_slice();
    while !unsent.is_empty() {
        match stream::send_now(stream, unsent) {
            Ok(sent) => unsent = unsent.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(stream, PollFlags::POLLOUT, until)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn hear(stream: BorrowedFd<'_>, request: &Request, until: Monotonic) -> io::Result<Answer> {
    let mut answer = None;
    let (mut received, mut length) = (Vec::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        match stream::receive_now(stream, &mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                length += read;
                let mut rest = piece.get(..read).unwrap_or_default();
                while let Some(end) = rest.iter().position(|byte| *byte == 0) {
                    received.extend_from_slice(rest.get(..end).unwrap_or_default());
                    rest = rest.get(end + 1..).unwrap_or_default();
                    if !Answer::hear(&mut answer, request, &received)? {
                        return answer.ok_or_else(|| io::ErrorKind::InvalidData.into());
                    }
                    received.clear();
                }
                received.extend_from_slice(rest);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(stream, PollFlags::POLLIN, until)?;
            }
            Err(error) => return Err(error),
        }
        if length > LONGEST_ANSWER {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

fn wait(stream: BorrowedFd<'_>, events: PollFlags, until: Monotonic) -> io::Result<()> {
    let left = until - Monotonic::now();
    if left.is_zero() || fd::poll(stream, events, Some(left))?.is_empty() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(())
}

/// How long it may take to ask what another request waits for.
const ASK_WHY: Duration = Duration::from_secs(5);

/// What a supervisor does that does not answer: in its own words, or what proc(5) tells of its process.
fn what_it_does(path: &Path, stream: BorrowedFd<'_>, request: &Request) -> String {
    if !matches!(request, Request::Status) {
        if let Ok(Answer::Status(status)) = ask(path, &Request::Status, ASK_WHY) {
            let waits_for = status.waits_for.unwrap_or_else(|| "nothing that it knows of".to_owned());
            return format!("it waits for {waits_for}");
        }
    }
    match socket::peer_credentials(stream) {
        Ok(peer) => format!("its process {} {}", peer.pid, process::what_it_does(peer.pid)),
        Err(_) => "nothing is known of its process".to_owned(),
    }
}
