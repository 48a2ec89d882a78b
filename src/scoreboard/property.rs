//! Whatever happens in whatever order, and whoever dies between whatever writes: a naive model knows the same.
//!
//! Here workers, spares and a supervisor take turns, and one may die in the middle of its turn. That they may also be
//! interrupted by each other is tested beside the sources, with threads.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::{Owner, Scoreboard, Slot};
use crate::admission::sources::{Bucket, SlotIndex, Sources};
use crate::admission::{Prefix, SourceName};
use crate::client::{Client, Connection};
use crate::seeded::{seed, turns};
use crate::sys::kill_points;
use crate::sys::socket::Peer;
use crate::sys::time::Monotonic;

const SECOND: Duration = Duration::from_secs(1);
const START: Monotonic = Monotonic::from_nanos(1_000_000_000_000);
const BUCKET: Bucket = Bucket { interval: SECOND, burst: 6 };
/// No limit here reaches up to these slots.
const PROBES: u32 = 40;

/// What a generation says about sources.
#[derive(Debug, Clone, Copy)]
struct ModelRules {
    prefix: u8,
    limit: Option<u32>,
    rate: bool,
}

#[derive(Debug)]
struct ModelWorker {
    serial: u32,
    gate: ModelRules,
    /// Of the generation that is in force.
    current: bool,
}

/// A process that was forked and not reaped.
#[derive(Debug)]
struct Process {
    pid: i32,
    place: SlotIndex,
    /// The serial number of its worker, though that may be dead and buried.
    worker: u32,
    gate: ModelRules,
    /// As its worker holds it; `None` when it is the supervisor's.
    slot: Option<Slot<&'static Scoreboard>>,
    connection: Option<Connection>,
    /// Whether the scoreboard knows of it.
    noted: bool,
    counted: Option<SourceName>,
}

struct World {
    random: fastrand::Rng,
    scoreboard: &'static Scoreboard,
    workers: Vec<ModelWorker>,
    processes: Vec<Process>,
    /// Workers that died and are not buried, and the slots that they may have had in hand.
    dead: Vec<u32>,
    /// Slots of processes that died while they applied, and are not reaped.
    dying: Vec<(SlotIndex, u32)>,
    gate: ModelRules,
    made: u32,
    now: Monotonic,
    /// When the bucket of a source is full again, at the earliest and at the latest.
    tokens: HashMap<SourceName, (Monotonic, Monotonic)>,
}

impl World {
    fn new(random: fastrand::Rng) -> Self {
        let (scoreboard, _file) = Scoreboard::create(Sources::create().unwrap().0).unwrap();
        scoreboard.set_limit(20);
        let scoreboard = Box::leak(Box::new(scoreboard));
        let gate = ModelRules { prefix: 32, limit: Some(3), rate: false };
        let (workers, processes, dead, dying) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let tokens = HashMap::new();
        let (made, now) = (0, START);
        let mut world = Self { random, scoreboard, workers, processes, dead, dying, gate, made, now, tokens };
        (0..3).for_each(|_| world.hire());
        world
    }

    fn step(&mut self) -> String {
        self.now = self.now + Duration::from_nanos(self.random.u64(..1_000_000_000));
        // Most turns take fewer writes than this.
        let writes = (self.random.usize(..4) == 0).then(|| self.random.u32(..14));
        let pick = self.random.usize(..);
        match self.random.usize(..20) {
            0..6 => self.accept(pick, writes),
            6..9 => self.make_spare(pick, writes),
            9..12 => self.call_spare(pick, writes),
            12 => self.hear(pick, writes),
            13..16 => self.end(pick, writes),
            16 => self.end_one_of_several(pick, writes),
            17 => self.bury(),
            18 => self.reload(),
            _ => {
                let limit = 8 + self.random.u32(..20);
                self.scoreboard.set_limit(limit);
                format!("limit {limit}")
            }
        }
    }

    fn hire(&mut self) {
        self.made += 1;
        self.workers.push(ModelWorker { serial: self.made, gate: self.gate, current: true });
    }

