"""Figures of section 2.4: what lightening gains and costs, what becomes of the patches, the kernels of attention."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from labreport.analysis.kernels import Row
from labreport.figures.pictures import WIDTH
from labreport.figures.plots import MARKERS, _legend_below, _palette, front
from labreport.stats import spaced

NOTE = "面积为模型文件的大小，空心为基线与对照，橙色为 int8；\n箭头从浮点模型指向它的 int8 版本，形状不同的是同一个网络的不同训练，阶梯线为前沿"


def tradeoff(table: pd.DataFrame, baselines: Sequence[str] = ()) -> Figure:
    """Accuracy against latency, a panel a ``family``, each model a mark with its number and the area of its file.

    Columns of ``table``: ``label``, ``family``, ``accuracy`` (0-1), ``seconds``, ``bytes``, ``origin`` (the label of the
    model that it was quantised from, or ""). ``baselines`` are hollow. Models of just the same latency are one network
    trained in several ways, and have different shapes.
    """
    families = list(table.groupby("family", sort=False))
    size = (WIDTH, 2.3 * len(families) + 0.6)
    fig, axes = plt.subplots(len(families), 1, figsize=size, layout="constrained", sharex=True, squeeze=False)
    blue, orange = sns.color_palette("colorblind")[:2]
    panels = []
    for ax, (family, rows) in zip(axes.flat, families, strict=True):
        areas = (120 * rows["bytes"] / table["bytes"].max()).clip(lower=12.0)
        places = dict(zip(rows["label"], zip(1e3 * rows["seconds"], 100 * rows["accuracy"], strict=True), strict=True))
        shapes = rows.groupby("seconds").cumcount()
        arrows = [(places[row.origin], places[row.label]) for row in rows.itertuples() if row.origin in places]
        style = {"arrowstyle": "->", "color": orange, "linewidth": 0.8, "shrinkA": 5, "shrinkB": 5}
        for start, end in arrows:
            ax.annotate("", end, start, arrowprops=style)
        for number, (row, area, shape) in enumerate(zip(rows.itertuples(), areas, shapes, strict=True), start=1):
            colour = "0.3" if row.label in baselines else orange if row.origin else blue
            ax.scatter(
                *places[row.label], s=area, marker=MARKERS[shape], alpha=0.75, linewidths=1.4, edgecolor=colour,
                facecolor="none" if row.label in baselines else colour, label=f"{number} {row.label}",
                zorder=3 if row.label in baselines else 2,
            )  # fmt: skip
        best = front(rows, "seconds", "accuracy")
        ax.step(1e3 * best["seconds"], 100 * best["accuracy"], where="post", color="0.75", linewidth=1, zorder=0)
        ax.set(ylabel="测试准确率 / %", xscale="log")
        ax.margins(0.08, 0.15)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5, 7)))
        ax.xaxis.set_minor_formatter("{x:g}")
        legend = ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=spaced(f"{family}一组"))
        for handle in legend.legend_handles:
            handle.set_sizes([24])  # type: ignore[union-attr]
        panels.append((ax, np.array([*places.values()]), areas, arrows))
    axes[-1, 0].set_xlabel("批大小为 1 的延迟 / ms")
    fig.legend([], [], title=NOTE, loc="outside lower center")
    for panel in panels:
        _number(*panel)
    return fig


def shares(table: pd.DataFrame) -> Figure:
    """What models take of their baselines' operations and time: a row a model, a mark a measure, the baseline a line.

    Columns of ``table``: ``label``, ``measure``, ``share`` (1 is the baseline's), ``low`` and ``high``: its interval, NaN
    where there is none.
    """
    names = list(table["label"].unique())
    measures = list(table.groupby("measure", sort=False))
    fig, ax = plt.subplots(figsize=(WIDTH, 0.28 * len(names) + 1.2), layout="constrained")
    for i, (measure, rows) in enumerate(measures):
        ax.errorbar(
            100 * rows["share"], [names.index(label) + 0.24 * (i - (len(measures) - 1) / 2) for label in rows["label"]],
            xerr=[100 * (rows["share"] - rows["low"]), 100 * (rows["high"] - rows["share"])], label=measure,
            fmt=MARKERS[i], color=sns.color_palette("colorblind")[i], markersize=4, capsize=2, elinewidth=0.9,
        )  # fmt: skip
    ax.axvline(100, color="0.15", linewidth=1, zorder=0)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="占各自基线的比例 / %", ylim=(len(names) - 0.4, -0.6))
    ax.set_xlim(left=0)
    ax.grid(False, axis="y")
    _legend_below(fig, [ax], "竖线为基线，横线为逐轮配对的 95 % 区间")
    return fig


def _number(ax: Axes, points: np.ndarray, areas: Sequence[float], lines: Sequence[Any]) -> None:
    """Number points (n, 2) from 1, each beside its disc (``areas`` in square points) on the side with the most room.

    Where there is no room the number stands further off, and a thin line leads from it to the disc's middle. Numbers
    keep clear of the ``lines``, each from one point to another.
    """
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout decides where points come to lie

    def inked(at: Any) -> np.ndarray:
        return np.asarray(ax.transData.transform(at)) * 72 / ax.figure.dpi

    places, radii = inked(points), np.sqrt(np.array(areas) / math.pi)
    taken = list(zip(places, radii, strict=True))
    taken += [(spot, 1.0) for line in lines for spot in np.linspace(inked(line[0]), inked(line[1]), num=40)]
    turns = np.arange(1, 17, 2) * math.pi / 8
    for number, (point, place, radius) in enumerate(zip(points, places, radii, strict=True), start=1):
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
            str(number), point, side, textcoords="offset points", fontsize=7, ha="center", va="center",
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
