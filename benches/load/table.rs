//! The table.

use std::collections::{BTreeMap, BTreeSet};

/// The lines of all rounds for one server and one number of clients.
#[derive(Default)]
struct Rounds {
    columns: [Vec<f64>; 4],
    errors: BTreeSet<String>,
}

impl Rounds {
    fn median(&self, column: usize) -> f64 {
        let mut values = self.columns[column].clone();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
    }
}

/// Prints the medians of lines of the form `SERVER CLIENTS RATE P50 P99 P99.9 ERRORS`, with tabs between; all servers are
/// compared with the yardstick.
pub(crate) fn print(lines: &str, yardstick: &str) {
    let mut servers = Vec::new();
    let mut results: BTreeMap<(u32, String), Rounds> = BTreeMap::new();
    for line in lines.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [server, clients, rate, p50, p99, p999, errors] = fields[..] else {
            continue;
        };
        let Ok(clients) = clients.parse() else { continue };
        if !servers.contains(&server) {
            servers.push(server);
        }
        let rounds = results.entry((clients, server.to_owned())).or_default();
        for (column, value) in rounds.columns.iter_mut().zip([rate, p50, p99, p999]) {
            column.push(value.parse().unwrap_or(f64::NAN));
        }
        if errors != "-" {
            rounds.errors.insert(errors.to_owned());
        }
    }
    let numbers: BTreeSet<u32> = results.keys().map(|(clients, _)| *clients).collect();
    for clients in numbers {
        println!("\n{clients} client{}:\n", if clients == 1 { "" } else { "s" });
        println!("| server | connections/s | of the yardstick | p50 µs | p99 µs | p99.9 µs | errors |");
        println!("|---|---:|---:|---:|---:|---:|---|");
        let yardstick =
            results.get(&(clients, yardstick.to_owned())).map_or(f64::NAN, |rounds| rounds.median(0));
        for server in &servers {
            let Some(rounds) = results.get(&(clients, (*server).to_owned())) else {
                continue;
            };
            let errors = rounds.errors.iter().cloned().collect::<Vec<_>>().join("; ");
            println!(
                "| {server} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} | {} |",
                rounds.median(0),
                rounds.median(0) / yardstick,
                rounds.median(1),
                rounds.median(2),
                rounds.median(3),
                if errors.is_empty() { "none" } else { &errors },
            );
        }
    }
}
