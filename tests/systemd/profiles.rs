//! The drop-ins: with each of them, the service serves what it is for, and has been given no more than it says.

use std::io::{Read, Write};

use crate::support::client::{connect, echo, listen_to, served};
use crate::support::service::{ECHO, PORT};
use crate::support::{Container, eventually, say};

/// Starts the service with these drop-ins and, in place of the handler, these keys.
#[track_caller]
fn start(container: &Container, profiles: &[&str], keys: &str) {
    container.clean();
    profiles.iter().for_each(|profile| container.profile(profile));
    container.configure(&ECHO.replace("handler = \"echo\"", keys));
    container.sure("systemctl start preforkd");
}

/// How many of sleep(1) there are; the container has no pgrep(1).
fn sleeping(container: &Container) -> usize {
    container
        .sure("cat /proc/[0-9]*/comm 2>/dev/null || true")
        .lines()
        .filter(|name| *name == "sleep")
        .count()
}

/// The key for a shell script.
fn script(script: &str) -> String {
    format!(
        "exec = ['/bin/sh', '-c', '{script}']\nenvironment = {{ PATH = \"/usr/local/bin:/usr/bin:/bin\" }}"
    )
}

/// With preforkd.socket as it is shipped.
pub(crate) fn socket_activated_serves_without_a_network(container: &Container) {
    container.clean();
    container.profile("socket-activated");
    container.configure(&ECHO.replace("127.0.0.1:7007", "fd:echo"));
    container.sure("systemctl start preforkd");
    // The drop-in has brought the socket with it.
    for _ in 0..2 {
        let mut connections = served(PORT, 8);
        container.sure("systemctl reload preforkd");
        connections.iter_mut().for_each(echo);
        drop(connections);
        container.sure("systemctl restart preforkd");
    }
    let main = container.main_pid();
    let networks = container.sure(&format!("readlink /proc/1/ns/net /proc/{main}/ns/net | uniq | wc -l"));
    assert_eq!(networks.trim(), "2", "preforkd has a network");

    let program =
        script("echo a datagram >/dev/udp/127.0.0.1/9 || echo nothing goes out").replace("/sh", "/bash");
    container.configure(&ECHO.replace("127.0.0.1:7007", "fd:echo").replace("handler = \"echo\"", &program));
    container.sure("systemctl reload preforkd");
    assert_eq!(listen_to(PORT), "nothing goes out\n");
    container.clean();
}

pub(crate) fn programs_get_what_they_want(container: &Container) {
    start(container, &["programs"], "exec = ['cat']\nnice = 5");
    let mut connections = served(PORT, 8);
    connections.iter_mut().for_each(echo);
    drop(connections);
    // `nice`, /proc as a whole, and a file system that can be written to where preforkd has the right.
    let wish = "id -un; nice; test -r /proc/loadavg && echo proc; echo >/var/tmp/x && echo written";
    start(container, &["programs"], &format!("{}\nnice = 5", script(wish)));
    assert_eq!(listen_to(PORT), "preforkd\n5\nproc\nwritten\n");
    container.clean();
}

/// Under the unit as it is, and with what programs and namespaces get: nothing of it keeps a program from being warm. After a reload,
/// an upgrade and a restart, too.
pub(crate) fn programs_are_warm_under_the_unit(container: &Container) {
    let warm = |number: u64| {
        eventually("warm programs", || container.status()["services"][0]["warm"] == number);
    };
    let told = "read line; echo $line; id -un";
    for (profiles, user) in [
        (&[][..], ""),
        (&["programs"], ""),
        (&["cgroups", "sandbox-namespaces"], "sandbox = { private_tmp = true, pid_namespace = true }"),
        (&["root"], "user = 'nobody'"),
    ] {
        let points = if profiles.is_empty() { &["start", "spare"][..] } else { &["spare"] };
        for point in points {
            start(container, profiles, &format!("{}\nspare = 2\nwarm = '{point}'\n{user}", script(told)));
            let name = if profiles == ["root"] { "nobody" } else { "preforkd" };
            let call = || {
                warm(2);
                let mut client = connect(PORT);
                client.write_all(b"hello\n").unwrap();
                let mut said = String::new();
                client.read_to_string(&mut said).unwrap();
                assert_eq!(said, format!("hello\n{name}\n"), "{profiles:?} {point}");
            };
            call();
            container.upgrade();
            call();
            container.sure("systemctl restart preforkd");
            call();
            eventually("its end", || container.status()["services"][0]["completed"] == 1);
            assert_eq!(container.status()["services"][0]["served_warm"], 1, "{profiles:?} {point}");
        }
    }
    container.clean();
}

