"""The notebooks themselves: small copies under nbval, and what must hold of the committed ones."""

import ast
import subprocess
import sys

import nbformat
import papermill
import pytest

from lab5.handin.report import find_notebooks

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
    assert any(cell.outputs for cell in code) and "widgets" not in notebook.metadata
    assert all(cell.outputs for cell in code if "nbval-check-output" in tags(cell))             # to compare with
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


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
    assert sum(map(code_lines, cells)) <= 1300
    assert sum(map(code_lines, cells)) - sum(map(code_lines, collapsed)) <= 782
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= 3_750_000


@names
def test_a_question_leaves_room_for_the_answer(path):
    cells = nbformat.read(path, 4).cells
    answers = [cell for question, cell in zip(cells, cells[1:], strict=False) if "your-turn" in tags(question)]
    assert answers == [cell for cell in cells if "answer" in tags(cell)]
    assert all(cell.source == "*Your answer:*" and cell.id.startswith("answer-") for cell in answers)
    assert 1 <= len(answers) <= 4
