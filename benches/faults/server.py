"""A server that runs in a cgroup of its own, which says what belongs to it and lets nothing escape."""

import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from client import ask, close, served, several

LIMIT = 10
PROGRAM = "served"
def own_orphans():
    """What servers leave behind becomes a child of this process, not of init, and is reaped here."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def free_port():
    """Below those that the kernel gives to clients. Each process looks for one in a place of its own."""
    while True:
        free_port.last = max(free_port.last + 1, 10000 + os.getpid() % 200 * 100)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", free_port.last))
                return free_port.last
            except OSError:
                pass


free_port.last = 0


def pids_controller():
    """Where cgroups with pids.max can be made."""
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "pids" in options.split(","):
            return pathlib.Path(where)
        if kind == "cgroup2" and "pids" in pathlib.Path(where, "cgroup.controllers").read_text().split():
            top = pathlib.Path(where)
            top.joinpath("cgroup.subtree_control").write_text("+pids")
            return top
    raise SystemExit("benches/faults/run: no cgroup with the pids controller can be had here")


class Failed(Exception):
    """The server does not serve; says why."""


class Server:
    """A running peer."""

    def __init__(self, peer, remedy=None):
        self.peer, self.remedy, self.port = peer, remedy, free_port()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="preforkd-faults-"))
        self.directory.chmod(0o755)
        self.cgroup = pids_controller() / f"preforkd-faults-{os.getpid()}-{self.port}"
        self.cgroup.mkdir()
        self.log, self.syslog = self.directory / "log", self.directory / "syslog"
        self.syslog.write_bytes(bytes(8))
        self.launch()

    def launch(self):
        command = self.peer.command(self)
        environment = {"PATH": os.environ["PATH"]}
        if self.peer.syslog:
            environment["SYSLOG_COUNT"] = str(self.syslog)
            environment["LD_PRELOAD"] = str(self.peer.bin / "syslog.so")
        procs = str(self.cgroup / "cgroup.procs")
        # A shell moves itself into the cgroup and becomes the server.
        become = 'echo $$ >"$0" && ulimit -c 0 && exec "$@"'
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", become, procs, *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
                cwd=self.directory)

    @property
    def main(self):
        """The pid of the server's first process."""
        return self.peer.pid_of(self)

    def wait_until_serving(self, seconds=10):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            client = ask(self.port)
            client.close()
            if client.state == "served":
                self.wait(lambda: not self.programs())
                return self
            if self.peer.foreground and self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise Failed(self.log.read_text(errors="replace").strip()[-300:] or "does not serve, and says nothing")

    def pids(self):
        try:
            return [int(pid) for pid in (self.cgroup / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def _by_name(self, is_program):
        for pid in self.pids():
            try:
                stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                continue
            name, state = stat[stat.index("(") + 1:stat.rindex(")")], stat[stat.rindex(")") + 2]
            if state != "Z" and (name == PROGRAM) == is_program:
                yield pid

    def programs(self):
        """Live processes of the program."""
        return list(self._by_name(True))

    def servers(self):
        """Live processes of the server itself."""
        return list(self._by_name(False))

    def acceptors(self):
        """Those of them that have the listener, and are its end: what accepts."""
        return [pid for pid in self.servers() if self._has_listener(pid)]

    def _has_listener(self, pid):
        inodes = {line.split()[9] for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()
                  if line.split()[1].endswith(f":{self.port:04X}") and line.split()[3] == "0A"}
        try:
            return any(os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1] in inodes for fd in os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return False

    @staticmethod
    def wait(condition, seconds=5):
        """Whether this becomes true in that time."""
        deadline = time.monotonic() + seconds
        while not (result := condition()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(result)

    def alive(self):
        """Whether the first process runs."""
        try:
            stat = pathlib.Path(f"/proc/{self.main}/stat").read_text()
        except OSError:
            return False
        return stat[stat.rindex(")") + 2] != "Z"

    def signal(self, number):
        os.kill(self.main, number)

    def end_of_life(self):
        """How the first process ended, in words; nothing while it runs."""
        if self.alive():
            return ""
        code = self.process.poll() if self.peer.foreground else None
        if code is None:
            return "ended"
        return f"killed {signal.Signals(-code).name}" if code < 0 else f"exits {code}"

    def wanted_cpu(self, seconds=2):
        """Per cent of a CPU that the server's processes used or waited for, so that a busy machine hides no spin."""
        def nanoseconds():
            total = {}
            for pid in self.servers():
                try:
                    ran, waited, _ = pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()
                    total[pid] = int(ran) + int(waited)
                except OSError:
                    pass
            return total
        before, began = nanoseconds(), time.monotonic()
        time.sleep(seconds)
        after, elapsed = nanoseconds(), time.monotonic() - began
        return round(sum(after[pid] - before.get(pid, 0) for pid in after) / elapsed / 1e7)

    def log_lines(self):
        return self.log.read_bytes().count(b"\n") + int.from_bytes(self.syslog.read_bytes(), sys.byteorder)

    def slots(self):
        """How many clients it serves at once now, of two more than its limit."""
        self.wait(lambda: not self.programs(), 2)
        clients = several(self.port, LIMIT + 2, "127.0.0.4")
        number = len(served(clients))
        close(clients)
        return number

    def limit_processes(self, number):
        """No more processes than this below the server; None lifts it."""
        (self.cgroup / "pids.max").write_text("max" if number is None else str(number))

    def end(self):
        """Nothing of it is left afterwards."""
        self.limit_processes(None)
        self.wait(lambda: not self._kill(), 10)
        self.process.wait()
        self._reap()
        self.wait(self._remove_cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _kill(self):
        pids = self.pids()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._reap()
        return pids

    def _reap(self):
        if self.process.poll() is None and self.pids():
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def _remove_cgroup(self):
        try:
            self.cgroup.rmdir()
        except OSError:
            return False
        return True
