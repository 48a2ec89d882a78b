//! `preforkd metrics`: what is going on, for Prometheus, for balancers, and for people with a browser.
//!
//! It asks the running preforkd at its control socket, as `status` does, and is a server of this very kind itself: a process
//! for each request, in a program of its own. As a service of the preforkd that it tells of it would drain and stop with that,
//! when balancers have to hear why; and to know of other services, its processes would need more than those of a service have.

mod advice;
mod agent;
mod exporter;
mod families;
mod http;
mod page;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use toml::Value;

use super::output::{complain, written};
use super::{ask, check};
use crate::config::flags::{Given, from_flags};
use crate::config::key::{Kind, Part};
use crate::config::{Config, Diagnostics, Machine};
use crate::control::{Answer, Request, Status, client};
use crate::exit;
use crate::handler::{Application, Title};
use crate::supervisor::{self, ConfigSource, Resumed};
use crate::sys::process;
use families::MetricsFormat;

/// What answers scrapers, browsers and HAProxy: such names the handlers of a program do not have.
const EXPORTER: &str = "(metrics)";
const PAGE: &str = "(page)";
const AGENT: &str = "(haproxy-agent)";

/// How long a request waits for preforkd.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many requests there may be at once: a few scrapers, browsers and balancers.
const MOST_REQUESTS: &str = "64";

/// `metrics [--control PATH] [--format FORMAT] [--textfile PATH] [--agent [SERVICE=]ADDRESS]... [--page ADDRESS
/// [--page-host HOST]...] [ADDRESS]`.
pub(super) fn command(title: Title) -> Command {
    let name = title.name;
    Command::new("metrics")
        .about("Show metrics in the OpenMetrics text format, or serve them")
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .value_parser(["openmetrics", "prometheus"])
                .conflicts_with_all(["address", "agent", "page", "textfile"])
                .help("What is printed: OpenMetrics 1.0, or the text format 0.0.4 of Prometheus [default: openmetrics]"),
        )
        .arg(
            Arg::new("textfile")
                .long("textfile")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with_all(["address", "agent", "page"])
                .help("Write them to this file instead, for the textfile collector of node_exporter"),
        )
        .arg(
            Arg::new("agent")
                .long("agent")
                .value_name("[SERVICE=]ADDRESS")
                .action(ArgAction::Append)
                .help("Answer HAProxy's agent-check here, for one service or for all (repeatable)"),
        )
        .arg(
            Arg::new("page")
                .long("page")
                .value_name("ADDRESS")
                .help("Show a page here that says what status does, with graphs, to browsers"),
        )
        .arg(
            Arg::new("page-host")
                .long("page-host")
                .value_name("HOST")
                .action(ArgAction::Append)
                .requires("page")
                .help("A name by which browsers may ask for the page, besides localhost and addresses (repeatable)"),
        )
        .arg(
            Arg::new("address")
                .value_name("ADDRESS")
                .help(format!("Serve them here over HTTP, as \"{name} serve\" has addresses; without it they are printed once")),
        )
}

/// Gives a program what the commands serve by themselves.
pub(super) fn equip(application: &mut Application) {
    application.add_tool(EXPORTER, exporter::Exporter::default());
    application.add_tool(PAGE, page::StatusPage::default());
    application.add_tool(AGENT, agent::HaproxyAgent::default());
}

/// Prints, writes or serves.
pub(super) fn run(matches: &ArgMatches, application: &Application) -> ExitCode {
    let title = application.title;
    if ["address", "agent", "page"].iter().any(|given| matches.contains_id(given)) {
        return serve(matches, application);
    }
    let textfile = matches.get_one::<PathBuf>("textfile");
    let answer =
        client::ask(&super::control_path(matches, title), &Request::Status, super::patience(matches));
    let status = match answer {
        Ok(Answer::Status(status)) => status,
        Ok(_) => return ask::not_understood(title),
        Err(error) => {
            // What was in it would be told as if it were still so.
            if let Some(path) = textfile {
                let _ = replace(path, &families::text_without_answer());
            }
            return super::unanswered(&error, title);
        }
    };
    match textfile {
        Some(path) => match replace(path, &families::text(&status, MetricsFormat::Prometheus)) {
            Ok(()) => ExitCode::from(exit::OK),
            Err(error) => {
                complain(format_args!("{}: cannot write {}: {error}", title.name, path.display()));
                ExitCode::from(exit::OS)
            }
        },
        None => {
            let format = match matches.get_one::<String>("format").map(String::as_str) {
                Some("prometheus") => MetricsFormat::Prometheus,
                _ => MetricsFormat::OpenMetrics,
            };
            written(io::stdout().lock().write_all(families::text(&status, format).as_bytes()))
        }
    }
}

