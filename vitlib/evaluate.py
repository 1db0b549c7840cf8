"""A model's answers on a set of images."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitlib.augment import to_float
from vitlib.device import autocast_dtype


def autocast(device: torch.device, precision: str = "auto") -> contextlib.AbstractContextManager:
    """Return bf16 autocast where the device is fast in bf16 and ``precision`` is ``auto``, else a null context."""
    dtype = autocast_dtype(device) if precision == "auto" else None
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


@torch.no_grad()
def predict(
    model: nn.Module | Callable[[Tensor], Tensor], images: Tensor, *, device: torch.device, normalize: str = "half",
    batch_size: int = 500, precision: str = "auto",
) -> Tensor:  # fmt: skip
    """Return float32 logits (N, K), on the CPU, of uint8 images (N, C, H, W).

    The model must be in evaluation mode already. ``normalize`` as in :func:`vitlib.augment.to_float`.
    """
    logits = []
    for batch in images.split(batch_size):
        with autocast(device, precision):
            logits.append(model(to_float(batch.to(device, non_blocking=True), normalize)).float())
    return torch.cat(logits).cpu()
