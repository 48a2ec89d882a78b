"""The verdict: benches/soak/latest.md, and all samples as a table."""

import os
import platform
import statistics
import time
from pathlib import Path

import samples

HERE = Path(__file__).resolve().parent
# What is fitted: name, of which role, what, at which samples; and what a life is, for those that are replaced.
MEASURES = [
    ("supervisor, resident, KiB", "supervisor", "rss", "busy"),
    ("supervisor, of its own (anonymous), KiB", "supervisor", "anonymous", "busy"),
    ("supervisor, proportional (PSS), KiB", "supervisor", "pss", "busy"),
    ("a worker, resident, KiB", "worker", "rss", "busy"),
    ("a worker, of its own (anonymous), KiB", "worker", "anonymous", "busy"),
    ("`preforkd metrics`, anonymous, KiB", "metrics", "anonymous", "busy"),
    ("a worker of it, anonymous, KiB", "metrics worker", "anonymous", "busy"),
    ("descriptors of the supervisor, at rest", "supervisor", "fds", "rest"),
    ("descriptors of a worker, at rest", "worker", "fds", "rest"),
    ("descriptors of `preforkd metrics`", "metrics", "fds", "rest"),
    ("memory that they share, at rest, KiB", "all", "shared", "rest"),
    ("memory files, at rest", "all", "memfds", "rest"),
    ("processes, at rest", "all", "processes", "rest"),
    ("cgroups, at rest", "all", "cgroups", "rest"),
    ("files in its directory, at rest", "all", "files", "rest"),
]
# A process has its caches and tables by then.
YOUNG = 60


def fitted(lines, length, role, what, kind):
    """First, last and greatest value, and the line through those of the last three quarters."""
    found = [line for line in lines if line["role"] == role and line["kind"] == kind]
    if not found:
        return None
    births = {}
    for line in found:
        births.setdefault((line["life"], line["service"]), line["at"])
    old = [line for line in found if line["at"] >= length / 4 and
           (kind == "rest" or line["at"] - births[line["life"], line["service"]] >= YOUNG)]
    # At rest every process is like the one before; while it is busy, each has its own level.
    life = (lambda line: line["service"]) if kind == "rest" else (lambda line: (line["life"], line["service"]))
    fit = samples.slope([(life(line), line["at"], line[what]) for line in old])
    count = max(1, len({line["service"] for line in found}))
    edge = max(1, count * 3)
    first, last = (statistics.fmean(line[what] for line in part) for part in (found[:edge], found[-edge:]))
    return first, last, max(line[what] for line in found), fit


def verdict(first, fit):
    if fit is None:
        return "too few samples", False
    grown, error = fit
    # More than chance, and more than one in a hundred an hour.
    grows = grown > 3 * error and grown > max(first / 100, 0.5)
    return f"{grown:+.2f} ± {error:.2f}", grows


def write(soak, arguments, out):
    """Whether something was wrong."""
    checks, load, actions, lines = soak.checks, soak.load, soak.actions, soak.samples
    columns = ["at", "kind", "role", "service", "life", "rss", "pss", "anonymous", "fds", "processes", "zombies", "shared", "memfds",
               "cgroups", "files", "cpu"]
    with (out / "soak.tsv").open("w") as table:
        print(*columns, sep="\t", file=table)
        for line in lines:
            print(*(line.get(column, "") for column in columns), sep="\t", file=table)
    with (out / "soak.events").open("w") as events:
        for text, number in soak.served.events.most_common():
            print(number, text, sep="\t", file=events)
    length = max((line["at"] for line in lines), default=0)
    rows, grows = [], []
    for name, role, what, kind in MEASURES:
        found = fitted(lines, length, role, what, kind)
        if found:
            first, last, most, fit = found
            words, is_growing = verdict(first, fit)
            rows.append(f"| {name} | {first:,.1f} | {last:,.1f} | {most:,} | {words}{' **grows**' if is_growing else ''} |")
            grows += [name] * is_growing
    used = max((line["cpu"] for line in lines if "cpu" in line), default=0)
    wrong = checks.wrong + load.unexplained + actions.failed
    model = next((line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    good = {how: n for (who, how), n in load.outcomes.items() if who == "good"}
    held = {how: n for (who, how), n in load.outcomes.items() if who == "held"}
    bad = sum(n for (who, _), n in load.outcomes.items() if who in ("bad", "banned"))
    totals = {what: sum(service[what] for service in checks.last.values()) for what in ("accepted", "timeouts", "crashes", "penalties")}
    totals["refused"] = sum(sum(service["refused"].values()) for service in checks.last.values())
    text = f"""# {length / 60:.0f} minutes of everything

{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, commit {soak.commit}, {model.strip()}, {len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()};
seed {arguments.seed}, {arguments.rate:g} clients a second, nice 10. preforkd and its connections took {used / length * 100:.0f} % of one CPU.

{'**Flat, and everything adds up.**' if not wrong and not grows else f'**{len(wrong)} things were wrong; {len(grows)} measures grow.**'}

| measured | first | last | most | growth an hour |
|---|---:|---:|---:|---:|
""" + "\n".join(rows) + f"""

- Clients that did nothing wrong: {', '.join(f'{n:,} {how}' for how, n in sorted(good.items(), key=lambda one: -one[1]))}. Others: {bad:,}.
- Connections that were held over everything, and ended: {', '.join(f'{n} {how}' for how, n in held.items()) or 'none but by us'}.
- Counted by preforkd: {', '.join(f'{n:,} {what}' for what, n in totals.items())}.
- Looked at rest: {checks.rests} times. Connects that nobody counted: {checks.most_missing['connects that nobody counted']}; completed without
  a record: {checks.most_missing['completed without a record']}; all by workers and processes that were killed.
- Done to it: {', '.join(f'{n:,} {name.replace("_", " ")}' for name, n in sorted(actions.done.items(), key=lambda one: -one[1]))}.
"""
    if wrong:
        text += "\nWrong:\n\n" + "\n".join(f"- {words}" for words in wrong[:200]) + "\n"
    print(checks.summary() if soak.runs else text, flush=True)
    target = out / "so_far.md" if soak.runs else HERE / "latest.md" if length >= 3000 else out / "soak.md"
    target.write_text(text)
    return bool(wrong or grows)
