//! The page of `preforkd metrics --page`: what it says, to whom, and that nobody can write on it.

use std::io::{Read, Write};
use std::net::Shutdown;

use serde_json::json;

use crate::support::browser::{self, Browser};
use crate::support::client::{connect, exchange};
use crate::support::exporter::Exporter;
use crate::support::{Preforkd, Running, address, eventually, preforkd, run, text};

/// What would be a script if it were not text.
const HOSTILE: &str =
    "</pre></noscript><img src=x onerror=document.title='taken'><script>document.title='taken'</script>";

/// One service that echoes, and one that is down for a reason with markup in it.
fn serve() -> (Running, std::net::SocketAddr) {
    let listen = address::fresh();
    let config = format!(
        "[service.one]\nlisten = \"{listen}\"\nhandler = \"echo\"\nspare = 2\nmax_connections = 7\n\
         [service.gone]\nlisten = \"unix:DIR/g\"\nexec = [\"/nonexistent/{HOSTILE}\"]\n"
    );
    let server = Preforkd::run(&config).start();
    assert_eq!(exchange(listen, b"hello"), b"hello");
    (server, listen)
}

#[test]
fn it_says_what_status_says_and_does_nothing_else() {
    let (server, _) = serve();
    let page = Exporter::of(&server, &["--page-host", "tower", "--page"]);
    let reply = page.get("/status.json");
    assert_eq!((reply.status, reply.fields["content-type"].as_str()), (421, "text/plain; charset=utf-8"));
    let ask = |request: &str, host: &str| page.ask(&format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    for host in ["localhost", "127.0.0.1:80", "[::1]:80", "tower"] {
        let reply = ask("GET /status.json", host);
        assert_eq!(
            (reply.status, reply.fields["content-type"].as_str()),
            (200, "application/json"),
            "{host}"
        );
        let said: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(said["services"], server.status()["services"]);
    }
    let document = ask("GET /", "localhost");
    assert_eq!(
        (document.status, document.fields["content-type"].as_str()),
        (200, "text/html; charset=utf-8")
    );
    let policy = &document.fields["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"));
    for (field, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(document.fields[field], value);
    }
    assert!(
        !document.fields.contains_key("set-cookie")
            && !document.fields.contains_key("access-control-allow-origin")
    );
    // Nothing comes from anywhere else.
    assert!(
        !document.body.contains("//cdn")
            && !document.body.contains("https://")
            && !document.body.contains(" src=\"")
    );
    // Without script there is what status prints.
    let status = text(&preforkd(&["status", "--control", server.control()]).stdout);
    let line = status.lines().find(|line| line.starts_with("one ")).unwrap();
    assert!(document.body.contains(line), "no {line:?} in:\n{}", document.body);
    let head = ask("HEAD /", "localhost");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for (request, status) in [
        ("GET /metrics", 404),
        ("GET /../status.json", 404),
        ("GET //status.json", 404),
        ("GET /status.json?x=<script>", 200),
        ("GET http://evil.example/status.json", 421),
        ("POST /", 405),
        ("PUT /status.json", 405),
        ("OPTIONS /", 405),
    ] {
        assert_eq!(ask(request, "localhost").status, status, "{request}");
    }
    let twice = page.ask("GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n");
    assert_eq!(twice.status, 400);
    for host in ["evil.example", "localhost.evil.example", "tower.evil.example:80", "\u{1}"] {
        assert_eq!(ask("GET /", host).status, 421, "{host}");
    }
    // It is off by default.
    let metrics = Exporter::of(&server, &[]);
    for path in ["/", "/status.json"] {
        assert_eq!(metrics.get(path).status, 404);
    }
    server.stop();
    let document = ask("GET /", "localhost");
    assert_eq!(document.status, 503);
    assert!(document.body.contains("no preforkd answers at "), "{}", document.body);
    assert_eq!(ask("GET /status.json", "localhost").status, 503);
}

#[test]
fn what_is_said_of_a_service_is_text() {
    let (server, _) = serve();
    let page = Exporter::of(&server, &["--page"]);
    let document = page.ask("GET / HTTP/1.0\r\n\r\n").body;
    assert!(!document.contains("<img") && !document.contains("='taken'</script>"), "{document}");
    assert!(document.contains("&lt;img src=x onerror="), "{document}");
    assert_eq!(document.matches("</script>").count(), 1);
}

#[test]
fn no_client_of_the_page_can_hold_it_up() {
    let (server, _) = serve();
    let page = Exporter::of(&server, &["--page"]);
    let long = page.ask(&format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(2000)));
    assert_eq!(long.status, 431);
    let mut slow: Vec<_> = (0..10).map(|_| connect(page.address)).collect();
    for client in &mut slow {
        client.write_all(b"GET / HTTP/1.1\r\nHost: local").unwrap();
    }
    assert_eq!(page.ask("GET /status.json HTTP/1.0\r\n\r\n").status, 200);
    let mut last = slow.pop().unwrap();
    last.write_all(b"host\r\n\r\n").unwrap();
    last.shutdown(Shutdown::Write).unwrap();
    let mut late = String::new();
    last.read_to_string(&mut late).unwrap();
    assert!(late.starts_with("HTTP/1.1 200 OK\r\n") && late.ends_with("</html>\n"), "{late}");
    assert_eq!(exchange(page.address, &[0xff; 100]), b"");
}

