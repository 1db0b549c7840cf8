"""Figures of several panels side by side, and a figure to be asked. See ``vitlib.plots`` for what they share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitlib.augment import to_float
from vitlib.errors import UserError
from vitlib.pictures import WIDTH, attention
from vitlib.plots import MARKERS, _curve_panel, _legend_below, _palette

if TYPE_CHECKING:
    from vitlib.models import ViT
    from vitlib.record import Run


def knob_curves(groups: "Mapping[str, Mapping[str, Sequence[Run]]]", metric: str = "accuracy") -> Figure:
    """Curves over epochs as ``vitlib.plots.curves`` draws them, two panels a row, one for each group.

    ``groups``: title of a panel to runs by label; the labels stand below their panel. Panels share the
    vertical axis, so that knobs can be compared. Raises UserError without a group.
    """
    if not groups:
        raise UserError("没有任何一组训练可画：请先完成至少一个旋钮的训练。")
    rows = -(-len(groups) // 2)
    columns = min(2, len(groups))
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 2.7 * rows), layout="constrained", squeeze=False, sharey=True
    )
    for ax, (title, runs) in zip(axes.flat, groups.items(), strict=False):
        _curve_panel(ax, runs, metric)
        ax.set_title(title)
        sns.move_legend(ax, "upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, title=None, columnspacing=1)
    for ax in axes.flat[len(groups) :]:
        ax.remove()
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    return fig


def against(costs: Mapping[str, Sequence[float]], accuracy: Sequence[float], labels: Sequence[str]) -> Figure:
    """Accuracy (0-1) against one cost a panel, the settings joined in the order in which they are given.

    ``costs``: label of the axis, with its unit, to one value a setting. Raises UserError when the numbers of
    settings differ.
    """
    if {len(labels), len(accuracy), *map(len, costs.values())} != {len(labels)}:
        sizes = "、".join(str(len(values)) for values in costs.values())
        raise UserError(f"每个设置须有一个准确率和每种代价各一个值，而个数为 {len(labels)}、{len(accuracy)}、{sizes}。")
    fig, axes = plt.subplots(1, len(costs), figsize=(WIDTH, 2.9), layout="constrained", squeeze=False, sharey=True)
    percent = 100 * np.asarray(accuracy, dtype=float)
    for ax, (name, values) in zip(axes[0], costs.items(), strict=True):
        ax.plot(values, percent, color="0.75", linewidth=1, zorder=1)
        sns.scatterplot(
            x=list(values), y=percent, hue=list(labels), style=list(labels), palette=_palette(labels),
            markers=list(MARKERS[: len(labels)]), s=45, ax=ax,
        )  # fmt: skip
        ax.xaxis.set_major_locator(MaxNLocator(4, prune="both"))  # no number meets the next panel's
        ax.set(xlabel=name, ylabel="测试准确率 / %")
    _legend_below(fig, list(axes[0]))
    return fig


def browse_attention(model: "ViT", images: Any, normalize: str) -> Any:
    """Show sliders for image, block and head (0: all), and the attention that each patch gets there.

    Works where a kernel runs; the report leaves it out. images: uint8 (N, 3, S, S); normalize: the recipe's.
    Returns the drawing function, as ``ipywidgets.interact`` does.
    """
    from ipywidgets import IntSlider, interact

    def draw(image: int, block: int, head: int) -> None:
        with torch.no_grad():
            maps = model.features(to_float(images[image - 1 : image], normalize)).attention[block - 1][0]
        received = maps[:, :, model.num_prefix_tokens :].mean(dim=1)
        shown = received if head == 0 else received[head - 1 : head]
        names = [f"头 {i + 1}" for i in range(len(received))] if head == 0 else [f"头 {head}"]
        fig = attention(images[image - 1], shown, names)
        display(fig)
        plt.close(fig)

    heads = model.blocks[0].attention.num_heads  # type: ignore[union-attr]
    return interact(
        draw,
        image=IntSlider(1, 1, len(images), description="图像"),
        block=IntSlider(len(model.blocks), 1, len(model.blocks), description="块"),
        head=IntSlider(0, 0, heads, description="头（0 为全部）", style={"description_width": "initial"}),
    )
