"""A picture of what a program shows on a terminal: it gets one, and its cells are drawn as SVG."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from xml.sax.saxutils import escape

# Of a character, in pixels.
WIDTH, HEIGHT = 8.4, 18
PAPER, TEXT, DIM, BRIGHT = "#1d1f21", "#d3d7cf", "#8f938c", "#ffffff"
COLORS = {1: "#ef2929", 2: "#8ae234", 3: "#fce94f", 4: "#729fcf", 5: "#ad7fa8", 6: "#34e2e2", 9: "#ef2929", 10: "#8ae234", 11: "#fce94f", 12: "#729fcf"}
# ECMA-48: a control sequence, or one character.
PIECE = re.compile(r"\x1b\[([0-9;?]*)([@-~])|\x1b[^\[]|(.)", re.S)


class Screen:
    def __init__(self):
        self.cells, self.row, self.column, self.style, self.rest = {}, 1, 1, {}, b""

    def write(self, data):
        # A sequence or a character that is not whole yet comes with the next piece.
        data = self.rest + data
        begun = data.rfind(b"\x1b")
        end = begun if begun >= 0 and not re.match(rb"\x1b\[[0-9;?]*[@-~]|\x1b[^\[]", data[begun:]) else len(data)
        text, used = codecs.utf_8_decode(data[:end], "strict", False)
        self.rest = data[used:]
        for numbers, command, character in PIECE.findall(text):
            if character:
                self.cells[self.row, self.column] = (character, dict(self.style))
                self.column += 1
            elif command == "H":
                row, _, column = (numbers or "1;1").partition(";")
                self.row, self.column = int(row), int(column or 1)
            elif command == "J":
                self.cells.clear()
            elif command == "m":
                self.obey([int(number or 0) for number in numbers.split(";")])

    def obey(self, codes):
        style = self.style
        while codes:
            code = codes.pop(0)
            if code == 0:
                style.clear()
            elif code in (1, 2, 4, 7):
                style[code] = True
            elif code == 22:
                style.pop(1, None), style.pop(2, None)
            elif code in (24, 27):
                style.pop(code - 20, None)
            elif code in (38, 48, 58):
                value = codes[1] if codes[:1] == [5] else None
                del codes[: 2 if codes[:1] == [5] else 4]
                if code == 38:
                    style["color"] = COLORS.get(value)
            elif code == 39:
                style.pop("color", None)
            elif 30 <= code <= 37:
                style["color"] = COLORS.get(code - 30)

    def svg(self, title, columns, lines):
        width, height = columns * WIDTH + 20, lines * HEIGHT + 20
        body = []
        for row in range(1, lines + 1):
            column = 1
            while column <= columns:
                character, style = self.cells.get((row, column), (" ", {}))
                start, text = column, ""
                while column <= columns and self.cells.get((row, column), (" ", {}))[1] == style:
                    text += self.cells.get((row, column), (" ", {}))[0]
                    column += 1
                body.append(run(row, start, text, style))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" '
            f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14" xml:space="preserve">\n<title>{escape(title)}</title>\n'
            f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>\n' + "\n".join(filter(None, body)) + "\n</svg>\n"
        )


def run(row, column, text, style):
    """Characters of one style. Blocks are drawn, as no font has them without gaps."""
    x, y = 10 + (column - 1) * WIDTH, 10 + (row - 1) * HEIGHT
    color = style.get("color") or (DIM if style.get(2) else BRIGHT if style.get(1) else TEXT)
    shapes = []
    if style.get(4):
        shapes.append(f'<path d="M{x:.1f} {y + HEIGHT - 1.5}h{len(text) * WIDTH:.1f}" stroke="{DIM}"/>')
    if set(text) <= set("▁▂▃▄▅▆▇█─ ") and text.strip():
        for number, character in enumerate(text):
            at = x + number * WIDTH
            if character == "─":
                shapes.append(f"M{at:.1f} {y + HEIGHT / 2:.1f}h{WIDTH}v1h-{WIDTH}z")
            elif character != " ":
                height = HEIGHT * (ord(character) - ord("▁") + 1) / 8
                shapes.append(f"M{at:.1f} {y + HEIGHT - height:.1f}h{WIDTH}v{height:.1f}h-{WIDTH}z")
        return f'<path fill="{color}" d="{"".join(shapes)}"/>'
    for part in re.finditer(r"\S+(?: \S+)*", text):
        weight = ' font-weight="bold"' if style.get(1) else ""
        at, word = x + part.start() * WIDTH, part[0]
        shapes.append(
            f'<text x="{at:.1f}" y="{y + 13.5}" fill="{color}"{weight} textLength="{len(word) * WIDTH:.1f}">{escape(word)}</text>'
        )
    return "".join(shapes)


def shown(command, columns, lines, seconds, keys=()):
    """What it shows after so many seconds; each of the keys is pressed a moment before."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        # So that it sees its size from the beginning.
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.execv(command[0], command)
    screen, end = Screen(), time.monotonic() + seconds
    keys = list(keys)
    while (left := end - time.monotonic()) > 0:
        if keys and left < 1 + len(keys) / 5:
            os.write(terminal, keys.pop(0).encode())
        if select.select([terminal], [], [], min(left, 0.1))[0]:
            screen.write(os.read(terminal, 65536))
    os.write(terminal, b"q")
    while select.select([terminal], [], [], 5)[0]:
        try:
            if not os.read(terminal, 65536):
                break
        except OSError:
            break
    os.waitpid(pid, 0)
    return screen
