"""The table and the charts of benches/models/run: page.py DIRECTORY ROUNDS SECONDS; the figures are in its latest.tsv."""

import collections
import datetime
import html
import os
import platform
import re
import statistics
import sys

MODELS = {
    "iterative": "one client after the other",
    "threads": "a thread for each connection",
    "events": "one loop over events",
    "processes": "a process for each connection",
}
BAD = {
    "silent": "says nothing",
    "deaf": "does not read",
    "compute": "makes it compute",
    "crash": "makes it crash",
    "idle": "10,000 are connected",
}
RATE, P50, P99 = 0, 1, 2

directory, rounds, seconds = sys.argv[1:]
results = collections.defaultdict(list)
with open(f"{directory}/latest.tsv", encoding="utf-8") as file:
    for line in file:
        model, measure, *fields = line.rstrip("\n").split("\t")
        results[model, measure].append(fields)


def median(model, measure, column):
    values = [row[column] for row in results.get((model, measure), []) if row[column] != "-"]
    return statistics.median(map(float, values)) if values else None


def gone(model, measure):
    """What became of a client that does nothing wrong; None if it was served."""
    rows = results.get((model, measure), [])
    if not rows:
        return "not measured"
    errors = rows[0][-1]
    if "REFUSED" in errors:
        return "the server is gone"
    return None if any(float(row[RATE]) for row in rows) else "waits for ever"


def code(model):
    """Lines of code, without comments and what all four share."""
    path = os.path.join(os.path.dirname(__file__), "../../examples/echo", f"{model}.rs")
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    return sum(1 for line in lines if line and not line.startswith(("//", "#!")))


def whole(value):
    return "" if value is None else f"{value:,.0f}"


def time(micros):
    if micros is None:
        return ""
    return f"{micros / 1000:,.0f} ms" if micros >= 10000 else f"{micros:,.0f} µs"


def size(value):
    if value is None:
        return ""
    return f"{value / 2**20:,.0f} MiB" if value >= 2**20 else f"{max(value, 0) / 2**10:,.0f} KiB"


def table():
    cpu = next((m[1].strip() for m in [re.search(r"model name\s*:(.*)", open("/proc/cpuinfo").read())] if m), "?")
    yield f"# Four servers, compared\n"
    yield (
        f"`benches/models/run`, {datetime.date.today()}, {os.cpu_count()} CPUs ({cpu}), Linux {platform.release()}: medians of "
        f"{rounds} rounds of {seconds} s. The servers are those of examples/echo; clients echo 16 bytes, from connect to close, "
        "without pause, on the same machine.\n"
    )
    yield "| | " + " | ".join(MODELS.values()) + " |"
    yield "|---|" + "---:|" * len(MODELS)

    def row(name, cell):
        return f"| {name} | " + " | ".join(cell(model) for model in MODELS) + " |"

    for clients in (1, 16, 64):
        yield row(f"connections/s, {clients} client{'s' * (clients > 1)}", lambda m: whole(median(m, f"rate {clients}", RATE)))
    yield row("p50, 1 client", lambda m: time(median(m, "rate 1", P50)))
    yield row("p99, 64 clients", lambda m: time(median(m, "rate 64", P99)))
    yield row("CPU for each connection, 64 clients", lambda m: time(median(m, "rate 64", 4)))
    for kind, words in BAD.items():
        yield row(f"p99 of a client while another {words}" if kind != "idle" else f"p99 of a client while {words}",
                  lambda m: "one client only" if kind == "idle" and m == "iterative" else gone(m, kind) or time(median(m, kind, P99)))
    yield row("memory for each of 10,000 connections", lambda m: size(median(m, "held", 2)) or "one client only")
    yield row("left of 200 MiB that connections leaked", lambda m: size(median(m, "leak", 0)))
    yield row("lines of code", lambda m: str(code(m)))


STYLE = """
  text { font: 12px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
  .page { fill: #ffffff } .title { font-size: 15px; font-weight: 600 } .head { font-weight: 600 }
  .quiet { fill: #59636e; font-size: 11px } .own { font-weight: 600 } .bad { fill: #b42318; font-size: 11px }
  rect.own { fill: #0969da } rect.other { fill: #8c959f }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .quiet { fill: #9198a1 } .bad { fill: #ff7b72 }
    rect.own { fill: #4493f8 } rect.other { fill: #6e7681 }
  }
"""


