//! A program of one's own with all that preforkd does.

use std::io;
use std::process::ExitCode;

use crate::cli;
use crate::handler::{Application, ClientConnection, Handler, SharingHandler};
use crate::shared::Layout;

/// A network service with a process of its own for every connection: what it is called, what serves a client, and with
/// [`main`](Server::main) all of preforkd's commands.
///
/// ```no_run
/// use std::io::Write;
/// use preforkd::{Connection, Server};
///
/// fn main() -> std::process::ExitCode {
///     Server::new("guestbook")
///         .version(env!("CARGO_PKG_VERSION"))
///         .handler("guestbook", |client: &mut Connection| {
///             writeln!(client, "hello {}", client.peer())
///         })
///         .main()
/// }
/// ```
///
/// With `cargo run -- serve 127.0.0.1:7007` it serves. `guestbook run` reads `/etc/guestbook/guestbook.toml` and
/// `/etc/guestbook/guestbook.d/*.toml`, with the keys of preforkd.toml(5); `guestbook check`, `reload`, `status`, `upgrade` and
/// `unban` do what preforkd's do, and the control socket is `/run/guestbook/control.sock`.
///
/// The program is started anew for each worker: see [`main`](Server::main).
#[must_use = "nothing happens before main() is called"]
pub struct Server {
    application: Application,
}

impl Server {
    /// A program that is called so, without handlers yet. The name stands in its messages, in the paths of its configuration and its
    /// control socket, and in the journal as `SYSLOG_IDENTIFIER`: it has letters, digits, `-`, `_` and `.`, at most 64, and
    /// begins with a letter or digit. Another is an error of the program, which [`main`](Server::main) says.
    ///
    /// ```
    /// use preforkd::Server;
    /// use std::io::Write;
    ///
    /// let server = Server::new("hello").handler("hello", |client: &mut preforkd::Connection| {
    ///     client.write_all(b"hello\n")
    /// });
    /// // server.main()
    /// ```
    pub fn new(name: &'static str) -> Self {
        Server { application: Application::new(name) }
    }

    /// Its own version, which `--version` and `status` show: `env!("CARGO_PKG_VERSION")`.
    ///
    /// ```
    /// # let server = preforkd::Server::new("guestbook");
    /// server.version(env!("CARGO_PKG_VERSION"))
    /// # ;
    /// ```
    pub fn version(mut self, version: &'static str) -> Self {
        self.application.title.version = Some(version);
        self
    }

    /// What it is for, in a line without a full stop, for `--help`.
    ///
    /// ```
    /// # let server = preforkd::Server::new("guestbook");
    /// server.about("Keep what each client says, and say it to the next")
    /// # ;
    /// ```
    pub fn about(mut self, about: &'static str) -> Self {
        self.application.about = about;
        self
    }

    /// Adds what serves clients: a closure over the connection, or a type that is a [`Handler`]. A service in the configuration has it by
    /// this name, as in `handler = "guestbook"`; if it is the only one, that need not be written.
    ///
    /// A closure says the type of its argument: `|client: &mut Connection| …`. A second handler of the same name
    /// replaces the first. The handler is made in every process that runs `main`, but [prepared](Handler::prepare) in workers only.
    ///
    /// ```
    /// # struct Guestbook;
    /// # impl preforkd::Handler for Guestbook {
    /// #     type Options = preforkd::NoOptions;
    /// #     fn serve(&self, _: &mut Connection) -> io::Result<()> { Ok(()) }
    /// # }
    /// use preforkd::{Connection, Server};
    /// use std::io::{self, Write};
    ///
    /// fn refuse(client: &mut Connection) -> io::Result<()> {
    ///     writeln!(client, "we are closed")
    /// }
    ///
    /// Server::new("guestbook")
    ///     .handler("guestbook", Guestbook) // a type that is a Handler
    ///     .handler("closed", refuse)
    ///     .handler("count", |client: &mut Connection| {
    ///         let count = io::copy(client, &mut io::sink())?;
    ///         writeln!(client, "{count} bytes")
    ///     })
    /// # ;
    /// ```
    pub fn handler(mut self, name: &'static str, handler: impl Handler) -> Self {
        self.application.add(name, handler);
        self
    }

