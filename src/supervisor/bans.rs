//! `preforkd ban` and `bans`: clients that are kept out by hand, until their time is over or somebody lifts it.
//!
//! They are kept here, written to the memory that the workers of each service read, and to the state directory.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::ban_file::{BanFile, KeptBan};
use super::service::ServiceState;
use super::wording::by;
use crate::admission::SourceName;
use crate::admission::bans::MAX_BANS;
use crate::control::{Answer, BanStatus};
use crate::ipc::orders::Order;
use crate::journal::{Level, MessageId};
use crate::sys::time::{Monotonic, UnixTime};

/// When connections are ended once more: one may just have been let in, by a spare that had not said so yet.
const SECOND_KILL: Duration = Duration::from_secs(1);

/// Who is kept out, and of what.
#[derive(Debug, Default)]
pub(super) struct Bans {
    all: BTreeMap<Banned, Term>,
    file: BanFile,
    /// Somebody was told that they end with this process.
    said_that_they_end: bool,
    kills: Vec<BannedKill>,
}

/// Whom, and of what; `None` for all services.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Banned {
    source: SourceName,
    service: Option<String>,
}

/// Since when, and until when; `None` until it is lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    since: UnixTime,
    until: Option<Monotonic>,
}

/// Connections that are to be ended once more.
#[derive(Debug)]
struct BannedKill {
    banned: Banned,
    before: Monotonic,
    at: Monotonic,
}

/// A ban as it is saved.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedBan {
    source: SourceName,
    service: Option<String>,
    since: UnixTime,
    until: Option<Monotonic>,
}

/// What somebody has asked for.
#[derive(Debug)]
pub(super) struct WantedBan {
    pub(super) source: SourceName,
    pub(super) service: Option<String>,
    pub(super) lasts: Option<Duration>,
    pub(super) kill: bool,
}

impl Banned {
    fn is_at(&self, service: &str) -> bool {
        self.service.as_ref().is_none_or(|own| own == service)
    }

    /// Whose a line is that says something of this one.
    fn line(&self, text: &str) -> String {
        match &self.service {
            Some(service) => format!("{service}: {} {text}", self.source),
            None => format!("{} {text}", self.source),
        }
    }
}

impl Term {
    fn left(&self, now: Monotonic) -> Option<Duration> {
        self.until.map(|until| until - now)
    }

    /// When it is over on the wall.
    fn end(&self, now: Monotonic) -> Option<UnixTime> {
        self.left(now).map(|left| UnixTime::now() + left)
    }

    fn is_over(&self, now: Monotonic) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    fn text(&self, now: Monotonic) -> String {
        self.end(now).map_or_else(|| "until somebody lifts it".to_owned(), |end| format!("until {end}"))
    }
}

impl Bans {
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether one is at this service alone, which may not be there any more.
    pub(super) fn is_about(&self, service: &str) -> bool {
        self.all.keys().any(|banned| banned.service.as_deref() == Some(service))
    }

    /// A service keeps those out from now on who are banned, and nobody else.
    pub(super) fn publish(&self, service: &ServiceState) {
        let of_it = self.all.keys().filter(|banned| banned.is_at(&service.name));
        service.bans.publish(of_it.map(|banned| banned.source));
    }

    pub(super) fn save(&self) -> Vec<SavedBan> {
        let save = |(banned, term): (&Banned, &Term)| SavedBan {
            source: banned.source,
            service: banned.service.clone(),
            since: term.since,
            until: term.until,
        };
        self.all.iter().map(save).collect()
    }

    /// What another program has saved; the services have it.
    pub(super) fn resume(saved: Vec<SavedBan>) -> Self {
        let resume =
            |SavedBan { source, service, since, until }| (Banned { source, service }, Term { since, until });
        Bans { all: saved.into_iter().map(resume).collect(), ..Bans::default() }
    }

    /// Those that were kept and are not over. Who sets the clock back makes none longer than it was.
    fn recall(&mut self, kept: Vec<KeptBan>) {
        let (now, on_the_wall) = (Monotonic::now(), UnixTime::now());
        for KeptBan { source, service, since, until } in kept {
            let left = until.map(|until| until.since(on_the_wall).min(until.since(since)));
            if left != Some(Duration::ZERO) {
                let term = Term { since, until: left.map(|left| now + left) };
                self.all.insert(Banned { source, service }, term);
            }
        }
    }

    fn keep(&self) -> Result<(), String> {
        let now = Monotonic::now();
        let keep = |(banned, term): (&Banned, &Term)| KeptBan {
            source: banned.source,
            service: banned.service.clone(),
            since: term.since,
            until: term.end(now),
        };
        self.file.write(self.all.iter().map(keep).collect())
    }

    /// The bans of others as well that keep some of these clients out of these services.
    pub(super) fn left(&self, wanted: SourceName, service: Option<&str>) -> Vec<String> {
        let is_left = |banned: &&Banned| {
            banned.source.overlaps(&wanted) && service.is_none_or(|service| banned.is_at(service))
        };
        let tell = |banned: &Banned| {
            let all = if service.is_some() && banned.service.is_none() { " from all services" } else { "" };
            let how = format!("is still banned{all}; \"unban {}\" lifts that", banned.source);
            banned.line(&how)
        };
        self.all.keys().filter(is_left).map(tell).collect()
    }

