//! What `top` knows of the running supervisor, from one look to the next.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use super::super::connections::address;
use super::super::sockets::Sockets;
use crate::admission::SourceName;
use crate::client::ConnectionId;
use crate::control::client::{self, AskError};
use crate::control::{Answer, ConnectionStatus, Request, ServiceStatus, Status, TimesStatus};
use crate::sys::time::Monotonic;
use crate::sys::usage::{ProcReader, Usage};

/// How many looks the graphs go back.
const HISTORY: usize = 240;

/// The parts of connections of which it is said how long they took.
const HALF: f64 = 0.5;
const MOST: f64 = 0.99;

/// Of how many connections that are new and behind a proxy the sockets are looked up at one look: that takes some 20 µs each.
const LOOKUPS: usize = 2_000;

/// A connection.
#[derive(Debug, Clone)]
pub(super) struct ShownRow {
    pub(super) id: ConnectionId,
    pub(super) service: String,
    pub(super) source: SourceName,
    pub(super) client: String,
    pub(super) pid: Option<i32>,
    pub(super) is_ending: bool,
    pub(super) age: Duration,
    pub(super) idle: Option<Duration>,
    /// Bytes so far, in and out.
    pub(super) bytes: Option<[u64; 2]>,
    /// Bytes a second since the look before, both ways.
    pub(super) rate: Option<u64>,
}

/// All connections of one source.
#[derive(Debug, Clone)]
pub(super) struct ShownSource {
    pub(super) source: SourceName,
    pub(super) name: String,
    pub(super) connections: u64,
    pub(super) rate: u64,
    pub(super) oldest: Duration,
    pub(super) services: Vec<String>,
}

/// What has happened since the look before: how often, a second, and how long it took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) accepted: f64,
    pub(super) refused: f64,
    pub(super) timeouts: f64,
    pub(super) crashes: f64,
    /// Within what time half of the connections ended, and 99 of 100; `None` if none did.
    pub(super) half_took: Option<Duration>,
    pub(super) most_took: Option<Duration>,
}

/// What is kept of a connection for the next look.
#[derive(Debug, Clone, Copy, Default)]
struct SeenBefore {
    /// Of its socket; 0 if it was looked for in vain.
    inode: Option<u64>,
    bytes: Option<u64>,
    is_there: bool,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Watch {
    control: PathBuf,
    patience: Duration,
    pub(super) status: Option<Status>,
    /// Why the last look brought nothing.
    pub(super) error: Option<AskError>,
    pub(super) connections: Vec<ShownRow>,
    /// Of all services together, and of each; the newest last.
    pub(super) history: VecDeque<Rates>,
    pub(super) rates: HashMap<String, Rates>,
    known: HashMap<ConnectionId, SeenBefore>,
    looked: Option<Monotonic>,
}

impl Watch {
    pub(super) fn new(control: PathBuf, patience: Duration) -> Self {
        Watch {
            control,
            patience,
            status: None,
            error: None,
            connections: Vec::new(),
            history: VecDeque::new(),
            rates: HashMap::new(),
            known: HashMap::new(),
            looked: None,
        }
    }

