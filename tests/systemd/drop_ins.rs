//! Each drop-in gives what it promises, and the bare unit does not.

use crate::support::Container;
use crate::support::client::{listen_to, served};
use crate::support::service::{ECHO, said};

const DROP_INS: &str = "/usr/share/doc/preforkd/drop-ins";
const UNIT: &str = "/run/systemd/system/preforkd.service.d";

/// What a shell script says when a connection runs it, with these drop-ins and these further keys of its service.
fn script(container: &Container, drop_ins: &[&str], keys: &str, script: &str) -> String {
    let config =
        format!("[service.x]\nlisten = \"127.0.0.1:7007\"\nexec = ['/bin/sh', '-c', '{script}']\n{keys}");
    under(container, drop_ins, &config, || listen_to(7007))
}

/// Runs the service with these drop-ins meanwhile.
fn under<T>(container: &Container, drop_ins: &[&str], config: &str, act: impl FnOnce() -> T) -> T {
    container.clean();
    // A test that failed may have left some.
    container.run(&format!("cd {DROP_INS} && for name in *; do rm -f {UNIT}/$name; done"));
    for name in drop_ins {
        container.sure(&format!("cp {DROP_INS}/{name}.conf {UNIT}/"));
    }
    container.fresh(config);
    let result = act();
    container.clean();
    for name in drop_ins {
        container.sure(&format!("rm {UNIT}/{name}.conf; systemctl daemon-reload"));
    }
    result
}

pub(crate) fn the_bare_unit_runs_plain_programs(container: &Container) {
    let answer = script(
        container,
        &[],
        "limits = { nofile = 64, as = \"256M\" }\n",
        "id -un; ulimit -n; echo a >/tmp/a && cat /tmp/a; touch /var/x 2>/dev/null || echo read-only; ls /home | wc -l",
    );
    assert_eq!(answer, "preforkd\n64\na\nread-only\n0\n");
    container.configure("[service.x]\nlisten = \"127.0.0.1:7007\"\nhandler = \"echo\"\nuser = \"nobody\"\n");
    assert!(!container.run("systemctl start preforkd").status.success(), "it became another user");
}

pub(crate) fn programs_see_proc_and_may_be_nice(container: &Container) {
    let answer = script(
        container,
        &["programs"],
        "nice = 5\n",
        "test -e /proc/meminfo && echo meminfo; test -d /proc/1 && echo 1; nice; echo a >/var/tmp/a && echo written",
    );
    assert_eq!(answer, "meminfo\n1\n5\nwritten\n");
}

pub(crate) fn root_becomes_users(container: &Container) {
    container.sure(
        "mkdir -p /srv/jail/bin && cp -L /bin/sh /srv/jail/bin/ && ldd /bin/sh | grep -o '/[^ ]*' | \
        while read -r lib; do mkdir -p /srv/jail$(dirname $lib); cp -L $lib /srv/jail$lib; done",
    );
    let answer = script(
        container,
        &["root"],
        "user = \"nobody\"\n",
        "id -un; id -Gn; grep NoNewPrivs /proc/self/status",
    );
    assert_eq!(answer, "nobody\nnogroup\nNoNewPrivs:\t1\n");
    let answer = script(container, &["root"], "chroot = \"/srv/jail\"\nuser = \"nobody\"\n", "echo /*");
    assert!(answer.starts_with("/bin ") && !answer.contains("usr/sbin"), "{answer}");
    let low = ECHO.replace("7007", "7");
    under(container, &["root"], &low, || {
        served(7, 2);
        // A supervisor that is root ends what is not.
        assert!(container.reload().status.success());
        container.upgrade();
    });
    container.sure("rm -r /srv/jail");
}

pub(crate) fn setuid_programs_work(container: &Container) {
    container.sure("install -m 4755 /usr/bin/id /usr/local/bin/suid-id");
    let without = script(container, &["root"], "user = \"nobody\"\n", "/usr/local/bin/suid-id -u");
    let with =
        script(container, &["root", "setuid-programs"], "user = \"nobody\"\n", "/usr/local/bin/suid-id -u");
    container.sure("rm /usr/local/bin/suid-id");
    assert_eq!((without.as_str(), with.as_str()), ("65534\n", "0\n"));
}

pub(crate) fn home_directories_can_be_read(container: &Container) {
    container.sure("mkdir -p /home/x && echo mine >/home/x/file");
    let look = "cat /home/x/file 2>/dev/null || echo none; touch /home/x/new 2>/dev/null || echo read-only";
    assert_eq!(script(container, &[], "", look), "none\nread-only\n");
    assert_eq!(script(container, &["home-directories"], "", look), "mine\nread-only\n");
    container.sure("rm -r /home/x");
}

pub(crate) fn low_ports_are_open_to_whoever_asks(container: &Container) {
    let low = ECHO.replace("7007", "7");
    container.clean();
    container.configure(&low);
    let output = container.run("systemctl start preforkd; journalctl -u preforkd -n 5 --no-pager");
    assert!(said(&output).contains("127.0.0.1:7"), "{}", said(&output));
    under(container, &["ports-below-1024"], &low, || served(7, 2));
}

pub(crate) fn a_socket_activated_service_has_no_network(container: &Container) {
    container.sure("systemctl stop preforkd.socket");
    let look = "tail -n +3 /proc/self/net/dev | wc -l; id -un; getent hosts localhost >/dev/null; \
                (exec 3<>/dev/tcp/127.0.0.1/7007) 2>/dev/null || echo shut";
    let config = format!("[service.x]\nlisten = \"fd:echo\"\nexec = ['/bin/bash', '-c', '{look}']\n");
    let answer = under(container, &["socket-activated"], &config, || listen_to(7007));
    container.sure("systemctl stop preforkd.socket");
    assert_eq!(answer, "1\npreforkd\nshut\n");
}

pub(crate) fn sshd_has_everything(container: &Container) {
    let answer = script(
        container,
        &["sshd"],
        "",
        "id -un; grep -E \"CapBnd|NoNewPrivs|Seccomp:\" /proc/self/status; test -d /run/sshd && echo dir; umask",
    );
    // The container itself has a filter.
    let pid_1 = container.sure("grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/1/status");
    assert_eq!(answer, format!("root\n{pid_1}dir\n0022\n"));
}
