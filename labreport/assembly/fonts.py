"""Fonts embedded in the page, cut to the characters used: right on a computer with no Chinese font.

A textbook's three faces: Song (Noto Serif SC) for text, Hei (Noto Sans SC) for headings and emphasis, a
monospaced face (DejaVu Sans Mono) for code; STIX Two Math for formulas. Only regular weights: in Chinese
typesetting Hei is the bold of Song.
"""

import base64
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from bs4 import BeautifulSoup
from fontTools import subset
from fontTools.pens.cu2quPen import Cu2QuPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont, newTable
from fontTools.ttLib.tables._m_a_x_p import maxpFormat_1_0_add

SANS = "h1,h2,h3,h4,nav,header,strong,em,b,th,figcaption,.notice"
MONO = "pre,code"
# Chromium draws a one-letter <mi> with the mathematical italic letter, which the text does not contain;
# roots, accents and braces are drawn from MathML elements.
ITALICS = "".join(map(chr, [*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C), 0x210E])) + "√ˆ˜¯‾⏞⏟()[]{}|‖"


def embed(soup: BeautifulSoup) -> str:
    """Return the CSS that embeds the faces the page needs, each cut to the text set in it."""
    import matplotlib
    import pylopdf_fonts_zh_cn

    song, hei = (Path(path) for path in (pylopdf_fonts_zh_cn.serif_path(), pylopdf_fonts_zh_cn.sans_path()))
    mono = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf"
    package = find_spec("ziamath")  # found, not imported: only its font is needed
    assert package is not None and package.origin is not None
    stix = Path(package.origin).parent / "fonts/STIXTwoMath-Regular.ttf"
    digits = "0123456789./– "
    code = _text(soup, MONO)
    formulas = _text(soup, "math")
    faces = [
        ("Report Song", song, soup.get_text() + digits),
        ("Report Hei", hei, _text(soup, SANS) + code + digits),
    ]
    if code:
        faces.append(("Report Mono", mono, code))
    if formulas:
        faces.append(("Report Math", stix, formulas + ITALICS))
    rules = [_face(name, path, text) for name, path, text in faces]
    return "\n".join([*rules, f"{SANS}{{font-family:var(--hei)}}", f"{MONO}{{font-family:var(--mono)}}"])


def _text(soup: BeautifulSoup, selector: str) -> str:
    return "".join(element.get_text() for element in soup.select(selector))


def _face(family: str, path: Path, text: str) -> str:
    """Return an ``@font-face`` rule holding ``path`` cut to ``text`` as WOFF2."""
    options = subset.Options(layout_features=["kern", "liga", "locl", "ccmp", "halt", "mark", "mkmk", "ssty"])
    options.drop_tables += ["FFTM"]  # FontForge's time stamp
    font = subset.load_font(path, options)
    cutter = subset.Subsetter(options)
    cutter.populate(text=text)
    cutter.subset(font)
    if "CFF " in font:
        to_truetype(font)
    font.flavor = "woff2"
    buffer = BytesIO()
    font.save(buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'@font-face{{font-family:"{family}";src:url(data:font/woff2;base64,{data})}}'


def to_truetype(font: TTFont) -> None:
    """Convert a font with CFF outlines in place: Chromium prints CFF as Type 3 but TrueType as CID fonts.

    Cubic curves become quadratic ones within one unit of the 1,000 an em has.
    """
    glyphs, drawn = {}, font.getGlyphSet()
    for name in font.getGlyphOrder():
        pen = TTGlyphPen(None)
        drawn[name].draw(Cu2QuPen(pen, max_err=1.0, reverse_direction=True))
        glyphs[name] = pen.glyph()
    font["loca"], font["glyf"] = newTable("loca"), newTable("glyf")
    font["glyf"].glyphOrder, font["glyf"].glyphs = font.getGlyphOrder(), glyphs
    widths = font["hmtx"].metrics
    for name, glyph in glyphs.items():
        glyph.recalcBounds(font["glyf"])
        widths[name] = (widths[name][0], getattr(glyph, "xMin", 0))
    profile = font["maxp"] = newTable("maxp")
    profile.tableVersion, profile.numGlyphs = 0x00010000, len(glyphs)
    for field in maxpFormat_1_0_add.split():  # limits of instructions, of which there are none
        if field.startswith("max"):
            setattr(profile, field.rstrip(":"), 0)
    profile.maxZones = 1
    font.recalcBBoxes = True  # saving fills in the limits of the outlines
    font["post"].formatType, font["post"].extraNames, font["post"].mapping = 2.0, [], {}
    font["post"].glyphOrder = font.getGlyphOrder()
    font["head"].glyphDataFormat, font.sfntVersion = 0, "\000\001\000\000"
    for table in ("CFF ", "VORG", "vhea", "vmtx"):
        if table in font:
            del font[table]
