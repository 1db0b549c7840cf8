"""What this machine can do at best, and the least time that a model's step could take on it.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 2009: an operation
takes at least its arithmetic over the arithmetic rate and at least its bytes over the bandwidth, whichever is
larger. Counted are the matrix products, attention and convolutions; everything between them is taken as fused
into them, for nothing. So no implementation of the same arithmetic can be faster than this floor, and 100 %
is out of reach for most.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.timing import wait


@dataclass(frozen=True)
class Ceilings:
    """Measured best rates: operations a second by dtype name, and bytes a second (read plus written)."""

    flops: dict[str, float]
    bandwidth: float


def ceilings(device: torch.device, seconds: float = 2.0) -> Ceilings:
    """Measure matrix products (4096^3; 8192^3 on a GPU) in float32 and bfloat16, and a large copy."""
    side = 8192 if device.type == "cuda" else 4096
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(3))
        rates[str(dtype).removeprefix("torch.")] = (
            2 * side**3 / _best(partial(torch.mm, a, b, out=out), device, seconds)
        )
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return Ceilings(rates, 2 * source.nbytes / _best(lambda: target.copy_(source), device, seconds))


def _best(task: Callable[[], object], device: torch.device, seconds: float) -> float:
    task()
    wait(device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begun = time.perf_counter()
        task()
        wait(device)
        times.append(time.perf_counter() - begun)
    return min(times)


class _Products(TorchDispatchMode):
    """Notes arithmetic, bytes and dtype of every matrix product, attention and convolution that is run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        count = flop_registry.get(func._overloadpacket)
        if count is None:  # in inference mode a layer arrives whole
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        out = func(*args, **(kwargs or {}))
        if count is not None:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            dtype = str(next(t for t in tensors if t.is_floating_point()).dtype).removeprefix("torch.")
            flops = count(*args, **(kwargs or {}), out_val=out)
            self.found.append((float(flops), float(sum(t.nbytes for t in tensors)), dtype))
        return out


def floor(step: Callable[[], object], limits: Ceilings) -> tuple[float, float]:
    """Return the least seconds that the products of one eager ``step`` take, and their operations."""
    with _Products() as products:
        step()
    seconds = sum(max(f / limits.flops[dtype], b / limits.bandwidth) for f, b, dtype in products.found)
    return seconds, sum(f for f, _, _ in products.found)
