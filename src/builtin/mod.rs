//! The built-in services, written against the library as its users have it, and against nothing else.
//!
//! Each ends when the client has gone. How the client goes, by a close, a reset or silence, is its own business and no
//! error.

mod chargen;
mod clock;
mod echo;
#[cfg(test)]
mod tests;

use crate::Server;

/// The program `preforkd`.
pub(crate) fn preforkd() -> Server {
    Server::new("preforkd")
        .version(env!("CARGO_PKG_VERSION"))
        .handler("echo", echo::Echo)
        .handler("discard", echo::Discard)
        .handler("chargen", chargen::Chargen)
        .handler("daytime", clock::Daytime)
        .handler("time", clock::Time)
}
