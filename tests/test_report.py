"""The whole workbook as one job: every notebook, every figure, the grade, the zip; and what is refused beforehand."""

import re
import shutil
from zipfile import ZipFile

import nbformat
import pytest
from conftest import finish, start, wait_until, weights
from pypdf import PdfReader

from lab5.cli import main
from lab5.evaluation import Evaluation
from lab5.handin import report, rubric
from lab5.handin.submit import submit
from lab5.handin.words import ANSWER, Details
from lab5.workbook.run import open_run

STUDENT = Details(student_id="0856001", name="Mei Lin", discussion="I would train it for longer.")


@pytest.fixture(scope="module")
def chain(tiny_root, tmp_path_factory):
    """(A run folder after `lab5 report --preset smoke`, what was printed); an earlier report was killed in training."""
    run = tmp_path_factory.mktemp("chain") / "run"
    command = ["report", "--preset", "smoke", "--run", run, "--data", tiny_root]
    killed = start(*command, "--only", "04")
    wait_until(lambda: list(run.glob("config.json")), killed)
    killed.kill()
    finish(killed)
    process = start(*command)
    printed = finish(process)
    assert process.returncode == 0, printed[-4000:]
    return run, printed


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
    assert f"{scores.average('prior_sample')[0]:.2f} ± " in printed and "0 of the 20 marks" in printed
    assert "MISSING" not in printed and "EMPTY  report.yaml: discussion" in printed and "no student id" in printed
    assert sum(marks for _, marks, _ in rubric.POINTS) == 5 + 10 + 15 + 30 + 20 + 30


