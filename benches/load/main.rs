//! A load generator: N clients that connect, echo 16 bytes and close, without pause, in one thread; and what becomes of
//! its figures.
//!
//! ```text
//! load wait ADDRESS PID                      until the service echoes; exit 1 if it does not
//! load [METER] ADDRESS CLIENTS SECONDS       connections/s, p50, p99, p99.9 in µs, CPU per connection in µs, errors;
//!                                            CLIENTS is `16`, or `leaving-16` for such as close once they have their answer
//! load [METER] held ADDRESS NUMBER           the fields of held::Held
//! load METER memory                          bytes in use
//! load worker PID                            private memory of a worker in KiB, and its anonymous pages
//! load table|targets FILE, load chart FILE TITLE
//! ```
//!
//! METER is `--cpu FILE`, `--memory FILE`, `--pid PID`: the cgroup files of the server, or else the root of its processes.
//! Fields have tabs between them; a field that is not known is `-`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers"
)]

mod chart;
mod clients;
mod held;
mod meter;
mod results;
mod table;
mod targets;

use std::process::ExitCode;
use std::time::Duration;

use meter::Meter;
use results::Results;

fn main() -> ExitCode {
    // cargo bench adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let meter = Meter::take(&mut words);
    match words[..] {
        ["wait", address, pid] => {
            if let Err(reason) = clients::wait_for(address.parse().expect("an address"), pid) {
                println!("{reason}");
                return ExitCode::FAILURE;
            }
        }
        ["memory"] => println!("{}", meter.memory().expect("a cgroup or a process")),
        ["worker", pid] => println!("{}", meter::worker(pid.parse().expect("a pid"))),
        ["held", address, number] => {
            let number = number.parse().expect("a number of connections");
            println!("{}", held::run(address.parse().expect("an address"), number, &meter));
        }
        ["table", file] => table::print(&read(file)),
        ["targets", file] => targets::print(&read(file)),
        ["chart", file, title] => println!("{}", chart::draw(&read(file), title)),
        [address, number, seconds] => {
            let address = address.parse().expect("an IPv4 address and a port");
            let seconds: f64 = seconds.parse().expect("seconds");
            let number = number.parse().expect("a number of clients");
            println!("{}", clients::run(address, number, Duration::from_secs_f64(seconds), &meter));
        }
        _ => {
            eprintln!("benches/run calls this; benches/load/main.rs says how");
            return ExitCode::from(if arguments.is_empty() { 0 } else { 64 });
        }
    }
    ExitCode::SUCCESS
}

fn read(file: &str) -> Results {
    Results::parse(&std::fs::read_to_string(file).expect("a file of results"))
}
