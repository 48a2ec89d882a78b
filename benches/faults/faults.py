"""The faults. Each is done to a running server by real means, and says what a well-behaved client sees meanwhile."""

import os
import resource
import signal
import subprocess
import time

from client import (BYSTANDER, CULPRIT, Bystander, Client, ask, burst, close, count, served, settle, several,
                    until_served)
from server import LIMIT

ALL = []
PATIENCE = 15  # how long a bystander waits before it is "for ever"
LONG = 75  # the same, for what counts by the minute


def fault(title, explanation, remedy=None, quiet=False):
    """Registers a fault; peers that have this remedy are tried with it, too. A quiet one disturbs no other."""
    def register(function):
        function.title, function.explanation, function.remedy, function.quiet = title, explanation, remedy, quiet
        ALL.append(function)
        return function
    return register


class Result:
    """`short` for the table, `text` with figures, and whether somebody was harmed who did nothing."""

    def __init__(self, short, text, bad=False):
        self.short, self.text, self.bad = short, text, bool(bad)


def seen(state):
    return {"waits": "waits", "connecting": "cannot connect"}.get(state, state)


def fill(server, number=LIMIT, say=b"pid\n", source=CULPRIT):
    """So many connections, all being served."""
    return several(server.port, number, source, 5, say)


def unlimited(clients):
    return len(served(clients)) > LIMIT


@fault("The limit is reached", f"{LIMIT} connections live; the next client comes.", "overload")
def limit_reached(start):
    server = start()
    held = fill(server)
    late = ask(server.port)
    short = {"served": "serves all: no limit", "waits": "queues", "closed": "closes", "refused": "refuses",
             "told": "says so and closes"}.get(late.state, seen(late.state))
    others = sum(client.lives() for client in held)
    text = {"served": f"the {LIMIT + 1}th is served, too", "waits": "the next waits in the backlog",
            "closed": "the next is accepted, and closed without a word",
            "told": f"the next gets {late.got.decode().strip()!r} and is closed",
            "refused": "the next gets connection refused"}
    return Result(short, f"{text.get(late.state, late.state)}; {others} of {LIMIT} live connections go on",
                  late.state == "served" or others < LIMIT)


@fault("Then one ends", "Its slot should be free again, for the client that waits or for the next.")
def one_ends(start):
    server = start()
    held = fill(server)
    if unlimited(held + [late := ask(server.port)]):
        return Result("no limit", "there is no limit", True)
    began = time.monotonic()
    held[0].close()
    if late.state == "waits":
        settle([late], 5)
        who = "the one that waited"
    else:
        def another():
            return ask(server.port).state == "served"
        late.state = "served" if server.wait(another) else "refused"
        who = "the next that comes"
    took = time.monotonic() - began
    good = late.state == "served"
    close(held + [late])
    left = server.slots()
    return Result("the next is served" if good and left >= LIMIT else "slot lost",
                  (f"{who} is served after {took:.2f} s" if good else "nobody is served in 5 s") +
                  f"; afterwards {left} of {LIMIT} slots", not good or left < LIMIT)


def lowest_free_fd(pid):
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    return next(fd for fd in range(len(used) + 1) if fd not in used)


@fault("accept gets EMFILE", "`prlimit --nofile` lets every accepting process have no further descriptor, for 2 s and "
       "longer; then as many as before. Two live connections; three clients come meanwhile. CPU is what the server "
       "used or waited for.")
def no_descriptors(start):
    server = start()
    held = fill(server, 2)
    acceptors = server.acceptors()
    before = {}
    for pid in acceptors:
        before[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free_fd(pid), before[pid][1]))
    # Whoever already waits in accept has its descriptor: that one is not counted.
    first = several(server.port, len(acceptors), CULPRIT, 0.5)
    late = several(server.port, 3, BYSTANDER, 0.5)
    lines = server.log_lines()
    cpu = server.wanted_cpu()
    lines = server.log_lines() - lines
    states = count(settle(late, 0.1))
    lives = sum(client.lives() for client in held)
    died = server.end_of_life()
    for pid in acceptors:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before[pid])
        except ProcessLookupError:
            pass
    close(first)
    settle(late, 5)
    recovered = until_served(server.port, PATIENCE)
    text = f"CPU {cpu} %, {lines:,} lines of log in 2 s; meanwhile {states}; " + (
        f"when the limit is lifted, {count(late)} of these, and others after {recovered:.1f} s"
        if recovered is not None else f"no service when the limit is lifted, in {PATIENCE} s")
    if died:
        text += f"; the server {died}"
    if lives < 2:
        text += f"; {2 - lives} of 2 live connections lost"
    short = f"server {died}" if died else "port dead" if recovered is None else "spins" if cpu > 50 else "pauses"
    if not died and recovered is not None:
        if cpu > 50 and lines > 100:
            short += ", floods the log"
        if len(served(late)) < 3:
            short += ", loses clients"
        if recovered > 2:
            short += f", back after {recovered:.0f} s"
    bad = bool(died) or recovered is None or cpu > 50 or lives < 2 or len(served(late)) < 3
    return Result(short, text, bad)


