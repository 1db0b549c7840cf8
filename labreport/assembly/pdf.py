"""Print the report's HTML to PDF, twice: the contents' page numbers come from the first printing."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bs4 import BeautifulSoup
from pikepdf import ObjectStreamMode, Pdf

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
                    # the structure that screen readers use is thousands of objects: half of an unpacked file
                    document.save(folder / "packed.pdf", object_stream_mode=ObjectStreamMode.generate)
                    (folder / "packed.pdf").replace(pdf)
                    return len(document.pages)
    raise UserError("PDF 目录的页码四次打印都不一致；请用环境变量 CHROME 换一个浏览器重试。")


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
