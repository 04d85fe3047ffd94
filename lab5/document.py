"""The report as a document: what of the executed notebooks a grader is to read, as Markdown in the report's order.

Markdown and computed outputs are in; code and what it prints are not. Cell tags decide the rest:
``no-report`` leaves a cell out, or with a heading its whole section; ``report-code`` shows a cell's listing;
``report-output`` shows what it printed; ``proof`` marks the experiment behind teacher-forcing ratio 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import nbformat
import yaml

HEADING = re.compile(r"^(#{1,4}) +(?:(\d+(?:\.\d+)?)\.? +)?(.+?)[ \t]*$", re.MULTILINE)
REFERENCES = re.compile(r"^### References\s*$", re.MULTILINE)


class Incomplete(ValueError):
    """The run folder lacks what the report is made of; says what, and which command makes it."""


@dataclass(frozen=True)
class Details:
    """What only the student knows: the title page, and their own words for the discussion."""

    student_id: str = ""
    name: str = ""
    language: str = "en"                        # of the title page: en or zh
    discussion: str = ""                        # Markdown

    @classmethod
    def load(cls, path: Path) -> Details:
        """Read a ``report.yaml``. Raises ValueError that names the file and the key that it does not know."""
        try:
            given = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader) or {}     # an id keeps its zeros
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not readable as YAML ({error}); correct it, or give --id and --name"
                             ) from error
        known = [f.name for f in fields(cls)]
        if not isinstance(given, dict) or set(given) - set(known):
            raise ValueError(f"{path}: has {', '.join(map(str, given))}; the keys are {', '.join(known)}")
        if not all(isinstance(value, str) for value in given.values()):
            raise ValueError(f"{path}: every value must be a text, not a list or a table")
        details = cls(**given)
        if details.language not in ("en", "zh"):
            raise ValueError(f"{path}: language is {details.language!r}, but must be en or zh")
        return details


@dataclass
class Chapter:
    """One notebook's part of the report."""

    number: str                                 # of the notebook, "00" to "09"
    title: str
    text: str = ""                              # Markdown, headings and figures with labels
    sections: dict[str, str] = field(default_factory=dict)          # "3.12" -> its heading
    figures: dict[str, str] = field(default_factory=dict)           # name -> caption
    gifs: dict[str, str] = field(default_factory=dict)
    listings: int = 0
    proof: str | None = None                    # what the proof printed; None where it is not in the notebook
    references: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"chapter-{self.number}"

    @property
    def words(self) -> int:
        """Words of prose, tables and formulas left out."""
        prose = re.sub(r"\$\$.*?\$\$|```.*?```", "", self.text, flags=re.DOTALL)
        prose = re.sub(r"^\|.*$", "", prose, flags=re.MULTILINE)
        return len(re.findall(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]{2,}", prose))

    @property
    def formulas(self) -> int:
        return self.text.count("$$") // 2


def section_label(number: str) -> str:
    return f"section-{number.replace('.', '-')}"


def read_chapters(notebooks: list[Path]) -> list[Chapter]:
    """The executed notebooks as chapters, their references to one another turned into the report's.

    Raises Incomplete naming a notebook that is missing or was not executed.
    """
    chapters = [_chapter(path) for path in notebooks]
    by_number = {chapter.number: chapter for chapter in chapters}
    sections = {number for chapter in chapters for number in chapter.sections}
    for chapter in chapters:
        chapter.text = _link(chapter.text, by_number, sections)
    return chapters


def _chapter(path: Path) -> Chapter:
    if not path.exists():
        raise Incomplete(f"{path} is missing: the report is made of all notebooks; `lab5 report` executes them")
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:                  # json, nbformat and its validation have a dozen kinds
        raise Incomplete(f"{path} cannot be read as a notebook ({str(error)[:80]}); `lab5 report` makes it anew"
                         ) from error
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if any(cell.execution_count is None for cell in code):
        raise Incomplete(f"{path} was not executed to its end; `lab5 report` does it")
    title = next((match[3] for cell in notebook.cells if (match := HEADING.match(cell.source))), path.stem)
    chapter = Chapter(path.name[:2], title)
    blocks = _refer([block for cell in _kept(notebook.cells) for block in _blocks(cell, chapter)])
    chapter.text = "\n\n".join(blocks)
    parts = REFERENCES.split(chapter.text, maxsplit=1)
    if len(parts) == 2:
        chapter.text = parts[0]
        chapter.references = [line[2:].strip() for line in parts[1].splitlines() if line.startswith("- ")]
    chapter.text = _outside(chapter.text, lambda part: HEADING.sub(lambda match: _heading(match, chapter), part))
    return chapter


def _outside(text: str, change: Callable[[str], str]) -> str:
    """Change a text everywhere but in listings and displayed formulas."""
    parts = re.split(r"(```.*?```|\$\$.*?\$\$)", text, flags=re.DOTALL)
    return "".join(part if part.startswith(("```", "$$")) else change(part) for part in parts)


def _kept(cells: list) -> Iterator:
    """Leave out the cells tagged ``no-report``, and what stands under a heading that is."""
    skipping = 0                                # level of the heading whose section is left out
    for cell in cells:
        heading = HEADING.match(cell.source) if cell.cell_type == "markdown" else None
        if heading and skipping and (len(heading[1]) <= skipping or heading[3] == "References"):
            skipping = 0
        if "no-report" in cell.metadata.get("tags", []):
            skipping = skipping or (len(heading[1]) if heading else 0)
        elif not skipping:
            yield cell


def _blocks(cell, chapter: Chapter) -> Iterator[str]:
    """A cell's Markdown blocks; notes figures, listings and the proof in the chapter."""
    if cell.cell_type == "markdown":
        yield cell.source
        return
    tags = cell.metadata.get("tags", [])
    printed = "".join(output.text for output in cell.get("outputs", []) if output.get("name") == "stdout")
    if "proof" in tags:
        chapter.proof = printed
    sources = [output.data["text/markdown"] for output in cell.get("outputs", [])
               if _is_listing(output)] or [f"```python\n{cell.source}\n```"]
    if "report-code" in tags:
        chapter.listings += len(sources)
        yield from sources
    if "report-output" in tags and printed:
        yield f"```\n{printed.rstrip()}\n```"
    outputs = iter(output for output in cell.get("outputs", []) if "data" in output and not _is_listing(output))
    for output in outputs:
        name = output.metadata.get("lab5", {}).get("figure")
        if name:
            caption = next(outputs).data["text/markdown"].strip().strip("*")
            yield _figure(name, caption, chapter)
        elif "text/markdown" in output.data:
            yield output.data["text/markdown"]


def _is_listing(output) -> bool:
    return "data" in output and output.data.get("text/markdown", "").startswith("```python")


def _figure(name: str, caption: str, chapter: Chapter) -> str:
    if name.endswith(".gif"):
        chapter.gifs[name] = caption
        return f"**Moving picture** `figures/{name}`: {caption}"
    chapter.figures[name] = caption
    return f"![{caption}](/figures/{name}.pdf){{#figure-{name}}}"


def _refer(blocks: list[str]) -> list[str]:
    """Name every figure at the end of the paragraph before it, since on paper it may stand on another page."""
    referred: list[str] = []
    paragraph = None                            # index of the newest block that ends in prose
    for block in blocks:
        label = re.search(r"\{#(figure-\S+)\}$", block)
        if label and paragraph is not None:
            body, end = re.fullmatch(r"(.*?)([.:]?)", referred[paragraph].rstrip(), re.DOTALL).groups()
            referred[paragraph] = f"{body} (`#ref(<{label[1]}>)`{{=typst}}){end}"
        elif not label:
            last = block.rstrip().rsplit("\n\n", 1)[-1]
            prose = not last.startswith(("#", "|", "```", "- ", "$$", "1. ")) and not last.endswith("$$")
            paragraph = len(referred) if prose else None
        referred.append(block)
    return referred


def _heading(match: re.Match, chapter: Chapter) -> str:
    level, number, title = match.groups()
    if len(level) == 1:
        return f"# {title} {{#{chapter.label}}}"
    if number is None:
        return f"{level} {title} {{.unnumbered}}"
    chapter.sections[number] = title
    return f"{level} {title} {{#{section_label(number)}}}"


def _link(text: str, chapters: dict[str, Chapter], sections: set[str]) -> str:
    """Turn "notebook 03" into "chapter 4" and "section 3.12" into the report's number of it."""
    def reference(label: str) -> str:
        return f"`#ref(<{label}>, supplement: none)`{{=typst}}"

    def numbers(words: str) -> str:
        return re.sub(r"\d+\.\d+", lambda match: reference(section_label(match[0])) if match[0] in sections
                      else f"{match[0]} of the workbook", words)

    def chapter_numbers(words: str) -> str:
        return re.sub(r"\b\d\d\b", lambda match: reference(chapters[match[0]].label) if match[0] in chapters
                      else match[0], words)

    def link(part: str) -> str:
        part = re.sub(r"\b([Nn])otebook(s?) (\d\d\b(?:(?:, | and | to )\d\d\b)*)", lambda match: (
            f"{'C' if match[1] == 'N' else 'c'}hapter{match[2]} {chapter_numbers(match[3])}"), part)
        part = re.sub(r"\((\d\.\d+)\)", lambda match: (
            f"(section {match[1]})" if match[1] in sections else match[0]), part)
        return re.sub(r"\b([Ss]ections?) (\d\.\d+\b(?:(?:, | and )\d\.\d+\b)*)", lambda match: (
            f"{match[1]} {numbers(match[2])}"), part)

    return _outside(text, link)


def merged_references(chapters: list[Chapter]) -> list[str]:
    """Every work that a chapter refers to, once, in alphabetical order."""
    return sorted({line for chapter in chapters for line in chapter.references}, key=lambda line: re.sub(
        r"^(?:[A-Z]\.[ -]?)+", "", line).lower())
