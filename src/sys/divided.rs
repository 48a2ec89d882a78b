//! Work that is divided among processes: for a command that has much to look up, and more than one processor to do it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use super::wait::{self, Ending, Pid};
use super::{fd, fork, process};

/// No more than so many at once: they are in the way of whoever else wants a processor.
const MOST: usize = 4;

/// As much as anybody may give a pipe by default, pipe(7).
const PIPE: usize = 1 << 20;

/// What `work` makes of each part of `items`, in their order: a process for each, if it has `least` items at least, and no more than
/// there are processors. What a process cannot do is done here.
///
/// # Errors
///
/// Those of `work`.
pub(crate) fn work<T: Sync, E>(
    items: &[T],
    least: usize,
    work: impl Fn(&[T]) -> Result<Vec<u8>, E> + Sync,
) -> Result<Vec<Vec<u8>>, E> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
    among(items, processors.min(items.len() / least.max(1)).max(1), work)
}

fn among<T: Sync, E>(
    items: &[T],
    processes: usize,
    work: impl Fn(&[T]) -> Result<Vec<u8>, E> + Sync,
) -> Result<Vec<Vec<u8>>, E> {
    let size = items.len().div_ceil(processes).max(1);
    let (first, others) = items.split_at(size.min(items.len()));
    let others: Vec<_> = others.chunks(size).map(|part| (part, start(part, &work))).collect();
    let mut made = vec![work(first)?];
    for (part, helper) in others {
        made.push(match helper.and_then(finish) {
            Some(its) => its,
            None => work(part)?,
        });
    }
    Ok(made)
}

/// A process that is at it, and where it writes what it has made.
type Helper = (Pid, OwnedFd);

fn start<T: Sync, E>(part: &[T], work: &(impl Fn(&[T]) -> Result<Vec<u8>, E> + Sync)) -> Option<Helper> {
    let (read, write) = fd::pipe().ok()?;
    // With less it would wait for each piece to be read, which is done last.
    let _ = fd::set_pipe_room(write.as_fd(), PIPE);
    let parent = process::id();
    let pid = fork::fork(move |_| {
        // Nobody else would take what it writes.
        let is_wanted = process::end_with_parent().is_ok() && process::parent() == parent;
        let made = if is_wanted { work(part).ok() } else { None };
        u8::from(made.is_none_or(|made| File::from(write).write_all(&made).is_err()))
    });
    Some((pid.ok()?, read))
}

/// What it has made, if that is all there is.
fn finish((pid, read): Helper) -> Option<Vec<u8>> {
    let mut made = Vec::new();
    let is_read =
        fd::set_nonblocking(read.as_fd(), false).is_ok() && File::from(read).read_to_end(&mut made).is_ok();
    let ended = wait::wait_for(pid).ok()??;
    (is_read && ended.ending == Ending::Exited(0)).then_some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has a test done by a process of its own, in which nothing else runs: a copy of one with several threads may find the locks of the
    /// others taken for ever, that of malloc(3) too.
    fn alone(name: &str, test: impl FnOnce()) {
        const ALONE: &str = "PREFORKD_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            // The main thread waits for this one, and has no lock then.
            let runs = |thread: &std::path::Path| {
                !std::fs::read_to_string(thread.join("stat")).unwrap().contains(") S ")
            };
            let threads =
                || std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
            while threads().filter(|thread| runs(thread)).count() > 1 {
                std::thread::yield_now();
            }
            return test();
        }
        let mut copy = std::process::Command::new(std::env::current_exe().unwrap());
        copy.args(["--exact", &format!("sys::divided::tests::{name}"), "--test-threads=1", "--nocapture"]);
        let output = copy.env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains(" 1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Each item as a line, with the process that made it.
    fn lines(part: &[u32]) -> Vec<u8> {
        part.iter().flat_map(|item| format!("{item} {}\n", process::id()).into_bytes()).collect()
    }

    fn divide(count: u32, processes: usize, work: impl Fn(&[u32]) -> Vec<u8> + Sync) -> (Vec<u32>, usize) {
        let items: Vec<_> = (0..count).collect();
        let made = among(&items, processes, |part| Ok::<_, ()>(work(part))).unwrap();
        let text = String::from_utf8(made.concat()).unwrap();
        let (items, mut makers): (Vec<u32>, Vec<Pid>) = text
            .lines()
            .map(|line| {
                let (item, maker) = line.split_once(' ').unwrap();
                (item.parse::<u32>().unwrap(), maker.parse::<Pid>().unwrap())
            })
            .unzip();
        makers.dedup();
        (items, makers.len())
    }

    #[test]
    fn all_parts_are_done_in_order_by_as_many_processes() {
        alone("all_parts_are_done_in_order_by_as_many_processes", || {
            // More than a pipe has room for, less than a part for each, and nothing.
            for (count, processes, makers) in [(50_000, 3, 3), (7, 3, 3), (2, 4, 2), (1, 1, 1), (0, 4, 0)] {
                let wanted: Vec<_> = (0..count).collect();
                assert_eq!(divide(count, processes, lines), (wanted, makers), "{count}");
            }
        });
    }

    #[test]
    fn what_a_process_fails_to_do_is_done_here() {
        alone("what_a_process_fails_to_do_is_done_here", || {
            let here = process::id();
            let wanted: Vec<_> = (0..50_000).collect();
            // It ends with nothing made, or is killed.
            for way in
                [|| process::exit(3), || process::signal_process(process::id(), nix::sys::signal::SIGKILL)]
            {
                let work = |part: &[u32]| {
                    if process::id() != here {
                        way();
                    }
                    lines(part)
                };
                assert_eq!(divide(50_000, 3, work), (wanted.clone(), 1));
            }
            let fails = |part: &[u32]| if part.contains(&49_999) { Err("no") } else { Ok(Vec::new()) };
            assert_eq!(among(&wanted, 3, fails), Err("no"));
        });
    }
}
