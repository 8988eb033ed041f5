"""docs/demo.svg: what `make demo` shows, cut down to one screen. `make demo-picture` draws it anew."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

from tests.sandbox import demo

FILE = demo.ROOT / "docs/demo.svg"
SHOWN = ("Ana", "Mia")  # who stands for everybody
PEOPLE = 6  # and how many of the others are in the table
INK, PAPER = "#d8dee9", "#20242c"
COLOURS = {"── ": "#88c0d0", " *✓": "#a3be8c", r" *│ \d": "#9aa3b2"}  # by how lines begin
LINE, COLUMN, SIZE = 15.0, 6.6, 11  # points, for a font of that size
TIME = re.compile(r"\d\d:\d\d:\d\d")
TOKEN = re.compile(r"[─╭╰╮╯│]+|[^\s─╭╰╮╯│]+(?: [^\s─╭╰╮╯│]+)*")


def excerpt(story: str) -> list[str]:
    """The lines of the story that one screen has room for."""
    chapters = dict(re.findall(r"^── (.*?) ─+\n\n(.*?)(?=\n── |\Z)", story, re.MULTILINE | re.DOTALL))
    people, job, phones, verdict = (
        next((title, text.splitlines()) for title, text in chapters.items() if title.startswith(start))
        for start in ("The people", "The job", "The phones", "Was that right?")
    )
    table = people[1].index("")
    log = [line for line in job[1] if re.search(f" ({'|'.join(SHOWN)}) .*(needs|ID: SM)|Job completed", line)]
    return [
        *heading(people[0]),
        *people[1][: table + 2 + PEOPLE],
        "  …",
        *heading(job[0]),
        *sorted(log, key=lambda line: ("completed" in line, "sent" in line, TIME.sub("", line))),
        *heading(phones[0]),
        *beside_each_other([next(b for b in bubbles(phones[1]) if f"Hi {name} " in b[1]) for name in SHOWN]),
        *heading(verdict[0]),
        *(line for line in verdict[1] if "✓" in line),
    ]


def heading(title: str) -> list[str]:
    """A chapter's heading as the demo has it."""
    return ["", f"── {title} ".ljust(demo.WIDTH, "─"), ""]


def bubbles(lines: list[str]) -> Iterator[list[str]]:
    """The frames of the phones, which stand two beside each other."""
    columns: tuple[list[str], list[str]] = ([], [])
    for line in lines:
        for part in re.finditer("╭.*?╮|│.*?│|╰.*?╯", line):
            frame = columns[part.start() > len(demo.MARGIN)]
            frame.append(part[0])
            if part[0].startswith("╰"):
                yield frame.copy()
                frame.clear()


def beside_each_other(frames: list[list[str]]) -> list[str]:
    """The frames in one row."""
    height = max(map(len, frames))
    rows = zip(*([*frame, *[" " * demo.BUBBLE] * (height - len(frame))] for frame in frames), strict=True)
    return [(demo.MARGIN + "  ".join(row)).rstrip() for row in rows]


def words(lines: Iterable[str]) -> list[str]:
    """What is drawn, without what differs from one run to another."""
    found = (token for line in lines for token in TOKEN.findall(line))
    return [re.sub(rf"{TIME.pattern}|[A-Z][a-z]{{2}} \d\d:\d\d|SM\w{{7}}…", "-", token) for token in found]


def draw(lines: list[str], file: Path) -> None:
    """The lines as a terminal shows them; each word has its place, whatever font the reader has."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "demo", "font.family": "monospace"})
    from matplotlib.figure import Figure  # after the backend was chosen

    width, height = COLUMN * (demo.WIDTH + 2), LINE * (len(lines) + 1)
    figure: Any = Figure(figsize=(width / 72, height / 72), facecolor=PAPER)
    for row, line in enumerate(lines):
        colour = next((c for start, c in COLOURS.items() if re.match(start, line)), INK)
        for token in TOKEN.finditer(line):
            x, y = COLUMN * (token.start() + 1) / width, 1 - LINE * (row + 1) / height
            figure.text(x, y, token[0], color=colour, size=SIZE, va="baseline")
    figure.savefig(file, metadata={"Date": None})


def story() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = demo.tell()
    if code:
        raise SystemExit(printed.getvalue())
    return printed.getvalue()


if __name__ == "__main__":
    draw(excerpt(story()), FILE)
    sys.stdout.write(f"Written: {FILE.relative_to(demo.ROOT)}\n")
