//! Handlers: what a program that uses this library says about each of its own, and how the rest of preforkd sees them.

mod application;
mod connection;
mod options;
mod sharing;

use std::error::Error;
use std::io;

use serde::de::DeserializeOwned;

use crate::shared::Layout;

pub(crate) use application::{AnyHandler, Application, Title};
pub(crate) use connection::Progress;
pub use connection::{ClientConnection, LocalAddress, Readiness, Stream};
pub use options::NoOptions;
pub(crate) use sharing::SharingHandler;

/// Serves clients, each in a process of its own.
///
/// A closure is one, if all that it needs is the connection ([`Server::handler`](crate::Server::handler)) and state that all connections share
/// ([`Server::sharing_handler`](crate::Server::sharing_handler)). A type that implements this has options of its own in the configuration, and
/// something to [prepare](Handler::prepare).
///
/// ```
/// use std::error::Error;
/// use std::io::{self, Write};
/// use preforkd::{Connection, Handler};
///
/// /// `[service.NAME.options]`
/// #[derive(serde::Deserialize)]
/// struct Options {
///     greeting: String,
///     #[serde(default = "once")]
///     times: u32,
/// }
///
/// fn once() -> u32 {
///     1
/// }
///
/// #[derive(Default)]
/// struct Greeter {
///     text: String,
/// }
///
/// impl Handler for Greeter {
///     type Options = Options;
///
///     fn prepare(&mut self, options: Options) -> Result<(), Box<dyn Error>> {
///         self.text = format!("{}\n", options.greeting).repeat(options.times.try_into()?);
///         Ok(())
///     }
///
///     fn serve(&self, client: &mut Connection) -> io::Result<()> {
///         client.write_all(self.text.as_bytes())
///     }
/// }
/// ```
///
/// # Which process calls what
///
/// | | in which process | how often |
/// |---|---|---|
/// | `main`, up to [`Server::main`](crate::Server::main) | every one but those of connections, also the one that checks a configuration | once |
/// | [`Options`](Handler::Options) are read | the supervisor, at the start; a process of its own at each reload; the worker | once each |
/// | [`share`](Handler::share) | every one that runs `main`; the worker once more, with the memory | several times |
/// | [`prepare`](Handler::prepare) | the worker | once, before it has a child |
/// | [`serve`](Handler::serve) | a process of the connection's own, a copy of the worker | once; with `connections_per_child` as often as it says |
///
/// # What a fork copies, and what it does not
///
/// A connection process begins as a copy of its worker, fork(2): memory is there as `prepare` has left it, shared until it
/// is written, and what is written is seen by nobody else. So `serve` has `&self`. The traps, each of which is a fact of fork(2) and
/// none of Rust:
///
/// - **Threads** are not copied; what they had locked stays locked. So a worker has one: a thread that was started before the
///   first fork is an error that names it, and the worker does not come up, nor a reload that needs it. In `serve` threads may be
///   started, unless [`THREADS`](Handler::THREADS) says that there are none.
/// - **Random numbers**: a generator that has been seeded before the fork gives all connections the same numbers. Make
///   it in `serve`, or ask getrandom(2). The keys of `std::collections::HashMap` are such numbers: maps of different connections of
///   one worker have the same, so who finds out about one connection's knows the others'.
/// - **What is open** (a database handle, a TLS session, a file with its offset) is shared by all who have it, and two who use it
///   at once mix what they say. Open it in `serve`. With `connections_per_child` a process that serves several may keep it in a
///   [`std::sync::OnceLock`] or a thread-local. A handler's process has no descriptor of its worker's: they are closed.
/// - **Buffered output** that is not written before the fork is in the copy, too, and would be written again and again. Flush it in
///   `prepare`.
/// - **Memory**: the more a worker has touched, the more a fork costs: with 10 MiB three times as much as with none. Maps of files
///   that are only read cost nothing. The stack of a connection process has 1 MiB.
/// - **Environment and arguments**: a worker has been started anew with `JOURNAL_STREAM`, `INVOCATION_ID` and nothing else in its
///   environment, so that it has no secrets. Options are what a configuration is for.
pub trait Handler: Sync + 'static {
    /// The keys of `[service.NAME.options]`, in a type of this program: [`NoOptions`] if there are none.
    ///
    /// Everything that is wrong is said at once, with file, line and column: a key that no field has, a value that does not
    /// fit, one that is missing. That `#[serde(deny_unknown_fields)]` stands there is not necessary. For a check of more than the type
    /// has serde `#[serde(try_from = "…")]`; for one that needs the machine there is [`prepare`](Handler::prepare).
    ///
    /// Reading them must do nothing else: it is done in the supervisor, which waits for it.
    ///
    /// ```
    /// #[derive(serde::Deserialize)]
    /// struct Options {
    ///     greeting: String,
    ///     #[serde(default)]
    ///     times: Option<std::num::NonZero<u8>>,
    /// }
    ///
    /// // [service.NAME.options]
    /// let options: Options = toml::from_str(r#"greeting = "hello""#)?;
    /// assert_eq!((options.greeting.as_str(), options.times), ("hello", None));
    /// assert!(toml::from_str::<Options>("times = 0").is_err());
    /// # Ok::<(), toml::de::Error>(())
    /// ```
    type Options: DeserializeOwned;

    /// Whether it says something on stderr. If so, what it writes there goes where `stderr` says: by default each line becomes a
    /// record of its connection, and so do a panic and the error that [`serve`](Handler::serve) returns. fd 0 is empty, and what is written to fd 1 is thrown away.
    ///
    /// If not, its processes have no descriptor but the connection, and each is spared a pipe, about 10 µs. Then beware: the first
    /// file that such a handler opens gets the number 0, and `println!` may write into it.
    ///
    /// ```
    /// # use std::io::{self, Write};
    /// # use preforkd::{Connection, Handler, NoOptions};
    /// struct Silent;
    ///
    /// impl Handler for Silent {
    ///     type Options = NoOptions;
    ///     const STDERR: bool = false;
    ///
    ///     fn serve(&self, client: &mut Connection) -> io::Result<()> {
    ///         client.write_all(b"hello\n")
    ///     }
    /// }
    /// ```
    const STDERR: bool = true;

    /// Whether [`serve`](Handler::serve) starts threads or other processes. If not, it must not, and cannot: so who has taken over one of
    /// its processes has nothing that outlives the connection. (`RLIMIT_NPROC`, getrlimit(2), is 0. Where that is not in force, because
    /// `limits` in the configuration has `nproc`, or `sandbox` is `false`, or for root, a thread would die of `SIGSEGV`, and its process with it.)
    ///
    /// ```
    /// # use std::io::{self, Write};
    /// # use preforkd::{Connection, Handler, NoOptions};
    /// struct Alone;
    ///
    /// impl Handler for Alone {
    ///     type Options = NoOptions;
    ///     const THREADS: bool = false;
    ///
    ///     fn serve(&self, client: &mut Connection) -> io::Result<()> {
    ///         client.write_all(b"hello\n")
    ///     }
    /// }
    /// ```
    const THREADS: bool = true;

    /// Declares the state that all connection processes of a service share, and that none of them can lose by its death: see
    /// [`shared`](crate::shared). Each service has its own, which stays as it is over the death of workers, reload and upgrade, and
    /// is gone with the service.
    ///
    /// ```
    /// # use std::io::{self, Write};
    /// # use preforkd::{Connection, Handler, NoOptions};
    /// use preforkd::shared::{Counter, Layout};
    ///
    /// #[derive(Default)]
    /// struct Page {
    ///     visits: Counter,
    /// }
    ///
    /// impl Handler for Page {
    ///     type Options = NoOptions;
    ///
    ///     fn share(&mut self, layout: &mut Layout) {
    ///         self.visits = layout.counter("visits");
    ///     }
    ///
    ///     fn serve(&self, client: &mut Connection) -> io::Result<()> {
    ///         self.visits.add(1);
    ///         writeln!(client, "visit {}", self.visits.sum())
    ///     }
    /// }
    /// ```
    ///
    /// Called several times in each process of the program, also in those that have no such memory, and must do nothing else: what
    /// is declared must be the same each time. In [`serve`](Handler::serve) it is there, and also in [`prepare`](Handler::prepare),
    /// in each worker: a lock there is in the way of those that serve already.
    ///
    /// A program that declares something else than the one that runs cannot take over from it: its upgrade is refused, and a
    /// restart begins with new memory. Nor can `pid_namespace` be in `sandbox`: locks know their owners by number.
    fn share(&mut self, layout: &mut Layout) {
        let _ = layout;
    }

    /// Prepares for all connections to come: loads data, compiles patterns. It opens nothing that one connection must not share
    /// with another.
    ///
    /// Called in each worker, before its first fork, as the user that preforkd has and without sandbox. The worker is killed if it is
    /// not ready within 30 s of its start.
    ///
    /// # Errors
    ///
    /// What it returns is said to who started the service, or wants the reload, and stops it: what was in force stays in force. So does
    /// a panic, and a thread that was started here.
    ///
    /// ```
    /// # use std::error::Error;
    /// # use preforkd::{Connection, Handler};
    /// #[derive(Default)]
    /// struct Quotes {
    ///     lines: Vec<String>,
    /// }
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Options {
    ///     file: std::path::PathBuf,
    /// }
    ///
    /// impl Handler for Quotes {
    ///     type Options = Options;
    ///
    ///     fn prepare(&mut self, options: Options) -> Result<(), Box<dyn Error>> {
    ///         let file = options.file;
    ///         let text = std::fs::read_to_string(&file).map_err(|why| format!("{}: {why}", file.display()))?;
    ///         self.lines = text.lines().map(str::to_owned).collect();
    ///         Ok(())
    ///     }
    /// #   fn serve(&self, _: &mut Connection) -> std::io::Result<()> { Ok(()) }
    /// }
    ///
    /// let wrong = Quotes::default().prepare(Options { file: "/nowhere".into() }).unwrap_err();
    /// assert!(wrong.to_string().starts_with("/nowhere: No such file"));
    /// ```
    fn prepare(&mut self, options: Self::Options) -> Result<(), Box<dyn Error>> {
        drop(options);
        Ok(())
    }

    /// Serves one client. When it returns, the connection is closed, as soon as the client has all that was written.
    ///
    /// Called in a process of the connection's own, with the user, the limits and the sandbox of its service: by default it has neither
    /// files nor network, and `sandbox` in the configuration, or in [`Server::defaults`](crate::Server::defaults), gives it more.
    ///
    /// # Errors
    ///
    /// That the client is gone is none: the process exits with 0. `InvalidData`, `InvalidInput` and `UnexpectedEof` say that the client has
    /// done wrong: it exits with 65 (`EX_DATAERR`, sysexits(3head)), which `penalties` may name. Any other exits with 71 (`EX_OSERR`).
    /// The record of the connection has the code, and the error is a record on its own.
    ///
    /// # Panics
    ///
    /// Only this connection ends: its record says `panicked`, the message of the panic is another record. If the program is built with
    /// `panic = "abort"`, the record says `killed ABRT`.
    ///
    /// ```standalone_crate
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documentation/serve.rs"));
    /// # use std::io::{self, BufRead, BufReader, Write};
    /// # use preforkd::{Connection, Handler, NoOptions};
    /// struct Double;
    ///
    /// impl Handler for Double {
    ///     type Options = NoOptions;
    ///
    ///     fn serve(&self, client: &mut Connection) -> io::Result<()> {
    ///         let mut line = String::new();
    ///         BufReader::new(&*client).read_line(&mut line)?;
    ///         let number: i64 = line.trim().parse().map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    ///         writeln!(client, "{}", i128::from(number) * 2)
    ///     }
    /// }
    /// # fn main() -> std::process::ExitCode { run_example(Double, "21\n", |answer| assert_eq!(answer, "42\n")) }
    /// ```
    fn serve(&self, connection: &mut ClientConnection<'_>) -> io::Result<()>;
}

impl<F> Handler for F
where
    F: Fn(&mut ClientConnection<'_>) -> io::Result<()> + Sync + 'static,
{
    type Options = NoOptions;

    fn serve(&self, connection: &mut ClientConnection<'_>) -> io::Result<()> {
        self(connection)
    }
}
