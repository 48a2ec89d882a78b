//! The exporter: a small HTTP server, a process for each request.

use std::error::Error;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::Deserialize;

use super::advice::Advice;
use super::families::{MetricsFormat, text};
use super::watched;
use crate::handler::{ClientConnection, Handler};

/// The longest request that is read, up to the empty line; Prometheus' has less than 1 KiB.
const LONGEST_HEAD: usize = 8 * 1024;

/// The content type of what is for people.
const PLAIN: &str = "text/plain; charset=utf-8";

/// Where it asks.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ExporterOptions {
    control: PathBuf,
}

/// Answers one request.
#[derive(Debug, Default)]
pub(super) struct Exporter(ExporterOptions);

impl Handler for Exporter {
    type Options = ExporterOptions;
    const STDERR: bool = false;
    const THREADS: bool = false;

    fn prepare(&mut self, options: ExporterOptions) -> Result<(), Box<dyn Error>> {
        self.0 = options;
        Ok(())
    }

    fn serve(&self, client: &mut ClientConnection<'_>) -> io::Result<()> {
        let Some(head) = read_head(client)? else { return Ok(()) };
        let (answer, with_body) = match head {
            Some(head) => match HttpRequest::parse(&head) {
                Ok(request) => (self.answer(&request), !request.is_head),
                Err(answer) => (answer, true),
            },
            None => {
                (HttpAnswer::plain("431 Request Header Fields Too Large", "the request is too long"), true)
            }
        };
        client.write_all(&answer.to_bytes(with_body))?;
        client.finish()
    }
}

impl Exporter {
    fn answer(&self, request: &HttpRequest<'_>) -> HttpAnswer {
        match request.path {
            "/metrics" => match watched(&self.0.control) {
                Ok(status) => HttpAnswer {
                    status: "200 OK",
                    content_type: request.format.content_type(),
                    body: text(&status, request.format),
                },
                Err(reason) => HttpAnswer::plain("503 Service Unavailable", &reason),
            },
            "/livez" => match watched(&self.0.control) {
                Ok(_) => HttpAnswer::plain("200 OK", "alive"),
                Err(reason) => HttpAnswer::plain("503 Service Unavailable", &reason),
            },
            "/readyz" => self.readiness(None),
            path => match path.strip_prefix("/readyz/") {
                Some(service) => self.readiness(Some(service)),
                None => HttpAnswer::plain(
                    "404 Not Found",
                    "here are /metrics, /readyz, /readyz/SERVICE and /livez",
                ),
            },
        }
    }

    fn readiness(&self, service: Option<&str>) -> HttpAnswer {
        let unready =
            |reason: &str| HttpAnswer::plain("503 Service Unavailable", &format!("not ready: {reason}"));
        match watched(&self.0.control).map(|status| Advice::of(&status, service)) {
            Ok(Some(Advice::Ready)) => HttpAnswer::plain("200 OK", "ready"),
            Ok(Some(Advice::Drains(reason) | Advice::Down(reason))) => unready(&reason),
            Ok(None) => HttpAnswer::plain("404 Not Found", "there is no such service"),
            Err(reason) => unready(&reason),
        }
    }
}

/// What comes before the empty line; `None` in it if that is too long, and around it if there was nothing.
fn read_head(client: &mut ClientConnection<'_>) -> io::Result<Option<Option<String>>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let length = client.read(&mut piece)?;
        if length == 0 {
            return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let searched = head.len().saturating_sub(3);
        head.extend_from_slice(piece.get(..length).unwrap_or_default());
        let ends =
            |end: &[u8]| head.get(searched..).unwrap_or_default().windows(end.len()).any(|part| part == end);
        if ends(b"\r\n\r\n") || ends(b"\n\n") {
            return Ok(Some(Some(String::from_utf8_lossy(&head).into_owned())));
        }
        if head.len() > LONGEST_HEAD {
            return Ok(Some(None));
        }
    }
}

/// As much of a request as matters here.
#[derive(Debug, PartialEq, Eq)]
struct HttpRequest<'a> {
    is_head: bool,
    path: &'a str,
    /// What the client wants to read.
    format: MetricsFormat,
}

