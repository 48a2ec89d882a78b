//! The lines that benches/run has written, by server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

pub(crate) const FORK: &str = "C fork loop, 2 workers";
pub(crate) const TEXTBOOK: &str = "C fork loop, 1 worker";
pub(crate) const EXEC: &str = "C vfork+exec, 2 workers";
pub(crate) const EPOLL: &str = "C epoll loop";
pub(crate) const APACHE: &str = "Apache prefork, any number per child";
pub(crate) const THREAD: &str = "C thread per connection";

/// The columns of a line of load, and of a line of held connections.
pub(crate) const RATE: usize = 0;
pub(crate) const P50: usize = 1;
pub(crate) const CPU: usize = 4;
pub(crate) const ANSWERED: usize = 1;
pub(crate) const MEMORY: usize = 2;
pub(crate) const FAULTS: usize = 3;
pub(crate) const FIRST: usize = 4;
pub(crate) const LAST: usize = 5;
pub(crate) const FIRST_CPU: usize = 6;
pub(crate) const LAST_CPU: usize = 7;

/// So many clients, and how they end: `16`, or `leaving-16` for those that close once they have their answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Clients {
    pub(crate) leave: bool,
    pub(crate) number: u32,
}

const LEAVING: &str = "leaving-";

impl Clients {
    pub(crate) const fn waiting(number: u32) -> Self {
        Clients { leave: false, number }
    }

    pub(crate) const fn leaving(number: u32) -> Self {
        Clients { leave: true, number }
    }

    /// "1 client", "16 clients that leave".
    pub(crate) fn words(self) -> String {
        let Clients { leave, number } = self;
        match (number, leave) {
            (1, false) => "1 client".to_owned(),
            (1, true) => "1 client that leaves".to_owned(),
            (_, false) => format!("{number} clients"),
            (_, true) => format!("{number} clients that leave"),
        }
    }
}

impl FromStr for Clients {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let number = text.strip_prefix(LEAVING);
        Ok(Clients { leave: number.is_some(), number: number.unwrap_or(text).parse()? })
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.leave { LEAVING } else { "" })?;
        self.number.fmt(f)
    }
}

/// One line of each round for one server.
#[derive(Default)]
pub(crate) struct Rounds {
    columns: Vec<Vec<f64>>,
    errors: BTreeMap<String, u64>,
}

impl Rounds {
    fn add(&mut self, fields: &[&str]) {
        let Some((errors, numbers)) = fields.split_last() else { return };
        self.columns.resize_with(numbers.len().max(self.columns.len()), Vec::new);
        for (column, number) in self.columns.iter_mut().zip(numbers) {
            column.extend(number.parse::<f64>());
        }
        for (kind, number) in errors.split(',').filter_map(|error| error.rsplit_once(':')) {
            *self.errors.entry(kind.to_owned()).or_default() += number.parse().unwrap_or(0);
        }
    }

    /// NaN if there is none.
    pub(crate) fn median(&self, column: usize) -> f64 {
        let values = self.sorted(column);
        match (values.len(), values.len() / 2) {
            (0, _) => f64::NAN,
            (number, middle) if number % 2 == 1 => values[middle],
            (_, middle) => f64::midpoint(values[middle - 1], values[middle]),
        }
    }

    /// The least and the greatest.
    pub(crate) fn spread(&self, column: usize) -> (f64, f64) {
        let values = self.sorted(column);
        (values.first().copied().unwrap_or(f64::NAN), values.last().copied().unwrap_or(f64::NAN))
    }

    fn sorted(&self, column: usize) -> Vec<f64> {
        let mut values = self.columns.get(column).cloned().unwrap_or_default();
        values.sort_unstable_by(f64::total_cmp);
        values
    }

    pub(crate) fn errors(&self) -> String {
        let errors: Vec<_> = self.errors.iter().map(|(kind, number)| format!("{kind}:{number}")).collect();
        if errors.is_empty() { "none".to_owned() } else { format!("**{}**", errors.join(", ")) }
    }
}

/// A server, and with whom it is to be compared.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) class: String,
}

impl Server {
    /// What a server of this class is compared with: a short name, and the name.
    pub(crate) fn yardsticks(&self) -> Vec<(&str, &str)> {
        match self.class.as_str() {
            "fork" => vec![("C fork", FORK)],
            "spare" => vec![("epoll", EPOLL), ("textbook", TEXTBOOK)],
            "exec" => vec![("C exec", EXEC)],
            name => vec![(name, name)],
        }
    }
}

/// Everything. In the order in which it came.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) servers: Vec<Server>,
    pub(crate) missing: Vec<(String, String)>,
    pub(crate) held: Vec<String>,
    rounds: BTreeMap<(String, String), Rounds>,
}

impl Results {
    /// The lines, with tabs between the fields: `load SERVER CLASS CLIENTS …`, `held SERVER …`, `worker SERVER …`,
    /// `missing SERVER REASON`. The dots are what this program has printed.
    pub(crate) fn parse(lines: &str) -> Self {
        let mut results = Results::default();
        for line in lines.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields[..] {
                ["load", server, class, clients, ref rest @ ..] => {
                    if !results.servers.iter().any(|known| known.name == server) {
                        results.servers.push(Server { name: server.to_owned(), class: class.to_owned() });
                    }
                    results.add(clients, server, rest);
                }
                ["held", server, ref rest @ ..] => {
                    if !results.held.iter().any(|known| known == server) {
                        results.held.push(server.to_owned());
                    }
                    results.add("held", server, rest);
                }
                ["worker", server, private, pages] => results.add("worker", server, &[private, pages, "-"]),
                ["missing", server, reason] => results.missing.push((server.to_owned(), reason.to_owned())),
                _ => eprintln!("not understood: {line}"),
            }
        }
        results
    }

    fn add(&mut self, what: &str, server: &str, fields: &[&str]) {
        self.rounds.entry((what.to_owned(), server.to_owned())).or_default().add(fields);
    }

    /// Whether every connection went well.
    pub(crate) fn clean(&self, clients: Clients, server: &str) -> bool {
        self.load(clients, server).is_none_or(|rounds| rounds.errors.is_empty())
    }

    /// All that there were.
    pub(crate) fn clients(&self) -> BTreeSet<Clients> {
        self.rounds.keys().filter_map(|(clients, _)| clients.parse().ok()).collect()
    }

    pub(crate) fn load(&self, clients: Clients, server: &str) -> Option<&Rounds> {
        self.rounds.get(&(clients.to_string(), server.to_owned()))
    }

    /// The median of a column; NaN if it was not measured. `what` is clients, `held` or `worker`.
    pub(crate) fn median(&self, what: &(impl ToString + ?Sized), server: &str, column: usize) -> f64 {
        self.rounds(what, server).map_or(f64::NAN, |rounds| rounds.median(column))
    }

    pub(crate) fn rounds(&self, what: &(impl ToString + ?Sized), server: &str) -> Option<&Rounds> {
        self.rounds.get(&(what.to_string(), server.to_owned()))
    }
}

/// A number without places, with commas.
pub(crate) fn whole(number: f64) -> String {
    if number.is_nan() {
        return "–".to_owned();
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
