"""Figures of section 2.3. See ``labreport.figures.plots`` for what all figures share; accuracies are given as fractions."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labreport import stats
from labreport.figures.pictures import WIDTH
from labreport.figures.plots import MARKERS, _legend_below, _palette, front

COLUMNS = {"flops": "MFLOPs", "latency": "推理 / （毫秒 / 张）", "memory": "训练内存 / MiB"}


def costs(points: pd.DataFrame, images: int) -> Figure:
    """Accuracy on so many test images against each cost, a row a knob: mean over seeds and 95 % interval of
    ``stats.summary`` from three seeds on, else hollow.

    ``points``: a row a setting with the columns ``knob``, ``value`` (written beside the point), ``accuracies``
    (a list, one a seed) and the numbers in ``COLUMNS``. Settings of a knob are joined in their order.
    """
    titles = list(dict.fromkeys(points["knob"]))
    fig, axes = plt.subplots(
        len(titles), len(COLUMNS), figsize=(WIDTH, 1.25 * len(titles) + 0.4), layout="constrained",
        squeeze=False, sharey=True, sharex="col",
    )  # fmt: skip
    apart = 100 * np.ptp([np.mean(group) for group in points["accuracies"]]) / 4  # names closer than this would meet
    for row, (title, colour, marker) in enumerate(zip(titles, _palette(titles).values(), MARKERS, strict=False)):
        own = points[points["knob"] == title]
        mean, half = _intervals(own["accuracies"], images)
        few = np.array([len(group) < stats.FEWEST_SEEDS for group in own["accuracies"]])
        reach = max(np.ptp(mean), apart * (len(mean) - 1)) / 2
        for ax, column in zip(axes[row], COLUMNS, strict=True):
            ax.errorbar(own[column], mean, yerr=half, color=colour, marker=marker, markersize=4, capsize=2, linewidth=1)
            ax.plot(own[column][few], mean[few], marker, color=colour, markersize=4, markerfacecolor="white", zorder=3)
            ax.set_xscale("log")
            ax.margins(x=0.15, y=0.25)
            if own[column].max() < 1.5 * own[column].min() and len(own) > 2:  # too near for names: a list beside them
                spread = (mean.max() + mean.min()) / 2 + reach * np.linspace(-1, 1, len(mean))
                for x, y, at, value in zip(
                    own[column], mean, spread[mean.argsort().argsort()], own["value"], strict=True
                ):
                    ax.plot([x, 1.2 * own[column].max()], [y, at], color="0.6", linewidth=0.4, zorder=0)
                    ax.text(1.25 * own[column].max(), at, f"{value}", fontsize=7, va="center")
                continue
            for x, y, value in zip(own[column], mean, own["value"], strict=True):
                ax.annotate(f"{value}", (x, y), (3, 4), textcoords="offset points", fontsize=7)
        axes[row, 0].set_ylabel("准确率 / %")
        axes[row, 0].set_title(title, loc="left", fontsize=8)
    for ax, name in zip(axes[-1], COLUMNS.values(), strict=True):
        ax.set_xlabel(name)
        _few_ticks(ax)
    return fig


def joint(points: pd.DataFrame, images: int) -> Figure:
    """Accuracy against MFLOPs of all settings, a colour a knob; those on the front bear their names.

    ``points``: as for :func:`costs`, each setting once, with the column ``label``, the baseline first: it lies on top,
    and settings that cost the same stand beside it in turn. A setting is on the front when none as cheap is as good.
    Bars are 95 % intervals, from three seeds on; a setting of fewer is hollow.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.9), layout="constrained")
    mean, half = _intervals(points["accuracies"], images)
    turn = points.groupby(points["flops"].map("{:.1e}".format)).cumcount()  # 0, 1, 2, 3, 4 stand at 0, 1, -1, 2, -2
    points = points.assign(percent=mean, at=points["flops"] * 1.035 ** ((turn + 1) // 2 * (-1) ** (turn + 1)))
    ax.errorbar(points["at"], mean, yerr=half, fmt="none", ecolor="0.75", linewidth=0.8, zorder=0)
    knobs = list(dict.fromkeys(points["knob"]))
    sns.scatterplot(
        points[::-1], x="at", y="percent", hue="knob", style="knob", hue_order=knobs, style_order=knobs,
        palette=_palette(knobs), markers=list(MARKERS[: len(knobs)]), s=40, ax=ax,
    )  # fmt: skip
    for _, few in points[[len(group) < stats.FEWEST_SEEDS for group in points["accuracies"]]].iterrows():
        colour, marker = _palette(knobs)[few["knob"]], MARKERS[knobs.index(few["knob"])]
        ax.scatter(few["at"], few["percent"], s=40, marker=marker, facecolor="white", edgecolor=colour, zorder=3)
    best = front(points, "flops", "percent")
    ax.step(best["at"], best["percent"], where="post", color="0.7", linewidth=1, label="前沿", zorder=1)
    for left, (_, point) in enumerate(best.iterrows(), start=1 - len(best)):  # beside the bar, above the front
        ax.annotate(
            point["label"], (point["at"], point["percent"]), (5, 3) if left or len(best) == 1 else (-6, 3),
            textcoords="offset points", ha="left" if left or len(best) == 1 else "right", fontsize=7,
        )  # fmt: skip
    ax.set(xlabel="一张图像的 MFLOPs", ylabel="测试准确率 / %", xscale="log")
    ax.margins(x=0.12, y=0.12)
    _few_ticks(ax)
    _legend_below(fig, [ax])
    return fig


def beside_printed(settings: Mapping[str, tuple[float, Sequence[float]]], more: Sequence[float] = ()) -> Figure:
    """The original's settings: what its plots show (percent) as hollow squares, our seeds (0-1) as dots with the mean.

    settings: label to the number read off and our accuracies. more: accuracies of one configuration at its full
    length, drawn as lines across the figure, the scatter in which single runs lie.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 0.27 * len(settings) + 1.2), layout="constrained")
    printed, ours = sns.color_palette("colorblind")[3], sns.color_palette("colorblind")[0]
    for row, (said, own) in enumerate(settings.values()):
        ax.plot(said, row, "s", color=printed, markerfacecolor="none", label="旧报告" if row == 0 else None)
        values = 100 * np.asarray(own)
        ax.plot(values, [row] * len(values), "|k", markersize=7, zorder=4, label="各种子" if row == 0 else None)
        ax.plot(values.mean(), row, "D", color=ours, markersize=6, label="本项目（均值）" if row == 0 else None)
    for i, accuracy in enumerate(more):
        label = "默认设置的各种子，完整轮数" if i == 0 else None
        ax.axvline(100 * accuracy, color="0.7", linewidth=0.9, linestyle="--", zorder=0, label=label)
    ax.set_yticks(range(len(settings)), list(settings))
    ax.set(xlabel="测试准确率 / %", ylim=(len(settings) - 0.5, -0.5))
    ax.grid(False, axis="y")
    _legend_below(fig, [ax])
    return fig


def lines(panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], images: int) -> Figure:
    """Accuracy against a knob's value, a panel a knob and a line a model; intervals from three seeds on, else hollow.

    panels: name of the axis to label of the line to accuracies (one a seed) by value.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.7), layout="constrained", squeeze=False, sharey=True)
    names = list(dict.fromkeys(label for lines_of in panels.values() for label in lines_of))
    palette = _palette(names)
    for ax, (title, lines_of) in zip(axes[0], panels.items(), strict=True):
        for label, by_value in lines_of.items():
            mean, half = _intervals(by_value.values(), images)
            at, few = (
                np.array(list(by_value)),
                np.array([len(group) < stats.FEWEST_SEEDS for group in by_value.values()]),
            )
            colour, marker = palette[label], MARKERS[names.index(label)]
            ax.errorbar(at, mean, yerr=half, color=colour, marker=marker, capsize=3, label=label)
            ax.plot(at[few], mean[few], marker, color=colour, markerfacecolor="white", zorder=3)
        ticks = sorted({value for by_value in lines_of.values() for value in by_value})
        ax.set(xscale="log", xlabel=title)
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
    axes[0, 0].set_ylabel("测试准确率 / %")
    _legend_below(fig, [axes[0, 0]])
    return fig


