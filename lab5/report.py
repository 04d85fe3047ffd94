"""The whole workbook as one batch job: every notebook through papermill into a run folder, and the PDF of them."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import papermill
from tqdm.auto import tqdm

from lab5 import pdf, rubric
from lab5.document import Chapter, Details, Incomplete, read_chapters, section_label
from lab5.evaluation import Evaluation, evaluate
from lab5.files import write_text
from lab5.training import read_history
from lab5.workbook import PROJECT, RECORDED, Workbook, open_book, recorded_run, table

NOTEBOOKS = PROJECT / "notebooks"


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; says which, in which cell, and where its copy lies."""


def find_notebooks(only: list[str] | None = None) -> list[Path]:
    """The ordered notebooks, or those whose names begin with the given numbers ("05") or names.

    Raises ValueError on a name that fits none.
    """
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for wanted in only or []:
        if not any(path.stem.startswith(wanted) for path in notebooks):
            raise ValueError(f"no notebook begins with {wanted!r}; there are {', '.join(p.stem for p in notebooks)}")
    return [path for path in notebooks if not only or path.stem.startswith(tuple(only))]


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook does not have (papermill itself would only warn). Raises ValueError."""
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")


def run_report(preset: str, run: str = "", data: str = "", only: list[str] | None = None) -> Workbook:
    """Execute the notebooks in order; copies with their outputs go to ``RUN/notebooks``, figures to ``RUN/figures``.

    Raises:
        ValueError: unknown preset, parameter or notebook.
        NotebookFailed: a notebook stopped.
        OSError: the run folder cannot be written.
    """
    book = open_book(preset, run, data)
    notebooks = find_notebooks(only)
    parameters = {"preset": preset, "run": str(book.run), "data": str(PROJECT / data) if data else ""}
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    book.prepare()
    with tqdm(notebooks, unit="notebook", desc="workbook") as bar:
        for notebook in bar:
            with _watch(book.run, bar, notebook.stem):
                _execute(notebook, book.run / "notebooks" / notebook.name, parameters)
    provenance = {**book.facts(), "date": date.today().isoformat()}
    write_text(book.run / "provenance.json", json.dumps(provenance, indent=2) + "\n")
    return book


def _execute(notebook: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Put an executed copy at `target`. Nothing is there until all of it is, or an error ended it."""
    part = target.with_name(f".{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            papermill.execute_notebook(str(notebook), str(part), parameters, kernel_name="python3",
                                       cwd=str(notebook.parent), progress_bar=False,
                                       extra_arguments=["--IPKernelApp.log_level=ERROR"])  # its warnings tear the bar
        except papermill.PapermillExecutionError as error:
            os.replace(part, target)
            raise NotebookFailed(f"{notebook.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                                 f"Its copy with the full traceback: {target}") from error
        os.replace(part, target)
    except OSError as error:
        raise OSError(f"{target}: could not be written ({error.strerror or error}). Make room or the folder writable, "
                      "or choose another run folder; the same command goes on from what is done") from error


class _watch:
    """While a notebook executes, show on the bar which one, and how far a training in it has come."""

    def __init__(self, run: Path, bar: tqdm, name: str) -> None:
        self.run, self.bar, self.name = run, bar, name
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.thread.join()

    def _poll(self) -> None:
        epochs = self._epochs()
        self.bar.set_postfix_str(self.name)
        while not self.finished.wait(1.0):
            before, epochs = epochs, self._epochs()
            for path in (path for path in epochs if epochs[path] != before.get(path)):
                where = "" if path.parent == self.run else f"{path.parent.name} "
                self.bar.set_postfix_str(f"{self.name}: {where}epoch {epochs[path]}")

    def _epochs(self) -> dict[Path, int]:
        return {path: len(read_history(path.parent)) for path in self.run.rglob("history.jsonl")}


def find_details(path: Path | None, **given: str) -> Details:
    """The student's details: those of a ``report.yaml`` (the project's own, if there is one), those given changed.

    Raises ValueError on a file that is missing or not understood, and MissingFont where they could not be printed.
    """
    path = path or (PROJECT / "report.yaml" if (PROJECT / "report.yaml").exists() else None)
    details = Details.load(path) if path else Details()
    details = replace(details, **{name: value for name, value in given.items() if value})
    pdf.find_fonts(details)
    return details


def build_pdf(book: Workbook, details: Details) -> tuple[list[rubric.Item], dict[str, int]]:
    """Write ``RUN/report.pdf`` from the executed notebooks; returns the rubric's items and every label's page.

    Raises Incomplete naming what the run folder lacks.
    """
    chapters = read_chapters([book.run / "notebooks" / path.name for path in find_notebooks()])
    facts = _provenance(book)
    items = rubric.check(book, chapters, details)
    scores = book.evaluation()
    mean, half = scores.average("sampled")
    headline = (f"{mean:.2f} ± {half:.2f} dB average PSNR over {len(scores.names)} test sequences of {book.data_name}; "
                f"run {facts['run']}, configuration {facts['configuration']}, seed {facts['seed']}. In the picture, a "
                "test sequence and its prediction.")
    places = pdf.build(book.run, chapters, details, {"headline": headline, "date": facts["date"]},
                       _appendices(facts, items, chapters))
    pdf.write_index(book.run, chapters)
    return items, dict(places)


def _provenance(book: Workbook) -> dict[str, str]:
    path = book.run / "provenance.json"
    if not path.exists():
        raise Incomplete(f"{path} is missing; `lab5 report` writes it when it has executed the notebooks")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise Incomplete(f"{path} is torn ({error}); `lab5 report` writes it anew") from error


def _appendices(facts: dict[str, str], items: list[rubric.Item], chapters: list[Chapter]) -> str:
    labels = {f"figure-{name}" for chapter in chapters for name in chapter.figures}
    labels |= {chapter.label for chapter in chapters}
    labels |= {section_label(number) for chapter in chapters for number in chapter.sections}
    rows = [(name, f"`{value}`" if value else "unknown") for name, value in {**facts, "report": pdf.versions()}.items()]
    return "\n\n".join([
        "```{=typst}\n#counter(heading).update(0)\n#set heading(numbering: \"A.1\")\n```",
        "# Where the results come from {#provenance}",
        "Every figure and every number of this report was computed by the code that is handed in with it. What is "
        "recorded from an earlier run says so where it stands, with its machine; all else comes from one run:",
        table("fact", "value", rows=rows),
        "# The assignment, point by point {#rubric}",
        rubric.as_markdown(items, labels)])


def demo() -> str:
    """Score the recorded run's weights anew on its whole test split; the result beside what is recorded."""
    book = open_book("standard", str(recorded_run()))
    scores = evaluate(book.model(), book.pack("test"), protocols=("sampled", "hold", "copy"))
    (mean, half), (recorded, _) = scores.average("sampled"), Evaluation.load(RECORDED / "evaluation" / "test").average(
        "sampled")
    return "\n".join([
        "", scores.table(), "",
        f"average PSNR   {mean:.2f} ± {half:.2f} dB over {len(scores.names)} test sequences on {book.data_name}",
        f"as recorded    {recorded:.2f} dB in {RECORDED / 'evaluation' / 'test'}",
        f"grade of the demo's prediction part   {scores.grade:.0%}"])


def summary(book: Workbook) -> str:
    """The closing table: what was scored, the grade, and where everything lies."""
    scores = book.evaluation()
    (sampled, half), (hold, _) = scores.average("sampled"), scores.average("hold")
    figures = sorted(path.name for path in (book.run / "figures").glob("*.*"))
    return "\n".join([
        "",
        scores.table(),
        "",
        f"average PSNR   {sampled:.2f} ± {half:.2f} dB over {len(scores.names)} test sequences on {book.data_name}",
        f"above holding the last frame   {sampled - hold:+.2f} dB",
        f"grade of the demo's prediction part   {scores.grade:.0%}",
        "",
        *([f"report     {book.run / 'report.pdf'}"] if (book.run / "report.pdf").exists() else []),
        f"run        {book.run}",
        f"notebooks  {book.run / 'notebooks'}",
        f"figures    {book.run / 'figures' / 'index.html'} ({len(figures)} files)",
        f"weights    {book.run / 'best.safetensors'}",
        f"scores     {book.run / 'evaluation' / 'test'}",
    ])
