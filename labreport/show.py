"""What a notebook shows: captioned figures and tables, computed sentences, the origin of its runs.

Caption, label and origin travel in the output's metadata under ``vitlib``; the report
(:mod:`labreport.assembly`) numbers the captions, fills references such as ``[图](#fig:curves)`` and collects the
origins in its appendix. In JupyterLab the caption is shown below the figure or above the table.
"""

from __future__ import annotations

import ast
import base64
import inspect
import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from matplotlib.font_manager import fontManager

from labreport.figures.pictures import few_colours
from labreport.stats import spaced
from labreport.tables import to_html
from vitlib.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitlib.data import Dataset
    from vitlib.record import Run

MAX_SVG = 160_000  # bytes; a figure that is larger as SVG is stored as PNG
PNG_DPI = 160

Runs: TypeAlias = "Mapping[str, Sequence[Run] | Run] | Iterable[Run]"
_context: dict[str, Any] = {"data": None, "runs": ()}


def use_chinese() -> None:
    """Set matplotlib up for Chinese figures: the bundled Noto Sans SC, safe colours, print sizes.

    The Chinese font comes first, because mathtext looks at the first family only; DejaVu Sans fills what it lacks.
    """
    import pylopdf_fonts_zh_cn
    import seaborn

    fontManager.addfont(pylopdf_fonts_zh_cn.sans_path())
    seaborn.set_theme(style="ticks", palette="colorblind")
    plt.rcParams.update(
        {
            "font.family": ["Noto Sans SC", "DejaVu Sans"],
            "font.size": 9,
            "axes.labelsize": 9,
            "axes.titlesize": 9.5,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.title_fontsize": 8,
            "legend.frameon": False,
            "mathtext.fontset": "stix",
            "axes.unicode_minus": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.linewidth": 0.7,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.5,
            "lines.linewidth": 1.4,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "figure.figsize": (5.8, 3.3),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "svg.fonttype": "path",
            "svg.hashsalt": "vitlib",  # the same figure gives the same bytes
        }
    )


def set_context(data: Dataset, runs: Runs = ()) -> None:
    """Name the data, and once they are trained the runs, that the following figures and tables come from.

    Later captions then say when the data is synthetic or a subset, and how many training images, epochs and
    seeds the runs had; the origins go to the report's appendix. Call it again when other runs follow.
    """
    _context.update(data=data, runs=runs if isinstance(runs, Mapping) else tuple(runs))
    facts = {
        "name": data.name,
        "provenance": data.provenance,
        "fingerprint": data.fingerprint,
        "synthetic": data.synthetic,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "warnings": list(data.warnings),
        "skipped": list(data.skipped),
    }
    _display_origin(_flat(runs), facts)


def provenance(runs: Runs) -> None:
    """Carry the origin of further runs to the report's appendix without changing the captions."""
    _display_origin(_flat(runs), None)


def figure(fig: Figure, caption: str, label: str, *, runs: Runs | None = None, result: bool = True) -> None:
    """Show ``fig`` with a caption and a label ``fig:name``, and close it.

    Line art is stored as SVG, a figure holding images as PNG at 160 dots per inch.

    Args:
        caption: one Chinese phrase, no full stop; ``$...$`` may hold mathematics.
        label: ``fig:`` and lower-case letters, digits, ``-`` or ``_``; unique in the report.
        runs: the runs drawn, where they differ from those of :func:`set_context`.
        result: False leaves out the remark on data and runs, for a figure that shows neither.

    Raises:
        UserError: empty caption, malformed label or empty figure.
    """
    if not fig.axes:
        raise UserError(f"图 {label} 是空的：没有任何坐标轴。请先画图，再调用 show.figure。")
    meta = _meta("fig", caption, label, runs, result)
    bundle, size = _picture(fig)
    display({**bundle, "text/plain": meta["caption"]}, raw=True, metadata={"vitlib": meta, **size})
    plt.close(fig)
    _preview("图", meta)


