"""Draws the four servers of preforkd.models(7): pictures.py DIRECTORY."""

import html
import sys

STYLE = """
  text { font: 12px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; text-anchor: middle }
  .page { fill: #ffffff } .title { font-size: 14px; font-weight: 600 } .quiet { fill: #59636e; font-size: 11px }
  rect.process { fill: #ddf4ff; stroke: #0969da } rect.kernel { fill: #f6f8fa; stroke: #8c959f; stroke-dasharray: 4 3 }
  rect.client { fill: #ffffff; stroke: #59636e } rect.work { fill: #ffffff; stroke: #0969da }
  line { stroke: #59636e } line.waits { stroke-dasharray: 3 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .quiet { fill: #9198a1 }
    rect.process { fill: #121d2f; stroke: #4493f8 } rect.kernel { fill: #151b23; stroke: #6e7681 }
    rect.client { fill: #0d1117; stroke: #9198a1 } rect.work { fill: #0d1117; stroke: #4493f8 } line { stroke: #9198a1 }
  }
"""

ROWS = (42, 84, 126)


class Picture:
    def __init__(self, title):
        self.title, self.body = title, []
        self.text(215, 24, title, "title")
        for name, y in zip("ABC", ROWS):
            self.box("client", 12, y, 58, 28, f"client {name}")

    def box(self, kind, x, y, width, height, *words):
        self.body.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>')
        first = y + height / 2 + 4 - 7 * (len(words) - 1)
        for line, text in enumerate(words):
            self.text(x + width / 2, first + 14 * line, text, "" if line == 0 else "quiet")

    def text(self, x, y, words, kind="quiet"):
        self.body.append(f'<text class="{kind}" x="{x}" y="{y}">{html.escape(words)}</text>')

    def line(self, x1, y1, x2, y2, waits=False):
        kind = ' class="waits"' if waits else ""
        self.body.append(f'<line{kind} x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')

    def svg(self):
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 430 220" width="430" height="220" role="img">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>{STYLE}</style>\n"
            '<rect class="page" width="100%" height="100%"/>\n' + "\n".join(self.body) + "\n</svg>\n"
        )


def iterative():
    picture = Picture("One client after the other")
    picture.box("kernel", 110, 76, 150, 108)
    picture.text(185, 177, "the kernel")
    picture.box("process", 290, 34, 125, 150)
    picture.text(352, 177, "the server's process")
    picture.box("work", 302, 42, 101, 28, "serves A")
    picture.line(70, 56, 302, 56)
    for y in ROWS[1:]:
        picture.line(70, y + 14, 118, y + 14, waits=True)
    picture.box("client", 118, 81, 134, 36, "B: connected,", "its bytes are kept")
    picture.box("client", 118, 124, 134, 36, "C: connected,", "its bytes are kept")
    picture.text(215, 208, "B's connect returns, and its write. Its read waits until A has gone.")
    return picture


def threads():
    picture = Picture("A thread for each connection")
    picture.box("process", 210, 34, 205, 150)
    picture.text(312, 173, "one process: one memory, one end")
    for name, y in zip("ABC", ROWS):
        picture.line(70, y + 14, 240, y + 14)
        picture.box("work", 240, y, 145, 28, f"thread of {name}")
    picture.text(215, 208, "Nobody waits for another. What one breaks is broken for all.")
    return picture


def events():
    picture = Picture("One loop over events")
    picture.box("process", 160, 34, 255, 150)
    picture.text(287, 173, "one process, one thread")
    for name, y in zip("ABC", ROWS):
        picture.line(70, y + 14, 175, y + 14)
        picture.box("work", 175, y, 100, 28, f"state of {name}")
        picture.line(275, y + 14, 315, 98)
    picture.box("work", 315, 75, 92, 46, "who is ready?", "never waits")
    picture.text(215, 208, "The cheapest, while no step takes long: it is a step of everybody's.")
    return picture


def processes():
    picture = Picture("A process for each connection")
    for name, y in zip("ABC", ROWS):
        picture.line(70, y + 14, 290, y + 14)
        picture.line(220, 172, 290, y + 22, waits=True)
        picture.box("process", 290, y, 125, 28, f"process of {name}")
    picture.box("process", 84, 156, 136, 32, "worker", "accepts, forks, waits")
    picture.text(352, 174, "a memory each")
    picture.text(215, 208, "Nobody waits for another, and nobody reaches another.")
    return picture


for draw in (iterative, threads, events, processes):
    with open(f"{sys.argv[1]}/{draw.__name__}.svg", "w", encoding="utf-8") as file:
        file.write(draw().svg())
