"""The peers: how each is started with room for LIMIT connections, and what it has against a fault."""

import os
import pathlib
import shutil
import signal
import subprocess

from server import LIMIT


class Peer:
    """A server. `remedies`: for a fault, the options it has against it, tried besides the plain configuration."""

    name = package = ""
    limit = f"-c {LIMIT}"
    unlimited = False
    syslog = False
    foreground = True
    remedies = {}
    reload = None  # how it is told to read its configuration anew; None if it has none

    def __init__(self, directory, bin_):
        self.directory, self.bin = pathlib.Path(directory), pathlib.Path(bin_)
        self.program = str(self.bin / "served")

    def options(self, server):
        return self.remedies.get(server.remedy, [])

    def pid_of(self, server):
        return server.process.pid

    def version(self):
        query = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", self.package], capture_output=True, text=True)
        archive = sorted(self.directory.glob(f"{self.package}_*.deb"))
        if query.stdout or not archive:
            return query.stdout
        return subprocess.run(["dpkg-deb", "-f", archive[-1], "Version"], capture_output=True, text=True).stdout.strip()

    def missing(self):
        """Why it cannot be tried; nothing if it can."""
        file = self.executable()
        return "" if file and os.access(file, os.X_OK) else f"{self.package} is not installed"

    def executable(self):
        return shutil.which(self.name)


class Tcpserver(Peer):
    name, package = "tcpserver", "ucspi-tcp"

    def command(self, server):
        return ["tcpserver", "-HRl", "localhost", "-c", str(LIMIT), "127.0.0.1", str(server.port), self.program]


class Tcpsvd(Peer):
    name, package = "tcpsvd", "ipsvd"
    remedies = {"source": ["-C", "5"]}

    def command(self, server):
        return ["tcpsvd", "-l", "localhost", "-c", str(LIMIT), *self.options(server),
                "127.0.0.1", str(server.port), self.program]


class Xinetd(Peer):
    name, package = "xinetd", "xinetd"
    limit = f"instances = {LIMIT}"
    remedies = {"source": ["per_source = 5"], "rate": ["cps = 1000000 1"]}
    syslog = True
    reload = signal.SIGHUP
    entry = "service test\n{{\ntype = UNLISTED\nsocket_type = stream\nprotocol = tcp\nbind = 127.0.0.1\n" \
            "port = {port}\nwait = no\nuser = {user}\nserver = {program}\ninstances = {limit}\n{options}\n}}\n"

    def executable(self):
        return shutil.which("/usr/sbin/xinetd") or self.directory / "xinetd/usr/sbin/xinetd"

    def configure(self, server, user="root", broken=""):
        self.file(server).write_text(self.entry.format(
            port=server.port, user=user, program=self.program, limit=LIMIT,
            options="\n".join([*self.options(server), broken])))

    def file(self, server):
        return server.directory / "conf"

    def command(self, server):
        self.configure(server)
        return [str(self.executable()), "-dontfork", "-f", str(self.file(server)),
                "-pidfile", str(server.directory / "pid")]


class OpenbsdInetd(Peer):
    name = package = "openbsd-inetd"
    limit, unlimited = "none", True
    remedies = {"rate": ["-R", "1000000"]}
    syslog = True
    reload = signal.SIGHUP

    def executable(self):
        return self.directory / "openbsd-inetd/usr/sbin/inetd"

    def file(self, server):
        return server.directory / "conf"

    def configure(self, server, user="root", broken=""):
        self.file(server).write_text(
            f"127.0.0.1:{server.port} stream tcp nowait {user} {self.program} served\n{broken}\n")

    def command(self, server):
        self.configure(server)
        return [str(self.executable()), "-i", *self.options(server), str(self.file(server))]


class InetutilsInetd(OpenbsdInetd):
    name = package = "inetutils-inetd"
    remedies = {"rate": ["-R", "1000000"]}
    foreground = False

    def executable(self):
        return self.directory / "inetutils-inetd/usr/sbin/inetutils-inetd"

    def pid_of(self, server):
        try:
            return int((server.directory / "pid").read_text())
        except (OSError, ValueError):
            return server.process.pid

    def command(self, server):
        self.configure(server)
        return [str(self.executable()), f"--pidfile={server.directory}/pid", *self.options(server),
                str(self.file(server))]


class Socat(Peer):
    name = package = "socat"
    limit = f"max-children={LIMIT}"
    remedies = {"silence": ["-T", "3"], "relay": ["nofork"]}

    def command(self, server):
        program, options = f"EXEC:{self.program}", self.options(server)
        if server.remedy == "relay":
            program, options = program + ",nofork", []
        return ["socat", *options,
                f"TCP-LISTEN:{server.port},bind=127.0.0.1,reuseaddr,fork,max-children={LIMIT}", program]


class Ncat(Peer):
    name = package = "ncat"
    limit = f"--max-conns {LIMIT}"
    remedies = {"silence": ["-i", "3"]}

    def command(self, server):
        return ["ncat", "--listen", "--keep-open", "--max-conns", str(LIMIT), *self.options(server),
                "--exec", self.program, "127.0.0.1", str(server.port)]


class S6(Peer):
    name, package = "s6-tcpserver", "s6-networking"
    remedies = {"source": ["-C", "5"]}

    def executable(self):
        return shutil.which("s6-tcpserver") or self.directory / "s6-networking/s6-tcpserver"

    def version(self):
        return super().version() or "2.5.1.3"

    def command(self, server):
        os.environ["PATH"] = f"{self.directory}/s6-networking:{os.environ['PATH']}"
        return [str(self.executable()), "-q", "-c", str(LIMIT), *self.options(server),
                "127.0.0.1", str(server.port), self.program]


class Preforkd(Peer):
    name = package = "preforkd"
    limit = f"max_connections = {LIMIT}"
    remedies = {
        "source": ["max_connections_per_source = 5"],
        "rate": ['rate_per_source = "50/s burst 50"'],
        "silence": ['first_byte_timeout = "3s"', 'idle_timeout = "3s"'],
        "stubborn": ['max_lifetime = "3s"'],
        "overload": ['overload = "refuse"', 'refuse_message = "busy\\n"'],
    }
    reload = signal.SIGHUP

    def executable(self):
        return os.environ["PREFORKD"]

    def version(self):
        words = subprocess.run([self.executable(), "--version"], capture_output=True, text=True).stdout.split()
        last = ["git", "log", "-1", "--format=%h", "--", "src"]
        return f"{words[-1]} ({subprocess.run(last, capture_output=True, text=True).stdout.strip()})"

    def file(self, server):
        return server.directory / "conf"

    def configure(self, server, user="root", broken=""):
        self.file(server).write_text("\n".join([
            "[supervisor]", f'control_socket = "{server.directory}/control"', 'drain_timeout = "5s"',
            "[service.test]", f'listen = "127.0.0.1:{server.port}"', f'exec = ["{self.program}"]', "workers = 2",
            f"max_connections = {LIMIT}", f'user = "{user}"', *self.options(server), broken, ""]))

    def command(self, server):
        self.configure(server)
        return [self.executable(), "run", "--config", str(self.file(server))]


ALL = [Tcpserver, S6, Tcpsvd, Xinetd, OpenbsdInetd, InetutilsInetd, Socat, Ncat, Preforkd]
