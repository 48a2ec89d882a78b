//! The command line of `preforkd serve`; its flags are the keys of the configuration.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};

use crate::config::flags::{Given, from_flags};
use crate::config::key::{Kind, Part};
use crate::config::keys::{Flag, flags};
use crate::config::{self, Config, Diagnostics, Machine};
use crate::handler::Application;

/// Keys whose values may: a file that may be missing, the name of a login shell, what POP3 says.
const MAY_BEGIN_WITH_HYPHEN: [&str; 3] = ["environment_file", "argv0", "refuse_message"];

const ADDRESS: &str = "ADDRESS";
const HANDLER: &str = "HANDLER";
const PROGRAM: &str = "PROGRAM";

/// `serve [OPTIONS] ADDRESS HANDLER` and `serve [OPTIONS] ADDRESS -- PROGRAM [ARG…]`.
///
/// Of a program with one handler, that need not be named.
pub(crate) fn command(application: &Application) -> Command {
    let name = application.title.name;
    let handler = if application.only_handler().is_some() { "[HANDLER]" } else { HANDLER };
    let help = match name {
        "preforkd" => format!("A built-in service: {}", application.list_of_handlers()),
        _ => format!("What serves clients: {}", application.list_of_handlers()),
    };
    Command::new("serve")
        .about("Run one service without a configuration file")
        .override_usage(format!(
            "{name} serve [OPTIONS] ADDRESS {handler}\n       {name} serve [OPTIONS] ADDRESS -- PROGRAM [ARG]..."
        ))
        .args(flags().map(argument))
        .arg(Arg::new(ADDRESS).required(true).help("IP:PORT, [IPV6]:PORT, [IPV6%ZONE]:PORT, *:PORT, unix:/PATH, unix:@NAME or fd:NAME; port 0 is any free port; udp:IP:PORT with --wait true"))
        .arg(Arg::new(HANDLER).help(help))
        .arg(
            Arg::new(PROGRAM)
                .last(true)
                .num_args(1..)
                .value_names([PROGRAM, "ARG"])
                .help("A program that has the connection on its stdin and stdout, and its arguments"),
        )
        .group(
            ArgGroup::new("job").args([HANDLER, PROGRAM]).required(application.only_handler().is_none()),
        )
}

fn argument(flag: Flag) -> Arg {
    let repeatable = matches!(flag.kind, Kind::List | Kind::Table | Kind::TableOrFalse | Kind::Options);
    let mut doc = flag.doc.to_owned();
    if repeatable {
        doc.push_str(" (repeatable)");
    }
    // Without a file there is no control socket either unless it is asked for.
    if let Some(default) = flag.default.filter(|_| flag.key != "control_socket") {
        doc = format!("{doc} [default: {}]", default.trim_matches('"'));
    }
    let argument = Arg::new(flag.name);
    // Of the keys with a boolean, this may have a table.
    let argument = match flag.kind == Kind::Boolean && flag.key != "keepalive" {
        true => argument.value_parser(["true", "false"]),
        false => argument,
    };
    argument
        .long(flag.name)
        .value_name(flag.placeholder)
        .action(if repeatable { ArgAction::Append } else { ArgAction::Set })
        .allow_negative_numbers(flag.kind == Kind::Number)
        .allow_hyphen_values(MAY_BEGIN_WITH_HYPHEN.contains(&flag.key))
        .help(doc)
}

/// The configuration that a command line describes.
pub(crate) fn config(matches: &ArgMatches, application: &Application) -> Result<Config, Diagnostics> {
    let current = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let machine = Machine { current: Some(&current), ..Machine::with(application) };
    from_flags(&name(matches, application), &given(matches), &machine)
        .map_err(|problems| with_hint(problems, matches, application))
}

