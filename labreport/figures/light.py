"""Figures of section 2.4: the trade-off in three measures, what becomes of the patches, the kernels of attention."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labreport.analysis.kernels import Row
from labreport.figures.pictures import WIDTH
from labreport.figures.plots import MARKERS, _legend_below, _palette


def tradeoff(table: pd.DataFrame, baselines: Sequence[str] = ()) -> Figure:
    """Accuracy against latency, each model a disc whose area is its file's size, with its number beside it.

    Columns of ``table``: ``label``, ``accuracy`` (0-1), ``seconds``, ``bytes``. ``baselines`` are hollow. The
    numbers stand in the legend.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    colours = _palette(table["label"])
    areas = (300 * table["bytes"] / table["bytes"].max()).clip(lower=12.0)
    columns = (table["label"], 1e3 * table["seconds"], 100 * table["accuracy"], areas)
    for number, (label, x, y, area) in enumerate(zip(*map(list, columns), strict=True), start=1):
        ax.scatter(
            x, y, s=area, alpha=0.75, linewidths=1.4, edgecolor=colours[label],
            facecolor="none" if label in baselines else colours[label], label=f"{number} {label}",
        )  # fmt: skip
    ranked = table.sort_values("seconds")
    best = ranked[ranked["accuracy"] > ranked["accuracy"].cummax().shift(fill_value=-np.inf)]
    ax.step(1e3 * best["seconds"], 100 * best["accuracy"], where="post", color="0.75", linewidth=1, zorder=0)
    ax.set(xlabel="批大小为 1 的延迟 / ms", ylabel="测试准确率 / %", xscale="log")
    ax.margins(0.08, 0.12)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    _legend_below(fig, [ax], "圆的面积为模型文件的大小，空心为基线与对照，阶梯线为前沿")
    for handle in fig.legends[0].legend_handles:
        handle.set_sizes([24])  # type: ignore[union-attr]
    _number(ax, *columns[1:])
    return fig


def two_costs(table: pd.DataFrame, baselines: Sequence[str] = ()) -> Figure:
    """Accuracy against what is computed, and beside it against how long that takes: the same models, numbered alike.

    Columns of ``table``: ``label``, ``accuracy`` (0-1), ``flops`` (NaN where unknown), ``seconds``. ``baselines`` are
    hollow. What stands further left in one panel than in the other saves operations that take no time.
    """
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained", sharey=True)
    colours = _palette(table["label"])
    panels = ((table["flops"] / 1e6, "MFLOPs"), (1e3 * table["seconds"], "批大小为 1 的延迟 / ms"))
    for ax, (costs, label) in zip(axes, panels, strict=True):
        rows = zip(table["label"], costs, 100 * table["accuracy"], strict=True)
        for number, (name, x, y) in enumerate(rows, start=1):
            ax.scatter(
                x, y, s=24, linewidths=1.4, edgecolor=colours[name], label=f"{number} {name}",
                facecolor="none" if name in baselines else colours[name],
            )  # fmt: skip
        ax.set(xlabel=label, xscale="log")
        ax.margins(0.1, 0.12)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("{x:g}")
        ax.tick_params(axis="x", which="minor", labelsize=6)
    axes[0].set_ylabel("测试准确率 / %")
    _legend_below(fig, list(axes), "空心为基线与对照")
    for ax, (costs, _) in zip(axes, panels, strict=True):
        _number(ax, costs, 100 * table["accuracy"], [24.0] * len(table))
    return fig


def _number(ax: Axes, across: pd.Series, up: pd.Series, areas: Sequence[float]) -> None:
    """Number the points from 1, each beside its disc (``areas`` in square points) on the side with the most room.

    Where there is no room the number stands further off, and a thin line leads from it to the disc's middle.
    """
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout decides where points come to lie
    places = ax.transData.transform(np.column_stack([across, up])) * 72 / ax.figure.dpi
    radii = np.sqrt(np.array(areas) / math.pi)
    taken = [(place, radius) for place, radius in zip(places, radii, strict=True) if np.isfinite(place).all()]
    turns = np.arange(1, 17, 2) * math.pi / 8
    for number, (x, y, place, radius) in enumerate(zip(across, up, places, radii, strict=True), start=1):
        if not np.isfinite(x):
            continue
        found = []  # (room, offset) of the best side at each distance
        for far in radius + np.array([6.0, 12.0, 20.0, 28.0]):
            sides = [(far * math.cos(turn), far * math.sin(turn)) for turn in turns]
            rooms = [min(math.dist(place + side, at) - size for at, size in taken) for side in sides]
            found.append((max(rooms), sides[int(np.argmax(rooms))]))
        step = next(
            (i for i, (room, _) in enumerate(found) if room >= 5.5), int(np.argmax([room for room, _ in found]))
        )
        side = found[step][1]
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.35", "shrinkA": 0, "shrinkB": 0} if step else None
        ax.annotate(
            str(number), (x, y), side, textcoords="offset points", fontsize=7, ha="center", va="center",
            arrowprops=line,
        )  # fmt: skip
        taken.append((place + side, 4.0))


def shaded_patches(images: np.ndarray, shares: np.ndarray, scale: int = 4) -> np.ndarray:
    """Repaint images so that a patch fades to white as its share (0-1) falls, for ``image_grid``.

    Args:
        images: uint8 (N, 3, S, S).
        shares: float (N, G * G), row by row, S a multiple of G; 1 leaves the patch as it is.

    Returns: uint8 (N, 3, scale * S, scale * S).
    """
    grid = math.isqrt(shares.shape[-1])
    patch = scale * images.shape[-1] // grid
    weight = np.kron(shares.reshape(-1, 1, grid, grid), np.ones((patch, patch)))
    large = np.kron(images, np.ones((scale, scale), np.uint8)).astype(float)
    return np.rint(255 - (255 - large) * (0.08 + 0.92 * weight)).astype(np.uint8)


def kernels(rows: Sequence[Row]) -> Figure:
    """Median time, shaded from quartile to quartile, and peak memory of each kernel against the sequence's length."""
    ran = pd.DataFrame(
        {"kernel": row.kernel, "length": row.length, "ms": 1e3 * row.seconds, "MiB": row.bytes / 2**20}
        | {"low": 1e3 * row.low, "high": 1e3 * row.high}
        for row in rows
        if not row.reason
    )
    names = list(ran["kernel"].unique())
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    for ax, column, label in zip(axes, ("ms", "MiB"), ("时间 / ms", "内存峰值 / MiB"), strict=True):
        sns.lineplot(
            ran, x="length", y=column, hue="kernel", style="kernel", palette=_palette(names),
            markers=list(MARKERS[: len(names)]), dashes=False, ax=ax,
        )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="词元数", ylabel=label)
        ticks = sorted(ran["length"].unique())
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.minorticks_off()
    for name, lines in ran.groupby("kernel"):
        axes[0].fill_between(lines["length"], lines["low"], lines["high"], color=_palette(names)[str(name)], alpha=0.25)
    _legend_below(fig, list(axes))
    return fig
