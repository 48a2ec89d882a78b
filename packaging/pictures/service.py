"""Three services under load, of which pictures are made."""

import contextlib
import random
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

CONFIG = """
[supervisor]
control_socket = "{0}/control.sock"
[service.archive]
listen = "127.0.0.1:9418"
exec = ["/bin/cat"]
max_connections = 200
[service.finger]
listen = "127.0.0.1:7079"
handler = "echo"
spare = 8
max_connections_per_source = 4
overload = "refuse"
[service.stream]
listen = "127.0.0.1:7719"
handler = "chargen"
max_connections = 20
"""


def client(source, port, data=b""):
    connection = socket.socket()
    connection.bind((source, 0))
    connection.connect(("127.0.0.1", port))
    if data:
        connection.sendall(data)
    return connection


def exchange(is_over):
    while not is_over.is_set():
        try:
            with client(f"127.0.3.{random.randint(1, 3)}", 7079, b"who?\n") as connection:
                connection.recv(100)
                time.sleep(random.expovariate(200))
            # It comes in waves of a minute, so that a graph shows something.
            time.sleep(random.expovariate(30 + 25 * ((time.monotonic() % 60) / 60)))
        except OSError:
            pass


def visit(is_over):
    """Those of the archive come and go, and stay for seconds."""
    while not is_over.is_set():
        with client(f"127.0.2.{random.randint(1, 9)}", 9418, b"x" * random.randint(100, 9000)):
            is_over.wait(random.expovariate(0.3))


def read(connections, is_over):
    while not is_over.is_set():
        for connection in connections:
            connection.recv(random.randint(1000, 60000))
        time.sleep(0.01)


@contextlib.contextmanager
def under_load(preforkd):
    """Gives the path of the control socket."""
    is_over = threading.Event()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "preforkd.toml"
        config.write_text(CONFIG.format(directory))
        server = subprocess.Popen([preforkd, "run", "--config", config], stderr=subprocess.DEVNULL)
        try:
            control = f"{directory}/control.sock"
            while subprocess.run([preforkd, "status", "--control", control], capture_output=True).returncode:
                time.sleep(0.1)
            streams = [client(f"127.0.4.{number}", 7719) for number in range(1, 7)]
            threads = [threading.Thread(target=exchange, args=[is_over]) for _ in range(12)]
            threads += [threading.Thread(target=visit, args=[is_over]) for _ in range(37)]
            threads.append(threading.Thread(target=read, args=[streams, is_over]))
            for thread in threads:
                thread.start()
            yield control
            is_over.set()
            for thread in threads:
                thread.join()
        finally:
            is_over.set()
            server.terminate()
            server.wait()