def table(
    frame: pd.DataFrame,
    caption: str,
    label: str,
    *,
    runs: Runs | None = None,
    result: bool = True,
    index: bool | None = None,
    formats: Mapping[str, str] | None = None,
) -> None:
    """Show a data frame as a three-line table with a caption and a label ``tab:name``.

    Columns of numbers are aligned right, others left; ``$...$`` in a cell is mathematics.

    Args:
        caption, label, runs, result: as in :func:`figure`.
        index: show the row names; by default when they are not just 0, 1, 2, ...
        formats: column name to format specification, e.g. ``{"准确率": ".1%"}``.

    Raises:
        UserError: empty caption, malformed label, empty table or a format for no column.
    """
    if frame.empty:
        raise UserError(f"表 {label} 是空的：没有任何一行。请检查生成它的单元。")
    if unknown := set(formats or ()) - set(frame.columns):
        raise UserError(f"表 {label} 没有列“{'、'.join(sorted(unknown))}”，请检查 formats。")
    meta = _meta("tab", caption, label, runs, result)
    named = not isinstance(frame.index, pd.RangeIndex) if index is None else index
    _preview("表", meta)
    content = {"text/html": to_html(frame, named, formats or {}), "text/plain": frame.to_string()}
    display(content, raw=True, metadata={"vitlib": meta})


def source(thing: Any) -> None:
    """Show the Python source of a class or function, without its docstrings: the prose around it explains."""
    code = textwrap.dedent(inspect.getsource(thing))
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)  # type: ignore
    code = re.sub(r":\n\n+", ":\n", "\n".join(lines)).replace("  # fmt: skip", "")
    _markdown(f"```python\n{code.strip()}\n```", "text")


def text(markdown: str, place: str | None = None, *, update: bool = False) -> None:
    """Show a computed paragraph of Markdown, spaced between Chinese and Latin; the report sets it as prose.

    A paragraph with a ``place`` (a name) is replaced by a later one with the same place and ``update``, so
    that a section can begin with the answer it ends with.
    """
    _markdown(spaced(markdown), "text", **({"display_id": place, "update": update} if place else {}))


def headline(markdown: str) -> None:
    """Show a section's main finding, one or two computed sentences; the report puts it into its abstract instead."""
    _markdown(spaced(markdown), "headline")


def _markdown(markdown: str, kind: str, **where: Any) -> None:
    if not markdown.strip():
        raise UserError(f"show.{kind} 收到了空文字，请检查生成它的语句。")
    content = dict.fromkeys(("text/markdown", "text/plain"), markdown)
    display(content, raw=True, metadata={"vitlib": {"kind": kind}}, **where)


def remark(runs: Runs | None = None) -> str:
    """Return what a caption must add about data and runs, in full-width brackets, or an empty string."""
    data, runs = _context["data"], _context["runs"] if runs is None else runs
    used = _flat(runs)
    parts = []
    names = {run.data["name"] for run in used} | ({data.name} if data is not None and not used else set())
    if "synthetic" in names:
        parts.append("合成数据")
    if used:
        groups = tuple(runs.values()) if isinstance(runs, Mapping) else ()
        if any(isinstance(group, Sequence) for group in groups):  # one label's seeds may bear two names of a recipe
            counts = [len(group) if isinstance(group, Sequence) else 1 for group in groups]
        else:
            seeds: dict[tuple[str, str], set[int]] = {}
            for run in used:
                seeds.setdefault((run.recipe.name, run.data["fingerprint"]), set()).add(run.seed)
            counts = [len(numbers) for numbers in seeds.values()]
        images = _span(run.data["train_images"] for run in used)
        epochs = _span(run.recipe.epochs for run in used)
        parts.append(f"训练图像 {images} 张、{epochs} 轮、{_span(filter(None, counts))} 个种子")
    elif data is not None and "抽取的子集" in data.provenance:  # the words of Dataset.subset
        parts.append(f"子集：训练图像 {len(data.train):,} 张、测试图像 {len(data.test):,} 张")
    return f"（{'；'.join(parts)}）" if parts else ""