def chart(title, note, panels):
    """Bars: panels are (heading, {model: (value, words)}), where no value means the words are bad news."""
    names, panel_width, gap, row, top = 210, 150, 16, 22, 66
    width = names + len(panels) * (panel_width + gap)
    height = top + row * len(MODELS) + 34
    body = []

    def text(x, y, kind, words):
        body.append(f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{html.escape(words)}</text>')

    text(12, 24, "title", title)
    for index, (model, words) in enumerate(MODELS.items()):
        text(12, top + row * index + 11, "own" if model == "processes" else "", words)
    for index, (heading, values) in enumerate(panels):
        x = names + index * (panel_width + gap)
        text(x, top - 10, "head", heading)
        most = max((value for value, _ in values.values() if value), default=1)
        for line, model in enumerate(MODELS):
            value, words = values[model]
            y = top + row * line
            if value is None:
                text(x, y + 11, "bad" if words else "quiet", words or "none")
                continue
            length = max((panel_width - 58) * value / most, 1)
            kind = "own" if model == "processes" else "other"
            body.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{length:.1f}" height="14" rx="1.5"/>')
            text(x + length + 5, y + 11, "quiet", words)
    text(12, height - 10, "quiet", note)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n"
        '<rect class="page" width="100%" height="100%"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def rates():
    for clients in (1, 16, 64):
        values = {m: (median(m, f"rate {clients}", RATE), whole(median(m, f"rate {clients}", RATE))) for m in MODELS}
        yield f"connections/s, {clients} client{'s' * (clients > 1)}", values
    yield "p50, 1 client", {m: (median(m, "rate 1", P50), time(median(m, "rate 1", P50))) for m in MODELS}


def bystander(kind, model):
    if kind == "idle" and model == "iterative":
        return None, "one client only"
    words = gone(model, kind)
    return (None, words) if words else (median(model, kind, P99), time(median(model, kind, P99)))


def others():
    alone = {m: (median(m, "rate 1", P99), time(median(m, "rate 1", P99))) for m in MODELS}
    yield "nobody is", alone
    for kind, words in BAD.items():
        yield words, {m: bystander(kind, m) for m in MODELS}


MAN = os.path.join(os.path.dirname(__file__), "../../packaging/man/preforkd.models.7.scd")
FIRST, LAST = "; benches/models/run writes what follows\n", "; until here\n"


def manual():
    """The same table for a page of 80 columns."""
    lines = list(table())
    yield re.sub(r"`benches/models/run`, ", "", lines[1]).strip()
    yield "Lines that begin with *while* are the p99 of a client that does nothing wrong.\n"
    yield "```"
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("---"):
            continue
        if not cells[0]:
            cells[1:] = MODELS
        name = cells[0].removeprefix("p99 of a client ").replace("memory for each of 10,000 connections", "memory for each of 10,000")
        name = name.replace("left of 200 MiB that connections leaked", "left of 200 MiB leaked").replace("CPU for each connection, 64 clients", "CPU for each of 64 clients")
        yield f"{name:<31}" + "".join(f"{cell.replace('the server is gone', 'ends').replace('waits for ever', 'for ever').replace('one client only', '-'):>12}" for cell in cells[1:])
    yield "```\n"


with open(f"{directory}/latest.md", "w", encoding="utf-8") as file:
    file.write("\n".join(table()) + "\n")
pictures = {
    "rate.svg": ("How fast", "Each column has a scale of its own. Longer is better, but for p50.", list(rates())),
    "others.svg": ("What a bad client does to the others: their p99 while one of them …", "Shorter is better; each column has a scale of its own.", list(others())),
}
for name, (title, note, panels) in pictures.items():
    with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
        file.write(chart(title, note, panels))

with open(MAN, encoding="utf-8") as file:
    before, _, rest = file.read().partition(FIRST)
_, _, after = rest.partition(LAST)
with open(MAN, "w", encoding="utf-8") as file:
    file.write(before + FIRST + "\n".join(manual()) + LAST + after)
