"""Figures of several panels side by side, and figures to be asked. See ``labreport.figures.plots`` for what they share."""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labreport.figures.pictures import WIDTH, attention
from labreport.figures.plots import AXIS, _palette, confusion, curves
from labreport.stats import FEWEST_SEEDS
from vitlib.augment import to_float
from vitlib.errors import UserError

if TYPE_CHECKING:
    from vitlib.models import ViT
    from vitlib.record import Run

BASELINE = "（基线）"  # as in ``labreport.analysis.ablation``
INFINITE = [np.inf, -np.inf]


def knob_curves(
    knobs: "Mapping[str, Mapping[str, Sequence[Run]]]", metrics: Sequence[str] = ("accuracy", "train_loss")
) -> Figure:
    """Curves over epochs: for each knob a panel a metric, in it a line a value, and right of it the values.

    ``knobs``: title to value to the runs of its seeds; the baseline's value ends with ``BASELINE``, and its line is
    thick and bears circles. Numbers have one sequential palette in the order given, from light to dark; other values
    differ in colour and dash. Lines are means, and from three seeds on a band shows the lowest to the highest. Knobs
    with one metric stand two in a row. All panels of a metric share their axes. Raises UserError without a curve.
    """
    if not knobs:
        raise UserError("没有任何一组训练可画：请先完成至少一个旋钮的训练。")
    columns = max(2, len(metrics))
    rows = -(-len(knobs) * len(metrics) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, min(1.3 * rows + 0.4, 8.2)), layout="constrained", squeeze=False,
        sharex=True, sharey="col" if len(metrics) > 1 else True,
    )  # fmt: skip
    cells = [(title, values, metric) for title, values in knobs.items() for metric in metrics]
    for at, ax in enumerate(axes.flat):
        if at >= len(cells):
            ax.set_visible(False)
            continue
        title, values, metric = cells[at]
        _values_panel(ax, values, metric)
        lowest = at + columns >= len(cells)
        ax.set_xlabel("轮次" if lowest else "")
        ax.tick_params(axis="x", bottom=lowest, labelbottom=lowest)
        if metric == metrics[0]:
            ax.set_title(title, loc="left", fontsize=8)
        if metric == metrics[-1]:  # large values are dear, and stand above small ones
            handles, labels = ax.get_legend_handles_labels()
            ax.legend(
                handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7,
                labelspacing=0.25, handlelength=2.2, borderaxespad=0.3,
            )  # fmt: skip
    return fig


