//! A service, the clients that it has, and what can happen to both.

use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::signal::Signal;

use super::client::{Client, Outcome};
use super::random::Random;
use super::settings::{Kind, Settings};
use crate::support::proc::{self, Process};
use crate::support::{Preforkd, Running, address, eventually, run, text};

/// How many processes its user may have, so that a step can leave him fewer.
const PROCESSES: u32 = 10_000;

pub(super) struct World {
    pub(super) service: SocketAddr,
    pub(super) settings: Settings,
    pub(super) random: Random,
    /// Clients that have had an answer, and were not hurt since.
    pub(super) served: Vec<Client>,
    /// Clients of which nobody knows yet.
    pub(super) waiting: Vec<Client>,
    /// Who is stopped; a spare when that happened.
    stopped: Vec<i32>,
    /// How many clients may have been hurt by what was killed.
    hurt: usize,
    /// The sources of clients that have gone since the counts were last right; their processes may be there still.
    gone: Vec<Ipv4Addr>,
    /// The settings are the same since the counts were last right.
    unchanged: bool,
    /// The server belongs to a user of whose processes this test may take some away.
    has_user: bool,
    /// The last to be dropped: it ends when its clients have gone.
    pub(super) server: Running,
}

impl World {
    pub(super) fn new(kind: Kind, random: Random, user: Option<u32>) -> Self {
        let (service, settings) = (address::fresh(), Settings::first(kind));
        let mut server = Preforkd::run(&settings.config(service));
        if let Some(user) = user {
            server = server.by_user(user, PROCESSES);
        }
        Self {
            server: server.start(),
            service,
            settings,
            random,
            served: Vec::new(),
            waiting: Vec::new(),
            stopped: Vec::new(),
            hurt: 0,
            gone: Vec::new(),
            unchanged: true,
            has_user: user.is_some(),
        }
    }

    /// Does one thing; returns what.
    pub(super) fn step(&mut self) -> String {
        match self.random.below(100) {
            0..38 => self.call(),
            38..42 => self.call_at_once(),
            42..54 => self.leave(drop, "close"),
            54..60 => self.leave(Client::reset, "reset"),
            60..66 => self.finish(),
            66..72 => self.echo(),
            72..79 => self.kill_some_process(),
            79..84 => self.kill_a_worker(),
            84..88 => self.stop_a_spare(),
            88..90 => self.go_on(),
            90..95 => self.reload(),
            95..97 => self.upgrade(),
            97..99 if self.has_user => self.starve(),
            _ => self.kill_all_spares(),
        }
    }

    fn source(&mut self) -> Ipv4Addr {
        // Two of each have a /24 in common, all of them a /16, and some a /31.
        let [third, fourth] = [self.random.below(2), self.random.below(3)].map(|n| u8::try_from(n).unwrap());
        Ipv4Addr::new(127, 81, third, fourth + 2)
    }

    fn call(&mut self) -> String {
        let source = self.source();
        self.settle();
        let mut client = Client::call(source, self.service);
        if self.served.len() + self.waiting.len() + self.stopped.len() >= self.settings.limit {
            self.waiting.push(client);
            return format!("a call from {source} while the service may be full");
        }
        let outcome = client.answer();
        assert_ne!(outcome, Outcome::Waits, "nobody has answered {client:?} though there was room");
        self.take(client, outcome);
        format!("a call from {source}: {outcome:?}")
    }

    /// Several at once, so that they meet in several workers and spares.
    fn call_at_once(&mut self) -> String {
        let (source, number) = (self.source(), 2 + self.random.below(5));
        self.waiting.extend((0..number).map(|_| Client::call(source, self.service)));
        format!("{number} calls at once from {source}")
    }

    /// Sees what has become of those who wait, and who was hurt.
    pub(super) fn settle(&mut self) {
        for client in std::mem::take(&mut self.served) {
            if client.lives() {
                self.served.push(client);
            } else {
                self.hurt(&client);
            }
        }
        let mut closed = Vec::new();
        for mut client in std::mem::take(&mut self.waiting) {
            match client.look() {
                Outcome::Waits => self.waiting.push(client),
                Outcome::Served => self.take(client, Outcome::Served),
                Outcome::Closed => closed.push(client),
            }
        }
        self.refused(&closed);
    }

