"""The whole workbook as one job: every notebook, every figure, the grade; and what it refuses beforehand."""

import random
import re
import shutil
import time
from dataclasses import replace
from zipfile import ZipFile

import nbformat
import pytest
from conftest import finish, run_smoke_report, start, wait_until, weights
from pypdf import PdfReader

from lab5 import report, rubric, submit
from lab5.cli import main
from lab5.document import Details, Incomplete, read_chapters
from lab5.evaluation import Evaluation
from lab5.workbook import open_book


@pytest.fixture(scope="module")
def chain(tiny_root, tmp_path_factory):
    """A run folder after `lab5 report --preset smoke`, and what the command printed: begun twice, and twice killed."""
    run, chance = tmp_path_factory.mktemp("chain") / "run", random.Random(0)
    for only, sign in (["04"], "config.json"), (["08"], "variants/*/config.json"):
        process = start("report", "--preset", "smoke", "--run", run, "--data", tiny_root, "--only", *only)
        wait_until(lambda sign=sign: list(run.glob(sign)), process)             # it trains, and then it sweeps
        time.sleep(chance.uniform(0, 2))
        process.kill()
        finish(process)
    return run, run_smoke_report(run, tiny_root)


def test_a_killed_report_leaves_no_process_and_goes_on_to_the_weights_of_an_unbroken_one(chain, tiny_root, tmp_path):
    """Where a kernel or a worker of the sweep had lived on, the next report would have found the folder in use."""
    unbroken = open_book("smoke", str(tmp_path), str(tiny_root))
    unbroken.train(progress=False)
    assert weights(chain[0]) == weights(tmp_path)


def test_every_notebook_is_executed_without_an_error(chain):
    run, _ = chain
    executed = sorted((run / "notebooks").glob("*.ipynb"))
    assert [path.name for path in executed] == [path.name for path in report.find_notebooks()]
    assert len(executed) == 10
    for path in executed:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), path.name
        assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"], path.name


def test_every_figure_is_there_for_print_and_screen_and_the_gif(chain):
    figures = chain[0] / "figures"
    pdf, png = ({path.stem for path in figures.glob(f"*.{kind}")} for kind in ("pdf", "png"))
    assert pdf == png and len(pdf) >= 20
    assert {name.split("_")[0] for name in pdf} == {f"{number:02d}" for number in range(9)}       # 09 has numbers
    assert list(figures.glob("07_*.gif"))
    assert all(path.stat().st_size > 1000 for path in figures.iterdir())


def test_the_closing_table_is_that_of_the_saved_scores(chain):
    run, printed = chain
    scores = Evaluation.load(run / "evaluation" / "test")
    assert f"average PSNR   {scores.average('sampled')[0]:.2f}" in printed
    assert f"{scores.grade:.0%}" in printed and "hold last context frame" in printed
    for place in ("report.pdf", "notebooks", "figures", "best.safetensors", "evaluation"):
        assert str(run / place) in printed


def test_a_second_run_trains_nothing_again(chain, tiny_root):
    run, _ = chain
    weights = (run / "last.safetensors").stat().st_mtime_ns
    variants = {path: path.stat().st_mtime_ns for path in run.glob("variants/*/last.safetensors")}
    assert variants
    run_smoke_report(run, tiny_root, "--only", "04", "08")
    assert (run / "last.safetensors").stat().st_mtime_ns == weights
    assert {path: path.stat().st_mtime_ns for path in variants} == variants


# ---- the report that is handed in ----

STUDENT = Details("0856001", "Mei Lin", discussion="I would now train it for longer. " * 20)


def graded(run, details=STUDENT):
    """The rubric's items by name, as they stand for a run folder."""
    book = open_book("smoke", str(run))
    chapters = read_chapters([run / "notebooks" / path.name for path in report.find_notebooks()])
    return {item.part: item for item in rubric.check(book, chapters, details)}


