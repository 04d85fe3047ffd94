"""The whole workbook as one job: every notebook, every figure, the grade; and what it refuses beforehand."""

import nbformat
import pytest
from conftest import run_smoke_report

from lab5 import report
from lab5.evaluation import Evaluation


@pytest.fixture(scope="module")
def chain(tiny_root, tmp_path_factory):
    """A run folder after `lab5 report --preset smoke`, and what the command printed."""
    run = tmp_path_factory.mktemp("chain") / "run"
    return run, run_smoke_report(run, tiny_root)


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
    for place in ("notebooks", "figures", "best.safetensors", "evaluation"):
        assert str(run / place) in printed


def test_a_second_run_trains_nothing_again(chain, tiny_root):
    run, _ = chain
    weights = (run / "last.safetensors").stat().st_mtime_ns
    variants = {path: path.stat().st_mtime_ns for path in run.glob("variants/*/last.safetensors")}
    assert variants
    run_smoke_report(run, tiny_root, "--only", "04", "08")
    assert (run / "last.safetensors").stat().st_mtime_ns == weights
    assert {path: path.stat().st_mtime_ns for path in variants} == variants


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