    fn hurt(&mut self, client: &Client) {
        assert!(self.hurt > 0, "{client:?} was closed, and nothing had been killed");
        self.hurt -= 1;
        self.gone.push(client.source);
    }

    fn take(&mut self, client: Client, outcome: Outcome) {
        if outcome != Outcome::Served {
            return self.refused(&[client]);
        }
        let source = client.source;
        self.served.push(client);
        let (all, its) = (self.living(|_| true), self.living_of(source));
        if self.unchanged {
            assert!(its <= self.settings.per_source.unwrap_or(its), "{its} of {source} are served");
            assert!(all <= self.settings.limit, "{all} are served");
        }
    }

    /// These were closed without an answer: others of their source are, were, or were about to be served.
    fn refused(&mut self, clients: &[Client]) {
        self.gone.extend(clients.iter().map(|client| client.source));
        for client in clients.iter().filter(|_| self.unchanged).collect::<Vec<_>>() {
            let key = self.settings.source_of(client.source);
            // Who was served may have been killed since.
            let others = self.served.iter().chain(&self.waiting).map(|client| client.source);
            let all = others.chain(self.gone.iter().copied());
            let its = all.filter(|address| self.settings.source_of(*address) == key).count() - 1;
            if self.settings.per_source.is_none_or(|limit| its < limit) {
                self.hurt(client);
            }
        }
    }

    fn living(&self, which: impl Fn(&Client) -> bool) -> usize {
        self.served.iter().filter(|client| which(client) && client.lives()).count()
    }

    /// How many clients of the source of this address are served.
    pub(super) fn living_of(&self, source: Ipv4Addr) -> usize {
        let key = self.settings.source_of(source);
        self.living(|client| self.settings.source_of(client.source) == key)
    }

    fn leave(&mut self, how: impl Fn(Client), what: &str) -> String {
        // One who was not served yet may leave too, but not before it was let in or refused it is over.
        if !self.waiting.is_empty() && self.random.once_in(3) {
            let client = self.waiting.swap_remove(self.random.below(self.waiting.len()));
            self.gone.push(client.source);
            return format!("close {:?}, which waits", client.source);
        }
        if self.served.is_empty() {
            return "nobody to leave".to_owned();
        }
        let client = self.served.swap_remove(self.random.below(self.served.len()));
        let source = client.source;
        self.gone.push(source);
        how(client);
        format!("{what} one from {source}")
    }

    fn finish(&mut self) -> String {
        // Who was stopped may have been called just before.
        self.go_on();
        self.leave(Client::finish, "half-close and finish")
    }

    fn echo(&mut self) -> String {
        // Who was stopped may have been called just before.
        if self.served.is_empty() || !self.stopped.is_empty() {
            return "nobody to echo".to_owned();
        }
        let index = self.random.below(self.served.len());
        if !self.served[index].echoes() {
            let client = self.served.swap_remove(index);
            self.hurt(&client);
        }
        "echo".to_owned()
    }

    fn kill_some_process(&mut self) -> String {
        let processes = self.server.connections();
        let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        let Some(pid) = self.random.pick(&pids) else { return "no process to kill".to_owned() };
        self.kill(pid);
        format!("kill {pid}, a connection process or spare")
    }

    fn kill(&mut self, pid: i32) {
        self.hurt += 1;
        self.stopped.retain(|stopped| *stopped != pid);
        proc::kill(pid, Signal::SIGKILL);
        // What it was about to do would be no consequence of the steps after this.
        eventually("it is dead", || !proc::lives(pid));
    }

    fn kill_a_worker(&mut self) -> String {
        let Some(pid) = self.random.pick(&self.server.all_workers()) else {
            return "no worker to kill".to_owned();
        };
        self.kill(pid);
        format!("kill {pid}, a worker")
    }

