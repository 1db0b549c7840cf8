"""TrivialAugment and RandAugment for a whole batch on the device: every image its own operations, no loop over images.

Müller & Hutter 2021 (arXiv:2103.10158, "wide" ranges) and Cubuk et al. 2020 (arXiv:1909.13719), with torchvision's
fourteen operations, 31 levels and nearest-neighbour sampling.

Letters: B images of a batch, C channels, S side.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

OPS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
LEVELS = 31
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's and torchvision's greyscale


class Ranges(NamedTuple):
    """What the highest level means: slope, share of the side, degrees, change of the factor 1, bits dropped."""

    shear: float
    shift: float
    rotate: float
    colour: float
    bits: int


TRIVIAL = Ranges(0.99, 1.0, 135.0, 0.99, 6)
RANDOM = Ranges(0.3, 150 / 331, 30.0, 0.9, 4)


def trivial(pixels: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Apply one operation at one level, both drawn for each image: float (B, C, S, S) in [0, 1] -> the same."""
    level = (draws["level1"] * LEVELS).long()
    return operate(pixels, (draws["op1"] * len(OPS)).long(), level, draws["sign1"] < 0.5, TRIVIAL)


def random(pixels: Tensor, draws: dict[str, Tensor], ops: int, magnitude: int) -> Tensor:
    """Apply ``ops`` (1 or 2) operations in turn at the level ``magnitude``: float (B, C, S, S) in [0, 1] -> the same."""
    for i in range(1, ops + 1):
        chosen = (draws[f"op{i}"] * len(OPS)).long()
        pixels = operate(pixels, chosen, torch.full_like(chosen, magnitude), draws[f"sign{i}"] < 0.5, RANDOM)
    return pixels


def operate(pixels: Tensor, op: Tensor, level: Tensor, negative: Tensor, ranges: Ranges) -> Tensor:
    """Apply to each image (B, C, S, S) in [0, 1] the operation OPS[op] at its level: op and level int64 (B,).

    ``negative`` (B,) turns the direction of the operations that have one.
    """
    size = level / (LEVELS - 1)
    signed = torch.where(negative, -size, size)
    return _tone(_colour(_move(pixels, op, signed, ranges), op, signed, ranges), op, level, ranges)


def _on(op: Tensor, name: str, values: Tensor) -> Tensor:
    """Return the values (B,) of the images with this operation, 0 for the others."""
    return torch.where(op == OPS.index(name), values, 0.0)


def _move(pixels: Tensor, op: Tensor, signed: Tensor, ranges: Ranges) -> Tensor:
    """Shear about the upper left corner, shift by whole pixels and rotate about the middle; black comes in."""
    side = pixels.shape[-1]
    shear_x, shear_y = (_on(op, name, ranges.shear * signed) for name in ("ShearX", "ShearY"))
    whole = (ranges.shift * side * signed).trunc() * 2 / side
    shift_x, shift_y = (_on(op, name, whole) for name in ("TranslateX", "TranslateY"))
    angle = torch.deg2rad(_on(op, "Rotate", ranges.rotate * signed))
    # where an output pixel comes from, in grid_sample's coordinates, in which a picture spans [-1, 1]
    across = torch.stack([angle.cos(), shear_x - angle.sin(), shear_x - shift_x], 1)
    down = torch.stack([shear_y + angle.sin(), angle.cos(), shear_y - shift_y], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _colour(pixels: Tensor, op: Tensor, signed: Tensor, ranges: Ranges) -> Tensor:
    """Move away from, or towards, a poorer picture: black, grey, uniform grey or blurred."""
    grey = (pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    kernel = pixels.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[None, None] / 13
    blurred = pixels.clone()
    blurred[:, :, 1:-1, 1:-1] = F.conv2d(pixels.flatten(0, 1)[:, None], kernel).view_as(pixels[:, :, 1:-1, 1:-1])
    poorer, factor = pixels, torch.ones_like(signed)
    for name, picture in (
        ("Brightness", torch.zeros_like(grey)),
        ("Color", grey),
        ("Contrast", grey.mean((2, 3), keepdim=True)),
        ("Sharpness", blurred),
    ):
        poorer = torch.where((op == OPS.index(name))[:, None, None, None], picture, poorer)
        factor = factor + _on(op, name, ranges.colour * signed)
    return torch.lerp(poorer, pixels, factor[:, None, None, None]).clamp(0, 1)


def _tone(pixels: Tensor, op: Tensor, level: Tensor, ranges: Ranges) -> Tensor:
    """Drop bits, invert what is bright, stretch each channel to the full range, or make its histogram flat."""
    values = (pixels * 255).round()
    coarse = 2 ** (level / ((LEVELS - 1) / ranges.bits)).round()[:, None, None, None]
    threshold = torch.linspace(255, 0, LEVELS, device=pixels.device)[level][:, None, None, None]
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    for name, picture in (
        ("Posterize", (values / coarse).floor() * coarse / 255),
        ("Solarize", torch.where(values >= threshold, 1 - pixels, pixels)),
        ("AutoContrast", torch.where(high > low, (pixels - low) / (high - low), pixels)),
        ("Equalize", _equalize(values)),
    ):
        pixels = torch.where((op == OPS.index(name))[:, None, None, None], picture, pixels)
    return pixels


def _equalize(values: Tensor) -> Tensor:
    """Equalise each channel's histogram as PIL does: whole numbers (B, C, S, S) in [0, 255] -> float in [0, 1]."""
    found = values.flatten(2).long()
    counts = torch.zeros(*found.shape[:2], 256, device=values.device).scatter_add_(
        2, found, torch.ones_like(values).flatten(2)
    )
    last = counts.gather(2, found.amax(2, keepdim=True))
    step = ((found.shape[2] - last) / 255).floor()
    table = ((counts.cumsum(2) - counts + (step / 2).floor()) / step.clamp_min(1)).floor().clamp(0, 255)
    return torch.where(step > 0, table.gather(2, found), found.float()).view_as(values) / 255
