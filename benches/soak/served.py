"""The preforkd that is soaked: its configuration with everything on, its control socket, its log."""

import asyncio
import collections
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess

# Programs with the listener itself: a line at a time, some clients, then another one is started.
STREAM = (
    'for (1..20) { my $r = ""; vec($r, 0, 1) = 1; select($r, undef, undef, 3) or last; accept(my $c, STDIN) or next;'
    " alarm 20; while (sysread($c, my $b, 4096)) { syswrite($c, $b) } close $c; alarm 0 }"
)
DATAGRAMS = (
    'open(my $s, "+<&=", 0); for (1..20) { my $r = ""; vec($r, 0, 1) = 1; select($r, undef, undef, 2) or last;'
    " my $from = recv($s, my $b, 4096, 0); defined $from or last; send($s, $b, 0, $from) }"
)
# What goes wrong in programs: a crash, a status that is punished, what is left behind, lines on stderr.
FAULTY = (
    "read x; case $x in crash) kill -SEGV $$;; 77) exit 77;; left) sleep 2 </dev/null >/dev/null 2>&1 & exit 0;;"
    " away) setsid sleep 2 </dev/null >/dev/null 2>&1 & exit 0;; spin) while :; do :; done;;"
    " noise) i=0; while [ $i -lt 30 ]; do echo line $i >&2; i=$((i+1)); done;; esac; echo $x"
)

# By name: what is served, without what a reload changes. NAME is the port or the path of its socket.
SERVICES = {
    "echo": """listen = "127.0.0.1:PORT"
handler = "echo"
spare = 4
max_connections = 200
overload = "refuse"
refuse_message = "busy"
max_connections_per_source = 8
rate_per_source = "RATE/s burst 50"
first_byte_timeout = "2s"
idle_timeout = "4s"
max_lifetime = "8s"
penalties = { timeout = "2s", crash = "2s" }
penalty_threshold = "5s\"""",
    "reused": """listen = "127.0.0.1:PORT"
handler = "echo"
spare = 4
connections_per_child = 0
max_connections = 100""",
    "cat": """listen = "127.0.0.1:PORT"
exec = ["/bin/cat"]
user = "nobody"
deny = [DENY]
first_byte_timeout = "2s"
idle_timeout = "4s"
max_lifetime = "8s"
limits = { nofile = 32, cpu = "5s", core = 0, as = "256M" }""",
    "start": """listen = "127.0.0.1:PORT"
exec = ["/bin/cat"]
spare = 2
warm = "start"
warm_max_age = "20s\"""",
    "perl": """listen = "127.0.0.1:PORT"
exec = ["/usr/bin/perl", "-e", "print scalar <STDIN>"]
spare = 2
warm = "spare"
warm_watch = ["DIR/watched"]
max_lifetime = "8s\"""",
    "faulty": """listen = "127.0.0.1:PORT"
exec = ["/bin/sh", "-c", '''FAULTY''']
kill_mode = "process"
limits = { cpu = "1s", core = 0 }
penalties = { crash = "1s", 77 = "1s" }
penalty_threshold = "4s"
max_lifetime = "8s\"""",
    "confined": """listen = "127.0.0.1:PORT"
exec = ["/bin/cat"]
max_lifetime = "8s"
sandbox = { private_tmp = true, pid_namespace = true, network = "none" }""",
    "queue": """listen = "127.0.0.1:PORT"
handler = "echo"
workers = WORKERS
max_connections = 3
max_lifetime = "8s\"""",
    "proxied": """listen = "127.0.0.1:PORT"
handler = "echo"
proxy_protocol_from = ["127.50.0.0/16"]
max_connections_per_source = 20
max_lifetime = "8s\"""",
    "held": """listen = "127.0.0.1:PORT"
handler = "echo"
spare = 1""",
    "local": """listen = "unix:DIR/local.sock"
handler = "echo"
idle_timeout = "4s"
max_lifetime = "8s\"""",
    "stream": """listen = "127.0.0.1:PORT"
wait = true
exec = ["/usr/bin/perl", "-e", '''STREAM''']""",
    "datagrams": """listen = "udp:127.0.0.1:PORT"
wait = true
exec = ["/usr/bin/perl", "-e", '''DATAGRAMS''']""",
}
# Comes and goes with reloads.
EXTRA = """listen = "127.0.0.1:PORT"
handler = "daytime"
spare = 1"""
# What a reload may change, each with what it is at rest first.
CHANGES = {"RATE": ["50", "60"], "DENY": ["", '"10.0.0.0/8", "192.0.2.0/24"'], "WORKERS": ["2", "1"], "extra": [False, True]}

RECORD = re.compile(
    r"^\S+ (?:warning: )?(?P<service>\w+): (?:connection|program) (?P<id>[0-9a-f-]+(?:\.\d+)?) (?:from|for) .*?: (?P<exit>.+?)"
    r"(?: after [\d.]+s| \(|$)(?:.*?cpu (?P<cpu>\d+) ms)?(?:.*?(?P<received>\d+) bytes in, (?P<sent>\d+) out)?"
)


def free_ports(number):
    """Below those that the kernel gives to clients."""
    found, port = [], 21000 + os.getpid() % 500 * 20
    while len(found) < number:
        port += 1
        try:
            with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
                found.append(port)
        except OSError:
            pass
    return found


class Refused(Exception):
    """What preforkd did not do, and why."""


