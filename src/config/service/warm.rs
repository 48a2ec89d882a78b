//! `warm`: programs that are started ahead of their connections.

use std::path::Path;

use crate::config::checked::{Job, Passing, Program, ServiceConfig, WarmPoint, WarmSettings};
use crate::config::document::Section;
use crate::config::draft::ServiceDraft;
use crate::config::machine::executable::{self, Setting};
use crate::config::value::{Fault, Faults};
use crate::sys::warm;

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
    // The loader opens the object there.
    let found = std::fs::symlink_metadata(setting.root.outside(Path::new("/proc/self")));
    if found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Some(format!("there is no /proc{}", setting.root.inside()));
    }
    executable::loads_nothing(path, setting)
}

/// What is no error, and does not do what its writer expects.
pub(in crate::config) fn doubts(section: &Section<'_>, service: &ServiceConfig) -> Vec<Fault> {
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
