//! A guestbook: each client leaves a line, and gets what was left before it, and how many have been there.
//!
//! ```console
//! $ cargo run --example guestbook -- serve --options file=/tmp/guestbook 127.0.0.1:7007 guestbook
//! $ echo 'Ada was here' | nc -N 127.0.0.1 7007
//! ```
//!
//! Its clients meet in a file; a connection's process has neither that nor anything else, until `sandbox` gives it:
//!
//! ```toml
//! [service.guestbook]
//! listen = "127.0.0.1:7007"
//! handler = "guestbook"
//! sandbox = { write = ["/srv/guestbook"] }
//!
//! [service.guestbook.options]
//! file = "/srv/guestbook/lines"
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use preforkd::shared::{Counter, Layout};
use preforkd::{Connection, Handler, Server};
use serde::Deserialize;

/// `[service.NAME.options]`
#[derive(Deserialize)]
struct Options {
    /// Where the lines are kept.
    file: PathBuf,
    /// The longest line.
    #[serde(default = "eighty")]
    longest: u64,
}

fn eighty() -> u64 {
    80
}

#[derive(Default)]
struct Guestbook {
    file: PathBuf,
    longest: u64,
    /// In memory that all connections have.
    visits: Counter,
}

impl Handler for Guestbook {
    type Options = Options;

    fn share(&mut self, layout: &mut Layout) {
        self.visits = layout.counter("visits");
    }

    fn prepare(&mut self, options: Options) -> Result<(), Box<dyn Error>> {
        if options.longest == 0 {
            return Err("longest = 0 leaves no room for a line".into());
        }
        (self.file, self.longest) = (options.file, options.longest);
        Ok(())
    }

    fn serve(&self, client: &mut Connection<'_>) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new(&*client).take(self.longest).read_line(&mut line)?;
        let mut book = File::options().read(true).append(true).create(true).open(&self.file)?;
        io::copy(&mut book, client)?;
        self.visits.add(1);
        writeln!(client, "You are number {}.", self.visits.sum())?;
        // A write to a file that is opened to append is one piece, whoever else writes: open(2), O_APPEND.
        book.write_all(format!("{}: {}\n", client.peer(), line.trim_end()).as_bytes())
    }
}

fn main() -> ExitCode {
    Server::new("guestbook")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keep what each client says, and say it to the next")
        .handler("guestbook", Guestbook::default())
        .main()
}
