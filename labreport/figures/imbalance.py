"""Figures of section 2.2. See ``labreport.figures.plots`` for what all figures share."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from labreport import metrics
from labreport.figures.pictures import WIDTH
from labreport.figures.plots import MARKERS, _legend_below, _palette
from labreport.stats import FEWEST_SEEDS, Comparison

if TYPE_CHECKING:
    from vitlib.record import Run

BY_SIZE = "类别与图像数 / 张（由多到少，含留作验证的一成）"  # for runs of the study protocol


def shares(by_model: "Mapping[str, Mapping[str, Comparison]]") -> Figure:
    """Shapley values in percentage points, a panel a model and a row a remedy; intervals from three seeds on."""
    rows = max(map(len, by_model.values()))
    fig, axes = plt.subplots(
        1, len(by_model), figsize=(WIDTH, 0.4 * rows + 1.1), layout="constrained", squeeze=False, sharex=True
    )
    colour = sns.color_palette("colorblind")[0]
    for ax, (title, values) in zip(axes[0], by_model.items(), strict=True):
        for row, value in enumerate(values.values()):
            half = value.high - value.difference if min(value.seeds) >= FEWEST_SEEDS else 0
            ax.errorbar(100 * value.difference, row, xerr=100 * half, fmt="D", color=colour, markersize=4, capsize=3)
        ax.axvline(0, color="0.6", linewidth=0.8)
        ax.set_yticks(range(len(values)), list(values))
        ax.set(title=title, xlabel="份额 / 百分点", ylim=(len(values) - 0.4, -0.6))
        ax.grid(False, axis="y")
    return fig


def reliability(runs_by_label: "Mapping[str, Sequence[Run]]") -> Figure:
    """Accuracy against confidence, by bins of the answers of all seeds together; a bin of few answers is left out."""
    fig, ax = plt.subplots(figsize=(0.6 * WIDTH, 3.6), layout="constrained")
    ax.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, linestyle=":", label="完全校准")
    colours = _palette(runs_by_label)
    for (label, runs), marker in zip(runs_by_label.items(), MARKERS, strict=False):
        labels, predicted, sure = (
            np.concatenate([getattr(run, name) for run in runs]) for name in ("labels", "predicted", "confidence")
        )
        bins = metrics.reliability(labels, predicted, sure)
        enough = bins["images"] >= max(5, len(labels) // 500)
        ax.plot(
            100 * bins["confidence"][enough], 100 * bins["accuracy"][enough], marker=marker, markersize=4,
            color=colours[label], label=label,
        )  # fmt: skip
    ax.set(xlabel="置信度 / %", ylabel="准确率 / %", aspect="equal", xlim=(0, 102), ylim=(0, 102))
    _legend_below(fig, [ax])
    return fig


def likeness(curves: "Mapping[str, Mapping[str, Sequence[float]]]") -> Figure:
    """Mean cosine of two patches' features against the difference of their pixels, a line a label.

    ``curves``: as :func:`labreport.analysis.mechanism.in_bins` returns them.
    """
    fig, ax = plt.subplots(figsize=(0.75 * WIDTH, 3.0), layout="constrained")
    for (label, curve), marker, colour in zip(curves.items(), MARKERS, _palette(curves).values(), strict=False):
        ax.plot(curve["apart"], curve["cosine"], marker=marker, markersize=4, color=colour, label=label)
    ax.set(xlabel="两个图像块的像素之差（均方根）", ylabel="特征夹角的余弦")
    _legend_below(fig, [ax])
    return fig


def doses(accuracy: "Mapping[str, Mapping[str, Sequence[float]]]") -> Figure:
    """Accuracy in percent against the dose of augmentation: a line of means a set of images, a small point a seed.

    ``accuracy``: set of images to dose, weakest first, to the accuracies (0-1) of its seeds.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
    for (label, by_dose), marker, colour in zip(accuracy.items(), MARKERS, _palette(accuracy).values(), strict=False):
        means = [100 * np.mean(values) for values in by_dose.values()]
        ax.plot(means, color=colour, marker=marker, markersize=5, label=label)
        for place, values in enumerate(by_dose.values()):
            ax.plot([place] * len(values), 100 * np.asarray(values), marker, color=colour, markersize=3, alpha=0.6)
        ax.set_xticks(range(len(by_dose)), [dose.replace("（", "\n（") for dose in by_dose])
    ax.set(xlabel="数据增强（由弱到强）", ylabel="准确率 / %")
    _legend_below(fig, [ax])
    return fig


