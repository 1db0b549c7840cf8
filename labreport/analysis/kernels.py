"""The same attention by every kernel there is: time, memory, and proof of which kernel ran.

Letters in shapes: B images, h heads, N tokens, d width of a head.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from vitlib.models import attention

Run = Callable[[Tensor, Tensor, Tensor], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Row:
    """One kernel at one length: ``seconds`` (median) with its quartiles, over so many ``rounds``.

    ``bytes``: at the peak, beyond inputs; ``ran``: the operator that ran. Where ``reason`` is set the kernel did
    not run, and there is no time.
    """

    kernel: str
    length: int
    seconds: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    rounds: int = 0
    bytes: float = float("nan")
    ran: str = ""
    reason: str = ""


def packed(row: Row) -> dict[str, Any]:
    """Return the row's fields but those that are not a number."""
    return {name: value for name, value in asdict(row).items() if value == value}


def naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v as it is written, (B, h, N, d); the N x N weights are stored."""
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (logits if bias is None else logits + bias).softmax(dim=-1) @ v


def stepwise(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model, in evaluation mode, with all its attention computed by :func:`naive`."""

    def run(images: Tensor) -> Tensor:
        usual = attention.attend
        attention.attend = lambda q, k, v, bias=None, dropout=0.0: naive(q, k, v, bias)  # type: ignore[assignment]
        try:
            return model(images)
        finally:
            attention.attend = usual

    return run


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@dataclass(frozen=True)
class Kernel:
    """How to run a kernel, a part of the operator's name that the profiler must see, SDPA's back end if it is one."""

    run: Run
    operator: str
    backend: SDPBackend | None = None

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Let nothing but this kernel run; entered before the clock starts, since that takes microseconds too."""
        return contextlib.nullcontext() if self.backend is None else sdpa_kernel([self.backend])


def _sdpa(backend: SDPBackend, operator: str) -> Kernel:
    return Kernel(F.scaled_dot_product_attention, f"_scaled_dot_product_{operator}", backend)


NAIVE, XFORMERS = "逐步计算", "xFormers"
KERNELS = {
    NAIVE: Kernel(naive, "aten::softmax"),
    "SDPA math": _sdpa(SDPBackend.MATH, "attention_math"),
    "SDPA flash": _sdpa(SDPBackend.FLASH_ATTENTION, "flash_attention"),
    "SDPA efficient": _sdpa(SDPBackend.EFFICIENT_ATTENTION, "efficient_attention"),
    "SDPA cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION, "cudnn_attention"),
    XFORMERS: Kernel(_xformers, "xformers"),
}


@torch.inference_mode()
def measure(
    length: int,
    device: torch.device,
    names: Iterable[str] = tuple(KERNELS),
    *,
    heads: int = 4,
    width: int = 64,
    batch: int = 1,
    rounds: int = 200,
    seconds: float = 10.0,
    least: int = 3,
) -> list[Row]:
    """Run kernels on the same random queries, keys and values (B, h, N, d), float32 on a CPU, bfloat16 on CUDA.

    The result must equal :func:`naive` in float64 within the dtype's tolerance, on up to 256 queries, and the
    profiler must see the operator that the name promises: otherwise the row has a reason instead of a time. Those
    that pass take turns for ``rounds`` rounds, cut short after ``seconds`` but not below ``least``.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, batch, heads, length, width, generator=source).to(device, dtype)
    checked = {name: _check(name, length, (q, k, v)) for name in names}
    times: dict[str, list[float]] = {name: [] for name, row in checked.items() if not row.reason}
    done, started = 0, time.monotonic()
    while times and done < rounds and (done < least or time.monotonic() - started < seconds):
        for name, taken in times.items():
            kernel = KERNELS[name]
            with kernel.context():
                begun = time.perf_counter()
                kernel.run(q, k, v)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken.append(time.perf_counter() - begun)
        done += 1
    return [_timed(row, times.get(name, [])) for name, row in checked.items()]


def _timed(row: Row, times: list[float]) -> Row:
    if not times:
        return row
    low, median, high = np.percentile(times, [25, 50, 75])
    return Row(row.kernel, row.length, median, low, high, len(times), row.bytes, row.ran)


def _check(name: str, length: int, inputs: Inputs) -> Row:
    """Run a kernel once, which also warms it up, and say what ran, what it held, or why it did not run."""
    kernel, device = KERNELS[name], inputs[0].device
    try:
        with kernel.context(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            out = kernel.run(*inputs)
    except ImportError as error:
        return Row(name, length, reason=f"载入不了：{error}")
    except (RuntimeError, NotImplementedError, ValueError) as error:
        absent = "No viable backend" in str(error) or "No available kernel" in str(error)
        return Row(name, length, reason=f"{device.type.upper()} 上没有这个后端" if absent else told(error))
    ran = [event.key for event in seen.key_averages() if kernel.operator in event.key]
    if not ran:
        return Row(name, length, reason=f"实际运行的不是它（没有出现 {kernel.operator}）")
    q, k, v = inputs
    expected = naive(q[:, :, :256].double(), k.double(), v.double())
    gap = float((out[:, :, :256].double() - expected).abs().max())
    if gap > (2e-2 if q.dtype is torch.bfloat16 else 1e-4):
        return Row(name, length, reason=f"结果与公式相差 {gap:.1g}")
    return Row(name, length, bytes=_peak(kernel, inputs, seen), ran=ran[0])


def told(error: Exception, most: int = 240) -> str:
    """Return an error in one line: its first, and what it lists after "because:", each reason once.

    xFormers begins with what was asked and tells only below why each of its operators refuses.
    """
    first, *rest = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    start = next((i for i, line in enumerate(rest) if line.endswith("because:")), len(rest))
    reasons = dict.fromkeys(line for line in rest[start:] if not line.endswith("because:"))
    return "；".join([first.removesuffix(" with inputs:"), *reasons])[:most]


def _peak(kernel: Kernel, inputs: Inputs, seen: profile) -> float:
    """Return the most bytes that the kernel held beyond its inputs."""
    if inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with kernel.context():
            kernel.run(*inputs)
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]  # type: ignore[union-attr]
    return float(np.cumsum([0, *changes]).max())


def speeds_up(rows: Sequence[Row], name: str, length: int) -> str:
    """Judge the claim that a kernel speeds attention up, against :func:`naive` at one length.

    成立 where the quartiles lie apart and it is the faster, 不成立 where it is not; 证据不足 where one did not run,
    or the quartiles overlap.
    """
    at = {row.kernel: row for row in rows if row.length == length and not row.reason}
    if name not in at or NAIVE not in at:
        return "证据不足"
    mine, step = at[name], at[NAIVE]
    return "成立" if mine.high < step.low else "不成立" if mine.low > step.high else "证据不足"