    /// When one is over, or connections are ended once more.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        let ends = self.all.values().filter_map(|term| term.until);
        ends.chain(self.kills.iter().map(|kill| kill.at)).min()
    }
}

impl Supervisor {
    /// At the start: the bans that were kept.
    pub(super) fn recall_bans(&mut self) {
        match self.state.bans.file.read() {
            Ok(kept) => self.state.bans.recall(kept),
            Err(text) => self.log.event(Level::Error, Some(MessageId::Ban), None, format_args!("{text}")),
        }
        let count = self.state.bans.count();
        if count > 0 {
            self.log.event(
                Level::Notice,
                Some(MessageId::Ban),
                None,
                format_args!("{count} bans of before are in force"),
            );
        }
    }

    /// Keeps clients out, as `user` has asked, from the next connection on.
    pub(super) fn ban(&mut self, wanted: WantedBan, user: Option<u32>) -> Answer {
        let WantedBan { source, service, lasts, kill } = wanted;
        if let Some(answer) = self.unknown_service(service.as_deref()) {
            return answer;
        }
        let in_force = service.as_deref().and_then(|name| self.state.generation.service(name));
        if let Some(waits) = in_force.filter(|service| service.config().wait) {
            return Answer::refused(format!(
                "service {} has wait = true: its program has the listening socket itself, and nobody could be kept out; say it with \
                 a firewall, or the program's own options",
                waits.name()
            ));
        }
        if lasts == Some(Duration::ZERO) {
            return Answer::refused("a ban for no time keeps nobody out");
        }
        let (now, bans) = (Monotonic::now(), &mut self.state.bans);
        let banned = Banned { source, service };
        let before = bans.all.get(&banned).map(|term| term.since);
        if before.is_none() && bans.count() >= MAX_BANS {
            return Answer::refused(format!(
                "there are {MAX_BANS} bans already, and no room for more; ban a wider prefix, or unban some"
            ));
        }
        let since = before.unwrap_or_else(UnixTime::now);
        let term = Term { since, until: lasts.map(|lasts| now + lasts) };
        bans.all.insert(banned.clone(), term);
        self.publish_ban(&banned);
        let mut text = format!("is banned {}", term.text(now));
        if kill {
            text.push_str("; its connections are told to end");
        }
        self.log_ban(&banned, format_args!("{text}, by {}", by(user)));
        if kill {
            // Whoever was accepted later has been refused.
            let before = Monotonic::now();
            self.kill_banned(&banned, before);
            let at = before + SECOND_KILL;
            self.state.bans.kills.push(BannedKill { banned: banned.clone(), before, at });
        }
        let mut lines = vec![banned.line(&text)];
        if !self.state.bans.file.is_there() {
            let text = "bans end with preforkd: STATE_DIRECTORY names no directory to keep them in";
            if !std::mem::replace(&mut self.state.bans.said_that_they_end, true) {
                self.log.warning(None, format_args!("{text}"));
            }
            lines.push(text.to_owned());
        } else if let Err(why) = self.state.bans.keep() {
            self.log.error(None, format_args!("the bans end with preforkd: {why}"));
            lines.push(format!("it ends with preforkd: {why}"));
        }
        Answer::Done(lines.join("\n"))
    }

    /// Who is kept out by hand: of one service, or at all.
    pub(super) fn list_bans(&self, service: Option<&str>) -> Answer {
        let (now, bans) = (Monotonic::now(), &self.state.bans);
        if let Some(answer) = self.unknown_service(service.filter(|name| !bans.is_about(name))) {
            return answer;
        }
        let meant = bans.all.iter().filter(|(banned, term)| {
            !term.is_over(now) && service.is_none_or(|service| banned.is_at(service))
        });
        let show = |(banned, term): (&Banned, &Term)| BanStatus {
            source: banned.source,
            service: banned.service.clone(),
            since: term.since,
            until: term.end(now),
            left_s: term.left(now).map(|left| left.as_secs()),
        };
        Answer::Bans(meant.map(show).collect())
    }

    /// Lifts the bans of these clients that are of nobody else; says which.
    pub(super) fn lift_bans(
        &mut self,
        wanted: SourceName,
        service: Option<&str>,
        user: Option<u32>,
    ) -> Vec<String> {
        let is_meant = |banned: &&Banned| {
            wanted.has_all_of(&banned.source)
                && service.is_none_or(|name| banned.service.as_deref() == Some(name))
        };
        let lifted: Vec<Banned> = self.state.bans.all.keys().filter(is_meant).cloned().collect();
        if lifted.is_empty() {
            return Vec::new();
        }
        self.state.bans.all.retain(|banned, _| !is_meant(&banned));
        self.publish_bans();
        for banned in &lifted {
            self.log_ban(banned, format_args!("is banned no more, by {}", by(user)));
        }
        let mut lines: Vec<_> = lifted.iter().map(|banned| banned.line("is banned no more")).collect();
        if let Err(why) = self.state.bans.keep() {
            self.log.error(
                None,
                format_args!("bans that were lifted are back when preforkd starts again: {why}"),
            );
            lines.push(format!("that is forgotten when preforkd starts again: {why}"));
        }
        lines
    }

