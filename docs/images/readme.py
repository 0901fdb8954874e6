"""Makes the two images of README.md: page.png, the top and the gallery of a report, and progress.png, a terminal during a training.

    pip install playwright pillow                     # and a Chromium: INSTDISC_CHROMIUM names one that is not on the PATH
    python docs/images/readme.py page run/eval/knn-….html docs/images/page.png
    python docs/images/readme.py record train.jsonl -- instdisc train --dataset photos --run run --config jobs/runs/demo.toml \\
      --precision bf16 --log warn
    python docs/images/readme.py progress train.jsonl docs/images/progress.png --share 0.115

`record` runs a command in a terminal and keeps what it prints. `progress` draws the screen at one moment, so the command may
be stopped with Ctrl-C after that. Both images together stay under 300 kB.
"""

import argparse
import html
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

# The bar fits, and the long line of an epoch breaks between two words.
COLUMNS = 139


def record(path, command):
    """Runs `command` with a terminal; writes a JSON line for the command, and one for each piece of its output."""
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    began = time.monotonic()
    size = struct.pack("HHHH", 40, COLUMNS, 0, 0)
    child, terminal = pty.fork()
    if child == 0:
        # Here too: the command must not look at its terminal before it has a size.
        ioctl(0, termios.TIOCSWINSZ, size)
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    with open(path, "w") as file:
        print(json.dumps({"command": shown, "columns": COLUMNS}), file=file)
        while True:
            try:
                piece = os.read(terminal, 1 << 16)
            except OSError:  # Linux says so when the command has closed its side.
                break
            if not piece:
                break
            line = {"seconds": round(time.monotonic() - began, 3), "text": piece.decode(errors="replace")}
            print(json.dumps(line), file=file, flush=True)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Screen:
    """As much of a terminal as progress bars and log lines need, with all that has scrolled away."""

    TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")

    def __init__(self, columns):
        self.columns, self.rows, self.row, self.column, self.style = columns, [[]], 0, 0, ""

    def write(self, text):
        for numbers, command, control, plain in self.TOKEN.findall(text):
            if control == "\r":
                self.column = 0
            elif control == "\n":
                self.down(1)
            elif plain:
                self.put(plain)
            elif command == "A":
                self.row = max(0, self.row - int(numbers or 1))
            elif command == "B":
                self.down(int(numbers or 1))
            elif command == "K":
                self.rows[self.row] = [] if numbers == "2" else self.rows[self.row][: self.column]
            elif command == "m":
                self.style = {"2": "dim", "32": "info", "33": "warn", "31": "error"}.get(numbers, "")

    def down(self, by):
        self.row += by
        while len(self.rows) <= self.row:
            self.rows.append([])

    def put(self, text):
        for character in text:
            # A full row wraps once more is written, not before.
            if self.column == self.columns:
                self.column = 0
                self.down(1)
            row = self.rows[self.row]
            row.extend([(" ", "")] * (self.column + 1 - len(row)))
            row[self.column] = (character, self.style)
            self.column += 1

    def lines(self):
        """The rows as text, without empty ones at the end."""
        lines = ["".join(character for character, _ in row).rstrip() for row in self.rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def as_html(self, row):
        """One row, styled."""
        text, last = "", None
        for character, style in [*self.rows[row], ("", None)]:
            if style != last:
                text += ("</span>" if last else "") + (f'<span class="{style}">' if style else "")
                last = style
            text += html.escape(character)
        return text.rstrip()


BAR = re.compile(r"^ *train \[=*>? *\] ([\d,]+)/([\d,]+) .*epoch \d+/\d+ loss")


def moment(path, share):
    """The command, and the screen when a bar of the training alone shows this share of the steps."""
    with open(path) as file:
        first, *pieces = map(json.loads, file)
    screen = Screen(first["columns"])
    for piece in pieces:
        screen.write(piece["text"])
        bar = BAR.match((screen.lines() or [""])[-1])
        if bar:
            done, total = (int(number.replace(",", "")) for number in bar.groups())
            if done >= share * total:
                return first["command"], screen
    sys.exit(f"{path}: no bar at {100 * share:.0f} % of the steps")


TERMINAL = """<!doctype html><meta charset="utf-8"><style>
  body { margin: 0; background: transparent; }
  figure { display: inline-block; margin: 0; padding: 0 18px 16px; background: #15181e; border-radius: 8px; }
  header { height: 34px; display: flex; align-items: center; gap: 7px; }
  header i { width: 11px; height: 11px; border-radius: 50%; background: #3a404b; }
  pre { margin: 0; color: #d7dae0; font: 13px/1.5 "DejaVu Sans Mono", monospace; }
  .dim { color: #7d8590; } .info { color: #7ec699; } .warn { color: #e5c07b; } .error { color: #ef7e76; }
  .prompt { color: #7d8590; } .command { color: #ffffff; font-weight: bold; } .bar { color: #8ab8f2; }
</style><figure><header><i></i><i></i><i></i></header><pre>"""


def terminal(path, share):
    """The page of a terminal at that moment."""
    command, screen = moment(path, share)
    count = len(screen.lines())
    rows = [screen.as_html(row) for row in range(count)]
    rows[-1] = f'<span class="bar">{rows[-1]}</span>'
    prompt = f'<span class="prompt">$</span> <span class="command">{html.escape(command)}</span>'
    return TERMINAL + "\n".join([prompt, *rows]) + "</pre></figure>"


def browser(playwright):
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("INSTDISC_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def photograph_terminal(playwright, text):
    page = browser(playwright).new_page(viewport=dict(width=1400, height=900), device_scale_factor=1.5)
    page.set_content(text)
    return page.locator("figure").screenshot(omit_background=True)


# Leaves the head of the page and the gallery, with the surest right and the surest wrong query. Gives the height.
ARRANGE = """() => {
  for (const section of document.querySelectorAll("section:not(#gallery)")) section.style.display = "none";
  const shown = [...document.querySelectorAll("#gallery article")].filter((a) => a.getClientRects().length > 0);
  const first = (kind) => shown.find((article) => article.dataset.kind === kind);
  const kept = [first("best"), first("worst")];
  for (const article of shown) if (!kept.includes(article)) article.style.display = "none";
  return document.querySelector("#gallery").getBoundingClientRect().bottom + window.scrollY + 20;
}"""


def photograph_page(playwright, path, name):
    settings = dict(color_scheme="light", reduced_motion="reduce", viewport=dict(width=1200, height=900))
    page = browser(playwright).new_context(**settings).new_page()
    page.goto(path.resolve().as_uri())
    page.wait_for_load_state("networkidle")
    if name:
        page.locator("#filter").select_option(name)
    height = page.evaluate(ARRANGE)
    return page.screenshot(full_page=True, clip=dict(x=0, y=0, width=1200, height=height))


def save(png, output, colours):
    """Writes the image with so few colours, if Pillow is there; as it is, if not."""
    try:
        from PIL import Image
    except ImportError:
        output.write_bytes(png)
    else:
        image = Image.open(io.BytesIO(png))
        image.quantize(colours, method=Image.Quantize.FASTOCTREE).save(output, optimize=True)
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("record")
    task.add_argument("recording", type=Path)
    task.add_argument("command", nargs="+")
    task = tasks.add_parser("progress")
    task.add_argument("recording", type=Path)
    task.add_argument("output", type=Path)
    task.add_argument("--share", type=float, default=0.235, help="share of the steps that the bar has reached")
    task = tasks.add_parser("page")
    task.add_argument("page", type=Path)
    task.add_argument("output", type=Path)
    task.add_argument("--class", dest="name", help="the class whose queries are shown")
    given = parser.parse_args()
    if given.task == "record":
        return record(given.recording, given.command)

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        if given.task == "progress":
            png, colours = photograph_terminal(playwright, terminal(given.recording, given.share)), 32
        else:
            png, colours = photograph_page(playwright, given.page, given.name), 256
    save(png, given.output, colours)


if __name__ == "__main__":
    sys.exit(main())
