//! What the targets in `fuzz/` call: each takes any bytes and panics if a property does not hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::admission::callers::WrittenAt;
use crate::admission::proxy::{self, LONGEST_V1, LONGEST_V2, Parsed, ProxyError};
use crate::admission::rules::Action;
use crate::admission::sources::{Bucket, Penalty, SlotIndex, Sources};
use crate::admission::{Caller, CallerSets, Callers, Listed, Prefix, Rules, SourceName};
use crate::builtin;
use crate::client::ConnectionId;
use crate::config::{self, Accounts, Diagnostics, Loaded, Machine, ServiceConfig, Tolerance};
use crate::control;
use crate::ipc::orders::{self, Heard, Order, WorkerReport};
use crate::ipc::reports::{ChildReport, ExitNote};
use crate::journal::{OutputLine, Remote, forms, is_special};
use crate::scoreboard::{Counters, Owner, Scoreboard, Slot};
use crate::spare::events;
use crate::supervisor::saved;
use crate::sys::message;
use crate::sys::time::Monotonic;

/// A configuration's text is a configuration or is complained about, and both can be shown.
///
/// A service survives the way to its worker, and a complaint does nothing to a terminal.
pub fn config(text: &[u8]) {
    match load(text) {
        Ok(Loaded { config, warnings }) => {
            assert!(!config.services.is_empty() && warnings.errors() == 0);
            config.services.iter().for_each(check_service);
            check_shown(&warnings);
        }
        Err(problems) => {
            assert!(problems.errors() > 0);
            check_shown(&problems);
        }
    }
}

/// On a machine without users, so that no file but programs and directories is looked for.
fn load(text: &[u8]) -> Result<Loaded, Diagnostics> {
    let none = Path::new("/proc/self/none");
    let accounts = Accounts { passwd: none.into(), group: none.into(), getent: None };
    let application = builtin::preforkd().into_application();
    let machine = Machine { accounts, ..Machine::with(&application) };
    config::load_text(Path::new("p.toml"), text, &Tolerance::none(), &machine)
}

fn check_service(service: &ServiceConfig) {
    let plan = serde_json::to_vec(service).unwrap_or_default();
    assert_eq!(serde_json::from_slice::<ServiceConfig>(&plan).as_ref().ok(), Some(service));
    assert!((1..=1024).contains(&service.workers) && (1..=1_000_000).contains(&service.max_connections));
    assert!(service.name.len() <= 64 && !service.listen.is_empty());
}

fn check_shown(problems: &Diagnostics) {
    let shown = problems.to_string();
    // What the log escapes, except the newlines and backslashes that are our own.
    let obeyed = |c: char| c != '\\' && is_special(c);
    assert!(!shown.chars().any(|c| c != '\n' && obeyed(c)), "{shown:?}");
    assert!(!problems.first_line().chars().any(obeyed), "{shown:?}");
}

/// Whatever another super-server's configuration says, what is printed of it is a configuration of preforkd.
pub fn import(text: &[u8]) {
    let application = builtin::preforkd().into_application();
    crate::import::try_out(&String::from_utf8_lossy(text), &application);
}

/// A prefix reads as what it is shown as, and what is none is explained.
pub fn prefix(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match text.parse::<Prefix>() {
        Ok(prefix) => {
            assert_eq!(prefix.to_string().parse(), Ok(prefix));
            assert_eq!(Prefix::around(prefix.network(), prefix.length()), prefix);
        }
        Err(error) => assert!(!error.help(text).is_empty() && !error.to_string().is_empty()),
    }
}

