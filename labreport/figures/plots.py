"""Figures of results, each returned as a matplotlib Figure for ``labreport.show.figure``.

Call ``labreport.show.use_chinese`` once before. Recipes differ in colour and in dash or marker, so that a figure
survives grey print and colour-blind eyes; legends stand outside the axes and never cover data.
``runs_by_label`` maps a label to the runs of one recipe, one a seed. Accuracies in runs are fractions, in
figures percent. Figures made of images come from ``labreport.figures.pictures``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from labreport import metrics, stats
from labreport.figures.pictures import WIDTH, attention, filters, image_grid, predictions, text_width
from vitlib.errors import UserError

if TYPE_CHECKING:
    from vitlib.data import Dataset
    from vitlib.record import Run

    Runs = Mapping[str, Sequence[Run]]

__all__ = [
    "accuracy_bars",
    "class_counts",
    "confusion",
    "confusion_difference",
    "curves",
    "per_class",
]
__all__ += ["attention", "filters", "image_grid", "predictions"]

MARKERS = "osD^vPX*<>" * 4
AXIS = {
    "lr": "学习率",
    "train_loss": "训练损失",
    "train_accuracy": "训练准确率 / %",
    "val_loss": "验证损失",
    "val_accuracy": "验证准确率 / %",
    "test_loss": "测试损失（仅监测）",
    "test_accuracy": "测试准确率 / %（仅监测）",
    "loss": "验证或监测损失",
    "accuracy": "验证或监测准确率 / %",
}


def curves(runs_by_label: "Runs", metric: str | Sequence[str] = "accuracy") -> Figure:
    """Curves over epochs: mean line and, with several seeds, a band from the lowest to the highest seed.

    ``metric`` is a column of ``run.history`` or several, drawn side by side; ``accuracy`` and ``loss`` take
    each run's validation curve, or the monitored test curve where it has no other. A run that met a
    non-finite number ends in a cross. Raises UserError when no run has the column.
    """
    names = [metric] if isinstance(metric, str) else list(metric)
    fig, axes = plt.subplots(1, len(names), figsize=(WIDTH, 2.9), layout="constrained", squeeze=False)
    for name, ax in zip(names, axes[0], strict=True):
        _curve_panel(ax, runs_by_label, name)
    cross = Line2D([], [], color="0.2", marker="x", linestyle="none", label="出现非有限值，训练中止")
    failed = any(run.failed for runs in runs_by_label.values() for run in runs)
    several = any(len(runs) > 1 for runs in runs_by_label.values())
    note = "线为均值，阴影为各种子的最小值至最大值" if several else None
    _legend_below(fig, axes[0], note, [cross] if failed else [])
    return fig


def _curve_panel(ax: Axes, runs_by_label: "Runs", metric: str) -> None:
    colours = _palette(runs_by_label)
    scale = 100 if metric.endswith("accuracy") else 1
    parts, used = [], set()
    for label, runs in runs_by_label.items():
        for run in runs:
            column = next((c for c in (f"val_{metric}", f"test_{metric}", metric) if c in run.history), None)
            if column is None:
                continue
            used.add(column)
            curve = pd.DataFrame({"epoch": run.history["epoch"], "value": scale * run.history[column]})
            curve = curve.replace([np.inf, -np.inf], np.nan).dropna()
            parts.append(curve.assign(label=label))
            if run.failed and len(curve):
                ax.plot(*curve.iloc[-1], "x", color=colours[label], zorder=4, markeredgewidth=1.8)
    data = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if data.empty:
        raise UserError(f"没有任何训练记录含有“{metric}”曲线：请检查名称，或先完成训练。")
    order = list(runs_by_label)
    markers = list(MARKERS[: len(order)]) if data["epoch"].max() <= 12 else None
    sns.lineplot(
        data, x="epoch", y="value", hue="label", hue_order=order, palette=colours, style="label",
        style_order=order, markers=markers, markersize=4, errorbar=("pi", 100), ax=ax,
    )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    ax.set(xlabel="轮次", ylabel=AXIS.get(used.pop() if len(used) == 1 else metric, metric))


def accuracy_bars(runs_by_label: "Runs") -> Figure:
    """Test accuracy of each recipe: every seed as a dot, the mean, and with 3 seeds its 95 % interval, images' error too."""
    fig, ax = plt.subplots(figsize=(WIDTH, 0.36 * len(runs_by_label) + 1.1), layout="constrained")
    colour, names, enough = sns.color_palette("colorblind")[0], [], False
    for row, (label, runs) in enumerate(runs_by_label.items()):
        names.append(f"{label}（训练中止）" if any(run.failed for run in runs) else label)
        measured = [run for run in runs if np.isfinite(run.accuracy)]
        if not measured:
            continue
        values, result = [run.accuracy for run in measured], metrics.accuracy(measured)
        interval = result.n >= stats.FEWEST_SEEDS  # of two seeds it would span the figure and say nothing
        enough |= interval
        ax.plot(100 * np.array(values), [row + 0.25] * len(values), "o", color="0.5", markersize=3.5, alpha=0.8)
        half = 100 * (result.high - result.mean) if interval else 0
        ax.errorbar(100 * result.mean, row, xerr=half, fmt="D", color=colour, markersize=4, capsize=3)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="测试准确率 / %", ylim=(len(names) - 0.4, -0.6))
    ax.grid(False, axis="y")
    mean = "均值与 95 % 区间（至少 3 个种子，含测试图像的抽样误差）" if enough else "均值"
    _legend_below(fig, [], None, [
        Line2D([], [], color=colour, marker="D", markersize=4, label=mean),
        Line2D([], [], color="0.5", marker="o", markersize=3.5, linestyle="none", label="各种子"),
    ])  # fmt: skip
    return fig


