"""What only the student can write: the title, the discussion, and the answers in the notebooks."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import nbformat
import yaml
from pydantic import BaseModel

from lab5.workbook.run import PROJECT

ANSWER = "*Your answer:*"                       # all that is in an answer's cell as shipped


class Words(NamedTuple):
    """A Markdown text of the student; its lines are numbered as those of the file or the cell that holds it."""

    origin: str
    place: str                                  # in the report: "discussion", or the number of a notebook
    text: str
    question: str = ""


class Details(BaseModel, frozen=True, extra="forbid"):
    """The file ``report.yaml``."""

    student_id: str = ""
    name: str = ""
    language: Literal["en", "zh"] = "en"        # of the title
    discussion: str = ""                        # Markdown, under as many empty lines as the file has lines above it

    @classmethod
    def load(cls, path: Path = PROJECT / "report.yaml") -> "Details":
        """Read the file; without one, all is empty. Raises ValueError on what is wrong in it."""
        try:                                                    # all values as texts, so that an id keeps its zeros
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            details = cls.model_validate(yaml.load(text, yaml.BaseLoader) or {})
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: {error}\nThe keys are {', '.join(cls.model_fields)}; each has a text") from error
        above = re.search(r"(?ms)\A.*?^discussion:\s*([|>].*?\n)?", text)
        padding = "\n" * above[0].count("\n") if above else ""
        return details.model_copy(update={"discussion": padding + details.discussion})


def read_cells(path: Path) -> list:
    """The cells of a notebook. Raises ValueError where it is missing or damaged."""
    try:
        return nbformat.read(path, as_version=4).cells
    except Exception as error:                  # json, nbformat and its validation raise a dozen kinds
        raise ValueError(f"{path}: cannot be read ({str(error)[:80]}); `lab5 report` executes all notebooks") from error


def with_answers(executed: Path) -> str:
    """An executed notebook with the answers that stand in the project's own now, which may be newer."""
    notebook = nbformat.read(executed, as_version=4)
    newer = {cell.id: cell.source for cell in read_cells(PROJECT / "notebooks" / executed.name)}
    for cell in notebook.cells:
        if "answer" in cell.metadata.get("tags", []):
            cell.source = newer.get(cell.id, ANSWER)
    return nbformat.writes(notebook)


def read_words(details: Details, notebooks: Iterable[Path]) -> list[Words]:
    """The discussion and every answer, also those that are blank.

    An answer is a cell with tag ``answer``; the first line of the cell above it with tag ``your-turn`` is its question.
    """
    found, question = [Words("report.yaml", "discussion", details.discussion)], ""
    for path in notebooks:
        for number, cell in enumerate(read_cells(path), 1):
            if "your-turn" in cell.metadata.get("tags", []):
                question = cell.source.strip("# \n").partition("\n")[0]
            if "answer" in cell.metadata.get("tags", []):
                found.append(Words(f"{path.name}, cell {number}", path.name[:2], cell.source.replace(ANSWER, ""),
                                   question))
    return found