/// The rules decide as somebody would who reads them one by one. The bytes are rules and addresses, 18 bytes each.
pub fn rules(bytes: &[u8]) {
    let (mut lists, mut addresses) = ([const { Vec::new() }; 2], Vec::new());
    // As many as cut one another in all ways; the naive matcher takes the square of it.
    for (record, line) in bytes.chunks_exact(18).take(64).zip(1..) {
        let Some((&[kind, length], octets)) = record.split_first_chunk() else { continue };
        let octets: [u8; 16] = octets.try_into().unwrap_or_default();
        let [a, b, c, d, ..] = octets;
        let address: IpAddr =
            if kind & 1 == 0 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(octets).into() };
        addresses.push(address);
        if kind & 2 == 0 {
            let prefix = Prefix::around(address, length);
            addresses.extend(edges(prefix));
            lists[usize::from(kind >> 2 & 1)].push(Listed {
                caller: Caller::Prefix(prefix),
                place: WrittenAt { name: "x", line: Some(line) },
            });
        }
    }
    let [allow, deny] = lists;
    let rules = Rules::new(allow.iter().copied(), deny.iter().copied());
    let plan = serde_json::to_vec(&rules).unwrap_or_default();
    assert_eq!(serde_json::from_slice(&plan).ok().as_ref(), Some(&rules));
    let none = Callers::default();
    let file = CallerSets::freeze(&rules, &none, &none);
    let Ok(sets) = file.and_then(|file| CallerSets::open(file.as_fd())) else { unreachable!("no memory") };
    for address in addresses {
        let decision = rules.decide(address);
        assert_eq!(sets.allow(address), decision.allowed, "{address}");
        let found = decision.rule.map(|rule| (rule.action, rule.caller, rule.place.line));
        let (allowed, rule) = naive(&allow, &deny, address);
        assert_eq!((decision.allowed, found), (allowed, rule), "{address}");
    }
}

type Decided = (Action, Caller, Option<u32>);

/// Each rule in turn: a longer prefix beats a shorter one, deny beats allow, what was written first the rest.
fn naive(allow: &[Listed<'_>], deny: &[Listed<'_>], address: IpAddr) -> (bool, Option<Decided>) {
    let mut best: Option<Decided> = None;
    for (list, action) in [(deny, Action::Deny), (allow, Action::Allow)] {
        for Listed { caller, place } in list {
            let length = |caller: Caller| caller.prefix().map(|prefix| prefix.length());
            let longer = best.is_none_or(|(_, other, _)| length(*caller) > length(other));
            if longer && caller.prefix().is_some_and(|prefix| has(prefix, address)) {
                best = Some((action, *caller, place.line));
            }
        }
    }
    (best.map_or(allow.is_empty(), |(action, ..)| action == Action::Allow), best)
}

