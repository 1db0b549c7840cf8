"""Numbers for captions and headings, the references to them, and the contents, in the rendered page."""

import re
from copy import copy

from bs4 import BeautifulSoup, NavigableString, Tag

from vitlib.errors import UserError

WORDS = {"fig": "图", "tab": "表"}
CJK = "\u2014\u2018-\u201d\u2026\u3000-\u303f\u3400-\u9fff\uff00-\uffef"


def finish(soup: BeautifulSoup) -> list[str]:
    """Number headings and captions, fill references and contents; return the labels never referred to.

    Elements carry ``data-where``, the notebook and cell they come from, until here; errors name it.

    Raises:
        UserError: a label used twice, or a link to something that is not in the report.
    """
    _number_headings(soup)
    numbers = _number_captions(soup)
    used = _fill_references(soup, numbers)
    _fill_contents(soup)
    for wrapper in soup.select("[data-where]"):
        wrapper.unwrap()  # a flat page: rules such as "no break after a heading" then reach the next element
    _continue_sentences(soup)
    for node in soup.find_all(string=re.compile(rf"[{CJK}]\n[{CJK}]")):
        if node.find_parent(["pre", "style"]) is None:  # a line break in the source is no space in Chinese
            node.replace_with(re.sub(rf"(?<=[{CJK}])\n(?=[{CJK}])", "", node))
    for node in soup.find_all(string=re.compile(r"\d %")):
        if node.find_parent(["pre", "code", "style", "script", "svg"]) is None:  # no line begins with a percent sign
            node.replace_with(re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", node))
    for head in soup.select("th.num"):
        if head.string and len(head.string) <= 8:  # a short name keeps its unit in its line, as in 参数量 / M
            head.string = head.string.replace(" ", "\N{NO-BREAK SPACE}")
    for node in soup.find_all(string=re.compile(r"\w_\w")):
        if node.find_parent(["pre", "style", "script", "svg", "math", "head"]) is None:  # a long name may break here
            *parts, last = re.split(r"(?<=_)(?=\w)", node)
            for part in parts:
                node.insert_before(part, soup.new_tag("wbr"))
            node.replace_with(last)
    return [label for label in numbers if label not in used]


def _number_headings(soup: BeautifulSoup) -> None:
    """Give ids to all headings and numbers such as 2.1.3 to the second level of numbered chapters."""
    chapter, count = "", 0
    for at, heading in enumerate(soup.select("main h1, main h2, main h3")):
        heading["id"] = f"sec-{at}"
        if heading.name == "h1":
            match = re.match(r"(?:附录\s*)?([A-Z]|\d+(?:\.\d+)*)\s+", heading.get_text())
            chapter, count = match[1] if match else "", 0
            first = heading.find(string=True)
            if match and isinstance(first, NavigableString):
                first.replace_with(re.sub(rf"^{re.escape(match[0])}", f"{match[0].rstrip()}\u3000", first))
            heading["data-chapter"] = chapter
        elif heading.name == "h2" and chapter:
            count += 1
            heading.insert(0, f"{chapter}.{count}\u3000")


def _number_captions(soup: BeautifulSoup) -> dict[str, str]:
    """Number figures and tables within their chapter, as 图 2.1-3; return label -> number."""
    numbers: dict[str, str] = {}
    chapter, counts = "", dict.fromkeys(WORDS, 0)
    for element in soup.select("h1[data-chapter], figure[id]"):
        if element.name == "h1":
            chapter, counts = str(element["data-chapter"]), dict.fromkeys(WORDS, 0)
            del element["data-chapter"]
            continue
        label = str(element["id"])
        if label in numbers:
            raise UserError(f"{_where(element)}：标签 {label} 已经用过一次，每个图表的标签必须不同。")
        kind = label.partition(":")[0]
        counts[kind] += 1
        numbers[label] = f"{WORDS[kind]} {chapter}{'-' if chapter else ''}{counts[kind]}"
        caption = element.figcaption
        assert caption is not None, label
        if picture := element.img:
            picture["alt"] = f"{numbers[label]} {caption.get_text()}"
        mark = soup.new_tag("span", attrs={"class": "number"})
        mark.string = numbers[label]
        caption.insert(0, mark)
    return numbers


def _fill_references(soup: BeautifulSoup, numbers: dict[str, str]) -> set[str]:
    """Write the number into every link to a label; return the labels referred to."""
    used = set()
    ids = {str(element["id"]) for element in soup.select("[id]")}
    for link in soup.select('main a[href^="#"]'):
        target = str(link["href"])[1:]
        if target in numbers:
            link.string = numbers[target]
            link["class"] = "ref"
            if re.match(r"[\u4e00-\u9fff]", str(link.next_sibling or "")):
                link.insert_after(" ")  # as between all digits and Chinese
            used.add(target)
        elif target not in ids:
            raise UserError(f"{_where(link)}：引用 #{target} 找不到对应的图、表或章节；请检查标签的拼写。")
    return used


def _continue_sentences(soup: BeautifulSoup) -> None:
    """Mark the paragraphs that go on with a sentence from above a displayed formula: they are not indented."""
    for formula in soup.select('p:has(> math[display="block"])'):
        before, after = formula.find_previous_sibling(), formula.find_next_sibling()
        if not isinstance(after, Tag) or after.name != "p":
            continue
        cut = (
            isinstance(before, Tag) and before.name == "p" and not re.search(r"[：。；，、是则]\s*$", before.get_text())
        )
        if cut or after.get_text().startswith("其中"):
            after["class"] = "continued"


def _fill_contents(soup: BeautifulSoup) -> None:
    contents = soup.select_one("nav")
    assert contents is not None
    for heading in soup.select("main h1[id], main h2[id]"):
        if "plain" in (heading.get("class") or ()):
            continue
        line = soup.new_tag("a", href=f"#{heading['id']}", attrs={"class": f"toc-{heading.name}"})
        title = soup.new_tag("span")
        title.extend([copy(node) for node in heading.contents])
        line.extend([title, soup.new_tag("i"), soup.new_tag("span", attrs={"class": "page"})])
        contents.append(line)


def _where(element: Tag) -> str:
    holder = element.find_parent(attrs={"data-where": True})
    return str(holder["data-where"]) if holder else "报告模板"
