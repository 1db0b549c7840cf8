"""The same attention by every kernel there is: time, memory, and proof of which kernel ran.

Letters in shapes: B images, h heads, N tokens, d width of a head.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One kernel at one length: median ``seconds``, ``bytes`` at the peak beyond inputs, the operator that ran.

    Where ``reason`` is set the kernel did not run, and there is no time.
    """

    kernel: str
    length: int
    seconds: float = float("nan")
    bytes: float = float("nan")
    ran: str = ""
    reason: str = ""


def packed(row: Row) -> dict[str, Any]:
    """Return the row's fields but those that are not a number."""
    return {name: value for name, value in asdict(row).items() if value == value}


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v as it is written, (B, h, N, d); the N x N weights are stored."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def _sdpa(backend: SDPBackend) -> Kernel:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


# By name for readers: how to run it, and a part of the operator's name that the profiler must then see.
KERNELS: dict[str, tuple[Kernel, str]] = {
    "逐步计算": (naive, "aten::softmax"),
    "SDPA math": (_sdpa(SDPBackend.MATH), "_scaled_dot_product_attention_math"),
    "SDPA flash": (_sdpa(SDPBackend.FLASH_ATTENTION), "_scaled_dot_product_flash_attention"),
    "SDPA efficient": (_sdpa(SDPBackend.EFFICIENT_ATTENTION), "_scaled_dot_product_efficient_attention"),
    "SDPA cuDNN": (_sdpa(SDPBackend.CUDNN_ATTENTION), "_scaled_dot_product_cudnn_attention"),
    "xFormers": (_xformers, "xformers"),
}


@torch.inference_mode()
def measure(
    name: str, length: int, device: torch.device, heads: int = 4, width: int = 64, batch: int = 1, rounds: int = 5
) -> Row:
    """Run one kernel on random queries, keys and values (B, h, N, d), float32 on a CPU, bfloat16 on CUDA.

    The result must equal :func:`naive` in float64 within the dtype's tolerance, on up to 256 queries, and the
    profiler must see the operator that the name promises: otherwise the row has a reason instead of a time.
    """
    run, operator = KERNELS[name]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, batch, heads, length, width, generator=source).to(device, dtype)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            out = run(q, k, v)
    except ImportError as error:
        return Row(name, length, reason=f"载入不了（{error}）")
    except (RuntimeError, NotImplementedError, ValueError) as error:
        absent = "No viable backend" in str(error) or "No available kernel" in str(error)
        why = f"{device.type.upper()} 上没有这个后端" if absent else str(error).strip().splitlines()[0][:120]
        return Row(name, length, reason=why)
    ran = [event.key for event in seen.key_averages() if operator in event.key]
    if not ran:
        return Row(name, length, reason=f"实际运行的不是它（没有出现 {operator}）")
    expected = naive(q[:, :, :256].double(), k.double(), v.double())
    gap = float((out[:, :, :256].double() - expected).abs().max())
    if gap > (2e-2 if dtype is torch.bfloat16 else 1e-4):
        return Row(name, length, reason=f"结果与公式相差 {gap:.1g}")
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run(q, k, v)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return Row(name, length, float(np.median(times)), _peak(run, (q, k, v), seen), ran[0])


def _peak(run: Kernel, inputs: tuple[Tensor, Tensor, Tensor], seen: profile) -> float:
    """Return the most bytes that the kernel held beyond its inputs."""
    if inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(*inputs)
        return float(torch.cuda.max_memory_allocated() - before)
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]  # type: ignore[union-attr]
    return float(np.cumsum([0, *changes]).max())
