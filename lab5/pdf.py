"""The report as a PDF: Markdown through pandoc to Typst, and Typst to a PDF, both from wheels; no LaTeX, no browser."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pypandoc
import typst
from fontTools.ttLib import TTFont, TTLibError

from lab5.document import Chapter, Details, Incomplete, merged_references
from lab5.files import write_atomically, write_text

TEMPLATE = Path(__file__).with_name("report.typ")
MARKDOWN = "commonmark+attributes+implicit_figures+pipe_tables+raw_attribute+smart+tex_math_dollars"
COVER = "/figures/06_strip.pdf"                 # the title page's picture
FIRST_CJK = 0x2E80                              # from here on the embedded fonts have no glyphs


class MissingFont(ValueError):
    """No installed font has the glyphs of the student's name or words; says which to install."""


def find_fonts(details: Details) -> list[str]:
    """Font families beside the embedded ones that the student's text needs: none, or one that has all its characters.

    Raises MissingFont where no installed font has them, so that nothing prints as boxes.
    """
    texts = {"name": details.name, "student_id": details.student_id, "discussion": details.discussion,
             "language": "深度學習實驗五以條件式變分自編碼器預測影片號姓名日期目錄" if details.language == "zh" else ""}
    wanted = {name: {ord(c) for c in text if ord(c) >= FIRST_CJK} for name, text in texts.items()}
    characters = set().union(*wanted.values())
    if not characters:
        return []
    fonts = [font for font in typst.Fonts(include_embedded_fonts=False).fonts() if font.path]
    fonts.sort(key=lambda font: (" TC" not in font.family, font.family, font.path))             # Taiwan's shapes first
    for font in fonts:
        if characters <= _glyphs(Path(font.path), font.index):
            return [font.family]
    sample = "".join(map(chr, sorted(characters)[:8]))
    raise MissingFont(
        f"{' and '.join(name for name, found in wanted.items() if found)}: no installed font has all of {sample}"
        f"{'...' if len(characters) > 8 else ''}, and the PDF would show boxes. Install one, e.g. `apt-get install "
        "fonts-noto-cjk` (Debian, Ubuntu), `dnf install google-noto-sans-cjk-fonts` (Fedora), or without "
        "administrator's rights put a Noto Sans CJK .otf into ~/.local/share/fonts (Linux) or ~/Library/Fonts (macOS)")


def _glyphs(path: Path, index: int) -> set[int]:
    try:
        return set(TTFont(path, fontNumber=index, lazy=True).getBestCmap() or ())
    except (TTLibError, OSError, ValueError):
        return set()


def build(run: Path, chapters: list[Chapter], details: Details, facts: dict[str, str], appendices: str) -> list[tuple]:
    """Write ``RUN/report.pdf``; returns where its labels came to stand, as (label, page).

    The same executed notebooks, details and facts give the same bytes.

    Args:
        facts: "headline", a sentence for the title page, and "date".
        appendices: Markdown that follows the references.
    Raises:
        MissingFont: see `find_fonts`.
        Incomplete: a figure that the text shows is not in ``RUN/figures``.
    """
    for name in (name for chapter in chapters for name in chapter.figures):
        if not (run / "figures" / f"{name}.pdf").exists():
            raise Incomplete(f"{run / 'figures' / name}.pdf is missing; `lab5 report` draws it")
    folder = run / "report"
    write_text(folder / TEMPLATE.name, TEMPLATE.read_text(encoding="utf-8"))
    shown = {"student_id": details.student_id, "name": details.name, "language": details.language,
             "fonts": find_fonts(details), "cover": COVER if (run / COVER[1:]).exists() else None, **facts}
    write_text(folder / "facts.json", json.dumps(shown, ensure_ascii=False))
    write_text(folder / "body.typ", _to_typst(_text(chapters, details, appendices)))
    main = folder / TEMPLATE.name
    compiled, warnings = typst.Compiler(main, root=run).compile_with_warnings()
    if warnings:
        raise RuntimeError(f"{main}: Typst warns: " + "; ".join(sorted({warning.message for warning in warnings})))
    write_atomically(run / "report.pdf", lambda part: part.write_bytes(compiled))
    return json.loads(typst.query(main, "<places>", root=run, field="value", one=True))


def _text(chapters: list[Chapter], details: Details, appendices: str) -> str:
    parts = []
    for chapter in chapters:
        parts.append(chapter.text)
        if chapter.number == "08" and details.discussion.strip():
            parts.append(f"## The author's discussion {{#own-words}}\n\n{details.discussion.strip()}")
    works = "\n".join(f"- {line}" for line in merged_references(chapters))
    return "\n\n".join([*parts, f"# References {{.unnumbered}}\n\n{works}", appendices])


def _to_typst(markdown: str) -> str:
    """Pandoc's Typst for Markdown. Raises RuntimeError on anything that it would leave as it is, such as a formula."""
    text = pypandoc.convert_text(markdown, "typst", MARKDOWN, extra_args=["--fail-if-warnings", "--wrap=preserve"])
    return text.replace("dot.circle", "dot.o")                  # the one symbol that Typst has renamed since


def write_index(run: Path, chapters: Iterable[Chapter]) -> None:
    """``RUN/figures/index.html``: every exported figure with its caption and its files."""
    captions = {name: caption for chapter in chapters for name, caption in {**chapter.figures, **chapter.gifs}.items()}
    items = []
    for shown in sorted(path for path in (run / "figures").iterdir() if path.suffix in (".png", ".gif")):
        name = shown.name if shown.suffix == ".gif" else shown.stem
        files = [shown.name] if shown.suffix == ".gif" else [f"{name}.pdf", shown.name]
        links = " ".join(f'<a href="{file}">{file}</a>' for file in files)
        items.append(f'<figure id="{name}"><img src="{shown.name}" alt="{name}"><figcaption>'
                     f"{html.escape(captions.get(name, ''))} <small>{links}</small></figcaption></figure>")
    write_text(run / "figures" / "index.html", INDEX.format(items="\n".join(items)))


INDEX = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Figures of the report</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #22262b; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
figure {{ margin: 0 0 2.4rem }} img {{ max-width: 100%; background: white }}
small a {{ color: #17456e; margin-left: .6em }}
@media (prefers-color-scheme: dark) {{ body {{ background: #1b1e22; color: #d9dce0 }} small a {{ color: #8db4dd }} }}
</style>
<h1>Figures of the report</h1>
{items}
</html>
"""


def versions() -> str:
    """The tools that make the PDF, for the appendix."""
    return f"pandoc {pypandoc.get_pandoc_version()}, typst {version('typst')}"
