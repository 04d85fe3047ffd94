"""What is handed in: one zip with the report, the source, the executed notebooks, the figures and the weights."""

import re
from pathlib import Path
from unicodedata import normalize
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from lab5.files import write_atomically
from lab5.handin.words import Details, with_answers
from lab5.workbook.run import PROJECT, Run

SOURCE = ("README.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml", "tests/*.py", "figures/draw.py",
          "figures/*.csv", *(f"lab5/**/*.{kind}" for kind in ("py", "xml", "typ", "lua", "md", "mplstyle")))
REPORT = ("report.pdf", "notebooks/*.ipynb", "figures/*.*")
RESULTS = ("best.safetensors", "config.json", "history.jsonl", "evaluation/test/*.json")


def submit(lab: Run, details: Details, folder: Path) -> Path:
    """Write ``DL_LAB5_<id>_<name>.zip`` of a run whose PDF was made, and nothing else than what is handed in.

    Returns its path. Raises ValueError on a student id or name that cannot be in a file's name.
    """
    words = normalize("NFC", f"{details.student_id} {details.name}").split()
    name = "_".join(["DL_LAB5", *words]).rstrip(".")            # Windows cannot open a folder that ends in a dot
    named = all(re.search(r"\w", text) for text in (details.student_id, details.name))
    if not named or re.search(r'[/\\:*?"<>|]', name) or not name.isprintable() or len(name.encode()) > 200:
        raise ValueError(f"id {details.student_id!r} and name {details.name!r} do not make the zip's name: write "
                         "them into report.yaml, in 190 bytes, without any of / \\ : * ? \" < > |")

    parts = (PROJECT, "", SOURCE), (lab.folder, "", REPORT), (lab.folder, "results/", RESULTS)

    def write(path: Path) -> None:
        with ZipFile(path, "w", ZIP_DEFLATED) as archive:
            for source, prefix, patterns in parts:
                for file in (file for pattern in patterns for file in sorted(source.glob(pattern))):
                    content = with_answers(file) if file.suffix == ".ipynb" else file.read_bytes()
                    place = f"{name}/{prefix}{file.relative_to(source).as_posix()}"
                    archive.writestr(ZipInfo.from_file(file, place, strict_timestamps=False), content, ZIP_DEFLATED)

    write_atomically(folder / f"{name}.zip", write)
    return folder / f"{name}.zip"
