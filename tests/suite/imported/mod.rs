//! `preforkd import`: real files of others, and what becomes of what they say.

mod hostile;
mod real;
mod served;

use std::path::Path;
use std::process::Output;

use crate::support::{preforkd, text, write};

/// Whether this version has `wait = true` and `udp:`. Until it has, what is printed of them is not given to `check`.
const HAS_WAIT: bool = true;

/// A directory with files of these names.
fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, content);
    }
    directory
}

/// What is said of a file of this directory.
fn import(directory: &Path, arguments: &[&str], file: &str) -> Output {
    let path = directory.join(file);
    let root = ["--root", directory.to_str().unwrap()];
    preforkd(&[&["import"], arguments, &root, &[path.to_str().unwrap()]].concat())
}

/// What is printed of one file, and what is complained of.
fn imported(name: &str, content: &str) -> (String, String, Option<i32>) {
    let directory = files(&[(name, content)]);
    let output = import(directory.path(), &[], name);
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

/// The sections of services that are not commented out.
fn sections(printed: &str) -> Vec<String> {
    let starts = printed.split("\n[service.").skip(1);
    starts.map(|section| format!("[service.{section}").split("\n\n").next().unwrap().to_owned()).collect()
}

/// What of it `check` can be asked about.
fn checkable(printed: &str) -> String {
    let sections = sections(printed).into_iter();
    let known = sections.filter(|section| HAS_WAIT || !section.contains("\nwait = true"));
    known.map(|section| section + "\n\n").collect()
}

/// Complaints of `check` about anything but this machine, which need not have the programs and users of others.
fn faults(printed: &str) -> Vec<String> {
    let config = checkable(printed);
    if config.is_empty() {
        return Vec::new();
    }
    let directory = files(&[("p.toml", &config)]);
    let path = directory.path().join("p.toml");
    let output = preforkd(&["check", "--config", path.to_str().unwrap()]);
    let complaints = text(&output.stderr);
    let about_machine = [
        "is no user of this machine",
        "is no group of this machine",
        "there is no ",
        "cannot be found",
        "does not exist",
        "is not in PATH",
    ];
    let is_ours =
        |line: &&str| line.contains(": error: ") && !about_machine.iter().any(|about| line.contains(about));
    complaints.lines().filter(is_ours).map(str::to_owned).collect()
}

/// `ls -l /etc/systemd/system` of a machine where some services are a socat or a tcpserver.
#[test]
fn a_directory_of_units_has_the_servers_that_are_started_by_themselves() {
    let forward = "[Service]\nEnvironmentFile=-/etc/default/forward-%i\nUser=nobody\n\
                   ExecStart=/usr/bin/socat TCP4-LISTEN:%i,fork,reuseaddr TCP4:127.0.0.1:${TO}\n";
    let directory = files(&[
        ("system/forward@.service", forward),
        ("system/forward@.service.d/nice.conf", "[Service]\nNice=5\n"),
        ("etc/default/forward-9001", "TO=22\n"),
        ("etc/default/forward-9002", "TO=80\n"),
        ("system/cat.service", "[Service]\nExecStart=/bin/sh -c 'exec tcpserver -u games 0 9003 /bin/cat'\n"),
        ("system/ssh.service", "[Service]\nExecStart=/usr/sbin/sshd -D\n"),
        ("system/who.socket", "[Socket]\nListenStream=9004\nAccept=yes\n"),
        ("system/who@.service", "[Service]\nExecStart=/bin/who\nStandardInput=socket\n"),
    ]);
    let at = |name: &str| directory.path().join("system").join(name);
    let whole = import(directory.path(), &[], "system");
    // Until they are enabled, nobody knows of which ports there are instances.
    assert_eq!(whole.status.code(), Some(78), "{}", text(&whole.stderr));
    assert!(text(&whole.stderr).contains("multi-user.target.wants/NAME@INSTANCE.service"));
    std::fs::create_dir(at("multi-user.target.wants")).unwrap();
    // systemctl makes absolute ones, which lead to nowhere here.
    for (port, to) in [("9001", "../forward@.service"), ("9002", "/etc/systemd/system/forward@.service")] {
        let link = at("multi-user.target.wants").join(format!("forward@{port}.service"));
        std::os::unix::fs::symlink(to, link).unwrap();
    }
    std::fs::create_dir(at("graphical.target.wants")).unwrap();
    std::os::unix::fs::symlink("../forward@.service", at("graphical.target.wants/forward@9001.service"))
        .unwrap();
    let whole = import(directory.path(), &[], "system");
    let printed = text(&whole.stdout);
    assert_eq!(whole.status.code(), Some(0), "{printed}{}", text(&whole.stderr));
    let names: Vec<String> =
        sections(&printed).iter().map(|section| section.lines().next().unwrap().to_owned()).collect();
    assert_eq!(names, ["[service.who]", "[service.cat]", "[service.forward-9001]", "[service.forward-9002]"]);
    for (port, to) in [("9001", 22), ("9002", 80)] {
        let one =
            import(directory.path(), &[], &format!("system/multi-user.target.wants/forward@{port}.service"));
        for said in [text(&one.stdout), printed.clone()] {
            let sections = sections(&said);
            let section =
                sections.iter().find(|section| section.contains(&format!("forward-{port}]"))).unwrap();
            for line in [
                format!("listen = [\"0.0.0.0:{port}\"]"),
                format!("exec = [\"/usr/bin/socat\", \"STDIO\", \"TCP4:127.0.0.1:{to}\"]"),
                "user = \"nobody\"".to_owned(),
                "nice = 5".to_owned(),
                format!("environment_file = [\"-/etc/default/forward-{port}\"]"),
            ] {
                assert!(section.contains(&line), "{line}: {section}");
            }
        }
    }
    assert_eq!(faults(&printed), [""; 0]);
    let other = import(directory.path(), &[], "system/ssh.service");
    assert_eq!(other.status.code(), Some(64));
    assert!(text(&other.stderr).contains("name the .socket unit"), "{}", text(&other.stderr));
}