@fault("fork gets EAGAIN", f"`pids.max` leaves no process, while {LIMIT + 1} clients come; then it is lifted. One "
       "live connection.")
def no_processes(start):
    server = start()
    held = fill(server, 1)
    server.limit_processes(len(server.pids()))
    late = several(server.port, LIMIT + 1, BYSTANDER, 1)
    lines, cpu = server.log_lines(), server.wanted_cpu()
    lines = server.log_lines() - lines
    settle(late, 7)
    during, live = count(late), held[0].lives()
    server.limit_processes(None)
    settle(late, 7)
    after, died = count(late), server.end_of_life()
    close(late + held)
    recovered = until_served(server.port, PATIENCE)
    left = server.slots() if recovered is not None else 0
    text = f"after 10 s {during}; with processes again {after}; "
    text += f"the server {died}; " if died else ""
    text += f"CPU {cpu} %, {lines:,} lines of log in 2 s; " if cpu > 20 or lines > 100 else ""
    text += f"then {min(left, LIMIT)} of {LIMIT} slots" if recovered is not None else f"then no service in {PATIENCE} s"
    text += "" if live else "; the live connection is lost"
    lost = sum(client.state in ("closed", "refused") for client in late)
    short = f"server {died}" if died else "all slots lost for ever" if recovered is None else \
        f"{LIMIT - left} slots lost" if left < LIMIT else \
        f"drops {lost} of {LIMIT + 1}, recovers" if lost else "clients wait, recovers"
    return Result(short, text, lost or died or recovered is None or left < LIMIT or not live)


@fault("2,000 connections a second from one source", "For 2 s, each closed at once; another source asks five times a "
       "second, during and after.", "rate")
def rate(start):
    server = start()
    watch = Bystander(server.port)
    number = burst(server.port, 2000, 2)
    watch.end()
    recovered = until_served(server.port, LONG)
    died = server.end_of_life()
    text = f"{number:,} connections; the other source meanwhile: {watch}; "
    text += f"afterwards served after {recovered:.1f} s" if recovered is not None else \
        f"afterwards not served in {LONG} s"
    text += f"; the server {died}" if died else ""
    refused = [client for client in watch.clients if client.state in ("refused", "closed")]
    fine = "serves the other, slowly" if watch.slowest > 1 else "serves the other"
    short = f"server {died}" if died else f"closed for more than {LONG} s" if recovered is None else \
        f"closed for {recovered:.0f} s more" if recovered > 2 else fine if watch.all_served else \
        "refuses the other, too" if refused else "the other waits more than 2 s"
    return Result(short, text, not watch.all_served or recovered is None or recovered > 2)


@fault("A program that crashes 1,200 times", "One source makes its program die of SIGSEGV, 1,200 times in a row; "
       "another source asks five times a second.", "rate")
def crashes(start):
    server = start()
    watch, crashed = Bystander(server.port), 0
    lines, began = server.log_lines(), time.monotonic()
    for _ in range(1200):
        client = ask(server.port, CULPRIT, 2, b"pid\ncrash\n")
        crashed += client.state == "served"
        client.close()
        if time.monotonic() - began > 30:
            break
    watch.end()
    recovered = until_served(server.port, LONG)
    lines = server.log_lines() - lines
    left = server.slots() if recovered is not None else 0
    text = f"{crashed:,} crashes; the other source meanwhile: {watch}; "
    text += f"{lines:,} lines of log; " + (
        f"afterwards served after {recovered:.1f} s, {min(left, LIMIT)} of {LIMIT} slots"
        if recovered is not None else f"then no service in {LONG} s")
    short = f"closed for more than {LONG} s" if recovered is None else f"closed for {recovered:.0f} s more" \
        if recovered > 2 else "serves" if watch.all_served else "refuses others"
    return Result(short, text, short != "serves" or left < LIMIT)


