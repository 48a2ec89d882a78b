//! The textbook's examples in `examples/`, with as many clients as they are about, some of whose processes are killed.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{connect, exchange, finish, silent_for};
use crate::support::{A_WHILE, PATIENCE, Preforkd, Running, eventually, proc, run, text};

/// An example, which `cargo test` builds next to this.
fn serve(example: &str, handler: &str, options: &[&str]) -> Running {
    let target = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let options = [&["--max-connections", "400"], options].concat();
    Preforkd::serve(&options, "127.0.0.1:0", &[handler])
        .program(&target.join("examples").join(example))
        .start()
}

/// A client that speaks in lines.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn new(server: &Running) -> Self {
        Client { stream: BufReader::new(connect(server.address())) }
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())
    }

    /// The next line; an error if the process at the other end is gone.
    fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let whole = line.strip_suffix('\n').map(str::to_owned);
        whole.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn ask(&mut self, line: &str) -> io::Result<String> {
        self.say(line)?;
        self.hear()
    }

    /// Whether the end is all that there is to hear.
    fn has_ended(&mut self) -> bool {
        self.stream.get_ref().set_nonblocking(true).unwrap();
        let ended = !matches!(self.hear(), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.stream.get_ref().set_nonblocking(false).unwrap();
        ended
    }

    fn is_silent(&mut self) -> bool {
        self.stream.buffer().is_empty() && silent_for(self.stream.get_mut(), A_WHILE)
    }
}

/// Does the work with the connection processes of a server killed at random beside it. How many were.
fn with_kills(server: &Running, work: impl FnOnce()) -> usize {
    let workers = server.all_workers();
    let is_done = AtomicBool::new(false);
    let kills = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(SeqCst) {
                let mut victims: Vec<i32> =
                    workers.iter().flat_map(|worker| proc::children(*worker)).collect();
                fastrand::shuffle(&mut victims);
                for victim in victims.iter().take(1 + victims.len() / 16) {
                    proc::kill(*victim, Signal::SIGKILL);
                    kills.fetch_add(1, SeqCst);
                }
                std::thread::sleep(Duration::from_millis(fastrand::u64(..10)));
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_done.store(true, SeqCst);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    kills.load(SeqCst)
}

/// Has so many threads share this work.
fn crowd(threads: usize, works: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, SeqCst)).filter(|number| *number < works) {
                    work(number);
                }
            });
        }
    });
}

/// What a clerk says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sale {
    Seat(u32),
    SoldOut,
}

/// One try to buy.
fn buy(server: &Running, passenger: u32) -> io::Result<Sale> {
    let mut client = Client::new(server);
    client.hear()?;
    answer(&mut client, passenger)
}

fn answer(client: &mut Client, passenger: u32) -> io::Result<Sale> {
    let said = client.ask(&passenger.to_string())?;
    if said == "sold out" {
        return Ok(Sale::SoldOut);
    }
    let (seat, whose) = said.strip_prefix("seat ").unwrap().split_once(" is passenger ").unwrap();
    assert_eq!(whose, format!("{passenger}'s"));
    Ok(Sale::Seat(seat.parse().unwrap()))
}

/// Who sits where, by seat.
fn plan(server: &Running) -> Vec<u32> {
    let mut client = Client::new(server);
    client.hear().unwrap();
    let plan = client.ask("plan").unwrap();
    plan.trim_matches(['[', ']']).split(", ").map(|passenger| passenger.parse().unwrap()).collect()
}

