//! The call of a handler: what it returns, or how it does not, as an exit code and a few words.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::client::{Client, ConnectionId, Traffic};
use crate::exit;
use crate::handler::{AnyHandler, ClientConnection, Progress};
use crate::ipc::reports::ExitNote;
use crate::shared::Shared;
use crate::sys::stream;
use crate::sys::time::Monotonic;

/// A handler that has been prepared, in a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PreparedHandler {
    pub(crate) handler: &'static dyn AnyHandler,
    /// What its processes share, if they do.
    pub(crate) shared: Option<&'static Shared<()>>,
}

/// How the processes of a worker call its handler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HandlerCall {
    pub(crate) handler: &'static dyn AnyHandler,
    /// What its processes share, if they do.
    pub(crate) shared: Option<&'static Shared<()>>,
    /// Whether it says something there, as it has said itself: its own code is not near that of a connection.
    pub(crate) has_stderr: bool,
    /// What it is denied may be its sandbox's doing.
    pub(crate) is_caged: bool,
}

/// What has come of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallOutcome {
    /// The exit code of its process.
    pub(crate) code: u8,
    pub(crate) traffic: Traffic,
}

impl CallOutcome {
    /// What is left with the kernel at the end of its process.
    pub(crate) fn note(self) -> ExitNote {
        match self.code {
            exit::PANICKED => ExitNote::Panicked(self.traffic),
            _ => ExitNote::Served(self.traffic),
        }
    }
}

impl HandlerCall {
    /// Serves one client to the end, with its progress for whoever looks at it.
    #[inline]
    pub(crate) fn serve(
        self,
        (connection, progress): (BorrowedFd<'_>, &Progress),
        (id, client): (ConnectionId, &Client),
        until: Monotonic,
    ) -> CallOutcome {
        let mut connection = ClientConnection::new(connection, progress, id, client, until);
        // Whoever catches it here looks at nothing that it may have left half done: with the code, the process ends.
        let code = match catch_unwind(AssertUnwindSafe(|| self.handler.serve(&mut connection))) {
            Ok(Ok(())) => exit::OK,
            Ok(Err(error)) => self.failed(&error),
            // The message has been written by std, see `Handler::STDERR`.
            Err(_) => exit::PANICKED,
        };
        CallOutcome { code, traffic: progress.traffic() }
    }

    #[cold]
    #[inline(never)]
    fn failed(self, error: &io::Error) -> u8 {
        if stream::is_gone(error) {
            return exit::OK;
        }
        if self.has_stderr {
            let way_out = match error.kind() {
                io::ErrorKind::PermissionDenied if self.is_caged => {
                    "; of files and the network it has what sandbox gives it, see preforkd.toml(5)"
                }
                _ => "",
            };
            // Where it is not wanted, it is thrown away.
            let _ = io::stderr().write_all(format!("error: {error}{way_out}\n").as_bytes());
        }
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
                exit::DATA
            }
            _ => exit::OS,
        }
    }
}
