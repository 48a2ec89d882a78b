//! `preforkd import`: other super-servers' configurations as one of preforkd.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::check::show;
use super::output::{complain, say};
use crate::config::{self, Address, CredentialStore, Machine, Tolerance, socket_file};
use crate::handler::{Application, Title};
use crate::import::{self, FORMATS, ImportRequest, Imported, ImportedService, SourceFormat, Style};
use crate::sys::socket;
use crate::{exit, supervisor};

/// `import [--check] [--all] [--format FORMAT] [--root DIRECTORY] PATH…`.
pub(crate) fn command(title: Title) -> Command {
    let flag =
        |name: &'static str, help: String| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("import")
        .about("Print as TOML what inetd.conf, xinetd, socket units of systemd, or command lines of tcpserver, tcpsvd, s6 and socat say")
        .arg(Arg::new("path").value_name("PATH").required(true).num_args(1..).value_parser(value_parser!(PathBuf)).help(
            "inetd.conf, xinetd.conf, a file or directory as xinetd.d, a .socket unit or a directory of them, a run script or a directory \
             with some",
        ))
        .arg(flag("check", format!("Print no TOML, and say whether this machine could serve it: as {} check, and whether the addresses are free", title.name)))
        .arg(flag("all", "Print services that are off as if they were on".to_owned()))
        .arg(Arg::new("format").long("format").value_name("FORMAT").value_parser(FORMATS.map(|(name, _)| name)).help(
            "In which form the files are: inetd, xinetd, systemd, tcpserver, tcpsvd, s6 or socat; without it, each file shows it",
        ))
        .arg(Arg::new("root").long("root").value_name("DIRECTORY").value_parser(value_parser!(PathBuf)).default_value("/").help(
            "The root directory of the machine that the files are of, for what they name: included files, /etc/services",
        ))
}

/// Imports, prints, and says with which code to exit.
pub(crate) fn run(matches: &ArgMatches, application: &Application) -> ExitCode {
    let name = application.title.name;
    let paths: Vec<PathBuf> = matches.get_many("path").into_iter().flatten().cloned().collect();
    let root: PathBuf = matches.get_one("root").cloned().unwrap_or_else(|| "/".into());
    let sources: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let (sources, program) = (sources.join(", "), format!("{name} {}", env!("CARGO_PKG_VERSION")));
    let style = Style { program: &program, sources: &sources, with_off: matches.get_flag("all") };
    let request = ImportRequest { paths: &paths, root: &root, format: format(matches) };
    let imported = match import::import(&request, style, application) {
        Ok(imported) => imported,
        Err(error) => {
            complain(format_args!("{name}: {}", import::tame(&error.to_string())));
            return ExitCode::from(exit::USAGE);
        }
    };
    let text = import::write(&imported, style);
    let printed = match matches.get_flag("check") {
        true => ExitCode::from(exit::OK),
        false => say(text.trim_end()),
    };
    let refused = warn(&imported, style, name);
    let fits = !matches.get_flag("check") || fits(&text, &imported, style, application);
    if refused || !fits { ExitCode::from(exit::CONFIG) } else { printed }
}

fn format(matches: &ArgMatches) -> Option<SourceFormat> {
    let wanted: &String = matches.get_one("format")?;
    FORMATS.iter().find(|(name, _)| name == wanted).map(|(_, format)| *format)
}

/// Says what is lost and what is refused of what was served, and whether anything was refused.
fn warn(imported: &Imported, style: Style<'_>, name: &str) -> bool {
    let mut refused = false;
    let is_on = |service: &&ImportedService| service.off.is_none() || style.with_off;
    let general = imported.notes.iter().map(|(place, note)| (place.clone(), note));
    let of_services = imported.services.iter().filter(is_on).flat_map(|service| {
        let place = format!("{}: service {}", service.place, service.name);
        service.notes.iter().map(move |note| (place.clone(), note))
    });
    for (place, note) in general.chain(of_services) {
        let is_refused = note.verdict.word() == "refused";
        refused |= is_refused;
        if note.is_loss || is_refused {
            complain(format_args!("{name}: {}: {}", import::tame(&place), import::line(note)));
        }
    }
    refused
}

/// Says whether this machine would serve what is printed.
fn fits(text: &str, imported: &Imported, style: Style<'_>, application: &Application) -> bool {
    let active: Vec<&ImportedService> =
        imported.services.iter().filter(|service| import::is_active(service, style)).collect();
    if active.is_empty() {
        say("no service is left that could be served");
        return false;
    }
    let credentials = CredentialStore::of_environment().of_another();
    let machine = Machine { credentials, ..Machine::with(application) };
    let mut good = true;
    let loaded = config::load_text(Path::new("import"), text.as_bytes(), &Tolerance::none(), &machine);
    match &loaded {
        Ok(loaded) => show(&loaded.warnings),
        Err(problems) => {
            show(problems);
            good = false;
        }
    }
    for service in &active {
        for address in &service.listen {
            if let Some(why) = obstacle(address) {
                complain(format_args!(
                    "{}: service {}: {address}: {why}",
                    import::tame(&service.place),
                    service.name
                ));
                good = false;
            }
        }
    }
    let count = match active.len() {
        1 => "1 service".to_owned(),
        count => format!("{count} services"),
    };
    say(match good {
        true => format!("{count}: this machine would serve all of them"),
        false => format!("{count}: this machine would not serve all of them"),
    });
    good
}

/// Why nobody could listen at an address now. It is bound for a moment, and nobody listens.
fn obstacle(text: &str) -> Option<String> {
    let in_the_way = |error: &io::Error, owner: Option<String>| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let who = owner.unwrap_or_else(|| "another program".to_owned());
            format!("in use by {who}; stop that first, if it is what this was imported from")
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied: ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
                .to_owned()
        }
        _ => error.to_string(),
    };
    if let Some(udp) = text.strip_prefix("udp:") {
        let address: SocketAddr = udp.parse().ok()?;
        return UdpSocket::bind(address).err().map(|error| in_the_way(&error, None));
    }
    let address: Address = text.parse().ok()?;
    let bound = match &address {
        Address::Tcp(tcp) => socket::bind_tcp(*tcp, false, &|_| Ok(())).map(drop),
        Address::Any(port) => socket::bind_any(*port, false, &|_| Ok(())).map(drop),
        Address::Unix(path) => {
            return match socket_file::in_its_place(path) {
                Some((what, help)) => Some(format!("{what} is in its place; {help}")),
                None => socket::connect_unix(path)
                    .ok()
                    .map(|_| in_the_way(&io::ErrorKind::AddrInUse.into(), supervisor::owner_of(&address))),
            };
        }
        _ => Ok(()),
    };
    bound.err().map(|error| in_the_way(&error, supervisor::owner_of(&address)))
}
