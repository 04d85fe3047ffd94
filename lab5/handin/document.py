"""The report as a document: what a grader reads of the executed notebooks, as Markdown in the report's order.

Markdown and computed outputs are in; code and what it prints are not. Cell tags decide the rest:
``no-report`` leaves out a cell, or with a heading its whole section; ``report-code`` shows a cell's listing, and
``report-output`` what it printed. Chapters and sections keep the notebooks' numbers, so that a reference
such as "section 3.9" holds in both.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

HEADING = re.compile(r"^(#+) +(.+)")
NUMBERED = re.compile(r"^(##?) +(\d+(?:\.\d+)?)\.? +(.+?) *$", re.MULTILINE)


def read_chapter(path: Path) -> str:
    """An executed notebook's part of the report, as Markdown with a label at each numbered section and each figure.

    Raises ValueError where the notebook is missing, damaged or not executed to its end.
    """
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:                  # json, nbformat and its validation raise a dozen kinds
        raise ValueError(f"{path}: cannot be read ({str(error)[:80]}); `lab5 report` executes all notebooks") from error
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    if not all(cell.execution_count for cell in code) or "error" in [o.output_type for c in code for o in c.outputs]:
        raise ValueError(f"{path} was not executed to its end; `lab5 report` executes it again")
    return "\n\n".join(block for cell in _kept(cells) for block in _blocks(cell))


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


def _blocks(cell) -> Iterator[str]:
    """A cell's Markdown blocks."""
    if cell.cell_type == "markdown":
        yield NUMBERED.sub(r"\1 \2 \3 {#section-\2}", cell.source)
        return
    tags, shown = cell.metadata.get("tags", []), [output for output in cell.outputs if "data" in output]
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    texts = [output.data.get("text/markdown", "") for output in shown]
    listings = [text for text in texts if text.startswith("```python")]
    if "report-code" in tags:
        yield from listings or [f"```python\n{cell.source}\n```"]
    if "report-output" in tags and printed:
        yield f"```\n{printed.rstrip()}\n```"
    figures = [output.metadata.get("lab5", {}).get("figure", "") for output in shown]
    for figure, text in zip(["", *figures], texts, strict=False):       # a caption follows its figure
        caption = text.strip().strip("*")
        if figure.endswith(".gif"):
            yield f"**Moving picture** `figures/{figure}`: {caption}"
        elif figure:
            yield f"![{caption}](/figures/{figure}.pdf){{#figure-{figure}}}"
        elif text and text not in listings:
            yield text