def test_the_rubric_finds_every_point_answered(chain):
    run, printed = chain
    items, pages = report.build_pdf(open_book("smoke", str(run)), STUDENT)
    assert [item for item in items if not item.ok] == []
    assert sum(item.marks for item in items) == 5 + 10 + 15 + 30 + 40 + 30
    assert all(item.place in pages for item in items if item.place)
    assert "MISSING" not in printed and "Proof of ratio 0 in testing" in printed
    assert "own words are still missing" in printed and "student_id and name still empty" in printed
    assert not any("own words" in item.note or "empty" in item.note for item in items)


@pytest.fixture
def copy(chain, tmp_path):
    """A run folder that a test may spoil."""
    return shutil.copytree(chain[0], tmp_path / "run", ignore=shutil.ignore_patterns("variants"))


def spoil(run, number, change):
    """Change an executed notebook's cells in place."""
    path, = (run / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if change(cell) is not False]
    nbformat.write(notebook, path)


def without(tag_or_figure):
    def keep(cell):
        shown = [output.get("metadata", {}).get("lab5", {}).get("figure", "") for output in cell.get("outputs", [])]
        return tag_or_figure not in cell.metadata.get("tags", []) and not any(tag_or_figure in name for name in shown)
    return keep


@pytest.mark.parametrize("number, lost, part, words", [
    ("05", "05_training_curves", "Curves of losses, PSNR and ratios", "figure 05_training_curves is not"),
    ("06", "06_strip", "The prediction at each time step", "figure 06_strip is not"),
    ("07", ".gif", "A GIF of one test sequence", "no chapter shows one"),
    ("03", "proof", "Proof of ratio 0 in testing", "poisons the future frames is not"),
    ("03", "report-code", "Implementation: encoder and decoder", "no listing")])
def test_what_is_lost_is_missed_and_nothing_else(copy, number, lost, part, words):
    spoil(copy, number, without(lost))
    missed = {name: item.missing for name, item in graded(copy).items() if not item.ok}
    assert list(missed) == [part] and words in missed[part]
    assert main(["rubric", "--preset", "smoke", "--run", str(copy)]) == 1


def test_a_discussion_that_is_cut_short_and_a_proof_that_fails_are_missed(copy):
    spoil(copy, "08", lambda cell: cell.cell_type == "code" or cell.source.startswith("# "))
    spoil(copy, "08", lambda cell: cell.cell_type != "code" or cell.update(outputs=[]))

    def doubt(cell):
        for output in cell.get("outputs", []) if "proof" in cell.metadata.get("tags", []) else []:
            output.text = output.text.replace("True", "False", 1)

    spoil(copy, "03", doubt)
    missed = {name: item.missing for name, item in graded(copy).items() if not item.ok}
    assert set(missed) == {"Discussion by setting", "Proof of ratio 0 in testing"}
    assert "expected 500 or more" in missed["Discussion by setting"] and "did not succeed" in missed[
        "Proof of ratio 0 in testing"]


def test_a_gif_that_stands_still_and_a_partial_test_set_are_missed(copy):
    for gif in (copy / "figures").glob("*.gif"):
        shutil.copyfile(copy / "figures" / "06_strip.png", gif)
    scores = Evaluation.load(copy / "evaluation" / "test")
    half = replace(scores, names=scores.names[:2], psnr={k: v[:2] for k, v in scores.psnr.items()},
                   ssim={k: v[:2] for k, v in scores.ssim.items()})
    half.save(copy / "evaluation" / "test")
    missed = {name: item.missing for name, item in graded(copy).items() if not item.ok}
    assert "fewer than 12 frames" in missed["A GIF of one test sequence"]
    assert missed["Demo: average PSNR on the test set"] == "measured on 2 of 4 test sequences"


def test_the_pdf_is_the_same_bytes_when_made_again(copy):
    made = []
    for _ in range(2):
        report.build_pdf(open_book("smoke", str(copy)), STUDENT)
        made.append((copy / "report.pdf").read_bytes())
    assert made[0] == made[1] and len(made[0]) > 100_000
    shown = " ".join(page.extract_text() for page in PdfReader(copy / "report.pdf").pages)
    assert not re.findall(r"\\[a-z]+|\{=|\$|bar\.v|\*\*|it/s|Warning", shown)       # neither raw LaTeX nor Markdown
    assert len(re.findall(r"Figure \d+\. ", shown)) == len(re.findall(r"\{#figure-", " ".join(
        chapter.text for chapter in read_chapters(sorted((copy / "notebooks").glob("*.ipynb"))))))
    assert 'src="05_training_curves.png"' in (copy / "figures" / "index.html").read_text(encoding="utf-8")


