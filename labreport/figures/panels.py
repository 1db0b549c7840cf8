"""Figures of several panels side by side, and figures to be asked. See ``labreport.figures.plots`` for what they share."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.figure import Figure

from labreport.figures.pictures import WIDTH, attention
from labreport.figures.plots import _curve_panel, _legend_below, confusion, curves
from vitlib.augment import to_float
from vitlib.errors import UserError

if TYPE_CHECKING:
    from vitlib.models import ViT
    from vitlib.record import Run


def knob_curves(settings: "Mapping[str, Sequence[Run]]", baseline: "Sequence[Run]", metric: str = "accuracy") -> Figure:
    """Curves over epochs as ``labreport.figures.plots.curves`` draws them: small panels, a setting beside the baseline.

    ``settings``: title of a panel to runs. All panels share both axes and one legend. Raises UserError without one.
    """
    if not settings:
        raise UserError("没有任何一组训练可画：请先完成至少一个旋钮的训练。")
    columns = min(4, len(settings))
    rows = -(-len(settings) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, rows + 0.7), layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    drawn = list(axes.flat[: len(settings)])
    for at, (ax, (title, runs)) in enumerate(zip(drawn, settings.items(), strict=True)):
        _curve_panel(ax, {"基线": baseline, "标题所示的设置": runs}, metric)
        plt.setp(ax.lines, marker="")
        ax.set_title(title, fontsize=8)
        lowest = at + columns >= len(settings)
        ax.tick_params(labelbottom=lowest)
        ax.set_xlabel(ax.get_xlabel() if lowest else "")
    fig.supylabel(drawn[0].get_ylabel(), fontsize=9)
    for at, ax in enumerate(axes.flat):
        ax.set_ylabel("")
        ax.set_visible(at < len(settings))
    _legend_below(fig, drawn)
    return fig


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
