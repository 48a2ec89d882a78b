//! The airline's last seat: many clerks, a process each, sell the seats of one plane at the same time.
//!
//! ```console
//! $ cargo run --example airline -- serve 127.0.0.1:7007 seats
//! $ nc 127.0.0.1 7007
//! seat 1 is free; which passenger?
//! 17
//! seat 1 is passenger 17's
//! ```
//!
//! The handler `race` does the same with the textbook's mistake in it. Serve that one, connect twice, and answer only then: both
//! passengers are given seat 1.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::ExitCode;

use preforkd::shared::{Layout, Lock};
use preforkd::{Connection, Server};

const SEATS: usize = 180;
const NOBODY: u32 = 0;

/// Who sits where. One value with one lock, in memory that all clerks have.
struct Plane {
    seats: Lock<[u32; SEATS]>,
}

impl Plane {
    fn declare(layout: &mut Layout) -> Self {
        Plane { seats: layout.lock("seats", [NOBODY; SEATS]) }
    }
}

/// As it must be: **look and change are one step**, with the lock.
fn sell(plane: &Plane, client: &mut Connection<'_>) -> io::Result<()> {
    // Of what is read without the lock, nothing need be true any more when the client has read it. It is an advertisement. To
    // keep the lock until he has made up his mind would make it true, and all other clients wait for him.
    offer(first(&plane.seats.read()?, NOBODY), client)?;
    let Some(passenger) = passenger(plane, client)? else { return Ok(()) };
    let seat = plane.seats.update(|seats| {
        // A clerk may be killed after the sale and before his answer. So who asks again is told what he has, and buys no second.
        let seat = first(seats, passenger).or_else(|| first(seats, NOBODY))?;
        seats[seat] = passenger;
        Some(seat)
    })?;
    // Killed before `update` was done, the clerk has sold nothing; killed after, he has sold one seat. There is no between.
    confirm(seat, passenger, client)
}

/// As it is done too often: what was true is taken to be true still. Each of its steps is safe, and together they are a race.
fn sell_twice(plane: &Plane, client: &mut Connection<'_>) -> io::Result<()> {
    let seat = first(&plane.seats.read()?, NOBODY); // he looks …
    offer(seat, client)?;
    let Some(passenger) = passenger(plane, client)? else { return Ok(()) };
    if let Some(seat) = seat {
        plane.seats.update(|seats| seats[seat] = passenger)?; // … and changes, when others have done so meanwhile.
    }
    confirm(seat, passenger, client)
}

fn first(seats: &[u32], passenger: u32) -> Option<usize> {
    seats.iter().position(|seated| *seated == passenger)
}

fn offer(seat: Option<usize>, client: &mut Connection<'_>) -> io::Result<()> {
    match seat {
        Some(seat) => writeln!(client, "seat {} is free; which passenger?", seat + 1),
        None => writeln!(client, "no seat is free; which passenger?"),
    }
}

/// The number that the client says. To who says `plan` instead, the plane.
fn passenger(plane: &Plane, client: &mut Connection<'_>) -> io::Result<Option<u32>> {
    let mut line = String::new();
    BufReader::new(&*client).take(16).read_line(&mut line)?;
    if line.trim_end() == "plan" {
        writeln!(client, "{:?}", plane.seats.read()?)?;
        return Ok(None);
    }
    let number = line.trim_end().parse().ok().filter(|number| *number != NOBODY);
    number
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "that is no passenger's number"))
}

fn confirm(seat: Option<usize>, passenger: u32, client: &mut Connection<'_>) -> io::Result<()> {
    match seat {
        Some(seat) => writeln!(client, "seat {} is passenger {passenger}'s", seat + 1),
        None => writeln!(client, "sold out"),
    }
}

fn main() -> ExitCode {
    Server::new("airline")
        .about("Sell the seats of a plane, from many processes")
        .sharing_handler("seats", Plane::declare, sell)
        .sharing_handler("race", Plane::declare, sell_twice)
        .main()
}
