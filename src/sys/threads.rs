//! Which threads this process has: none but its own, if it is to be forked.

use std::io;
use std::time::Duration;

use super::fork::has_one_thread;
use super::process;

/// Makes sure that this process can make children.
///
/// # Errors
///
/// There is another thread; it is named, and `when` says when that was.
pub(crate) fn must_be_alone(when: &str) -> io::Result<()> {
    if has_one_thread() {
        return Ok(());
    }
    // A thread takes its name itself, when it comes to run; until then it has its maker's.
    let mut names = names_of_others()?;
    let own_name = std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
    for _ in 0..NAMELESS_LOOKS {
        if !names.iter().any(|name| *name == own_name.trim_end()) {
            break;
        }
        std::thread::sleep(NAMELESS_PAUSE);
        names = names_of_others()?;
    }
    let names: Vec<_> = names.iter().map(|name| format!("\"{}\"", name.escape_debug())).collect();
    let (what, verb) = if names.len() == 1 { ("thread", "was") } else { ("threads", "were") };
    Err(io::Error::other(format!(
        "the {what} {} {verb} started {when}, and a process of several threads cannot be forked; start threads when a connection is \
         served",
        names.join(", ")
    )))
}

/// How long, and how often, is looked whether a thread has a name of its own.
const NAMELESS_PAUSE: Duration = Duration::from_millis(1);
const NAMELESS_LOOKS: u32 = 100;

/// The names of all threads but this.
fn names_of_others() -> io::Result<Vec<String>> {
    let own = process::id();
    let is_other =
        |thread: &std::fs::DirEntry| thread.file_name().to_str().and_then(|id| id.parse().ok()) != Some(own);
    let threads = std::fs::read_dir("/proc/self/task")?.filter_map(Result::ok).filter(is_other);
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    Ok(names.map(|name| name.trim_end().to_owned()).collect())
}
