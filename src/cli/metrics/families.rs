//! What `status` says, as metrics: OpenMetrics 1.0, and the text format 0.0.4 of Prometheus.
//!
//! No label says who a client is, or which connection it was: of those there are as many as strangers like.

use std::fmt::{Display, Write};

use super::advice::Advice;
use crate::control::{Condition, QueueStatus, ServiceStatus, Status, TimesStatus, WorkerState};
use crate::sys::time::UnixTime;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricsFormat {
    /// `application/openmetrics-text` 1.0.0.
    OpenMetrics,
    /// `text/plain` 0.0.4, which everybody reads.
    Prometheus,
}

impl MetricsFormat {
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            MetricsFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            MetricsFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetricType {
    Gauge,
    Counter,
    Histogram,
    Info,
}

/// A family: its name without the suffixes of its samples, its type, its unit, and what it is.
type MetricFamily = (&'static str, MetricType, &'static str, &'static str);

/// The labels of a sample.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// All of it.
pub(super) fn text(status: &Status, format: MetricsFormat) -> String {
    let mut page = MetricsPage { text: String::new(), format };
    page.supervisor(status);
    page.services(status);
    if format == MetricsFormat::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

/// What there is to say of one that does not answer, in a file of which nobody else would say that it is old.
pub(super) fn text_without_answer() -> String {
    let mut page = MetricsPage { text: String::new(), format: MetricsFormat::Prometheus };
    page.gauge(UP, &[], 0);
    page.text
}

const UP: MetricFamily =
    ("preforkd_up", MetricType::Gauge, "", "Whether preforkd answers at its control socket.");

struct MetricsPage {
    text: String,
    format: MetricsFormat,
}

impl MetricsPage {
    fn supervisor(&mut self, status: &Status) {
        use MetricType::{Counter, Gauge, Info};
        let since = Some(status.since_unix_ms);
        self.gauge(UP, &[], 1);
        self.family(("preforkd_build", Info, "", "The program that runs; always 1."));
        self.sample("preforkd_build", "_info", &[("version", &status.version)], 1);
        self.gauge(
            (
                "preforkd_start_time_seconds",
                Gauge,
                "seconds",
                "When preforkd was started; an upgrade is no start.",
            ),
            &[],
            unix(status.since_unix_ms),
        );
        self.gauge(
            ("preforkd_generation", Gauge, "", "Which configuration is in force, counted from 1."),
            &[],
            status.generation,
        );
        self.family(("preforkd_state", Gauge, "", "What preforkd is doing: 1 at the state that it is in."));
        for (name, state) in [
            ("starting", Condition::Starting),
            ("running", Condition::Running),
            ("reloading", Condition::Reloading),
            ("draining", Condition::Draining),
            ("ending", Condition::Ending),
        ] {
            self.sample("preforkd_state", "", &[("state", name)], u8::from(status.state == state));
        }
        self.family(("preforkd_reloads", Counter, "", "Reloads, by their verdict."));
        for (verdict, count) in [("ok", status.reloads.ok), ("rejected", status.reloads.failed)] {
            self.counter("preforkd_reloads", &[("verdict", verdict)], count, since);
        }
        self.gauge(
            (
                "preforkd_last_reload_ok",
                Gauge,
                "",
                "Whether the last reload came into force; 1 if there was none.",
            ),
            &[],
            u8::from(status.last_reload.is_none_or(|last| last.ok)),
        );
        self.gauge(
            (
                "preforkd_last_reload_time_seconds",
                Gauge,
                "seconds",
                "When the verdict on the last reload, or the start, was.",
            ),
            &[],
            unix(status.last_reload.map_or(status.since_unix_ms, |last| last.unix_ms)),
        );
        self.family(("preforkd_upgrades", Counter, "", "Upgrades in place."));
        self.counter("preforkd_upgrades", &[], status.upgrades, since);
        self.gauge(("preforkd_bans", Gauge, "", "Bans in force."), &[], status.bans);
        self.family((
            "preforkd_own_log_records_dropped",
            Counter,
            "",
            "Log records of the supervisor that were lost.",
        ));
        self.counter("preforkd_own_log_records_dropped", &[], status.own_log_records_dropped, since);
    }

    fn services(&mut self, status: &Status) {
        use MetricType::{Gauge, Info};
        let services = &status.services;
        let gauge = |name, help| (name, Gauge, "", help);
        self.each(services, gauge("preforkd_service_up", "Whether a service is served."), |one| {
            u8::from(one.down.is_none())
        });
        let down = "preforkd_service_down";
        self.family((down, Info, "", "A service that cannot be served, and why; none if it is."));
        for one in services {
            if let Some(reason) = &one.down {
                self.sample(down, "_info", &[("service", &one.name), ("reason", reason)], 1);
            }
        }
        let ready = "Whether clients are to be sent to a service, as /readyz says.";
        self.each(services, gauge("preforkd_service_ready", ready), |one| {
            u8::from(Advice::of(status, Some(&one.name)) == Some(Advice::Ready))
        });
        self.each(services, gauge("preforkd_service_paused", "Whether a service is paused."), |one| {
            u8::from(one.paused)
        });
        let lameduck = "Whether a service is a lame duck: it serves, and balancers are to send no more.";
        self.each(services, gauge("preforkd_service_lameduck", lameduck), |one| u8::from(one.lameduck));
        let unreachable = "Addresses of a service at which nobody can reach it.";
        self.each(services, gauge("preforkd_unreachable_addresses", unreachable), |one| {
            one.unreachable.len()
        });
        let workers = "preforkd_workers";
        self.family(gauge(workers, "Workers, by what they are doing."));
        for one in services {
            for (name, state) in [
                ("starting", WorkerState::Starting),
                ("ready", WorkerState::Ready),
                ("accepting", WorkerState::Accepting),
                ("draining", WorkerState::Draining),
            ] {
                let count = one.workers.iter().filter(|worker| worker.state == state).count();
                self.sample(workers, "", &[("service", &one.name), ("state", name)], count);
            }
        }
        self.each(services, gauge("preforkd_spares", "Processes that wait for a connection."), |one| {
            one.spares
        });
        let warm = "Programs that have been started ahead of their connections, and wait.";
        self.each(services, gauge("preforkd_warm_programs", warm), |one| one.warm);
        self.each(services, gauge("preforkd_connections", "Connections that live."), |one| one.active);
        let limit = "Connections that a service may have, max_connections.";
        self.each(services, gauge("preforkd_connections_limit", limit), |one| one.max_connections);
        let counted = "Connections that are counted for their source, under max_connections_per_source.";
        self.each(services, gauge("preforkd_connections_of_sources", counted), |one| one.counted);
        let penalized = "Sources that wait for the end of their penalty.";
        self.each(services, gauge("preforkd_penalized_sources", penalized), |one| one.penalized);
        let left = "Processes that programs have left behind.";
        self.each(services, gauge("preforkd_left_behind_processes", left), |one| one.left_behind);
        self.queues(services);
        self.counts(services);
    }

    fn queues(&mut self, services: &[ServiceStatus]) {
        let queued = "Connections that wait to be accepted; of TCP only.";
        self.each_queue(services, "preforkd_queue_connections", queued, |queue| queue.queued);
        let limit = "Connections that may wait to be accepted; of TCP only.";
        self.each_queue(services, "preforkd_queue_limit", limit, |queue| queue.limit);
    }

    fn each_queue(
        &mut self,
        services: &[ServiceStatus],
        name: &'static str,
        help: &'static str,
        value: impl Fn(&QueueStatus) -> u32,
    ) {
        self.family((name, MetricType::Gauge, "", help));
        for one in services {
            for queue in &one.queues {
                self.sample(name, "", &[("service", &one.name), ("listen", &queue.listen)], value(queue));
            }
        }
    }

    fn counts(&mut self, services: &[ServiceStatus]) {
        let count = |name, help| (name, MetricType::Counter, "", help);
        let workers = "Workers that died and were not told to.";
        self.count_each(services, count("preforkd_worker_deaths", workers), |one| one.workers_died);
        let accepted = "Connections that were accepted and let in.";
        self.count_each(services, count("preforkd_connections_accepted", accepted), |one| one.accepted);
        let completed = "Connections that have ended.";
        self.count_each(services, count("preforkd_connections_completed", completed), |one| one.completed);
        let refused = "preforkd_connections_refused";
        self.family(count(refused, "Connections that were not let in, by reason."));
        for one in services.iter().filter(|one| one.counted_since_unix_ms.is_some()) {
            let why = &one.refused;
            for (reason, count) in [
                ("limit", why.limit),
                ("source_limit", why.source_limit),
                ("rate", why.rate),
                ("access", why.access),
                ("penalty", why.penalty),
                ("header", why.header),
                ("banned", why.banned),
            ] {
                let labels = [("service", one.name.as_str()), ("reason", reason)];
                self.counter(refused, &labels, count, one.counted_since_unix_ms);
            }
        }
        let timeouts = "Connections that a deadline has ended.";
        self.count_each(services, count("preforkd_connections_timed_out", timeouts), |one| one.timeouts);
        let crashes = "Connections whose process a fault of its own has killed.";
        self.count_each(services, count("preforkd_connections_crashed", crashes), |one| one.crashes);
        let penalties = "Penalties that sources were given.";
        self.count_each(services, count("preforkd_penalties", penalties), |one| one.penalties);
        let cpu = "Processor time of connections that have ended.";
        self.count_each(services, ("preforkd_cpu_seconds", MetricType::Counter, "seconds", cpu), |one| {
            seconds(one.cpu_us)
        });
        let bytes = |name, help| (name, MetricType::Counter, "bytes", help);
        let received = "Bytes that came from clients, of connections that have ended.";
        self.count_each(services, bytes("preforkd_received_bytes", received), |one| one.bytes_in);
        let sent = "Bytes that went to clients, of connections that have ended.";
        self.count_each(services, bytes("preforkd_sent_bytes", sent), |one| one.bytes_out);
        let dropped = "Log records of a service that were lost.";
        self.count_each(services, count("preforkd_log_records_dropped", dropped), |one| {
            one.log_records_dropped
        });
        let times = |name, help| (name, MetricType::Histogram, "seconds", help);
        let duration = "From the accept of a connection to its end.";
        self.times_each(services, times("preforkd_connection_duration_seconds", duration), |one| {
            &one.durations
        });
        let served = "Connections that a warm program has served.";
        self.count_each(services, count("preforkd_connections_served_warm", served), |one| one.served_warm);
        let warm_up = "From the start of a program until it was warm.";
        self.times_each(services, times("preforkd_warm_up_seconds", warm_up), |one| &one.warm_ups);
        let wait = "From the accept of a connection until a process had it; a spare accepts itself.";
        self.times_each(services, times("preforkd_connection_wait_seconds", wait), |one| &one.waits);
    }

    fn gauge(&mut self, family: MetricFamily, labels: Labels<'_>, value: impl Display) {
        self.family(family);
        self.sample(family.0, "", labels, value);
    }

    fn each<V: Display>(
        &mut self,
        services: &[ServiceStatus],
        family: MetricFamily,
        value: impl Fn(&ServiceStatus) -> V,
    ) {
        self.family(family);
        for one in services {
            self.sample(family.0, "", &[("service", &one.name)], value(one));
        }
    }

    fn count_each<V: Display>(
        &mut self,
        services: &[ServiceStatus],
        family: MetricFamily,
        value: impl Fn(&ServiceStatus) -> V,
    ) {
        self.family(family);
        // Of a service that was never served nothing was counted.
        for one in services.iter().filter(|one| one.counted_since_unix_ms.is_some()) {
            self.counter(family.0, &[("service", &one.name)], value(one), one.counted_since_unix_ms);
        }
    }

    fn times_each(
        &mut self,
        services: &[ServiceStatus],
        family: MetricFamily,
        times: impl Fn(&ServiceStatus) -> &TimesStatus,
    ) {
        let (name, ..) = family;
        self.family(family);
        for one in services.iter().filter(|one| one.counted_since_unix_ms.is_some()) {
            let TimesStatus { bounds_us, within, sum_us } = times(one);
            let service = ("service", one.name.as_str());
            let mut count: u64 = 0;
            let bounds = bounds_us.iter().map(|bound| self.bound(*bound)).chain(["+Inf".to_owned()]);
            for (bound, within) in bounds.collect::<Vec<_>>().iter().zip(within) {
                count = count.saturating_add(*within);
                self.sample(name, "_bucket", &[service, ("le", bound)], count);
            }
            self.sample(name, "_sum", &[service], seconds(*sum_us));
            self.sample(name, "_count", &[service], count);
            self.created(name, &[service], one.counted_since_unix_ms);
        }
    }

    fn family(&mut self, (name, kind, unit, help): MetricFamily) {
        // Writing to a String cannot fail.
        let _ = match (self.format, kind) {
            (MetricsFormat::OpenMetrics, kind) => {
                let kind = match kind {
                    MetricType::Gauge => "gauge",
                    MetricType::Counter => "counter",
                    MetricType::Histogram => "histogram",
                    MetricType::Info => "info",
                };
                let unit = if unit.is_empty() { String::new() } else { format!("# UNIT {name} {unit}\n") };
                write!(self.text, "# TYPE {name} {kind}\n{unit}# HELP {name} {help}\n")
            }
            (MetricsFormat::Prometheus, MetricType::Counter) => {
                write!(self.text, "# HELP {name}_total {help}\n# TYPE {name}_total counter\n")
            }
            (MetricsFormat::Prometheus, MetricType::Info) => {
                write!(self.text, "# HELP {name}_info {help}\n# TYPE {name}_info gauge\n")
            }
            (MetricsFormat::Prometheus, MetricType::Gauge) => {
                write!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n")
            }
            (MetricsFormat::Prometheus, MetricType::Histogram) => {
                write!(self.text, "# HELP {name} {help}\n# TYPE {name} histogram\n")
            }
        };
    }

    fn counter(&mut self, name: &str, labels: Labels<'_>, value: impl Display, since: Option<UnixTime>) {
        self.sample(name, "_total", labels, value);
        self.created(name, labels, since);
    }

    /// The other format has no place for it.
    fn created(&mut self, name: &str, labels: Labels<'_>, since: Option<UnixTime>) {
        if let Some(since) = since.filter(|_| self.format == MetricsFormat::OpenMetrics) {
            self.sample(name, "_created", labels, unix(since));
        }
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: Labels<'_>, value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{suffix}{labels} {value}");
    }

    /// In OpenMetrics it has to be written as a number that may have a fraction, and in one way.
    fn bound(&self, micros: u64) -> String {
        match micros {
            0..100 => {
                let text = format!("{:e}", micros as f64 / 1e6);
                text.replace("e-", "e-0")
            }
            _ if micros % 1_000_000 == 0 && self.format == MetricsFormat::OpenMetrics => {
                format!("{}.0", micros / 1_000_000)
            }
            _ => seconds(micros),
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

fn seconds(micros: u64) -> String {
    fraction(micros, 1_000_000, 6)
}

fn unix(time: UnixTime) -> String {
    fraction(time.millis(), 1000, 3)
}

/// As it is, and not as the nearest number that a computer has.
fn fraction(value: u64, unit: u64, digits: usize) -> String {
    let text = format!("{}.{:0digits$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_they_are() {
        assert_eq!(
            [seconds(0), seconds(1), seconds(1_500_000), seconds(20_000_000)],
            ["0", "0.000001", "1.5", "20"]
        );
        assert_eq!(seconds(u64::MAX), "18446744073709.551615");
        let bound = |format, micros| MetricsPage { text: String::new(), format }.bound(micros);
        let open = [10, 25, 100, 1_000_000, 60_000_000, 2500]
            .map(|micros| bound(MetricsFormat::OpenMetrics, micros));
        assert_eq!(open, ["1e-05", "2.5e-05", "0.0001", "1.0", "60.0", "0.0025"]);
        assert_eq!(bound(MetricsFormat::Prometheus, 1_000_000), "1");
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
