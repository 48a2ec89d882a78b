//! Many connections that are held open.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use crate::clients::{self, Errors, MESSAGE};
use crate::meter::Meter;

/// How many connections the first and the last are.
const EDGE: usize = 500;

/// More failures than this, and the rest is not tried.
const FAILURES: usize = 20;

/// What was measured. In this order: connections wanted, answered, bytes and page faults for each; microseconds for each of
/// the first and the last 500, and of CPU time; errors.
pub(crate) struct Held {
    wanted: usize,
    answered: usize,
    memory: Option<u64>,
    faults: Option<u64>,
    first: Duration,
    last: Duration,
    first_cpu: Option<Duration>,
    last_cpu: Option<Duration>,
    errors: Errors,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        write!(f, "{}\t{}\t", self.wanted, self.answered)?;
        write!(f, "{}\t{}\t", known(self.memory), known(self.faults))?;
        for time in [Some(self.first), Some(self.last), self.first_cpu, self.last_cpu] {
            write!(
                f,
                "{}\t",
                time.map_or("-".to_owned(), |time| format!("{:.1}", time.as_secs_f64() * 1e6))
            )?;
        }
        write!(f, "{}", self.errors)
    }
}

/// Opens one connection after the other, each as soon as the last is answered.
pub(crate) fn run(service: SocketAddrV4, wanted: usize, meter: &Meter) -> Held {
    let mut errors = Errors::default();
    let mut held: Vec<TcpStream> = Vec::with_capacity(wanted);
    let mut times = Vec::with_capacity(wanted);
    let mut sources = clients::sources();
    let mut failures = 0;
    let before = meter.memory();
    // CPU time before the first, after the first 500, before the last 500.
    let mut cpu = vec![meter.cpu()];
    while held.len() + failures < wanted && failures < FAILURES {
        let start = Instant::now();
        let mut step = "connect";
        let answered = clients::open(sources.next().unwrap(), service, false)
            .map(TcpStream::from)
            .and_then(|stream| echo(stream, &mut step));
        match answered {
            Ok(stream) => {
                times.push(start.elapsed());
                held.push(stream);
                if held.len() == EDGE || held.len() + EDGE == wanted {
                    cpu.push(meter.cpu());
                }
            }
            Err(error) => {
                failures += 1;
                errors.count(step, &error);
            }
        }
    }
    cpu.push(meter.cpu());
    let grown = before.zip(meter.memory()).map(|(before, after)| after.saturating_sub(before));
    let edge = EDGE.min(times.len());
    let each = |from: usize| {
        let (before, after) = cpu.get(from)?.zip(*cpu.get(from + 1)?)?;
        Some(after.saturating_sub(before) / u32::try_from(EDGE).ok()?)
    };
    let mean = |times: &[Duration]| times.iter().sum::<Duration>() / u32::try_from(edge.max(1)).unwrap();
    Held {
        wanted,
        answered: held.len(),
        memory: grown.map(|grown| grown / held.len().max(1) as u64),
        faults: meter.faults(),
        first: mean(&times[..edge]),
        last: mean(&times[times.len() - edge..]),
        first_cpu: each(0),
        last_cpu: each(2),
        errors,
    }
}

fn echo(mut stream: TcpStream, step: &mut &'static str) -> io::Result<TcpStream> {
    *step = "echo";
    stream.set_read_timeout(Some(clients::TIMEOUT))?;
    stream.write_all(MESSAGE)?;
    stream.read_exact(&mut [0; MESSAGE.len()])?;
    Ok(stream)
}
