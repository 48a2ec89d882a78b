//! The first process of a namespace of processes, pid_namespaces(7), where a service wants one for each connection.
//!
//! When it ends, the kernel kills all that is in the namespace, whatever session or group that has moved to: so it ends when the
//! connection process does, which is its child. It could not be that itself. A program that is the first process does not hear
//! a signal that it does not handle, and finds itself the parent of orphans. For its worker it is the connection process: it has its
//! number, it is signalled, and it ends as the other has ended.
//!
//! Nothing of a stranger runs in it. It is out of the sandbox, so that what it passes on reaches who is in it, and neither siblings nor
//! the connection process can look into it or trace it: those are in a Landlock domain each.

use super::{ChildSpec, Failed};
use crate::admission::sources::SlotIndex;
use crate::ipc::reports::{ExitNote, Step};
use crate::sys::fork::{ForkedChild, fork_again};
use crate::sys::wait::{self, Ending, Pid};
use crate::sys::{child_fds, process, signal};

/// What a shell exits with when a signal has ended what it ran, less the number.
const KILLED: u8 = 128;

/// In a child that was made as the first of a namespace, with all signals blocked: does `work` in a process of its own, and is
/// there as long as that is. Returns what that has exited with.
pub(super) fn attend<F: FnOnce(ForkedChild) -> u8 + Send>(
    child: ForkedChild,
    spec: &ChildSpec,
    slot: Option<SlotIndex>,
    work: F,
) -> u8 {
    let begun = begin(child, spec, slot, work);
    match begun {
        Ok(process) => last_as_long_as(process),
        Err(failed) => spec.fail(None, &failed),
    }
}

fn begin<F: FnOnce(ForkedChild) -> u8 + Send>(
    child: ForkedChild,
    spec: &ChildSpec,
    slot: Option<SlotIndex>,
    work: F,
) -> Result<Pid, Failed> {
    process::learn_outer_id().map_err(|error| (Step::Process, error))?;
    process::new_group().map_err(|error| (Step::Group, error))?;
    let process = fork_again(child, work).map_err(|error| (Step::Process, error))?;
    process::set_name(c"preforkd-init");
    // If it cannot, it ends, and the other with it.
    spec.confinement.take_identity(slot.map(SlotIndex::index))?;
    child_fds::close_standard_and_all_but(child, &[]).map_err(|error| (Step::Descriptors, error))?;
    Ok(process)
}

fn last_as_long_as(process: Pid) -> u8 {
    loop {
        while let Some(ended) = wait::ended() {
            let note = if ended == process { ExitNote::of(ended) } else { None };
            let Ok(Some(ended)) = wait::wait_for(ended) else { continue };
            if ended.pid == process {
                return end_as(ended.ending, note);
            }
        }
        let (number, is_from_outside) = signal::wait_for_any();
        // What is in here can signal itself, and who signals his parent does not mean himself.
        if is_from_outside && !signal::is_of_child(number) {
            signal::relay(number, process);
        }
    }
}

fn end_as(ending: Ending, note: Option<ExitNote>) -> u8 {
    match ending {
        Ending::Exited(code) => {
            note.into_iter().for_each(ExitNote::leave);
            code
        }
        Ending::Killed(signal) => {
            ExitNote::Killed(signal).leave();
            KILLED.saturating_add(u8::try_from(signal).unwrap_or(0))
        }
    }
}
