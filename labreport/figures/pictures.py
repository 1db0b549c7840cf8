"""Figures made of images: grids, predictions, attention maps and patch-embedding filters.

Images are uint8 (N, 3, H, W), tensors or arrays, as ``vitlib.data`` gives them.
"""

import io
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from vitlib.errors import UserError

WIDTH = 5.8  # inches, the text width of the report


def image_grid(images: Any, titles: Sequence[str] | None = None, columns: int = 10) -> Figure:
    """Images in rows of ``columns``, each with an optional short title. Raises UserError for a wrong shape."""
    pixels = _pixels(images)
    columns = min(columns, len(pixels))
    fig, axes = _grid(pixels, columns, lines=0 if titles is None else 1)
    for ax, image, title in zip(axes, pixels, titles or [""] * len(pixels), strict=True):
        ax.imshow(image, interpolation="nearest")
        if title:
            ax.set_title(shorten(title, _room(fig, columns)), fontsize=7.5, pad=2)
    return fig


def predictions(
    images: Any,
    labels: Sequence[int],
    predicted: Sequence[int],
    confidence: Sequence[float],
    class_names: Sequence[str],
    columns: int = 6,
) -> Figure:
    """Images with predicted class and confidence: ✓ and a solid frame when right, ✗ and a dashed one when not.

    ``confidence`` is 0-1. All sequences belong to ``images``, one entry each.
    """
    pixels = _pixels(images)
    columns = min(columns, len(pixels))
    fig, axes = _grid(pixels, columns, lines=2)
    right_colour, wrong_colour = sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[3]
    room = _room(fig, columns)
    for ax, image, true, guess, sure in zip(axes, pixels, labels, predicted, confidence, strict=True):
        right = int(true) == int(guess)
        ax.imshow(image, interpolation="nearest")
        for spine in ax.spines.values():
            spine.set(visible=True, linewidth=2, color=right_colour if right else wrong_colour)
            spine.set_linestyle("solid" if right else (0, (2, 1.5)))
        title = f"{'✓' if right else '✗'} {shorten(class_names[int(guess)], room - 8)} {100 * sure:.0f} %"
        title += "" if right else f"\n真实：{shorten(class_names[int(true)], room - 6)}"
        ax.set_title(title, fontsize=7.5, pad=4)
    return fig


def attention(images: Any, maps: Any, titles: Sequence[str] | None = None) -> Figure:
    """Attention over each image: one row an image, first the image itself, then one column a map.

    images: uint8 (3, H, W) or (N, 3, H, W). maps: (M, g, g) or (N, M, g, g), or with the g * g patches in one
    axis; not negative. Each map is scaled to its own maximum. titles: one for each of the M columns.
    """
    pixels, heat = _pixels(images), np.asarray(maps, dtype=float)
    side = math.isqrt(heat.shape[-1])
    if heat.ndim < 2 or (heat.shape[-1] != heat.shape[-2] and side**2 != heat.shape[-1]):
        raise UserError(f"注意力图的形状 {heat.shape} 不是 g × g 的网格：请去掉类别词元等非图像块的词元。")
    grid = heat.shape[-1] if heat.shape[-1] == heat.shape[-2] else side
    coarse = torch.from_numpy(heat.reshape(len(pixels), -1, grid, grid))
    heat = F.interpolate(coarse, size=pixels.shape[1:3]).numpy()  # each patch in one shade: it has one value
    columns = heat.shape[1] + 1
    size = min(1.1, (WIDTH - 0.9) / columns)
    shape = (columns * size + 0.9, len(pixels) * size + 0.25)
    fig, axes = plt.subplots(len(pixels), columns, figsize=shape, layout=_tight(), squeeze=False)
    for row, image, maps_of_image in zip(axes, pixels, heat, strict=True):
        row[0].imshow(image, interpolation="nearest")
        for ax, one in zip(row[1:], maps_of_image, strict=True):
            ax.imshow(image.mean(axis=2), cmap="gray", interpolation="nearest")
            shade = ax.imshow(
                one / max(one.max(), 1e-12), alpha=0.65, cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
            )
    for ax, title in zip(axes[0], ["图像", *(titles or [""] * heat.shape[1])], strict=True):
        ax.set_title(title, fontsize=7.5, pad=2)
    for ax in axes.flat:
        _bare(ax)
    fig.colorbar(shade, ax=axes, shrink=0.9, aspect=25, ticks=[0, 0.5, 1], label="相对注意力")
    return fig


