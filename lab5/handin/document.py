"""The report as a document: what a grader reads of the executed notebooks, as Markdown in the report's order.

Markdown and computed outputs are in; code and what it prints are not. Cell tags decide the rest:
``no-report`` leaves out a cell, or with a heading its whole section; ``report-code`` shows a cell's listing;
``report-output`` shows what it printed; ``proof`` marks the experiment behind teacher-forcing ratio 0.
Chapters and sections keep the notebooks' numbers, so that a reference such as "section 3.9" holds in both.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nbformat
import yaml
from pydantic import BaseModel, ValidationError

HEADING = re.compile(r"^(#+) +(.+)")
NUMBERED = re.compile(r"^(##?) +(\d+(?:\.\d+)?)\.? +(.+?) *$", re.MULTILINE)
NO_PROSE = re.compile(r"\$\$.*?\$\$|```.*?```|^\|.*?$", re.DOTALL | re.MULTILINE)      # formulas, listings, tables


class Details(BaseModel, frozen=True, extra="forbid"):
    """What only the student knows: the title page, and their own words for the discussion."""

    student_id: str = ""
    name: str = ""
    language: Literal["en", "zh"] = "en"        # of the title page
    discussion: str = ""                        # Markdown

    @classmethod
    def load(cls, path: Path) -> "Details":
        """Read a ``report.yaml``. Raises ValueError that names the file and what is wrong in it."""
        try:
            return cls(**yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader) or {})    # an id keeps its zeros
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValidationError) as error:
            raise ValueError(f"{path}: {error}\nCorrect it: the keys are {', '.join(cls.model_fields)}, each with a "
                             "text; a language is en or zh") from error


@dataclass
class Chapter:
    """One notebook's part of the report."""

    text: str = ""                              # Markdown
    labels: list[str] = field(default_factory=list)     # of its sections and figures: "section-3-12", "figure-06_strip"
    gifs: list[str] = field(default_factory=list)       # names of files
    listings: int = 0
    proof: str = ""                             # what the experiment behind teacher-forcing ratio 0 printed


def count_words(text: str) -> int:
    """Words of a text's prose; of Chinese, characters."""
    return len(re.findall(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]{2,}", NO_PROSE.sub("", text)))


def read_chapter(path: Path) -> Chapter:
    """An executed notebook as a chapter. Raises ValueError where it is missing, damaged or not executed to its end."""
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:                  # json, nbformat and its validation raise a dozen kinds
        raise ValueError(f"{path}: cannot be read ({str(error)[:80]}); `lab5 report` executes all notebooks") from error
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    if not all(cell.execution_count for cell in code) or "error" in [o.output_type for c in code for o in c.outputs]:
        raise ValueError(f"{path} was not executed to its end; `lab5 report` executes it again")
    chapter = Chapter()
    chapter.text = "\n\n".join(block for cell in _kept(cells) for block in _blocks(cell, chapter))
    return chapter


def _kept(cells: list) -> Iterator:
    """Leave out the cells tagged ``no-report``, and what stands under a heading that is."""
    skipping = 0                                # level of the heading whose section is left out
    for cell in cells:
        heading = HEADING.match(cell.source) if cell.cell_type == "markdown" else None
        if heading and (len(heading[1]) <= skipping or heading[2] == "References"):
            skipping = 0
        if "no-report" in cell.metadata.get("tags", []):
            skipping = skipping or (len(heading[1]) if heading else 0)
        elif not skipping:
            yield cell


def _blocks(cell, chapter: Chapter) -> Iterator[str]:
    """A cell's Markdown blocks; notes in the chapter what is in them."""
    def label(heading: re.Match) -> str:
        chapter.labels.append(f"section-{heading[2].replace('.', '-')}")
        return f"{heading[1]} {heading[2]} {heading[3]} {{#{chapter.labels[-1]}}}"

    if cell.cell_type == "markdown":
        yield NUMBERED.sub(label, cell.source)
        return
    tags, outputs = cell.metadata.get("tags", []), cell.get("outputs", [])
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    shown = [(output.get("metadata", {}).get("lab5", {}).get("figure"), output.get("data", {}).get("text/markdown", ""))
             for output in outputs]
    listings = [text for _, text in shown if text.startswith("```python")] or [f"```python\n{cell.source}\n```"]
    if "proof" in tags:
        chapter.proof = printed
    if "report-code" in tags:
        chapter.listings += len(listings)
        yield from listings
    if "report-output" in tags and printed:
        yield f"```\n{printed.rstrip()}\n```"
    shown = iter([(name, text) for name, text in shown if name or text and text not in listings])
    for name, text in shown:
        caption = next(shown)[1].strip().strip("*") if name else ""         # follows its figure
        if not name:
            yield text
        elif name.endswith(".gif"):
            chapter.gifs.append(name)
            yield f"**Moving picture** `figures/{name}`: {caption}"
        else:
            chapter.labels.append(f"figure-{name}")
            yield f"![{caption}](/figures/{name}.pdf){{#figure-{name}}}"
