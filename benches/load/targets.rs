//! What preforkd must reach, and whether it did.

use crate::results::{
    ANSWERED, APACHE, CPU, Clients, EPOLL, EXEC, FAULTS, FIRST, FIRST_CPU, FORK, LAST, LAST_CPU, MEMORY, P50,
    RATE, Results, TEXTBOOK, THREAD, whole,
};

const ECHO: &str = "preforkd serve echo";
const SPARES: [&str; 2] = ["preforkd serve echo --spare 8", "preforkd serve echo --spare 16"];
const POOL: &str = "preforkd serve echo, spares reused";
const PROGRAM: &str = "preforkd serve -- PROGRAM";

/// As many clients as the targets are about.
const CLIENTS: [Clients; 3] = [ONE, Clients::waiting(16), MANY];
const ONE: Clients = Clients::waiting(1);
const MANY: Clients = Clients::waiting(64);
const LEAVING: [Clients; 3] = [Clients::leaving(1), Clients::leaving(16), Clients::leaving(64)];

/// A ratio must be so.
#[derive(Clone, Copy)]
enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    Above(f64),
    Below(f64),
}

impl Wanted {
    fn holds(self, value: f64) -> bool {
        match self {
            Wanted::AtLeast(limit) => value >= limit,
            Wanted::AtMost(limit) => value <= limit,
            Wanted::Above(limit) => value > limit,
            Wanted::Below(limit) => value < limit,
        }
    }

    fn text(self) -> String {
        match self {
            Wanted::AtLeast(limit) => format!("≥ {limit:.2}"),
            Wanted::AtMost(limit) => format!("≤ {limit:.2}"),
            Wanted::Above(limit) => format!("> {limit:.2}"),
            Wanted::Below(limit) => format!("< {limit:.2}"),
        }
    }
}

pub(crate) fn print(results: &Results) {
    println!("\n| | target | wanted | measured | |\n|---|---|---:|---:|---|");
    let target = Target { results };
    for clients in CLIENTS {
        target.load(1, ECHO, FORK, clients, RATE, Wanted::AtLeast(0.97));
    }
    for spares in SPARES {
        target.load(2, spares, EPOLL, ONE, P50, Wanted::AtMost(1.5));
        target.load(2, spares, THREAD, ONE, P50, Wanted::Below(1.0));
        target.load(2, spares, TEXTBOOK, ONE, RATE, Wanted::AtLeast(1.7));
        target.load(2, spares, TEXTBOOK, MANY, RATE, Wanted::AtLeast(1.0));
    }
    for clients in CLIENTS {
        target.load(3, PROGRAM, EXEC, clients, RATE, Wanted::AtLeast(0.97));
        target.load(3, PROGRAM, "s6-tcpserver", clients, RATE, Wanted::Above(1.0));
        target.load(3, PROGRAM, "tcpserver", clients, RATE, Wanted::Above(1.0));
    }
    for clients in LEAVING {
        target.load(7, ECHO, FORK, clients, RATE, Wanted::AtLeast(0.97));
        target.load(7, PROGRAM, EXEC, clients, RATE, Wanted::AtLeast(0.97));
    }
    for clients in CLIENTS {
        target.load(8, POOL, APACHE, clients, RATE, Wanted::AtLeast(1.0));
        target.load(8, POOL, THREAD, clients, CPU, Wanted::AtMost(1.0));
    }
    target.load(8, POOL, EPOLL, ONE, RATE, Wanted::AtLeast(0.95));
    target.held();
    // The same ratios as in 1 to 4, of CPU time.
    for clients in CLIENTS {
        target.load(5, ECHO, FORK, clients, CPU, Wanted::AtMost(1.0 / 0.97));
    }
    for spares in SPARES {
        target.load(5, spares, TEXTBOOK, MANY, CPU, Wanted::AtMost(1.0));
    }
    for clients in CLIENTS {
        target.load(5, PROGRAM, EXEC, clients, CPU, Wanted::AtMost(1.0 / 0.97));
    }
    target.pages();
}

struct Target<'a> {
    results: &'a Results,
}

impl Target<'_> {
    fn load(
        &self,
        number: u32,
        server: &str,
        yardstick: &str,
        clients: Clients,
        column: usize,
        wanted: Wanted,
    ) {
        let ratio =
            self.results.median(&clients, server, column) / self.results.median(&clients, yardstick, column);
        let what = match column {
            RATE => "connections/s",
            P50 => "p50",
            _ => "CPU each",
        };
        let clean = self.results.clean(clients, server) && self.results.clean(clients, yardstick);
        let errors = if clean { "" } else { ", **with errors**" };
        let clients = clients.words();
        line(number, &format!("{server} : {yardstick}, {what}, {clients}{errors}"), wanted, ratio);
    }

    fn held(&self) {
        let value = |server, column| self.results.median("held", server, column);
        let Some(rounds) = self.results.rounds("held", ECHO) else {
            line(4, "connections held open", Wanted::AtLeast(1.0), f64::NAN);
            return;
        };
        let number = whole(rounds.median(0));
        let answered = rounds.spread(ANSWERED).0 / rounds.median(0);
        line(4, &format!("{ECHO}, answered of {number} held"), Wanted::AtLeast(1.0), answered);
        let memory = value(ECHO, MEMORY) / value(FORK, MEMORY);
        line(4, &format!("{ECHO} : {FORK}, memory each"), Wanted::AtMost(1.15), memory);
        let slower = value(ECHO, LAST) / value(ECHO, FIRST);
        line(4, &format!("{ECHO}, last 500 : first 500"), Wanted::AtMost(1.5), slower);
        let more = value(ECHO, LAST_CPU) / value(ECHO, FIRST_CPU);
        line(5, &format!("{ECHO}, last 500 : first 500, CPU each"), Wanted::AtMost(1.5), more);
    }

    /// There is no limit for these.
    fn pages(&self) {
        for (text, what, column) in [
            ("a worker's private KiB", "worker", 0),
            ("a worker's anonymous pages, whose entries a fork copies", "worker", 1),
            ("pages a connection process touches", "held", FAULTS),
        ] {
            let value = |server| whole(self.results.median(what, server, column));
            println!("| 6 | {ECHO}, {text} ({FORK}: {}) | – | {} | |", value(FORK), value(ECHO));
        }
    }
}

fn line(number: u32, text: &str, wanted: Wanted, ratio: f64) {
    let (measured, verdict) = if ratio.is_finite() {
        (format!("{ratio:.3}"), if wanted.holds(ratio) { "reached" } else { "**missed**" })
    } else {
        ("–".to_owned(), "not measured")
    };
    println!("| {number} | {text} | {} | {measured} | {verdict} |", wanted.text());
}