/// Thousands want 180 seats, their clerks are killed, and they ask again.
fn every_seat_is_sold_once(options: &[&str]) {
    const PASSENGERS: usize = 3000;
    let server = serve("airline", "seats", options);
    let tickets = Mutex::new(HashMap::new());
    let soldout = AtomicUsize::new(0);
    let lost_answers = AtomicUsize::new(0);
    let kills = with_kills(&server, || {
        crowd(24, PASSENGERS, |number| {
            let passenger = number as u32 + 1;
            loop {
                match buy(&server, passenger) {
                    Ok(Sale::Seat(seat)) => {
                        let before = tickets.lock().unwrap().insert(seat, passenger);
                        assert_eq!(before, None, "seat {seat} was sold twice");
                        return;
                    }
                    Ok(Sale::SoldOut) => {
                        soldout.fetch_add(1, SeqCst);
                        return;
                    }
                    Err(_) => lost_answers.fetch_add(1, SeqCst),
                };
            }
        });
        // Who asks again has what he had, also where it was not the answer that he got.
        let tickets = tickets.lock().unwrap();
        for (seat, passenger) in tickets.iter().cycle() {
            if lost_answers.load(SeqCst) >= 20 {
                break;
            }
            match buy(&server, *passenger) {
                Ok(sale) => assert_eq!(sale, Sale::Seat(*seat)),
                Err(_) => drop(lost_answers.fetch_add(1, SeqCst)),
            }
        }
    });
    let tickets = tickets.into_inner().unwrap();
    assert!(kills > 0);
    assert_eq!(soldout.load(SeqCst), PASSENGERS - 180);
    // None is lost: each is somebody's, and he knows.
    let sold: HashMap<u32, u32> = (1..).zip(plan(&server)).collect();
    assert_eq!(sold, tickets);
    server.stop();
}

#[test]
fn no_seat_is_sold_twice_and_none_is_lost() {
    every_seat_is_sold_once(&[]);
}

#[test]
fn nor_by_processes_that_serve_several() {
    every_seat_is_sold_once(&["--spare", "8", "--connections-per-child", "0"]);
}

#[test]
fn two_who_are_offered_one_seat_get_two_or_in_the_race_the_same() {
    for (handler, different) in [("seats", 180), ("race", 1)] {
        let server = serve("airline", handler, &[]);
        // All are offered the first seat, and only then says anybody yes.
        let mut clients: Vec<Client> = (0..200).map(|_| Client::new(&server)).collect();
        for client in &mut clients {
            assert_eq!(client.hear().unwrap(), "seat 1 is free; which passenger?");
        }
        let sales: Vec<Sale> =
            (1..).zip(&mut clients).map(|(n, client)| answer(client, n).unwrap()).collect();
        let seats: HashSet<u32> = sales
            .iter()
            .filter_map(|sale| if let Sale::Seat(seat) = sale { Some(*seat) } else { None })
            .collect();
        assert_eq!(seats.len(), different, "{handler}: {sales:?}");
        let sold = plan(&server).iter().filter(|passenger| **passenger != 0).count();
        assert_eq!(sold, different);
        server.stop();
    }
}

/// The race by nothing but a crowd: there are more tickets than seats.
#[test]
fn a_crowd_finds_the_race() {
    let server = serve("airline", "race", &[]);
    let tickets = AtomicUsize::new(0);
    crowd(24, 1500, |number| {
        let sale = buy(&server, number as u32 + 1).unwrap();
        tickets.fetch_add(usize::from(sale != Sale::SoldOut), SeqCst);
    });
    assert!(tickets.load(SeqCst) > 180, "{tickets:?}");
    server.stop();
}

/// The philosophers, each with his client.
fn table(handler: &str) -> (Running, Vec<Client>) {
    let server = serve("philosophers", handler, &[]);
    let clients = (0..5).map(|_| Client::new(&server)).collect();
    (server, clients)
}

#[test]
fn five_philosophers_starve_and_a_killed_one_helps_nobody() {
    let (server, mut philosophers) = table("deadlock");
    let mut guest = Client::new(&server);
    let circle = "[1, 2, 3, 4, 5]";
    // They may be lucky for a while.
    eventually("each has one fork", || {
        for (place, philosopher) in (1..).zip(&mut philosophers) {
            philosopher.say(&place.to_string()).unwrap();
        }
        let mut fed = 0;
        loop {
            if guest.ask("look").unwrap() == circle {
                return true;
            }
            for philosopher in &mut philosophers {
                let socket = philosopher.stream.get_ref();
                socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
                let waits = philosopher.stream.fill_buf().is_err();
                philosopher.stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
                if !waits {
                    philosopher.hear().unwrap();
                    fed += 1;
                }
            }
            if fed == 5 {
                return false;
            }
        }
    });
    assert!(philosophers.iter_mut().all(Client::is_silent));
    let victims = server.connections();
    proc::kill(victims[0].pid, Signal::SIGKILL);
    eventually("one is dead", || server.connections().len() == victims.len() - 1);
    let mut guest = Client::new(&server);
    assert_eq!(guest.ask("look").unwrap(), circle, "a fork is still the dead one's");
    let starving =
        philosophers.iter_mut().filter_map(|philosopher| philosopher.is_silent().then_some(())).count();
    assert!(starving >= 4, "{starving}");
    // Nothing else ends this.
    server.connections().iter().for_each(|process| proc::kill(process.pid, Signal::SIGKILL));
    drop((philosophers, guest));
    server.stop();
}