def per_class(runs_by_label: "Runs") -> Figure:
    """Recall of each class, classes ordered by their training images: mean, and lowest to highest seed."""
    data = next(iter(runs_by_label.values()))[0].data
    crowded = _crowded(data["class_names"])
    pairs = zip(data["class_names"], data["class_counts"], strict=True)
    names = [f"{name}（{n:,}）" if crowded else f"{name}\n{n:,}" for name, n in pairs]
    rows = [
        (label, name, 100 * recall)
        for label, runs in runs_by_label.items()
        for run in runs
        for name, recall in zip(names, metrics.per_class_recall(run.labels, run.predicted, len(names)), strict=True)
    ]
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    sns.pointplot(
        pd.DataFrame(rows, columns=["label", "class", "recall"]), x="class", y="recall", hue="label",
        order=[names[i] for i in np.argsort(-np.array(data["class_counts"]), kind="stable")], palette=_palette(runs_by_label),
        markers=list(MARKERS[: len(runs_by_label)]), markersize=4, linestyle="none",
        dodge=0.5 if len(runs_by_label) > 1 else False, errorbar=("pi", 100), err_kws={"linewidth": 1.2}, ax=ax,
    )  # fmt: skip
    ax.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    ax.grid(False, axis="x")
    ax.grid(True, axis="x", which="minor")
    ax.tick_params(axis="x", which="minor", length=0)
    ax.tick_params(axis="x", rotation=90 if crowded else 0)
    ax.set(xlabel="类别与训练图像数 / 张（由多到少）", ylabel="召回率 / %")
    several = any(len(runs) > 1 for runs in runs_by_label.values())
    _legend_below(fig, [ax], "点为均值，竖线为各种子的最小值至最大值" if several else None)
    return fig


def class_counts(dataset: "Dataset") -> Figure:
    """Training and test images of each class as bars with their numbers."""
    names = list(dataset.class_names)
    test = np.bincount(np.asarray(dataset.test.labels), minlength=len(names))
    rows = [
        (part, name, count)
        for part, counts in (("训练集", dataset.class_counts), ("测试集", test))
        for name, count in zip(names, counts, strict=True)
    ]
    fig, ax = plt.subplots(figsize=(WIDTH, min(9, 0.33 * len(names) + 0.8)), layout="constrained")
    table = pd.DataFrame(rows, columns=["part", "class", "count"])
    sns.barplot(table, x="count", y="class", hue="part", palette="colorblind", ax=ax)
    for bars, hatch in zip(ax.containers, ("", "////"), strict=True):
        ax.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=7)  # type: ignore[arg-type]
        for bar in bars:
            bar.set(hatch=hatch, edgecolor="white", linewidth=0.4)
    ax.grid(False, axis="y")
    ax.margins(x=0.1)
    ax.set(xlabel="图像数 / 张", ylabel="类别")
    _legend_below(fig, [ax])
    return fig


