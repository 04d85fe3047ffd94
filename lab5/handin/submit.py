"""What is handed in: one zip with the report, the source, the executed notebooks and the figures, read back."""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pypdf import PdfReader

from lab5.files import write_atomically
from lab5.handin.document import Details
from lab5.handin.report import find_notebooks
from lab5.workbook.run import PROJECT, Run

SOURCE = ("README.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml", "tests/*.py", "figures/draw.py",
          "figures/*.csv", *(f"lab5/**/*.{kind}" for kind in ("py", "xml", "typ", "mplstyle")))
RESULTS = ("config.json", "history.jsonl", "provenance.json", "evaluation/test/*.json", "evaluation/test/*.csv")


def submit(lab: Run, details: Details, folder: Path, weights: bool = False) -> Path:
    """Write ``DL_LAB5_<id>_<name>.zip`` into a folder and read it back; returns its path.

    Raises ValueError on a student id or name that cannot be in a file's name or where a part is missing.
    """
    name = "_".join(["DL_LAB5", *details.student_id.split(), *details.name.split()])
    if not (details.student_id.strip() and details.name.strip()) or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        raise ValueError(f"id {details.student_id!r} and name {details.name!r} do not make the zip's name: give --id "
                         "and --name, or write them into report.yaml, without any of / \\ : * ? \" < > |")
    members = dict(_members(lab, weights))

    def write(path: Path) -> None:
        with ZipFile(path, "w") as archive:
            for place, file in members.items():
                info = ZipInfo(f"{name}/{place}")               # of 1980, so that equal contents are equal bytes
                info.external_attr = 0o644 << 16
                archive.writestr(info, file.read_bytes(), ZIP_DEFLATED)
        with ZipFile(path) as archive:
            if archive.testzip() or not PdfReader(BytesIO(archive.read(f"{name}/report.pdf"))).pages:
                raise OSError("it differs from what was written when read back")

    write_atomically(folder / f"{name}.zip", write)
    return folder / f"{name}.zip"


def _members(lab: Run, weights: bool) -> Iterator[tuple[str, Path]]:
    """(path in the zip, file) of everything that is handed in, and nothing else."""
    for pattern in SOURCE:
        for path in sorted(PROJECT.glob(pattern)):
            yield path.relative_to(PROJECT).as_posix(), path
    for place in ("report.pdf", *(f"notebooks/{path.name}" for path in find_notebooks())):
        if not (lab.folder / place).exists():
            raise ValueError(f"{lab.folder / place} is missing; `lab5 report` makes it")
        yield place, lab.folder / place
    for path in sorted((lab.folder / "figures").glob("*.*")):
        yield f"figures/{path.name}", path
    for pattern in (*RESULTS, *["best.safetensors"] * weights):
        for path in sorted(lab.folder.glob(pattern)):
            yield f"results/{path.relative_to(lab.folder).as_posix()}", path