/// Whether the first bits are the same.
fn has(prefix: Prefix, address: IpAddr) -> bool {
    let beyond = |width: u32| width - u32::from(prefix.length());
    match (prefix.network(), address.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(beyond(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(beyond(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// The last address of a prefix, and its neighbours.
fn edges(prefix: Prefix) -> [IpAddr; 3] {
    let beyond = |width: u32| width - u32::from(prefix.length());
    match prefix.network() {
        IpAddr::V4(v4) => {
            let last = v4.to_bits() | u32::MAX.checked_shr(32 - beyond(32)).unwrap_or(0);
            [last, last.wrapping_add(1), v4.to_bits().wrapping_sub(1)]
                .map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(v6) => {
            let last = v6.to_bits() | u128::MAX.checked_shr(128 - beyond(128)).unwrap_or(0);
            [last, last.wrapping_add(1), v6.to_bits().wrapping_sub(1)]
                .map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    }
}

/// A PROXY header is the same wherever the network cuts it, and never is a byte asked for that is not its own.
pub fn proxy(bytes: &[u8]) {
    for limit in [LONGEST_V1, 4096, LONGEST_V2] {
        let whole = proxy::parse(bytes, limit);
        let end = match whole {
            Ok(Parsed::Header(header)) => {
                assert!(header.length <= bytes.len() && header.length <= limit);
                header.length
            }
            _ => bytes.len(),
        };
        (0..end).for_each(|length| check_cut(&bytes[..length], limit, whole, end));
        assert_eq!(proxy::parse(&bytes[..end], limit), whole, "what follows the header makes a difference");
    }
}

fn check_cut(cut: &[u8], limit: usize, whole: Result<Parsed, ProxyError>, end: usize) {
    let parsed = proxy::parse(cut, limit);
    match (parsed, whole) {
        (Ok(Parsed::NeedMore(more)), Ok(Parsed::Header(_))) => assert!(more > 0 && cut.len() + more <= end),
        // What is asked for is the least of a right header, and whether it will be one is not known yet.
        (Ok(Parsed::NeedMore(more)), _) => assert!(more > 0),
        (Err(_), Err(_)) => {}
        _ => assert_eq!(parsed, whole, "after {} bytes", cut.len()),
    }
}

/// What is called at the control socket is the same in whatever pieces it comes, and when it is called again.
pub fn request(bytes: &[u8]) {
    control::check_calls(bytes);
}

/// What a connection process reports means one thing.
pub fn report(bytes: &[u8]) {
    for message in [bytes].into_iter().chain(bytes.chunks(24)) {
        let Some((pid, report)) = ChildReport::decode(message) else { continue };
        assert_eq!(ChildReport::decode(&report.encode(pid)), Some((pid, report)));
        if let ChildReport::Failed(failure) = report {
            let _ = failure.kind();
        }
    }
    for words in bytes.chunks_exact(16) {
        let (first, second) = words.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let Some(note) = ExitNote::from_words([word(first), word(second)]) else { continue };
        assert_eq!(ExitNote::from_words(note.to_words()), Some(note));
    }
}

/// What a spare says means one caller.
pub fn call(bytes: &[u8]) {
    for message in [bytes].into_iter().chain(bytes.chunks(48)) {
        if let Some((pid, caller)) = events::decode(message) {
            assert_eq!(events::decode(&events::encode(pid, &caller)), Some((pid, caller)));
        }
    }
}

/// Whatever a worker writes to the memory of its service: who reads it finds no more slots than there are, keeps the limit, and
/// can give back what it holds. The bytes are words and where they stand, 12 bytes each.
pub fn scoreboard(bytes: &[u8]) {
    let made = || -> std::io::Result<_> {
        let (sources, sources_file) = Sources::create()?;
        let (scoreboard, file) = Scoreboard::create(sources)?;
        let (counters, counters_file) = Counters::create()?;
        Ok((Rc::new(scoreboard), counters, [file, sources_file, counters_file]))
    };
    let Ok((scoreboard, counters, files)) = made() else { unreachable!("no memory") };
    scoreboard.set_limit(8);
    let before = [
        Slot::claim(Rc::clone(&scoreboard), Owner::worker(1)),
        Slot::claim(Rc::clone(&scoreboard), Owner::worker(2)),
    ];
    bytes.chunks_exact(12).take(256).for_each(|record| scribble(&files, record));

    let sources = scoreboard.sources();
    let processes = scoreboard.processes();
    let total = u64::from(processes.connections) + u64::from(processes.spares) + u64::from(processes.claimed);
    assert!(total <= 1_000_000 && sources.counted() <= 1_000_000 && scoreboard.limit() <= 1_000_000);
    let now = Monotonic::now();
    let name = |address: u32| SourceName::Prefix(Prefix::around(IpAddr::V4(address.into()), 32));
    let source = sources.source(name(1));
    for owner in [Owner::worker(1), Owner::worker(2), Owner::SUPERVISOR] {
        for row in scoreboard.held_by(owner) {
            assert!(row.slot.index() < 1_000_000 && row.pid.is_none_or(|pid| pid > 1));
            let _ = (
                row.state(),
                row.connection.map(|connection| Remote::from(connection.client.peer).to_string()),
            );
        }
        scoreboard.recount(owner, |connection| {
            Some(sources.source(name(u32::try_from(connection.number).unwrap_or(1))))
        });
    }
    let _ = sources.enter(SlotIndex::at(3), source, 2);
    sources.leave(SlotIndex::at(3));
    // It waits for no longer than its limits say, unless there is no place for it, which is a matter of the moment.
    let bucket = Bucket { interval: Duration::from_secs(1), burst: 2 };
    let takes = |time| sources.take_token(source, bucket, || now + time);
    assert!((0..3).any(|_| takes(Duration::ZERO) || takes(Duration::from_secs(2))));
    let penalty = Penalty {
        amount: Duration::from_secs(1),
        threshold: Duration::ZERO,
        longest: Duration::from_secs(5),
    };
    assert!(sources.punish(source, &penalty, || now).total <= penalty.longest);
    let _ = sources.waits(source, now);
    sources.forgive(now, |_| true);
    let mut sum = counters.totals();
    sum.add(counters.totals());

    // The supervisor sets the limit again, and gives back what dead workers held.
    scoreboard.set_limit(8);
    let mut held: Vec<_> = [Owner::worker(1), Owner::worker(2)]
        .into_iter()
        .flat_map(|owner| scoreboard.held_by(owner))
        .map(|row| Slot::adopt(Rc::clone(&scoreboard), row.slot))
        .collect();
    assert!(held.iter().all(|slot| scoreboard.row(slot.index()).slot == slot.index()));
    held.clear();
    assert!(
        scoreboard.held_by(Owner::worker(1)).is_empty() && scoreboard.held_by(Owner::worker(2)).is_empty()
    );
    let claimed: Vec<_> =
        std::iter::from_fn(|| Slot::claim(Rc::clone(&scoreboard), Owner::worker(3)).ok()).collect();
    assert!(claimed.len() <= 8);
    drop((claimed, before));
}

/// One word, somewhere: which memory and what part of it, which word there, and what it is.
fn scribble(files: &[OwnedFd; 3], record: &[u8]) {
    use std::os::unix::fs::FileExt;
    let [part, kind, low, high, word @ ..] = record else { return };
    let file = &files[usize::from(part % 3)];
    let Ok(file) = file.try_clone().map(std::fs::File::from) else { return };
    let slots: u64 = 1_000_000;
    // The head and the owners, pids and rows of a scoreboard; the slots, groups, tokens and penalties of sources.
    let begins =
        [0, 4096, 4096 + slots * 4, 4096 + slots * 8, 4160 + slots * 8, 4160 + slots * 8 + (4 << 20)];
    let place = begins[usize::from(kind % 6)] + u64::from(u16::from_ne_bytes([*low, *high])) * 8;
    if file.metadata().is_ok_and(|data| place + 8 <= data.len()) {
        let _ = file.write_all_at(word, place);
    }
}

/// A ledger is of this version and means one thing, or is refused.
pub fn saved(bytes: &[u8]) {
    saved::check_saved(bytes);
}

/// What comes over the link between worker and supervisor is a message that can be said again, or nonsense.
pub fn link(bytes: &[u8]) {
    let Ok((here, there)) = message::pair() else { unreachable!("no sockets") };
    let hear_again = |text: &[u8]| {
        if text.is_empty() || message::send(here.as_fd(), text).is_err() {
            return;
        }
        if let Heard::Message(report) = orders::hear::<WorkerReport>(there.as_fd()) {
            // What it says of why it failed may take more room than it came in.
            if orders::tell(here.as_fd(), &report).is_ok() {
                assert!(matches!(orders::hear(there.as_fd()), Heard::Message(again) if report == again));
            }
        }
        let _ = message::send(here.as_fd(), text);
        if let Heard::Message(order) = orders::hear::<Order>(there.as_fd()) {
            if let Order::Retire { empty, .. } = &order {
                let _ = [0, 63, 64, usize::MAX].map(|place| empty.contains(place));
            }
            assert!(orders::tell(here.as_fd(), &order).is_ok());
            assert!(matches!(orders::hear(there.as_fd()), Heard::Message(again) if order == again));
        }
        assert!(matches!(orders::hear::<Order>(there.as_fd()), Heard::Silence));
    };
    hear_again(bytes);
    bytes.split(|byte| *byte == b'\n').for_each(hear_again);
}

/// What a supervisor answers means the same when it is answered again.
pub fn answer(bytes: &[u8]) {
    control::check_answer(bytes);
}

/// A file of variables is read, or complained about with a line that it has.
pub fn environment(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::service::environment::parse(text) {
        Ok(variables) => {
            let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0', '\n']);
            assert!(variables.iter().all(|(name, value)| is_name(name) && !value.contains('\0')));
        }
        Err((line, why)) => assert!((1..=text.split('\n').count()).contains(&line) && !why.is_empty()),
    }
}

/// An address reads as what it is shown as, or is explained.
pub fn address(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(address) = text.parse::<config::Address>() {
        assert_eq!(address.to_string().parse::<config::Address>().ok(), Some(address));
    }
}

/// Remote text in the log is what it was, can be read in one way only, and is neither a second record nor a field.
pub fn escape(bytes: &[u8]) {
    check_escaped(bytes);
    // Where long text is cut.
    let pad = vec![b'a'; forms::LONGEST.saturating_sub(20)];
    check_escaped(&[&pad, bytes].concat());

    let event = forms::escaped(bytes, Some("\n  "));
    let mut lines = event.split(|byte| *byte == b'\n').skip(1);
    assert!(lines.all(|line| line.starts_with(b"  ") && !line.iter().any(u8::is_ascii_control)));

    let id = ConnectionId { run: 1, worker: 2, number: 3 };
    let datagram = forms::datagram(&OutputLine { service: "x", id, pid: 4, text: Ok(bytes) });
    let names = datagram.strip_suffix(b"\n").unwrap_or_default().split(|byte| *byte == b'\n');
    let names = names.map(|line| line.split(|byte| *byte == b'=').next().unwrap_or_default());
    let wanted = "MESSAGE PRIORITY SYSLOG_IDENTIFIER PREFORKD_SERVICE PREFORKD_CONNECTION PREFORKD_CHILD_PID";
    assert!(names.eq(wanted.split(' ').map(str::as_bytes)), "{}", datagram.escape_ascii());
}

fn check_escaped(bytes: &[u8]) {
    let shown = String::from_utf8(forms::escaped(bytes, None)).unwrap_or_else(|_| "\n".to_owned());
    assert!(!shown.chars().any(|c| c != '\\' && is_special(c)), "{shown:?}");
    if unescape(&shown).as_deref() != Some(bytes) {
        let (kept, mark) = shown.rsplit_once("... [").unwrap_or_default();
        let kept = unescape(kept).unwrap_or_default();
        assert!(bytes.len() > kept.len() && bytes.starts_with(&kept), "{shown:?}");
        assert_eq!(mark, format!("{} bytes more]", bytes.len() - kept.len()));
        assert!(shown.len() - mark.len() <= forms::LONGEST + "... [".len());
    }
}

/// The bytes that a text stands for.
fn unescape(shown: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = shown;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let length = match escape.chars().next()? {
            '\\' => {
                bytes.push(b'\\');
                1
            }
            'x' => {
                bytes.push(u8::from_str_radix(escape.get(1..3)?, 16).ok()?);
                3
            }
            'u' => {
                let (code, _) = escape.strip_prefix("u{")?.split_once('}')?;
                let character = char::from_u32(u32::from_str_radix(code, 16).ok()?)?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                code.len() + 3
            }
            _ => return None,
        };
        rest = escape.get(length..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    type FuzzTarget = fn(&[u8]);

    /// Every input in fuzz/corpus, so that what a fuzzer has found once is tried by every run of the tests.
    #[test]
    fn the_corpora_find_nothing() {
        let targets: [(&str, FuzzTarget); 15] = [
            ("address", address),
            ("answer", answer),
            ("call", call),
            ("config", config),
            ("environment", environment),
            ("escape", escape),
            ("import", import),
            ("link", link),
            ("prefix", prefix),
            ("proxy", proxy),
            ("report", report),
            ("request", request),
            ("rules", rules),
            ("saved", saved),
            ("scoreboard", scoreboard),
        ];
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut names = Vec::new();
        for directory in std::fs::read_dir(corpus).unwrap() {
            names.push(directory.unwrap().file_name().into_string().unwrap());
        }
        names.sort();
        assert!(names.iter().eq(targets.iter().map(|(name, _)| name)), "{names:?}");
        for (name, target) in targets {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
            let mut inputs = 0;
            for file in std::fs::read_dir(directory).unwrap() {
                let path = file.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                let survived = std::panic::catch_unwind(|| target(&bytes)).is_ok();
                assert!(survived, "{} breaks what {name} promises", path.display());
                inputs += 1;
            }
            assert!(inputs > 0, "{name}");
        }
    }
}
