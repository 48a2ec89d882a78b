"""The bad client of benches/models/run: bad.py HOST:PORT KIND, until it is killed; prints "ready" once it is being bad."""

import socket
import sys
import time

address, kind = sys.argv[1].rsplit(":", 1), sys.argv[2]
address = (address[0], int(address[1]))


def connect():
    return socket.create_connection(address)


def ready():
    print("ready", flush=True)


def silent():
    held = connect()
    ready()
    while held:
        time.sleep(1)


def deaf():
    held = connect()
    held.setblocking(False)
    full = 0
    while full < 10:
        try:
            held.send(b"x" * 65536)
        except BlockingIOError:
            full += 1
            time.sleep(0.02)
    ready()
    while held:
        time.sleep(1)


def compute():
    held = connect()
    held.sendall(b"compute")
    time.sleep(0.1)
    ready()
    while held.recv(16):
        held.sendall(b"compute")


def crash():
    ready()
    while True:
        try:
            with connect() as victim:
                victim.sendall(b"crash")
                victim.recv(16)
        except OSError:
            pass
        time.sleep(0.1)


def idle():
    held = []
    while len(held) < 10000:
        client = socket.socket()
        client.bind((f"127.1.{len(held) // 200}.1", 0))
        client.connect(address)
        client.sendall(b"hello")
        client.recv(16)
        held.append(client)
    ready()
    while held:
        time.sleep(1)


def leak():
    for _ in range(20):
        with connect() as client:
            for _ in range(10):
                client.sendall(b"leak")
                client.recv(16)
    ready()


try:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
    {f.__name__: f for f in (silent, deaf, compute, crash, idle, leak)}[kind]()
except (OSError, ValueError) as error:
    print(f"failed: {error}", flush=True)
