"""The whole workbook as one job: every notebook, every figure, the grade, the zip; and what is refused beforehand."""

import dataclasses
import re
import shutil
from zipfile import ZipFile

import nbformat
import pytest
from conftest import finish, run_smoke_report, start, wait_until, weights
from pypdf import PdfReader

from lab5.evaluation import Evaluation
from lab5.handin import report, rubric
from lab5.handin.document import Details, read_chapter
from lab5.handin.submit import submit
from lab5.workbook.run import open_run

STUDENT = Details(student_id="0856001", name="Mei Lin", discussion="I would now train it for longer. " * 20)


@pytest.fixture(scope="module")
def chain(tiny_root, tmp_path_factory):
    """(A run folder after `lab5 report --preset smoke`, what was printed); an earlier report was killed in training."""
    run = tmp_path_factory.mktemp("chain") / "run"
    process = start("report", "--preset", "smoke", "--run", run, "--data", tiny_root, "--only", "04")
    wait_until(lambda: list(run.glob("config.json")), process)
    process.kill()
    finish(process)
    return run, run_smoke_report(run, tiny_root)


@pytest.fixture
def lab(chain, tmp_path):
    """A copy of the run, which a test may change."""
    return open_run("smoke", str(shutil.copytree(chain[0], tmp_path / "run")))


def test_a_killed_report_resumes_to_the_weights_of_an_uninterrupted_training(chain, tiny_root, tmp_path):
    open_run("smoke", str(tmp_path), str(tiny_root)).train(progress=False)
    assert weights(chain[0]) == weights(tmp_path)


def test_every_figure_is_there_for_print_and_screen_and_the_gif(chain):
    figures = chain[0] / "figures"
    pdf, png = ({path.stem for path in figures.glob(f"*.{kind}")} for kind in ("pdf", "png"))
    assert pdf == png and {name[:2] for name in pdf} == {f"{number:02d}" for number in range(9)}
    assert list(figures.glob("07_*.gif")) and all(path.stat().st_size > 1000 for path in figures.iterdir())


def test_every_point_of_the_assignment_is_answered_and_the_grade_is_that_of_the_saved_scores(chain):
    run, printed = chain
    scores = Evaluation.load(run / "evaluation" / "test")
    assert f"{scores.average('prior_sample')[0]:.2f} ± " in printed and f"a grade of {scores.grade:.0%}" in printed
    assert "MISSING" not in printed and "own discussion is missing" in printed and "no student id" in printed
    items, pages = report.build_pdf(open_run("smoke", str(run)), STUDENT)
    assert all(item.ok and (not item.place or item.place in pages) for item in items)
    assert sum(item.marks for item in items) == 5 + 10 + 15 + 30 + 40 + 30


def test_a_second_report_trains_nothing_again(chain, tiny_root):
    def trained():
        return {path: path.stat().st_mtime_ns for path in chain[0].rglob("last.safetensors")}

    before = trained()
    run_smoke_report(chain[0], tiny_root, "--only", "04", "08")
    assert len(before) > 1 and trained() == before


def test_the_pdf_is_the_same_bytes_when_made_again_and_shows_no_markup(lab):
    made = [(report.build_pdf(lab, STUDENT), (lab.folder / "report.pdf").read_bytes()) for _ in range(2)]
    assert made[0] == made[1]
    shown = " ".join(page.extract_text() for page in PdfReader(lab.folder / "report.pdf").pages)
    assert not re.findall(r"\\[a-z]+|\{=|\$|bar\.v|\*\*|it/s|Warning", shown)


@pytest.mark.parametrize("chapter, change, part, remark", [
    (3, {"proof": "one: True\ntwo: False"}, "Proof of ratio 0 in testing", "0 successful_proofs, expected 1"),
    (3, {"listings": 0}, "Implementation: encoder and decoder", "0 listings, expected 1"),
    (6, {"labels": ["section-6"]}, "The prediction at each time step", "figure-06_strip is not in the report"),
    (7, {"gifs": []}, "A GIF of one test sequence", "0 gif_frames, expected 12"),
    (7, {"gifs": ["06_strip.png"]}, "A GIF of one test sequence", "1 gif_frames, expected 12"),
    (8, {"text": "Too short."}, "Discussion by setting", "2 words, expected 500")])
def test_what_is_lost_is_missed_and_nothing_else(lab, chapter, change, part, remark):
    chapters = [read_chapter(lab.folder / "notebooks" / path.name) for path in report.find_notebooks()]
    chapters[chapter] = dataclasses.replace(chapters[chapter], **change)
    missed, = (item for item in rubric.check(lab, chapters, STUDENT) if not item.ok)
    assert missed.part == part and missed.remark.startswith(remark)
    assert "MISSING" in rubric.as_text([missed], {})


def test_the_zip_holds_what_is_handed_in_and_nothing_else(lab, tmp_path):
    report.build_pdf(lab, STUDENT)
    path = submit(lab, STUDENT, tmp_path)
    assert path.name == "DL_LAB5_0856001_Mei_Lin.zip"
    names = {name.removeprefix(f"{path.stem}/") for name in ZipFile(path).namelist()}
    assert {"report.pdf", "lab5/model.py", "lab5/handin/report.typ", "lab5/robot/toys.xml", "notebooks/03_model.ipynb",
            "figures/06_strip.pdf", "results/history.jsonl"} <= names
    assert {name.split("/")[0] for name in names} == {
        "report.pdf", "README.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml", "lab5", "tests",
        "notebooks", "figures", "results"}
    assert not [name for name in names if name.endswith((".safetensors", ".npy", ".npz", ".pyc", ".tmp"))]
    assert path.read_bytes() == submit(lab, STUDENT, tmp_path / "again").read_bytes()
    assert f"{path.stem}/results/best.safetensors" in ZipFile(submit(lab, STUDENT, tmp_path, weights=True)).namelist()


@pytest.mark.parametrize("student_id, name", [("", "Mei Lin"), ("1", " "), ("../1", "a")])
def test_a_zip_that_cannot_be_named_is_refused(tmp_path, student_id, name):
    with pytest.raises(ValueError, match="do not make the zip's name: give --id and --name"):
        submit(None, Details(student_id=student_id, name=name), tmp_path)


def test_a_zip_of_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="report.pdf is missing; `lab5 report` makes it"):
        submit(open_run("smoke", str(tmp_path / "run")), STUDENT, tmp_path)
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.parametrize("parameters, error, message", [
    ("preset = ''", ValueError, "00_a.ipynb has no parameter data, run; it has preset"),
    ("preset = ''\nrun = ''\ndata = 1 / 0", RuntimeError, r"00_a.ipynb stopped in cell \d: ZeroDivisionError")])
def test_a_notebook_that_cannot_run_is_named(tiny_root, tmp_path, monkeypatch, parameters, error, message):
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "00_a.ipynb")
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    with pytest.raises(error, match=message):
        report.run_report("smoke", str(tmp_path / "run"), str(tiny_root))
