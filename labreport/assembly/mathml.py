"""Markdown and LaTeX to HTML with MathML, at build time: the page needs no script and no network."""

import html
import re

from math_core import LatexError, LatexToMathML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

_CONVERTER = LatexToMathML(fancy_error=False)


class FormulaError(ValueError):
    """A formula that cannot be converted; the message quotes it."""


def to_mathml(latex: str, block: bool = False) -> str:
    """Return a formula as a ``<math>`` element; raises FormulaError for LaTeX that is not understood."""
    try:
        return _CONVERTER.convert_with_local_state(latex.strip(), displaystyle=block)
    except LatexError as error:
        raise FormulaError(f"公式“{latex.strip()}”不能转换（{error}）") from error


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def block_math(self, body: str) -> str:
        return to_mathml(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        # starred, without the numbers that LaTeX adds: each formula would be counted from (1) again
        starred = f"{name}*" if name in ("equation", "align", "gather", "multline") else name
        return to_mathml(rf"\begin{{{starred}}}{body}\end{{{starred}}}", block=True)


def markdown(source: str) -> str:
    """Return Markdown with LaTeX formulas as HTML with MathML."""
    renderer = _Renderer(escape=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(source)


def formulas_in(fragment: str) -> str:
    """Return an HTML fragment (a caption, a table) with every ``$...$`` in its text as MathML."""
    return re.sub(r"\$([^$<>]+)\$", lambda match: to_mathml(html.unescape(match[1])), fragment)
