//! The recipes of preforkd.cookbook(7), each done as the page says: its files, its commands, and the answers that it shows.
//!
//! They run on a stage as the services of moved.rs, so no port or path has to be another. cookbook/kitchen has what stands for
//! systemd and docker there. Instances of a template need real systemd: tests/systemd/cookbook.rs.

use std::fmt::Write;
use std::path::Path;

use crate::support::page::{Step, answers, sections};
use crate::support::{BINARY, root, text, write};

const PAGE: &str = "preforkd.cookbook.7.scd";

/// For the shell, which takes it as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Does what the section says; `installed` is what the scripts of its Debian package do, or what stands for it.
fn cook(section: &str, users: &str, installed: &str) {
    if !root(section) {
        return;
    }
    let Some(packages) = super::moved::packages(section) else { return };
    let recipes = sections(PAGE);
    let (_, steps) = recipes.iter().find(|(heading, _)| heading == section).unwrap();
    let mut script = String::new();
    for step in steps {
        match step {
            Step::File { path, text } => {
                writeln!(script, "file {path} <<'END OF FILE'\n{text}END OF FILE").unwrap();
            }
            Step::Command { is_root, command, .. } => {
                let who = if *is_root { "root" } else { "client" };
                writeln!(script, "{who} {}", quoted(command)).unwrap();
            }
        }
    }
    let dir = tempfile::Builder::new().prefix("preforkd-test-").tempdir().unwrap();
    let examples = std::env::current_exe().unwrap().parent().unwrap().join("../examples");
    let installed = installed.replace("EXAMPLES", examples.to_str().unwrap());
    for (name, content) in [("users", users), ("installed", &*installed), ("steps", &*script)] {
        write(&dir.path().join(name), content);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (kitchen, config) =
        (source.join("tests/suite/cookbook/kitchen"), source.join("config/preforkd.toml"));
    let output = super::moved::on_stage(&[&kitchen, &packages, Path::new(BINARY), dir.path(), &config]);
    let (said, log) = (text(&output.stdout), text(&output.stderr));
    let mut said = said.split('\x1e').skip(1);
    for step in steps {
        if let Step::Command { command, answer, .. } = step {
            let said = said.next().unwrap_or_else(|| panic!("{command}: was not reached\n{log}"));
            assert!(answers(said, answer), "{command}\n--- the page:\n{answer}--- here:\n{said}---\n{log}");
        }
    }
    assert!(output.status.success(), "{}\n{log}", output.status);
}

/// One test a recipe, and one that finds recipes without.
macro_rules! recipes {
    ($($name:ident, $section:literal, $users:literal, $installed:literal;)+) => {
        $(#[test] fn $name() { cook($section, $users, $installed); })+

        #[test]
        fn every_recipe_is_tested() {
            let headings: Vec<String> = sections(PAGE).into_iter().map(|(heading, _)| heading).collect();
            assert_eq!(headings, [$($section,)+ "MANY INSTANCES"]);
        }
    };
}

recipes! {
    git, "GIT", "", "";
    rsync, "RSYNC", "", "";
    // Without PAM: the machine under it is a container, maybe.
    ssh, "SSH", "sshd", r#"
        rm -f /etc/ssh/ssh_host_*
        ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
        sed 's/^UsePAM yes/UsePAM no/' /usr/share/openssh/sshd_config >/etc/ssh/sshd_config
        install -d -o alice -g alice -m 700 /home/alice/.ssh
        cd /home/alice/.ssh
        ssh-keygen -q -t ed25519 -N '' -f id_ed25519
        cp id_ed25519.pub authorized_keys
        echo "server $(cat /etc/ssh/ssh_host_ed25519_key.pub)" >known_hosts
        chown alice:alice *
        cd /root
    "#;
    tftp, "TFTP", "tftp", "";
    shell_script, "SHELL SCRIPT", "", "";
    python_script, "PYTHON SCRIPT", "", "";
    files_over_http, "FILES OVER HTTP", "", "";
    unix_socket, "UNIX SOCKET", "", "";
    http_responder, "HTTP RESPONDER", "", "";
    finger, "FINGER", "", "";
    ctf, "CTF", "", "";
    // Debian 12 has no agent of Checkmk.
    checkmk, "CHECKMK", "", r#"
        printf '#!/bin/sh\necho "<<<check_mk>>>"\necho "AgentOS: linux"\n' >/usr/bin/check_mk_agent
        chmod 755 /usr/bin/check_mk_agent
    "#;
    nrpe, "NRPE", "nagios", "";
    rust_handler, "RUST HANDLER", "", r#"
        touch /usr/local/bin/hello
        mount --bind EXAMPLES/hello /usr/local/bin/hello
    "#;
    behind_haproxy, "BEHIND HAPROXY", "", "";
    in_a_container, "IN A CONTAINER", "", "";
}

#[test]
fn what_is_not_the_answer_is_found() {
    assert!(answers("a\nb\nc\n", "a\n...\nc\n") && answers("pid 17 runs\n", "pid ... runs\n"));
    assert!(answers("", "") && answers("a b", "...b") && answers("into...\n", "into...\n"));
    for (said, shown) in
        [("a\n", "b\n"), ("a\nb\n", "a\n"), ("a\n", "a\nb\n"), ("a b c", "a...d...c"), ("a", "")]
    {
        assert!(!answers(said, shown), "{said} {shown}");
    }
}