def silent(start, say, what):
    server = start()
    bad = fill(server, LIMIT, say) if say else [Client(server.port, CULPRIT, say) for _ in range(LIMIT)]
    server.wait(lambda: len(server.programs()) >= LIMIT, 2)
    late, began = Client(server.port), time.monotonic()
    settle([late], 1)
    if late.state == "served":
        late.close()
        server.wait(lambda: len(server.programs()) < LIMIT, PATIENCE)
        return Result("no limit to fill", f"the other is served, as there is no limit; after {PATIENCE} s "
                      f"{len(server.programs())} processes of the silent", True)
    while late.state != "served" and time.monotonic() - began < PATIENCE:
        if late.state in ("waits", "connecting"):
            settle([late], PATIENCE - (time.monotonic() - began))
        else:
            late.close()
            time.sleep(0.1)
            late = ask(server.port, BYSTANDER, 1)
    took = time.monotonic() - began
    died = server.end_of_life()
    if late.state != "served":
        return Result("never rid of them" + (f", {died}" if died else ""),
                      f"{what} keep all slots; the other is not served in {PATIENCE} s", True)
    return Result("gets rid of them", f"the other is served after {took:.1f} s", False)


@fault("Clients that never say a word", f"{LIMIT} of them fill the limit; another client comes.", "silence", quiet=True)
def never_a_word(start):
    return silent(start, b"", "they")


@fault("Clients that fall silent", f"{LIMIT} that were answered once, and say nothing more.", "silence", quiet=True)
def fallen_silent(start):
    return silent(start, b"pid\n", "they")


@fault("A program that ignores TERM, client gone", f"{LIMIT} programs that ignore signals and never look at their "
       "connection; the clients go. Is there ever room for another?", "stubborn", quiet=True)
def stubborn(start):
    server = start()
    bad = fill(server, LIMIT, b"stay\n")
    close(bad)
    recovered = until_served(server.port, PATIENCE)
    # Who ends them does so one after the other, politely first.
    server.wait(lambda: not server.programs(), 8)
    left = len(server.programs())
    if recovered is None:
        return Result("slots lost for ever", f"no other is served in {PATIENCE} s; {left} processes stay", True)
    if left:
        short = "no limit to fill" if server.peer.unlimited else "forgets them"
        return Result(short, f"others are served; {left} processes stay, not counted", True)
    return Result("gets rid of them", f"another is served after {recovered:.1f} s; no process stays")


@fault("A program that leaves a child with the connection", f"{LIMIT + 2} times; the program itself exits, then the "
       "client. Then the server gets TERM.", quiet=True)
def leaves_child(start):
    server = start()
    for _ in range(LIMIT + 2):
        ask(server.port, CULPRIT, 2, b"leave\n").close()
    recovered = until_served(server.port, 5)
    server.wait(lambda: not server.programs(), 0.5)
    left = len(server.programs())
    server.signal(signal.SIGTERM)
    server.wait(lambda: not server.servers() or (not server.alive() and not server.acceptors()), 12)
    after = len(server.programs())
    text = ("others are served" if recovered is not None else "no other is served in 5 s") + \
        f"; {left} processes left behind, uncounted; after the server's end {after}"
    short = "leaves all behind" if after else "kills them at its end" if left else "ends them with the program"
    return Result(short, text, recovered is None or after > 0)


def killed(server, held, pid):
    """One process of the server dies by KILL: what is left for live clients and new ones."""
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    lives = sum(client.lives() for client in held)
    new = ask(server.port)
    new.close()
    return lives, new


@fault("The server process gets KILL", "Three live connections. Then it is started again at once, with the same "
       "command; are the three counted? For preforkd: its supervisor.", quiet=True)
def server_killed(start):
    server = start()
    held = fill(server, 3)
    lives, new = killed(server, held, server.main)
    server.process.wait() if server.peer.foreground else None
    # A file of a dead server's pid must not be taken for the new one's.
    (server.directory / "pid").unlink(missing_ok=True)
    server.launch()
    again = until_served(server.port, PATIENCE)
    still = sum(client.lives() for client in held)
    total = len(served(several(server.port, LIMIT + 3, "127.0.0.4"))) + still if again is not None else 0
    text = f"{lives} of 3 live connections go on, a new client: {seen(new.state)}; "
    if again is None:
        text += f"cannot be started again in {PATIENCE} s"
    else:
        text += f"serves again {again:.1f} s after a new start, {still} of 3 still live; "
        text += "no limit" if total > LIMIT + 3 else f"the old are not counted: {total} at once" \
            if total > LIMIT else f"{total} at once"
    short = ("live go on" if lives == 3 else f"{lives} of 3 live go on") + f", port {seen(new.state)}"
    short += "" if again is not None else ", cannot start again"
    return Result(short, text, lives < 3 or new.state != "served")


@fault("One process that accepts gets KILL", "Three live connections. For preforkd: one of its two workers; the others "
       "have only the one process.")
