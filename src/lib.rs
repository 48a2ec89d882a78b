//! A network service with a process of its own for every connection.
//!
//! This is the library behind the super-server of the same name. A program that uses it says what serves one client; the rest is what
//! preforkd does: workers that share the listeners, exact limits, deadlines, reload and upgrade without a lost connection, a sandbox,
//! systemd, and one record in the journal for each connection.
//!
//! ```no_run
//! use preforkd::{Connection, Server};
//! use std::io::Write;
//!
//! fn main() -> std::process::ExitCode {
//!     Server::new("guestbook")
//!         .handler("guestbook", |client: &mut Connection| {
//!             writeln!(client, "hello {}", client.peer())
//!         })
//!         .main()
//! }
//! ```
//!
//! `cargo run -- serve 127.0.0.1:7007` serves it; `guestbook run` reads a configuration, `/etc/guestbook/guestbook.toml`.
//!
//! - [`Server`] is the program: its name, its handlers, what holds where a configuration says nothing.
//! - [`Handler`] is what serves a client: a closure, or a type with options of its own. **What may be done before the fork and what after is
//!   there**, with the traps of fork.
//! - [`Connection`] is read and written, and knows both ends and its name in the log.
//! - [`shared`] is state that all connections of a service have: [`Handler::share`] declares it.
//!
//! # Processes
//!
//! ```text
//!  supervisor      reads the configuration; reads a handler's options, and calls nothing else of it
//!   +- worker      the same program started anew: main() up to Server::main(), then Handler::prepare()
//!   |   +- connection process      forked: Handler::serve(), once
//!   |   +- connection process
//!   +- worker
//! ```
//!
//! Linux 5.11 or later.

// Data flows one way, `cli` → `supervisor` → `worker` → `spare` → `child`, on top of `config`, `handler`, `admission`,
// `scoreboard`, `ipc`, `journal` and `sys`, and a lower part knows nothing of a higher one. `sys` holds every system call that std
// does not wrap and is the only place with `unsafe`.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests have threads"))]

mod admission;
mod builtin;
mod child;
mod cli;
mod client;
mod config;
mod control;
mod exit;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod import;
mod ipc;
mod journal;
mod pace;
mod scoreboard;
#[cfg(test)]
mod seeded;
mod server;
pub mod shared;
mod spare;
mod supervisor;
mod sys;
mod worker;

pub use client::{ConnectionId, NoConnectionId};
pub use handler::{ClientConnection as Connection, Handler, LocalAddress, NoOptions, Readiness, Stream};
pub use server::{Server, main};
pub use sys::socket::{Peer, PeerCredentials};

/// Writes the manual and the completions, for the package.
#[cfg(feature = "generate")]
#[doc(hidden)]
#[must_use]
pub fn generate() -> std::process::ExitCode {
    cli::generate::main(&builtin::preforkd().into_application())
}
