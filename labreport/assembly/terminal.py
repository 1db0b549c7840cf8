"""One line in the terminal that says how far the notebooks are and how long they will still take."""

import json
import re
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from labreport.assembly.front import duration

CHINESE = re.compile("[\u4e00-\u9fff]")
CLEAR = "\r\x1b[K"  # to the start of the line, and erase it
LOG_EVERY = 20.0  # seconds between lines where there is no terminal


class StatusLine:
    """Shows notebook, cell n/m, its heading, the training inside it (read from the kernels' relay) and time left.

    On a terminal one line is rewritten twice a second; elsewhere a line is printed now and then. As the
    kernels' standard error it lets this project's messages, which are Chinese, through as lines of their own.
    """

    def __init__(self, relay: Path, show: bool = True) -> None:
        self._relay, self._show = relay, show
        self._cells: dict[str, dict[str, str]] = {}
        self._expected: dict[tuple[str, str], float] = {}
        self._spent: dict[tuple[str, str], float] = {}
        self._now: tuple[str, str] | None = None
        self._began = time.monotonic()
        self._told, self._tail = 0.0, ""
        self._terminal = sys.stderr.isatty()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "StatusLine":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._show and self._terminal:
            sys.stderr.write(CLEAR)

    def plan(self, notebook: str, cells: Mapping[str, str], last: Mapping[str, float]) -> None:
        """Announce a notebook's code cells (id -> heading) and the seconds some took last time."""
        self._cells[notebook] = dict(cells)
        self._expected.update({(notebook, cell): last[cell] for cell in cells if cell in last})

    def start_notebook(self, notebook: str) -> None:
        """Note that a notebook's kernel is starting."""
        self._finish_cell((notebook, ""))

    def start_cell(self, cell: str) -> None:
        """Note that a planned cell has begun, and so that the one before has ended."""
        if self._now is not None and cell in self._cells[self._now[0]]:
            self._finish_cell((self._now[0], cell))

    def write(self, text: str) -> None:
        """Take a piece of a kernel's standard error; print its complete Chinese lines, no progress bars."""
        *lines, self._tail = (self._tail + text).split("\n")
        for line in lines:
            if self._show and CHINESE.search(line) and "\r" not in line:
                with self._lock:
                    sys.stderr.write(f"{CLEAR if self._terminal else ''}{line}\n")

    def flush(self) -> None:
        """Do nothing: lines are written whole."""

    def seconds_left(self) -> float | None:
        """Return the estimate for all that is left, or None before anything is known."""
        known = self._expected | self._spent
        if not known:
            return None
        mean = sum(known.values()) / len(known)
        todo = [(name, cell) for name, cells in self._cells.items() for cell in cells]
        left = sum(known.get(cell, mean) for cell in todo if cell not in self._spent and cell != self._now)
        inner = self._training().get("seconds_left")
        current = max(0.0, self._expected.get(self._now, 0.0) - self._elapsed()) if self._now else 0.0
        return left + (float(inner) if inner is not None else current)

    def line(self) -> str:
        """Return the line as it is now, or nothing before the first notebook."""
        if self._now is None:
            return ""
        name, cell = self._now
        cells = self._cells[name]
        at = list(cells).index(cell) + 1 if cell else 0
        left = self.seconds_left()
        parts = ["剩余时间待估" if left is None else f"剩约 {duration(left)}"]  # first: a narrow terminal cuts the end
        parts.append(f"{name} 单元 {at}/{len(cells)} {cells[cell] if cell else '启动内核'}")
        if training := self._training():
            parts.append(f"{training['text']} {training['done']}/{training['total']}")
        total = sum(map(len, self._cells.values()))
        filled = round(12 * len(self._spent) / max(total, 1))
        return f"{'━' * filled}{'─' * (12 - filled)} " + " | ".join(parts)

    def _finish_cell(self, following: tuple[str, str]) -> None:
        if self._now is not None and self._now[1]:
            self._spent[self._now] = self._elapsed()
        self._now, self._began = following, time.monotonic()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _training(self) -> dict[str, str | float]:
        try:
            return dict(json.loads(self._relay.read_text("utf-8")))
        except (OSError, ValueError):  # not written yet, or just being written
            return {}

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            now = time.monotonic()
            if not self._show or not self._now or (not self._terminal and now - self._told < LOG_EVERY):
                continue
            self._told, line = now, self.line()
            with self._lock:
                if self._terminal:
                    sys.stderr.write(f"{CLEAR}{_cut(line, shutil.get_terminal_size().columns - 1)}")
                else:
                    sys.stderr.write(line + "\n")
                sys.stderr.flush()


def _cut(line: str, columns: int) -> str:
    """Cut a line to the columns it fills on a terminal, where a Chinese character fills two."""
    for at, char in enumerate(line):
        columns -= 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if columns < 0:
            return line[:at]
    return line
