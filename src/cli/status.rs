//! `preforkd status`: what is going on, in one look.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::output::{complain, say};
use crate::control::{Answer, Condition, Request, Status, TimesStatus, client};
use crate::exit;
use crate::handler::Title;

/// `status [--json] [--control PATH]`.
pub(super) fn command(title: Title) -> Command {
    let json =
        Arg::new("json").long("json").action(ArgAction::SetTrue).help("One line of JSON, for programs");
    Command::new("status")
        .about(format!("Show what the running {} does", title.name))
        .arg(json)
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
}

/// Prints the status of the running supervisor.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    match client::ask(&super::control_path(matches, title), &Request::Status, super::patience(matches)) {
        Ok(Answer::Status(status)) if matches.get_flag("json") => match serde_json::to_string(&status) {
            Ok(line) => say(line),
            Err(_) => ExitCode::from(exit::SOFTWARE),
        },
        Ok(Answer::Status(status)) => say(render(&status, title.name).trim_end()),
        Ok(Answer::Failed(reason)) => {
            complain(format_args!("{}: {reason}", title.name));
            ExitCode::from(exit::UNAVAILABLE)
        }
        Ok(_) => super::ask::not_understood(title),
        Err(error) => super::unanswered(&error, title),
    }
}

/// The same for people, by the program of this name.
pub(super) fn render(status: &Status, program: &str) -> String {
    let mut text = format!(
        "{} {} (pid {}), {}, up {}, generation {}, reloads {} ok {} rejected\n",
        program,
        status.version,
        status.pid,
        state(status.state),
        uptime(status.uptime_s),
        status.generation,
        status.reloads.ok,
        status.reloads.failed
    );
    if let Some(waits_for) = &status.waits_for {
        let _ = writeln!(text, "waits for {waits_for}");
    }
    if status.bans > 0 {
        let bans = if status.bans == 1 { "ban is" } else { "bans are" };
        text.push_str(&format!("{} {bans} in force, see \"{} bans\"\n", status.bans, program));
    }
    // Writing to a String cannot fail.
    let names = status.services.iter().map(|service| service.name.len());
    let width = names.chain(["SERVICE".len()]).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "\n{:width$} {:>8} {:>13} {:>7} {:>11} {:>8} {:>8} {:>8}  LISTEN",
        "SERVICE", "WORKERS", "CONNECTIONS", "QUEUED", "ACCEPTED", "REFUSED", "TIMEOUTS", "CRASHES"
    );
    for service in &status.services {
        let _ = writeln!(
            text,
            "{:width$} {:>8} {:>13} {:>7} {:>11} {:>8} {:>8} {:>8}  {}",
            service.name,
            service.workers.len(),
            format!("{}/{}", service.active, service.max_connections),
            service.queued,
            service.accepted,
            service.refused.all(),
            service.timeouts,
            service.crashes,
            service.listen.join(" ")
        );
    }
    for service in &status.services {
        if service.paused {
            let _ =
                writeln!(text, "\n{} is paused: clients wait until \"{program} resume {0}\"", service.name);
        }
        if service.lameduck {
            let _ = writeln!(
                text,
                "\n{} is a lame duck: balancers send it no more clients until \"{} resume {0}\"",
                service.name, program
            );
        }
        if let Some(reason) = &service.down {
            let _ = writeln!(text, "\n{} is down: {reason}", service.name);
        }
        if let Some(reason) = &service.resting {
            let _ = writeln!(text, "\n{} rests: {reason}", service.name);
        }
        if let Some(why) = &service.cold {
            let _ = writeln!(text, "\n{} has no warm programs: {why}", service.name);
        }
        if let Some(mean_us) = mean(&service.warm_ups) {
            let (name, warm, served) = (&service.name, service.warm, service.served_warm);
            let millis = mean_us as f64 / 1000.0;
            let _ = writeln!(
                text,
                "\n{name}: {warm} warm, after {millis:.1} ms on average; {served} connections had one"
            );
        }
        if service.left_behind > 0 {
            let _ = writeln!(
                text,
                "\n{}: {} left behind by programs that have ended",
                service.name,
                processes(service.left_behind)
            );
        }
        if let Some(sandbox) = &service.sandbox {
            let _ = writeln!(text, "\n{} in its sandbox: {sandbox}", service.name);
        }
        for unreachable in &service.unreachable {
            let _ = writeln!(text, "\n{}: {unreachable}", service.name);
        }
    }
    if status.log_records_dropped > 0 {
        let _ = writeln!(text, "\n{} log records were dropped", status.log_records_dropped);
    }
    text
}

/// The mean of times in microseconds, if there were any.
fn mean(times: &TimesStatus) -> Option<u64> {
    times.sum_us.checked_div(times.within.iter().sum())
}

fn processes(count: u32) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}

pub(super) fn state(state: Condition) -> &'static str {
    match state {
        Condition::Starting => "starting",
        Condition::Running => "running",
        Condition::Reloading => "reloading",
        Condition::Draining => "draining",
        Condition::Ending => "ending",
    }
}

pub(super) fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
