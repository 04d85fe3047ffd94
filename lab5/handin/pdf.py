"""The report as a PDF: Markdown through pandoc to Typst, and Typst to a PDF, both from wheels; no LaTeX, no browser."""

import json
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Literal

import pypandoc
import typst
import yaml
from fontTools.ttLib import TTFont, TTLibError
from pydantic import BaseModel

from lab5.files import write_atomically, write_text
from lab5.workbook.run import PROJECT

TEMPLATE = Path(__file__).with_name("report.typ")
MARKDOWN = "commonmark+attributes+implicit_figures+pipe_tables+raw_attribute+smart+tex_math_dollars"
COVER = "/figures/06_strip.pdf"                 # the title page's picture
FIRST_CJK = 0x2E80                              # the embedded fonts have no glyphs from here on


class Details(BaseModel, frozen=True, extra="forbid"):
    """What only the student knows: the title page, and their own words for the discussion."""

    student_id: str = ""
    name: str = ""
    language: Literal["en", "zh"] = "en"        # of the title page
    discussion: str = ""                        # Markdown

    @classmethod
    def load(cls, path: Path = PROJECT / "report.yaml") -> "Details":
        """Read the file; without one, all is empty. Raises ValueError on what is wrong in it or cannot be printed."""
        try:                                                    # all values as texts, so that an id keeps its zeros
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            details = cls.model_validate(yaml.load(text, yaml.BaseLoader) or {})
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: {error}\nThe keys are {', '.join(cls.model_fields)}; each has a text") from error
        find_fonts(details)
        return details


def find_fonts(details: Details) -> list[str]:
    """Font families that the student's text needs beside the embedded ones: none, or one that has all its characters.

    Raises ValueError where no installed font has them, which says what to install: nothing is to print as boxes.
    """
    text = details.name + details.student_id + details.discussion
    if details.language == "zh":
        text += TEMPLATE.read_text(encoding="utf-8")            # the title page's words are in it
    characters = {ord(character) for character in text if ord(character) >= FIRST_CJK}
    if not characters:
        return []
    fonts = [font for font in typst.Fonts(include_embedded_fonts=False).fonts() if font.path]
    for font in sorted(fonts, key=lambda font: (" TC" not in font.family, font.family, font.path)):     # Taiwan's first
        with suppress(TTLibError, OSError, ValueError):         # of a damaged font
            if characters <= set(TTFont(font.path, fontNumber=font.index, lazy=True).getBestCmap() or ()):
                return [font.family]
    raise ValueError(
        f"no installed font has all of {''.join(map(chr, sorted(characters)[:8]))}, which report.yaml needs; the PDF "
        "would show boxes. Install one, e.g. `apt-get install fonts-noto-cjk`, or put a Noto Sans CJK .otf into "
        "~/.local/share/fonts (Linux) or ~/Library/Fonts (macOS)")


def build(run: Path, text: str, details: Details, headline: str) -> dict[str, int]:
    """Write ``RUN/report.pdf`` of a Markdown text; returns the page of every label. Equal input gives equal bytes.

    `headline` is a sentence for the title page. Raises what `find_fonts` raises, and RuntimeError that names a figure
    which is not in ``RUN/figures``, or what pandoc or Typst cannot set.
    """
    facts = {**details.model_dump(), "headline": headline, "date": date.today().isoformat(),
             "fonts": find_fonts(details), "cover": COVER if (run / COVER[1:]).exists() else None}
    main = run / "report" / TEMPLATE.name
    write_text(main, TEMPLATE.read_text(encoding="utf-8"))
    write_text(main.with_name("facts.json"), json.dumps(facts, ensure_ascii=False))
    body = pypandoc.convert_text(text, "typst", MARKDOWN, extra_args=["--fail-if-warnings", "--wrap=preserve"])
    write_text(main.with_name("body.typ"), body.replace("dot.circle", "dot.o"))      # a symbol that Typst has renamed
    write_atomically(run / "report.pdf", lambda path: typst.compile(main, path, root=run, format="pdf"))
    return dict(json.loads(typst.query(main, "<places>", root=run, field="value", one=True)))