impl<'a> HttpRequest<'a> {
    fn parse(head: &'a str) -> Result<Self, HttpAnswer> {
        let bad = || HttpAnswer::plain("400 Bad Request", "this is no HTTP request");
        let mut lines = head.lines();
        let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, target, version] = line[..] else { return Err(bad()) };
        let is_token =
            !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        let minor = version.strip_prefix("HTTP/").ok_or_else(bad)?;
        if !is_token {
            return Err(bad());
        }
        if !minor.starts_with("1.") {
            return Err(HttpAnswer::plain("505 HTTP Version Not Supported", "HTTP/1.1 is spoken here"));
        }
        if !["GET", "HEAD"].contains(&method) {
            return Err(HttpAnswer::plain("405 Method Not Allowed", "GET and HEAD are allowed"));
        }
        // A proxy is asked with the scheme and the host, RFC 9112 section 3.2.2.
        let path = match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
            None => target,
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let field = |line: &'a str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("accept").then_some(value)
        };
        let accepted: Vec<&str> = lines.filter_map(field).collect();
        Ok(HttpRequest { is_head: method == "HEAD", path, format: negotiate(&accepted.join(",")) })
    }
}

/// The format that is accepted most: in doubt the one that everybody reads. RFC 9110 section 12.5.1.
fn negotiate(accepted: &str) -> MetricsFormat {
    let (mut open, mut plain) = (0.0, 0.0);
    for range in accepted.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (1.0, None);
        for part in parts {
            match part.split_once('=').map(|(name, value)| (name.trim(), value.trim().trim_matches('"'))) {
                Some(("q" | "Q", value)) => quality = value.parse::<f64>().unwrap_or(0.0),
                Some((name, value)) if name.eq_ignore_ascii_case("version") => version = Some(value),
                _ => {}
            }
        }
        match (kind.as_str(), version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => open = quality.max(open),
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => plain = quality.max(plain),
            _ => {}
        }
    }
    if open > 0.0 && open >= plain { MetricsFormat::OpenMetrics } else { MetricsFormat::Prometheus }
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
struct HttpAnswer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl HttpAnswer {
    fn plain(status: &'static str, line: &str) -> Self {
        HttpAnswer { status, content_type: PLAIN, body: format!("{line}\n") }
    }

    fn to_bytes(&self, with_body: bool) -> Vec<u8> {
        let HttpAnswer { status, content_type, body } = self;
        let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n",
            body.len()
        );
        let body = if with_body { body.as_bytes() } else { &[] };
        [head.as_bytes(), body].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_accepted_most() {
        let v2 = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                  text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let v3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.5,\
                  text/plain;version=0.0.4;q=0.4,*/*;q=0.2";
        for accepted in
            [v2, v3, "application/openmetrics-text", "Application/OpenMetrics-Text; Version=\"1.0.0\""]
        {
            assert_eq!(negotiate(accepted), MetricsFormat::OpenMetrics, "{accepted}");
        }
        for accepted in [
            "",
            "*/*",
            "text/html, application/json",
            "text/plain, application/openmetrics-text;q=0.9",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=x",
            ";;,=,;q=",
        ] {
            assert_eq!(negotiate(accepted), MetricsFormat::Prometheus, "{accepted}");
        }
    }

    #[test]
    fn a_request_is_understood_or_refused() {
        let path = |head| HttpRequest::parse(head).map(|request| (request.path, request.is_head));
        assert_eq!(path("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Ok(("/metrics", false)));
        assert_eq!(path("HEAD /metrics?a=b HTTP/1.0\n\n"), Ok(("/metrics", true)));
        assert_eq!(path("GET http://host:1/readyz HTTP/1.1\r\n\r\n"), Ok(("/readyz", false)));
        assert_eq!(path("GET http://host HTTP/1.1\r\n\r\n"), Ok(("/", false)));
        for (head, status) in [
            ("", "400"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET  /metrics HTTP/1.1\r\n\r\n", "400"),
            ("get /metrics HTTP/1.1\r\n\r\n", "400"),
            ("GET /metrics SPDY/1\r\n\r\n", "400"),
            ("\u{16}\u{3}\u{1} x y\r\n\r\n", "400"),
            ("PRI * HTTP/2.0\r\n\r\n", "505"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("M-SEARCH * HTTP/1.1\r\n\r\n", "405"),
        ] {
            let answer = HttpRequest::parse(head).unwrap_err();
            assert!(answer.status.starts_with(status), "{head:?}: {}", answer.status);
        }
        let refused = HttpRequest::parse("POST / HTTP/1.1\r\n\r\n").unwrap_err();
        assert!(String::from_utf8(refused.to_bytes(true)).unwrap().contains("\r\nAllow: GET, HEAD\r\n"));
    }
}
