//! Readers and a writer: a starvation, and its cure by a lock that is fair.
//!
//! Any number of readers may have a page open at the same time; who writes it must be alone. Each is a process.
//!
//! ```console
//! $ cargo run --example readers -- serve 127.0.0.1:7007 starving
//! $ (echo read; cat) | nc 127.0.0.1 7007       # reads, until you press ^D
//! page 0
//! $ echo write | nc 127.0.0.1 7007             # in another terminal; waits until nobody reads
//! ```
//!
//! With the handler `starving`, readers who come in time to relieve each other keep the writer out for ever, though none of them stays long. With
//! `fair`, who comes after the writer waits behind him.

use std::io::{self, BufRead, BufReader, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use preforkd::shared::{Gauge, Layout, Lock};
use preforkd::{Connection, Server};

const TICK: Duration = Duration::from_millis(1);

struct Library {
    /// How many read. The share of a reader who is killed is taken out of it; a plain number would count him for ever.
    readers: Gauge,
    /// Everybody who wants to read or write passes this lock. It is fair: the kernel gives it to the one who has waited longest.
    page: Lock<u64>,
}

impl Library {
    fn declare(layout: &mut Layout) -> Self {
        Library { readers: layout.gauge("readers"), page: layout.lock("page", 0) }
    }
}

/// Both handlers read in the same way: one passes the lock, and then reads for as long as the connection is open.
fn read(library: &Library, client: &mut Connection<'_>) -> io::Result<()> {
    let page = library.page.lock()?.guard();
    library.readers.add(1);
    let number = *page;
    drop(page);
    let read = writeln!(client, "page {number}").and_then(|()| io::copy(client, &mut io::sink()));
    library.readers.add(-1);
    read.map(drop)
}

/// **Starving**: the writer looks whether anybody reads, and if so, *lets others pass* and looks again later. He has no place in any queue.
fn write_if_nobody_reads(library: &Library) -> io::Result<()> {
    loop {
        let mut page = library.page.lock()?.guard();
        if library.readers.sum() == 0 {
            *page += 1;
            page.commit();
            return Ok(());
        }
        drop(page);
        sleep(TICK);
    }
}

/// **Fair**: the writer keeps the lock while those who read already come to their end. Whoever comes now is queued behind him, and it is a
/// fair queue, so he waits for no more readers than there were when he came, and they for no more than one writer.
///
/// The price: a reader who never ends has everybody wait. That is what deadlines are for: `idle_timeout`, `max_lifetime`.
fn write_when_all_have_read(library: &Library) -> io::Result<()> {
    let mut page = library.page.lock()?.guard();
    while library.readers.sum() > 0 {
        sleep(TICK);
    }
    *page += 1;
    page.commit();
    Ok(())
}

fn visit(
    write: fn(&Library) -> io::Result<()>,
) -> impl Fn(&Library, &mut Connection<'_>) -> io::Result<()> + Sync {
    move |library, client| {
        let mut line = String::new();
        BufReader::with_capacity(16, &*client).read_line(&mut line)?;
        match line.as_str() {
            "read\n" => read(library, client),
            "write\n" => {
                write(library)?;
                writeln!(client, "written")
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "that is neither read nor write")),
        }
    }
}

fn main() -> ExitCode {
    Server::new("readers")
        .about("Have many read what one may write")
        .sharing_handler("starving", Library::declare, visit(write_if_nobody_reads))
        .sharing_handler("fair", Library::declare, visit(write_when_all_have_read))
        .main()
}
