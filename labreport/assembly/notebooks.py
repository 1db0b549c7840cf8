"""Run notebooks headlessly with papermill, in this interpreter, with one line of progress in the terminal."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbformat import NotebookNode

from labreport.assembly.terminal import StatusLine
from vitlib.errors import UserError
from vitlib.paths import PACKAGE
from vitlib.progress import RELAY

KERNEL = "vitlib-report"
NOT_THE_READERS = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill adds


def run_notebooks(
    paths: Sequence[Path], parameters: Mapping[str, Any], folder: Path, progress: bool = True
) -> list[Path]:
    """Execute notebooks one after the other and return the executed copies in ``folder``.

    A copy is written as ``X.partial.ipynb`` and renamed when its last cell has run. The kernels run this
    very interpreter, whatever kernels the user has installed, in the current working folder.

    Raises:
        UserError: a failing cell (named, with its first line) or a kernel that died; the partial copy stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        relay = Path(scratch) / "progress.json"
        with StatusLine(relay, progress) as status, _own_kernel(Path(scratch), relay):
            for path in paths:
                status.plan(path.stem, _code_cells(path), _last_durations(folder / path.name, parameters))
            return [_run(path, parameters, folder, status) for path in paths]


def _run(path: Path, parameters: Mapping[str, Any], folder: Path, status: StatusLine) -> Path:
    import papermill
    from nbclient.exceptions import DeadKernelError

    partial, final = folder / f"{path.stem}.partial.ipynb", folder / path.name
    status.start_notebook(path.stem)
    try:
        papermill.execute_notebook(
            path,
            partial,
            parameters=dict(parameters),
            kernel_name=KERNEL,
            language="python",
            progress_bar=False,
            stderr_file=status,
            on_cell_start=lambda cell, cell_index: status.start_cell(cell.id),
        )
    except papermill.PapermillExecutionError as error:
        raise UserError(_failure(path, partial)) from error
    except DeadKernelError as error:
        raise UserError(
            f"运行笔记本 {path.stem} 的进程意外退出，多半是内存不足；请关掉别的程序或改用较小的 PROFILE。报告没有更新。"
        ) from error
    os.replace(partial, final)
    return final


def cells_with_numbers(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """Yield every cell with its number in the notebook as its author sees it, papermill's own having none."""
    number = 0
    for cell in notebook.cells:
        number += not NOT_THE_READERS & set(cell.metadata.get("tags", ()))
        yield number, cell


def _failure(path: Path, partial: Path) -> str:
    """Return the sentence that names the failing cell of a partial copy and its error."""
    for number, cell in cells_with_numbers(nbformat.read(partial, as_version=4)):
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                lines = [line.strip() for line in cell.source.splitlines()]
                first = next((line for line in lines if line and not line.startswith("#")), "")
                reason = output.evalue if output.ename == "UserError" else f"{output.ename}: {output.evalue}"
                return (
                    f"笔记本 {path.stem} 的第 {number} 个单元（{first}）出错：{reason}\n"
                    f"报告没有更新；执行到出错处的笔记本在 {partial}。"
                )
    return f"笔记本 {path.stem} 没有运行完，原因不明；执行到一半的笔记本在 {partial}。"


def _code_cells(path: Path) -> dict[str, str]:
    """Return id -> nearest heading above of the code cells that will run."""
    cells, heading = {}, path.stem
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1] if headings else heading
        elif cell.cell_type == "code" and cell.source.strip():
            cells[cell.id] = heading
    return cells


def _last_durations(executed: Path, parameters: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds each cell took the last time, if that was with the same parameters."""
    if not executed.is_file():
        return {}
    try:
        notebook = nbformat.read(executed, as_version=4)
    except (ValueError, OSError):  # only an estimate is lost; this run replaces the damaged copy
        return {}
    if notebook.metadata.get("papermill", {}).get("parameters") != dict(parameters):
        return {}
    return {cell.id: cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells}


@contextmanager
def _own_kernel(scratch: Path, relay: Path) -> Iterator[None]:
    """Offer a kernel of this interpreter by a name of its own, untouched by the user's IPython settings."""
    places = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "--log-level=40", "-f", "{connection_file}"],
        "display_name": KERNEL,
        "language": "python",
        "env": {
            RELAY: str(relay),
            "IPYTHONDIR": str(scratch / "ipython"),
            "PYTHONPATH": os.pathsep.join(places),
            "KINETO_LOG_LEVEL": "99",  # else the profiler of 2.4 writes into the progress bar
        },
    }
    folder = scratch / "kernels" / KERNEL
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec), "utf-8")
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(scratch), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["JUPYTER_PATH"]
        else:
            os.environ["JUPYTER_PATH"] = before
