"""The project as a whole: one list of dependencies, imports that point downward, a README that tells the truth."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from lab5.cli import _parser
from lab5.config import PRESETS

PROJECT = Path(__file__).parents[1]
MODULES = sorted((PROJECT / "lab5").glob("*.py"))
CARD = "torch torchvision jupyterlab matplotlib ipywidgets imageio nbval papermill".split()

# Each line may import from the lines above it and from its own, left to right
LAYERS = """
config files processes
schedules metrics latents download
layers
model
sources scene simulator tfrecords packs data importer checkpoint convert
evaluation parallel
training
figures
diagrams live
workbook
widgets document
drive
pdf rubric
sweep report
submit
cli
"""


def dependencies() -> list[str]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]


def name(requirement: str) -> str:
    return re.split(r"[<>=!~ ;\[]", requirement, maxsplit=1)[0].lower()


def imports(path: Path) -> set[str]:
    """Dotted names of all that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_conda_users_get_the_same_packages():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(pip) == sorted([*dependencies(), "--editable ."])
    assert "python>=3.11" in environment["dependencies"]


def test_the_packages_that_the_workbook_stands_on_are_asked_for():
    assert set(CARD) <= {name(requirement) for requirement in dependencies()}


def test_every_package_that_is_imported_is_asked_for():
    """What another package happens to bring along may be gone tomorrow."""
    provided_by, asked_for = packages_distributions(), {name(requirement) for requirement in dependencies()}
    missing = {(path.name, module) for path in MODULES for module in {i.split(".")[0] for i in imports(path)}
               if module not in sys.stdlib_module_names and module not in ("lab5", "__future__")
               and not asked_for & {distribution.lower().replace("_", "-") for distribution in provided_by[module]}}
    assert not missing


def test_dependencies_point_downward():
    order = LAYERS.split()
    assert sorted(order) == sorted(path.stem for path in MODULES if path.stem != "__init__")
    upward = [f"{path.stem} imports {other}" for path in MODULES for other in order
              if any(i == f"lab5.{other}" or i.startswith(f"lab5.{other}.") for i in imports(path))
              and order.index(other) >= order.index(path.stem)]
    assert not upward


@pytest.mark.parametrize("document", sorted(path.name for path in PROJECT.glob("*.md")))
def test_documents_name_commands_files_and_presets_that_exist(document):
    text = (PROJECT / document).read_text()
    commands = next(action for action in _parser()._actions if action.dest == "command").choices
    for command in re.findall(r"`?lab5 ([a-z][a-z-]*)(?= |`|$)", " ".join(re.findall(r"`[^`]+`|^    .*|```.*?```", text,
                                                                                re.S | re.M))):
        assert command in commands, f"{document} names `lab5 {command}`"
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets
    assert set(re.findall(r"PRESET=([a-z]+)|--preset ([a-z]+)", text)) <= {(p, "") for p in PRESETS} | {
        ("", p) for p in PRESETS}
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (PROJECT / link).exists(), f"{document} links to {link}"


def test_no_machine_is_named():
    """Paths of the machine that something was written on mean nothing to a reader."""
    private = re.compile(r"/(?:home|root|Users|work|tmp)/[A-Za-z0-9_]")
    files = [path for pattern in ("lab5/*.py", "notebooks/*.ipynb", "*.md", "*.toml", "*.yml", "Makefile")
             for path in PROJECT.glob(pattern)]
    assert not [path.name for path in files if private.search(path.read_text())]


def test_every_promise_names_tests_that_exist():
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (PROJECT / "README.md").read_text()))
    there = {found for path in (PROJECT / "tests").glob("test_*.py")
             for found in re.findall(r"^def (test_[a-z0-9_]+)\(", path.read_text(), re.M)}
    assert named and named <= there