def confusion(runs: "Run | Sequence[Run]") -> Figure:
    """Confusion matrix of a run or the mean over seeds, each row in percent of its true class."""
    percent, names = _confusion_percent(runs)
    return _heatmap(percent, names, "{:.0f}".format, "占真实类别的比例 / %", cmap="Blues", vmin=0, vmax=100)


def confusion_difference(runs_a: "Run | Sequence[Run]", runs_b: "Run | Sequence[Run]") -> Figure:
    """Confusion matrix of a minus that of b in percentage points: a gain is positive on the diagonal."""
    percent, names = _confusion_percent(runs_a)
    gap = percent - _confusion_percent(runs_b)[0]
    limit = max(1.0, float(np.abs(gap).max()))

    def write(value: float) -> str:
        return f"{value:+.0f}".replace("-", "−")

    return _heatmap(gap, names, write, "比例之差 / 百分点", cmap="vlag", vmin=-limit, vmax=limit)


def _confusion_percent(runs: "Run | Sequence[Run]") -> tuple[np.ndarray, Sequence[str]]:
    group = list(runs) if isinstance(runs, Iterable) else [runs]
    names = group[0].data["class_names"]
    counts = np.mean([metrics.confusion(run.labels, run.predicted, len(names)) for run in group], axis=0)
    return 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), names


def _heatmap(
    values: np.ndarray, names: Sequence[str], write: Callable[[float], str], unit: str, **scale: Any
) -> Figure:
    fig, ax = plt.subplots(figsize=(WIDTH, 4.7 if len(names) > 5 else 3.6), layout="constrained")
    shown = np.array([["" if abs(value) < 0.5 else write(value) for value in row] for row in values])
    annotated = len(names) <= 20
    sns.heatmap(
        values, ax=ax, annot=shown if annotated else None, fmt="", annot_kws={"size": 7.5}, square=True,
        linewidths=0.4 if annotated else 0, xticklabels=names, yticklabels=names,
        cbar_kws={"shrink": 0.8, "label": unit}, **scale,
    )  # fmt: skip
    ax.tick_params(length=0, labelsize=min(8, 230 / len(names)))
    ax.tick_params(axis="x", rotation=90 if _crowded(names) else 0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="预测类别", ylabel="真实类别")
    return fig


def _crowded(names: Sequence[str]) -> bool:
    """Whether the names are too long to stand side by side below an axis."""
    return len(names) * (1 + max(map(text_width, names))) > 60


def front(table: pd.DataFrame, cost: str, gain: str) -> pd.DataFrame:
    """Return the rows that no other beats in both columns, ``cost`` and ``gain`` (the Pareto front), cheapest first."""
    ranked = table.sort_values([cost, gain], ascending=[True, False])
    return ranked[ranked[gain] > ranked[gain].cummax().shift(fill_value=-np.inf)]


def _palette(labels: Iterable[str]) -> dict[str, Any]:
    """Colours by label; a baseline is nearly black in every figure, so that panels can be compared by it."""
    labels = list(labels)
    others = [label for label in labels if label != "基线" and "（基线）" not in label]
    colours = dict(zip(others, sns.color_palette("colorblind", len(others)), strict=True))
    return {label: colours.get(label, (0.15, 0.15, 0.15)) for label in labels}


def _legend_below(fig: Figure, axes: Sequence[Axes], title: str | None = None, more: Sequence[Line2D] = ()) -> None:
    """One legend below the axes for all of them, in as many columns as fit the width."""
    handles, labels = axes[0].get_legend_handles_labels() if len(axes) else ([], [])
    for ax in axes:
        if (own := ax.get_legend()) is not None:
            own.remove()
    handles, labels = [*handles, *more], [*labels, *(str(line.get_label()) for line in more)]
    inches = 0.55 + 0.058 * max(map(text_width, labels))
    columns = max(1, min(len(labels), int(fig.get_figwidth() / inches)))
    fig.legend(handles, labels, title=title, loc="outside lower center", ncols=columns, columnspacing=1.2)
