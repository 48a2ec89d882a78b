//! Whatever happens in whatever order, the count is the number of live connection processes.

use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;

use crate::support::client::{connect, echo, reset, try_echo};
use crate::support::{Preforkd, Running, address, eventually, proc};

const LIMIT: usize = 8;
const STEPS: usize = 120;

/// What happens to a service; a step is picked by a number.
struct Sequence {
    server: Running,
    address: SocketAddr,
    clients: Vec<TcpStream>,
    reloads: u32,
    spare: u32,
}

impl Sequence {
    fn step(&mut self, number: u64) -> &'static str {
        let pick = usize::try_from(number >> 8).unwrap();
        match number % 9 {
            0..=2 if self.clients.len() < LIMIT => {
                let mut stream = connect(self.address);
                echo(&mut stream, b"x");
                self.clients.push(stream);
                "connect"
            }
            3 | 4 if !self.clients.is_empty() => {
                drop(self.clients.remove(pick % self.clients.len()));
                "close"
            }
            5 if !self.clients.is_empty() => {
                reset(self.clients.remove(pick % self.clients.len()));
                "reset"
            }
            6 if !self.clients.is_empty() => {
                let connections = self.server.connections();
                if let Some(victim) = connections.get(pick % connections.len().max(1)) {
                    proc::kill(victim.pid, Signal::SIGKILL);
                }
                "kill a connection"
            }
            7 => {
                let workers = self.server.workers();
                self.server.replace_worker(workers[pick % workers.len()]);
                "kill a worker"
            }
            8 => {
                self.reloads += 1;
                self.server.configure(&config(self.address, self.reloads, self.spare));
                self.server.reload_ok();
                "reload"
            }
            _ => "nothing",
        }
    }

    /// Forgets the clients whose connection was killed.
    fn forget_the_dead(&mut self) {
        self.clients.retain_mut(|stream| try_echo(stream, b"y").is_ok());
    }
}

fn config(address: SocketAddr, generation: u32, spare: u32) -> String {
    format!(
        "[service.echo]\nlisten = [\"{address}\"]\nhandler = \"echo\"\nworkers = 2\nmax_connections = {LIMIT}\n\
         nice = {}\nspare = {spare}\n",
        generation % 2
    )
}

#[test]
fn the_count_is_the_number_of_live_connections_after_any_sequence() {
    any_sequence(0);
}

#[test]
fn the_count_is_the_number_of_live_connections_with_spares_too() {
    any_sequence(5);
}

fn any_sequence(spare: u32) {
    let address = address::fresh();
    let server = Preforkd::run(&config(address, 0, spare)).start();
    let _watch = server.watch_zombies();
    let mut sequence = Sequence { server, address, clients: Vec::new(), reloads: 0, spare };
    let mut history = Vec::new();
    // The same sequence in every run.
    let mut random = fastrand::Rng::with_seed(20_261_122);
    for _ in 0..STEPS {
        history.push(sequence.step(random.u32(..).into()));
        sequence.forget_the_dead();
        let live = u64::try_from(sequence.clients.len()).unwrap();
        let server = &sequence.server;
        eventually(&format!("{live} active after {history:?}, not {}", server.service()), || {
            let service = server.service();
            let count = |name: &str| service[name].as_u64().unwrap();
            count("active") == live && count("accepted") == live + count("completed")
        });
        let spares = || usize::try_from(server.count("spares")).unwrap();
        eventually("as many processes", || {
            let processes = server.connections().len();
            processes == sequence.clients.len() + spares() && processes <= LIMIT
        });
    }
    // And the whole limit is there.
    while sequence.clients.len() < LIMIT {
        let mut stream = connect(address);
        echo(&mut stream, b"z");
        sequence.clients.push(stream);
    }
    let mut one_more = connect(address);
    std::io::Write::write_all(&mut one_more, b"z").unwrap();
    assert!(crate::support::client::silent_for(&mut one_more, crate::support::A_WHILE));
    drop((one_more, std::mem::take(&mut sequence.clients)));
}
