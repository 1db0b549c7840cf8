"""Which device to compute on and what it can do: CUDA, Apple's MPS or the CPU.

A GPU that is there but cannot be used is an error that names the remedy. It is never passed
over in silence, because a run that takes an hour instead of a minute is a bug for its reader.
"""

import ctypes
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from vitlib.errors import UserError

GO_ON = "确实要用 CPU，请设置环境变量 CIFAR_VIT_DEVICE=cpu 后重试"


def pick(name: str = "auto") -> torch.device:
    """Return the device to compute on.

    ``name`` is ``auto`` (CUDA, then MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    ``CIFAR_VIT_DEVICE`` decides where ``name`` is ``auto``.

    Raises:
        UserError: an unknown name, a device that is not there, or a GPU that is there but unusable.
    """
    chosen = (os.environ.get("CIFAR_VIT_DEVICE") or "auto") if name == "auto" else name
    try:
        device = None if chosen == "auto" else torch.device(chosen)
    except RuntimeError:
        device = torch.device("meta")
    if device is not None and device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"不认识的设备“{chosen}”：可选 auto、cpu、cuda、cuda:N、mps。")
    if device is None:
        if _cuda_is_usable(wanted=False):
            return torch.device("cuda")
        device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        _cuda_is_usable(wanted=True)
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(f"没有设备“{chosen}”：本机只有 {count} 块可用的 GPU，编号从 0 起。")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"本机没有可用的 MPS（需要 Apple 芯片和 macOS 14 以上）；{GO_ON}。")
    return device


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of handing each back to the system.

    Every step of training frees and asks for the same tensors; fetched anew, page by page, those of the
    original's head take a seventh of its step (benchmarks/NOTES.md). Elsewhere nothing happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _cuda_is_usable(wanted: bool) -> bool:
    """Whether CUDA computes here; a GPU that is present (or ``wanted``) but does not is a UserError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        # torch prefers cuDNN's attention on an H100; its bfloat16 gradients have been seen not finite (pytorch#196678)
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:  # an unsupported architecture or a busy GPU shows itself only in a first kernel
            (torch.zeros(1, device="cuda") + 1).item()
            return True
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"GPU 不能计算（{reason}）：PyTorch {torch.__version__} 可能不支持这块 GPU，或它正被占用；"
                f"请换一块 GPU 或换一个 PyTorch 版本。{GO_ON}。"
            ) from error
    if not wanted and not _nvidia_gpu_present():
        return False
    if not _nvidia_gpu_present():
        raise UserError(f"本机没有可用的 NVIDIA GPU；{GO_ON}。")
    if torch.version.cuda is None:
        raise UserError(
            f"检测到 NVIDIA GPU，但装的 PyTorch {torch.__version__} 是 CPU 版，用不上它："
            f"请按 https://pytorch.org 的说明安装 CUDA 版。{GO_ON}。"
        )
    said = next((f"（{str(w.message).splitlines()[0][:160]}）" for w in caught), "")
    raise UserError(
        f"检测到 NVIDIA GPU，但 PyTorch {torch.__version__}（CUDA {torch.version.cuda}）用不了它，"
        f"多半是显卡驱动太旧{said}：请把驱动更新到支持 CUDA {torch.version.cuda} 的版本。{GO_ON}。"
    )


def _nvidia_gpu_present() -> bool:
    """Whether this machine (or container) has been given an NVIDIA GPU that nobody hid on purpose.

    ``/proc/driver/nvidia`` is not asked: every container on a GPU host sees it, also one without a GPU.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return False
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    if not (smi := shutil.which("nvidia-smi")):  # Windows and WSL have no device nodes
        return False
    try:
        listed = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and listed.stdout.startswith("GPU ")


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype for autocast where the device computes in it natively, else None (stay in float32).

    bfloat16 on CUDA from compute capability 8.0 and on CPUs with AVX512_BF16 or AMX. Emulated
    bfloat16 is slower than float32, and on MPS nothing here has been proven, so both get None.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if device.type != "cpu":
        return None
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, so perhaps not in every version
    probes = (getattr(torch.cpu, name, None) for name in names)
    return torch.bfloat16 if any(probe() for probe in probes if probe) else None


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` can work on the device; if not, say why once, on standard error."""
    reason = _compile_obstacle(device.type)
    if reason:
        print(f"{reason}，改用即时（eager）模式：结果不变，只是慢一些。", file=sys.stderr)
    return reason is None


def _compile_obstacle(kind: str) -> str | None:
    if kind == "mps":
        return "在 MPS 上不使用 torch.compile"
    if kind == "cuda" and find_spec("triton") is None:
        return "没有 triton"
    variable, names = ("CC", ("cc", "gcc", "clang")) if kind == "cuda" else ("CXX", ("g++", "clang++", "cl"))
    if not any(shutil.which(name) for name in (os.environ.get(variable), *names) if name):
        return "没有找到 C++ 编译器（Debian/Ubuntu 上可用 apt-get install g++ 安装）"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "没有找到 Python.h（Debian/Ubuntu 上可用 apt-get install python3-dev 安装）"
    return None


def compiled(model: nn.Module) -> nn.Module:
    """Return the model, compiled for inputs of one shape; where that fails, torch warns and it runs as it is.

    Its random numbers are those of the model as it is, so that a step can be repeated without the compiler.
    """
    import torch._dynamo as dynamo
    import torch._inductor.config as inductor  # late: importing the compiler takes seconds

    torch.compiler.reset()  # what was compiled before must not count against the limit of recompilations
    inductor.fallback_random, dynamo.config.suppress_errors = True, True
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def describe(device: torch.device) -> dict[str, str | int]:
    """Return what a record keeps of the machine: device name, threads, versions, platform and training's dtype.

    Nothing that names a host or a user is in it.
    """
    own = f"{_cpu_name()}{' (MPS)' if device.type == 'mps' else ''}"
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else own,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "dtype": str(autocast_dtype(device) or torch.float32).removeprefix("torch."),
    }


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:(.*)$", file.read_text(errors="replace") if file.is_file() else "", re.M)
    return (named[1].strip() if named else "") or platform.processor() or platform.machine()
