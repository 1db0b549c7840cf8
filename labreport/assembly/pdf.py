"""Print the report's HTML to PDF, twice: the contents' page numbers come from the first printing."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from bs4 import BeautifulSoup
from pypdf import PdfReader

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
            reader = PdfReader(printed)
            if not _fill_page_numbers(soup, reader):
                printed.replace(pdf)
                return len(reader.pages)
    raise UserError("PDF 目录的页码四次打印都不一致；请用环境变量 CHROME 换一个浏览器重试。")


def _fill_page_numbers(soup: BeautifulSoup, reader: PdfReader) -> bool:
    """Write the pages of a printing into the contents; return whether any number changed."""
    changed = False
    places = {re.sub(r"^/", "", name): place for name, place in reader.named_destinations.items()}
    for link in soup.select("nav a"):
        page = reader.get_destination_page_number(places[str(link["href"])[1:]])
        slot = link.select_one(".page")
        assert slot is not None and page is not None
        changed |= slot.string != str(page + 1)
        slot.string = str(page + 1)
    return changed
