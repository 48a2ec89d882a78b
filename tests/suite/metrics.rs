//! `preforkd metrics`: what Prometheus reads, from whom, and that it is true.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::support::client::{connect, echo, exchange, finish};
use crate::support::exporter::{Exporter, sample};
use crate::support::fence::{Fenced, Orders};
use crate::support::{
    BINARY, Preforkd, Running, address, eventually, is_there, preforkd, proc, run, text, write,
};

/// The ways a connection gets its process, as keys of a service that echoes.
const WAYS: [&str; 6] = [
    "handler = \"echo\"",
    "handler = \"echo\"\nspare = 2",
    "handler = \"echo\"\nspare = 2\nconnections_per_child = 0",
    "exec = [\"/bin/cat\"]",
    "exec = [\"/bin/cat\"]\nspare = 2",
    "exec = [\"/bin/cat\"]\nmax_lifetime = \"1h\"\nkill_mode = \"process\"",
];

const PROMETHEUS: &str = "/usr/bin/prometheus";
const PROMTOOL: &str = "/usr/bin/promtool";
const PARSER: &str = "/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py";

/// What comes of a command that reads this.
fn fed(command: &[&str], input: &str) -> (Option<i32>, String) {
    let mut child = Command::new("timeout")
        .arg("30")
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// What is printed once, with these further arguments.
fn printed(server: &Running, arguments: &[&str]) -> String {
    let output = preforkd(&[&["metrics", "--control", server.control()], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// What is printed as one number.
fn value(server: &Running, name: &str) -> f64 {
    let page = printed(server, &[]);
    sample(&page, name).unwrap_or_else(|| panic!("no {name} in:\n{page}"))
}

/// With some of all that can be: services of several kinds, one down, one with a name to be escaped nowhere.
fn serve_many() -> Running {
    let (one, two) = (address::fresh(), address::fresh());
    let config = format!(
        "[service.one]\nlisten = \"{one}\"\nhandler = \"echo\"\nspare = 2\n\
         max_connections_per_source = 3\n\
         [service.two-x_y]\nlisten = [\"{two}\", \"unix:DIR/s\"]\nexec = [\"/bin/cat\"]\n\
         [service.gone]\nlisten = \"unix:DIR/g\"\nexec = [\"/nonexistent/\\\"quoted\\\\\"]\n"
    );
    let server = Preforkd::run(&config).start();
    assert_eq!(exchange(one, b"hello"), b"hello");
    assert_eq!(exchange(two, b"hello"), b"hello");
    eventually("both are over", || {
        let status = server.status();
        status["services"].as_array().unwrap().iter().filter(|one| one["completed"] == 1).count() == 2
    });
    server
}

#[test]
fn promtool_finds_no_fault() {
    if !is_there("promtool_finds_no_fault", PROMTOOL) {
        return;
    }
    let server = serve_many();
    let page = printed(&server, &["--format", "prometheus"]);
    let (code, said) = fed(&[PROMTOOL, "check", "metrics"], &page);
    assert_eq!((code, said.as_str()), (Some(0), ""), "{page}");
    let down =
        page.lines().find(|line| line.starts_with("preforkd_service_down_info{service=\"gone\",")).unwrap();
    assert!(down.contains("\\\"quoted\\\\"), "{down}");
    assert_eq!(sample(&page, "preforkd_service_up{service=\"gone\"}"), Some(0.0));
    assert_eq!(sample(&page, "preforkd_connections_accepted_total{service=\"gone\"}"), None);
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring/preforkd-alerts.yml");
    let checked = run(&[PROMTOOL, "check", "rules", alerts.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", text(&checked.stdout) + &text(&checked.stderr));
}

/// By a parser that is none of ours, and strict.
#[test]
fn what_is_printed_is_open_metrics() {
    if !is_there("what_is_printed_is_open_metrics", PARSER) {
        return;
    }
    let server = serve_many();
    let page = printed(&server, &[]);
    assert!(page.ends_with("\n# EOF\n"), "{page}");
    let script = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
        for family in parse(sys.stdin.read()):\n    print(family.name, family.type, family.unit, len(family.samples))\n";
    let (code, said) = fed(&["/usr/bin/python3", "-c", script], &page);
    assert_eq!(code, Some(0), "{said}\n{page}");
    for family in [
        "preforkd_build info  1",
        "preforkd_cpu_seconds counter seconds 4",
        "preforkd_connections gauge  3",
        "preforkd_connection_duration_seconds histogram seconds 34",
        "preforkd_service_down info  1",
    ] {
        assert!(said.lines().any(|line| line == family), "no {family} in:\n{said}");
    }
    let since = |name: &str| sample(&page, name).unwrap();
    assert!(since("preforkd_start_time_seconds") <= since("preforkd_penalties_created{service=\"one\"}"));
}

#[test]
fn each_way_to_serve_is_counted_and_timed_at_its_end() {
    for way in WAYS {
        let listen = address::fresh();
        let keys = format!("listen = \"{listen}\"\nworkers = 1\n{way}");
        let server = Preforkd::run(&format!("[service.one]\n{keys}\n")).start();
        let mut client = connect(listen);
        echo(&mut client, b"hello");
        assert_eq!(
            value(&server, "preforkd_connection_duration_seconds_count{service=\"one\"}"),
            0.0,
            "{way}"
        );
        assert_eq!(finish(client, b"!"), b"!");
        for _ in 1..5 {
            assert_eq!(exchange(listen, b"hello"), b"hello");
        }
        let count = "preforkd_connection_duration_seconds_count{service=\"one\"}";
        eventually("all are counted", || value(&server, count) == 5.0);
        let page = printed(&server, &[]);
        let one = |name: &str| sample(&page, &format!("{name}{{service=\"one\"}}")).unwrap();
        assert_eq!(one("preforkd_connections_completed_total"), 5.0, "{way}");
        assert_eq!(one("preforkd_connection_wait_seconds_count"), 5.0, "{way}");
        assert!(
            one("preforkd_connection_wait_seconds_sum") <= one("preforkd_connection_duration_seconds_sum")
        );
        assert_eq!(one("preforkd_received_bytes_total"), 26.0, "{way}");
        assert_eq!(one("preforkd_sent_bytes_total"), 26.0, "{way}");
        assert!(one("preforkd_cpu_seconds_total") > 0.0, "{way}");
        let last = "preforkd_connection_duration_seconds_bucket{service=\"one\",le=\"+Inf\"}";
        assert_eq!(sample(&page, last), Some(5.0));
    }
}

/// All counters of a page, by all that stands before the value.
fn counters(page: &str) -> BTreeMap<String, f64> {
    let is_counter = |line: &&str| {
        let name = line.split(['{', ' ']).next().unwrap();
        ["_total", "_bucket", "_count", "_sum", "_created"].iter().any(|end| name.ends_with(end))
    };
    let split = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    page.lines().filter(|line| !line.starts_with('#')).filter(is_counter).map(split).collect()
}

#[test]
fn nothing_counts_backwards_whatever_happens() {
    for way in WAYS {
        let listen = address::fresh();
        let config = |nice: u32| {
            format!(
                "[service.one]\nlisten = \"{listen}\"\nworkers = 2\nnice = {nice}\nmax_connections = 50\n{way}\n"
            )
        };
        let server = Preforkd::run(&config(0)).own_copy().start();
        let exporter = Exporter::of(&server, &[]);
        let done = AtomicBool::new(false);
        let open = connect(listen);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        // Whom a worker that is killed has in its hand is lost.
                        let mut client = connect(listen);
                        let _ = client.write_all(b"hello").and_then(|()| client.shutdown(Shutdown::Write));
                        let _ = client.read_to_end(&mut Vec::new());
                    }
                });
            }
            let watcher = scope.spawn(|| {
                let mut before = BTreeMap::new();
                let request = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n";
                while !done.load(Ordering::Relaxed) {
                    let reply = exporter.ask(request);
                    if reply.status != 200 {
                        // While one program takes over from the other it may be late.
                        continue;
                    }
                    let now = counters(&reply.body);
                    for (name, value) in &before {
                        let now = now.get(name).copied();
                        assert!(
                            now.is_some_and(|now| now >= *value),
                            "{way}: {name} was {value}, is {now:?}"
                        );
                    }
                    before = now;
                }
                before
            });
            let accepted = || server.count("accepted");
            let more = |what: &str| {
                let before = accepted();
                eventually(what, || accepted() > before + 10 || watcher.is_finished());
            };
            more("served at first");
            for worker in server.workers() {
                server.replace_worker(worker);
            }
            more("served after the death of workers");
            server.configure(&config(1));
            server.reload_ok();
            more("served after a reload");
            server.replace_program(&std::fs::read(BINARY).unwrap());
            assert!(server.upgrade().status.success());
            more("served after an upgrade");
            done.store(true, Ordering::Relaxed);
            let last = watcher.join().unwrap();
            assert!(last["preforkd_worker_deaths_total{service=\"one\"}"] >= 2.0, "{last:#?}");
            assert_eq!(last["preforkd_upgrades_total"], 1.0);
            assert_eq!(last["preforkd_reloads_total{verdict=\"ok\"}"], 1.0);
        });
        drop(open);
        eventually("all are completed", || server.count("active") == 0);
        let page = printed(&server, &[]);
        let one = |name: &str| sample(&page, &format!("{name}{{service=\"one\"}}")).unwrap();
        let completed = one("preforkd_connections_completed_total");
        assert_eq!(completed, one("preforkd_connections_accepted_total"), "{way}");
        // Those that ended while nobody was there to see it are completed all the same.
        let timed = one("preforkd_connection_duration_seconds_count");
        assert!(timed <= completed && timed > 0.0, "{way}: {timed} of {completed}");
    }
}

