"""Clients of a server that is watched, and what they see."""

import errno
import selectors
import socket
import threading
import time

BYSTANDER = "127.0.0.3"  # who does nothing wrong
CULPRIT = "127.0.0.2"


class Client:
    """One connection. `state`: connecting, waits, served, refused, told (something else than an answer) or closed.

    A connection that is closed without an answer looks reset or not by whose packet was first: it is closed.
    """

    def __init__(self, port, source=BYSTANDER, say=b"pid\n"):
        self.say, self.got, self.state = say, b"", "connecting"
        self.began, self.seconds = time.monotonic(), None
        self.socket = socket.socket()
        # Or every bind would take one of the few ports from all destinations, ip(7).
        self.socket.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        self.socket.bind((source, 0))
        self.socket.setblocking(False)
        error = self.socket.connect_ex(("127.0.0.1", port))
        if error not in (0, errno.EINPROGRESS):
            self._end({errno.ECONNREFUSED: "refused"}.get(error, "closed"))

    def _end(self, state):
        self.state, self.seconds = state, time.monotonic() - self.began

    def step(self):
        """Goes on as far as it can. Called when the socket is ready."""
        try:
            if self.state == "connecting":
                error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    return self._end({errno.ECONNREFUSED: "refused"}.get(error, "closed"))
                self.socket.send(self.say)
                self.state = "waits"
            if self.state == "waits":
                data = self.socket.recv(100)
                self.got += data
                if b"\n" in self.got:
                    self._end("served" if self.got.split()[0].isdigit() else "told")
                elif not data:
                    self._end("closed")
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            self._end("closed")

    def begin_again(self, say=b"pid\n"):
        """Asks once more on the same connection."""
        self.say, self.got, self.state, self.began = say, b"", "connecting", time.monotonic()
        return self

    def lives(self, seconds=2):
        """Whether its program still answers."""
        if self.socket.fileno() < 0:
            return False
        settle([self.begin_again()], seconds)
        return self.state == "served"

    @property
    def pid(self):
        return int(self.got.split()[0])

    def close(self):
        self.socket.close()


def settle(clients, seconds):
    """Waits until each has been answered or turned away, or the time is up."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for client in clients:
            if client.state in ("connecting", "waits"):
                events = selectors.EVENT_READ
                if client.state == "connecting":
                    events |= selectors.EVENT_WRITE
                selector.register(client.socket, events, client)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                client = key.data
                client.step()
                if client.state == "waits":
                    selector.modify(client.socket, selectors.EVENT_READ, client)
                elif client.state != "connecting":
                    selector.unregister(client.socket)
    return clients


def ask(port, source=BYSTANDER, seconds=2, say=b"pid\n"):
    """A client, when it has been answered, turned away, or has waited so long."""
    return settle([Client(port, source, say)], seconds)[0]


def several(port, number, source=CULPRIT, seconds=2, say=b"pid\n"):
    """Clients that come at once."""
    return settle([Client(port, source, say) for _ in range(number)], seconds)


def close(clients):
    for client in clients:
        client.close()


def count(clients):
    """Their fates, the most frequent first: "9 served, 1 refused"."""
    states = [client.state.replace("connecting", "not connected") for client in clients]
    kinds = sorted(set(states), key=states.count, reverse=True)
    return ", ".join(f"{states.count(kind)} {kind}" for kind in kinds)


def served(clients):
    return [client for client in clients if client.state == "served"]


class Bystander(threading.Thread):
    """Asks again and again, five times a second, while others misbehave."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.clients, self.enough = port, [], threading.Event()
        self.start()

    def run(self):
        while not self.enough.is_set():
            client = ask(self.port, BYSTANDER, 2)
            client.close()
            self.clients.append(client)
            self.enough.wait(0.2)

    def end(self):
        self.enough.set()
        self.join()

    @property
    def all_served(self):
        return len(served(self.clients)) == len(self.clients)

    @property
    def slowest(self):
        return max(client.seconds or 2 for client in self.clients)

    def __str__(self):
        good = len(served(self.clients))
        text = f"{good} of {len(self.clients)} served, the slowest after {self.slowest:.2f} s"
        return text if self.all_served else f"{count(self.clients)} (of {len(self.clients)})"


def burst(port, rate, seconds, source=CULPRIT):
    """Opens so many connections a second, and closes each 10 ms later. Returns how many there were."""
    opened, before, began = 0, [], time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        now = []
        while opened < elapsed * rate and len(now) < rate // 10:
            now.append(Client(port, source))
            opened += 1
        close(before)
        before = now
        time.sleep(0.01)
    close(before)
    return opened


def until_served(port, seconds):
    """Seconds until a bystander is served three times in a row; None if that does not come."""
    began, row, first = time.monotonic(), 0, None
    while (now := time.monotonic()) - began < seconds:
        client = ask(port, BYSTANDER, 2)
        client.close()
        row = row + 1 if client.state == "served" else 0
        first = now - began if row == 1 else first
        if row == 3:
            return first
        if client.state != "served":
            time.sleep(0.1)
    return None
