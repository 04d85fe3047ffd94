"""Many handed-in zips as one table: each is read without running anything in it, and its weights are scored.

What a zip holds is a stranger's. No member is written under its own name, sizes are limited, and what cannot be read
costs its own row, which says why.
"""

import csv
import hashlib
import io
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations, product
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from pypdf import PdfReader
from safetensors.torch import save as to_bytes
from tqdm.auto import tqdm

from lab5 import checkpoint
from lab5.config import Config
from lab5.data import Pack
from lab5.evaluation import choose_device, evaluate
from lab5.files import file_sha, write_text
from lab5.formats.template import convert
from lab5.metrics import grade
from lab5.model import CVAE
from lab5.workbook.run import RECORDED

MEMBERS, UNPACKED = 10_000, 1 << 30             # the most files, and bytes, of a zip
SETTINGS = list(product(("previous", "target"), map("".join, permutations("hzc")), ("early", "context", "latest")))
TRIED = 4                                       # sequences on which these, which no pickle says, are compared
COUNTED = {"notebooks": ".ipynb", "sources": ".py", "GIFs": ".gif"}
COLUMNS = ("id", "name", "file", "report", "pages", *COUNTED, "missing", "PSNR", "share", "seconds", "remarks",
           "same weights as", "weights SHA-256", "zip SHA-256", "test set")
Row = dict[str, str]


def grade_folder(folder: Path, pack: Pack) -> Path:
    """Score every ``DL_LAB5_<id>_<name>.zip`` on a test split; ``grades.csv`` is written after each. Returns its path.

    The row of a zip that was scored on this split before is kept. Raises ValueError where there is no zip.
    """
    paths = {_cell(path.name): path for path in sorted(folder.iterdir()) if path.is_file()
             and (path.name.startswith("DL_LAB5_") or path.suffix.lower() == ".zip")}
    if not paths:
        raise ValueError(f"{folder}: holds no zip. Name the folder of the files DL_LAB5_<id>_<name>.zip")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)       # its warnings would break the bar
    model, _ = checkpoint.load_model(RECORDED / "best.safetensors")
    recorded = {"file": "the recorded run", "weights SHA-256": _weights_sha(model)}
    table = folder / "grades.csv"
    rows = _read_table(table)
    with tqdm(paths.items(), unit="zip") as bar:
        for cell, path in bar:
            bar.set_description(path.name)
            key = {"zip SHA-256": file_sha(path), "test set": pack.data_sha}
            if not key.items() <= rows.get(cell, {}).items():
                rows[cell] = {column: _cell(value) for column, value in (_grade(path, pack) | key).items()}
            _write_table(table, [rows[name] for name in paths if name in rows], recorded)
    return table