    /// Adds a closure over what all connections of a service share, and the connection. `declare` says what that is, as
    /// [`Handler::share`] does: it is called several times in each process of the program, and must do nothing else.
    ///
    /// A function says the types of its arguments, as does a closure: `|hits: &Counter, client: &mut Connection| …`.
    ///
    /// ```no_run
    /// use preforkd::shared::{Counter, Layout};
    /// use preforkd::{Connection, Server};
    /// use std::io::Write;
    ///
    /// fn main() -> std::process::ExitCode {
    ///     let declare = |layout: &mut Layout| layout.counter("visits");
    ///     Server::new("page")
    ///         .sharing_handler("page", declare, |visits: &Counter, client: &mut Connection| {
    ///             visits.add(1);
    ///             writeln!(client, "visit {}", visits.sum())
    ///         })
    ///         .main()
    /// }
    /// ```
    pub fn sharing_handler<S: Sync + 'static>(
        self,
        name: &'static str,
        declare: impl Fn(&mut Layout) -> S + Sync + 'static,
        serve: impl Fn(&S, &mut ClientConnection<'_>) -> io::Result<()> + Sync + 'static,
    ) -> Self {
        self.handler(name, SharingHandler::new(declare, serve))
    }

    /// What holds for every service with a handler where its configuration says nothing: keys of `[service.NAME]` in TOML, as preforkd.toml(5) has
    /// them. What is written in the configuration, or as a flag of `serve`, stands in their place; a whole table in the place of a table.
    ///
    /// ```
    /// # let server = preforkd::Server::new("guestbook");
    /// server.defaults(
    ///     r#"
    ///     idle_timeout = "30s"
    ///     max_connections_per_source = 10
    ///     sandbox = { read = ["/srv/guestbook"], network = "none" }
    ///     "#,
    /// )
    /// # ;
    /// ```
    ///
    /// What is wrong with them is an error of the program, which every command that reads a configuration says.
    pub fn defaults(mut self, toml: &'static str) -> Self {
        self.application.defaults = toml;
        self
    }

    /// Does what this process was started for, by its arguments, and says with which code it is to exit: those of sysexits(3head), 0, 64
    /// for a wrong command line, 69 if no such service answers, 70 for what is wrong with the program, 71 if the system refuses, 77 if the
    /// user may not, 78 for a wrong configuration.
    ///
    /// It is the whole of `main`. The program is started anew for every worker, for each reload and to try an upgrade, and in
    /// each of these processes `main` runs up to here: what stands before this call must be quick, start no thread, change
    /// nothing outside of the process, and write nothing to stdout.
    ///
    /// ```no_run
    /// use preforkd::{Connection, Server};
    ///
    /// fn main() -> std::process::ExitCode {
    ///     // Nothing else stands here: it would be done in every worker, too.
    ///     Server::new("echo")
    ///         .handler("echo", |client: &mut Connection| {
    ///             std::io::copy(&mut &*client, &mut &*client).map(drop)
    ///         })
    ///         .main()
    /// }
    /// ```
    #[must_use = "it is what main() returns"]
    pub fn main(self) -> ExitCode {
        cli::main(self.application)
    }

    #[cfg(any(test, feature = "generate", feature = "fuzzing"))]
    pub(crate) fn into_application(self) -> Application {
        self.application
    }
}

/// Runs the `preforkd` command with this process's arguments and environment: see [`Server::main`].
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     preforkd::main()
/// }
/// ```
#[must_use]
pub fn main() -> ExitCode {
    crate::builtin::preforkd().main()
}