def by_class(values: Mapping[str, np.ndarray], names: Sequence[str], sizes: np.ndarray, axis: str) -> Figure:
    """One value a class and label on an axis from zero, classes by falling number of images, ``BY_SIZE``."""
    fig, ax = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
    order = np.argsort(-sizes, kind="stable")
    for (label, value), marker, colour in zip(values.items(), MARKERS, _palette(values).values(), strict=False):
        ax.plot(np.asarray(value)[order], marker=marker, markersize=4, color=colour, label=label, linewidth=1)
    ax.set_xticks(range(len(order)), [f"{names[c]}\n{sizes[c]:,}" for c in order])
    ax.set(xlabel=BY_SIZE, ylabel=axis)
    ax.set_ylim(bottom=0)
    _legend_below(fig, [ax])
    return fig


Points = Mapping[str, Collection[tuple[str, float]]]  # a source to some of its points: method and factor


def against_factor(panels: "Mapping[str, pd.DataFrame]", base: str, few: Points, fallen: Points) -> Figure:
    """Accuracy in percent against the imbalance factor: a column a source, and a row for every six methods.

    Each frame has the methods as its index and the factors (numbers) as its columns; NaN where there is none. ``base``
    is drawn in every panel, nearly black; any other method stands in one row, in a colour of its own. The points that
    ``few`` names, of too few seeds, are hollow; those that ``fallen`` names, of collapsed runs, are crosses.
    """
    labels = list(dict.fromkeys(label for frame in panels.values() for label in frame.index if label != base))
    factors = sorted({float(factor) for frame in panels.values() for factor in frame.columns})
    size = math.ceil(len(labels) / max(1, math.ceil(len(labels) / 6)))
    rows = [labels[at : at + size] for at in range(0, len(labels), max(1, size))] or [[]]
    palette = [*sns.color_palette("colorblind"), *sns.color_palette("dark")]
    colours: dict[str, Any] = {base: (0.15, 0.15, 0.15)} | dict(zip(labels, palette, strict=False))
    others = MARKERS.replace("o", "").replace("X", "")  # the base's own, and one too like the cross
    marks = {base: "o"} | dict(zip(labels, others, strict=False))
    fig, axes = plt.subplots(
        len(rows), len(panels), figsize=(WIDTH, 0.5 + 2.1 * len(rows)), layout="constrained", squeeze=False,
        sharex=True, sharey="col",
    )  # fmt: skip
    for place, (row, members) in enumerate(zip(axes, rows, strict=True)):
        for ax, (title, frame) in zip(row, panels.items(), strict=True):
            mine = frame.loc[[label for label in (base, *members) if label in frame.index]]
            # points of a single factor would hide one another: they stand side by side about it
            beside = np.geomspace(0.8, 1.25, len(mine)) if mine.notna().any().sum() == 1 else np.ones(len(mine))
            for (name, values), shift in zip(mine.iterrows(), beside, strict=True):
                known, label = values.dropna(), str(name)
                at, colour = shift * known.index.to_numpy(float), colours[label]
                ax.plot(at, known.to_numpy(float), color=colour, label=label)
                for x, y, factor in zip(at, known, known.index, strict=True):
                    cross = (label, factor) in fallen.get(title, ())
                    hollow = not cross and (label, factor) in few.get(title, ())
                    look: dict[str, Any] = {"markerfacecolor": "white"} if hollow else {}
                    ax.plot(x, y, "x" if cross else marks[label], color=colour, markersize=6 if cross else 4, **look)
            ax.set(xscale="log", xlim=(min(factors) / 1.4, max(factors) * 1.4), title="" if place else title)
            ax.set_xticks(factors, [f"{factor:g}" for factor in factors])
            ax.minorticks_off()
        row[0].set_ylabel("测试准确率 / %")
        keys = [
            Line2D([], [], color=colours[label], marker=marks[label], markersize=4, label=label)
            for label in (base, *members)
            if any(label in frame.index for frame in panels.values())
        ]
        row[-1].legend(handles=keys, loc="center left", bbox_to_anchor=(1, 0.5))
    for ax in axes[-1]:
        ax.set_xlabel("不平衡因子")
    return fig
