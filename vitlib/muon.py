"""Muon: the encoder's matrices learn by orthogonalised momentum, everything else by AdamW."""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vitlib.device import autocast_dtype

STEPS = 5
# of x -> a x + b x^3 + c x^5, which takes singular values in (0, 1] to about 0.7 to 1.2 in five rounds
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.AdamW):
    """Jordan et al. 2024 (kellerjordan.github.io/posts/muon), for matrices and convolutions; AdamW for the rest.

    A group with ``matrix`` set moves each weight by the nearest orthogonal matrix to its momentum, in place of the
    momentum itself: all directions of the weight learn equally fast. A convolution counts as the matrix
    (output channels, input channels x height x width). The length of the step is as in Liu et al. 2025
    (arXiv:2502.16982, equation 4), so that one learning rate serves both kinds of groups.
    """

    momentum = 0.95

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights; where ``found_inf`` is set, as ``torch.optim.AdamW(fused=True)`` has it, none."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrix"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            by_shape = sorted((p for p in group["params"] if group["matrix"] and p.grad is not None), key=_shape)
            for shape, alike in groupby(by_shape, key=_shape):
                self._move([*alike], shape, group["lr"], group["weight_decay"])
        return loss

    def _move(self, weights: list[Tensor], shape: tuple[int, int], rate: float, decay: float) -> None:
        """Update weights of one shape together: a few large operations instead of many small ones."""
        new = [weight for weight in weights if not self.state[weight]]  # AdamW wants a "step" in every state it loads
        self.state |= {weight: {"momentum": torch.zeros_like(weight), "step": torch.zeros(())} for weight in new}
        averages = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        now, average, gradient = (torch.stack([w.flatten(1) for w in each]) for each in (weights, averages, gradients))
        moved = average.lerp(gradient, 1 - self.momentum)
        direction = orthogonal(gradient.lerp(moved, self.momentum)) * 0.2 * max(shape) ** 0.5  # Nesterov's
        after = now - rate * (decay * now + direction)
        fine = getattr(self, "found_inf", torch.zeros((), device=now.device)) == 0
        for kept, then, before in ((weights, after, now), (averages, moved, average)):
            parts = torch.where(fine, then, before).unbind()
            torch._foreach_copy_(kept, [part.view_as(weight) for part, weight in zip(parts, kept, strict=True)])


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.numel() // weight.shape[0]


def orthogonal(matrices: Tensor) -> Tensor:
    """Return (n, r, c) with the singular vectors of ``matrices`` and singular values of about 1, by Newton and Schulz.

    In bfloat16 where the device computes in it, else in float32: a processor that only emulates it takes
    some two hundred and fifty times as long for the same products (benchmarks/NOTES.md).
    """
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(autocast_dtype(matrices.device) or torch.float32)
    for _ in range(STEPS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return (x.mT if matrices.shape[1] > matrices.shape[2] else x).to(matrices.dtype)
