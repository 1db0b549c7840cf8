"""The two pieces of work that the five models are timed on: a training step and a forward pass."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers import build

MODES = ("fp32", "bf16", "bf16+compile")
AS_WRITTEN = "as written"  # of the original only: its own dropout and its own optimiser, float32


def training_step(name: str, mode: str, batch: int, device: torch.device) -> Callable[[], None]:
    """Return one step of a model on one fixed batch: forward, cross-entropy, backward, fused AdamW.

    The loop is the same for all; ``mode`` is one of MODES, or AS_WRITTEN with the original.
    """
    model, images = _prepare(f"{name} as written" if mode == AS_WRITTEN else name, batch, device)
    labels = torch.randint(10, (batch,), device=device)
    if mode == AS_WRITTEN:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = _forward(model.train(), mode)

    def step() -> None:
        with _cast(mode, device):
            logits = forward(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def inference(name: str, mode: str, batch: int, device: torch.device) -> Callable[[], Any]:
    """Return the forward pass of a model in evaluation mode on one fixed batch."""
    model, images = _prepare(name, batch, device)
    forward = _forward(model.eval(), mode)

    def run() -> torch.Tensor:
        with torch.inference_mode(), _cast(mode, device):
            return forward(images)

    return run


WORK: dict[str, Callable[[str, str, int, torch.device], Callable[[], Any]]] = {
    "train": training_step,
    "infer": inference,
}


def _prepare(name: str, batch: int, device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return build(name).to(device), torch.rand(batch, 3, 32, 32, device=device) * 2 - 1


def _forward(model: nn.Module, mode: str) -> Callable[..., Any]:
    # each model's graph is its own: what one has specialised must not count against the next
    return torch.compile(model, dynamic=False) if mode.endswith("compile") else model


def _cast(mode: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mode.startswith("bf16"))
