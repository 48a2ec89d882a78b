"""The clients: what each does, how it ended, and what explains that."""

import asyncio
import collections
import random
import socket
import struct
import time

# Longer than any pause and deadline: a client that waits for so long is forgotten.
PATIENCE = 40
BIND_ADDRESS_NO_PORT = 24  # ip(7)

# Those who do nothing wrong, by service and what they do; and how many of a hundred.
GOOD = {
    ("echo", "quick"): 20, ("echo", "talk"): 4, ("echo", "bulk"): 2, ("reused", "quick"): 18, ("cat", "quick"): 8,
    ("cat", "bulk"): 1, ("start", "quick"): 5, ("perl", "line"): 5, ("faulty", "line"): 3, ("confined", "quick"): 3,
    ("queue", "quick"): 6, ("queue", "talk"): 1, ("proxied", "quick"): 6, ("local", "quick"): 6, ("stream", "quick"): 3,
    ("datagrams", "ask"): 3, ("extra", "read"): 2,
}
# Those who do: whatever becomes of them, it has to end.
BAD = {
    ("echo", "silent"): 4, ("echo", "idle"): 3, ("echo", "stay"): 1, ("echo", "reset"): 3, ("reused", "reset"): 3,
    ("cat", "silent"): 2, ("cat", "idle"): 2, ("cat", "reset"): 3, ("start", "reset"): 2, ("perl", "reset"): 2, ("perl", "silent"): 1,
    ("faulty", "crash"): 6, ("faulty", "77"): 4, ("faulty", "left"): 3, ("faulty", "away"): 2, ("faulty", "noise"): 2,
    ("faulty", "spin"): 1, ("confined", "reset"): 1, ("queue", "reset"): 2, ("proxied", "garbage"): 3, ("proxied", "reset"): 2,
    ("local", "idle"): 2, ("local", "reset"): 2, ("echo", "flood"): 1,
}


class Client:
    """One connection of a client, from connect to how it ended."""

    def __init__(self, load, service, kind, source):
        self.load, self.service, self.kind, self.source = load, service, kind, source
        self.begun, self.ended, self.name, self.connected, self.outcome = time.monotonic(), None, None, False, None

    async def run(self):
        family = socket.AF_UNIX if self.service == "local" else socket.AF_INET
        kind = socket.SOCK_DGRAM if self.kind == "ask" else socket.SOCK_STREAM
        with socket.socket(family, kind) as self.socket:
            self.socket.setblocking(False)
            try:
                self.outcome = await asyncio.wait_for(self.speak(), PATIENCE)
            except asyncio.TimeoutError:
                self.outcome = "forgotten"
            except OSError as error:
                self.outcome = f"{'cut' if self.connected else 'turned away'}: {error.strerror}"
        self.ended = time.monotonic()

    async def speak(self):
        loop = asyncio.get_running_loop()
        if self.service != "local":
            self.socket.setsockopt(socket.SOL_IP, BIND_ADDRESS_NO_PORT, 1)
            self.socket.bind((self.source, 0))
        await loop.sock_connect(self.socket, self.load.served.address(self.service))
        self.connected = self.kind != "ask"
        self.load.connected[self.service] += self.connected
        if self.service != "local":
            address, port = self.socket.getsockname()
            self.name = f"{address}:{port}"
        if self.service == "proxied" and self.kind != "garbage":
            self.name = f"198.51.100.{port % 250}:{port}"
            header = f"PROXY TCP4 198.51.100.{port % 250} 192.0.2.1 {port} 80\r\n".encode()
            await loop.sock_sendall(self.socket, header[:9])
            await asyncio.sleep(random.random() * 0.02)
            await loop.sock_sendall(self.socket, header[9:])
        return await getattr(self, f"do_{self.kind}", self.do_word)()

    async def exchange(self, data):
        """What is missing of the answer: nothing if all is well."""
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(self.socket, data))
        try:
            got = b""
            while len(got) < len(data):
                more = await loop.sock_recv(self.socket, 65536)
                if not more:
                    return f"cut: end after {len(got)} of {len(data)}"
                got += more
                if not data.startswith(got[:64]):
                    return f"cut: told {got[:20]!r}"
            await sending
            return "" if got == data else "wrong bytes"
        finally:
            sending.cancel()

    async def finish(self):
        self.socket.shutdown(socket.SHUT_WR)
        end = await asyncio.get_running_loop().sock_recv(self.socket, 64)
        return "served" if not end else "wrong bytes at the end"

    async def do_quick(self):
        return await self.exchange(b"0123456789abcde\n") or await self.finish()

    async def do_talk(self):
        for _ in range(random.randint(2, 8)):
            wrong = await self.exchange(random.randbytes(random.randint(1, 2000)))
            if wrong:
                return wrong
            await asyncio.sleep(random.random() * 0.6)
        return await self.finish()

    async def do_bulk(self):
        return await self.exchange(random.randbytes(200_000)) or await self.finish()

    async def do_line(self):
        return await self.exchange(b"a line\n") or await self.finish()

    async def do_ask(self):
        loop = asyncio.get_running_loop()
        # The program that has the listener may be between two lives; what was not read then is asked again, as UDP has it.
        for _ in range(8):
            await loop.sock_sendall(self.socket, b"ask")
            try:
                answer = await asyncio.wait_for(loop.sock_recv(self.socket, 64), 2)
                return "served" if answer == b"ask" else "wrong bytes"
            except asyncio.TimeoutError:
                pass
        return "forgotten"

    async def do_read(self):
        text = await asyncio.get_running_loop().sock_recv(self.socket, 64)
        return "served" if text else "cut: nothing"

    async def until_end(self):
        while await asyncio.get_running_loop().sock_recv(self.socket, 65536):
            pass
        return "ended"

    async def do_silent(self):
        return await self.until_end()

    async def do_idle(self):
        await self.exchange(b"x\n")
        return await self.until_end()

    async def do_stay(self):
        while not await self.exchange(b"still here\n"):
            await asyncio.sleep(0.5)
        return "ended"

    async def do_reset(self):
        if random.random() < 0.5:
            await asyncio.get_running_loop().sock_sendall(self.socket, b"x" * random.randint(1, 20_000))
        if random.random() < 0.5:
            await asyncio.sleep(random.random() * 0.01)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "ended"

    async def do_garbage(self):
        await asyncio.get_running_loop().sock_sendall(self.socket, b"PROXY UNKNOWN\x00" * 20)
        return await self.until_end()

    async def do_flood(self):
        address = self.load.served.address(self.service)
        for _ in range(60):
            with socket.socket() as one:
                one.setblocking(False)
                one.bind(("127.30.0.1", 0))
                await asyncio.get_running_loop().sock_connect(one, address)
                self.load.connected[self.service] += 1
        return "ended"

    async def do_word(self):
        await asyncio.get_running_loop().sock_sendall(self.socket, f"{self.kind}\n".encode())
        return await self.until_end()