def filters(weight: Any, most: int = 64, columns: int = 16) -> Figure:
    """Filters of a patch embedding, weight (D, 3, p, p): the ``most`` of largest norm, in falling order.

    Grey is zero; each filter is scaled by its own largest weight.
    """
    values = np.asarray(weight.detach().cpu() if hasattr(weight, "detach") else weight, dtype=float)
    if values.ndim != 4 or values.shape[1] != 3:
        raise UserError(f"图像块嵌入的权重形状应为 (D, 3, p, p)，而得到 {values.shape}。")
    order = np.argsort(-np.linalg.norm(values.reshape(len(values), -1), axis=1))[:most]
    largest = np.abs(values[order]).max(axis=(1, 2, 3), keepdims=True)
    return image_grid(
        np.rint(127.5 + 127.5 * values[order] / np.maximum(largest, 1e-12)).astype(np.uint8), columns=columns
    )


def merged_patches(images: Any, groups: Any, scale: int = 4) -> np.ndarray:
    """Repaint images so that one sees which patches were merged, for ``image_grid``.

    Each group of patches gets its mean colour, and white lines part it from others.

    Args:
        images: uint8 (N, 3, S, S).
        groups: whole numbers (N, G * G), row by row, S a multiple of G; equal numbers are one group.
        scale: how much larger the result is, so that the lines are thin.

    Returns: uint8 (N, 3, scale * S, scale * S).
    """
    array, groups = np.asarray(images), np.asarray(groups)
    grid = math.isqrt(groups.shape[-1])
    if array.shape[-1] % grid or grid**2 != groups.shape[-1] or len(groups) != len(array):
        raise UserError(f"分组的形状 {groups.shape} 与图像的形状 {array.shape} 不符：每个图像块须有一个组号。")
    patch = array.shape[-1] // grid
    canvas = np.empty((len(array), 3, scale * array.shape[-1], scale * array.shape[-1]), np.uint8)
    for painted, pixels, numbers in zip(canvas, array, groups.reshape(-1, grid, grid), strict=True):
        owner = np.kron(numbers, np.ones((patch, patch), int))
        means = [np.bincount(owner.flat, plane.flat) / np.maximum(np.bincount(owner.flat), 1) for plane in pixels]
        large = np.kron(owner, np.ones((scale, scale), int))
        painted[:] = np.rint(np.array(means)[:, large])
        painted[:, :, 1:][:, large[:, 1:] != large[:, :-1]] = 255
        painted[:, 1:][:, large[1:] != large[:-1]] = 255
    return canvas


def _pixels(images: Any) -> np.ndarray:
    """The images as (N, H, W, 3) for matplotlib."""
    array = np.asarray(images)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[1] != 3 or array.dtype != np.uint8 or len(array) == 0:
        raise UserError(f"图像应为 uint8 的 (N, 3, H, W) 数组，而得到 {array.dtype} 的 {array.shape}。")
    return array.transpose(0, 2, 3, 1)


def _grid(pixels: np.ndarray, columns: int, lines: int) -> tuple[Figure, list[Any]]:
    """Bare axes for each image in rows of ``columns``, with room for titles of ``lines`` lines."""
    rows = math.ceil(len(pixels) / columns)
    width = min(WIDTH, 1.1 * columns)
    height = width / columns * pixels.shape[1] / pixels.shape[2] + 0.14 * lines + 0.03
    shape = (width, rows * height)
    fig, axes = plt.subplots(rows, columns, figsize=shape, layout=_tight(), squeeze=False)
    for ax in axes.flat[len(pixels) :]:
        ax.remove()
    for ax in axes.flat[: len(pixels)]:
        _bare(ax)
    return fig, list(axes.flat[: len(pixels)])


def _room(fig: Figure, columns: int) -> int:
    """How many Latin letters of a title fit above one of ``columns`` images."""
    return int(fig.get_figwidth() / columns / 0.058)


def _tight() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)


def text_width(text: str) -> int:
    """Width in Latin letters; a Chinese character is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def shorten(text: str, room: int) -> str:
    """``text``, cut with an ellipsis where it is wider than ``room`` Latin letters."""
    if text_width(text) <= room:
        return text
    while text and text_width(text) >= room:
        text = text[:-1]
    return f"{text}…"


def _bare(ax: Any) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def few_colours(png: bytes) -> bytes:
    """Return the PNG of an opaque drawing with a palette of 256 colours: a third as large, and no eye tells them apart."""
    drawing = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    drawing.save(buffer := io.BytesIO(), "png", optimize=True)
    return buffer.getvalue()