def _span(values: Iterable[int]) -> str:
    numbers = sorted(set(values))
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,}–{numbers[-1]:,}"


def _flat(runs: Runs) -> tuple[Run, ...]:
    if isinstance(runs, Mapping):
        groups = [group if isinstance(group, Iterable) else (group,) for group in runs.values()]
        return tuple(run for group in groups for run in group)
    return tuple(runs)


def _meta(kind: str, caption: str, label: str, runs: Runs | None, result: bool) -> dict[str, Any]:
    caption = spaced(caption.strip().rstrip("。"))
    if not caption:
        raise UserError(f"{label} 没有题注，请写一句话说明它画的或列的是什么。")
    if not re.fullmatch(rf"{kind}:[a-z0-9_-]+", label):
        raise UserError(f"标签“{label}”不合规则：应为“{kind}:”加小写字母、数字、“-”或“_”。")
    origins = [_origin(run) for run in _flat(runs or ())]
    return {
        "kind": kind,
        "caption": caption + (remark(runs) if result else ""),
        "label": label,
        "runs": origins,
    }


def _origin(run: Run) -> dict[str, Any]:
    """Return the facts of a run that the report's appendix lists, as plain JSON values."""
    from vitlib.record import is_stale

    return {
        "key": run.key,
        "recipe": run.recipe.name,
        "seed": run.seed,
        "epochs": run.recipe.epochs,
        "data": {name: run.data[name] for name in ("name", "fingerprint", "provenance", "train_images", "test_images")},
        "device": run.device,
        "compute": f"{run.machine['dtype']}，{run.machine['threads']} 个线程",
        "versions": {name: run.machine[name] for name in ("python", "torch") if name in run.machine},
        "numerics": run.numerics,
        "stale": is_stale(run),
        "seconds": run.train_seconds,
        "published": run.published,
        "failed": run.failed["message"] if run.failed else None,
    }


def _display_origin(runs: Sequence[Run], data: dict[str, Any] | None) -> None:
    meta = {"kind": "origin", "runs": [_origin(run) for run in runs], "data": data}
    words = f"数据：{data['provenance']}" if data else ""
    words += f"{'；' if words else ''}运行记录 {len(runs)} 条（来历见报告附录）" if runs else ""
    display({"text/plain": words}, raw=True, metadata={"vitlib": meta})


def _preview(word: str, meta: dict[str, Any]) -> None:
    """Show the caption in JupyterLab; the report leaves this output out and sets its own."""
    line = f"**{word}** `{meta['label']}`　{meta['caption']}"
    display({"text/markdown": line, "text/plain": line}, raw=True, metadata={"vitlib": {"kind": "preview"}})


def _picture(fig: Figure) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the figure as a MIME bundle and its size metadata: SVG if it is line art and small, else PNG."""
    svg = _save(fig, "svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
    # A hundredth of a point is finer than any printer; longer places only make the file larger.
    places = r' (?:d|x|y)="[^"]*"|translate\([^)]*\)'
    svg = re.sub(places, lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg[svg.index("<svg") :])
    if (drawn := not any(axes.images for axes in fig.axes)) and len(svg) <= MAX_SVG:
        return {"image/svg+xml": svg}, {}
    png = few_colours(_save(fig, "png", dpi=PNG_DPI)) if drawn else _save(fig, "png", dpi=PNG_DPI)
    # PNG header: width and height are big-endian at bytes 16-24; shown at 96 CSS pixels an inch.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    size = {"width": round(width * 96 / PNG_DPI), "height": round(height * 96 / PNG_DPI)}
    return {"image/png": base64.b64encode(png).decode()}, {"image/png": size}


def _save(fig: Figure, kind: str, **options: Any) -> bytes:
    fig.savefig(buffer := io.BytesIO(), format=kind, bbox_inches="tight", pad_inches=0.03, **options)
    return buffer.getvalue()