class Load:
    """All clients, at a moderate rate."""

    def __init__(self, served, rate):
        self.served, self.rate = served, rate
        self.live, self.connected, self.outcomes = set(), collections.Counter(), collections.Counter()
        # What explains that somebody was cut off or turned away.
        self.killed, self.windows, self.unexplained = {}, collections.defaultdict(list), []
        # Who is banned: from when on surely, and until when.
        self.bans = collections.defaultdict(list)
        self.held = []
        self.rests = False

    async def run(self):
        good, bad = list(GOOD), list(BAD)
        while True:
            await asyncio.sleep(random.expovariate(self.rate))
            if self.rests or len(self.live) > 250:
                continue
            roll = random.random()
            if roll < 0.02:
                one = Client(self, "cat", "quick", f"127.40.0.{random.randint(1, 8)}")
            elif roll < 0.2:
                service, kind = random.choices(bad, BAD.values())[0]
                one = Client(self, service, kind, f"127.{50 if service == 'proxied' else 20}.0.{random.randint(1, 20)}")
            else:
                service, kind = random.choices(good, GOOD.values())[0]
                if service == "extra" and not self.served.settings["extra"]:
                    continue
                second = 50 if service == "proxied" else 10
                one = Client(self, service, kind, f"127.{second}.{random.randint(0, 255)}.{random.randint(1, 254)}")
            task = asyncio.ensure_future(self.watch(one))
            self.live.add(task)
            task.add_done_callback(self.live.discard)

    async def watch(self, client):
        await client.run()
        self.judge(client)

    def judge(self, client):
        """Whether that may be."""
        verdict = client.outcome
        if client.source.startswith("127.40."):
            if client.outcome == "served" and self.banned_all_along(client):
                verdict = "served although banned"
                self.unexplained.append(self.words(client, verdict))
        elif (client.service, client.kind) in GOOD and client.outcome != "served":
            cause = self.cause(client)
            verdict = cause or "unexplained"
            if not cause:
                self.unexplained.append(self.words(client, client.outcome))
        elif client.outcome == "forgotten" and not self.cause(client):
            self.unexplained.append(self.words(client, "forgotten"))
        who = "banned" if client.source.startswith("127.40.") else "good" if (client.service, client.kind) in GOOD else "bad"
        self.outcomes[who, verdict.partition(":")[0]] += 1

    def banned_all_along(self, client):
        return any(begun <= client.begun and client.ended <= until for begun, until in self.bans[client.source])

    def cause(self, client):
        if client.name in self.killed:
            return "killed by hand"
        for begun, until, why in self.windows[client.service]:
            if begun <= client.ended and client.begun <= until and client.outcome.startswith(("cut", "turned")):
                return why
        return None

    def words(self, client, verdict):
        return (f"{time.strftime('%H:%M:%S')} {client.service} {client.kind} from {client.name or client.source}: {verdict},"
                f" after {client.ended - client.begun:.2f} s")

    async def hold(self):
        """Connections that last over all that happens."""
        while len(self.held) < 5:
            client = Client(self, "held", "held", "127.60.0.1")
            client.socket = socket.socket()
            client.socket.setblocking(False)
            self.held.append(client)
            client.kind = "quick"
            loop = asyncio.get_running_loop()
            client.socket.bind(("127.60.0.1", 0))
            await loop.sock_connect(client.socket, self.served.address("held"))
            self.connected["held"] += 1
            client.connected, client.name = True, "%s:%s" % client.socket.getsockname()

    async def look_after_held(self):
        """Each answers, or somebody has ended it."""
        for client in list(self.held):
            try:
                client.outcome = await asyncio.wait_for(client.exchange(b"are you there?"), 10)
            except asyncio.TimeoutError:
                client.outcome = "no answer within 10 s"
            except OSError as error:
                client.outcome = f"cut: {error.strerror}"
            if client.outcome:
                client.ended = time.monotonic()
                if self.cause(client):
                    self.outcomes["held", self.cause(client)] += 1
                else:
                    self.outcomes["held", "unexplained"] += 1
                    self.unexplained.append(self.words(client, client.outcome))
                self.let_go(client)

    def let_go(self, client):
        client.socket.close()
        self.held.remove(client)