/// The policy lets run what has these hashes: of another document it would be nothing.
#[test]
fn the_policy_is_of_this_script_and_this_style() {
    let (server, _) = serve();
    let page = Exporter::of(&server, &["--page"]);
    let reply = page.ask("GET / HTTP/1.0\r\n\r\n");
    let document = server.dir().join("page.html");
    crate::support::write(&document, &reply.body);
    for name in ["script", "style"] {
        let script = "import sys, re, hashlib, base64\n\
             found = re.search('<%s>(.*?)</%s>' % (sys.argv[2], sys.argv[2]), open(sys.argv[1], newline='').read(), re.S)\n\
             print(base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode())\n";
        let output = run(&["python3", "-c", script, document.to_str().unwrap(), name]);
        let hash = text(&output.stdout);
        let policy = &reply.fields["content-security-policy"];
        let wanted = format!("{name}-src 'sha256-{}'", hash.trim());
        assert!(policy.contains(&wanted), "src/cli/metrics/page.rs has to say {wanted}");
    }
}

#[test]
fn a_browser_shows_it() {
    if !browser::is_there("a_browser_shows_it") {
        return;
    }
    let (server, listen) = serve();
    let page = Exporter::of(&server, &["--page"]);
    let url = format!("http://{}/", page.address);
    let mut browser = Browser::start();
    browser.open(&url, 360, "light");
    let row =
        "[...document.querySelectorAll('tbody tr')].find((row) => row.children[0].textContent === 'one')";
    let cell = |label: &str| format!("{row}?.querySelector('[data-label=\"{label}\"]').textContent");
    browser.wait(&format!("{} === 'serving'", cell("State")));
    let held: Vec<_> = (0..7).map(|_| connect(listen)).collect();
    browser.wait(&format!("{} === '7 of 7'", cell("Connections")));
    for _ in 0..5 {
        drop(connect(listen));
    }
    drop(held);
    browser.wait(&format!("{} === '0 of 7'", cell("Connections")));
    // Times are of what has ended since.
    browser.wait(&format!("/^[0-9.]+ (µs|ms|s)$/.test({})", cell("Half took")));
    browser.wait("[...document.querySelectorAll('figure svg')].every((one) => one.querySelector('path:not(.grid)').getAttribute('d'))");
    // What comes from elsewhere is text, and nothing of it was done.
    browser.wait("document.querySelector('#trouble li').textContent.includes(\"<img src=x onerror=document.title='taken'>\")");
    assert_eq!(browser.evaluate("document.title"), "preforkd");
    assert_eq!(browser.evaluate("document.images.length + document.scripts.length"), 1);
    // For a phone nothing is too wide; who does not see it hears of what; who has no mouse reaches what there is.
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360);
    assert_eq!(browser.evaluate("document.querySelectorAll('th:not([scope])').length"), 0);
    let label = browser.evaluate("document.querySelector('figure svg').getAttribute('aria-label')");
    assert!(label.as_str().unwrap().starts_with("New connections: accepted now "), "{label}");
    let tree = browser.call("Accessibility.getFullAXTree", &json!({})).to_string();
    for role in ["table", "columnheader", "rowheader", "cell", "image", "status", "heading"] {
        assert!(tree.contains(&format!("\"value\":\"{role}\"")), "{role}");
    }
    let focused = "document.activeElement.id || document.activeElement.tagName";
    for wanted in ["whose", "hold", "SUMMARY"] {
        browser.press("Tab", 9, "");
        assert_eq!(browser.evaluate(focused), wanted);
    }
    browser.press("Enter", 13, "\r");
    browser.wait("document.activeElement.parentElement.open");
    let summary = "document.activeElement.parentElement.textContent";
    assert!(browser.evaluate(summary).as_str().unwrap().contains("Listens at"));
    // One of them alone.
    browser.evaluate("whose.value = 'one'; whose.dispatchEvent(new Event('change')); true");
    // Held, it stays.
    browser.evaluate("hold.click(); true");
    browser.wait("document.getElementById('alive').textContent.startsWith('Held')");
    browser.evaluate("hold.click(); true");
    assert_eq!(browser.complaints, Vec::<String>::new());
    // A script that comes in all the same does not run.
    browser.evaluate("document.body.append(Object.assign(document.createElement('p'), { id: 'x' })); true");
    let refused =
        "(() => { try { x.innerHTML = '<img src=x onerror=1>'; return false } catch { return true } })()";
    assert_eq!(browser.evaluate(refused), true);
    let light = browser.evaluate("getComputedStyle(document.body).backgroundColor");
    browser.open(&url, 1200, "dark");
    browser.wait(&format!("{} === 'serving'", cell("State")));
    assert_ne!(browser.evaluate("getComputedStyle(document.body).backgroundColor"), light);
    let is_too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    assert_eq!(browser.evaluate(is_too_wide), false);
    // What was seen stays, and that it is old is said.
    server.stop();
    browser.wait("document.getElementById('alive').textContent.includes('no preforkd answers at ')");
    assert_eq!(browser.evaluate("document.querySelectorAll('tbody tr').length"), 2);
}

#[test]
fn a_browser_without_script_shows_it_too() {
    if !browser::is_there("a_browser_without_script_shows_it_too") {
        return;
    }
    let (server, _) = serve();
    let page = Exporter::of(&server, &["--page"]);
    let mut browser = Browser::start();
    browser.call("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
    browser.open(&format!("http://{}/", page.address), 360, "dark");
    let shown = "document.querySelector('noscript pre')?.innerText ?? ''";
    eventually("there is text", || {
        browser.evaluate(shown).as_str().is_some_and(|text| text.contains("one "))
    });
    assert!(browser.evaluate(shown).as_str().unwrap().contains(HOSTILE));
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360);
    assert_eq!(browser.evaluate("document.images.length"), 0);
}