def distances(far: Any, even: float) -> Figure:
    """Mean attention distance of each head by block, (L, h) in pixels; ``even`` is that of even attention."""
    fig, ax = plt.subplots(figsize=(0.75 * WIDTH, 2.6), layout="constrained")
    array = np.asarray(far)
    block = np.arange(1, 1 + len(array))
    ax.plot(np.repeat(block, array.shape[1]), array.ravel(), "o", color="0.55", markersize=4, label="一个头")
    ax.plot(block, array.mean(axis=1), marker="D", markersize=5, label="各头的均值")
    ax.axhline(even, color="0.3", linestyle="--", linewidth=1, label="均匀的注意力")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="Transformer 块", ylabel="平均注意距离 / 像素")
    _legend_below(fig, [ax])
    return fig


def importance(heads: Any, blocks: Any, heads_errors: Any, blocks_errors: Any) -> Figure:
    """What removal costs in percentage points: heads (L, h) as a map, blocks (L,) as bars with twice their errors.

    The errors have the shapes of what they belong to. The map's colours reach to four standard errors at least, so
    that noise stays pale: red where the accuracy falls, blue where it rises.
    """
    heads, blocks = 100 * np.asarray(heads), 100 * np.asarray(blocks)
    names = [f"块 {i + 1}" for i in range(len(blocks))]
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 0.27 * len(blocks) + 1.0), layout="constrained", width_ratios=(7, 4)
    )
    limit = max(1.0, float(np.abs(heads).max()), 400 * float(np.asarray(heads_errors).max()))
    written = [[f"{round(value, 1) + 0:.1f}".replace("-", "−") for value in row] for row in heads]
    sns.heatmap(
        heads, ax=left, cmap="vlag", vmin=-limit, vmax=limit, annot=written if heads.shape[1] <= 8 else False, fmt="",
        annot_kws={"size": 7}, yticklabels=names, xticklabels=[f"头 {i + 1}" for i in range(heads.shape[1])],
    )  # fmt: skip
    left.set_title("去掉一个头的下降 / 百分点")
    left.tick_params(length=0)
    left.set_yticklabels(names, rotation=0)
    spread = 200 * np.asarray(blocks_errors)
    right.barh(
        range(len(blocks)), blocks, xerr=spread, ecolor="0.4", capsize=2, color=sns.color_palette("colorblind")[0]
    )
    right.set_yticks(range(len(blocks)), names)
    right.set(title="去掉一块的下降 / 百分点", ylim=(len(blocks) - 0.5, -0.5))
    right.grid(False, axis="y")
    return fig