def test_the_report_is_a_paper_with_the_students_words_and_no_markup(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    tagged = {"metadata": {"tags": ["answer"]}}
    answers = [nbformat.v4.new_markdown_cell(f"{ANSWER} {own}", **tagged) for own in ("", "In one.")]
    nbformat.write(nbformat.v4.new_notebook(cells=answers), tmp_path / "01_derivation.ipynb")
    lines, complete = report.build_pdf(lab, STUDENT)
    assert complete and "      6  report.yaml: discussion" in lines and "student id" not in lines
    assert "EMPTY  01_derivation.ipynb, cell 1: 01" in lines and "2  01_derivation.ipynb, cell 2: 01" in lines
    pages = [page.extract_text() for page in PdfReader(lab.folder / "report.pdf").pages]
    shown = " ".join(pages)
    assert 12 <= len(pages) <= 16 and STUDENT.discussion in shown and "In one." in shown
    assert not re.findall(r"\\[a-z]+|\{[{=]|\$|own-|\*\*|it/s|Warning|[Ss]ection \d\.\d\d|otebook", shown)
    proof, = (page for page in pages if rubric.PROOF in page)                   # with its code on one page
    assert "def predict(self" in proof and "poisoned[n_past:]" in proof and "bit by bit: True" in proof


@pytest.mark.parametrize("details, answer, message", [
    (Details(discussion="A $\\lost$ one."), "", "report.yaml, in the paragraph of line 1: .*lost"),
    (Details(), "```", "01_derivation.ipynb, cell 1, in the paragraph of line 3: .* has no end")])
def test_the_students_text_is_tried_before_all_else(tmp_path, monkeypatch, capsys, details, answer, message):
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    cell = nbformat.v4.new_markdown_cell(f"{ANSWER}\n\n{answer}", metadata={"tags": ["answer"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "01_derivation.ipynb")
    monkeypatch.setattr(Details, "load", lambda: details)
    assert main(["report", "--preset", "smoke", "--run", str(tmp_path / "run")]) == 1
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text, lost, point, remark", [
    ("bit-identical: False", "", "Proof of ratio 0 in testing", "notebook 03 did not print"),
    (rubric.PROOF, "fig-strip", "The prediction at each time step", "fig-strip is not in the report"),
    (rubric.PROOF, "07_*.gif", "A GIF of one test sequence", "no GIF is in .*; notebook 07")])
def test_what_is_lost_is_missed_and_nothing_else(lab, text, lost, point, remark):
    for path in (lab.folder / "figures").glob(lost or "nothing"):
        path.unlink()
    lines, complete = rubric.check(lab, text, STUDENT, [], {label: 1 for *_, label in rubric.POINTS if label != lost})
    missed, = (line for line in lines.splitlines() if line.startswith("MISSING"))
    assert not complete and re.search(f"{point} +{remark}", missed)


def test_the_zip_holds_what_is_handed_in_and_nothing_else(lab, tmp_path):
    """The notebooks as they were executed, with the answers that stand in the project's now."""
    executed = lab.folder / "notebooks" / "03_model.ipynb"
    executed.write_text(executed.read_text().replace(ANSWER, "An older answer."))
    path = submit(lab, STUDENT, tmp_path)
    assert path.name == "DL_LAB5_0856001_Mei_Lin.zip"
    sent = ZipFile(path).read(f"{path.stem}/notebooks/03_model.ipynb").decode()
    assert ANSWER in sent and "An older answer." not in sent and sent.count('"outputs"') > 20
    names = {name.removeprefix(f"{path.stem}/") for name in ZipFile(path).namelist()}
    assert {"report.pdf", "lab5/model.py", "lab5/handin/report.typ", "lab5/handin/paper.md", "lab5/robot/toys.xml",
            "notebooks/03_model.ipynb", "figures/06_strip.pdf", "results/history.jsonl",
            "results/best.safetensors"} <= names
    assert {name.split("/")[0] for name in names} == {
        "report.pdf", "README.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml", "lab5", "tests",
        "notebooks", "figures", "results"}
    assert not [name for name in names if name.endswith(("last.safetensors", ".npy", ".npz", ".pyc", ".tmp"))]


@pytest.mark.parametrize("student_id, name, expected", [
    ("1", "Davis Jr.", "DL_LAB5_1_Davis_Jr"), ("1", "Jr. . .", "DL_LAB5_1_Jr._._"), ("1", "con", "DL_LAB5_1_con"),
    ("1", "Jose\u0301", "DL_LAB5_1_José"), ("1", "林 美", "DL_LAB5_1_林_美"),
    ("", "Mei Lin", ""), ("1", " ", ""), ("../1", "a", ""), ("1", "...", ""), ("1", "a\x7f", ""), ("1", "林" * 80, ""),
    ("1", "a:b", "")])
def test_a_zip_can_be_opened_on_every_system_or_is_refused(lab, tmp_path, student_id, name, expected):
    """No dot at the end, no two names that differ by case alone, no name that Windows keeps for a device."""
    details = Details(student_id=student_id, name=name)
    if not expected:
        with pytest.raises(ValueError, match="do not make the zip's name: write them into report.yaml"):
            submit(lab, details, tmp_path)
        return
    names = ZipFile(path := submit(lab, details, tmp_path)).namelist()
    parts = {part for name in names for part in name.split("/")}
    assert path.name == f"{expected}.zip" and {name.split("/")[0] for name in names} == {expected}
    assert len({name.lower() for name in names}) == len(names)
    assert not [part for part in parts if part[-1] in ". " or part.split(".")[0] in ("con", "prn", "aux", "nul")]


@pytest.mark.parametrize("parameters, error, message", [
    ("import os; os.kill(os.getpid(), 9)", RuntimeError, "00_a.ipynb stopped: Kernel died; perhaps memory ran out"),
    ("preset = ''\nrun = ''\ndata = 1 / 0", RuntimeError, r"00_a.ipynb stopped in cell \d: ZeroDivisionError")])
def test_a_notebook_that_cannot_run_is_named(tiny_root, tmp_path, monkeypatch, parameters, error, message):
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "00_a.ipynb")
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    with pytest.raises(error, match=message):
        report.run_report("smoke", str(tmp_path / "run"), str(tiny_root))