    /// Has something done, and says what came of it.
    pub(super) fn order(&self, request: &Request) -> String {
        match client::ask(&self.control, request, self.patience) {
            Ok(Answer::Done(text)) => text,
            Ok(Answer::Failed(reason)) => reason.to_string(),
            Ok(_) => "it was not understood".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Looks once more. What was seen before stays if there is no answer.
    pub(super) fn look(&mut self) {
        if let Err(error) = self.try_to_look() {
            self.error = Some(error);
            // The next look has nothing to compare with: it may be another supervisor.
            self.looked = None;
        }
    }

    fn try_to_look(&mut self) -> Result<(), AskError> {
        let status = client::ask(&self.control, &Request::Status, self.patience)?;
        let wanted = Request::Connections { service: None, source: None };
        let services = match &status {
            Answer::Status(status) => status.services.as_slice(),
            _ => &[],
        };
        let sockets = || Sockets::of(services);
        let (connections, sockets) = client::ask_and(&self.control, &wanted, self.patience, sockets)?;
        let now = Monotonic::now();
        let (Answer::Status(status), Answer::Connections(connections)) = (status, connections) else {
            return Ok(());
        };
        let since = self.looked.replace(now).map(|looked| now - looked);
        let since = since.filter(|since| !since.is_zero());
        self.count(&status, since);
        self.connections = self.rows(connections, &sockets, since);
        self.status = Some(*status);
        self.error = None;
        Ok(())
    }

    fn count(&mut self, status: &Status, since: Option<Duration>) {
        let before: HashMap<&str, &ServiceStatus> = match &self.status {
            // Counters begin anew with another supervisor.
            Some(before) if before.pid == status.pid && before.uptime_s <= status.uptime_s => {
                before.services.iter().map(|service| (service.name.as_str(), service)).collect()
            }
            _ => HashMap::new(),
        };
        let mut rates = HashMap::new();
        let mut all_times = TimesStatus::default();
        if let Some(seconds) = since.map(|since| since.as_secs_f64()) {
            for service in &status.services {
                let Some(before) = before.get(service.name.as_str()) else { continue };
                let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
                let times = service.durations.since(&before.durations);
                all_times.add(&times);
                let found = Rates {
                    accepted: rate(service.accepted, before.accepted),
                    refused: rate(service.refused.all(), before.refused.all()),
                    timeouts: rate(service.timeouts, before.timeouts),
                    crashes: rate(service.crashes, before.crashes),
                    half_took: times.within_which(HALF),
                    most_took: times.within_which(MOST),
                };
                rates.insert(service.name.clone(), found);
            }
            let sum = |of: fn(&Rates) -> f64| rates.values().map(of).sum();
            self.history.push_back(Rates {
                accepted: sum(|rates| rates.accepted),
                refused: sum(|rates| rates.refused),
                timeouts: sum(|rates| rates.timeouts),
                crashes: sum(|rates| rates.crashes),
                half_took: all_times.within_which(HALF),
                most_took: all_times.within_which(MOST),
            });
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
        self.rates = rates;
    }

    fn rows(
        &mut self,
        connections: Vec<ConnectionStatus>,
        sockets: &Sockets,
        since: Option<Duration>,
    ) -> Vec<ShownRow> {
        let mut processes = ProcReader::new();
        self.known.values_mut().for_each(|known| known.is_there = false);
        let mut lookups = if sockets.is_empty() { 0 } else { LOOKUPS };
        let rows = connections
            .into_iter()
            .map(|found| self.row(found, sockets, &mut processes, &mut lookups, since))
            .collect();
        self.known.retain(|_, known| known.is_there);
        rows
    }

    fn row(
        &mut self,
        found: ConnectionStatus,
        sockets: &Sockets,
        processes: &mut ProcReader,
        lookups: &mut usize,
        since: Option<Duration>,
    ) -> ShownRow {
        let known = self.known.entry(found.id).or_default();
        known.is_there = true;
        let direct = sockets.direct(&found);
        if direct.is_none() && known.inode.is_none() && *lookups > 0 {
            *lookups -= 1;
            known.inode = Some(sockets.inode_of(&found, processes).unwrap_or(0));
        }
        let info = direct.or_else(|| known.inode.and_then(|inode| sockets.of_inode(inode)));
        let bytes = info.map(|info| [info.received, info.acked]);
        let all = bytes.map(|[received, sent]| received.saturating_add(sent));
        let before = std::mem::replace(&mut known.bytes, all);
        let rate = match (before, all, since) {
            (Some(before), Some(all), Some(since)) => {
                Some((all.saturating_sub(before) as f64 / since.as_secs_f64()) as u64)
            }
            _ => None,
        };
        ShownRow {
            id: found.id,
            service: found.service,
            source: found.source,
            client: found.client,
            pid: found.pid,
            is_ending: found.is_ending,
            age: Duration::from_millis(found.age_ms),
            idle: info.map(|info| Duration::from_millis(u64::from(info.since_data_ms).min(found.age_ms))),
            bytes,
            rate,
        }
    }

    /// Who has how many connections.
    pub(super) fn sources(&self) -> Vec<ShownSource> {
        let mut sources: BTreeMap<SourceName, ShownSource> = BTreeMap::new();
        for row in &self.connections {
            let source = sources.entry(row.source).or_insert_with(|| ShownSource {
                source: row.source,
                name: address(row.source),
                connections: 0,
                rate: 0,
                oldest: Duration::ZERO,
                services: Vec::new(),
            });
            source.connections += 1;
            source.rate = source.rate.saturating_add(row.rate.unwrap_or(0));
            source.oldest = source.oldest.max(row.age);
            if !source.services.contains(&row.service) {
                source.services.push(row.service.clone());
            }
        }
        sources.into_values().collect()
    }
}

/// What the process of a row uses: asked for those alone that are shown.
pub(super) fn usage_of(row: &ShownRow) -> Option<Usage> {
    row.pid.and_then(|pid| ProcReader::new().usage_of(pid))
}