def worker_killed(start):
    server = start()
    if server.peer.name != "preforkd":
        return Result("–", "has only the one process: as above")
    held = fill(server, 3)
    acceptors = [pid for pid in server.acceptors() if pid != server.main]
    lives, new = killed(server, held, acceptors[0])
    extra = several(server.port, LIMIT, "127.0.0.4")
    total = len(served(extra)) + sum(client.lives() for client in held)
    good = lives == 3 and new.state == "served" and total == LIMIT
    return Result("nobody notices" if good else f"{lives} of 3 go on, new {seen(new.state)}, {total} at once",
                  f"{lives} of 3 live connections go on, a new client: {seen(new.state)} after "
                  f"{new.seconds or 2:.2f} s; {total} at once: {'the count is kept' if total == LIMIT else 'wrong'}",
                  not good)


@fault("Half-close", "`printf … | nc -N`, and a program that answers a second after the end of what it reads.",
       "relay", quiet=True)
def half_close(start):
    server = start()
    command = f"printf 'count\\nxxxxx' | timeout 5 nc -N 127.0.0.1 {server.port}"
    answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout.strip()
    return Result("answered" if answer == "5" else "answer lost",
                  "the answer comes" if answer == "5" else f"the client gets {answer!r}", answer != "5")


MISTAKES = {
    "an unknown user": lambda server: server.peer.configure(server, user="nobdy"),
    "a senseless line": lambda server: server.peer.configure(server, broken="what = is this?"),
    "no file": lambda server: server.peer.file(server).unlink(),
}


@fault("Reload of a wrong configuration", "Three mistakes, each told to a server with a live connection by `HUP`: a "
       "user that does not exist, a line without sense, no file at all.")
def wrong_configuration(start):
    texts, bad = [], False
    for mistake, make in MISTAKES.items():
        server = start()
        if not server.peer.reload:
            return Result("no reload", "rereads nothing while it runs", False)
        held, lines = fill(server, 1), server.log_lines()
        make(server)
        server.signal(server.peer.reload)
        server.wait(lambda: server.log_lines() > lines, 2)
        time.sleep(0.5)
        new, died = ask(server.port), server.end_of_life()
        said = "" if server.log_lines() > lines else ", silently"
        lives = held[0].lives()
        harmed = bool(died) or new.state != "served" or not lives
        what = f"server {died}" if died else "serves on" if new.state == "served" else \
            f"new clients: {seen(new.state)}"
        texts.append(f"{mistake}: {what}{said}" + ("" if lives else ", live connection lost"))
        bad = bad or harmed
        server.end()
    ends = sum("server" in text for text in texts)
    short = "serves on" if not bad else "server ends" if ends else "service gone"
    return Result(short, "; ".join(texts), bad)


@fault("One source takes all slots", f"A source opens {LIMIT + 2} connections that talk; another source comes.",
       "source", quiet=True)
def one_source(start):
    server = start()
    greedy = several(server.port, LIMIT + 2, CULPRIT)
    other = ask(server.port, BYSTANDER, 3)
    got = len(served(greedy))
    short = "no limit" if got > LIMIT else "serves the other" if other.state == "served" else "locks the other out"
    return Result(short, f"the greedy source: {count(greedy)}; the other: {seen(other.state)}", other.state != "served")


@fault("The server gets TERM", "Two live connections, and a program that ignores TERM, whose client goes. preforkd has "
       "`drain_timeout = \"5s\"` here. What is left when the clients are gone, too?", quiet=True)
def stopped(start):
    server = start()
    held, deaf = fill(server, 2), fill(server, 1, b"stay\n")
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    time.sleep(1)
    lives = sum(client.lives() for client in held)
    new = ask(server.port, BYSTANDER, 1)
    close(deaf)
    ended = server.wait(lambda: not server.alive(), PATIENCE)
    took = time.monotonic() - began
    after = sum(client.lives() for client in held)
    close(held)
    server.wait(lambda: not server.programs(), 2)
    left = len(server.programs())
    short = "cuts live connections" if lives < 2 else "ends at once, live go on" if took < 3 else \
        "drains, then ends them"
    short += f", {left} left for ever" if left else ", nothing left"
    text = f"{lives} of 2 live connections go on a second later, a new client: {seen(new.state)}; " + (
        "the server ends at once" if ended and took < 3 else
        f"the server ends after {took:.1f} s" if ended else f"the server does not end in {PATIENCE} s")
    text += f", then {after} of 2 go on; without clients {left} processes of the program stay"
    return Result(short, text, lives < 2 or not ended or left > 0)