#[test]
fn a_rejected_reload_shows_and_when_it_was() {
    let listen = address::fresh();
    let server =
        Preforkd::run(&format!("[service.one]\nlisten = \"{listen}\"\nhandler = \"echo\"\n")).start();
    let start = value(&server, "preforkd_start_time_seconds");
    assert_eq!(value(&server, "preforkd_last_reload_ok"), 1.0);
    assert_eq!(value(&server, "preforkd_last_reload_time_seconds"), start);
    server.configure("[service.one]\nlisten = \"nowhere\"\n");
    assert!(!server.reload().status.success());
    assert_eq!(value(&server, "preforkd_last_reload_ok"), 0.0);
    assert!(value(&server, "preforkd_last_reload_time_seconds") > start);
    assert_eq!(value(&server, "preforkd_reloads_total{verdict=\"rejected\"}"), 1.0);
    assert_eq!(value(&server, "preforkd_generation"), 1.0);
}

#[test]
fn a_client_gets_the_format_that_it_reads() {
    let server = serve_many();
    let exporter = Exporter::of(&server, &[]);
    let reply = exporter.get("/metrics");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.fields["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(reply.body.ends_with("# EOF\n"));
    assert_eq!(reply.fields["connection"], "close");
    assert_eq!(reply.fields["content-length"], reply.body.len().to_string());
    assert_eq!(sample(&reply.body, "preforkd_up"), Some(1.0));
    let open = exporter
        .ask("GET /metrics?x=y HTTP/1.1\r\naccept: application/openmetrics-text; version=1.0.0;q=0.8,*/*;q=0.1\r\n\r\n");
    assert_eq!(open.fields["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.body.ends_with("# EOF\n"));
    let head = exporter.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.fields["content-length"].parse::<usize>().unwrap() > 1000);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("GET /metricsx HTTP/1.1\r\n\r\n", 404),
        ("HEAD /no HTTP/1.1\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 405),
        ("DELETE /readyz HTTP/1.1\r\n\r\n", 405),
        ("nonsense\r\n\r\n", 400),
        ("GET /metrics HTTP/2.0\r\n\r\n", 505),
    ] {
        let reply = exporter.ask(request);
        assert_eq!(reply.status, status, "{request}");
        assert_eq!(reply.fields.contains_key("allow"), status == 405);
    }
}

#[test]
fn no_client_can_hold_it_up() {
    let server = serve_many();
    let exporter = Exporter::of(&server, &[]);
    // More than any head is long.
    let long = exporter.ask(&format!("GET /metrics HTTP/1.1\r\n{}", "X: y\r\n".repeat(2000)));
    assert_eq!(long.status, 431);
    // Who says nothing, or half of it, has a process of his own for a while, and others are served.
    let silent = connect(exporter.address);
    let mut slow = connect(exporter.address);
    slow.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
    assert_eq!(exporter.get("/metrics").status, 200);
    slow.write_all(b"y\r\n\r\n").unwrap();
    slow.shutdown(Shutdown::Write).unwrap();
    let mut late = String::new();
    slow.read_to_string(&mut late).unwrap();
    assert!(late.starts_with("HTTP/1.1 200 OK\r\n"), "{late}");
    // After the end of a head nothing more is read.
    let both = exchange(exporter.address, b"GET /livez HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\n\r\n");
    assert_eq!(text(&both).matches("HTTP/1.1").count(), 1);
    assert_eq!(exchange(exporter.address, b""), b"");
    assert_eq!(exchange(exporter.address, b"GET /metr"), b"");
    let mut silent = silent;
    assert!(matches!(silent.read(&mut [0; 1]), Ok(0) | Err(_)), "it is ended");
}

#[test]
fn who_does_not_answer_is_said_so() {
    let server = serve_many();
    let exporter = Exporter::of(&server, &[]);
    assert_eq!(exporter.get("/livez").status, 200);
    server.stop();
    for path in ["/metrics", "/readyz", "/livez"] {
        let reply = exporter.get(path);
        assert_eq!(reply.status, 503, "{path}");
        assert!(reply.body.contains("no preforkd answers at "), "{path}: {}", reply.body);
    }
    let once = preforkd(&["metrics", "--control", server.control()]);
    assert_eq!((once.status.code(), text(&once.stdout).as_str()), (Some(69), ""));
    // It goes on, and ends when it is told to.
    proc::kill(exporter.pid(), Signal::SIGTERM);
    eventually("it is gone", || proc::listeners(exporter.address).is_empty());
}

#[test]
fn a_file_for_node_exporter_is_whole_at_any_time() {
    let server = serve_many();
    let dir = server.dir().join("textfiles");
    std::fs::create_dir(&dir).unwrap();
    let path = dir.join("preforkd.prom");
    let file = path.to_str().unwrap();
    let write_it = || preforkd(&["metrics", "--control", server.control(), "--textfile", file]);
    let first = write_it();
    assert!(first.status.success() && first.stdout.is_empty(), "{}", text(&first.stderr));
    let page = std::fs::read_to_string(&path).unwrap();
    assert_eq!(sample(&page, "preforkd_up"), Some(1.0));
    assert!(!page.contains("# EOF") && !page.contains("_created"), "the collector reads the other format");
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    // It is another file each time: who reads the one before has all of it.
    let before = std::fs::metadata(&path).unwrap().ino();
    let open = std::fs::File::open(&path).unwrap();
    assert!(write_it().status.success());
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), before);
    assert_eq!(std::io::read_to_string(open).unwrap(), page);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    server.stop();
    // What is old is not told as if it were still so.
    assert_eq!(write_it().status.code(), Some(69));
    let page = std::fs::read_to_string(&path).unwrap();
    assert_eq!(sample(&page, "preforkd_up"), Some(0.0));
    assert_eq!(counters(&page), BTreeMap::new());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn a_file_that_cannot_be_written_is_said_and_nothing_is_left() {
    let server = serve_many();
    let write_to = |path: &Path| {
        let output =
            preforkd(&["metrics", "--control", server.control(), "--textfile", path.to_str().unwrap()]);
        (output.status.code(), text(&output.stderr))
    };
    let dir = server.dir().join("a-directory");
    std::fs::create_dir_all(dir.join("below")).unwrap();
    for path in [dir.clone(), dir.join("no/such"), "/proc/x.prom".into(), "/".into()] {
        let (code, said) = write_to(&path);
        assert_eq!(code, Some(71), "{path:?}: {said}");
        assert!(
            said.starts_with("preforkd: cannot write ") && said.contains(path.to_str().unwrap()),
            "{said}"
        );
    }
    assert!(std::fs::read_dir(server.dir()).unwrap().all(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        !name.starts_with("a-directory.")
    }));
    let full = preforkd_to(&server, "/dev/full");
    assert_eq!(full.0, Some(71), "{}", full.1);
}

