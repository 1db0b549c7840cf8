"""Timing things so that they can be compared: they take turns, and every single time is kept."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from vitlib.progress import Progress


def interleave(
    tasks: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float = 10.0,
    least: int = 5,
    label: str,
) -> dict[str, np.ndarray]:
    """Run each task once a round, for ``seconds`` and at least ``least`` rounds; one round warms up.

    Whatever slows the machine down for a while slows all of them; the order is drawn anew each round, so that no
    task always comes after one that has emptied the caches. Returns the wall times in seconds by name,
    float64 (rounds,).
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    names, draw = list(tasks), np.random.RandomState(0)
    for task in tasks.values():
        task()
    wait(device)
    started = time.monotonic()
    with Progress(100, label, unit="%", show=True) as progress:
        rounds = shown = 0
        while rounds < least or time.monotonic() - started < seconds:
            for name in draw.permutation(names):
                begun = time.perf_counter()
                tasks[name]()
                wait(device)
                times[name].append(time.perf_counter() - begun)
            rounds += 1
            done = min(100, int(100 * min(rounds / least, (time.monotonic() - started) / max(seconds, 1e-9))))
            progress.advance(done - shown)
            shown = done
    return {name: np.array(values) for name, values in times.items()}


def wait(device: torch.device) -> None:
    """Wait until the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(baseline: np.ndarray, times: np.ndarray) -> tuple[float, float, float]:
    """Return how many times as fast as the baseline: median of the ratios round by round, and its quartiles."""
    low, median, high = np.percentile(baseline / times, [25, 50, 75])
    return float(median), float(low), float(high)
