//! preforkd: a network service with a process of its own for every connection.
//!
//! Data flows one way, `cli` → `supervisor` → `worker` → `spare` → `child`, on top of `config`, `admission`, `scoreboard`,
//! `ipc`, `journal` and `sys`, and a lower part knows nothing of a higher one. `sys` holds every system call that std does
//! not wrap and is the only place with `unsafe`.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests have threads"))]

mod admission;
mod child;
mod cli;
mod client;
mod config;
mod control;
mod exit;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod ipc;
mod journal;
mod pace;
mod scoreboard;
#[cfg(test)]
mod seeded;
mod spare;
mod supervisor;
mod sys;
mod worker;

#[cfg(feature = "generate")]
#[doc(hidden)]
pub use cli::generate::main as generate;
pub use cli::main;
