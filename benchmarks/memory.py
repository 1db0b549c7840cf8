"""The peak memory of a training step, in a process of its own: ``python -m benchmarks.memory MODEL MODE BATCH``."""

import subprocess
import sys
from pathlib import Path

from vitlib.device import pick

STATUS = Path("/proc/self/status")


def peak_bytes(name: str, mode: str, batch: int) -> int | None:
    """Return the bytes that three training steps need on top of what the process has before it builds the model.

    None where neither a GPU nor Linux counts them.
    """
    if pick().type != "cuda" and not STATUS.exists():
        return None
    command = [sys.executable, "-m", "benchmarks.memory", name, mode, str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return int(done.stdout.split()[-1])


def _measure(name: str, mode: str, batch: int) -> int:
    import torch

    from benchmarks.steps import training_step

    device = pick()
    before = 0 if device.type == "cuda" else _resident()
    step = training_step(name, mode, batch, device)
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident(peak=True) - before


def _resident(peak: bool = False) -> int:
    """Return the bytes of memory that the process has, or has had at most, as Linux counts them."""
    field = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field)) * 1024


if __name__ == "__main__":
    print(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))