    fn kill_all_spares(&mut self) -> String {
        let spares = self.spares();
        spares.iter().for_each(|process| self.kill(process.pid));
        format!("kill {} spares", spares.len())
    }

    /// Those that wait, as /proc shows them: they have an epoll instance, and who serves has none, unless he is to serve
    /// several.
    fn spares(&self) -> Vec<Process> {
        let mut processes = self.server.connections();
        processes.retain(|process| has_epoll(process.pid));
        processes
    }

    fn stop_a_spare(&mut self) -> String {
        let spares: Vec<i32> = self.spares().iter().map(|process| process.pid).collect();
        let Some(pid) = self.random.pick(&spares) else { return "no spare to stop".to_owned() };
        // One that serves several may have a client, which would wait for its echo.
        if self.settings.may_serve_several() || self.stopped.contains(&pid) {
            return "no other spare to stop".to_owned();
        }
        proc::kill(pid, Signal::SIGSTOP);
        self.stopped.push(pid);
        // It may have been told to go just now, or somebody has called it.
        eventually("it is stopped, or gone", || {
            proc::process(pid).is_none_or(|process| matches!(process.state, 'T' | 'Z'))
        });
        format!("stop {pid}, a spare")
    }

    pub(super) fn go_on(&mut self) -> String {
        let stopped = std::mem::take(&mut self.stopped);
        stopped.iter().for_each(|pid| proc::kill(*pid, Signal::SIGCONT));
        format!("{} go on", stopped.len())
    }

    fn reload(&mut self) -> String {
        let mut settings = self.settings.clone();
        settings.change(&mut self.random);
        self.put_in_force(settings);
        format!("reload with {:?}", self.settings)
    }

    pub(super) fn put_in_force(&mut self, settings: Settings) {
        self.server.configure(&settings.config(self.service));
        self.server.reload_ok();
        self.settings = settings;
        self.unchanged = false;
    }

    fn upgrade(&mut self) -> String {
        let output = self.server.upgrade();
        assert!(output.status.success(), "upgrade: {}{}", text(&output.stdout), text(&output.stderr));
        // Spares of before may still be called.
        "upgrade".to_owned()
    }

    /// No worker can fork while somebody calls.
    fn starve(&mut self) -> String {
        let workers = self.server.all_workers();
        let allow = |processes: u32| {
            for pid in &workers {
                run(&["prlimit", "--pid", &pid.to_string(), &format!("--nproc={processes}:{PROCESSES}")]);
            }
        };
        allow(1);
        let source = self.source();
        let accepted = self.server.count("accepted");
        let mut client = Client::call(source, self.service);
        self.settle();
        let mut outcome = Outcome::Waits;
        if self.served.len() + self.waiting.len() + self.stopped.len() < self.settings.limit {
            eventually("it is accepted, or not let in", || {
                outcome = client.look();
                outcome != Outcome::Waits || self.server.count("accepted") > accepted
            });
        }
        let also = match self.random.below(4) {
            0 => self.kill_a_worker(),
            1 => self.kill_all_spares(),
            _ => String::new(),
        };
        let leaves = outcome == Outcome::Waits && self.random.once_in(4);
        allow(PROCESSES);
        match outcome {
            Outcome::Waits if leaves => self.gone.push(source),
            Outcome::Waits => self.waiting.push(client),
            outcome => self.take(client, outcome),
        }
        format!("fork fails for {source}: {outcome:?}, leaves: {leaves}, {also}")
    }

    /// The counts are right: from now on only what comes can explain what comes. Returns whether the settings have been
    /// the same since that was so before.
    pub(super) fn is_settled(&mut self) -> bool {
        self.hurt = 0;
        self.gone.clear();
        std::mem::replace(&mut self.unchanged, true)
    }
}

/// Whether it has an epoll instance.
pub(super) fn has_epoll(pid: i32) -> bool {
    let descriptors = proc::descriptors(pid);
    descriptors.iter().any(|(_, target)| target.to_str() == Some("anon_inode:[eventpoll]"))
}