    /// Ends the bans whose time is over, and connections of clients that are banned.
    pub(super) fn tend_bans(&mut self, now: Monotonic) {
        if self.state.bans.next_deadline().is_none_or(|at| now < at) {
            return;
        }
        // The file says when they are over, too.
        let over = |(_, term): &(&Banned, &Term)| term.is_over(now);
        let over: Vec<Banned> =
            self.state.bans.all.iter().filter(over).map(|(banned, _)| banned.clone()).collect();
        self.state.bans.all.retain(|_, term| !term.is_over(now));
        if !over.is_empty() {
            self.publish_bans();
        }
        // Whoever reads it can rely on it.
        for banned in &over {
            self.log_ban(banned, format_args!("is banned no more: its time is over"));
        }
        let kills = std::mem::take(&mut self.state.bans.kills);
        let (due, later) = kills.into_iter().partition(|kill| kill.at <= now);
        self.state.bans.kills = later;
        for BannedKill { banned, before, .. } in due {
            self.kill_banned(&banned, before);
        }
    }

    fn kill_banned(&mut self, banned: &Banned, before: Monotonic) {
        let source = banned.source;
        for worker in self.state.workers.iter().filter(|worker| banned.is_at(worker.service())) {
            worker.order(&Order::KillSource { source, before });
        }
        self.state.adopted.end_source(source, banned.service.as_deref(), before);
    }

    fn publish_ban(&self, changed: &Banned) {
        let bans = &self.state.bans;
        let services = self.state.services.alive().filter(|service| changed.is_at(&service.name));
        services.for_each(|service: Rc<ServiceState>| bans.publish(&service));
    }

    fn publish_bans(&self) {
        self.state.services.alive().for_each(|service| self.state.bans.publish(&service));
    }

    fn log_ban(&self, banned: &Banned, text: std::fmt::Arguments<'_>) {
        self.log.event(
            Level::Notice,
            Some(MessageId::Ban),
            banned.service.as_deref(),
            format_args!("{} {text}", banned.source),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(source: &str, ago: u64, lasts: Option<u64>) -> KeptBan {
        let at = |secs: u64| serde_json::from_str::<UnixTime>(&(secs * 1000).to_string()).unwrap();
        let now = UnixTime::now().since(at(0)).as_secs();
        KeptBan {
            source: source.parse().unwrap(),
            service: None,
            since: at(now.wrapping_sub(ago)),
            until: lasts.map(|lasts| at(now.wrapping_sub(ago) + lasts)),
        }
    }

    #[test]
    fn what_was_kept_lasts_for_the_rest_of_its_time() {
        let mut bans = Bans::default();
        let from_the_future = 0u64.wrapping_sub(100_000);
        bans.recall(vec![
            kept("192.0.2.1", 10, Some(60)),
            kept("192.0.2.2", 60, Some(10)),
            kept("192.0.2.3", 60, None),
            kept("192.0.2.4", from_the_future, Some(50)),
            kept("192.0.2.1", 10, Some(70)),
        ]);
        let now = Monotonic::now();
        let left: Vec<_> =
            bans.all.iter().map(|(banned, term)| (banned.source.to_string(), term.left(now))).collect();
        let about = |left: Duration| (left.as_secs() + 5) / 10 * 10;
        let left: Vec<_> = left.into_iter().map(|(source, left)| (source, left.map(about))).collect();
        let wanted = [("192.0.2.1/32", Some(60)), ("192.0.2.3/32", None), ("192.0.2.4/32", Some(50))];
        assert_eq!(left, wanted.map(|(source, left)| (source.to_owned(), left)));
        let again = Bans::resume(bans.save());
        assert_eq!(again.all, bans.all);
    }

    #[test]
    fn what_is_left_after_an_unban_says_how_to_lift_it() {
        let mut bans = Bans::default();
        bans.recall(vec![
            kept("192.0.2.0/24", 0, None),
            KeptBan { service: Some("x".to_owned()), ..kept("::/0", 0, None) },
        ]);
        let left = |source: &str, service| bans.left(source.parse().unwrap(), service);
        assert_eq!(
            left("192.0.2.7", None),
            ["192.0.2.0/24 is still banned; \"unban 192.0.2.0/24\" lifts that"]
        );
        let all = ["192.0.2.0/24 is still banned from all services; \"unban 192.0.2.0/24\" lifts that"];
        assert_eq!(left("0.0.0.0/0", Some("x")), all);
        assert_eq!(left("::1", None), ["x: ::/0 is still banned; \"unban ::/0\" lifts that"]);
        assert!(left("::1", Some("y")).is_empty() && left("user:7", None).is_empty());
        assert!(bans.is_about("x") && !bans.is_about("y"));
    }
}
