"""The project as a whole: its rooms and their arrows, its sizes, one list of dependencies, documents that are true."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from lab5.cli import _parser
from lab5.config import PRESETS

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "lab5"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
CARD = "torch torchvision jupyterlab matplotlib ipywidgets imageio nbval papermill".split()

# The core, each module importing only from those before it; then the rooms, and which rooms each may import
CORE = "files config schedules metrics latents layers model data checkpoint evaluation processes training".split()
ROOMS = {"formats": set(), "robot": set(), "workbook": {"robot", "formats"},
         "handin": {"workbook", "robot", "formats"}}


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


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def lines(paths) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_the_arrows_point_downward():
    assert {path.stem for path in MODULES if not room(path)} == {*CORE, "cli"}
    assert {room(path) for path in MODULES} == {"", *ROOMS}
    for path in MODULES:
        if path.stem == "cli" and not room(path):
            continue
        used = {dotted.split(".")[1] for dotted in imports(path) if dotted.startswith("lab5.")} - {room(path)}
        allowed = {*CORE, *ROOMS[room(path)]} if room(path) else {*CORE[:CORE.index(path.stem)]}
        assert used <= allowed, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(used - allowed))}"


def test_the_command_imports_what_a_command_needs_when_it_needs_it():
    top = [node for node in ast.parse((PACKAGE / "cli.py").read_text()).body if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in top if node.module.startswith("lab5")} <= {"lab5.config"}


def test_the_package_does_not_grow():
    """What there is today. The aim: 1,500 lines of core, 4,000 of package, 4,200 of tests; lower these."""
    core = [path for path in MODULES if not room(path) and path.stem not in ("cli", "files")]
    assert lines(core) <= 1707
    assert lines(PACKAGE.rglob("*.py")) <= 5068
    assert lines((PROJECT / "tests").glob("*.py")) <= 4647


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_functions_fit_a_screen_and_arguments_in_the_head(path):
    """45 lines; 6 parameters, or a docstring that says why there are more; classes of 130 lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        length = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.FunctionDef):
            assert length <= 45, f"{node.name} has {length} lines"
            count = sum(argument.arg != "self" for argument in [*node.args.args, *node.args.kwonlyargs])
            assert count <= 6 or "arguments" in (ast.get_docstring(node) or ""), f"{node.name} takes {count}"
        if isinstance(node, ast.ClassDef):
            assert length <= 130, f"{node.name} has {length} lines"


def test_the_style_is_kept():
    """Lines of 120, sorted imports, no unused names, also in the notebooks."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", PROJECT]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout or found.stderr


def test_conda_users_get_the_same_packages():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(pip) == sorted([*dependencies(), "--editable ."])
    assert "python>=3.11" in environment["dependencies"]


def test_every_package_that_is_imported_is_asked_for():
    """What another package happens to bring along may be gone tomorrow."""
    provided_by, asked_for = packages_distributions(), {name(requirement) for requirement in dependencies()}
    assert set(CARD) <= asked_for                               # some of them are used without being imported
    missing = {(path.name, module) for path in MODULES for module in {i.split(".")[0] for i in imports(path)}
               if module not in sys.stdlib_module_names and module not in ("lab5", "__future__")
               and not asked_for & {distribution.lower().replace("_", "-") for distribution in provided_by[module]}}
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_commands_files_and_presets_that_exist(path):
    text = path.read_text()
    commands = next(action for action in _parser()._actions if action.dest == "command").choices
    code = " ".join(re.findall(r"`[^`]+`|^    .*|```.*?```", text, re.S | re.M))
    for command in re.findall(r"`?lab5 ([a-z][a-z-]*)(?= |`|$)", code):
        assert command in commands, f"{path.name} names `lab5 {command}`"
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets
    assert {first or second for first, second in re.findall(r"PRESET=([a-z]+)|--preset ([a-z]+)", text)} <= set(PRESETS)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), f"{path.name} links to {link}"


def test_no_machine_is_named():
    """Paths of the machine that something was written on mean nothing to a reader."""
    private = re.compile(r"/(?:home|root|Users|work|tmp)/[A-Za-z0-9_]")
    files = [path for pattern in ("lab5/**/*.py", "notebooks/*.ipynb", "*.md", "docs/*.md", "*.toml", "*.yml",
                                  "Makefile") for path in PROJECT.glob(pattern)]
    assert not [path.name for path in files if private.search(path.read_text())]


def test_every_promise_names_tests_that_exist():
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (PROJECT / "docs" / "promises.md").read_text()))
    there = {found for path in (PROJECT / "tests").glob("test_*.py")
             for found in re.findall(r"^def (test_[a-z0-9_]+)\(", path.read_text(), re.M)}
    assert named and named <= there