/// Everything that was given, in the order of the usage text.
fn given(matches: &ArgMatches) -> Vec<Given> {
    let arguments =
        [(ADDRESS, "listen", Kind::List), (HANDLER, "handler", Kind::Text), (PROGRAM, "exec", Kind::List)];
    let arguments = arguments.into_iter().filter_map(|(id, key, kind)| {
        Some(Given { label: id.to_owned(), part: Part::Service, key, kind, texts: texts(matches, id)? })
    });
    let flags = flags().filter_map(|Flag { name, part, key, kind, .. }| {
        Some(Given { label: format!("--{name}"), part, key, kind, texts: texts(matches, name)? })
    });
    arguments.chain(flags).collect()
}

fn texts(matches: &ArgMatches, id: &str) -> Option<Vec<String>> {
    matches.get_many::<String>(id).map(|values| values.cloned().collect())
}

/// The service is called what it runs.
fn name(matches: &ArgMatches, application: &Application) -> String {
    let program = || matches.get_many::<String>(PROGRAM).and_then(|mut words| words.next());
    let job = matches.get_one::<String>(HANDLER).or_else(program).map(String::as_str);
    let job = job.or(application.only_handler()).unwrap_or_default();
    let file = Path::new(job).file_name().map(|file| file.to_string_lossy());
    config::make_name(&file.unwrap_or_default())
}

