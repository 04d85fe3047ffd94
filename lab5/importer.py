"""Real BAIR from where it was published into a pack or the lab's folder tree, without unpacking its archive."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from lab5 import packs
from lab5.files import write_text
from lab5.packs import check_sequences, each, pack_split
from lab5.sources import FRAME_BYTES, SPLITS, DataError, Problem, Source, Survey, Tree, Zip, refusal, write_sequence
from lab5.tfrecords import CAMERAS, Records

PNG_SHARE = 2 / 3                               # of a frame's bytes, what a PNG of it takes (measured on BAIR)


def find_source(path: str | Path, camera: str = CAMERAS[0]) -> Source:
    """The source that a path is: the lab's tree or its zip, Berkeley's folder or its tar.

    Raises DataError when it is none of them, is damaged, or has no such camera.
    """
    path = Path(path).expanduser()
    source = _open_source(path, camera)
    if camera != CAMERAS[0] and not isinstance(source, Records):
        raise DataError(f"{path}: the lab's set has one camera, {CAMERAS[0]}; only Berkeley's TFRecords have {camera}")
    return source


def _open_source(path: Path, camera: str) -> Source:
    if path.is_dir():
        tree = Tree(path)
        return tree if any(tree.has(split) for split in SPLITS) else Records(path, camera)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); give a folder, a tar or a zip") from error
    if head[257:262] == b"ustar":
        return Records(path, camera)
    if head[:2] == b"PK":
        return Zip(path)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise DataError(f"{path}: is compressed, and can only be read from its beginning; decompress it first")
    raise DataError(f"{path}: is neither a tar nor a zip, by its first bytes; delete it and fetch it anew")


def check(path: str | Path, progress: bool = True) -> tuple[dict[str, int], list[Problem]]:
    """The sequences of each split and all that is wrong with them, of a set's folder or of anything to import."""
    path = Path(path).expanduser()
    if path.is_file():
        return _check_source(find_source(path), progress)
    home = Tree(path).place
    if not (home / "packed").is_dir() and not (home / "processed_data").is_dir():
        with suppress(DataError):               # no TFRecords either: what is missing is said below
            return _check_source(Records(path), progress)
    return packs.summary(path), packs.check(path, progress)


def _check_source(source: Source, progress: bool) -> tuple[dict[str, int], list[Problem]]:
    surveys = [source.survey(split, progress) for split in SPLITS]
    return ({survey.split: len(survey.names) for survey in surveys},
            [problem for survey in surveys for problem in check_sequences(source, survey, progress)])


def import_set(place: str | Path, root: str | Path, camera: str = CAMERAS[0], tree: bool = False,
               progress: bool = True) -> dict[str, int]:
    """Bring a source's sequences into ``root/packed``, or with `tree` into ``root/processed_data``.

    What was brought in before stays, so a call that was killed goes on where it stopped.

    Returns:
        the number of sequences in each split, 0 for one that the source lacks.
    Raises:
        DataError: the source is broken, the root holds another set, the disk is full or cannot be written.
    """
    source, home = find_source(place, camera), Tree(root).place
    surveys = [source.survey(split, progress) for split in SPLITS]
    there = [survey for survey in surveys if survey.there]
    if problems := [problem for survey in there or surveys for problem in survey.problems]:
        raise refusal(f"{place}: cannot be imported:", problems, "Then the same command goes on")
    if tree:
        _write_tree(source, there, home, progress)
    else:
        if any(Tree(home).has(split) for split in SPLITS):
            raise DataError(f"{home / 'processed_data'}: is there already, and is what {home / 'packed'} is made of; "
                            "import into another folder, or pack what is there with `lab5 pack`")
        for survey in there:
            pack_split(source, survey, home, progress)
    return {survey.split: len(survey.names) for survey in surveys}


# The tree ------------------------------------------------------------------------------------------------

def _write_tree(source: Source, surveys: list[Survey], home: Path, progress: bool) -> None:
    if isinstance(source, Tree):
        raise DataError(f"{source.place}: is such a tree already; copy it, or use it where it is")
    if any(survey.simulated for survey in surveys):
        raise DataError(f"{source.place}: is the simulated robot's, and a tree must say so; unzip it, or import it "
                        "into a pack")
    folder = home / "processed_data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".import.lock"):
            _claim(folder, {survey.split: survey.digest for survey in surveys})
            missing = {survey.split: [name for name in survey.names if not (folder / survey.split / name).is_dir()]
                       for survey in surveys}
            _refuse_full_disk(folder, sum(len(missing[survey.split]) * survey.length for survey in surveys))
            for survey in surveys:
                _write_split(source, survey, missing[survey.split], folder, progress)
    except OSError as error:
        raise DataError(f"{folder}: the set cannot be written ({error}); make room or the folder writable and start "
                        "again, and it goes on from here") from error


def _claim(folder: Path, record: dict[str, str]) -> None:
    """Note whose sequences a folder gets. Raises DataError where it holds another source's, or its own."""
    path = folder / "import.json"
    if path.exists():
        if path.read_text(encoding="utf-8", errors="replace") != json.dumps(record):
            raise DataError(f"{path}: the folder holds the sequences of another source or camera; name another one, "
                            "or remove it")
    elif any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise DataError(f"{folder}: holds data that were not imported; name another folder")
    else:
        write_text(path, json.dumps(record))


def _refuse_full_disk(folder: Path, frames: int) -> None:
    needed, free = frames * FRAME_BYTES * PNG_SHARE, shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder}: the frames take some {needed / 1e9:.3f} GB, but {free / 1e9:.3f} GB are free; "
                        "make room, or name a folder on a larger disk")


def _write_split(source: Source, survey: Survey, names: list[str], folder: Path, progress: bool) -> None:
    """Write sequences. Raises DataError on broken ones, after all others are written."""
    def write(name: str) -> list[Problem]:
        frames, conditions, problems = source.read(survey, name)
        if not problems:
            write_sequence(folder / survey.split / name, frames, conditions, "%.9g")    # all that a float32 is
        return problems
    written = each(write, names, f"importing {survey.split}", progress)
    if problems := [problem for found in written for problem in found]:
        raise refusal(f"{source.place}: {survey.split} cannot be imported whole:", problems,
                      "All else is there; then the same command goes on")
