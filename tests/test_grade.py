"""A folder of made-up submissions becomes the right table, and nothing in a zip is run or believed."""

import csv
import os
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
import typst
from conftest import seeded_model
from template_networks import Payload, template, written

from lab5 import checkpoint
from lab5.cli import main
from lab5.config import preset
from lab5.data import Pack
from lab5.evaluation import evaluate, prior_noise
from lab5.formats.template import convert
from lab5.handin import grade

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")     # of the template's classes
SOME = grade.SETTINGS[::7]                      # every condition, order and skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What submissions are made of, as bytes: weights, pickles of the template, a PDF of two pages."""
    place, model, other = tmp_path_factory.mktemp("parts"), seeded_model(preset("smoke")), seeded_model(preset("smoke"))
    checkpoint.save(place / "ours", model, epoch=1)
    checkpoint.save(place / "resaved", model, epoch=2)
    checkpoint.save(place / "five numbers", seeded_model(preset("smoke"), 5), epoch=1)
    checkpoint.save(place / "recorded", checkpoint.load_model(grade.RECORDED / "best.safetensors")[0], epoch=3)
    other.config = preset("smoke", width=4096, n_future=3)
    checkpoint.save(place / "other sizes", other, epoch=1)
    written(place / "template", template())
    written(place / "attack", template() | {"epoch": Payload(os.system, f"touch '{place / 'mark'}'")})
    (place / "report.typ").write_text("one\n#pagebreak()\ntwo")
    typst.compile(place / "report.typ", place / "pdf")
    return {path.name: path.read_bytes() for path in place.iterdir()}, place / "mark"


