"""Random boxes of a batch, resized by bilinear interpolation: torchvision's RandomResizedCrop for all images at once.

Letters: B images of a batch, C channels, H height, W width.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from vitlib.device import autocast_dtype


def resized_crop(
    images: Tensor,
    draws: dict[str, Tensor],
    limits: tuple[float, float, float, float],
    flip: bool,
    side: int | None = None,
) -> Tensor:
    """Cut a random box of whole pixels and resize it bilinearly to the full size, or to a square of this ``side``.

    Half of the images are mirrored where ``flip`` says so. images: uint8 or float (B, C, H, W) of values 0-255;
    returns the same values as float32, exact to 0.5 where :func:`_resizing_dtype` is bfloat16.
    """
    small, large, narrow, broad = limits
    channels, height, width = images.shape[1:]
    area = (small + (large - small) * draws["area"]) * height * width
    aspect = torch.exp(np.log(narrow) + (np.log(broad) - np.log(narrow)) * draws["aspect"])
    box_w = torch.sqrt(area * aspect).round().clamp(1, width)
    box_h = torch.sqrt(area / aspect).round().clamp(1, height)
    top = (draws["box_y"] * (height - box_h + 1)).floor()
    left = (draws["box_x"] * (width - box_w + 1)).floor()
    mirrored = draws["flip"] < 0.5 if flip else torch.zeros_like(left, dtype=torch.bool)
    dtype = _resizing_dtype(images.device, (height, width, side or height, side or width))
    columns = _weights(left, box_w, mirrored, width, side or width, dtype)
    top, box_h = (values.repeat_interleave(channels) for values in (top, box_h))
    rows = _weights(top, box_h, torch.zeros_like(top, dtype=torch.bool), height, side or height, dtype)
    # bilinear interpolation is separable; two matrix products take a third of the time of grid_sample on a processor
    centred = images.to(dtype) - 128  # half as large, so rounded half as much
    wide = torch.bmm(centred.flatten(1, 2), columns.transpose(1, 2))
    out = torch.bmm(rows, wide.unflatten(1, (channels, height)).flatten(0, 1))
    return out.float().add_(128).unflatten(0, (-1, channels))


def _resizing_dtype(device: torch.device, sides: tuple[int, ...]) -> torch.dtype:
    """Return bfloat16 where the device is fast in it and it holds the pixels and all weights exactly, else float32.

    The weights are multiples of 1/(2 side), so sides must be powers of two up to 64. What is left is the rounding of
    each of two passes by at most 1/4 of a grey level; PIL rounds each to whole levels.
    """
    exact = all(side & (side - 1) == 0 and side <= 64 for side in sides)
    return (autocast_dtype(device) if exact else None) or torch.float32


def _weights(first: Tensor, size: Tensor, mirrored: Tensor, pixels: int, out: int, dtype: torch.dtype) -> Tensor:
    """Return the weights (B, out, pixels) with which boxes of ``size`` pixels from ``first`` on, both (B,), become ``out``."""
    if pixels > 32:  # a table of all boxes would take too much room
        return _interpolation(first, size, mirrored, pixels, out).to(dtype)
    table = _interpolation_table(pixels, out, dtype, first.device)
    box = (((size - 1) * pixels + first) * 2 + mirrored).long()
    return table.index_select(0, box).unflatten(1, (out, pixels))


@functools.lru_cache(maxsize=4)
def _interpolation_table(pixels: int, out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the flat weights of every box, mirrored or not: (2 * pixels * pixels, out * pixels)."""
    numbers = torch.arange(pixels, dtype=torch.float32, device=device)
    size, first, mirrored = torch.cartesian_prod(numbers + 1, numbers, numbers[:2]).unbind(1)
    return _interpolation(first, size, mirrored > 0, pixels, out).to(dtype).flatten(1)


def _interpolation(first: Tensor, size: Tensor, mirrored: Tensor, pixels: int, out: int) -> Tensor:
    """Compute what :func:`_weights` looks up, in float32.

    What lies outside a box does not bleed in at its edge, as if the box had been cut out first.
    """
    centres = torch.arange(out, device=first.device) + 0.5
    places = (first - 0.5)[:, None] + centres * (size / out)[:, None]
    places = torch.maximum(torch.minimum(places, (first + size - 1)[:, None]), first[:, None])
    places = torch.where(mirrored[:, None], places.flip(1), places)
    return (1 - (places[:, :, None] - torch.arange(pixels, device=first.device)).abs()).clamp_(min=0)
