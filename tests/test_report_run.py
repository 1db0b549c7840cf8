"""Running notebooks, what the terminal says meanwhile, finding a browser; and the real browser (slow)."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import report_cases as cases
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pikepdf import Pdf
from pypdf import PdfReader

from labreport.assembly import browser, terminal
from labreport.assembly.browser import find_browser
from labreport.assembly.build import assemble, build_report
from labreport.assembly.pdf import make_pdf, shrunk_to
from vitlib.errors import UserError
from vitlib.progress import RELAY, Progress


def source_notebook(folder: Path, name: str, *sources: str) -> Path:
    """Write a notebook that was not run: a heading, a parameters cell and ``sources``."""
    cells = [
        new_markdown_cell("# 2.1 一章"),
        new_code_cell("profile, data = '', ''", metadata={"tags": ["parameters"]}),
    ]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[*cells, *map(new_code_cell, sources)]), path)
    return path


def test_notebooks_run_in_this_interpreter_from_anywhere_and_a_failing_cell_is_named(tmp_path, monkeypatch):
    home, books, out = tmp_path / "home", tmp_path / "books", tmp_path / "out"
    for folder in (home, books, out):
        folder.mkdir()
    kernels = home / ".local/share/jupyter/kernels/python3"
    kernels.mkdir(parents=True)  # a kernel of the user's that must not be used
    (kernels / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    good = source_notebook(
        books, "2.1_good", "import os, sys\nprint(sys.executable, profile, data, os.getcwd(), sep='|')"
    )
    bad = source_notebook(books, "2.2_bad", "x = 1", "# 说明\nassert x == 2, '不等'\n")
    old = out / "report.html"
    old.write_text("旧")
    with pytest.raises(
        UserError, match=r"2\.2_bad 的第 4 个单元（assert x == 2, '不等'）出错：AssertionError: 不等"
    ) as caught:
        build_report(profile="smoke", data="synthetic", out_dir=out, notebooks=[good, bad], progress=False)
    assert "2.2_bad.partial.ipynb" in str(caught.value)
    assert old.read_text() == "旧"
    assert sorted(path.name for path in (out / "notebooks").iterdir()) == [
        "2.1_good.ipynb",
        "2.2_bad.partial.ipynb",
    ]
    executed = nbformat.read(out / "notebooks/2.1_good.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.strip() == f"{sys.executable}|smoke|synthetic|{home}"


def test_wrong_members_stop_the_build_before_anything_runs(tmp_path):
    members = tmp_path / "members.yml"
    members.write_text("members:\n - {name: 甲, work: 一, share: 90}", "utf-8")
    book = source_notebook(tmp_path, "2.1_a")
    with pytest.raises(UserError, match="加起来是 90 %"):
        build_report(profile="smoke", data="synthetic", out_dir=tmp_path / "out", notebooks=[book], members=members)
    assert not (tmp_path / "out/notebooks").exists()


@pytest.fixture
def status(tmp_path, monkeypatch):
    """A status line over two notebooks, with a clock that the test moves."""
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    line = terminal.StatusLine(tmp_path / "relay.json")
    line.clock, line.relay = clock, tmp_path / "relay.json"
    line.plan("2.1", {"a": "方法", "b": "训练"}, {})
    line.plan("2.2", {"c": "方法"}, {"c": 40.0})
    return line


def test_time_left_comes_from_last_time_the_cells_done_and_the_training_within(status):
    status.start_notebook("2.1")
    status.start_cell("a")
    status.clock[0] = 10.0
    status.start_cell("not planned")
    status.start_cell("b")
    assert status.seconds_left() == 40.0  # c took 40 s last time; nothing is known of b
    status.relay.write_text(json.dumps({"text": "训练 best", "done": 30, "total": 90, "seconds_left": 65.0}))
    assert status.seconds_left() == 105.0
    assert status.line() == "━━━━──────── 剩约 1 分 45 秒 | 2.1 单元 2/2 训练 | 训练 best 30/90"
    status.start_notebook("2.2")
    status.relay.write_text("")
    status.start_cell("c")
    status.clock[0] += 15.0
    assert status.seconds_left() == 25.0


def test_before_anything_is_known_no_time_is_invented(tmp_path):
    line = terminal.StatusLine(tmp_path / "relay.json")
    line.plan("2.1", {"a": "方法"}, {})
    assert line.line() == ""
    line.start_notebook("2.1")
    assert line.line().endswith("剩余时间待估 | 2.1 单元 0/1 启动内核")


def test_the_kernels_chinese_messages_pass_but_bars_and_library_warnings_do_not(status, capsys):
    for piece in ("没有编译器，", "改用逐步执行\nFutureWarning: old\n", "\r训练 10%\r训练 20%\n"):
        status.write(piece)
    assert capsys.readouterr().err == "没有编译器，改用逐步执行\n"


def test_a_line_is_cut_to_the_terminal_by_columns_not_characters():
    assert terminal._cut("ab中文字", 6) == "ab中文" and terminal._cut("ab中文字", 5) == "ab中"


def program(folder: Path, body: str) -> Path:
    path = folder / "browser"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_chrome_overrides_and_must_exist(tmp_path, monkeypatch):
    path = program(tmp_path, "")
    monkeypatch.setenv("CHROME", str(path))
    assert browser.find_browser() == str(path)
    monkeypatch.setenv("CHROME", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"环境变量 CHROME 指的.*none"):
        browser.find_browser()


@pytest.mark.parametrize(
    ("system", "place"),
    [
        ("darwin", "Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge"),
        ("linux", "bin/google-chrome"),
        ("linux", ".cache/ms-playwright/chromium-1234/chrome-linux/chrome"),
    ],
)
def test_browsers_are_found_where_each_system_keeps_them(system, place, tmp_path, monkeypatch):
    for variable in ("CHROME", "PLAYWRIGHT_BROWSERS_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "platform", system)
    assert browser.find_browser() is None
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    program(tmp_path, "").rename(path)
    assert browser.find_browser() == str(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('GPU 没有了')", "退出码 1：GPU 没有了"),
        ("pass", "没有打印出 PDF（退出码 0"),
        ("time.sleep(60)", "超过 1 秒"),
    ],
)
def test_a_browser_that_fails_is_named_and_leaves_the_old_report(body, words, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "TIMEOUT", 1)
    monkeypatch.setattr("labreport.assembly.fonts.embed", lambda soup: "")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("CHROME", str(program(tools, body)))
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("旧")
    executed = cases.write(tmp_path, "2.1_a", cases.chapter())
    with pytest.raises(UserError, match=words):
        assemble([executed], out)
    assert [path.name for path in out.iterdir()] == ["report.html"] and (out / "report.html").read_text() == "旧"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A report of two chapters and a table longer than a page, printed by the real browser."""
    if browser.find_browser() is None:
        pytest.skip("no Chromium-family browser")
    out = tmp_path_factory.mktemp("printed")
    paths = [
        cases.write(out, "2.1_a", cases.chapter("2.1", "curve")),
        cases.write(out, "2.2_b", cases.chapter("2.2", "other", rows=70)),
    ]
    return assemble(paths, out)