    /// A worker's turn has ended, perhaps with its death; then what it held is only on the scoreboard.
    fn after(&mut self, serial: u32) -> bool {
        let died = kill_points::has_died();
        if died {
            let its = self.processes.iter_mut().filter(|process| process.worker == serial);
            its.for_each(|process| drop(process.slot.take()));
            self.workers.retain(|worker| worker.serial != serial);
            self.dead.push(serial);
        }
        kill_points::live_for(None);
        died
    }

    fn current(&mut self, pick: usize) -> Option<(u32, ModelRules)> {
        let current: Vec<_> = self.workers.iter().filter(|worker| worker.current).collect();
        (!current.is_empty())
            .then(|| current[pick % current.len()])
            .map(|worker| (worker.serial, worker.gate))
    }

    fn taken(&self) -> (u32, u32) {
        // A dead worker may have claimed one that it had no process for.
        let surely = (self.processes.len() + self.dying.len()) as u32;
        (surely, surely + self.dead.len() as u32)
    }

    fn claim(&self, serial: u32) -> Option<Slot<&'static Scoreboard>> {
        let (least, most) = self.taken();
        let limit = self.scoreboard.limit();
        let claimed = Slot::claim(self.scoreboard, Owner::worker(serial));
        if !kill_points::has_died() {
            match &claimed {
                Ok(_) => assert!(least < limit, "a slot, {least} taken"),
                Err(why) => assert!(most >= limit, "{why:?}, {most} taken"),
            }
        }
        claimed.ok()
    }

    fn connection(&mut self) -> Connection {
        self.made += 1;
        let [third, fourth] = [2, 3].map(|bound| self.random.u8(..bound));
        let ip = Ipv4Addr::new(192, 0, third, fourth);
        let peer = Peer::Ip(SocketAddr::new(ip.into(), 80));
        let client = Client { peer, accepted: self.now, header: None, is_exempt: false, listener: 0 };
        Connection { number: self.made.into(), client, until: Monotonic::NEVER }
    }

    /// As a connection's gate does it: what it is counted for, if it gets in.
    fn admit(
        &mut self,
        gate: ModelRules,
        place: SlotIndex,
        client: &Connection,
    ) -> Result<Option<SourceName>, ()> {
        let prefix = source_of(client, gate);
        let sources = self.scoreboard.sources();
        let source = sources.source(prefix);
        if let Some(limit) = gate.limit {
            let (least, most) = self.living(prefix);
            let entered = sources.enter(place, source, limit);
            if !kill_points::has_died() {
                match entered {
                    Ok(()) => assert!(least < limit, "{prefix} has {least} of {limit}"),
                    Err(_) => assert!(most >= limit, "{prefix} has {most} of {limit}"),
                }
            }
            entered.map_err(|_| ())?;
        }
        if gate.rate {
            let full = self.now + BUCKET.interval * BUCKET.burst;
            let (least, most) =
                *self.tokens.get(&prefix).unwrap_or(&(Monotonic::default(), Monotonic::default()));
            let after = |from: Monotonic| from.max(self.now) + BUCKET.interval;
            let died = kill_points::has_died();
            let taken = sources.take_token(source, BUCKET, || self.now);
            if died || kill_points::has_died() {
                self.tokens.insert(prefix, (least, if after(most) <= full { after(most) } else { most }));
            } else if taken {
                assert!(after(least) <= full, "{prefix} got a token");
                self.tokens.insert(prefix, (after(least), after(most).min(full)));
            } else {
                assert!(after(most) > full, "{prefix} got no token");
                self.tokens
                    .insert(prefix, (least.max(full - BUCKET.interval + Duration::from_nanos(1)), most));
                sources.leave(place);
                return Err(());
            }
        }
        Ok(gate.limit.map(|_| prefix))
    }

    /// How many connections of a source live, at least and at most.
    fn living(&self, prefix: SourceName) -> (u32, u32) {
        let counted = |process: &&Process| process.counted == Some(prefix);
        let surely = self.processes.iter().filter(counted).count() as u32;
        (surely, surely + (self.dead.len() + self.dying.len()) as u32)
    }

    /// The dead do not fork.
    fn fork(&mut self, serial: u32, gate: ModelRules, slot: Slot<&'static Scoreboard>) -> bool {
        if kill_points::has_died() {
            return false;
        }
        self.made += 1;
        let (pid, place) = (self.made as i32, slot.index());
        slot.pid_word().unwrap().store(pid, SeqCst);
        let (connection, noted, counted) = (None, false, None);
        let slot = Some(slot);
        self.processes.push(Process { pid, place, worker: serial, gate, slot, connection, noted, counted });
        true
    }

    fn accept(&mut self, pick: usize, writes: Option<u32>) -> String {
        let Some((serial, gate)) = self.current(pick) else { return "nobody accepts".to_owned() };
        let client = self.connection();
        kill_points::live_for(writes);
        let mut result = "no slot";
        if let Some(slot) = self.claim(serial) {
            result = "refused";
            if let Ok(counted) = self.admit(gate, slot.index(), &client) {
                result = "served";
                slot.note(Some(&client));
                // Fork fails now and then; then the slot is given back as it is after a refusal.
                if pick % 7 != 0 && self.fork(serial, gate, slot) {
                    let process = self.processes.last_mut().unwrap();
                    (process.connection, process.noted, process.counted) = (Some(client), true, counted);
                }
            }
        }
        let died = self.after(serial);
        format!("worker {serial} accepts {:?}: {result}, dies: {died}", client.client.peer)
    }

    fn make_spare(&mut self, pick: usize, writes: Option<u32>) -> String {
        let Some((serial, gate)) = self.current(pick) else { return "nobody makes a spare".to_owned() };
        kill_points::live_for(writes);
        let made = self.claim(serial).is_some_and(|slot| self.fork(serial, gate, slot));
        let died = self.after(serial);
        format!("worker {serial} makes a spare: {made}, dies: {died}")
    }

    fn pick(&self, pick: usize, which: impl Fn(&Process) -> bool) -> Option<usize> {
        let all: Vec<_> = (0..self.processes.len()).filter(|&index| which(&self.processes[index])).collect();
        (!all.is_empty()).then(|| all[pick % all.len()])
    }

    /// Also one of a worker that is gone, or does not know that there is another generation.
    fn call_spare(&mut self, pick: usize, writes: Option<u32>) -> String {
        let Some(index) = self.pick(pick, |process| process.connection.is_none()) else {
            return "no spare to call".to_owned();
        };
        let client = self.connection();
        let (place, gate) = (self.processes[index].place, self.processes[index].gate);
        kill_points::live_for(writes);
        let admitted = self.admit(gate, place, &client);
        let died = kill_points::has_died();
        kill_points::live_for(None);
        if died {
            // What it was counted for is not known before it is reaped, by whoever does that.
            let process = self.processes.swap_remove(index);
            if process.slot.is_none() && self.dead.contains(&process.worker) {
                self.dying.push((place, process.worker));
            } else if process.slot.is_none() {
                drop(Slot::adopt(self.scoreboard, place));
            }
        } else if let Ok(counted) = admitted {
            let process = &mut self.processes[index];
            (process.connection, process.counted) = (Some(client), counted);
        }
        format!("a spare is called by {:?}: {}, dies: {died}", client.client.peer, admitted.is_ok())
    }

    /// A worker, or for a dead one the supervisor, hears that a spare was called.
    fn hear(&mut self, pick: usize, writes: Option<u32>) -> String {
        let dead = self.dead.clone();
        let unheard = |process: &Process| {
            let heard = process.noted || process.slot.is_none() && dead.contains(&process.worker);
            process.connection.is_some() && !heard
        };
        let Some(index) = self.pick(pick, unheard) else { return "nothing to hear".to_owned() };
        let process = &mut self.processes[index];
        let (serial, place, client) = (process.worker, process.place, process.connection.unwrap());
        let Some(slot) = &process.slot else {
            as_supervisor(self.scoreboard, place, |slot| slot.note(Some(&client)));
            process.noted = true;
            self.recount(Owner::SUPERVISOR);
            return "the supervisor hears".to_owned();
        };
        kill_points::live_for(writes);
        slot.note(Some(&client));
        // It may have died with its last word, or before.
        process.noted = !kill_points::has_died();
        let died = self.after(serial);
        format!("worker {serial} hears, dies: {died}")
    }

    /// A process ends and is reaped.
    fn end(&mut self, pick: usize, writes: Option<u32>) -> String {
        let dead = self.dead.clone();
        let reapable = |process: &Process| process.slot.is_some() || !dead.contains(&process.worker);
        let Some(index) = self.pick(pick, reapable) else { return "nobody to end".to_owned() };
        let process = self.processes.swap_remove(index);
        let Some(slot) = process.slot else {
            drop(Slot::adopt(self.scoreboard, process.place));
            return "the supervisor reaps".to_owned();
        };
        kill_points::live_for(writes);
        drop(slot);
        let died = self.after(process.worker);
        format!("worker {} reaps, dies: {died}", process.worker)
    }

    /// A process that serves several waits again.
    fn end_one_of_several(&mut self, pick: usize, writes: Option<u32>) -> String {
        let several = |process: &Process| process.slot.is_some() && process.noted;
        let Some(index) = self.pick(pick, several) else { return "nobody to wait again".to_owned() };
        let process = &mut self.processes[index];
        self.scoreboard.sources().leave(process.place);
        (process.connection, process.noted, process.counted) = (None, false, None);
        let serial = process.worker;
        kill_points::live_for(writes);
        process.slot.as_ref().unwrap().note(None);
        let died = self.after(serial);
        format!("one of worker {serial} waits again, dies: {died}")
    }

    /// The supervisor takes over what a dead worker held.
    fn bury(&mut self) -> String {
        let Some(serial) = self.dead.pop() else { return "nobody to bury".to_owned() };
        let mut its: Vec<&mut Process> =
            self.processes.iter_mut().filter(|process| process.worker == serial).collect();
        for row in self.scoreboard.held_by(Owner::worker(serial)) {
            let is_it = |process: &&mut Process| process.place == row.slot && row.pid == Some(process.pid);
            match its.iter().position(&is_it) {
                Some(index) => {
                    let process = its.swap_remove(index);
                    let connection = process.connection;
                    as_supervisor(self.scoreboard, row.slot, |slot| slot.note(connection.as_ref()));
                    process.noted = process.connection.is_some();
                }
                None => drop(Slot::adopt(self.scoreboard, row.slot)),
            }
        }
        assert!(its.is_empty(), "the scoreboard has lost {its:?}");
        self.dying.retain(|(_, worker)| *worker != serial);
        self.recount(Owner::SUPERVISOR);
        self.hire();
        format!("bury {serial}")
    }

    /// Another generation: the workers of the last retire, and their spares go but for those that are called late.
    fn reload(&mut self) -> String {
        let prefix = [32, 32, 24, 16][self.random.usize(..4)];
        let limit = [None, Some(2), Some(3), Some(4)][self.random.usize(..4)];
        self.gate = ModelRules { prefix, limit, rate: self.random.usize(..2) == 0 };
        let old: Vec<u32> = self.workers.iter().map(|worker| worker.serial).collect();
        self.workers.iter_mut().for_each(|worker| worker.current = false);
        (0..2).for_each(|_| self.hire());
        old.iter().for_each(|&serial| self.recount(Owner::worker(serial)));
        self.recount(Owner::SUPERVISOR);
        // Those that have nothing left to do go.
        let busy: Vec<u32> = self.processes.iter().map(|process| process.worker).collect();
        self.workers.retain(|worker| worker.current || busy.contains(&worker.serial));
        format!("reload with {:?}", self.gate)
    }

    fn recount(&mut self, owner: Owner) {
        let gate = self.gate;
        if gate.limit.is_none() {
            return;
        }
        let sources = self.scoreboard.sources();
        self.scoreboard.recount(owner, |client| {
            matches!(client.client.peer, Peer::Ip(_)).then(|| sources.source(source_of(client, gate)))
        });
        for process in &mut self.processes {
            let its = match &process.slot {
                Some(_) => Owner::worker(process.worker),
                None if self.dead.contains(&process.worker) => continue,
                None => Owner::SUPERVISOR,
            };
            if its == owner && process.noted {
                process.counted = process.connection.map(|client| source_of(&client, gate));
            }
        }
    }

    /// Whether the memory says the same.
    fn check(&mut self) {
        let mut owners: HashMap<u32, Vec<(u32, Option<i32>, u64)>> = HashMap::new();
        for process in self.processes.iter().filter(|process| !self.dead.contains(&process.worker)) {
            let owner = if process.slot.is_some() { process.worker } else { u32::MAX };
            let number =
                process.connection.filter(|_| process.noted).map_or(0, |connection| connection.number);
            owners.entry(owner).or_default().push((process.place.index(), Some(process.pid), number));
        }
        for owner in self.workers.iter().map(|worker| worker.serial).chain([u32::MAX]) {
            let mut wanted = owners.remove(&owner).unwrap_or_default();
            wanted.sort_unstable();
            let owner = if owner == u32::MAX { Owner::SUPERVISOR } else { Owner::worker(owner) };
            let held = self.scoreboard.held_by(owner);
            let held: Vec<_> = held
                .iter()
                .map(|row| (row.slot.index(), row.pid, row.connection.map_or(0, |c| c.number)))
                .collect();
            assert_eq!(held, wanted, "what {owner:?} holds");
        }
        let counted = self.processes.iter().filter(|process| process.counted.is_some()).count() as u32;
        let unsure = (self.dead.len() + self.dying.len()) as u32;
        let found = self.scoreboard.sources().counted();
        assert!((counted..=counted + unsure).contains(&found), "{found} counted, not {counted}");
        let client = self.connection();
        let prefix = source_of(&client, self.gate);
        let limit = self.gate.limit.unwrap_or(5);
        let (least, most) = self.living(prefix);
        let room = self.room(prefix, limit);
        let expected = limit.saturating_sub(most)..=limit.saturating_sub(least);
        assert!(expected.contains(&room), "{prefix} has {least} to {most} of {limit}, and room for {room}");
    }

    /// How many more of this source get in.
    fn room(&self, prefix: SourceName, limit: u32) -> u32 {
        let sources = self.scoreboard.sources();
        let places = PROBES..;
        let source = sources.source(prefix);
        let room =
            places.clone().take_while(|&index| sources.enter(SlotIndex::at(index), source, limit).is_ok());
        let room = room.count() as u32;
        places.take(room as usize).for_each(|index| sources.leave(SlotIndex::at(index)));
        room
    }

    /// When all have ended nothing is left, and everything can be had.
    fn finish(mut self) {
        while !self.dead.is_empty() {
            self.bury();
        }
        while !self.processes.is_empty() {
            self.end(0, None);
        }
        self.check();
        assert_eq!(self.scoreboard.sources().counted(), 0);
        for number in 0..6 {
            let source = |length| {
                SourceName::Prefix(Prefix::around(IpAddr::from([192, 0, number / 3, number % 3]), length))
            };
            [32, 24, 16].into_iter().for_each(|length| assert_eq!(self.room(source(length), 3), 3));
        }
        self.scoreboard.set_limit(30);
        let all: Vec<_> =
            std::iter::from_fn(|| Slot::claim(self.scoreboard, Owner::worker(1)).ok()).collect();
        assert_eq!(all.len(), 30);
    }
}

fn source_of(connection: &Connection, gate: ModelRules) -> SourceName {
    let Peer::Ip(address) = connection.client.peer else { unreachable!() };
    SourceName::Prefix(Prefix::around(address.ip(), gate.prefix))
}

/// What the supervisor does to a slot that it goes on holding.
fn as_supervisor(
    scoreboard: &'static Scoreboard,
    place: SlotIndex,
    change: impl FnOnce(&Slot<&'static Scoreboard>),
) {
    let slot = std::mem::ManuallyDrop::new(Slot::adopt(scoreboard, place));
    change(&slot);
}

/// Says what has led to a failure.
struct Trace(Vec<String>);

#[allow(clippy::print_stderr, reason = "cargo shows it with the failure")]
impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last steps:\n{}", self.0[self.0.len().saturating_sub(30)..].join("\n"));
        }
    }
}

#[test]
fn the_counts_are_what_lives_after_any_sequence_and_any_death() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut history = Trace(Vec::new());
    for round in 0..turns(40).max(1) {
        let mut world = World::new(random.fork());
        history.0.push(format!("round {round}"));
        for _ in 0..turns(400).max(40) {
            let step = world.step();
            history.0.push(step);
            world.check();
        }
        world.finish();
    }
}
