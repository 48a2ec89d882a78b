//! `warm`: programs that are started ahead of their connections.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::document::Section;
use super::draft::ServiceDraft;
use super::executable::{self, Setting};
use super::key::{Key, Kind};
use super::value::{Applied, Fault, Faults, TomlValue, choice, duration, one_or_more, set, text};
use super::{Job, Passing, Program, ServiceConfig};
use crate::sys::warm;

/// How far a program is started ahead of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WarmPoint {
    /// Until nothing of it has run but its loader.
    Start,
    /// Until it asks the kernel for its connection, or for anything that others would notice.
    Spare,
}

/// What holds of programs that are started ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WarmSettings {
    /// Where they wait.
    pub(crate) point: WarmPoint,
    /// One that has waited for so long is replaced.
    pub(crate) max_age: Duration,
    /// When one of these changes, all are replaced.
    pub(crate) watch: Vec<PathBuf>,
    /// Why none can be, so that all are started when their connection is there.
    pub(crate) obstacle: Option<String>,
}

/// What the keys have said.
#[derive(Debug, Default)]
pub(crate) struct WarmDraft {
    point: Option<Option<WarmPoint>>,
    max_age: Option<Duration>,
    watch: Vec<Spanned<PathBuf>>,
}

impl WarmDraft {
    /// Whether programs are to be started ahead.
    pub(super) fn is_wanted(&self) -> bool {
        self.point.flatten().is_some()
    }
}

pub(super) const WARM: Key<ServiceDraft> = Key {
    name: "warm",
    flag: Some("warm"),
    kind: Kind::Text,
    placeholder: "HOW",
    default: Some("\"no\""),
    example: "\"start\"",
    doc: "Whether the spares of a program are the program itself, started ahead of its connection: start has it wait before its \
          main function, spare when it first asks for its connection; then it has no variables that tell of the client",
    decode: Some(|draft, value| decode(&mut draft.warm, value)),
};

pub(super) const WARM_MAX_AGE: Key<ServiceDraft> = Key {
    name: "warm_max_age",
    flag: Some("warm-max-age"),
    kind: Kind::Text,
    placeholder: "DURATION",
    default: Some("\"10m\""),
    example: "\"1h\"",
    doc: "How long a warm program may wait; then another takes its place",
    decode: Some(|draft, value| decode_max_age(&mut draft.warm, value)),
};

pub(super) const WARM_WATCH: Key<ServiceDraft> = Key {
    name: "warm_watch",
    flag: Some("warm-watch"),
    kind: Kind::List,
    placeholder: "PATH",
    default: None,
    example: "[\"/srv/report.py\"]",
    doc: "Files and directories; when one of them changes, all warm programs of the service are replaced at once",
    decode: Some(|draft, value| decode_watch(&mut draft.warm, value)),
};

const WORDS: [(&str, Option<WarmPoint>); 3] =
    [("no", None), ("start", Some(WarmPoint::Start)), ("spare", Some(WarmPoint::Spare))];

/// `warm`
fn decode(draft: &mut WarmDraft, value: &TomlValue<'_>) -> Applied {
    set(&mut draft.point, choice(value, &WORDS))
}

/// `warm_max_age`
fn decode_max_age(draft: &mut WarmDraft, value: &TomlValue<'_>) -> Applied {
    let age = duration(value)?;
    if age < Duration::from_secs(1) {
        let fault = Fault::new(value.span(), "a warm program would be replaced before anybody could call");
        return Err(fault.help("write \"1s\" at least").into());
    }
    draft.max_age = Some(age);
    Ok(())
}

/// `warm_watch`
fn decode_watch(draft: &mut WarmDraft, value: &TomlValue<'_>) -> Applied {
    let mut faults = Faults::new();
    for entry in one_or_more(value) {
        match text(entry) {
            Ok(path) if path.starts_with('/') => {
                draft.watch.push(Spanned::new(entry.span(), path.into()));
            }
            Ok(path) => {
                let fault = Fault::new(entry.span(), format!("\"{path}\" is not absolute"));
                faults.push(fault.help("write it from / on"));
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// How programs are started ahead; `None` if they are not.
pub(super) fn of(
    section: &Section<'_>,
    draft: &ServiceDraft,
    job: Option<&Job>,
    setting: Setting<'_>,
) -> Result<Option<WarmSettings>, Faults> {
    let at = |key| section.span(key).unwrap_or_else(|| section.header.clone());
    let Some(point) = draft.warm.point.flatten() else {
        // The other keys say nothing then.
        return Ok(None);
    };
    // Its own fault has been said, and says more.
    if draft.wait {
        return Ok(None);
    }
    let mut faults = Faults::new();
    match job {
        Some(Job::Handler(_)) => {
            let message =
                "warm is for programs: a handler needs no start, and spare = N forks its processes ahead";
            faults.push(Fault::new(at("warm"), message).help("remove warm"));
        }
        Some(Job::Exec(Program { passing: Passing::ListenFds, .. })) => {
            let message =
                "a warm program has its connection on 0 and 1, and not as a socket that is passed to it";
            faults.push(Fault::new(at("warm"), message).help("remove connection = \"listen-fds\", or warm"));
        }
        Some(Job::Exec(_)) | None => {}
    }
    if draft.spare.is_none_or(|spare| spare == 0) && faults.is_empty() {
        let message = "warm can do nothing: it is the spares that are started ahead, and there are none";
        faults.push(Fault::new(at("warm"), message).help("add spare = 8, or how many are to wait"));
    }
    for path in &draft.warm.watch {
        if let Err(error) = std::fs::symlink_metadata(path.get_ref()) {
            let message = format!("{} cannot be watched: {error}", path.get_ref().display());
            faults
                .push(Fault::new(path.span(), message).help("correct the path, or take it out").of_machine());
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let obstacle = match job {
        Some(Job::Exec(program)) => obstacle(&program.path, setting),
        _ => None,
    };
    Ok(draft.warm.max_age.map(|max_age| WarmSettings {
        point,
        max_age,
        watch: draft.warm.watch.iter().map(|path| path.get_ref().clone()).collect(),
        obstacle,
    }))
}

/// Why this program cannot be warm, here.
fn obstacle(path: &Path, setting: Setting<'_>) -> Option<String> {
    if !warm::IS_BUILT {
        return Some("that is built for x86-64 alone".to_owned());
    }
    if setting.environment.contains_key("LD_PRELOAD") {
        return Some("its environment has an LD_PRELOAD of its own".to_owned());
    }
    executable::loads_nothing(path, setting)
}

/// What is no error, and does not do what its writer expects.
pub(super) fn doubts(section: &Section<'_>, service: &ServiceConfig) -> Vec<Fault> {
    let Some(settings) = &service.warm else { return Vec::new() };
    let at = section.span("warm").unwrap_or_else(|| section.header.clone());
    let mut doubts = Vec::new();
    if settings.point == WarmPoint::Spare {
        let message = format!(
            "no variables tell the program of \"{}\" who calls: with warm = \"spare\" it has started when that is known",
            service.name
        );
        doubts.push(Fault::new(at.clone(), message).help(
            "it can ask by getpeername(2) on descriptor 0; if it needs TCPREMOTEIP, REMOTE_ADDR or others, write warm = \"start\"",
        ));
    }
    let why = settings.obstacle.iter();
    let fault = |why| {
        let message = format!("the program of \"{}\" cannot be warm: {why}", service.name);
        Fault::new(at.clone(), message)
            .help("it is started when its connection is there; remove warm to hear no more of this")
    };
    doubts.extend(why.map(fault));
    doubts
}