def _cell(value: object) -> str:
    """A value as the text of a cell, on one line, which no spreadsheet takes for a formula."""
    text = " ".join(str(value).encode(errors="replace").decode().split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _read_table(table: Path) -> dict[str, Row]:
    """The rows of an earlier call by their files; none where there is no table."""
    lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines() if table.exists() else []
    rows = csv.DictReader(lines)
    if lines and tuple(rows.fieldnames) != COLUMNS:
        raise ValueError(f"{table}: is not a table of this command; give it another name")
    return {row["file"]: row for row in rows}


def _write_table(table: Path, rows: list[Row], recorded: Row) -> None:
    """Write the rows, each with the others that have its weights."""
    writer = csv.DictWriter(text := io.StringIO(), COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        same = [other["file"] for other in (recorded, *rows) if other is not row
                and row.get("weights SHA-256") and row["weights SHA-256"] == other.get("weights SHA-256")]
        writer.writerow(row | {"same weights as": ", ".join(same)})
    write_text(table, "\ufeff" + text.getvalue())               # the mark by which Excel knows UTF-8


def _grade(path: Path, pack: Pack) -> Row:
    """The row of one zip."""
    begun, remarks, row = time.monotonic(), [], {"file": path.name}
    if student := re.fullmatch(r"DL_LAB5_([^_]+)_(.+)\.zip", path.name):
        row["id"], row["name"] = student.groups()
    else:
        remarks.append("is not named DL_LAB5_<id>_<name>.zip")
    with TemporaryDirectory() as folder, _told(remarks):
        names, report, weights = _unpack(path, Path(folder))
        endings = Counter(Path(name).suffix.lower() for name in names)
        row |= {kind: str(endings[ending]) for kind, ending in COUNTED.items()}
        remarks += [f"{name} is a zip in the zip and was not opened" for name in names if name.lower().endswith(".zip")]
        for name, copy in report.items():
            with _told(remarks, name, copy):
                row |= {"report": name, "pages": str(len(PdfReader(copy).pages))}
        row |= _score(weights, pack, remarks)
        missing = {"report": "pages" not in row, "source": not endings[".ipynb"] + endings[".py"],
                   "GIF": not endings[".gif"], "weights": not weights}
        row["missing"] = ", ".join(part for part, absent in missing.items() if absent)
    return row | {"seconds": f"{time.monotonic() - begun:.0f}", "remarks": "; ".join(remarks)}


@contextmanager
def _told(remarks: list[str], name: str = "", copy: Path = Path("\0")) -> Iterator[None]:
    """An error becomes a remark, with the member's name in place of its copy's."""
    try:
        yield
    except Exception as error:                  # what a damaged file raises depends on where it is damaged
        remarks.append(f"{type(error).__name__}: {error}".replace(str(copy), name)[:600])


def _unpack(path: Path, folder: Path) -> tuple[list[str], dict[str, Path], dict[str, Path]]:
    """Read a whole zip: the names of its members, and by name the copies of its report and of its weights."""
    with ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)      # as declared; zipfile reads no more than that
        if len(members) > MEMBERS or size > UNPACKED:
            raise ValueError(f"refused: it declares {len(members):,} files of {size >> 20:,} MiB, and at most "
                             f"{MEMBERS:,} of {UNPACKED >> 20:,} MiB are read")
        for name in archive.namelist():
            if (place := PureWindowsPath(name)).anchor or ".." in place.parts:
                raise ValueError(f"refused: {name!r} leads out of the folder that it is unpacked in")
        members = [member for member in members if not (member.is_dir() or "__MACOSX" in member.filename)]
        names = [member.filename for member in members]
        reports = sorted((name for name in names if name.lower().endswith(".pdf")),
                         key=lambda name: ("report" not in Path(name).name.lower(), name.count("/"), name))[:1]
        weights = ([name for name in names if Path(name).name == "best.safetensors"]
                   or [name for name in names if name.lower().endswith((".pth", ".pt"))])
        copies = {name: folder / str(number) for number, name in enumerate([*reports, *weights])}
        for member in members:                                  # all of them, so that damage is noticed
            with archive.open(member) as content, open(copies.get(member.filename, os.devnull), "wb") as copy:
                shutil.copyfileobj(content, copy)
    return names, *({name: copies[name] for name in part} for part in (reports, weights))


def _score(weights: dict[str, Path], pack: Pack, remarks: list[str]) -> Row:
    """The score of the model that is best on a few sequences, or nothing where no weights can be read.

    Each is given the lab's context frames and predicts the lab's number, whatever its own settings are.
    """
    best, chosen, remark, lab = -1.0, None, "", Config()
    for name, copy in weights.items():
        with _told(remarks, name, copy):
            for settings in [()] if name.endswith(".safetensors") else SETTINGS:
                model = convert(copy, *settings) if settings else checkpoint.load_model(copy)[0]
                own = model.to(choose_device()).config
                model.config = own.replace(n_past=lab.n_past, n_future=lab.n_future)
                if (score := _psnr(model, pack, TRIED)) > best:                 # NaN is not
                    best, chosen, remark = score, model, f"scored {name}, made for {own.n_past} + {own.n_future} frames"
                    if settings:
                        remark += f", with condition {own.condition}, order {settings[1]}, skip {settings[2]}"
    if chosen is None:
        return {}
    remarks.append(remark)
    score = _psnr(chosen, pack)
    return {"PSNR": f"{score:.3f}", "share": f"{grade(score):.1f}", "weights SHA-256": _weights_sha(chosen)}


def _psnr(model: CVAE, pack: Pack, limit: int | None = None) -> float:
    scores = evaluate(model, pack, protocols=("prior_sample",), limit=limit, progress=limit is None)
    return scores.average("prior_sample")[0]


def _weights_sha(model: CVAE) -> str:
    """Of the numbers as they are in memory, which saving them again with other facts does not change."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(to_bytes(tensors)).hexdigest()[:12]