#[test]
fn the_error_names_the_fork_that_is_out_of_order() {
    // Alone at the table.
    let (server, mut philosophers) = table("refused");
    assert_eq!(philosophers[0].ask("1").unwrap(), "philosopher 1 has eaten");
    let said = philosophers[0].ask("5").unwrap();
    assert!(
        said.starts_with("philosopher 5 has not: `fork-1` is locked or waited for while something is held"),
        "{said}"
    );
    assert!(
        said.ends_with(
            "take locks in the order in which they are declared, and wait for queues with nothing held"
        ),
        "{said}"
    );
    // And he has given back what he had.
    assert_eq!(philosophers[0].ask("4").unwrap(), "philosopher 4 has eaten");
    drop(philosophers);
    server.stop();
}

#[test]
fn five_philosophers_eat_in_order_whoever_is_killed() {
    let (server, _) = table("ordered");
    let meals = AtomicUsize::new(0);
    let kills = with_kills(&server, || {
        crowd(10, 400, |number| {
            let place = number % 5 + 1;
            loop {
                let mut philosopher = Client::new(&server);
                match philosopher.ask(&place.to_string()) {
                    Ok(said) => {
                        assert_eq!(said, format!("philosopher {place} has eaten"));
                        meals.fetch_add(1, SeqCst);
                        return;
                    }
                    Err(error) => assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{place} is stuck"),
                }
            }
        });
    });
    assert_eq!(meals.load(SeqCst), 400);
    let used = Client::new(&server).ask("look").unwrap();
    let used: usize =
        used.trim_matches(['[', ']']).split(", ").map(|fork| fork.parse::<usize>().unwrap()).sum();
    // One who was killed may have eaten, or have put down the first fork only.
    assert!((800..=800 + 2 * kills).contains(&used) && kills > 0, "{used} after {kills} kills");
    server.stop();
}

#[test]
fn readers_who_relieve_each_other_starve_the_writer() {
    let server = serve("readers", "starving", &[]);
    let mut reader = Client::new(&server);
    assert_eq!(reader.ask("read").unwrap(), "page 0");
    let mut writer = Client::new(&server);
    writer.say("write").unwrap();
    for _ in 0..1000 {
        let mut next = Client::new(&server);
        assert_eq!(next.ask("read").unwrap(), "page 0");
        // The last goes when the next is there.
        finish(std::mem::replace(&mut reader, next).stream.into_inner(), b"");
    }
    assert!(writer.is_silent());
    // Not even one who is killed is counted any longer.
    drop(reader);
    assert_eq!(writer.hear().unwrap(), "written");
    server.stop();
}

