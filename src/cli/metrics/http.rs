//! A small HTTP server, a process for each request.

use std::io::{self, Read, Write};

use crate::handler::ClientConnection;

/// The longest request that is read, up to the empty line; Prometheus' has less than 1 KiB.
const LONGEST_HEAD: usize = 8 * 1024;

/// The content type of what is for people.
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers one request, if there is one.
pub(super) fn serve(
    client: &mut ClientConnection<'_>,
    answer: impl FnOnce(&HttpRequest<'_>) -> HttpAnswer,
) -> io::Result<()> {
    let Some(head) = read_head(client)? else { return Ok(()) };
    let (answer, with_body) = match head {
        Some(head) => match HttpRequest::parse(&head) {
            Ok(request) => (answer(&request), !request.is_head),
            Err(answer) => (answer, true),
        },
        None => (HttpAnswer::plain("431 Request Header Fields Too Large", "the request is too long"), true),
    };
    client.write_all(&answer.to_bytes(with_body))?;
    client.finish()
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
pub(super) struct HttpRequest<'a> {
    is_head: bool,
    pub(super) path: &'a str,
    /// What the client wants to read, its `Accept`.
    pub(super) accepted: String,
    /// The host that it means, with its port; HTTP/1.0 need not say it.
    pub(super) host: Option<&'a str>,
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
        let fields: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
        let named = |wanted: &str| {
            let is_wanted = move |(name, _): &&(&str, &str)| name.eq_ignore_ascii_case(wanted);
            fields.iter().filter(is_wanted).map(|(_, value)| value.trim()).collect::<Vec<_>>()
        };
        // A proxy is asked with the scheme and the host, which then counts, RFC 9112 section 3.2.2.
        let (host, path) = match (target.strip_prefix("http://"), &named("host")[..]) {
            (_, [_, _, ..]) => return Err(bad()),
            (Some(rest), _) => {
                let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                (Some(host), if path.is_empty() { "/" } else { path })
            }
            (None, hosts) => (hosts.first().copied(), target),
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        Ok(HttpRequest { is_head: method == "HEAD", path, accepted: named("accept").join(","), host })
    }
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HttpAnswer {
    status: &'static str,
    content_type: &'static str,
    /// Further lines of the head, each with its end.
    fields: &'static str,
    body: String,
}

impl HttpAnswer {
    pub(super) fn new(status: &'static str, content_type: &'static str, body: String) -> Self {
        HttpAnswer { status, content_type, fields: "", body }
    }

    pub(super) fn plain(status: &'static str, line: &str) -> Self {
        Self::new(status, PLAIN, format!("{line}\n"))
    }

    pub(super) fn unavailable(reason: &str) -> Self {
        Self::plain("503 Service Unavailable", reason)
    }

    /// The same, with further lines of the head.
    pub(super) fn with(self, fields: &'static str) -> Self {
        HttpAnswer { fields, ..self }
    }

    fn to_bytes(&self, with_body: bool) -> Vec<u8> {
        let HttpAnswer { status, content_type, fields, body } = self;
        let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{fields}{allow}Connection: close\r\n\r\n",
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
    fn a_request_is_understood_or_refused() {
        let path = |head| HttpRequest::parse(head).map(|request| (request.path, request.is_head));
        assert_eq!(path("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Ok(("/metrics", false)));
        assert_eq!(path("HEAD /metrics?a=b HTTP/1.0\n\n"), Ok(("/metrics", true)));
        assert_eq!(path("GET http://host:1/readyz HTTP/1.1\r\n\r\n"), Ok(("/readyz", false)));
        assert_eq!(path("GET http://host HTTP/1.1\r\n\r\n"), Ok(("/", false)));
        let host = |head| HttpRequest::parse(head).map(|request| request.host);
        assert_eq!(host("GET / HTTP/1.0\r\n\r\n"), Ok(None));
        assert_eq!(host("GET / HTTP/1.1\r\nhost:  a:1 \r\n\r\n"), Ok(Some("a:1")));
        assert_eq!(host("GET http://b:2/x HTTP/1.1\r\nHost: a:1\r\n\r\n"), Ok(Some("b:2")));
        for (head, status) in [
            ("", "400"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET  /metrics HTTP/1.1\r\n\r\n", "400"),
            ("get /metrics HTTP/1.1\r\n\r\n", "400"),
            ("GET /metrics SPDY/1\r\n\r\n", "400"),
            ("\u{16}\u{3}\u{1} x y\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
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
