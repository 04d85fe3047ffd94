"""The notebooks themselves: small copies under nbval, and what must hold of the committed ones."""

import ast
import subprocess
import sys

import nbformat
import papermill
import pytest

from lab5.handin.report import find_notebooks
from lab5.metrics import GRADES
from lab5.training import read_history
from lab5.workbook.run import RECORDED

NOTEBOOKS = find_notebooks()
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def test_small_copies_run_under_nbval_and_their_facts_are_those_committed(tiny_root, tmp_path):
    """papermill sets the parameters, nbval executes and compares the cells that are the same on every machine.

    In their order: notebook 04 trains the run that the later ones load.
    """
    parameters = {"preset": "smoke", "run": str(tmp_path / "run"), "data": str(tiny_root)}
    for path in NOTEBOOKS:
        papermill.execute_notebook(path, tmp_path / path.name, parameters, prepare_only=True, progress_bar=False)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-q",
               "--nbval-cell-timeout", "600", "--rootdir", str(tmp_path), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-6000:]
    cells = sum(cell.cell_type == "code" for path in NOTEBOOKS for cell in nbformat.read(tmp_path / path.name, 4).cells)
    assert f"{cells} passed" in result.stdout


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def code_lines(cell) -> int:
    return len(cell.source.splitlines()) if cell.cell_type == "code" else 0


def prose(number: str) -> str:
    cells = nbformat.read(next(path for path in NOTEBOOKS if path.stem.startswith(number)), 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@names
def test_parameters_are_plain_literals_in_one_cell(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if "parameters" in tags(cell)]
    assert len(cells) == 1
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)                       # an error where it is not plain
    parameters = {name.strip() for name in papermill.inspect_notebook(path)}
    code = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    opened = next(ast.parse(line).body[0].value for cell in code for line in cell.splitlines() if "open_run(" in line)
    given = [argument.id for argument in (*opened.args, *(k.value for k in opened.keywords)) if hasattr(argument, "id")]
    assert {"preset", "run", "data"} <= parameters == {*given}  # `open_run` checks each


@names
def test_the_committed_outputs_are_of_a_clean_run(path):
    """Executed from top to bottom without errors, with no widget state and no trace of a progress bar."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert "widgets" not in notebook.metadata
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert not (output.output_type == "stream" and output.name == "stderr")
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


@names
def test_some_facts_are_compared_on_every_machine(path):
    """Cells tagged for comparison exist where a notebook proves something, and carry an output to compare with."""
    cells = [cell for cell in nbformat.read(path, 4).cells if "nbval-check-output" in tags(cell)]
    assert all(cell.outputs for cell in cells)
    assert cells or path.stem[:2] in ("00",)


@names
def test_cells_are_short_and_the_first_idea_comes_before_the_code(path):
    """At most 30 lines in a cell; before the first section only the parameters, imports and opening the run."""
    cells = nbformat.read(path, 4).cells
    first = next(number for number, cell in enumerate(cells) if cell.source.startswith("## "))
    before = sum(code_lines(cell) for cell in cells[:first] if "parameters" not in tags(cell))
    assert before <= 15 and max(map(code_lines, cells)) <= 30


def test_the_notebooks_do_not_grow():
    """What there is today: lines of code, those that JupyterLab shows, bytes. The aim: 1,500 lines and 6 MB."""
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells]
    collapsed = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert all(cell in collapsed for cell in cells if "hide-input" in tags(cell))
    assert sum(map(code_lines, cells)) <= 1293
    assert sum(map(code_lines, cells)) - sum(map(code_lines, collapsed)) <= 787
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= 9867166


@names
def test_a_question_leaves_room_for_the_answer(path):
    cells = nbformat.read(path, 4).cells
    answers = [cell for question, cell in zip(cells, cells[1:], strict=False) if "your-turn" in tags(question)]
    assert answers == [cell for cell in cells if "answer" in tags(cell)]
    assert all(cell.source == "*Your answer:*" and cell.id.startswith("answer-") for cell in answers)
    assert 1 <= len(answers) <= 4


def test_what_05_says_of_the_recorded_run_stands_in_its_history():
    text, run = prose("05"), {record["epoch"]: record for record in read_history(RECORDED)}
    peak = max(run, key=lambda epoch: run[epoch]["kl"])
    assert f"highest in epoch {peak}, at {run[peak]['kl']:.1f} nats" in text and run[peak]["kl_weight"] < 0.1
    assert all(record["kl"] < 0.1 for record in run.values() if record["kl_weight"] > 0.999)
    assert f"MSE falls by {1 - run[14]['mse'] / run[4]['mse']:.0%}" in text and run[14]["teacher_forcing"] > 0.49
    for said, epoch in (("from {:.1f} to", 4), ("to {:.1f} dB; once", 14), ("even falls, to {:.1f} dB", 8),
                        ("the ratio falls from one half to 0, and the PSNR rises to {:.1f} dB", 24)):
        assert said.format(run[epoch]["psnr"]) in text


def test_09_states_the_marks_and_folds_its_answers_away():
    text = prose("09")
    assert f"| marks, of 20 | {' | '.join(f'{20 * share:.0f}' for _, share in GRADES)} | 0 |" in text
    assert text.count("<details>\n<summary>Answer</summary>\n\n") == text.count("\n\n</details>") == 18


@names
def test_prose_explains_the_code(path):
    cells = nbformat.read(path, 4).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert words > 350 and cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {int(path.stem[:2])}.")


def test_the_proof_of_ratio_0_is_in_the_workbook():
    notebook = nbformat.read(next(path for path in NOTEBOOKS if path.stem.startswith("03")), 4)
    text = "".join(str(output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "bit-identical" in text and "nan" in text.lower()