#[test]
fn who_comes_after_the_writer_waits_behind_him() {
    let server = serve("readers", "fair", &[]);
    let mut reader = Client::new(&server);
    assert_eq!(reader.ask("read").unwrap(), "page 0");
    // A writer who is killed while all wait for him does no harm.
    let before: HashSet<i32> = server.connections().iter().map(|process| process.pid).collect();
    let mut dead = Client::new(&server);
    dead.say("write").unwrap();
    eventually("he is there", || server.connections().len() == before.len() + 1);
    let victim = server.connections().iter().map(|process| process.pid).find(|pid| !before.contains(pid));
    proc::kill(victim.unwrap(), Signal::SIGKILL);
    assert!(dead.hear().is_err());

    let mut writer = Client::new(&server);
    writer.say("write").unwrap();
    // Nobody sees from outside when the writer has come to the lock; but soon, and from then on each waits behind him.
    let mut overtaking = 0;
    loop {
        let mut next = Client::new(&server);
        next.say("read").unwrap();
        // He waits, or he has come before the writer.
        let _ = next.is_silent();
        drop(std::mem::replace(&mut reader, next));
        if reader.hear().unwrap() == "page 1" {
            break;
        }
        overtaking += 1;
        assert!(overtaking < 100, "the writer starves");
    }
    assert_eq!(writer.hear().unwrap(), "written");
    // One who is killed reads no longer.
    let mut writer = Client::new(&server);
    writer.say("write").unwrap();
    assert!(writer.is_silent());
    let readers = server.connections();
    assert_eq!(readers.len(), 2);
    let of_reader = readers.iter().min_by_key(|process| process.start).unwrap();
    proc::kill(of_reader.pid, Signal::SIGKILL);
    assert_eq!(writer.hear().unwrap(), "written");
    assert!(reader.hear().is_err());
    server.stop();
}