def _values_panel(ax: Axes, values: "Mapping[str, Sequence[Run]]", metric: str) -> None:
    scale, used = 100 if metric.endswith("accuracy") else 1, set()
    enough = any(len(runs) >= FEWEST_SEEDS for runs in values.values())
    for (value, runs), style in zip(values.items(), _value_styles(list(values)), strict=True):
        parts = []
        for run in runs:
            column = next((c for c in (f"val_{metric}", f"test_{metric}", metric) if c in run.history), None)
            if column is not None:
                used.add(column)
                parts.append(pd.Series(scale * run.history[column], run.history["epoch"]).replace(INFINITE, np.nan))
        by_epoch = pd.concat(parts).dropna().groupby(level=0) if parts else None
        if by_epoch is None or not len(mean := by_epoch.mean()):
            continue
        notes = [f"{len(runs)} 个种子"] * (enough and len(runs) < FEWEST_SEEDS)
        notes += ["训练中止"] * any(run.failed for run in runs)
        base = value.endswith(BASELINE)
        name = value.removesuffix("）") + f"，{'，'.join(notes)}）" if base and notes else value
        name += f"（{'，'.join(notes)}）" if notes and not base else ""
        circles: dict[str, Any] = {"marker": "o", "markevery": -(-len(mean) // 8), "markersize": 3.5}
        ax.plot(
            mean.index, mean, label=name, markerfacecolor="white", linewidth=2 if base else 1.2,
            **style, **(circles if base or len(mean) == 1 else {}),
        )  # fmt: skip
        if len(runs) >= FEWEST_SEEDS:
            ax.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=style["color"], alpha=0.15, linewidth=0)
    if not used:
        raise UserError(f"没有任何训练记录含有“{metric}”曲线：请检查名称，或先完成训练。")
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    ax.set_ylabel(AXIS.get(used.pop() if len(used) == 1 else metric, metric), fontsize=8)


def _value_styles(values: Sequence[str]) -> list[dict[str, Any]]:
    if all(re.fullmatch(r"[\d.、]+", value.removesuffix(BASELINE)) for value in values):
        return [{"color": colour} for colour in plt.colormaps["viridis_r"](np.linspace(0.2, 1, len(values)))]
    palette, dashes = _palette(values), itertools.cycle(("--", "-.", ":"))
    return [{"color": palette[v], "linestyle": "-" if v.endswith(BASELINE) else next(dashes)} for v in values]


def browse_attention(model: "ViT", images: Any, normalize: str) -> Any:
    """Show sliders for image, block and head (0: all), and the attention that each patch gets there.

    Works where a kernel runs; the report leaves it out. images: uint8 (N, 3, S, S); normalize: the recipe's.
    Returns the box of widgets that is shown. The figure is a picture in it: outputs that a widget captures
    can make a notebook that is run without a page wait for ever.
    """
    from ipywidgets import Image, IntSlider, VBox

    first: Any = model.blocks[0]
    depth, heads = len(model.blocks), first.attention.num_heads
    ranges = {"图像": (1, 1, len(images)), "块": (depth, 1, depth), "头（0 为全部）": (0, 0, heads)}
    sliders = [
        IntSlider(*span, description=name, continuous_update=False, style={"description_width": "initial"})
        for name, span in ranges.items()
    ]
    picture = Image(format="png")

    def draw(_: object = None) -> None:
        image, block, head = (slider.value for slider in sliders)
        with torch.no_grad():
            maps = model.features(to_float(images[image - 1 : image], normalize)).attention[block - 1][0]
        received = maps[:, :, model.num_prefix_tokens :].mean(dim=1)
        chosen = range(heads) if head == 0 else [head - 1]
        fig = attention(images[image - 1], received[list(chosen)], [f"头 {i + 1}" for i in chosen])
        picture.value = _png(fig)

    for slider in sliders:
        slider.observe(draw, "value")
    draw()
    display(box := VBox([*sliders, picture]))
    return box


def browse_runs(shelf: "Mapping[tuple[str, str], Sequence[Run]]") -> Any:
    """Show menus for data, remedy and seed, and the curves and the confusion matrix of the run that is chosen.

    Works where a kernel runs; the report leaves it out. shelf: (data, remedy) to the runs of its seeds. Returns the
    box of widgets that is shown; pictures are drawn as in :func:`browse_attention`. Raises UserError for an empty shelf.
    """
    from ipywidgets import HTML, Dropdown, HBox, Image, VBox

    if not shelf:
        raise UserError("没有可以挑选的运行：请先完成本节的训练。")
    choices = {
        "数据": dict.fromkeys(data for data, _ in shelf),
        "对策": dict.fromkeys(remedy for _, remedy in shelf),
        "种子": dict.fromkeys(run.seed for runs in shelf.values() for run in runs),
    }
    menus = [Dropdown(options=list(options), description=name) for name, options in choices.items()]
    told, pictures = HTML(), [Image(format="png"), Image(format="png")]

    def draw(_: object = None) -> None:
        data, remedy, seed = (menu.value for menu in menus)
        run = next((run for run in shelf.get((data, remedy), ()) if run.seed == seed), None)
        trained = run is not None and len(run.history["epoch"]) > 0
        if run is None:
            words = "没有这样的运行，请另选一项。"
        else:
            words = f"测试准确率 {100 * run.accuracy:.1f} %" + ("" if trained else "；它只修正分类头，没有曲线。")
        told.value = f"{data}，{remedy}，种子 {seed}：{words}"
        figures = (
            curves({remedy: [run]}, ["train_accuracy", "accuracy"]) if run and trained else None,
            None if run is None else confusion(run),
        )
        for picture, fig in zip(pictures, figures, strict=True):
            picture.layout.display = "none" if fig is None else None
            picture.value = b"" if fig is None else _png(fig)

    for menu in menus:
        menu.observe(draw, "value")
    draw()
    display(box := VBox([HBox(menus), told, *pictures]))
    return box


def _png(fig: Figure) -> bytes:
    """Return a figure as a picture, and close it."""
    file = io.BytesIO()
    fig.savefig(file, dpi=150)
    plt.close(fig)
    return file.getvalue()
