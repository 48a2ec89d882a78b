//! The tables.

use crate::results::{
    ANSWERED, CPU, Clients, EPOLL, FAULTS, FIRST, FIRST_CPU, FORK, LAST, LAST_CPU, MEMORY, P50, RATE,
    Results, Server, whole,
};

pub(crate) fn print(results: &Results) {
    for (server, reason) in &results.missing {
        println!("\n**Missing: {server}**: {reason}");
    }
    let clients: Vec<Clients> = results.clients().into_iter().collect();
    if clients.len() > 1 {
        summary(results, &clients);
    }
    for clients in clients {
        load(results, clients);
    }
    if !results.held.is_empty() {
        held(results);
    }
}

/// Ours stand out.
fn name(server: &str) -> String {
    if server.starts_with("preforkd") { format!("**{server}**") } else { server.to_owned() }
}

fn summary(results: &Results, clients: &[Clients]) {
    let waiting: Vec<Clients> = clients.iter().copied().filter(|clients| !clients.leave).collect();
    let waiting = if waiting.is_empty() { clients } else { &waiting };
    let (least, most) = (waiting[0], waiting[waiting.len() - 1]);
    println!("\nConnections/s, median:\n");
    let columns: Vec<String> = clients.iter().map(|clients| clients.words()).collect();
    println!("| server | {} | p50 µs, {} | CPU µs, {} |", columns.join(" | "), least.number, most.number);
    println!("|---|{}---:|---:|", "---:|".repeat(clients.len()));
    for server in &results.servers {
        let rates: Vec<String> = clients
            .iter()
            .map(|clients| {
                let rate = whole(results.median(clients, &server.name, RATE));
                if results.clean(*clients, &server.name) { rate } else { format!("{rate}, **errors**") }
            })
            .collect();
        println!(
            "| {} | {} | {} | {} |",
            name(&server.name),
            rates.join(" | "),
            whole(results.median(&least, &server.name, P50)),
            whole(results.median(&most, &server.name, CPU)),
        );
    }
}

fn load(results: &Results, clients: Clients) {
    println!("\n{}:\n", clients.words());
    println!(
        "| server | connections/s | min–max | compared | p50 µs | p99 µs | p99.9 µs | CPU µs each | errors |"
    );
    println!("|---|---:|---:|---|---:|---:|---:|---:|---|");
    for server in &results.servers {
        let Some(rounds) = results.load(clients, &server.name) else { continue };
        let (least, most) = rounds.spread(RATE);
        println!(
            "| {} | {} | {}–{} | {} | {} | {} | {} | {} | {} |",
            name(&server.name),
            whole(rounds.median(RATE)),
            whole(least),
            whole(most),
            compared(results, clients, server),
            whole(rounds.median(P50)),
            whole(rounds.median(P50 + 1)),
            whole(rounds.median(P50 + 2)),
            whole(rounds.median(CPU)),
            rounds.errors(),
        );
    }
}

/// The rate as a part of what the class is measured by.
fn compared(results: &Results, clients: Clients, server: &Server) -> String {
    let rate = results.median(&clients, &server.name, RATE);
    let ratios: Vec<String> = server
        .yardsticks()
        .iter()
        .map(|(short, yardstick)| (short, rate / results.median(&clients, yardstick, RATE)))
        .filter(|(_, ratio)| ratio.is_finite())
        .map(|(short, ratio)| format!("{ratio:.2} of {short}"))
        .collect();
    ratios.join(", ")
}

fn held(results: &Results) {
    println!("\nConnections opened one after the other, and held open:\n");
    println!(
        "| server | answered | KiB each | of C fork | pages touched | first 500, µs each | last 500 | slower by | first 500, CPU µs each | last 500 | more by | errors |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|");
    for server in &results.held {
        let Some(rounds) = results.rounds("held", server) else { continue };
        let value = |column| rounds.median(column);
        println!(
            "| {} | {} of {} | {:.1} | {:.2} | {} | {} | {} | {:.2} | {} | {} | {:.2} | {} |",
            name(server),
            whole(rounds.spread(ANSWERED).0),
            whole(value(0)),
            value(MEMORY) / 1024.0,
            value(MEMORY) / results.median("held", FORK, MEMORY),
            if server == EPOLL { "–".to_owned() } else { whole(value(FAULTS)) },
            whole(value(FIRST)),
            whole(value(LAST)),
            value(LAST) / value(FIRST),
            whole(value(FIRST_CPU)),
            whole(value(LAST_CPU)),
            value(LAST_CPU) / value(FIRST_CPU),
            rounds.errors(),
        );
    }
    println!("\n| a worker of | private KiB | anonymous pages |\n|---|---:|---:|");
    for server in results.servers.iter().map(|server| server.name.as_str()) {
        let value = |column| results.median("worker", server, column);
        if value(0).is_finite() && (server.starts_with("preforkd") || server == FORK) {
            println!("| {} | {} | {} |", name(server), whole(value(0)), whole(value(1)));
        }
    }
}
