//! Debian's Chromium without a window, driven through its pipes by the DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use super::{PATIENCE, eventually};

const CHROMIUM: &str = "/usr/bin/chromium";

/// As root it has no sandbox; and it asks nobody but the page for anything.
const ARGUMENTS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-pipe",
];

/// With one tab.
pub(crate) struct Browser {
    process: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<Value>,
    number: u64,
    session: Option<String>,
    /// What it complained of: errors of scripts, and what the policy of a page has kept from happening.
    pub(crate) complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

/// Whether it is there.
pub(crate) fn is_there(test: &str) -> bool {
    super::is_there(test, CHROMIUM)
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        // It reads orders from 3 and answers on 4, each message with a zero byte at its end.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null", "sh", CHROMIUM])
            .args(ARGUMENTS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let orders = process.stdin.take();
        let mut source = BufReader::new(process.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while source.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                let answer = serde_json::from_slice(message.strip_suffix(&[0]).unwrap_or(&message));
                if answer.is_err() || sender.send(answer.unwrap()).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            process,
            orders,
            answers,
            number: 0,
            session: None,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target =
            browser.call("Target.createTarget", &json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        browser.call("Log.enable", &json!({}));
        browser.call("Runtime.enable", &json!({}));
        browser
    }

    /// Calls a method, and waits for what it returns.
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut order = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            order["sessionId"] = json!(session);
        }
        let orders = self.orders.as_mut().unwrap();
        orders.write_all(format!("{order}\0").as_bytes()).unwrap();
        loop {
            let answer = self.answers.recv_timeout(PATIENCE).unwrap_or_else(|why| panic!("{method}: {why}"));
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            if matches!(answer["method"].as_str(), Some("Log.entryAdded" | "Runtime.exceptionThrown")) {
                self.complaints.push(answer["params"].to_string());
            }
        }
    }

    /// Opens a page on a screen of this width, with the colors that its user prefers.
    pub(crate) fn open(&mut self, url: &str, width: u32, scheme: &str) {
        let screen = json!({ "width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", &screen);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", &features);
        self.call("Page.navigate", &json!({ "url": url }));
    }

    /// What this is in the page.
    pub(crate) fn evaluate(&mut self, script: &str) -> Value {
        let result = self.call("Runtime.evaluate", &json!({ "expression": script, "returnByValue": true }));
        assert!(result["exceptionDetails"].is_null(), "{script}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until this is so in the page.
    pub(crate) fn wait(&mut self, script: &str) {
        eventually(script, || self.evaluate(script) == true);
    }

    /// Presses a key.
    pub(crate) fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                "text": if kind == "keyDown" { text } else { "" } });
            self.call("Input.dispatchKeyEvent", &event);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