/// Who names a program where a handler is expected has forgotten the `--`.
fn with_hint(mut problems: Diagnostics, matches: &ArgMatches, application: &Application) -> Diagnostics {
    let (Some(handler), Some(address)) = (texts(matches, HANDLER), texts(matches, ADDRESS)) else {
        return problems;
    };
    for problem in problems.iter_mut().filter(|problem| problem.place.name == HANDLER) {
        problem.help = Some(format!(
            "the handlers are {}; a program goes after --, as in: {} serve {} -- {}",
            application.list_of_handlers(),
            application.title.name,
            address.join(" "),
            handler.join(" ")
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Job;
    use crate::journal::Level;

    fn parse(words: &str) -> Result<Config, String> {
        let words = ["serve"].into_iter().chain(words.split_whitespace());
        let application = crate::builtin::preforkd().into_application();
        let matches = command(&application).try_get_matches_from(words).map_err(|error| error.to_string())?;
        config(&matches, &application).map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_command_is_sound() {
        command(&crate::builtin::preforkd().into_application()).debug_assert();
    }

    #[test]
    fn a_handler_or_a_program() {
        let echo = parse("127.0.0.1:0 echo --workers 2 --nice -3 --log-level debug").unwrap();
        assert_eq!(echo.supervisor.control_socket, None);
        assert_eq!(echo.log.level, Level::Debug);
        assert_eq!(
            (echo.services[0].name.as_str(), &echo.services[0].job),
            ("echo", &Job::Handler("echo".into()))
        );
        assert_eq!((echo.services[0].workers, echo.services[0].identity.nice), (2, Some(-3)));

        let cat =
            parse("--limits nofile=64 --limits as=1G --control /run/x [::1]:7 -- /bin/cat -u --workers 9")
                .unwrap();
        assert_eq!(cat.services[0].name, "cat");
        assert_eq!(cat.services[0].limits.len(), 2);
        assert_eq!(cat.supervisor.control_socket, Some("/run/x".into()));
        let Job::Exec(program) = &cat.services[0].job else { panic!("not a program") };
        assert_eq!(program.arguments, ["/bin/cat", "-u", "--workers", "9"]);
    }

    #[test]
    fn a_sandbox_is_false_or_what_its_keys_say() {
        let sandbox = |flags: &str| {
            parse(&format!("{flags} 127.0.0.1:7 -- /bin/cat"))
                .map(|config| config.services[0].sandbox.clone())
        };
        assert_eq!(sandbox("--sandbox false"), Ok(None));
        assert_eq!(sandbox("--sandbox no_new_privs=false"), Ok(None));
        let one = sandbox(
            "--sandbox network=none --sandbox read=/etc --sandbox read=/usr --sandbox private_tmp=2M --sandbox required=false \
             --sandbox system_calls={base=\"service\",deny=[\"chmod\"]} --sandbox execute=[\"/usr\",\"-/lib\"]",
        );
        let one = one.unwrap().unwrap();
        let files = one.files.unwrap();
        assert_eq!((files.read.len(), files.execute.len(), one.required), (2, 3, false));
        assert_eq!((one.private_tmp, &one.system_calls.deny[..]), (Some(2 << 20), &["chmod".to_owned()][..]));
        for flags in [
            "--keepalive={idle=\"60s\",count=5}",
            "--limits cpu_weight=50",
            "--argv0 -sh",
            "--environment-file -/nope",
            "--overload refuse --refuse-message -ERR",
        ] {
            sandbox(flags).unwrap_or_else(|why| panic!("{flags}: {why}"));
        }
        for (flags, complaint) in [
            ("--sandbox off", "\"off\" has no \"=\"\n   help: write NAME=VALUE, or false alone"),
            ("--sandbox network=none --sandbox false", "\"false\" has no \"=\""),
            ("--sandbox networks=none", "did you mean \"network\"?"),
            ("--sandbox network=none --sandbox network=any", "sequence where"),
            (
                "--sandbox required=perhaps",
                "--sandbox: error: string \"perhaps\" where a boolean is expected",
            ),
            ("--sandbox read=[1]", "--sandbox: error: "),
        ] {
            let said = sandbox(flags).unwrap_err();
            assert!(said.contains(complaint), "{flags}: {said}");
        }
    }

    #[test]
    fn a_relative_program_starts_here() {
        let service = parse("127.0.0.1:0 -- src/../Cargo.toml").unwrap_err();
        assert!(service.contains("Cargo.toml: it is not executable"), "{service}");
        let found = parse("127.0.0.1:0 -- ../../../../../../../../bin/cat").unwrap();
        let Job::Exec(program) = &found.services[0].job else { panic!("not a program") };
        assert!(program.path.is_absolute());
        assert_eq!(program.arguments, ["../../../../../../../../bin/cat"]);
    }

    #[test]
    fn names_are_made_valid() {
        assert_eq!(parse("127.0.0.1:0 -- /bin/[").unwrap().services[0].name, "service");
        assert_eq!(config::make_name(".my prog+1"), "my-prog-1");
    }

    #[test]
    fn errors_name_the_argument() {
        assert_eq!(
            parse("127.0.0.1:7 eco --workers many --umask 99 --limits nofile --environment =x").unwrap_err(),
            "HANDLER: error: there is no handler \"eco\"\n   help: the handlers are echo, discard, chargen, daytime, \
             time; a program goes after --, as in: preforkd serve 127.0.0.1:7 -- eco\n\
             --workers: error: string \"many\" where a whole number from 1 to 1024 is expected\n   \
             help: for example: --workers 4\n\
             --umask: error: \"99\" is no file mode mask\n   \
             help: write an octal number up to 777, as in \"022\" or 0o022\n\
             --environment: error: \"\" cannot be a variable\n   \
             help: a name is not empty and has no \"=\"; a value is a string\n\
             --limits: error: \"nofile\" has no \"=\"\n   help: write NAME=VALUE\n"
        );
        assert!(parse("7007 echo").unwrap_err().starts_with("ADDRESS: error: \"7007\" is not an address"));
        assert!(
            parse("127.0.0.1:7 -- no-such-program")
                .unwrap_err()
                .starts_with("PROGRAM: error: there is no program")
        );
    }

    #[test]
    fn a_wrong_command_line_shows_the_usage() {
        for words in
            ["", "127.0.0.1:7", "127.0.0.1:7 echo -- /bin/cat", "127.0.0.1:7 echo --wrong", "127.0.0.1:7 --"]
        {
            let shown = parse(words).unwrap_err();
            assert!(shown.contains("Usage: preforkd serve [OPTIONS] ADDRESS HANDLER"), "{words}: {shown}");
        }
    }
}