def test_the_zip_holds_what_is_handed_in_and_nothing_else(copy, tmp_path):
    options = ["submit", "--preset", "smoke", "--run", str(copy), "--id", "0856001", "--name", "Mei Lin"]
    assert main([*options, "--to", str(tmp_path)]) == 0
    path = tmp_path / "DL_LAB5_0856001_Mei_Lin.zip"
    with ZipFile(path) as archive:
        names = {name.removeprefix("DL_LAB5_0856001_Mei_Lin/") for name in archive.namelist()}
    assert {"report.pdf", "README.md", "lab5/model.py", "lab5/report.typ", "notebooks/03_model.ipynb",
            "figures/06_strip.pdf", "results/history.jsonl"} <= names
    assert any(name.endswith(".gif") for name in names)
    assert {name.split("/")[0] for name in names} == {
        "report.pdf", "README.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml", "lab5", "tests",
        "notebooks", "figures", "results"}
    assert not [name for name in names if name.endswith((".safetensors", ".npy", ".npz", ".pyc", ".tmp"))]
    book = open_book("smoke", str(copy))
    assert path.read_bytes() == submit.submit(book, Details("0856001", "Mei Lin"), tmp_path / "b").read_bytes()
    heavy = submit.submit(book, STUDENT, tmp_path / "c", weights=True)
    assert any(name.endswith("best.safetensors") for name in ZipFile(heavy).namelist())


@pytest.mark.parametrize("student_id, name, words", [
    ("", "Mei Lin", "needs the student's id"), ("1", " ", "needs the student's name"), ("../1", "a", "cannot be part")])
def test_a_zip_that_cannot_be_named_is_refused(copy, tmp_path, student_id, name, words):
    with pytest.raises(ValueError, match=words):
        submit.submit(open_book("smoke", str(copy)), Details(student_id, name), tmp_path)


def test_a_zip_of_an_unfinished_run_is_refused(copy, tmp_path):
    (copy / "notebooks" / "05_curves.ipynb").unlink()
    with pytest.raises(Incomplete, match="05_curves.ipynb is missing"):
        submit.submit(open_book("smoke", str(copy)), STUDENT, tmp_path)
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.parametrize("number, left", [("05", "figures/05_*.pdf"), ("09", "evaluation/test/per_sequence.csv")])
def test_a_later_notebook_works_alone(number, left, tiny_root, tmp_path):
    run_smoke_report(tmp_path / "run", tiny_root, "--only", number)
    assert list((tmp_path / "run").glob(left))


def test_a_preset_of_hours_is_not_trained_by_a_later_notebook(tiny_root, tmp_path):
    book = report.open_book("standard", str(tmp_path / "run"), str(tiny_root))
    with pytest.raises(RuntimeError, match="run notebook 04, or `lab5 train --preset standard"):
        book.model()


def notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_an_unknown_parameter_is_refused(tmp_path):
    path = notebook(tmp_path / "00_a.ipynb", 'preset = "quick"')
    report.check_parameters(path, {"preset": "smoke"})
    with pytest.raises(ValueError, match="00_a.ipynb has no parameter prest; it has preset"):
        report.check_parameters(path, {"prest": "smoke"})


def test_a_notebook_that_fails_is_named_with_its_cell_and_its_copy(tiny_root, tmp_path, monkeypatch):
    notebook(tmp_path / "00_a.ipynb", 'preset = run = data = ""', "1 / 0")
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(report, "check_parameters", lambda *_: None)
    with pytest.raises(report.NotebookFailed, match=r"00_a.ipynb stopped in cell \d: ZeroDivisionError") as error:
        report.run_report("smoke", str(tmp_path / "run"), str(tiny_root))
    copy = tmp_path / "run" / "notebooks" / "00_a.ipynb"
    assert str(copy) in str(error.value) and copy.exists()


