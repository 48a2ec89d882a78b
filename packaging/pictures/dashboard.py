"""The dashboard for Grafana, drawn without Grafana: its panels where they are, their queries answered by a real Prometheus."""

import json
import math
import re
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from xml.sax.saxutils import escape

DASHBOARD = Path(__file__).resolve().parent.parent / "monitoring/preforkd-dashboard.json"
WEB = "127.0.0.1:17091"
# Prometheus looks each second, a rate is over as many seconds, and a line has a point in each STEP.
SCRAPE, RATE, STEP = 1, 15, 2

# Of a column and a row of the grid, in pixels.
COLUMN, ROW = 46, 21
COLORS = ["#1565c0", "#c2410c", "#1a7a43", "#7b1fa2", "#b3261e", "#00838f", "#8a5a00", "#455a64"]


def prometheus(directory, target):
    config = Path(directory) / "prometheus.yml"
    config.write_text(
        f"global: {{ scrape_interval: {SCRAPE}s, scrape_timeout: {SCRAPE}s }}\n"
        f"scrape_configs:\n  - job_name: preforkd\n    static_configs: [{{ targets: [\"{target}\"] }}]\n"
    )
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/data", f"--web.listen-address={WEB}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ask(target, since, until):
    """The series of a query: their labels in words, and points in time."""
    query = target["expr"].replace("$instance", ".*").replace("$service", ".*").replace("$__rate_interval", f"{RATE}s")
    parameters = urllib.parse.urlencode({"query": query, "start": since, "end": until, "step": STEP})
    with urllib.request.urlopen(f"http://{WEB}/api/v1/query_range?{parameters}") as answer:
        found = json.load(answer)["data"]["result"]
    legend = target.get("legendFormat") or "{{instance}}"
    name = lambda labels: re.sub(r"\{\{ *(\w+) *\}\}", lambda label: labels.get(label[1], ""), legend)
    points = lambda one: [(at, float(value)) for at, value in one["values"] if math.isfinite(float(value))]
    return [(name(one["metric"]), one["metric"], points(one)) for one in found]


def number(value, unit):
    if unit == "s":
        for name, length in (("µs", 1e-6), ("ms", 1e-3)):
            if 0 < value < length * 1000:
                return f"{value / length:.3g} {name}"
        return f"{value:.3g} s"
    for name, length in (("M", 1e6), ("k", 1e3)):
        if value >= length:
            return f"{value / length:.3g}{name}"
    return f"{value:.3g}"


def words(x, y, text, size=11, color="#1c1f22", more=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{color}"{more}>{escape(text)}</text>'


def graph(panel, series, x, y, width, height, since, until):
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    is_log = panel["fieldConfig"]["defaults"].get("custom", {}).get("scaleDistribution", {}).get("type") == "log"
    values = [value for _, _, points in series for _, value in points]
    high, low = max(values, default=0) or 1, 0
    if is_log:
        low = min([value for value in values if value > 0] + [high])
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
    scale = lambda value: math.log(max(value, low) / low) / math.log(high / low) if is_log and high > low else value / high
    left, right, top, bottom = x + 8, x + width - 52, y + 28, y + height - 36
    shapes = [f'<path d="M{left} {top}H{right}M{left} {(top + bottom) / 2}H{right}M{left} {bottom}H{right}" stroke="#d6d9dc" fill="none"/>']
    if values:
        shapes += [words(right + 5, top + 8, number(high, unit), 10, "#565d64"), words(right + 5, bottom, number(low, unit), 10, "#565d64")]
    else:
        shapes.append(words(left + 4, (top + bottom) / 2 - 6, "nothing", 11, "#565d64"))
    # The names that fit in two lines.
    at, line = left, 0
    for place, (name, _, points) in enumerate(series):
        color = COLORS[place % len(COLORS)]
        path = " ".join(
            f"{left + (moment - since) / (until - since) * (right - left):.1f},{bottom - scale(value) * (bottom - top):.1f}" for moment, value in points
        )
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        long = 18 + len(name) * 6
        if at + long > x + width - 4:
            at, line = left, line + 1
        if line < 2:
            shapes.append(f'<path d="M{at:.0f} {bottom + 12.5 + 13 * line}h9" stroke="{color}" stroke-width="3"/>')
            shapes.append(words(at + 12, bottom + 16 + 13 * line, name, 10, "#565d64"))
        at += long
    return shapes


def mapped(panel, value):
    """What Grafana would say for a value, and how."""
    for mapping in panel["fieldConfig"]["defaults"].get("mappings", []):
        if found := mapping.get("options", {}).get(f"{value:g}"):
            return found.get("text", f"{value:g}"), found.get("color", "text")
    return f"{value:g}", "text"


def stat(panel, series, x, y, width, height):
    shapes = []
    part = width / max(len(series), 1)
    for place, (name, _, points) in enumerate(series):
        text, color = mapped(panel, points[-1][1])
        color = {"green": "#1a7a43", "red": "#b3261e"}.get(color, "#1c1f22")
        middle = ' text-anchor="middle"'
        shapes.append(words(x + part * (place + 0.5), y + height / 2 + 10, text, 22, color, middle))
        if len(series) > 1:
            shapes.append(words(x + part * (place + 0.5), y + height - 9, name, 11, "#565d64", middle))
    return shapes


def table(series, x, y, width):
    shapes = []
    for place, (_, labels, _) in enumerate(series[:2]):
        shapes.append(words(x + 10, y + 40 + 28 * place, labels.get("service", ""), 12, "#b3261e"))
        shapes.append(words(x + 10, y + 53 + 28 * place, labels.get("reason", "")[: int(width / 5.4)], 10, "#565d64"))
    return shapes or [words(x + 10, y + 40, "none", 11, "#565d64")]


def svg(since):
    panels = json.loads(DASHBOARD.read_text())["panels"]
    until = time.time()
    body, bottom = [], 0
    for panel in panels:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN + 3, place["y"] * ROW + 3
        width, height = place["w"] * COLUMN - 6, place["h"] * ROW - 6
        bottom = max(bottom, y + height)
        body.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="#fff" stroke="#d6d9dc"/>')
        body.append(words(x + 8, y + 17, panel["title"], 12, "#1c1f22", ' font-weight="bold"'))
        series = [one for target in panel["targets"] for one in ask(target, since, until) if one[2]]
        if panel["type"] == "timeseries":
            body += graph(panel, series, x, y, width, height, since, until)
        elif panel["type"] == "stat":
            body += stat(panel, series, x, y, width, height)
        else:
            body += table(series, x, y, width)
    width = 24 * COLUMN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 6}" viewBox="0 0 {width} {bottom + 6}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif">\n<title>The panels of preforkd-dashboard.json, drawn without Grafana</title>\n'
        f'<rect width="100%" height="100%" fill="#eceef0"/>\n' + "\n".join(body) + "\n</svg>\n"
    )
