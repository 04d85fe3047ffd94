"""The report as a PDF: Markdown through pandoc to Typst, and Typst to a PDF, both from wheels; no LaTeX, no browser."""

import json
from contextlib import suppress
from pathlib import Path

import pypandoc
import typst
from fontTools.ttLib import TTFont, TTLibError

from lab5.files import write_atomically, write_text
from lab5.handin.document import Chapter, Details

TEMPLATE = Path(__file__).with_name("report.typ")
MARKDOWN = "commonmark+attributes+implicit_figures+pipe_tables+raw_attribute+smart+tex_math_dollars"
COVER = "/figures/06_strip.pdf"                 # the title page's picture
TITLE_ZH = "深度學習實驗五以條件式變分自編碼器預測影片號姓名日期目錄"
FIRST_CJK = 0x2E80                              # the embedded fonts have no glyphs from here on


def find_fonts(details: Details) -> list[str]:
    """Font families that the student's text needs beside the embedded ones: none, or one that has all its characters.

    Raises ValueError where no installed font has them, which says what to install: nothing is to print as boxes.
    """
    text = details.name + details.student_id + details.discussion + TITLE_ZH * (details.language == "zh")
    characters = {ord(character) for character in text if ord(character) >= FIRST_CJK}
    if not characters:
        return []
    fonts = [font for font in typst.Fonts(include_embedded_fonts=False).fonts() if font.path]
    for font in sorted(fonts, key=lambda font: (" TC" not in font.family, font.family, font.path)):     # Taiwan's first
        with suppress(TTLibError, OSError, ValueError):         # of a damaged font
            if characters <= set(TTFont(font.path, fontNumber=font.index, lazy=True).getBestCmap() or ()):
                return [font.family]
    raise ValueError(
        f"no installed font has all of {''.join(map(chr, sorted(characters)[:8]))}, which the report's name, id, "
        "discussion or language needs; the PDF would show boxes. Install one, e.g. `apt-get install fonts-noto-cjk` "
        "(Debian, Ubuntu), `dnf install google-noto-sans-cjk-fonts` (Fedora), or without administrator's rights put "
        "a Noto Sans CJK .otf into ~/.local/share/fonts (Linux) or ~/Library/Fonts (macOS)")


def build(run: Path, chapters: list[Chapter], details: Details, facts: dict[str, str], appendices: str) -> dict:
    """Write ``RUN/report.pdf``; returns the page of every label. Equal input gives equal bytes.

    `facts` are "headline", a sentence for the title page, and "date"; `appendices` is Markdown.
    Raises ValueError where a figure that the text shows is not in ``RUN/figures``, and what `find_fonts` raises.
    """
    for label in (label for chapter in chapters for label in chapter.labels if label.startswith("figure-")):
        if not (path := run / "figures" / f"{label.removeprefix('figure-')}.pdf").exists():
            raise ValueError(f"{path} is missing; `lab5 report` draws it")
    facts = {**details.model_dump(), **facts, "fonts": find_fonts(details),
             "cover": COVER if (run / COVER[1:]).exists() else None}
    main = run / "report" / TEMPLATE.name
    write_text(main, TEMPLATE.read_text(encoding="utf-8"))
    write_text(main.with_name("facts.json"), json.dumps(facts, ensure_ascii=False))
    text = [chapter.text for chapter in chapters]
    text += [f"# The author's discussion {{#own-words}}\n\n{details.discussion}"] * bool(details.discussion.strip())
    body = pypandoc.convert_text("\n\n".join([*text, appendices]), "typst", MARKDOWN,
                                 extra_args=["--fail-if-warnings", "--wrap=preserve"])
    write_text(main.with_name("body.typ"), body.replace("dot.circle", "dot.o"))      # a symbol that Typst has renamed
    compiled, warnings = typst.Compiler(main, root=run).compile_with_warnings()
    if warnings:
        raise RuntimeError(f"{main}: Typst warns: {'; '.join(sorted({warning.message for warning in warnings}))}")
    write_atomically(run / "report.pdf", lambda path: path.write_bytes(compiled))
    return dict(json.loads(typst.query(main, "<places>", root=run, field="value", one=True)))
