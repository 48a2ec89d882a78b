//! A chat room whose members are processes: what one says, all read.
//!
//! ```console
//! $ cargo run --example chat -- serve 127.0.0.1:7007
//! $ nc 127.0.0.1 7007
//! Ada
//! * Ada has come, 1 here
//! hello
//! Ada: hello
//! ```
//!
//! A member who is killed, or whose process crashes, is gone, and nobody else notices but by the number. One who does not read what is sent to him
//! keeps nobody waiting: each has his own process, and once he is too far behind he misses lines.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use preforkd::shared::{Gauge, Layout, Lock};
use preforkd::{Connection, Readiness, Server};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// The longest line, with name and all.
const LONGEST: usize = 120;
/// So many lines are kept for those who are behind.
const KEPT: usize = 64;
/// How often a member looks for what others have said: he waits for his client, and memory cannot wake him from that.
const TICK: Duration = Duration::from_millis(20);

/// What was said last: line number `n` is in `lines[n % KEPT]`, with zeros behind it. It is plain data, as all that processes share.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Talk {
    /// How many lines were ever said.
    said: u64,
    lines: [[u8; LONGEST]; KEPT],
}

struct Room {
    talk: Lock<Talk>,
    here: Gauge,
}

impl Room {
    fn declare(layout: &mut Layout) -> Self {
        Room { talk: layout.lock("talk", Talk::new_zeroed()), here: layout.gauge("here") }
    }

    /// A line is said by one `update`: all see it, in the same order, or the process that wanted to say it was killed and nobody does.
    fn say(&self, line: &str) -> io::Result<()> {
        let mut bytes = [0; LONGEST];
        bytes.iter_mut().zip(line.as_bytes()).for_each(|(place, byte)| *place = *byte);
        self.talk.update(|talk| {
            talk.lines[talk.said as usize % KEPT] = bytes;
            talk.said += 1;
        })?;
        Ok(())
    }

    /// Sends the client what it has not read yet, from line `next` on. `read` takes no lock: who reads is in nobody's way.
    fn tell(&self, next: &mut u64, client: &mut Connection<'_>) -> io::Result<()> {
        let talk = self.talk.read()?;
        let oldest = talk.said.saturating_sub(KEPT as u64);
        if *next < oldest {
            writeln!(client, "* {} lines missed", oldest - *next)?;
            *next = oldest;
        }
        while *next < talk.said {
            let line = &talk.lines[*next as usize % KEPT];
            let length = line.iter().position(|byte| *byte == 0).unwrap_or(LONGEST);
            client.write_all(&line[..length])?;
            client.write_all(b"\n")?;
            *next += 1;
        }
        Ok(())
    }
}

/// The first line is the member's name; each other is for all.
fn chat(room: &Room, client: &mut Connection<'_>) -> io::Result<()> {
    // His name, and the number of the line that he is to read next.
    let mut member: Option<(String, u64)> = None;
    let mut unfinished = Vec::new();
    loop {
        if client.wait(Readiness::READ, Some(TICK))?.read {
            let mut piece = [0; LONGEST];
            let length = client.read(&mut piece)?;
            if length == 0 {
                break;
            }
            unfinished.extend_from_slice(&piece[..length]);
        }
        while let Some(end) = unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unfinished.drain(..=end).take(end).collect();
            // A zero would end it, and other such bytes would move the cursors of all.
            let line = String::from_utf8_lossy(&line).replace(char::is_control, "?");
            match &member {
                Some((name, _)) => room.say(&format!("{name}: {line}"))?,
                None => {
                    let next = room.talk.read()?.said;
                    room.here.add(1);
                    room.say(&format!("* {line} has come, {} here", room.here.sum()))?;
                    member = Some((line, next));
                }
            }
        }
        if unfinished.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
        }
        if let Some((_, next)) = &mut member {
            room.tell(next, client)?;
        }
    }
    if let Some((name, _)) = member {
        // Only one who leaves says so. The share of one who does not get here is taken out of the gauge when his process ends.
        room.here.add(-1);
        room.say(&format!("* {name} has gone, {} here", room.here.sum()))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    Server::new("chat")
        .about("Have all clients talk to each other")
        .sharing_handler("chat", Room::declare, chat)
        .main()
}
