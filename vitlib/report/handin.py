"""Pack what is handed in: the report and the code in one zip, without data, images of it or caches."""

import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

from vitlib.errors import UserError
from vitlib.paths import PACKAGE, build_dir, checkout

CODE = {".py", ".ipynb", ".md", ".toml", ".yml", ".yaml", ".css", ".j2", ".json", ".lock", ".txt", ".cfg"}
NAMES = {"LICENSE", "Makefile"}
SKIPPED = {"build", "data", "dist", "__pycache__"}
ROOT = "cifar-vit"


def handin(out: Path | None = None, *, report_dir: Path | None = None) -> Path:
    """Write one zip with the report (HTML, and PDF if there is one) and the code; return its path.

    Args:
        out: the zip; ``handin.zip`` beside the report by default.
        report_dir: the folder of ``report.html``; ``build/`` by default.

    Raises:
        UserError: there is no report yet, or the zip cannot be written.
    """
    report_dir = report_dir or build_dir()
    out = out or report_dir / "handin.zip"
    reports = [path for name in ("report.html", "report.pdf") if (path := report_dir / name).is_file()]
    if not reports or reports[0].suffix != ".html":
        raise UserError(f"{report_dir} 里还没有 report.html；请先运行 make report（或 vitlib report）。")
    root = checkout() or PACKAGE.parent
    files = sorted(set(_tracked(root) if checkout() else ()) or set(_code_below(checkout() or PACKAGE)))
    partial = out.with_name(f"{out.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in reports:
                archive.write(path, f"{ROOT}/{path.name}")
            for path in files:
                archive.write(path, f"{ROOT}/code/{path.relative_to(root).as_posix()}")
        os.replace(partial, out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"压缩包 {out} 写不出来（{error.strerror}）；请检查权限和剩余空间。") from error
    return out


def _tracked(root: Path) -> Iterator[Path]:
    """Yield the files that git tracks, and code that it would; nothing where git or its folder is missing."""
    if not (root / ".git").exists():
        return
    for options in (["--cached"], ["--others", "--exclude-standard"]):
        try:
            command = ["git", "-C", str(root), "ls-files", "-z", *options]
            listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
        except (OSError, subprocess.CalledProcessError):  # no git here: the folder is walked instead
            return
        for name in filter(None, listed.split("\0")):
            path = root / name
            if path.is_file() and (options == ["--cached"] or path.suffix in CODE):
                yield path


def _code_below(root: Path) -> Iterator[Path]:
    """Yield the code below a folder that is not a repository, by the names of its files."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        for path in (Path(folder) / name for name in names):
            if path.suffix in CODE or path.name in NAMES:
                yield path
