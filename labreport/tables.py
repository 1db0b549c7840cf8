"""A data frame as the HTML of a three-line table."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

NUMBER = re.compile(r"(< )?[-−+]?[\d,]*\.?\d+\s*(%|/ \d+|[±×\[(（].*)?|\[[-−\d., ]+\]|[—–-]|nan")


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
    numeric = [all(NUMBER.fullmatch(cell) for cell in cells) for _, cells in columns]

    def row(tag: str, cells: Iterable[str]) -> str:
        kinds = ("num" if number else "txt" for number in numeric)
        return "".join(
            f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True)
        )

    head = row("th", (name for name, _ in columns))
    body = "\n".join(f"<tr>{row('td', cells)}</tr>" for cells in zip(*(cells for _, cells in columns), strict=True))
    return f'<table class="vitlib"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def _cell(value: Any, spec: str) -> str:
    if value is None or value != value:
        return "—"
    if spec:
        return format(value, spec).replace("-", "−")
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    return str(value)
