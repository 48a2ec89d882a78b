//! An agent for HAProxy: one line that says how much it is to send, to whoever connects.
//!
//! HAProxy reads up to the newline, and takes what the line does not name as it was: `agent-check` in its manual. A service that
//! drains stays up for who is there already; `drain` ends with the next `ready`, `down` with the next `up`.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Deserialize;

use super::advice::{Advice, free_percent};
use super::watched;
use crate::handler::{ClientConnection, Handler};

/// Where it asks, and about what.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AgentOptions {
    control: PathBuf,
    /// `None` for all.
    service: Option<String>,
}

/// Tells a line to whoever connects.
#[derive(Debug, Default)]
pub(super) struct HaproxyAgent(AgentOptions);

impl Handler for HaproxyAgent {
    type Options = AgentOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn prepare(&mut self, options: AgentOptions) -> Result<(), Box<dyn Error>> {
        self.0 = options;
        Ok(())
    }

    fn serve(&self, client: &mut ClientConnection<'_>) -> io::Result<()> {
        let AgentOptions { control, service } = &self.0;
        let line = match watched(control) {
            Ok(status) => {
                let service = service.as_deref();
                line(Advice::of(&status, service), free_percent(&status, service))
            }
            Err(reason) => down(&reason),
        };
        client.write_all(line.as_bytes())?;
        client.finish()
    }
}

fn line(readiness: Option<Advice>, free_percent: u64) -> String {
    match readiness {
        Some(Advice::Ready) => format!("up ready {free_percent}%\n"),
        Some(Advice::Drains(_)) => "drain\n".to_owned(),
        Some(Advice::Down(reason)) => down(&reason),
        None => down("there is no such service"),
    }
}

/// HAProxy shows what follows the number sign, as far as the end of the line.
fn down(reason: &str) -> String {
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    format!("down #{reason}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_is_one_line() {
        assert_eq!(line(Some(Advice::Ready), 75), "up ready 75%\n");
        assert_eq!(line(Some(Advice::Drains("x".into())), 75), "drain\n");
        assert_eq!(line(Some(Advice::Down("no\nway".into())), 75), "down #no way\n");
        assert_eq!(line(None, 75), "down #there is no such service\n");
    }
}
