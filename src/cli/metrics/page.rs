//! The page: what `status` says, in a browser.
//!
//! One document with all that it needs, which asks for `status.json` every few seconds and draws what it hears. Without
//! script it is what `status` prints. Nothing is read but a path and a host, and nothing can be done here.

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::Deserialize;

use super::http::{self, HttpAnswer, HttpRequest};
use super::watched;
use crate::cli::status;
use crate::handler::{ClientConnection, Handler};

const DOCUMENT: &str = include_str!("page.html");

/// What the document may do: what is in it, by its hashes, and ask this server. Where text of strangers became a script all
/// the same, it would not run. Content Security Policy level 3, and Trusted Types.
const FIELDS: &str = concat!(
    "Content-Security-Policy: default-src 'none'; ",
    "script-src 'sha256-bbJNppKC/CMYDJgTozOlxOp9mv/9c8CawuRQJUi/b9c='; ",
    "style-src 'sha256-WTqgrSo5QE47Jv+QNYIvF8E/q1kIRp3k4opULdVI/lw='; ",
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; ",
    "require-trusted-types-for 'script'\r\n",
    "Referrer-Policy: no-referrer\r\n",
    "Cross-Origin-Opener-Policy: same-origin\r\n",
    "Cross-Origin-Resource-Policy: same-origin\r\n",
);

/// Where it asks, and who it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PageOptions {
    control: PathBuf,
    /// The name of the program.
    program: String,
    /// By which names it may be asked for.
    hosts: Vec<String>,
}

/// Shows the page.
#[derive(Debug, Default)]
pub(super) struct StatusPage(PageOptions);

impl Handler for StatusPage {
    type Options = PageOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn prepare(&mut self, options: PageOptions) -> Result<(), Box<dyn Error>> {
        self.0 = options;
        Ok(())
    }

    fn serve(&self, client: &mut ClientConnection<'_>) -> io::Result<()> {
        http::serve(client, |request| self.answer(request).with(FIELDS))
    }
}

impl StatusPage {
    fn answer(&self, request: &HttpRequest<'_>) -> HttpAnswer {
        // A name that somebody else has pointed here would let that one's pages read this one (DNS rebinding).
        if !request.host.is_none_or(|host| self.is_own(host)) {
            let way_out =
                "ask by an address or as localhost, or start with --page-host HOST for another name";
            return HttpAnswer::plain("421 Misdirected Request", way_out);
        }
        match request.path {
            "/" => self.document(),
            "/status.json" => match watched(&self.0.control) {
                Ok(status) => match serde_json::to_string(&status) {
                    Ok(line) => HttpAnswer::new("200 OK", "application/json", line),
                    Err(error) => HttpAnswer::plain("500 Internal Server Error", &error.to_string()),
                },
                Err(reason) => HttpAnswer::unavailable(&reason),
            },
            _ => HttpAnswer::plain("404 Not Found", "here are / and /status.json"),
        }
    }

    fn document(&self) -> HttpAnswer {
        let program = self.0.program.as_str();
        let (status, text) = match watched(&self.0.control) {
            Ok(status) => ("200 OK", status::render(&status, program)),
            Err(reason) => ("503 Service Unavailable", reason),
        };
        let page = DOCUMENT.replace("{PROGRAM}", &escaped(program));
        let page = page.replacen("{STATUS}", &escaped(&text), 1);
        HttpAnswer::new(status, "text/html; charset=utf-8", page)
    }

    fn is_own(&self, host: &str) -> bool {
        if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return address.parse::<Ipv6Addr>().is_ok();
        }
        let name = host.split(':').next().unwrap_or_default();
        let named = |own: &str| name.eq_ignore_ascii_case(own);
        name.parse::<Ipv4Addr>().is_ok() || named("localhost") || self.0.hosts.iter().any(|own| named(own))
    }
}

/// As text of a document.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_its_own_are_answered() {
        let page = StatusPage(PageOptions { hosts: vec!["Tower".to_owned()], ..PageOptions::default() });
        for host in
            ["127.0.0.1", "127.0.0.1:80", "[::1]:17008", "[::1]", "localhost", "LOCALHOST:1", "tower:8"]
        {
            assert!(page.is_own(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "[x]",
            "[::1",
            "::1",
            "tower.",
        ] {
            assert!(!page.is_own(host), "{host}");
        }
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(escaped("<a href=\"&\">"), "&lt;a href=&quot;&amp;&quot;&gt;");
    }
}