fn preforkd_to(server: &Running, file: &str) -> (Option<i32>, String) {
    let script = format!("exec \"$0\" metrics --control \"$1\" >{file}");
    let output = run(&["sh", "-c", &script, BINARY, server.control()]);
    (output.status.code(), text(&output.stderr))
}

/// The one that Debian has, as it is set up by people.
#[test]
fn prometheus_scrapes_it() {
    if !is_there("prometheus_scrapes_it", PROMETHEUS) {
        return;
    }
    let listen = address::fresh();
    let server =
        Preforkd::run(&format!("[service.one]\nlisten = \"{listen}\"\nhandler = \"echo\"\nspare = 2\n"))
            .start();
    let exporter = Exporter::of(&server, &[]);
    for _ in 0..7 {
        assert_eq!(exchange(listen, b"hello"), b"hello");
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring/preforkd-alerts.yml");
    write(
        &config,
        &format!(
            "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs:\n  - job_name: preforkd\n    scrape_timeout: 200ms\n    static_configs: [{{ targets: [\"{}\"] }}]\n",
            alerts.display(),
            exporter.address
        )
        .replace("200ms, scrape_timeout: 200ms", "1s, scrape_timeout: 1s")
        .replace("    scrape_timeout: 200ms\n", ""),
    );
    let web = address::fresh();
    let command = [
        PROMETHEUS.to_owned(),
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", dir.path().join("data").display()),
        format!("--web.listen-address={web}"),
    ];
    let prometheus =
        Fenced::start(&Orders { command: command.into(), environment: BTreeMap::new(), listen: None });
    let ask = |query: &str| -> Option<f64> {
        let request = format!("GET /api/v1/query?query={query} HTTP/1.0\r\n\r\n");
        let mut stream = std::net::TcpStream::connect(web).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let answer: serde_json::Value = serde_json::from_str(reply.split_once("\r\n\r\n")?.1).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    let is = |query: &str, wanted: f64| {
        eventually(&format!("{query} is {wanted}"), || ask(query) == Some(wanted) || prometheus.has_ended());
        assert!(!prometheus.has_ended(), "{:#?}", prometheus.stderr.all());
    };
    is("up", 1.0);
    is("preforkd_connections_accepted_total", 7.0);
    is("preforkd_connection_duration_seconds_count", 7.0);
    is("preforkd_connection_duration_seconds_bucket%7Ble=%22%2BInf%22%7D", 7.0);
    is("preforkd_service_ready", 1.0);
    is("count(preforkd_connections_refused_total)", 7.0);
    // What Prometheus thinks of the samples themselves.
    is("scrape_samples_scraped-scrape_samples_post_metric_relabeling", 0.0);
    server.stop();
    is("up", 0.0);
}

#[test]
fn the_dashboard_asks_for_nothing_that_is_not_there() {
    let server = serve_many();
    let page = printed(&server, &["--format", "prometheus"]);
    let name = |line: &str| line.split(['{', ' ']).next().unwrap().to_owned();
    let known: BTreeSet<String> = page.lines().filter(|line| !line.starts_with('#')).map(name).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring");
    let dashboard = std::fs::read_to_string(directory.join("preforkd-dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${DS_PROMETHEUS}", "{panel}");
            queries.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        queries.push(variable["query"]["query"].as_str().unwrap().to_owned());
    }
    assert!(queries.len() > 20);
    queries.push(std::fs::read_to_string(directory.join("preforkd-alerts.yml")).unwrap());
    let mut asked = BTreeSet::new();
    for query in &queries {
        for (at, _) in query.match_indices("preforkd_") {
            let rest = &query[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            asked.insert(rest[..end].to_owned());
        }
    }
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(asked.len() > 20, "{asked:?}");
    // A panel that shows no service would show nothing.
    let uid = dashboard["uid"].as_str().unwrap();
    assert_eq!(uid, "preforkd");
}

/// The handlers of the exporter are for its command.
#[test]
fn no_configuration_can_name_its_handlers() {
    for handler in ["(metrics)", "(page)", "(haproxy-agent)", "metrics"] {
        let output = preforkd(&["serve", "127.0.0.1:0", handler]);
        assert_eq!(output.status.code(), Some(64), "{handler}");
        let said = text(&output.stderr);
        assert!(said.contains("the handlers are echo, discard, chargen, daytime, time"), "{said}");
    }
}

#[test]
fn a_wrong_command_line_is_explained() {
    for (arguments, complaint) in [
        (&["7"][..], "ADDRESS: error: \"7\" is not an address"),
        (&["--agent", "git="], "--agent: error: \"\" is not an address"),
        (&["--page", "7"], "--page: error: \"7\" is not an address"),
        (&["--page-host", "x"], "--page <ADDRESS>"),
        (&["--agent", "7", "127.0.0.1:0"], "--agent: error: \"7\" is not an address"),
        (&["--format", "json"], "invalid value 'json'"),
        (&["--textfile", "/tmp/x", "127.0.0.1:0"], "cannot be used with"),
    ] {
        let output = preforkd(&[&["metrics"], arguments].concat());
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains(complaint), "{arguments:?}: {said}");
    }
}