def squeeze(text: str) -> str:
    return re.sub(r"\s", "", text)


def entries(reader, outline):
    """Yield (title without spaces, page number from 1) of every outline entry."""
    for entry in outline:
        if isinstance(entry, list):
            yield from entries(reader, entry)
        else:
            yield squeeze(entry.title), reader.get_destination_page_number(entry) + 1


@pytest.mark.slow
def test_the_pdf_has_pages_outline_text_contents_and_proper_fonts(printed):
    path = printed.with_suffix(".pdf")
    reader = PdfReader(path)
    texts = [page.extract_text() for page in reader.pages]
    total = len(texts)
    assert total >= 5 and all(f"{at} / {total}" in text for at, text in enumerate(texts, start=1))
    assert "合成数据" in texts[0] and "注意力的尺度" in "".join(texts)
    assert all(abs(page.mediabox.width - 595) < 1 and abs(page.mediabox.height - 842) < 1 for page in reader.pages)
    outline = dict(entries(reader, reader.outline))
    lines = [squeeze(line) for text in texts if "目录" in text for line in text.splitlines()]
    chapters = ["2.1一章", "2.1.1方法", "2.2一章", "2.2.2结果", "附录A数据、软件与运行的来历", "A.3运行记录"]
    assert set(chapters) <= set(outline)
    for title in chapters:
        assert any(re.fullmatch(rf"{re.escape(title)}{outline[title]}", line) for line in lines), (
            title,
            lines,
        )
    fonts = [
        font.get_object()
        for page in reader.pages
        for font in page["/Resources"].get_object().get("/Font", {}).get_object().values()
    ]
    assert {font["/Subtype"] for font in fonts} == {"/Type0"}
    assert {font["/DescendantFonts"][0].get_object()["/Subtype"] for font in fonts} == {"/CIDFontType2"}
    assert b"/ObjStm" in path.read_bytes()  # packed
    with Pdf.open(path) as document:
        assert shrunk_to(document) == pytest.approx(1, abs=0.001)
    assert path.stat().st_size < 4 * 2**20 and printed.stat().st_size < 4 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium-family browser")