/// A secret that only root can read reaches the programs of the service that names it, as the unit is and as root.
pub(crate) fn credentials_reach_who_names_them(container: &Container) {
    let names = "credentials = 'secret'";
    let tell = script(
        "id -un; ls -l $CREDENTIALS_DIRECTORY | tail -n +2 | cut -c 1-10; cat $CREDENTIALS_DIRECTORY/secret; \
         echo x 2>/dev/null >$CREDENTIALS_DIRECTORY/other || echo kept",
    );
    container.clean();
    container.write("/srv/secret", "of this service\n");
    container.sure("chmod 600 /srv/secret");
    for (profiles, user, said) in [
        (&[][..], "", "preforkd\n-r--------\nof this service\n"),
        (&["root"], "user = 'nobody'", "nobody\n-r--r-----\nof this service\nkept\n"),
    ] {
        container.clean();
        container.drop_in("[Service]\nLoadCredential=secret:/srv/secret\n");
        profiles.iter().for_each(|profile| container.profile(profile));
        container.configure(&ECHO.replace("handler = \"echo\"", &format!("{tell}\n{user}\n{names}")));
        container.sure("systemctl start preforkd");
        for _ in 0..2 {
            assert_eq!(listen_to(PORT), said);
            container.sure("systemctl restart preforkd");
        }
        // Another service, and nobody.
        let other = script("echo ${CREDENTIALS_DIRECTORY-none}");
        container.configure(&ECHO.replace("handler = \"echo\"", &format!("{other}\n{user}")));
        container.sure("systemctl reload preforkd");
        assert_eq!(listen_to(PORT), "none\n");
        assert_eq!(container.sure("find /run/preforkd/credentials -type f"), "");
    }
    container.clean();
    container.sure("rm /srv/secret");
}

pub(crate) fn root_runs_programs_as_others(container: &Container) {
    let look = "id -un; id -gn; nice; ulimit -n; ulimit -t; pwd; \
                grep -c -e ^CapPrm:.0*$ -e ^CapEff:.0*$ -e ^CapInh:.0*$ -e ^CapAmb:.0*$ /proc/self/status";
    let keys = "user = 'nobody'\nnice = 7\nlimits = { nofile = 64, cpu = '9s' }\nworking_directory = '/srv/of-nobody'";
    container.sure("install -d -m 700 -o nobody /srv/of-nobody");
    start(container, &["root"], &format!("{}\n{keys}", script(look)));
    // The last are the sets of capabilities, all empty.
    assert_eq!(listen_to(PORT), "nobody\nnogroup\n7\n64\n9\n/srv/of-nobody\n4\n");

    start(container, &["root"], "handler = 'echo'\nuser = 'nobody'\nchroot = '/srv/of-nobody'");
    served(PORT, 1);
    container.clean();
    container.sure("rm -r /srv/of-nobody");
}

/// As the unit's own user, and as root with the right that the drop-in names.
pub(crate) fn sandboxes_have_namespaces(container: &Container) {
    let look = "ls -A /tmp /var/tmp | tr -d \"\\n\"; echo; cat /proc/self/net/dev | grep -c :; echo $$ $PPID; \
                (setsid sleep 1000 >/dev/null 2>&1 &); unshare -n true 2>/dev/null || echo kept; \
                grep -c -e ^CapPrm:.0*$ -e ^CapEff:.0*$ -e ^CapInh:.0*$ -e ^CapAmb:.0*$ /proc/self/status; id -un";
    let all = "sandbox = { private_tmp = true, network_namespace = true, pid_namespace = true }";
    container.write("/var/tmp/outside", "");
    let refused = |keys: &str| {
        container.configure(&ECHO.replace("handler = \"echo\"", keys));
        container.run("systemctl start preforkd");
        let said = container.sure("journalctl --no-pager -u preforkd -b");
        assert!(said.contains("sandbox-namespaces.conf in preforkd.systemd(7)"), "{said}");
        container.run("systemctl stop preforkd");
    };
    container.clean();
    refused(&format!("{}\n{all}", script(look)));
    container.profile("root");
    container.profile("sandbox-namespaces");
    refused(&format!("{}\nuser = 'nobody'\n{all}", script(look)));

    for (profiles, drop_in, user, name) in [
        (&["sandbox-namespaces"][..], "", "", "preforkd"),
        (
            &["root", "sandbox-namespaces"],
            "[Service]\nCapabilityBoundingSet=CAP_SYS_ADMIN\n",
            "user = 'nobody'",
            "nobody",
        ),
    ] {
        container.clean();
        profiles.iter().for_each(|profile| container.profile(profile));
        if !drop_in.is_empty() {
            container.drop_in(drop_in);
        }
        container.configure(&ECHO.replace("handler = \"echo\"", &format!("{}\n{user}\n{all}", script(look))));
        container.sure("systemctl start preforkd");
        assert_eq!(listen_to(PORT), format!("/tmp:/var/tmp:\n1\n2 1\nkept\n4\n{name}\n"), "{profiles:?}");
        let table = container.sure("systemd-analyze security --no-pager preforkd.service");
        let exposure = table.lines().find(|line| line.contains("Overall exposure level")).unwrap();
        say(&format!("     systemd {}: {profiles:?}: {}", container.systemd(), exposure.trim()));
        container.sure("systemctl restart preforkd");
        assert_eq!(sleeping(container), 0, "something is left");
    }
    container.clean();
    container.sure("rm /var/tmp/outside");
}