/// Whoever reads a file finds it whole, as it was or as it is: it is written beside it, where its name ends in nothing that
/// the collector reads.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o644).open(&new)?;
        // Another user reads it, whatever the umask.
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        drop(file);
        std::fs::rename(&new, path)
    };
    write().inspect_err(|error| {
        if error.kind() != io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(&new);
        }
    })
}

/// Serves until told to end.
fn serve(matches: &ArgMatches, application: &Application) -> ExitCode {
    let title = application.title;
    let source = match supervisor::take_up(ConfigSource::CommandLine, false, title) {
        Resumed::Ended(result) => return super::ended(result, title),
        Resumed::NotAnUpgrade(source) => source,
    };
    match config(matches, application) {
        Ok(config) => super::ended(supervisor::run(config, source, true, title), title),
        Err(problems) => {
            check::show(&problems);
            ExitCode::from(exit::USAGE)
        }
    }
}

/// A service for each address.
fn config(matches: &ArgMatches, application: &Application) -> Result<Config, Diagnostics> {
    let control = super::control_path(matches, application.title);
    // A worker has another working directory.
    let control = std::path::absolute(&control).unwrap_or(control);
    // What a program has as its defaults is for its own services.
    let mut tools = Application::new(application.title.name);
    tools.add(EXPORTER, exporter::Exporter::default());
    tools.add(PAGE, page::StatusPage::default());
    tools.add(AGENT, agent::HaproxyAgent::default());
    let machine = Machine::with(&tools);
    let mut services = Vec::new();
    if let Some(address) = matches.get_one::<String>("address") {
        services.push(("metrics".to_owned(), EXPORTER, "ADDRESS", address.as_str(), Vec::new()));
    }
    if let Some(address) = matches.get_one::<String>("page") {
        let hosts: Vec<String> = matches.get_many("page-host").into_iter().flatten().cloned().collect();
        let options = vec![("program", Value::from(application.title.name)), ("hosts", Value::from(hosts))];
        services.push(("page".to_owned(), PAGE, "--page", address.as_str(), options));
    }
    let agents = matches.get_many::<String>("agent").into_iter().flatten();
    for (number, agent) in agents.enumerate() {
        let (service, address) = match agent.split_once('=') {
            Some((service, address)) => (vec![("service", Value::from(service))], address),
            None => (Vec::new(), agent.as_str()),
        };
        services.push((format!("haproxy-agent-{number}"), AGENT, "--agent", address, service));
    }
    let mut whole: Option<Config> = None;
    for (name, handler, label, address, options) in services {
        let config = one(&name, handler, (label, address), (&control, options), &machine)?;
        match &mut whole {
            None => whole = Some(config),
            Some(whole) => whole.services.extend(config.services),
        }
    }
    whole.ok_or_else(Diagnostics::default)
}

fn one(
    name: &str,
    handler: &str,
    (label, address): (&str, &str),
    (control, options): (&Path, Vec<(&str, Value)>),
    machine: &Machine<'_>,
) -> Result<Config, Diagnostics> {
    let given = |key: &'static str, kind, texts: &[&str]| Given {
        label: if key == "listen" { label.to_owned() } else { key.to_owned() },
        part: Part::Service,
        key,
        kind,
        texts: texts.iter().map(ToString::to_string).collect(),
    };
    let control_option = ("control", Value::from(control.to_string_lossy().into_owned()));
    let options: Vec<String> =
        options.into_iter().chain([control_option]).map(|(name, value)| format!("{name}={value}")).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut keys = vec![
        given("listen", Kind::List, &[address]),
        given("handler", Kind::Text, &[handler]),
        given("options", Kind::Options, &options),
        given("workers", Kind::Number, &["1"]),
        given("max_connections", Kind::Number, &[MOST_REQUESTS]),
        given("first_byte_timeout", Kind::Text, &["5s"]),
        given("max_lifetime", Kind::Text, &["15s"]),
        given("log", Kind::Text, &["failures"]),
        given("sandbox", Kind::TableOrFalse, &["system_calls=service", "network=client", "required=false"]),
    ];
    // Root's would be somebody who may not ask.
    if let Some((user, group)) = whose(control).filter(|_| process::is_user(0)) {
        keys.push(given("user", Kind::Text, &[&user.to_string()]));
        keys.push(given("group", Kind::Text, &[&group.to_string()]));
    }
    from_flags(name, &keys, machine)
}

/// Whose the control socket is, or will be.
fn whose(control: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let paths = control.ancestors().filter_map(|path| std::fs::metadata(path).ok());
    paths.map(|found| (found.uid(), found.gid())).next()
}

/// What the preforkd at this control socket says, or why it does not.
fn watched(control: &Path) -> Result<Box<Status>, String> {
    match client::ask(control, &Request::Status, PATIENCE) {
        Ok(Answer::Status(status)) => Ok(status),
        Ok(_) => Err("preforkd did not understand; is it of another version?".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
