//! preforkd.service, as an administrator sees it.

use std::process::Output;

use serde_json::Value;

use super::{Container, eventually, text};

/// Where most tests' service is.
pub(crate) const PORT: u16 = 7007;

/// An echo service, with a short end.
pub(crate) const ECHO: &str = "[supervisor]\ndrain_timeout = \"5s\"\n\
    [service.echo]\nlisten = \"127.0.0.1:7007\"\nhandler = \"echo\"\nworkers = 2\n";

/// The tests start it more often than a broken service may be.
const OFTEN: &str = "[Unit]\nStartLimitIntervalSec=0\n";

/// Where the package has its drop-ins.
const DROP_INS: &str = "/usr/share/doc/preforkd/drop-ins";

const DROP_IN: &str = "/run/systemd/system/preforkd.service.d/zz-test.conf";
const PROFILES: &str = "/run/systemd/system/preforkd.service.d/50-profile-";
const CONFIG: &str = "/etc/preforkd/preforkd.toml";

impl Container {
    /// Starts the service anew with this configuration.
    #[track_caller]
    pub(crate) fn fresh(&self, config: &str) {
        self.fresh_with(config, "");
    }

    /// The same, with these lines added to the unit.
    #[track_caller]
    pub(crate) fn fresh_with(&self, config: &str, unit: &str) {
        self.clean();
        self.configure(config);
        self.drop_in(unit);
        self.sure("systemctl start preforkd");
    }

    /// Stops the service and forgets what was.
    pub(crate) fn clean(&self) {
        // What an earlier test left may take its time to end, and is not waited for.
        self.run("systemctl kill --signal=QUIT preforkd.service; systemctl stop preforkd.socket preforkd.service 2>&1");
        self.run("systemctl clean --what=fdstore preforkd.service; systemctl reset-failed 2>&1");
        self.run(&format!("rm -f {PROFILES}*"));
        self.drop_in("");
    }

    /// Takes a drop-in of the package, as an administrator does, until the next `clean`.
    #[track_caller]
    pub(crate) fn profile(&self, name: &str) {
        let to = format!("{PROFILES}{name}.conf");
        self.sure(&format!(
            "install -D -m 644 {DROP_INS}/{name}.conf {to} && systemctl daemon-reload || ! ls {DROP_INS}"
        ));
    }

    /// Replaces the lines that are added to the unit.
    pub(crate) fn drop_in(&self, unit: &str) {
        self.write(DROP_IN, &format!("{OFTEN}{unit}"));
        self.sure("systemctl daemon-reload");
    }

    /// Replaces the configuration.
    pub(crate) fn configure(&self, config: &str) {
        self.write(CONFIG, config);
    }

    /// A property of the service.
    pub(crate) fn show(&self, property: &str) -> String {
        self.sure(&format!("systemctl show --property={property} --value preforkd.service"))
            .trim_end()
            .to_owned()
    }

    /// A property of the service that is a number.
    #[track_caller]
    pub(crate) fn number(&self, property: &str) -> u64 {
        let value = self.show(property);
        value.parse().unwrap_or_else(|_| panic!("{property}={value}"))
    }

    /// The supervisor, by the pid that it has inside.
    #[track_caller]
    pub(crate) fn main_pid(&self) -> u64 {
        let pid = self.number("MainPID");
        assert_ne!(pid, 0, "preforkd does not run");
        pid
    }

    /// Waits until the service runs with another supervisor than this.
    #[track_caller]
    pub(crate) fn wait_replaced(&self, pid: u64) {
        eventually("another supervisor serves", || {
            let main = self.number("MainPID");
            main != 0 && main != pid && self.show("ActiveState") == "active"
        });
    }

    /// Sends a process inside a signal.
    #[track_caller]
    pub(crate) fn kill(&self, signal: &str, pid: u64) {
        self.sure(&format!("kill -{signal} {pid}"));
    }

    /// `systemctl reload preforkd`.
    pub(crate) fn reload(&self) -> Output {
        self.run("systemctl reload preforkd")
    }

    /// `preforkd upgrade`, which must succeed.
    #[track_caller]
    pub(crate) fn upgrade(&self) {
        self.sure("preforkd upgrade 2>&1");
    }

    /// `preforkd status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let json = self.sure("preforkd status --json");
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"))
    }

    /// A number in the status of the service with this name.
    #[track_caller]
    pub(crate) fn count(&self, service: &str, name: &str) -> u64 {
        let status = self.status();
        let services = status["services"].as_array().unwrap();
        let found = services.iter().find(|one| one["name"] == service);
        found
            .and_then(|one| one[name].as_u64())
            .unwrap_or_else(|| panic!("no {name} of {service}: {status:#}"))
    }

    /// The workers that accept.
    #[track_caller]
    pub(crate) fn workers(&self) -> Vec<u64> {
        let status = self.status();
        let services = status["services"].as_array().unwrap().iter();
        let workers = services.flat_map(|service| service["workers"].as_array().unwrap());
        let accepting = workers.filter(|worker| worker["state"] == "accepting");
        let mut pids: Vec<u64> = accepting.map(|worker| worker["pid"].as_u64().unwrap()).collect();
        pids.sort_unstable();
        pids
    }

    /// How many processes the service has.
    pub(crate) fn processes(&self) -> usize {
        let group = self.show("ControlGroup");
        self.sure(&format!("cat /sys/fs/cgroup{group}/cgroup.procs")).lines().count()
    }

    /// How many descriptors a process inside has open.
    #[track_caller]
    pub(crate) fn descriptors(&self, pid: u64) -> usize {
        self.sure(&format!("ls /proc/{pid}/fd")).lines().count()
    }

    /// What of the journal these arguments of journalctl choose, once journald has written everything.
    #[track_caller]
    pub(crate) fn journal(&self, arguments: &str) -> Vec<Value> {
        let lines =
            self.sure(&format!("journalctl --sync; journalctl --quiet --no-pager --output=json {arguments}"));
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The messages that this run of the service has logged, those of systemd about it included.
    #[track_caller]
    pub(crate) fn messages(&self) -> String {
        let run = self.show("InvocationID");
        // Of a process that has gone, journald does not know any more whose it was.
        let main = self.show("ExecMainPID");
        self.sure(&format!(
            "journalctl --sync; journalctl --quiet --no-pager --output=cat \
             _SYSTEMD_INVOCATION_ID={run} + INVOCATION_ID={run} + _PID={main}"
        ))
    }
}

/// All that a command said.
pub(crate) fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
