"""Build the report: notebooks -> one offline HTML file -> PDF; what was there stays until all has worked."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from labreport.assembly.browser import INSTALL, find_browser
from labreport.assembly.front import bibliography, gather, read_members
from vitlib.errors import UserError
from vitlib.paths import build_dir, share

SIZE_LIMIT = 4 * 2**20  # bytes, of the HTML and of the PDF


def build_report(
    *,
    profile: str,
    data: str,
    out_dir: Path | None = None,
    notebooks: Sequence[Path] | None = None,
    members: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the notebooks and write ``report.html`` and ``report.pdf``; return the HTML's path.

    Args:
        profile, data: given to every notebook as its parameters of the same names.
        out_dir: where the report and, under ``notebooks/``, the executed copies go; ``build/`` by default.
        notebooks: by default the four that go with the project.
        members: the table of members; ``report/members.yml`` by default.
        progress: show progress on standard error.

    Raises:
        UserError: wrong table of members, bad ``CHROME``, a failing cell, a missing caption, a label used
            twice, a broken reference or formula, a browser that fails. The previous report stays.
    """
    out_dir = (out_dir or build_dir()).resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    read_members(members or share("report") / "members.yml")  # fail now, not after the training
    find_browser()
    paths = list(notebooks) if notebooks is not None else sorted(share("notebooks").glob("2.*.ipynb"))
    if not paths:
        raise UserError(f"在 {share('notebooks')} 里没有找到笔记本；请重新取得完整的项目。")

    from labreport.assembly.notebooks import run_notebooks

    executed = run_notebooks(paths, {"profile": profile, "data": data}, out_dir / "notebooks", progress)
    return assemble(executed, out_dir, members=members)


def assemble(executed: Sequence[Path], out_dir: Path, *, members: Path | None = None) -> Path:
    """Make the report from executed notebooks; return the HTML's path. Raises as :func:`build_report`."""
    from labreport.assembly.document import merge
    from labreport.assembly.exporter import to_html
    from labreport.assembly.pdf import make_pdf

    people = read_members(members or share("report") / "members.yml")
    browser = find_browser()
    title, abstract = _front_matter(share("report") / "front.md")
    notebook, origins = merge(executed)
    front = {"title": title, "abstract": abstract, **people, **gather(origins), "papers": bibliography(notebook)}
    html, unused = to_html(notebook, front)
    final_html, final_pdf = out_dir / "report.html", out_dir / "report.pdf"
    with TemporaryDirectory(prefix="report-", dir=out_dir, ignore_cleanup_errors=True) as name:
        new_html, new_pdf = Path(name) / "report.html", Path(name) / "report.pdf"
        new_html.write_text(html, "utf-8")
        pages = make_pdf(html, new_pdf, browser) if browser else 0
        os.replace(new_html, final_html)
        if pages:
            os.replace(new_pdf, final_pdf)
        else:
            final_pdf.unlink(missing_ok=True)  # an older PDF beside a newer HTML would mislead
    _tell(final_html, final_pdf, pages, unused)
    return final_html


def _front_matter(path: Path) -> tuple[str, str]:
    """Split front.md into its title and the Markdown below it."""
    match = re.match(r"#\s+(.+)\n+", text := path.read_text("utf-8"))
    if not match:
        raise UserError(f"{path} 的第一行应是报告的标题（# 标题）。")
    return match[1].strip(), text[match.end() :]


def _tell(html: Path, pdf: Path, pages: int, unused: Sequence[str]) -> None:
    made = [html, pdf] if pages else [html]
    for path in made:
        size = path.stat().st_size
        note = f"，{pages} 页" if path == pdf else ""
        print(f"已生成 {path}（{size / 2**20:.1f} MB{note}）", file=sys.stderr)
        if size > SIZE_LIMIT:
            print(f"注意：{path.name} 超过 {SIZE_LIMIT / 2**20:g} MB，请减少图像网格。", file=sys.stderr)
    if not pages:
        print(f"没有找到浏览器，只生成了 HTML；要得到 PDF，{INSTALL}。", file=sys.stderr)
    if unused:
        print(f"注意：正文没有提到 {'、'.join(unused)}。", file=sys.stderr)
