"""Does every fault to every peer and prints what happened, as Markdown. Called by ./run, which says how."""

import datetime
import json
import multiprocessing
import os
import pathlib
import platform
import signal
import sys
import textwrap
import time

import faults
import peers
from server import LIMIT, Failed, Server, own_orphans

HEAD = """# What each server does on each fault

Tried, not read: `benches/faults/run` on {day}, {machine}. Every server has the same program and
room for {limit} connections, on 127.0.0.1. Faults are made by real means, and what counts is what another client sees,
who does nothing wrong. **Bold** is harm to it, to live connections or to the service. A server that has an option
against the fault is tried plain and with that option. [README.md](README.md) says how to read it.
"""


def attempt(fault, peer, remedy):
    """The result of one fault on one peer. Whatever it has started is ended."""
    servers = []

    def start():
        servers.append(Server(peer, remedy))
        return servers[-1].wait_until_serving()

    try:
        return fault(start)
    except Failed as reason:
        text = str(reason).replace("\n", " ")
        if "not supported by this version" in text:
            return faults.Result("not built yet", text, True)
        return faults.Result("not tried", f"does not start: {text}", True)
    finally:
        for server in servers:
            if server.directory.exists():
                server.end()


def tries(fault, peer):
    """Plain, and with the remedy if the peer has one: (options, result)."""
    done = []
    for remedy in [None] + [fault.remedy] * (fault.remedy in peer.remedies):
        began = time.monotonic()
        words = ", ".join(options(peer, remedy)) if remedy else ""
        result = attempt(fault, peer, remedy)
        done.append((words, result))
        print(f"{fault.__name__}: {peer.name} {words}: {result.short}: {result.text} "
              f"[{time.monotonic() - began:.0f} s]", file=sys.stderr, flush=True)
    return done


def prepare():
    """In every process that tries faults."""
    own_orphans()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)


def leave(*_):
    """Ends whatever runs, and is not disturbed in it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(1)


def options(peer, remedy):
    """The remedy as one writes it: flags together, lines of a file apart."""
    words = peer.remedies[remedy]
    return [" ".join(words)] if words[0].startswith("-") else words


def cell(results):
    """Words for the table: plain, then with the remedy if that differs."""
    words = []
    for options_, result in results:
        word = f"**{result.short}**" if result.bad else result.short
        words.append(f"{word} (`{'`, `'.join(options_.split(', '))}`)" if options_ else word)
    return "; ".join(words).replace("|", "\\|")


def report(tried, results):
    """The page: a table of all, then each fault with its figures."""
    out = []
    machine = f"{os.cpu_count()} CPUs, Linux {platform.release()}"
    day = datetime.datetime.now(datetime.timezone.utc).date()
    out.append(HEAD.format(day=day, machine=machine, limit=LIMIT))
    out.append("| server | version | limit |\n|---|---|---|")
    out += [f"| {peer.name} | {peer.version()} | " + (peer.limit if peer.unlimited else f"`{peer.limit}`") + " |"
            for peer in tried]
    out.append("\n| fault | " + " | ".join(peer.name for peer in tried) + " |")
    out.append("|---|" + "---|" * len(tried))
    for number, fault in enumerate(results, 1):
        cells = (cell(results[fault][peer]) for peer in tried)
        out.append(f"| [{number}. {fault.title}](#{anchor(number, fault)}) | " + " | ".join(cells) + " |")
    for number, fault in enumerate(results, 1):
        explanation = textwrap.fill(fault.explanation, 120)
        out.append(f"\n## {number}. {fault.title}\n\n{explanation}\n\n| server | what happens |\n|---|---|")
        for peer in tried:
            for options_, result in results[fault][peer]:
                name = f"{peer.name}, `{'`, `'.join(options_.split(', '))}`" if options_ else peer.name
                text = result.text.replace("|", "\\|")
                out.append(f"| {name} | {f'**{result.short}**' if result.bad else result.short}: {text} |")
    return "\n".join(out) + "\n"


def anchor(number, fault):
    """As GitHub makes it of the heading."""
    kept = (c for c in f"{number}. {fault.title}".lower() if c.isalnum() or c in " -")
    return "".join(kept).replace(" ", "-")


def main():
    directory, bin_, *words = sys.argv[1:]
    prepare()
    chosen = [peer(directory, bin_) for peer in peers.ALL]
    of_peers = [word for word in words if any(word == peer.name for peer in chosen)]
    of_faults = [word for word in words if word not in of_peers]
    unknown = [word for word in of_faults if word not in [fault.__name__ for fault in faults.ALL]]
    if unknown:
        names = ", ".join([fault.__name__ for fault in faults.ALL] + [peer.name for peer in chosen])
        sys.exit(f"benches/faults/run: {unknown[0]} is neither a fault nor a server; there are: {names}")
    tried = []
    for peer in chosen:
        if of_peers and peer.name not in of_peers:
            continue
        if reason := peer.missing():
            print(f"benches/faults/run: {peer.name} is not tried: {reason}", file=sys.stderr)
        else:
            tried.append(peer)
    store = pathlib.Path(bin_, "results.json")
    kept = json.loads(store.read_text()) if store.exists() else {}
    chosen_faults = []
    for fault in faults.ALL:
        if of_faults and fault.__name__ not in of_faults:
            continue
        chosen_faults.append(fault)
        # Most of the time is waiting.
        with multiprocessing.get_context("fork").Pool(3 if fault.quiet else 1, prepare) as pool:
            done = pool.starmap(tries, [(fault, peer) for peer in tried], chunksize=1)
        for peer, results in zip(tried, done):
            kept.setdefault(fault.__name__, {})[peer.name] = [(words_, vars(result)) for words_, result in results]
        store.write_text(json.dumps(kept, indent=1))
    if words:
        print(report(tried, restored(kept, chosen_faults, tried)), end="")
    # A part replaces that part of the page.
    existing = [peer for peer in chosen if not peer.missing()]
    if all(peer.name in kept.get(fault.__name__, {}) for fault in faults.ALL for peer in existing):
        page = report(existing, restored(kept, faults.ALL, existing))
        pathlib.Path(__file__).with_name("latest.md").write_text(page)


def restored(kept, chosen, tried):
    """What was kept, for these faults and peers: {fault: {peer: [(options, result)]}}."""
    return {fault: {peer: [(words, faults.Result(**result)) for words, result in kept[fault.__name__][peer.name]]
                    for peer in tried} for fault in chosen}


if __name__ == "__main__":
    main()
