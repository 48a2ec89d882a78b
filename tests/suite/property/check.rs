//! What must be true after any sequence of steps.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::client::{Client, Outcome};
use super::world::{World, has_epoll};
use crate::support::eventually;

impl World {
    /// Lets everything come to rest, and then counts.
    pub(super) fn check(&mut self) {
        self.go_on();
        self.rest();
        for client in &mut self.served {
            assert!(client.echoes(), "{client:?} is not served any more");
        }
        // What a retired generation has let in at the last moment is counted anew a moment later.
        let mut tries = if self.is_settled() { 1 } else { 50 };
        self.make_room();
        for source in self.sources() {
            while let Err(wrong) = self.probe(source) {
                tries -= 1;
                assert!(tries > 0, "{wrong}");
            }
        }
    }

    /// Waits until all who can be served are, and all counts agree.
    fn rest(&mut self) {
        let mut wrong = String::new();
        let at_rest = || {
            self.settle();
            wrong = self.what_is_wrong();
            wrong.is_empty()
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually("", at_rest)));
        assert!(result.is_ok(), "it comes not to rest: {wrong}");
    }

    fn what_is_wrong(&self) -> String {
        let status = self.server.service();
        let count = |name: &str| usize::try_from(status[name].as_u64().unwrap()).unwrap();
        let (served, waiting) = (self.served.len(), self.waiting.len());
        let (active, counted) = (count("active"), count("counted"));
        let workers = status["workers"].as_array().unwrap();
        let of_state = |accepting: bool| {
            let pids = workers.iter().filter(move |worker| (worker["state"] == "accepting") == accepting);
            pids.map(|worker| worker["pid"].as_i64().unwrap()).collect::<Vec<_>>()
        };
        let all: Vec<_> = workers.iter().map(|worker| worker["pid"].as_i64().unwrap()).collect();
        let mut processes = self.server.processes();
        processes.retain(|process| {
            process.pid != self.server.pid() && !all.contains(&process.pid.into()) && process.state != 'Z'
        });
        let (current, old) = (of_state(true), of_state(false));
        let old_spares = processes.iter().filter(|process| {
            let parent = i64::from(process.parent);
            (old.contains(&parent) || process.parent == self.server.pid()) && has_epoll(process.pid)
        });
        let counts_are_right = match self.settings.per_source {
            Some(_) => counted == active,
            None => counted <= active,
        };
        let conditions = [
            (active == served, "active"),
            // Killed between its answer and our look.
            (self.served.iter().all(Client::lives), "one more was hurt"),
            (count("accepted") == count("completed") + active, "accepted"),
            (counts_are_right, "counted"),
            // Clients that have gone are queued too.
            (count("queued") >= waiting, "queued"),
            (
                count("queued") == 0 || active >= self.settings.limit,
                "somebody is queued though there is room",
            ),
            (processes.len() == active + count("spares"), "processes"),
            (current.len() == 2, "workers"),
            (self.settings.may_serve_several() || old_spares.count() == 0, "old spares"),
        ];
        let wrong: Vec<_> = conditions.iter().filter(|(holds, _)| !holds).map(|(_, what)| *what).collect();
        match wrong.is_empty() {
            true => String::new(),
            false => format!("{wrong:?}; {served} served, {waiting} wait, {status}, {processes:#?}"),
        }
    }

    /// Sends clients away until whoever calls is let in or refused, but need not wait.
    fn make_room(&mut self) {
        let wanted = self.settings.per_source.unwrap_or(3) + 2;
        self.waiting.clear();
        self.served.truncate(self.settings.limit.saturating_sub(wanted));
        self.rest_without_surprise();
    }

    /// As before, but nobody is hurt or refused meanwhile.
    fn rest_without_surprise(&mut self) {
        self.rest();
        self.is_settled();
    }

    /// An address of each source, and one of a source that was never seen.
    fn sources(&self) -> Vec<Ipv4Addr> {
        let all = (0..2).flat_map(|third| (2..5).map(move |fourth| Ipv4Addr::new(127, 81, third, fourth)));
        let by_source: BTreeMap<u32, Ipv4Addr> =
            all.map(|address| (self.settings.source_of(address), address)).collect();
        by_source.into_values().chain([Ipv4Addr::new(127, 99, 0, 1)]).collect()
    }

    /// A source gets exactly what it may have.
    fn probe(&mut self, source: Ipv4Addr) -> Result<(), String> {
        let living = self.living_of(source);
        let room = self.settings.per_source.map_or(2, |limit| limit.saturating_sub(living));
        let mut probes: Vec<_> = (0..room).map(|_| Client::call(source, self.service)).collect();
        let mut outcomes: Vec<_> = probes.iter_mut().map(Client::answer).collect();
        let mut expected = vec![Outcome::Served; room];
        if self.settings.per_source.is_some() {
            outcomes.push(Client::call(source, self.service).answer());
            expected.push(Outcome::Closed);
        }
        drop(probes);
        self.rest_without_surprise();
        match outcomes == expected {
            true => Ok(()),
            false => Err(format!("{source} has {living}, room for {room}, and {outcomes:?}")),
        }
    }

    /// At the end: nothing is left, and everything can be had.
    pub(super) fn check_the_end(mut self) {
        self.check();
        self.served.clear();
        self.rest_without_surprise();
        let status = self.server.service();
        assert_eq!((&status["active"], &status["counted"]), (&Value::from(0), &Value::from(0)), "{status}");
        for number in 0..self.settings.limit {
            // Each from a source of its own, whatever the prefix.
            let source = Ipv4Addr::new(127, 100 + u8::try_from(number).unwrap(), 0, 1);
            let mut client = Client::call(source, self.service);
            assert_eq!(client.answer(), Outcome::Served, "the {number}. of {}", self.settings.limit);
            self.served.push(client);
        }
        self.waiting.push(Client::call(Ipv4Addr::new(127, 99, 0, 1), self.service));
        self.rest();
        assert_eq!(self.waiting.len(), 1, "the limit is exact");
    }
}
