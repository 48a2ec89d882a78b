//! The dining philosophers: a deadlock, refused and cured.
//!
//! Five philosophers sit at a round table, each a process, with a fork between every two of them. To eat, one needs the fork at his left
//! and the one at his right. If each takes his left one first, each has one, and waits for ever for the other.
//!
//! ```console
//! $ cargo run --example philosophers -- serve 127.0.0.1:7007 deadlock
//! $ for place in 1 2 3 4 5; do echo $place | nc 127.0.0.1 7007 & done; sleep 1; echo look | nc 127.0.0.1 7007
//! [1, 2, 3, 4, 5]
//! ```
//!
//! That is who has which fork, and so it stays. With the handler `refused` instead, philosopher 5 is told what he is about to do wrong;
//! with `ordered` all five eat.

use std::io::{self, BufRead, BufReader, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use preforkd::shared::{Layout, Lock, SharedError};
use preforkd::{Connection, Server};

const FORKS: [&str; 5] = ["fork-1", "fork-2", "fork-3", "fork-4", "fork-5"];

/// For how long a philosopher has one fork before he reaches for the other. Without it the deadlock comes as surely, but later.
const THINKS: Duration = Duration::from_millis(5);

struct Table {
    /// In their order: that of the declaration.
    forks: [Lock<u32>; 5],
}

impl Table {
    fn declare(layout: &mut Layout) -> Self {
        Table { forks: FORKS.map(|fork| layout.lock(fork, 0)) }
    }
}

/// **The deadlock**, with locks made at home: a fork that is somebody's has his number.
///
/// Nothing knows that these numbers are locks. So nobody sees that they are taken in a circle. And a philosopher who is killed keeps his forks.
fn eat_or_starve(table: &Table, place: usize) -> io::Result<()> {
    let (left, right) = (place, (place + 1) % 5);
    let me = place as u32 + 1;
    let take = |fork: usize| -> io::Result<()> {
        while table.forks[fork].update(|owner| {
            *owner != 0 || {
                *owner = me;
                false
            }
        })? {
            sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    take(left)?;
    sleep(THINKS);
    take(right)?;
    for fork in [left, right] {
        table.forks[fork].update(|owner| *owner = 0)?;
    }
    Ok(())
}

/// **The same with locks of preforkd.** They have an order, in which they are declared. Philosopher 5 has the last fork, and takes the first: that
/// is an error, `SharedError::Order`, which names fork-1. Always, also if he is alone at the table: a deadlock that needs five unlucky
/// philosophers at once is found by the first test of one.
fn eat_or_be_told(table: &Table, place: usize) -> io::Result<()> {
    eat(table, place, (place + 1) % 5)
}

/// **The cure**: everybody takes the fork with the lower number first. A circle of those who wait would have to go down somewhere.
fn eat_in_order(table: &Table, place: usize) -> io::Result<()> {
    let (left, right) = (place, (place + 1) % 5);
    eat(table, left.min(right), left.max(right))
}

/// With these locks the kernel knows who has what: the forks of one who is killed go to those who wait. The value of a fork is how
/// many meals it has served.
fn eat(table: &Table, first: usize, second: usize) -> io::Result<()> {
    let mut first = table.forks[first].lock()?.guard();
    sleep(THINKS);
    let mut second = table.forks[second].lock()?.guard();
    *first += 1;
    *second += 1;
    first.commit();
    second.commit();
    Ok(())
}

/// Each line is a place, 1 to 5, whose philosopher is hungry; or `look`.
fn dine(
    eat: fn(&Table, usize) -> io::Result<()>,
) -> impl Fn(&Table, &mut Connection<'_>) -> io::Result<()> + Sync {
    move |table, client| {
        let client = &*client;
        let mut answers = client;
        for line in BufReader::new(client).lines() {
            match line?.parse::<usize>() {
                Ok(place @ 1..=5) => match eat(table, place - 1) {
                    Ok(()) => writeln!(answers, "philosopher {place} has eaten")?,
                    Err(error) => writeln!(answers, "philosopher {place} has not: {error}")?,
                },
                _ => {
                    let forks: Result<Vec<u32>, SharedError> = table.forks.iter().map(Lock::read).collect();
                    writeln!(answers, "{:?}", forks?)?;
                }
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    Server::new("philosophers")
        .about("Have five philosophers dine, each a process")
        .sharing_handler("deadlock", Table::declare, dine(eat_or_starve))
        .sharing_handler("refused", Table::declare, dine(eat_or_be_told))
        .sharing_handler("ordered", Table::declare, dine(eat_in_order))
        .main()
}
