"""Merge executed notebooks into one and check that every output may go into the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labreport.assembly.notebooks import cells_with_numbers
from vitlib.errors import UserError

HIDDEN = {"hide-input", "parameters", "injected-parameters"}


def merge(paths: Sequence[Path]) -> tuple[NotebookNode, list[dict[str, Any]]]:
    """Return the cells of executed notebooks as one notebook, and the origins that they carry.

    Every cell is marked with where it comes from; progress bars, previews and hidden inputs are taken out, and so are
    headlines, which travel with the origins to the abstract.

    Raises:
        UserError: a cell that failed or was not run, a figure or table without caption, a notebook that
            never called ``show.set_context``.
    """
    merged, origins = nbformat.v4.new_notebook(), []
    for path in paths:
        found = []
        for number, cell in cells_with_numbers(nbformat.read(path, as_version=4)):
            where = f"笔记本 {path.stem} 的第 {number} 个单元"
            cell.metadata["where"] = where
            cell["id"] = f"{len(merged.cells)}"  # unique in the whole report, as each was in its notebook
            if cell.cell_type == "code":
                found += _clean(cell, where)
            merged.cells.append(cell)
        if not any(origin.get("data") for origin in found):
            raise UserError(
                f"笔记本 {path.stem} 没有调用 show.set_context(data)，报告说不出它的数据从哪里来；"
                "请在载入数据后调用它。"
            )
        origins += found
    return merged, origins


def _clean(cell: NotebookNode, where: str) -> list[dict[str, Any]]:
    """Keep a code cell's outputs that belong in the report; return the origins of its runs and data."""
    if cell.source.strip() and cell.execution_count is None:
        raise UserError(f"{where}没有运行过，不能放进报告；请重新生成报告。")
    if HIDDEN & set(cell.metadata.get("tags", ())):
        cell.metadata["transient"] = {"remove_source": True}
    kept, origins = [], []
    for output in cell.outputs:
        meta = output.get("metadata", {}).get("vitlib", {})
        kind, data = meta.get("kind"), output.get("data", {})
        if output.output_type == "error":
            raise UserError(f"{where}出错：{output.ename}: {output.evalue}")
        if meta.get("runs") or kind == "origin":
            origins.append({"runs": meta["runs"], "data": meta.get("data")})
        if kind == "headline":
            origins.append({"runs": [], "data": None, "headline": data["text/plain"]})
        if kind in ("origin", "preview", "headline") or output.get("name") == "stderr":
            continue
        if "application/vnd.jupyter.widget-view+json" in data or str(data.get("text/plain", "")).startswith("<"):
            continue  # widgets need a kernel; a bare repr such as <Axes: ...> says nothing to a reader
        is_picture = any(mime.startswith("image/") for mime in data)
        if kind not in ("fig", "tab") and (is_picture or "<table" in data.get("text/html", "")):
            what, call = ("图", "show.figure") if is_picture else ("表", "show.table")
            raise UserError(f"{where}显示了一张没有题注的{what}；请用 {call}(…, 题注, 标签) 显示它。")
        kept.append(output)
    cell.outputs = kept
    return origins
