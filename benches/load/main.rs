//! A load generator: N clients that connect, echo 16 bytes and close, without pause, in one thread.
//!
//! `load ADDRESS CLIENTS SECONDS` prints one line: connections per second, p50, p99, p99.9 in microseconds, errors.
//! `load table FILE [YARDSTICK]` makes a table out of many of these lines.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers"
)]

mod clients;
mod table;

use std::net::SocketAddrV4;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    // cargo bench adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["table", file] => print_table(file, "C fork loop, 2 workers"),
        ["table", file, yardstick] => print_table(file, yardstick),
        [address, number, seconds] => {
            let address: SocketAddrV4 = address.parse().expect("an IPv4 address and a port");
            let seconds: f64 = seconds.parse().expect("seconds");
            let number = number.parse().expect("a number of clients");
            println!("{}", clients::run(address, number, Duration::from_secs_f64(seconds)));
        }
        _ => {
            eprintln!("load ADDRESS CLIENTS SECONDS, or load table FILE [YARDSTICK]; benches/run does both");
            return ExitCode::from(if arguments.is_empty() { 0 } else { 64 });
        }
    }
    ExitCode::SUCCESS
}

fn print_table(file: &str, yardstick: &str) {
    table::print(&std::fs::read_to_string(file).expect("a file of results"), yardstick);
}