/// Crowds of both, killed at random: whoever is left gets on, and what was written is what the writers say.
#[test]
fn readers_and_writers_get_on_whoever_is_killed() {
    let server = serve("readers", "fair", &[]);
    let written = AtomicUsize::new(0);
    let kills = with_kills(&server, || {
        crowd(16, 1000, |number| {
            let does = if number % 4 == 0 { "write" } else { "read" };
            let answer = Client::new(&server).ask(does);
            let stuck = matches!(&answer, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            assert!(!stuck, "{does} {number} is stuck");
            written.fetch_add(usize::from(answer.is_ok_and(|answer| answer == "written")), SeqCst);
        });
    });
    let page = Client::new(&server).ask("read").unwrap();
    let page: usize = page.strip_prefix("page ").unwrap().parse().unwrap();
    let written = written.load(SeqCst);
    assert!((written..=written + kills).contains(&page) && kills > 0, "{page}, {written}, {kills}");
    server.stop();
}

#[test]
fn all_members_read_the_same_in_the_same_order() {
    const MEMBERS: usize = 100;
    let server = serve("chat", "chat", &[]);
    let mut members: Vec<Client> = (0..MEMBERS).map(|_| Client::new(&server)).collect();
    for (number, member) in members.iter_mut().enumerate() {
        assert_eq!(
            member.ask(&format!("m{number}")).unwrap(),
            format!("* m{number} has come, {} here", number + 1)
        );
    }
    // Only then is it certain that they have read all that was said before.
    let catch_up = |member: &mut Client, line: &str| {
        let mut heard = Vec::new();
        loop {
            let next = member.hear().unwrap();
            if next == line {
                return heard;
            }
            heard.push(next);
        }
    };
    members[0].say("begin").unwrap();
    members.iter_mut().for_each(|member| drop(catch_up(member, "m0: begin")));

    for (number, member) in members.iter_mut().enumerate().skip(1).take(50) {
        member.say(&format!("line {number}")).unwrap();
    }
    let mut all: Vec<Vec<String>> = Vec::new();
    for member in &mut members {
        all.push((0..50).map(|_| member.hear().unwrap()).collect());
    }
    assert!(all.iter().all(|heard| *heard == all[0]), "{all:?}");
    let said: HashSet<&str> = all[0].iter().map(String::as_str).collect();
    assert!((1..=50).all(|number| said.contains(format!("m{number}: line {number}").as_str())), "{said:?}");

    // Half of them are killed; the others go on, and know how many they are.
    let mut victims = server.connections();
    assert_eq!(victims.len(), MEMBERS);
    fastrand::shuffle(&mut victims);
    victims.truncate(MEMBERS / 2);
    victims.iter().for_each(|victim| proc::kill(victim.pid, Signal::SIGKILL));
    eventually("they are gone", || server.count("active") == (MEMBERS / 2) as u64);
    members.retain_mut(|member| !member.has_ended());
    assert_eq!(members.len(), MEMBERS / 2);
    let mut late = Client::new(&server);
    assert_eq!(late.ask("late").unwrap(), format!("* late has come, {} here", MEMBERS / 2 + 1));
    for member in &mut members {
        assert_eq!(member.hear().unwrap(), format!("* late has come, {} here", MEMBERS / 2 + 1));
    }
    let last = members.pop().unwrap();
    finish(last.stream.into_inner(), b"");
    assert!(late.hear().unwrap().ends_with(&format!(" has gone, {} here", MEMBERS / 2)));
}

#[test]
fn a_member_who_does_not_read_is_in_nobodys_way_and_misses_lines() {
    let server = serve("chat", "chat", &[]);
    let mut deaf = Client::new(&server);
    deaf.ask("deaf").unwrap();
    let mut talker = Client::new(&server);
    talker.ask("talker").unwrap();
    let pid = server.connections().iter().min_by_key(|process| process.start).unwrap().pid;
    let line = "x".repeat(100);
    let mut talk = |lines: usize| {
        for _ in 0..lines {
            assert_eq!(talker.ask(&line).unwrap(), format!("talker: {line}"));
        }
    };
    // Until the kernel keeps no more for somebody who does not read, and his process waits for that.
    let mut said = 0;
    let mut waits = 0;
    while waits < 3 {
        talk(40);
        said += 40;
        assert!(said < 200_000, "the kernel takes it all");
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
        waits = if call.starts_with(&format!("{} ", nix::libc::SYS_sendto)) { waits + 1 } else { 0 };
    }
    talk(200);
    drop(talker);
    let mut heard = String::new();
    while !heard.contains("lines missed") {
        heard = deaf.hear().unwrap();
    }
    while !heard.contains("has gone") {
        heard = deaf.hear().unwrap();
    }
}

#[test]
fn no_two_visitors_of_the_page_have_the_same_number() {
    const VISITORS: usize = 2000;
    let server = serve("counter", "counter", &[]);
    let numbers = Mutex::new(HashSet::new());
    let unanswered = AtomicUsize::new(0);
    let kills = with_kills(&server, || {
        let visit = |_| {
            let mut client = Client::new(&server);
            let mut ask = || -> io::Result<usize> {
                client.say("GET / HTTP/1.1\r\nHost: localhost\r\n\r")?;
                loop {
                    if let Some(rest) = client.hear()?.strip_prefix("You are visitor ") {
                        return Ok(rest.split_once('.').unwrap().0.parse().unwrap());
                    }
                }
            };
            match ask() {
                Ok(number) => assert!(numbers.lock().unwrap().insert(number), "{number} twice"),
                Err(_) => drop(unanswered.fetch_add(1, SeqCst)),
            }
        };
        crowd(24, VISITORS, visit);
        while unanswered.load(SeqCst) == 0 {
            visit(0);
        }
    });
    let (numbers, unanswered) = (numbers.into_inner().unwrap(), unanswered.load(SeqCst));
    assert!(kills > 0);
    eventually("all have ended", || server.count("active") == 0);
    let output = run(&["curl", "--silent", "--include", &format!("http://{}/", server.address())]);
    let page = text(&output.stdout);
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with(" Here now: 1.\n"), "{page}");
    let last: usize = page.split_once("visitor ").unwrap().1.split_once('.').unwrap().0.parse().unwrap();
    // Some were counted and killed before they could say so.
    assert!((numbers.len()..=numbers.len() + unanswered).contains(&(last - 1)), "{last}");
    assert!(numbers.iter().all(|number| (1..last).contains(number)));
    server.stop();
}

#[test]
fn the_page_answers_wrong_requests() {
    let server = serve("counter", "counter", &[]);
    for (request, status) in [
        ("GET /other HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
        ("POST / HTTP/1.1\r\n\r\n", "HTTP/1.1 405 "),
        ("nonsense\r\n\r\n", "HTTP/1.1 405 "),
        ("GET / HTTP/1.1\r\n", ""),
    ] {
        let answer = text(&exchange(server.address(), request.as_bytes()));
        assert!(answer.starts_with(status) && (status.is_empty() == answer.is_empty()), "{answer}");
    }
    server.stop();
}