def likeness(cka: Any, similarity: Any) -> Figure:
    """Likeness of blocks' representations, (L, L) in 0-1, and of the tokens within each block, (L,) cosines."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6), layout="constrained")
    number = range(1, 1 + len(similarity))
    sns.heatmap(
        np.asarray(cka), ax=left, cmap="viridis", vmin=0, vmax=1, square=True, annot=len(similarity) <= 8,
        fmt=".2f", annot_kws={"size": 6.5}, xticklabels=number, yticklabels=number, cbar=len(similarity) > 8,
    )  # fmt: skip
    left.tick_params(length=0)
    left.set(title="两块输出的 CKA", xlabel="Transformer 块", ylabel="Transformer 块")
    right.plot(number, np.asarray(similarity), marker="o", markersize=4)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(title="词元间的平均余弦", xlabel="Transformer 块", ylim=(min(0, *np.asarray(similarity)) - 0.05, 1.05))
    return fig


def repeats(strips: Mapping[str, Sequence[float]], mark: float, name: str) -> Figure:
    """How far single trainings lie from their recipe's mean, in percentage points: a row a recipe, a point a training.

    ``mark``: one more value in the first row, a diamond that the legend calls ``name``.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 0.25 * len(strips) + 1.0), layout="constrained")
    for row, values in enumerate(strips.values()):
        heights = row + np.linspace(-0.15, 0.15, len(values))  # equal values stay two points
        ax.plot(values, heights, "o", color="0.35", markersize=4, label="" if row else "一次训练")
    ax.plot([mark], [0], "D", color=sns.color_palette("colorblind")[1], markersize=6, label=name)
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_yticks(range(len(strips)), list(strips))
    ax.set(xlabel="与自己的均值之差 / 百分点", ylim=(len(strips) - 0.4, -0.6))
    ax.grid(False, axis="y")
    _legend_below(fig, [ax])
    return fig


def places(similarity: Any) -> Figure:
    """Cosines between positions, (G*G, G*G): a small G x G map for each place, laid out like the places."""
    grid = round(len(similarity) ** 0.5)
    tiles = np.full((grid * (grid + 1) - 1,) * 2, np.nan)
    maps = rearrange(np.asarray(similarity), "(y x) (v u) -> y x v u", y=grid, v=grid)
    for y, x in np.ndindex(grid, grid):
        tiles[y * (grid + 1) :, x * (grid + 1) :][:grid, :grid] = maps[y, x]
    fig, ax = plt.subplots(figsize=(0.62 * WIDTH, 0.52 * WIDTH), layout="constrained")
    limit = float(np.nanmax(np.abs(np.where(tiles < 0.999, tiles, 0)))) or 1.0
    shade = ax.imshow(tiles, cmap="vlag", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    fig.colorbar(shade, ax=ax, label="余弦", shrink=0.85)
    return fig


def _intervals(groups: Any, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Means, and half widths of the 95 % intervals (0 under three seeds), in percent, of accuracies by setting."""
    summaries = [stats.summary(group, images=images) for group in groups]
    half = [each.high - each.mean if each.n >= stats.FEWEST_SEEDS else 0.0 for each in summaries]
    return 100 * np.array([each.mean for each in summaries]), 100 * np.array(half)


def _few_ticks(ax: Any) -> None:
    """Plain numbers on a logarithmic axis, few enough not to meet."""
    low, high = ax.get_xlim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 30 else (1, 3) if high / low < 100 else (1,)
    ticks = [round(step * power, 6) for power in powers for step in steps if low <= step * power <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
