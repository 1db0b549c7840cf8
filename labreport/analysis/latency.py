"""How long models take on this machine, and how much memory, measured so that they can be compared.

The models take turns: whatever slows the machine down for a while slows all of them. Every single time is
kept; the median says what to expect and the quartiles how steady it is.
"""

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with ``count`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def measure(
    models: Mapping[str, nn.Module | Callable[[Tensor], Tensor]],
    images: Tensor,
    *,
    seconds: float = 5.0,
    least: int = 5,
) -> dict[str, np.ndarray]:
    """Time the forward pass of each model on ``images``, float (B, C, S, S), on their device.

    In every round each model runs once; rounds go on for ``seconds`` and number at least ``least``. One round
    before that warms up. Returns the wall times in seconds by name, float64 (rounds,), in order.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    rounds, started = -1, time.monotonic()
    while rounds < least or time.monotonic() - started < seconds:
        if rounds == 0:
            started = time.monotonic()
        for name, model in models.items():
            begun = time.perf_counter()
            model(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            if rounds >= 0:
                times[name].append(time.perf_counter() - begun)
        rounds += 1
    return {name: np.array(values) for name, values in times.items()}


def peak_memory(step: Callable[[], object]) -> int | None:
    """Return by how many bytes this process's resident memory rose at most during ``step``; None where Linux tells not.

    What the allocator still holds from before is given back first, as far as it can be.
    """
    reset = Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return None
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc's own
    reset.write_text("5")  # the high-water mark falls to what is resident now (Linux, man 5 proc_pid_clear_refs)
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def spread(times: np.ndarray) -> str:
    """Return median and quartiles of times in seconds as ``12.3 [11.9, 13.0]``, in milliseconds."""
    low, median, high = map(three, np.percentile(1e3 * times, [25, 50, 75]))
    return f"{median} [{low}, {high}]"


def three(value: float) -> str:
    """Return a positive number with three digits, zeros at the end included, or as a whole number: 6.40, 20.0, 1,250."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:,.0f}"


def ratio(slow: np.ndarray, fast: np.ndarray) -> tuple[float, float, float]:
    """Return the median of slow / fast over rounds that the two ran side by side, and its 95 % interval.

    The interval is that of the sign test: it stands between two of the sorted ratios and asks nothing of their
    distribution. Under six rounds there is none, and its bounds are 0 and infinity.
    """
    ratios = np.sort(slow / fast)
    k = int(binom.ppf(0.025, len(ratios), 0.5))
    low, high = (ratios[k - 1], ratios[-k]) if k else (0.0, np.inf)
    return float(np.median(ratios)), float(low), float(high)


def pace(base: np.ndarray, other: np.ndarray) -> str:
    """Say whether a model is faster than a base that it took turns with: 更快, 更慢, or 分不出快慢 by the interval."""
    _, low, high = ratio(base, other)
    return "更快" if low > 1 else "更慢" if high < 1 else "分不出快慢"


def factor(slow: np.ndarray, fast: np.ndarray) -> str:
    """Return :func:`ratio` as a cell of a table: ``2.31 [2.20, 2.40]``, alone where there is no interval."""
    middle, low, high = ratio(slow, fast)
    return f"{middle:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low else "")


def drift(*sessions: tuple[np.ndarray, np.ndarray]) -> float:
    """Return by what factor the ratio of the same two models (slow, fast) differed between sessions, at least 1.

    What a machine does differently from one session to the next is in no session's interval.
    """
    middles = [ratio(*times)[0] for times in sessions]
    return max(middles) / min(middles)


def told_ratio(slow: np.ndarray, fast: np.ndarray) -> str:
    """Return :func:`ratio` in Chinese words: ``2.31 倍（95 % 区间 [2.2, 2.4]）``."""
    middle, low, high = ratio(slow, fast)
    return f"{middle:.2f} 倍" + (f"（95 % 区间 [{low:.2f}, {high:.2f}]）" if low else "（轮数太少，没有区间）")
