"""The report's page: numbers, references, checks, front page, appendix, fonts, and that it asks for nothing."""

import base64
import csv
import io
import json
import re
from urllib.parse import unquote
from xml.etree.ElementTree import canonicalize, fromstring

import matplotlib.pyplot as plt
import pytest
import report_cases as cases
from bs4 import BeautifulSoup
from fontTools.pens.areaPen import AreaPen
from fontTools.ttLib import TTFont
from nbformat.v4 import new_markdown_cell, new_notebook, new_output

from labreport.assembly import fonts, mathml
from labreport.assembly.build import assemble
from labreport.assembly.captions import finish
from labreport.assembly.document import merge
from labreport.assembly.exporter import svg_quoted, to_html
from labreport.assembly.front import bibliography, duration, gather, read_members
from vitlib.errors import UserError
from vitlib.paths import share


def front(origins):
    people = read_members(share("report") / "members.yml")
    return {"title": "报告标题", "abstract": "摘要 $x^2$。", **people, **gather(origins)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The finished page of two chapters, as soup."""
    folder = tmp_path_factory.mktemp("page")
    paths = [
        cases.write(folder, "2.1_a", cases.chapter("2.1", "curve")),
        cases.write(folder, "2.2_b", cases.chapter("2.2", "other")),
    ]
    notebook, origins = merge(paths)
    html, unused = to_html(notebook, front(origins))
    assert unused == []
    return BeautifulSoup(html, "html.parser")


@pytest.fixture
def without_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "embed", lambda soup: "")


def test_the_abstract_ends_with_each_sections_headline_which_the_sections_do_not_repeat(page):
    assert [line.get_text() for line in page.select(".abstract li")] == ["2.1 节：<高 1.0>。", "2.2 节：<高 1.0>。"]
    assert page.get_text().count("2.1 节：<高 1.0>。") == 1


def test_every_paper_that_a_notebook_cites_is_in_the_bibliography_and_no_other():
    texts = [path.read_text("utf-8") for path in sorted(share("notebooks").glob("2.*.ipynb"))]
    prose = "\n".join("".join(cell["source"]) for text in texts for cell in json.loads(text)["cells"])
    cited = set(re.findall(r"[A-Z][a-zü]+(?: 与 [A-Z][a-z]+| 等)?，(?:19|20)\d\d", prose))
    with (share("report") / "references" / "papers.csv").open(encoding="utf-8", newline="") as file:
        assert {row["引用"] for row in csv.DictReader(file)} == cited
    notebook = new_notebook(cells=[new_markdown_cell("焦点损失（Lin 等，2017，式 4）")])
    assert [paper.split(",")[0] for paper in bibliography(notebook)] == ["Lin T-Y"]


def test_the_cover_names_the_whole_data_and_says_that_some_runs_saw_a_part():
    facts = {"name": "course", "synthetic": False, "warnings": [], "skipped": []}
    whole, part = (
        {**facts, "fingerprint": words, "provenance": words} for words in ("课程数据", "课程数据；抽取的子集")
    )
    both = gather({"runs": [], "data": data} for data in (part, whole))
    assert (both["sources"], both["in_part"]) == (["课程数据"], True)
    alone = gather([{"runs": [], "data": part}])
    assert (alone["sources"], alone["in_part"]) == (["课程数据；抽取的子集"], False)


def test_the_page_is_chinese_titled_and_asks_for_nothing(page):
    assert page.html["lang"] == "zh-CN" and page.title.string == "报告标题"
    assert not page.select("script, iframe, link, object, embed")
    sources = [
        tag[name] for tag in page.find_all(True) for name in ("src", "srcset", "data", "poster") if tag.get(name)
    ]
    styles = "".join(style.get_text() for style in page.select("style"))
    sources += re.findall(r"url\(([^)]*)\)", styles) + re.findall(r"@import[^;]*", styles)
    assert len(sources) >= 6 and all(source.strip("\"'").startswith("data:") for source in sources)
    assert "default-src 'none'" in page.select_one("meta[http-equiv]")["content"]
    assert not page.select("[data-where]")


def test_line_art_reads_back_as_it_was(page):
    sources = [image["src"].partition(",") for image in page.select("figure img")]
    drawn = [unquote(content) for kind, _, content in sources if kind == "data:image/svg+xml"]
    assert drawn and set(map(canonicalize, drawn)) == {canonicalize(cases.SVG)}


def test_a_figure_loses_nothing_but_comments_names_of_groups_and_spaces():
    fig, axes = plt.subplots()
    axes.plot([1, 2, 3], [2, 1, 2], marker="s", label="accuracy")
    axes.fill_between([1, 2, 3], [1, 0, 1], [3, 2, 3], alpha=0.3)
    axes.legend()
    file = io.BytesIO()
    fig.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    plt.close(fig)
    svg = file.getvalue().decode()
    svg = svg[svg.index("<svg") :]

    def parts(drawing):
        for node in fromstring(drawing).iter():
            named = {key: value for key, value in node.attrib.items() if (node.tag[-2:], key) != ("}g", "id")}
            yield node.tag, named | {"d": re.findall(r"[A-Za-z]|[-.\d]+", node.get("d", ""))}, (node.text or "").split()

    short = unquote(svg_quoted(svg))
    assert [*parts(short)] == [*parts(svg)]
    assert "<!--" in svg and "<!--" not in short and "> <" not in short
    assert {*re.findall(r"href=[\"']#([^\"']*)", short)} <= {*re.findall(r"id=[\"']([^\"']*)", short)}
    assert len(short) < 0.95 * len(" ".join(svg.split()))


def test_captions_are_numbered_by_chapter_and_references_filled(page):
    numbers = [mark.string for mark in page.select("figcaption .number")]
    assert numbers[:4] == ["图 2.1-1", "表 2.1-1", "图 2.2-1", "表 2.2-1"] and "表 A-3" in numbers
    assert [link.string for link in page.select('a[href="#fig:other"]')] == ["图 2.2-1"] * 2
    assert page.select_one('a[href="#tab:other"]').string == "表 2.2-1"
    picture, grid = page.select_one('[id="fig:curve"]'), page.select_one('[id="tab:curve"]')
    assert picture.img["alt"].startswith("图 2.1-1 收敛曲线") and picture.contents[-1].name == "figcaption"
    assert grid.find(True).name == "figcaption" and grid.td.math is not None
    assert picture.figcaption.math is not None


def test_headings_are_numbered_and_listed_in_the_contents(page):
    assert [line.span.get_text() for line in page.select("nav a")] == [
        "2.1\u3000一章", "2.1.1\u3000方法", "2.1.2\u3000结果", "2.2\u3000一章", "2.2.1\u3000方法", "2.2.2\u3000结果",
        "附录 A\u3000数据、软件与运行的来历", "A.1\u3000数据", "A.2\u3000软件与机器", "A.3\u3000运行记录",
    ]  # fmt: skip
    assert all(page.find(id=line["href"][1:]) is not None for line in page.select("nav a"))


def test_inputs_previews_and_progress_are_left_out(page):
    text = page.main.get_text()
    assert "看得见的代码" in text and "输出一行" in text and page.select(".source .c1")
    for hidden in ("profile", "set_context", "show.figure", "训练 10%", "预览"):
        assert hidden not in text


def test_a_source_line_break_between_chinese_is_no_space(page):
    assert "向量，再用自注意力" in page.main.get_text()


def test_no_line_of_text_begins_with_a_percent_sign():
    soup = BeautifulSoup("<nav></nav><main><p>88.5 % 与 95 % 区间</p><pre>5 %</pre></main>", "html.parser")
    finish(soup)
    assert soup.p.get_text() == "88.5\N{NO-BREAK SPACE}% 与 95\N{NO-BREAK SPACE}% 区间" and soup.pre.get_text() == "5 %"


def test_a_short_heading_keeps_its_unit_in_its_line():
    heads = '<table><th class="num">参数量 / M</th><th class="num">内存峰值 / MiB</th></table>'
    soup = BeautifulSoup(f"<nav></nav><main>{heads}</main>", "html.parser")
    finish(soup)
    assert [head.get_text().count("\N{NO-BREAK SPACE}") for head in soup.select("th")] == [2, 0]


def test_a_long_name_may_break_behind_an_underscore_but_not_in_a_program():
    soup = BeautifulSoup("<nav></nav><main><p>训练集 <code>CIFAR10_im_b</code></p><pre>a_b</pre></main>", "html.parser")
    finish(soup)
    assert str(soup.p) == "<p>训练集 <code>CIFAR10_<wbr/>im_<wbr/>b</code></p>" and str(soup.pre) == "<pre>a_b</pre>"


def test_a_sentence_that_goes_on_after_a_formula_is_no_new_paragraph():
    formula = '<p><math display="block"></math></p>'
    parts = [
        "最小化交叉熵",
        formula,
        "尽可能小。方差是",
        formula,
        "其中 x 是输入。浮点运算数是",
        formula,
        "它与 N 成正比。",
    ]
    text = "".join(part if part is formula else f"<section data-where='2'><p>{part}</p></section>" for part in parts)
    soup = BeautifulSoup(f"<nav></nav><main>{text}</main>", "html.parser")
    finish(soup)
    assert [p.get_text()[:2] for p in soup.select("p.continued")] == ["尽可", "其中"]


def test_synthetic_data_is_named_on_the_front_page(page):
    assert "合成数据" in page.header.select_one(".notice").get_text()
    _, text = page.header.get_text(), page.header.select_one(".members").get_text()
    assert "组员甲" in text and "50\N{NO-BREAK SPACE}%" in text


def test_real_data_gives_no_notice(tmp_path, without_fonts):
    cells = [new_markdown_cell("# 2.1 一章"), cases.code("x", cases.origin("course"))]
    notebook, origins = merge([cases.write(tmp_path, "2.1_a", cells)])
    html, _ = to_html(notebook, front(origins))
    assert BeautifulSoup(html, "html.parser").select(".notice") == []


def test_the_appendix_lists_every_run_once_and_marks_old_ones():
    runs = [cases.run_facts("k1", 1), cases.run_facts("k0", 0, stale=True), cases.run_facts("k1", 1)]
    runs += [cases.run_facts("k2", 2) | {"device": "Another"}]
    facts = gather([{"runs": runs, "data": None}])
    assert [(row["seeds"], row["keys"], row["machine"], row["time"]) for row in facts["runs"]] == [
        ("0", ["k0"], "机 1", "1 分 13 秒"), ("1、2", ["k1", "k2"], "机 1、2", "2 分 26 秒"),
    ]  # fmt: skip
    assert (facts["count"], facts["published"], facts["numerics"], facts["stale"]) == (3, 0, [1], 1)
    software = "float32，2 个线程", "python 3.11.2，torch 2.15.0"
    assert facts["machines"] == [("机 1", "Some CPU", *software), ("机 2", "Another", *software)]
    assert facts["synthetic"] and [data["fingerprint"] for data in facts["data"]] == ["0123456789abcdef"]


def test_the_page_holds_every_character_it_needs(page):
    css = "".join(style.get_text() for style in page.select("style"))
    faces = dict(re.findall(r'font-family:"(Report \w+)";src:url\(data:font/woff2;base64,([^)]*)\)', css))
    assert set(faces) == {"Report Song", "Report Hei", "Report Mono", "Report Math"}
    song, hei = (TTFont(io.BytesIO(base64.b64decode(faces[f"Report {name}"]))) for name in ("Song", "Hei"))
    for style in page.select("style"):
        style.extract()
    chinese = {char for char in page.get_text() if "\u4e00" <= char <= "\u9fff"}
    assert len(chinese) > 100 and chinese <= {chr(code) for code in song.getBestCmap()}
    headings = {char for tag in page.select("h1,h2,figcaption,th,strong") for char in tag.get_text() if char > "\u4e00"}
    assert headings and headings <= {chr(code) for code in hei.getBestCmap()}
    assert "glyf" in song and "CFF " not in song
    assert song["glyf"][song.getBestCmap()[ord("图")]].numberOfContours > 3


def test_conversion_to_truetype_keeps_outlines_and_widths():
    import pylopdf_fonts_zh_cn
    from fontTools import subset

    def load():
        font = subset.load_font(pylopdf_fonts_zh_cn.serif_path(), options := subset.Options())
        cutter = subset.Subsetter(options)
        cutter.populate(text="视觉Ag1")
        cutter.subset(font)
        return font

    def measures(font):
        glyphs, pens = font.getGlyphSet(), {}
        for code, name in font.getBestCmap().items():
            pens[code] = AreaPen(glyphs)
            glyphs[name].draw(pens[code])
        return {code: (abs(pen.value), font["hmtx"][font.getBestCmap()[code]][0]) for code, pen in pens.items()}

    before, font = measures(load()), load()
    fonts.to_truetype(font)
    buffer = io.BytesIO()
    font.save(buffer)
    after = measures(TTFont(buffer))
    assert set(after) == set(before) == set(map(ord, "视觉Ag1"))
    for code, (area, width) in before.items():
        assert after[code] == (pytest.approx(area, rel=0.01), width)


def failing(change):
    cells = cases.chapter()
    change(cells)
    return cells


BROKEN = {
    "label twice": (lambda c: c[8].outputs.append(cases.figure()), "第 8 个单元.*fig:curve 已经用过"),
    "broken reference": (
        lambda c: c.append(new_markdown_cell("见[](#fig:none)。")),
        "第 11 个单元.*#fig:none 找不到",
    ),
    "broken in a computed sentence": (
        lambda c: c[9].outputs.append(cases.display({"text/markdown": "见[](#tab:none)"}, "text")),
        "第 9 个单元.*#tab:none 找不到",
    ),
    "figure gone": (lambda c: c[7].outputs.clear(), "第 1 个单元.*#fig:curve 找不到"),
    "figure without caption": (
        lambda c: c[5].outputs.append(cases.display({"image/png": cases.PIXEL})),
        "第 5 个单元.*没有题注的图",
    ),
    "table without caption": (
        lambda c: c[5].outputs.append(cases.display({"text/html": "<table></table>"})),
        "第 5 个单元.*没有题注的表",
    ),
    "failed cell": (
        lambda c: c[5].outputs.append(new_output("error", ename="ValueError", evalue="坏", traceback=[])),
        "第 5 个单元出错：ValueError: 坏",
    ),
    "cell not run": (lambda c: c[5].update(execution_count=None), "第 5 个单元没有运行过"),
    "no context": (lambda c: c[3].outputs.clear(), "2.1_bad 没有调用 show.set_context"),
    "bad formula": (lambda c: c.append(new_markdown_cell("$\\frac{a$")), "第 11 个单元.*frac.*不能转换"),
    "bad formula in a caption": (
        lambda c: c[7].outputs.append(cases.figure("fig:b", "$\\nonsense$")),
        "第 7 个单元.*nonsense.*不能转换",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_defect_fails_the_build_with_its_cell_named_and_the_old_report_stays(name, tmp_path, without_fonts):
    change, words = BROKEN[name]
    executed = cases.write(tmp_path, "2.1_bad", failing(change))
    (tmp_path / "report.html").write_text("旧")
    (tmp_path / "report.pdf").write_text("旧")
    with pytest.raises(UserError, match=f"(?s){words}"):
        assemble([executed], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.1_bad.ipynb", "report.html", "report.pdf"]
    assert (tmp_path / "report.html").read_text() == (tmp_path / "report.pdf").read_text() == "旧"


def test_without_a_browser_the_html_is_made_and_one_line_says_what_to_install(
    tmp_path, without_fonts, monkeypatch, capsys
):
    monkeypatch.setattr("labreport.assembly.build.find_browser", lambda: None)
    executed = cases.write(tmp_path, "2.1_a", [*cases.chapter(), cases.code("x", cases.figure("fig:lonely"))])
    (tmp_path / "report.pdf").write_text("旧")
    assert assemble([executed], tmp_path).name == "report.html"
    said = capsys.readouterr().err
    assert sum("apt install chromium" in line for line in said.splitlines()) == 1
    assert "正文没有提到 fig:lonely" in said
    assert not (tmp_path / "report.pdf").exists(), "an older PDF does not belong to the new HTML"


def test_markdown_formulas_become_mathml():
    html = mathml.markdown("行内 $x_1$，\n\n$$\\begin{aligned}a&=b\\end{aligned}$$\n\n\\begin{align}a&=b\\end{align}")
    assert html.count("<math") == 3 and "$" not in html and "(1)" not in html
    assert mathml.formulas_in("a &lt; b，$a &lt; b$，5 $").count("<math>") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("members:\n - {name: 甲, work: 一, share: 60}\n - {name: 乙, work: 二, share: 30}", "加起来是 90 %"),
        ("members:\n - {name: 甲, share: 100}", "第 1 位成员缺 name 或 work"),
        ("members:\n - {name: 甲, work: 一, share: 一半}", "share='一半' 应是"),
        ("members: []", "没有 members 列表"),
        ("members: [", "格式不对"),
        (None, "读不出来"),
    ],
)
def test_a_wrong_table_of_members_is_an_error(tmp_path, text, words):
    path = tmp_path / "members.yml"
    if text is not None:
        path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=words):
        read_members(path)


def test_thirds_may_be_written_with_decimals(tmp_path):
    path = tmp_path / "members.yml"
    path.write_text(
        "members:\n" + " - {name: 甲, work: 一, share: 33.3}\n" * 2 + " - {name: 乙, work: 二, share: 33.4}"
    )
    assert len(read_members(path)["members"]) == 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 秒"), (59.6, "1 分"), (73, "1 分 13 秒"), (1500, "25 分"), (5400, "1.5 小时")],
)
def test_durations_read_well(seconds, words):
    assert duration(seconds).startswith(words)
