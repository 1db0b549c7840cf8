"""Print the report's HTML to PDF, twice: the contents' page numbers come from the first printing."""

import math
import sys
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bs4 import BeautifulSoup
from pikepdf import ObjectStreamMode, Pdf, parse_content_stream

from labreport.assembly.browser import print_page
from vitlib.errors import UserError


def make_pdf(html: str, pdf: Path, browser: str) -> int:
    """Print ``html`` with ``browser`` to ``pdf`` (A4, outline, page numbers) and return the number of pages.

    Raises:
        UserError: the browser fails, or page numbers do not settle.
    """
    soup = BeautifulSoup(html, "html.parser")
    # beside the PDF, not in /tmp: Ubuntu's Chromium (a snap) sees neither /tmp nor hidden folders
    with TemporaryDirectory(prefix="print-", dir=pdf.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        page, printed = folder / "report.html", folder / "report.pdf"
        for _ in range(4):
            page.write_text(str(soup), "utf-8")
            print_page(browser, page, printed, folder / "profile")
            with Pdf.open(printed) as document:
                if not _fill_page_numbers(soup, document):
                    if (scale := shrunk_to(document)) < 0.95:
                        print(
                            f"注意：有图表比页面宽，浏览器把 PDF 的全部内容缩到了 {100 * scale:.0f} %；请缩短它的列名或分成两张。",
                            file=sys.stderr,
                        )
                    # the structure that screen readers use is thousands of objects: half of an unpacked file
                    document.save(folder / "packed.pdf", object_stream_mode=ObjectStreamMode.generate)
                    (folder / "packed.pdf").replace(pdf)
                    return len(document.pages)
    raise UserError("PDF 目录的页码四次打印都不一致；请用环境变量 CHROME 换一个浏览器重试。")


def shrunk_to(document: Pdf) -> float:
    """Return the scale (0-1) of the first page: 1 unless the browser made all pages smaller to fit something wide.

    Chromium's pages begin with two transformations: device dots to points, then CSS pixels to dots.
    """
    first = (part.operands for part in parse_content_stream(document.pages[0]) if str(part.operator) == "cm")
    points = math.prod(float(matrix[0]) for matrix in islice(first, 2))
    return points * 96 / 72  # CSS pixels are 1/96 inch


def _fill_page_numbers(soup: BeautifulSoup, document: Pdf) -> bool:
    """Write the pages of a printing into the contents; return whether any number changed."""
    changed = False
    numbers: dict[Any, str] = {page.objgen: str(number) for number, page in enumerate(document.pages, 1)}
    for link in soup.select("nav a"):
        # a named destination is [page, how it is shown, ...] (ISO 32000-1, 12.3.2)
        number = numbers[document.Root.Dests["/" + str(link["href"])[1:]][0].objgen]
        slot = link.select_one(".page")
        assert slot is not None
        changed |= slot.string != number
        slot.string = number
    return changed
