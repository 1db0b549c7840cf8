"""Render a merged notebook to one self-contained HTML page with nbconvert and the project's template."""

import re
from typing import Any
from urllib.parse import quote

from bs4 import BeautifulSoup
from jinja2 import pass_context
from jinja2.runtime import Context
from nbconvert.exporters.html import HTMLExporter
from nbformat import NotebookNode
from traitlets.config import Config

from labreport.assembly import captions, fonts
from labreport.assembly.mathml import FormulaError, formulas_in, markdown
from vitlib.errors import UserError
from vitlib.paths import share


class ReportExporter(HTMLExporter):
    """HTML with MathML instead of MathJax; a formula that cannot be converted names its cell."""

    @property
    def default_config(self) -> Config:
        own = Config(
            HTMLExporter={
                "template_name": "report",
                "extra_template_basedirs": [str(share("report") / "templates")],
                "exclude_input_prompt": True,
                "exclude_output_prompt": True,
            }
        )
        config = super().default_config.copy()
        config.merge(own)
        return config

    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        return _located(context, markdown, source)

    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield "formulas", _formulas
        yield "svg_quoted", svg_quoted


def svg_quoted(svg: str) -> str:
    """Return an SVG as it may stand in a data URL inside an attribute in double quotes; half as long as Base64.

    Comments, the names of groups, to which nothing refers, and spaces that mean nothing stay behind.
    """
    svg = " ".join(svg.split())
    svg = svg if "'" in svg else svg.replace('"', "'")  # which need no escape there
    svg = re.sub(r"<!--.*?-->|(?<=<g) id='[^']*'|(?<=>) (?=<)| (?=/?>)", "", svg)
    svg = re.sub(r"(?<= d=')[^']*", lambda path: re.sub(r" ?([A-Za-z]) ?", r"\1", path[0]), svg)
    return quote(svg, safe=" /:;=,()!*'+@?$")


@pass_context
def _formulas(context: Context, fragment: str) -> str:
    return _located(context, formulas_in, fragment)


def _located(context: Context, convert: Any, source: str) -> str:
    try:
        return str(convert(source))
    except FormulaError as error:
        raise UserError(f"{context['cell'].metadata.where}：{error}。") from error


def to_html(notebook: NotebookNode, front: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the report's HTML and the labels that its text never refers to.

    Args:
        notebook: cells from :func:`labreport.assembly.document.merge`.
        front: ``title``, ``abstract`` (Markdown), ``course``, ``members`` and the facts of
            :func:`labreport.assembly.front.gather`, as the template names them.
    """
    html, _ = ReportExporter().from_notebook_node(notebook, resources={"front": front})
    soup = BeautifulSoup(html, "html.parser")
    unused = captions.finish(soup)
    style = soup.new_tag("style")
    style.string = fonts.embed(soup)
    assert soup.head is not None
    soup.head.append(style)
    return str(soup), unused