def test_a_table_wider_than_the_page_is_told(tmp_path, capsys):
    row = "".join(f'<td style="white-space: nowrap">{"宽" * 30}</td>' for _ in range(4))
    head = "<meta charset='utf-8'><style>@page { size: A4; margin: 20mm }</style>"
    html = f'<!doctype html><html lang="zh"><head>{head}</head><body><nav></nav><table><tr>{row}</tr></table></body></html>'
    make_pdf(html, tmp_path / "wide.pdf", find_browser())
    assert re.search(r"缩到了 \d+ %", capsys.readouterr().err)
    with Pdf.open(tmp_path / "wide.pdf") as document:
        assert shrunk_to(document) < 0.9


@pytest.mark.slow
def test_a_long_table_repeats_its_head_and_splits_no_row(printed):
    texts = [page.extract_text() for page in PdfReader(printed.with_suffix(".pdf")).pages]
    body = [text for text in texts if "表头方法" in text]
    assert len(body) >= 3, "a page of the short table, two of the long one"
    for row in range(2, 70):
        assert [f"第 {row} 行" in text for text in body] == [f"−{row}.5%" in text for text in body]
        assert sum(f"第 {row} 行" in text for text in body) == 1


@pytest.mark.slow
def test_the_page_opens_without_network_errors_or_missing_fonts(printed):
    sync_api = pytest.importorskip("playwright.sync_api")
    requests, complaints = [], []
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser.find_browser(), args=["--no-sandbox", "--disable-gpu"])
        context = chromium.new_context(offline=True)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(printed.as_uri())
        page.evaluate("document.fonts.ready")
        fonts = page.evaluate("[...document.fonts].map(f => f.family + ' ' + f.status)")
        widths = page.evaluate("[...document.images].map(i => i.naturalWidth)")
        over = {}
        for width in (1280, 390):  # a desk, a telephone
            page.set_viewport_size({"width": width, "height": 800})
            over[width] = page.evaluate("document.documentElement.scrollWidth") - width
        chromium.close()
    assert [url for url in requests if not url.startswith("data:")] == [printed.as_uri()]
    assert complaints == []
    assert {name.replace('"', "") for name in fonts} == {f"Report {x} loaded" for x in ("Song", "Hei", "Mono", "Math")}
    assert widths and all(width > 0 for width in widths)
    assert over == {1280: 0, 390: 0}


@pytest.mark.slow
def test_the_printed_pages_are_not_blank(printed, tmp_path):
    try:
        subprocess.run(["pdftoppm", "-r", "40", "-gray", printed.with_suffix(".pdf"), tmp_path / "p"], check=True)
    except FileNotFoundError:
        pytest.skip("needs poppler-utils")
    pages = sorted(tmp_path.glob("p-*.pgm"))
    assert len(pages) == len(PdfReader(printed.with_suffix(".pdf")).pages)
    for path in pages:
        pixels = path.read_bytes().split(b"\n", 3)[3]
        assert sum(value < 200 for value in pixels) > 50, path.name


def test_a_training_goes_on_where_its_progress_cannot_be_told(tmp_path, monkeypatch):
    monkeypatch.setenv(RELAY, str(tmp_path))  # a folder: like a full disk, it takes no text
    with Progress(2, "x") as progress:
        progress.advance(2)