def handed_in(path, **members):
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def table(folder):
    with open(folder / "grades.csv", encoding="utf-8-sig", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


ALL = "report, source, GIF, weights"
TABLE = [                                       # file, pages, what is missing, a PSNR or not, words of the remarks
    ("DL_LAB5_001_Good.zip", "2", "", True, "scored a/results/best.safetensors"),
    ("DL_LAB5_002_No_Weights.zip", "2", "weights", False, ""),
    ("DL_LAB5_003_Template.zip", "2", "", True, "frames, with condition "),
    ("DL_LAB5_004_Attack.zip", "2", "", False, "it names posix.system, which"),
    ("DL_LAB5_005_Bomb.zip", "", "", False, "refused: it declares 2 files of 65 MiB"),
    ("DL_LAB5_006_王小明.zip", "2", "", True, ""),
    ("DL_LAB5_007_Truncated.zip", "", "", False, "BadZipFile: File is not a zip file"),
    ("DL_LAB5_008_Word.zip", "", "report", True, "PdfStreamError: "),
    ("DL_LAB5_009_Box.zip", "", ALL, False, "all.ZIP is a zip in the zip and was not opened"),
    ("DL_LAB5_010_Copy.zip", "2", "", True, ""),
    ("DL_LAB5_011_Sizes.zip", "2", "", False, "best.safetensors: does not fit its configuration"),
    ("DL_LAB5_012_Five.zip", "2", "", False, "each frame comes with 7 numbers"),
    ("DL_LAB5_013_Empty.zip", "", ALL, False, ""),
    ("DL_LAB5_014_Up.zip", "", "", False, "refused: 'a/../../evil.py' leads out of the folder"),
    ("DL_LAB5_015_Root.zip", "", "", False, "refused: '/etc/evil.py' leads out of the folder"),
    ("DL_LAB5_016_Drive.zip", "", "", False, r"refused: 'C:\\evil.py' leads out of the folder"),
    ("DL_LAB5_017_Recorded.zip", "2", "", True, ""),
    ("DL_LAB5_018_Damaged.zip", "", "", False, "BadZipFile: Bad CRC-32 for file 'best.safetensors'"),
    ("DL_LAB5_019_Archive.rar", "", "", False, "is not named DL_LAB5_<id>_<name>.zip; BadZipFile"),
    ("'=HYPERLINK(1).ZIP", "2", "", True, "is not named DL_LAB5_<id>_<name>.zip"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, parts):
    folder, (part, _) = tmp_path_factory.mktemp("folder"), parts
    rest = {"train.py": "", "a.gif": "", "Report.pdf": part["pdf"], "appendix.pdf": "", "__MACOSX/._report.pdf": ""}
    whole = rest | {"best.safetensors": part["ours"]}
    contents = [
        {"a/report.pdf": part["pdf"], "a/figures/b.pdf": "", "a/n.ipynb": "", "a/b.GIF": "",
         "a/results/best.safetensors": part["ours"]},
        rest, rest | {"logs/model.pth": part["template"]}, rest | {"model.pth": part["attack"]},
        {"zeros.py": bytes(65 << 20), "model.pth": part["template"]}, whole, whole, whole | {"Report.pdf": "PK"},
        {"all.ZIP": part["ours"]}, whole | {"best.safetensors": part["resaved"]},
        whole | {"best.safetensors": part["other sizes"]}, whole | {"best.safetensors": part["five numbers"]}, {},
        whole | {"a/../../evil.py": ""}, whole | {"/etc/evil.py": ""}, whole | {"C:\\evil.py": ""},
        whole | {"best.safetensors": part["recorded"]}, whole, whole, whole]
    for (name, *_), content in zip(TABLE, contents, strict=True):
        path = handed_in(folder / name.removeprefix("'"), **content)
        found = bytearray(path.read_bytes())
        if "Damaged" in name:
            found[found.index(b"best.safetensors") + 5000] ^= 255
        path.write_bytes(found[:-90] if "Truncated" in name else b"Rar!" if "Archive" in name else found)
    return folder


@pytest.fixture(scope="module")
def graded(folder, tiny_root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade, "UNPACKED", 64 << 20)
        patch.setattr(grade, "SETTINGS", SOME)
        assert main(["grade", str(folder), "--data", str(tiny_root)]) == 0
    return table(folder)


@pytest.mark.parametrize("name, pages, missing, scored, words", TABLE, ids=[row[0] for row in TABLE])
def test_the_row_says_what_is_there(graded, name, pages, missing, scored, words):
    row = graded[name]
    assert (row["pages"], row["missing"], bool(row["PSNR"])) == (pages, missing, scored) and words in row["remarks"]
    assert bool(row["share"]) == bool(row["weights SHA-256"]) == scored and row["seconds"].isdecimal()
    if name.endswith(".zip"):
        assert f"DL_LAB5_{row['id']}_{row['name']}.zip" == name and row["id"].isdecimal()
    assert not [cell for cell in row.values() if cell.startswith(tuple("=+-@"))]


def test_the_score_is_that_of_the_lab(graded, parts, tiny_packs, tmp_path):
    (tmp_path / "best").write_bytes(parts[0]["ours"])
    model = checkpoint.load_model(tmp_path / "best")[0]
    score, _ = evaluate(model, tiny_packs["test"], progress=False).average("prior_sample")
    row = graded["DL_LAB5_001_Good.zip"]
    assert row["PSNR"] == f"{score:.3f}" and row["share"] == "0.0"
    assert (row["notebooks"], row["sources"], row["GIFs"], row["report"]) == ("1", "0", "1", "a/report.pdf")


def test_equal_weights_are_pointed_out_in_every_row(graded):
    same = {name for name, row in graded.items() if "DL_LAB5_001_Good.zip" in row["same weights as"]}
    assert same == {"DL_LAB5_006_王小明.zip", "DL_LAB5_008_Word.zip", "DL_LAB5_010_Copy.zip", "'=HYPERLINK(1).ZIP"}
    assert graded["DL_LAB5_001_Good.zip"]["same weights as"].split(", ") == sorted(same, key=lambda n: n.strip("'"))
    assert graded["DL_LAB5_017_Recorded.zip"]["same weights as"] == "the recorded run"
    assert not graded["DL_LAB5_002_No_Weights.zip"]["same weights as"]


def test_nothing_of_a_zip_is_run_and_only_the_table_is_written(graded, folder, parts):
    assert not parts[1].exists() and list(graded) == sorted(graded, key=lambda name: name.removeprefix("'"))
    assert {path.name for path in folder.iterdir()} == {"grades.csv", *(row[0].removeprefix("'") for row in TABLE)}


def test_grading_resumes(graded, folder, tiny_packs, monkeypatch):
    done = []
    monkeypatch.setattr(grade, "_grade", lambda path, pack: done.append(path.name) or {"file": path.name})
    grade.grade_folder(folder, tiny_packs["test"])
    assert not done and table(folder) == graded
    handed_in(folder / "DL_LAB5_002_No_Weights.zip", **{"later.py": ""})
    monkeypatch.setattr(grade, "_grade", lambda path, pack: done.append(path.name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):                      # stopped in the middle
        grade.grade_folder(folder, tiny_packs["test"])
    assert done == ["DL_LAB5_002_No_Weights.zip"]
    assert table(folder) == graded                              # rows that come later are still there


def test_another_table_is_not_replaced(tmp_path, tiny_packs):
    handed_in(tmp_path / "a.zip")
    (tmp_path / "grades.csv").write_text("file,mark\na.zip,7\n")
    with pytest.raises(ValueError, match="grades.csv: is not a table of this command; give it another name"):
        grade.grade_folder(tmp_path, tiny_packs["test"])
    assert "a.zip,7" in (tmp_path / "grades.csv").read_text()


@pytest.mark.parametrize("settings", SOME, ids=str)
def test_settings_that_a_pickle_does_not_say_are_found(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(grade, "SETTINGS", SOME)
    saved, N, T = template(), 4, 12
    saved["frame_predictor"].embed.weight.data *= 5             # so that all that it is given matters
    path = written(tmp_path / "model.pth", saved)
    rng = np.random.default_rng(0)
    frames, conditions = rng.integers(256, size=(N, T, 64, 64, 3), dtype=np.uint8), rng.normal(0, 4, (N, T, 7))
    model = convert(path, *settings)
    model.config = model.config.replace(n_past=2, n_future=10)
    context, given = torch.from_numpy(frames[:, :2] / 255).permute(1, 0, 4, 2, 3), torch.from_numpy(conditions)
    with torch.no_grad():
        noise = prior_noise(N, T - 1, model.noise_size, seed=1)
        future = model.predict(context.float(), given.transpose(0, 1).float(), noise)
    frames[:, 2:] = (future * 255).round().permute(1, 0, 3, 4, 2).numpy()
    pack, remarks = Pack("test", frames, conditions.astype(np.float32), list("abcd"), "", True), []
    row = grade._score({"logs/model.pth": path}, pack, remarks)
    assert float(row["PSNR"]) > 30 and row["share"] == "1.0"
    said = "condition {}, order {}, skip {}".format(*settings)
    assert remarks == [f"scored logs/model.pth, made for 3 + 4 frames, with {said}"]
