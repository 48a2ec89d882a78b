//! The side of the commands that talk to a running supervisor.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Answer, Request};
use crate::exit;

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
    /// It is there, but this user may not.
    #[error("not permitted to talk to {0}; only root and the user that preforkd runs as may (try sudo)")]
    NotPermitted(String),
    /// It went away in the middle.
    #[error("preforkd at {path} closed the connection without an answer: {reason}")]
    NoAnswer {
        /// The control socket.
        path: String,
        /// What was wrong.
        reason: String,
    },
}

impl AskError {
    /// With which code to exit.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            AskError::NotPermitted(_) => exit::NOT_PERMITTED,
            AskError::Unreachable { .. } | AskError::NoAnswer { .. } => exit::UNAVAILABLE,
        }
    }
}

/// Asks the supervisor at `path` and waits for its answer, as long as it takes.
pub(crate) fn ask(path: &Path, request: &Request) -> Result<Answer, AskError> {
    let name = path.display().to_string();
    let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => AskError::NotPermitted(name.clone()),
        kind => AskError::Unreachable { path: name.clone(), source, hint: hint(kind) },
    })?;
    converse(&stream, request).map_err(|error| AskError::NoAnswer { path: name, reason: error.to_string() })
}

fn hint(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "; is it running, and is --control the path that it was started with?",
        io::ErrorKind::ConnectionRefused => "; the socket is there, but the process that made it is gone",
        _ => "",
    }
}

fn converse(mut stream: &UnixStream, request: &Request) -> io::Result<Answer> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}
