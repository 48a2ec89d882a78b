//! `preforkd ban` and `bans`: clients that are kept out by hand.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::ask::{ask, show};
use crate::control::{Answer, BanStatus, Request};
use crate::exit;
use crate::handler::Title;

/// `ban [--for DURATION] [--kill] [--service NAME] SOURCE`.
pub(super) fn ban_command(title: Title) -> Command {
    Command::new("ban")
        .about("Keep an address, a prefix or a user out, from the next connection on")
        .arg(
            Arg::new("for")
                .long("for")
                .value_name("DURATION")
                .value_parser(ban_duration)
                .help("For how long, as in \"1h\"; without it until \"unban\""),
        )
        .arg(Arg::new("kill").long("kill").action(ArgAction::SetTrue).help("End their connections, too"))
        .arg(service("From this service only"))
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
        .arg(
            Arg::new("source")
                .value_name("SOURCE")
                .required(true)
                .value_parser(super::source)
                .help("Whom: an address, a prefix, or user:NAME at Unix sockets"),
        )
}

/// `bans [--json] [--service NAME]`.
pub(super) fn bans_command(title: Title) -> Command {
    Command::new("bans")
        .about("Show who is banned")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One line of JSON, for programs"))
        .arg(service("From this service only; who is kept out of all is among them"))
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
}

fn service(help: &'static str) -> Arg {
    Arg::new("service").long("service").value_name("NAME").help(help)
}

fn ban_duration(text: &str) -> Result<Duration, &'static str> {
    match super::duration(text)? {
        Duration::ZERO => Err("a ban for no time keeps nobody out"),
        time => Ok(time),
    }
}

/// Exits with 0 if they are kept out from now on.
pub(super) fn ban(matches: &ArgMatches, title: Title) -> ExitCode {
    let Some(source) = matches.get_one("source").copied() else { return ExitCode::from(exit::USAGE) };
    let lasts = matches.get_one::<Duration>("for");
    let request = Request::Ban {
        source,
        service: matches.get_one("service").cloned(),
        for_ms: lasts.map(|lasts| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX)),
        kill: matches.get_flag("kill"),
    };
    ask(matches, title, &request, exit::USAGE, None)
}

/// A ban, as programs see it.
#[derive(Debug, Serialize)]
struct ShownBan {
    source: String,
    service: Option<String>,
    since: String,
    until: Option<String>,
    left_s: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ShownBans {
    bans: Vec<ShownBan>,
}

/// Prints who is banned.
pub(super) fn bans(matches: &ArgMatches, title: Title) -> ExitCode {
    let request = Request::Bans { service: matches.get_one("service").cloned() };
    let text = |answer, ()| {
        let Answer::Bans(bans) = answer else { return None };
        let shown = ShownBans { bans: bans.into_iter().map(ShownBan::from).collect() };
        let text = match matches.get_flag("json") {
            true => serde_json::to_vec(&shown),
            false => Ok(render(&shown.bans).trim_end().into()),
        };
        Some(text.map(|text| vec![text]))
    };
    show(matches, title, &request, || (), text)
}

impl From<BanStatus> for ShownBan {
    fn from(ban: BanStatus) -> Self {
        ShownBan {
            source: ban.source.to_string(),
            service: ban.service,
            since: ban.since.to_string(),
            until: ban.until.map(|until| until.to_string()),
            left_s: ban.left_s,
        }
    }
}

fn render(bans: &[ShownBan]) -> String {
    let service = |ban: &ShownBan| ban.service.clone().unwrap_or_else(|| "(all)".to_owned());
    let width = |head: &str, of: &dyn Fn(&ShownBan) -> usize| {
        bans.iter().map(of).chain([head.len()]).max().unwrap_or(0)
    };
    let (source, name) =
        (width("SOURCE", &|ban| ban.source.len()), width("SERVICE", &|ban| service(ban).len()));
    let mut text = format!("{:source$}  {:name$}  {:20}  UNTIL\n", "SOURCE", "SERVICE", "SINCE");
    for ban in bans {
        let until = ban.until.as_deref().unwrap_or("unban");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:source$}  {:name$}  {:20}  {until}", ban.source, service(ban), ban.since);
    }
    text
}
