"""What is done to it, at random moments."""

import asyncio
import collections
import os
import random
import signal
import socket
import time

import samples
from served import CHANGES, Refused

# How many seconds from one to the next, on average.
EVERY = {
    "reload": 15, "hup": 25, "broken_reload": 40, "kill_worker": 20, "kill_process": 8, "kill_connection": 4,
    "kill_spare": 20, "ban": 5, "pause": 15, "drain": 60, "lameduck": 20, "commands": 5, "half_calls": 4, "scrape": 2,
    "page": 6, "agent": 6, "touch_watched": 25, "unban_penalty": 10, "kill_program": 30,
}


class Actions:
    """Everything that an administrator, and misfortune, does."""

    def __init__(self, served, load):
        self.served, self.load = served, load
        self.done, self.failed = collections.Counter(), []
        self.rests, self.status = False, None
        # One change of the configuration after the other, so that each has a verdict of its own.
        self.changing = asyncio.Lock()
        self.running = 0

    async def run(self, name, every):
        while True:
            await asyncio.sleep(random.expovariate(1 / every))
            if not self.rests:
                await self.one(name)

    async def one(self, name):
        self.running += 1
        try:
            await getattr(self, name)()
            self.done[name] += 1
        except (OSError, Refused, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
            self.fail(f"{name}: {type(error).__name__} {error}")
        finally:
            self.running -= 1

    def fail(self, words):
        self.failed.append(f"{time.strftime('%H:%M:%S')} {words}")
        print(self.failed[-1], flush=True)

    async def command(self, *words, expect=(0,), patience=30):
        for _ in range(40):
            code, text = await self.served.command(*words, patience=patience)
            if code != 69 or "ask again" not in text:
                break
            # A reload or an upgrade is under way.
            self.done["told to ask again"] += 1
            await asyncio.sleep(0.25)
        if code not in expect:
            self.fail(f"{' '.join(words)}: exit code {code}, not {expect[0]}: {text[-600:]}")
        return text

    async def reload(self, **settings):
        async with self.changing:
            changed = settings or {name: random.choice(values) for name, values in CHANGES.items()}
            if self.served.settings["extra"] != changed["extra"]:
                now = time.monotonic()
                self.load.windows["extra"].append((now - 1, now + 5, "its service comes or goes"))
            self.served.configure(**changed)
            await self.command("reload")

    async def hup(self):
        async with self.changing:
            before = (await self.served.call("GetStatus"))["reloads"]["ok"]
            os.kill(self.served.process.pid, signal.SIGHUP)
            for _ in range(200):
                if (await self.served.call("GetStatus"))["reloads"]["ok"] > before:
                    return
                await asyncio.sleep(0.05)
            self.fail("HUP: no reload came into force within 10 s")

    async def broken_reload(self):
        async with self.changing:
            good = self.served.config.read_text()
            taken = self.served.ports["metrics"]
            broken = random.choice([
                "what is [this", '[service.new]\nlisten = "127.0.0.1:1"\n',
                f'[service.new]\nlisten = "127.0.0.1:{taken}"\nhandler = "echo"\n',
                '[service.new]\nlisten = "192.0.2.77:8000"\nexec = ["/nowhere"]\n',
            ])
            self.served.config.write_text(good + "\n" + broken)
            await self.command("reload", expect=(78,))
            self.served.config.write_text(good)

    async def upgrade(self):
        async with self.changing:
            self.served.replace_program()
            await self.command("upgrade")

    def services(self, *without):
        return [one for one in self.status["services"] if one["name"] not in without and one["workers"]]

    async def kill_worker(self):
        service = random.choice(self.services())
        worker = random.choice(service["workers"])["pid"]
        now = time.monotonic()
        # Who has been accepted and has no process yet ends with it.
        self.load.windows[service["name"]].append((now - 0.05, now + 1, "its worker was killed"))
        self.kill(worker)

    @staticmethod
    def kill(pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    async def victim(self):
        """Somebody who is connected, and can be told apart."""
        found = (await self.served.call("ListConnections"))["connections"]
        found = [one for one in found if one["pid"] and one["service"] not in ("local", "stream", "datagrams")]
        return random.choice(found) if found else None

    async def kill_process(self):
        one = await self.victim()
        if one:
            self.load.killed[one["client"]] = time.monotonic()
            if one["service"] == "reused":
                # Its process may serve the next by now.
                now = time.monotonic()
                self.load.windows["reused"].append((now - 0.05, now + 1, "its process was killed"))
            self.kill(one["pid"])

    async def kill_connection(self):
        one = await self.victim()
        if one:
            self.load.killed[one["client"]] = time.monotonic()
            await self.command("kill", one["id"], expect=(0, 69))

    async def kill_spare(self):
        service = random.choice([one for one in self.services() if one["name"] in ("echo", "reused", "held")])
        by_parent = samples.children()
        workers = [worker["pid"] for worker in service["workers"]]
        below = [pid for worker in workers for pid, _ in by_parent.get(worker, [])]
        if below:
            now = time.monotonic()
            self.load.windows[service["name"]].append((now - 0.05, now + 1, "its process was killed"))
            self.kill(random.choice(below))

    async def kill_program(self):
        """The program that has a listener."""
        found = (await self.served.call("ListConnections"))["connections"]
        found = [one for one in found if one["service"] in ("stream", "datagrams")]
        if found:
            one, now = random.choice(found), time.monotonic()
            self.load.windows[one["service"]].append((now - 0.05, now + 7, "its program was killed"))
            await self.command("kill", one["id"], expect=(0, 69))

    async def ban(self):
        source = f"127.40.0.{random.randint(1, 8)}"
        if self.load.bans[source] and self.load.bans[source][-1][1] > time.monotonic():
            return
        begun = time.monotonic()
        how = random.choice([[], ["--kill"], ["--for", "2s"], ["--service", "cat"]])
        await self.command("ban", source, *how)
        until = begun + 2 if "--for" in how else begun + random.random() * 6
        self.load.bans[source].append((time.monotonic(), until))
        await asyncio.sleep(max(0, until - time.monotonic()))
        if "--for" not in how:
            await self.command("unban", source, *(how if "--service" in how else []))

    async def unban_penalty(self):
        await self.command("unban", f"127.20.0.{random.randint(1, 20)}")

    async def pause(self):
        name = random.choice(["echo", "reused", "cat", "start", "queue", "proxied", "held", "local", "faulty"])
        await self.command("pause", name)
        await asyncio.sleep(random.random())
        await self.command("resume", name)

    async def drain(self):
        name = random.choice(["reused", "cat", "start", "faulty", "confined"])
        await self.command("drain", name)
        await self.command("resume", name)

    async def lameduck(self):
        name = random.choice(["held", "cat"])
        await self.command("lameduck", name)
        expect = "503"
        if expect not in await self.http("metrics", f"/readyz/{name}"):
            self.fail(f"/readyz/{name} is not 503 while it is a lame duck")
        await asyncio.sleep(random.random() * 2)
        await self.command("resume", name)

    async def commands(self):
        words = random.choice([["status"], ["status", "--json"], ["connections"], ["connections", "--json"], ["top", "--once"],
                               ["bans"], ["metrics"]])
        await self.command(*words)

    async def half_calls(self):
        """Peers of the control socket that go without a word, or say nonsense."""
        with socket.socket(socket.AF_UNIX) as one:
            one.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(one, str(self.served.control))
            said = random.choice([b"", b'{"method":"org.preforkd.Control.GetSt', b'{"method":"org.preforkd.Control.GetStatus"}\0',
                                  b"nonsense\0", b'{"method":"org.preforkd.Control.ListConnections","more":true}\0'])
            try:
                await loop.sock_sendall(one, said)
                await asyncio.sleep(random.choice([0, 0, 2]))
            except BrokenPipeError:
                pass

    async def http(self, server, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.served.ports[server])
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return (await asyncio.wait_for(reader.read(), 20)).decode(errors="replace")
        finally:
            writer.close()

    async def scrape(self):
        text = await self.http("metrics", "/metrics")
        if " 200 " not in text[:20] or not text.rstrip().endswith("# EOF"):
            # What is chunked ends with an empty chunk.
            if "preforkd_connections" not in text:
                self.fail(f"/metrics: {text[:200]!r}")

    async def page(self):
        text = await self.http("page", random.choice(["/", "/status.json"]))
        if " 200 " not in text[:20]:
            self.fail(f"page: {text[:200]!r}")

    async def agent(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.served.ports["agent"])
        try:
            line = await asyncio.wait_for(reader.readline(), 20)
            if not line.startswith((b"up", b"drain")):
                self.fail(f"agent: {line!r}")
        finally:
            writer.close()

    async def touch_watched(self):
        os.utime(self.served.directory / "watched")

    async def settle(self):
        """Everything as it was at first, and nobody bans or pauses."""
        self.rests = True
        while self.running:
            await asyncio.sleep(0.05)
        for source in range(1, 9):
            await self.command("unban", f"127.40.0.{source}")
        await self.reload(**{name: values[0] for name, values in CHANGES.items()})
