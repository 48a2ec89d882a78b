//! The manifests of packaging/kubernetes are right by the schema of Kubernetes, and what they say to preforkd is what it does.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::client::{connect, echo, exchange};
use crate::support::exporter::Exporter;
use crate::support::{Preforkd, address, preforkd, say, text};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/kubernetes/preforkd.yaml");

/// Whether what reads and checks YAML is there. In CI it must be; elsewhere the test is skipped, and says so.
fn can_check(test: &str) -> bool {
    let there =
        ["yaml", "jsonschema"].map(|name| Path::new("/usr/lib/python3/dist-packages").join(name).exists());
    if there != [true, true] {
        assert!(
            std::env::var_os("CI").is_none(),
            "{test} needs python3-yaml and python3-jsonschema, and CI must have them"
        );
        say(&format!("SKIPPED: {test} needs the packages python3-yaml and python3-jsonschema"));
    }
    there == [true, true]
}

fn check(manifests: &str) -> Output {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes/check"));
    command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn manifests() -> String {
    std::fs::read_to_string(MANIFESTS).unwrap()
}

/// The document of a kind.
fn document(kind: &str) -> Value {
    let output = check(&manifests());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let documents = text(&output.stdout);
    let mut all = documents.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.find(|document| document["kind"] == kind).unwrap()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_manifests_are_what_the_schema_says_and_mistakes_are_none() {
    if !can_check("the schema of Kubernetes") {
        return;
    }
    let right = check(&manifests());
    assert!(right.status.success(), "{}", text(&right.stderr));
    for (from, to, complaint) in [
        ("readinessProbe:", "readynessProbe:", "'readynessProbe' was unexpected"),
        ("replicas: 3", "replicas: three", "spec.replicas: 'three' is not of type"),
        ("containerPort: 7007", "containerport: 7007", "'containerport' was unexpected"),
        ("  selector:\n    matchLabels: *labels\n", "", "'selector' is a required property"),
        ("kind: Service", "kind: Sevrice", "the schema has no such kind"),
    ] {
        assert!(manifests().contains(from), "{from}");
        let wrong = check(&manifests().replace(from, to));
        assert_eq!(wrong.status.code(), Some(1), "{to}");
        assert!(text(&wrong.stderr).contains(complaint), "{to}: {}", text(&wrong.stderr));
    }
}

#[test]
fn a_pod_of_the_manifests_is_ready_and_serves_on_as_a_lame_duck() {
    if !can_check("a pod of the manifests") {
        return;
    }
    let config = document("ConfigMap")["data"]["preforkd.toml"].as_str().unwrap().to_owned();
    let deployment = document("Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let (sidecar, container) = (&pod["initContainers"][0], &pod["containers"][0]);
    assert_eq!(container["args"], serde_json::json!(["run"]));

    // The ports of probes, services and arguments are those that are listened at.
    let port = container["ports"][0]["containerPort"].to_string();
    assert!(config.contains(&format!("\"*:{port}\"")), "{config}");
    assert_eq!(document("Service")["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
    let metrics = strings(&sidecar["args"]);
    let [command, listen] = &metrics[..] else { panic!("{metrics:?}") };
    assert_eq!(
        (command.as_str(), listen.rsplit(':').next()),
        ("metrics", sidecar["ports"][0]["containerPort"].to_string().as_str().into())
    );
    let probe = |name: &str| {
        let get = &container[name]["httpGet"];
        assert_eq!(get["port"], sidecar["ports"][0]["containerPort"], "{name}");
        get["path"].as_str().unwrap().to_owned()
    };

    let at = address::fresh();
    let server = Preforkd::run(&config.replace(&format!("*:{port}"), &at.to_string())).start();
    assert_eq!(server.log.count(|line| line.contains("warning: ")), 0, "{:#?}", server.log.all());
    let exporter = Exporter::of(&server, &[]);
    let [ready, alive] = ["readinessProbe", "livenessProbe"].map(probe);
    let probes = || (exporter.get(&ready).status, exporter.get(&alive).status);
    assert_eq!(probes(), (200, 200));
    let mut client = connect(at);
    echo(&mut client, b"before");

    let before_stop = strings(&container["lifecycle"]["preStop"]["exec"]["command"]);
    let words: Vec<&str> = before_stop.iter().map(String::as_str).collect();
    let ["/preforkd", "lameduck", "--wait", wait, service] = words[..] else { panic!("{words:?}") };
    // Not for as long as there.
    let said = preforkd(&["lameduck", "--control", server.control(), "--wait", "1ms", service]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    assert_eq!(probes(), (503, 200));
    assert_eq!(exchange(at, b"late"), b"late", "who is still sent to it is served");
    echo(&mut client, b"after");

    // All of the end has time.
    let seconds = |duration: &str| duration.strip_suffix('s').unwrap().parse::<u64>().unwrap();
    let table: toml::Table = config.parse().unwrap();
    let drain = seconds(table["supervisor"]["drain_timeout"].as_str().unwrap());
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= seconds(wait) + drain + 4, "{grace} s");
}

#[test]
fn lameduck_waits_only_where_there_is_something_to_wait_for() {
    let server = Preforkd::serve(&[], "127.0.0.1:0", &["echo"]).start();
    let none = preforkd(&["lameduck", "--control", server.control(), "--wait", "1h", "nobody"]);
    assert_eq!(none.status.code(), Some(69), "{}", text(&none.stderr));
    let wrong = preforkd(&["lameduck", "--control", server.control(), "--wait", "10", "echo"]);
    assert_eq!(wrong.status.code(), Some(64), "{}", text(&wrong.stderr));
    assert_eq!(server.service()["lameduck"], false);
}
