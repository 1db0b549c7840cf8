"""Progress bars: the same one call in the terminal, in Jupyter, and under a headless notebook run."""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm as auto_tqdm
from tqdm.std import tqdm as text_tqdm

RELAY = "CIFAR_VIT_PROGRESS"
"""Environment variable naming a file: there a headless kernel leaves its state for the terminal that waits."""

text_tqdm.set_lock(threading.RLock())  # its own is one for many processes, which an interrupted worker leaves behind


class Progress:
    """A bar over ``total`` units with the estimated time left; use it as a context manager."""

    def __init__(self, total: int, text: str, unit: str = "步", done: int = 0, show: bool = True) -> None:
        self._relay = os.environ.get(RELAY)
        self._text, self._done, self._total, self._told = text, done, total, 0.0
        self._start, self._first = time.monotonic(), done
        quiet = not show or self._relay is not None
        # without a terminal (a log file) a line every ten seconds is enough
        interval = 0.3 if sys.stderr.isatty() or "ipykernel" in sys.modules else 10.0
        kind: Any = auto_tqdm if "ipykernel" in sys.modules else text_tqdm
        self._bar = kind(
            total=total, desc=text, unit=unit, initial=done, disable=quiet, mininterval=interval, leave=False
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        self._tell("")

    def advance(self, count: int = 1, **numbers: str) -> None:
        """Count ``count`` units as done and show ``numbers`` (such as the last accuracy) behind the bar."""
        self._done += count
        if numbers:
            self._bar.set_postfix(numbers, refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if self._relay and now - self._told > 0.5:
            self._told = now
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            left = (self._total - self._done) / rate if rate else None
            state = {"text": self._text, "done": self._done, "total": self._total, "seconds_left": left}
            self._tell(json.dumps(state, ensure_ascii=False))

    def _tell(self, state: str) -> None:
        if self._relay:
            with contextlib.suppress(OSError):  # a full disk: training goes on unseen
                Path(self._relay).write_text(state, "utf-8")

    @staticmethod
    def warn(text: str) -> None:
        """Print one line to standard error without breaking a bar."""
        text_tqdm.write(text, file=sys.stderr)