class Served:
    """A running preforkd, and beside it `preforkd metrics`."""

    def __init__(self, program, directory):
        self.program, self.directory = directory / "preforkd", directory
        self.original = program
        self.replace_program()
        names = [*SERVICES, "extra", "metrics", "page", "agent"]
        self.ports = dict(zip(names, free_ports(len(names))))
        self.config, self.control = directory / "preforkd.toml", directory / "control.sock"
        (directory / "watched").write_text("")
        self.settings = {name: values[0] for name, values in CHANGES.items()}
        self.log_path, self.read_to, self.rest_of_line = directory / "log", 0, ""
        self.records = collections.Counter()
        self.events = collections.Counter()
        self.cgroup = self._cgroup()

    @staticmethod
    def _cgroup():
        """A cgroup of its own, if there is version 2: each connection gets one below it."""
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            if kind == "cgroup2":
                made = pathlib.Path(where, f"preforkd-soak-{os.getpid()}")
                made.mkdir()
                return made
        return None

    def replace_program(self):
        """What an upgrade begins with."""
        copy = self.program.with_suffix(".new")
        shutil.copy(self.original, copy)
        copy.rename(self.program)

    def text(self, **changed):
        """The configuration, as the settings have it."""
        settings = self.settings | changed
        mode = 'cgroup = "own"\n' if self.cgroup else ""
        parts = [f'[supervisor]\ncontrol_socket = "{self.control}"\ndrain_timeout = "10s"\n{mode}']
        services = SERVICES | ({"extra": EXTRA} if settings["extra"] else {})
        for name, text in services.items():
            words = {"STREAM": STREAM, "DATAGRAMS": DATAGRAMS, "FAULTY": FAULTY, "DIR": str(self.directory),
                     "PORT": str(self.ports[name]), "RATE": settings["RATE"], "DENY": settings["DENY"],
                     "WORKERS": settings["WORKERS"]}
            workers = "" if "workers" in text or "wait" in text.split() else "workers = 2\n"
            text = re.sub(r"\b(" + "|".join(words) + r")\b", lambda found: words[found[0]], text)
            parts.append(f"[service.{name}]\n{text}\n{workers}")
        return "\n".join(parts)

    def configure(self, **changed):
        self.settings |= changed
        self.config.write_text(self.text())

    def start(self):
        self.configure()
        log = self.log_path.open("ab")
        become = f'echo $$ >"{self.cgroup}/cgroup.procs" && exec "$@"' if self.cgroup else 'exec "$@"'
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        self.process = subprocess.Popen(
            ["sh", "-c", become, "sh", self.program, "run", "--config", self.config],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=environment, start_new_session=True)
        self.metrics = subprocess.Popen(
            [self.program, "metrics", "--control", self.control, "--page", f"127.0.0.1:{self.ports['page']}",
             "--agent", f"held=127.0.0.1:{self.ports['agent']}", f"127.0.0.1:{self.ports['metrics']}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(self.directory / "metrics.log").open("ab"),
            env=environment, start_new_session=True)

    def address(self, name):
        return str(self.directory / "local.sock") if name == "local" else ("127.0.0.1", self.ports[name])

    async def call(self, method, patience=20, **parameters):
        """What the control socket answers, as any program asks it."""
        reader, writer = await asyncio.open_unix_connection(self.control, limit=1 << 24)
        try:
            more = method == "ListConnections"
            call = {"method": f"org.preforkd.Control.{method}", "parameters": parameters, "more": more}
            writer.write(json.dumps(call).encode() + b"\0")
            answer = {}
            while True:
                reply = json.loads((await asyncio.wait_for(reader.readuntil(b"\0"), patience))[:-1])
                if "error" in reply:
                    raise Refused(f"{method}: {reply['error']}: {reply.get('parameters')}")
                for key, value in reply.get("parameters", {}).items():
                    answer[key] = answer[key] + value if more and key in answer else value
                if not reply.get("continues"):
                    return answer
        finally:
            writer.close()

    async def command(self, *words, patience=30):
        """Exit code and text of one of preforkd's commands."""
        process = await asyncio.create_subprocess_exec(
            self.program, *words, "--control", self.control, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            text, _ = await asyncio.wait_for(process.communicate(), patience)
        except asyncio.TimeoutError:
            process.kill()
            return None, f"no answer within {patience} s"
        return process.returncode, text.decode(errors="replace").strip()

    def read_log(self):
        """Counts the records that have come since the last time, by service and what they say."""
        with self.log_path.open("rb") as log:
            log.seek(self.read_to)
            text = log.read()
            self.read_to += len(text)
        lines = (self.rest_of_line + text.decode(errors="replace")).split("\n")
        self.rest_of_line = lines.pop()
        for line in lines:
            found = RECORD.match(line)
            if not found:
                self.events[re.sub(r"[0-9a-f]*\d[0-9a-f.]*", "N", line.partition(" ")[2])[:150]] += 1
                continue
            service, end = found["service"], found["exit"]
            self.records[service, "completed"] += 1
            self.records[service, "bytes_in"] += int(found["received"] or 0)
            self.records[service, "bytes_out"] += int(found["sent"] or 0)
            self.records[service, "cpu_ms"] += int(found["cpu"] or 0)
            self.records[service, "timeouts"] += end.startswith("timeout")
            self.records[service, "lost"] += end.startswith("lost")
            self.records[service, "not started"] += end.startswith("not started")

    def stop(self):
        for process in (self.metrics, self.process):
            if process.poll() is None:
                process.terminate()
        for process in (self.metrics, self.process):
            process.wait(30)
        if self.cgroup:
            for leaf in sorted(self.cgroup.glob("**/"), reverse=True):
                leaf.rmdir()