/// Where systemd delegates: what has left its session ends with its connection, and a limit that no controller is there for is refused.
pub(crate) fn cgroups_end_all_of_a_connection(container: &Container) {
    // It is heard of when it has left the group.
    let job = script(
        "sed -n s/^0:://p /proc/self/cgroup; \
         (setsid sh -c \"echo; exec sleep 1000 </dev/null >/dev/null 2>&1\" &) | read x",
    );
    let sleeps = || sleeping(container);
    // Without, it goes on; with a unit that delegates and forbids clone3(2), too, and the log says why.
    for unit in ["", "[Service]\nDelegate=yes\nProtectControlGroups=no\n"] {
        container.clean();
        container.configure(&ECHO.replace("handler = \"echo\"", &job));
        container.drop_in(unit);
        container.sure("systemctl start preforkd");
        assert!(listen_to(PORT).ends_with("/preforkd.service\n"));
        assert_eq!(sleeps(), 1, "{unit}");
        assert_eq!(container.messages().contains("RestrictNamespaces=no"), !unit.is_empty());
    }
    for (profiles, user) in [(&["cgroups"][..], ""), (&["cgroups", "root"], "user = 'nobody'")] {
        start(container, profiles, &format!("{job}\n{user}"));
        for _ in 0..3 {
            let place = listen_to(PORT);
            assert!(place.contains("/preforkd.service/service-echo/"), "{place}");
            eventually("it has ended with its connection", || sleeps() == 0);
        }
        let sandbox = container.status()["services"][0]["sandbox"].to_string();
        assert!(sandbox.contains("cgroups cannot be changed"), "{sandbox}");
        container.sure("systemctl reload preforkd");
        container.upgrade();
        listen_to(PORT);
        eventually("it has ended with its connection", || sleeps() == 0);
        // The next supervisor finds the cgroup as it is to be, whatever became of the last.
        for command in ["systemctl restart preforkd", "systemctl kill --signal=KILL preforkd"] {
            let pid = container.main_pid();
            container.sure(command);
            container.wait_replaced(pid);
            assert!(listen_to(PORT).contains("/service-echo/"), "{command}");
        }
        // This container has no controllers.
        let limited = format!("{job}\n{user}\nlimits = {{ tasks = 20 }}");
        container.configure(&ECHO.replace("handler = \"echo\"", &limited));
        let refused = container.reload();
        let controllers = container.sure("cat /sys/fs/cgroup/cgroup.controllers");
        match controllers.contains("pids") {
            true => assert!(refused.status.success()),
            false => {
                say(
                    "     cgroups: this container has no controllers; limits are tested by tests/kernels/run",
                );
                assert!(!refused.status.success() && container.messages().contains("no controller \"pids\""));
            }
        }
        container.sure("systemctl stop preforkd");
    }
    container.clean();
}

pub(crate) fn ports_below_1024_can_be_listened_at(container: &Container) {
    container.clean();
    container.profile("ports-below-1024");
    container.configure(&ECHO.replace(":7007", ":7"));
    container.sure("systemctl start preforkd");
    echo(&mut connect(7));
    // A new port is bound by the running supervisor.
    container.configure(&ECHO.replace("\"127.0.0.1:7007\"", "[\"127.0.0.1:7\", \"127.0.0.1:9\"]"));
    container.sure("systemctl reload preforkd");
    echo(&mut connect(9));
    let owner = container.sure(&format!("stat --format=%U /proc/{}", container.main_pid()));
    assert_eq!(owner, "preforkd\n");
    container.clean();
}

pub(crate) fn home_directories_can_be_read(container: &Container) {
    container.sure("install -d /home/test && echo hello >/home/test/file");
    start(
        container,
        &["home-directories"],
        &script("cat /home/test/file; echo >/home/test/file || echo kept"),
    );
    assert_eq!(listen_to(PORT), "hello\nkept\n");
    container.clean();
    container.sure("rm -r /home/test");
}

pub(crate) fn setuid_programs_become_another_user(container: &Container) {
    container.sure("install -m 4755 /usr/bin/id /usr/local/bin/setuid-id");
    let keys =
        format!("{}\nuser = 'nobody'\nsandbox = {{ no_new_privs = false }}", script("id -un; setuid-id -un"));
    start(container, &["root", "setuid-programs"], &keys);
    assert_eq!(listen_to(PORT), "nobody\nroot\n");
    start(container, &["root"], &keys);
    assert_eq!(listen_to(PORT), "nobody\nnobody\n", "with root.conf alone");
    container.clean();
    container.sure("rm /usr/local/bin/setuid-id");
}

pub(crate) fn sshd_gives_the_whole_machine(container: &Container) {
    let session = "id -un; echo >/usr/written && rm /usr/written && unshare --mount mount -t tmpfs none /mnt && echo all";
    start(container, &["sshd"], &format!("{}\nsandbox = false", script(session)));
    assert_eq!(listen_to(PORT), "root\nall\n");
    container.clean();
}
