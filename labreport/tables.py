"""A data frame as the HTML of a three-line table."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from labreport.figures.pictures import text_width

if TYPE_CHECKING:
    import pandas as pd

NUMBER = re.compile(r"(< )?[-−+]?[\d,]*\.?\d+\s*(%|/ \d+|[±×\[(（].*)?|\[[-−\d., ]+\]|[—–-]|nan")

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def to_html(frame: pd.DataFrame, named: bool, formats: Mapping[str, str]) -> str:
    """Return a three-line table; ``named`` shows the row names, ``formats`` maps columns to format specifications.

    Columns whose cells are all numbers are aligned right, others left; cells are escaped.
    """
    columns: list[tuple[str, list[str]]] = []
    if named:
        columns.append((str(frame.index.name or ""), [str(name) for name in frame.index]))
    for name in frame.columns:
        spec = formats.get(name, "")
        columns.append((str(name), [_cell(value, spec) for value in frame[name]]))
    kinds = ["num" if all(NUMBER.fullmatch(cell) for cell in cells) else "txt" for _, cells in columns]

    def row(cells: Iterable[str]) -> str:
        return "".join(f'<td class="{kind}">{html.escape(cell)}</td>' for kind, cell in zip(kinds, cells, strict=True))

    head = "".join(
        f'<th class="{kind}"{_room(name, cells) if kind == "txt" else ""}>{html.escape(name)}</th>'
        for kind, (name, cells) in zip(kinds, columns, strict=True)
    )
    body = "\n".join(f"<tr>{row(cells)}</tr>" for cells in zip(*(cells for _, cells in columns), strict=True))
    return f'<table class="vitlib"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def _room(name: str, cells: Iterable[str]) -> str:
    """The width below which a browser may not break the cells: it would halve short words to give long ones room.

    Of a column's name two Chinese characters count: more may stand in several lines.
    """
    widest = max(min(4, text_width(name)), *map(text_width, cells))
    return f' style="min-width: {min(8.0, 0.55 * widest) + 1.3:.1f}em"'


def _cell(value: Any, spec: str) -> str:
    if value is None or value != value:
        return "—"
    if spec.endswith("e"):  # 3.3 × 10⁻⁵
        digits, power = f"{value:{spec}}".split("e")
        return f"{digits} × 10{str(int(power)).translate(RAISED)}".replace("-", "−")
    if spec:
        return format(value, spec).replace("-", "−").replace("%", " %")
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    return str(value)
