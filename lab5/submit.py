"""What is handed in: one zip with the report, the source, the executed notebooks and the figures, read back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from pypdf import PdfReader
from pypdf.errors import PdfReadError

from lab5.document import Details, Incomplete
from lab5.files import write_atomically
from lab5.report import find_notebooks
from lab5.workbook import PROJECT, Workbook

SOURCE = ("README.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml", "lab5/*.py", "lab5/*.typ",
          "lab5/*.mplstyle", "tests/*.py", "figures/sweep_*.csv")
RESULTS = ("config.json", "history.jsonl", "provenance.json", "evaluation/test/summary.json",
           "evaluation/test/per_sequence.csv")
EPOCH = (2020, 1, 1, 0, 0, 0)                   # of every file in the zip, so that equal contents are equal bytes


def submit(book: Workbook, details: Details, folder: Path, weights: bool = False) -> Path:
    """Write ``DL_LAB5_<id>_<name>.zip`` into a folder and read it back; returns its path.

    Raises:
        ValueError: no student id or name, or one that cannot be in a file's name.
        Incomplete: the run lacks the report, an executed notebook or a figure.
    """
    name = f"DL_LAB5_{_file_name('id', details.student_id)}_{_file_name('name', details.name)}"
    path = folder / f"{name}.zip"
    members = dict(_members(book, weights))
    write_atomically(path, lambda part: _write(part, name, members))
    _reopen(path, name, members)
    return path


def _file_name(what: str, value: str) -> str:
    value = re.sub(r"\s+", "_", value.strip())
    if not value:
        raise ValueError(f"the zip's name needs the student's {what}: give --{what}, or write it into report.yaml")
    if re.search(r'[/\\:*?"<>|\x00-\x1f]', value) or value.startswith("."):
        raise ValueError(f"{what} is {value!r}, which cannot be part of a file's name")
    return value


def _members(book: Workbook, weights: bool) -> Iterator[tuple[str, Path]]:
    """(path in the zip, file) of everything that is handed in, and nothing else."""
    run = book.run
    if not (run / "report.pdf").exists():
        raise Incomplete(f"{run / 'report.pdf'} is missing; `lab5 report` makes it")
    yield "report.pdf", run / "report.pdf"
    for pattern in SOURCE:
        for path in sorted(PROJECT.glob(pattern)):
            yield path.relative_to(PROJECT).as_posix(), path
    for notebook in find_notebooks():
        executed = run / "notebooks" / notebook.name
        if not executed.exists():
            raise Incomplete(f"{executed} is missing; `lab5 report` executes the notebooks")
        yield f"notebooks/{notebook.name}", executed
    for path in sorted((run / "figures").glob("*.*")):
        yield f"figures/{path.name}", path
    for name in (*RESULTS, *(("best.safetensors",) if weights else ())):
        if (run / name).exists():
            yield f"results/{name}", run / name


def _write(path: Path, name: str, members: dict[str, Path]) -> None:
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for place, file in members.items():
            info = ZipInfo(f"{name}/{place}", EPOCH)
            info.compress_type, info.external_attr = ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, file.read_bytes())


def _reopen(path: Path, name: str, members: dict[str, Path]) -> None:
    """Read everything back. Raises RuntimeError where the zip does not hold what was put into it."""
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()
            if broken or sorted(archive.namelist()) != sorted(f"{name}/{place}" for place in members):
                raise RuntimeError(f"{path}: {broken or 'its list of files'} is not what was written; try again")
            if not PdfReader(BytesIO(archive.read(f"{name}/report.pdf"))).pages:
                raise RuntimeError(f"{path}: the report in it has no pages; make it again with `lab5 rubric`")
    except (BadZipFile, PdfReadError) as error:
        raise RuntimeError(f"{path}: cannot be read back ({error}); try again") from error


def verify(path: Path) -> None:
    """Unpack the zip into an empty folder and run its whole workbook there with the smoke preset.

    Raises RuntimeError with the end of its output where that fails.
    """
    with tempfile.TemporaryDirectory() as folder, ZipFile(path) as archive:
        archive.extractall(folder)
        root, = Path(folder).iterdir()
        result = subprocess.run([sys.executable, "-m", "lab5.cli", "report", "--preset", "smoke"], cwd=root,
                                env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{path}: the workbook in it does not run:\n{result.stderr[-2000:]}")
