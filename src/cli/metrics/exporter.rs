//! The exporter: metrics for Prometheus, readiness for balancers.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use super::advice::Advice;
use super::families::{MetricsFormat, text};
use super::http::{self, HttpAnswer, HttpRequest};
use super::watched;
use crate::handler::{ClientConnection, Handler};

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
        http::serve(client, |request| self.answer(request))
    }
}

impl Exporter {
    fn answer(&self, request: &HttpRequest<'_>) -> HttpAnswer {
        match request.path {
            "/metrics" => match watched(&self.0.control) {
                Ok(status) => {
                    let format = negotiate(&request.accepted);
                    HttpAnswer::new("200 OK", format.content_type(), text(&status, format))
                }
                Err(reason) => HttpAnswer::unavailable(&reason),
            },
            "/livez" => match watched(&self.0.control) {
                Ok(_) => HttpAnswer::plain("200 OK", "alive"),
                Err(reason) => HttpAnswer::unavailable(&reason),
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
        let unready = |reason: &str| HttpAnswer::unavailable(&format!("not ready: {reason}"));
        match watched(&self.0.control).map(|status| Advice::of(&status, service)) {
            Ok(Some(Advice::Ready)) => HttpAnswer::plain("200 OK", "ready"),
            Ok(Some(Advice::Drains(reason) | Advice::Down(reason))) => unready(&reason),
            Ok(None) => HttpAnswer::plain("404 Not Found", "there is no such service"),
            Err(reason) => unready(&reason),
        }
    }
}

/// The format that is accepted most, RFC 9110 section 12.5.1; OpenMetrics to whom it is all the same. A browser gets what it shows.
fn negotiate(accepted: &str) -> MetricsFormat {
    let (mut open, mut plain, mut any) = (None, 0.0, 0.0);
    let accepted = if accepted.trim().is_empty() { "*/*" } else { accepted };
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
            ("application/openmetrics-text", None | Some("1.0.0")) => {
                open = Some(quality.max(open.unwrap_or(0.0)));
            }
            ("*/*" | "application/*", _) => any = quality.max(any),
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "text/html", _) => plain = quality.max(plain),
            _ => {}
        }
    }
    let open = open.unwrap_or(any);
    if open > 0.0 && open >= plain { MetricsFormat::OpenMetrics } else { MetricsFormat::Prometheus }
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
        for accepted in [
            v2,
            v3,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"",
            "",
            "*/*",
            "application/*",
        ] {
            assert_eq!(negotiate(accepted), MetricsFormat::OpenMetrics, "{accepted}");
        }
        for accepted in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "text/html, application/json",
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "text/plain, application/openmetrics-text;q=0.9",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=x",
            ";;,=,;q=",
        ] {
            assert_eq!(negotiate(accepted), MetricsFormat::Prometheus, "{accepted}");
        }
    }
}
