//! The integration tests: preforkd as its users see it, the real binary serving real programs.
//!
//! One crate, so that it links once and what the modules share is used. Each module is one promise of the interface.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says why and fails"
)]

mod support;

mod accept;
mod admission;
mod adopted;
mod asked;
mod attacks;
mod bans;
mod captured;
mod captured_worker;
mod cells;
mod cgroups;
mod cli;
mod container;
mod cookbook;
mod counts;
mod crates;
mod credentials;
mod deadlines;
mod down;
mod endings;
mod examples;
mod faults;
mod fleet;
mod haproxy;
mod hostile;
mod imported;
mod inherited;
mod kubernetes;
mod lameduck;
mod left_behind;
mod library;
mod life;
mod limit;
mod lingering;
mod load;
mod loader;
mod log;
mod metrics;
mod models;
mod moved;
mod namespaces;
mod operate;
mod options;
mod others;
mod overload;
mod page;
mod pages;
mod paths;
mod peers;
mod penalties;
mod programs;
mod property;
mod proxy;
mod reachable;
mod real;
mod recipes;
mod reports;
mod roles;
mod sandbox;
mod security;
mod services;
mod several;
mod sources;
mod spares;
mod startable;
mod stop;
mod store;
mod structure;
mod stuck;
mod systemd;
mod textbook;
mod top;
mod traced;
mod unix_sockets;
mod unix_users;
mod upgrade;
mod user_range;
mod varlink;
mod waited;
mod warm;
