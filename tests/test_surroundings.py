"""What a machine or its user lacks: room on a disk, the right to write, our kernel, an encoding, locks, a home."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import nbformat
import pytest
from conftest import weights
from test_training import exact

from lab5 import checkpoint, files
from lab5.cli import main
from lab5.config import preset
from lab5.handin import report
from lab5.training import read_history
from lab5.workbook.run import Run


@contextmanager
def no_room(room=40_000):
    """No file can grow beyond so many bytes, in this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(capsys, place, *arguments):
    """Run a command that finds no room: status 1, and one line that names a file under a place and the way out."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    said, reason = capsys.readouterr().err, os.strerror(errno.EFBIG)
    assert re.search(rf"(?s)(^|\n)lab5 {arguments[0]}: .*{re.escape(str(place))}.*{reason}.*[Ff]ree some", said), said
    return said


def test_a_training_on_a_full_disk_keeps_its_checkpoint_and_resumes_once_there_is_room(tiny_root, tiny_packs, tmp_path,
                                                                                        capsys):
    command = ["train", "--preset", "smoke", "--data", tiny_root, "--set", "n_future=1", "--set", "epochs=4", "--run"]
    lab = Run(preset("smoke", n_future=1, epochs=4), tmp_path / "run", tiny_root)
    lab.train(lambda history, model: len(history) == 2, progress=False)
    before = weights(lab.folder)
    with no_room():
        assert "untouched" in refused(capsys, lab.folder, *command, lab.folder)
    assert weights(lab.folder) == before and checkpoint.load_model(lab.folder / "best.safetensors")
    assert not list(lab.folder.glob(".*.tmp"))
    assert main([*map(str, command), str(lab.folder)]) == 0
    assert main([*map(str, command), str(tmp_path / "unbroken")]) == 0
    assert weights(lab.folder) == weights(tmp_path / "unbroken")
    assert exact(lab.history()) == exact(read_history(tmp_path / "unbroken"))


def test_a_report_on_a_full_disk_says_so_and_resumes_once_there_is_room(tiny_root, tiny_packs, tmp_path, capsys):
    command = ["report", "--preset", "smoke", "--data", tiny_root, "--run", tmp_path / "run", "--only", "02"]
    for room in (40_000, 150_000):                              # too little for the notebook, for its pictures
        with no_room(room):
            refused(capsys, tmp_path / "run", *command)
    assert main([*map(str, command)]) == 0
    assert [path.name for path in (tmp_path / "run" / "notebooks").iterdir()] == ["02_data.ipynb"]


@pytest.mark.parametrize("command, bar", [("pack", "packing train:"),
                                          ("simulate --train 1 --validate 0 --test 0", "simulating:")])
def test_a_message_has_a_line_of_its_own(command, bar, tiny_root, tmp_path, capsys):
    """Also where it ends a progress bar."""
    if command == "pack":
        (tmp_path / "processed_data").symlink_to(tiny_root / "processed_data")
    with no_room(1000):
        assert bar in refused(capsys, tmp_path, *command.split(), tmp_path)


COMMANDS = """
import contextlib, io, json, sys
from lab5.cli import main
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(arguments)
    print(json.dumps([status, said.getvalue()]))
"""


@pytest.fixture
def obedient():
    """What a command is started with so that it must obey the rights of folders, as root too."""
    if os.getuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root can write everywhere here")
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(obedient, tiny_root, tiny_packs, tmp_path):
    """The run's folder, the one above it, the data's, a notebook's figures: nothing is changed, and all is told."""
    run, data, none = tmp_path / "run", tmp_path / "data", tmp_path / "none"
    Run(preset("smoke"), run, tiny_root).train(progress=False)
    shutil.copytree(run, tmp_path / "trained")
    shutil.copytree(tiny_root / "processed_data", data / "processed_data")
    (tmp_path / "trained" / "figures").mkdir()
    none.mkdir()
    lab = ["--preset", "smoke", "--data", tiny_root, "--run"]
    commands = {
        none / "run": ["train", *lab, none / "run"], none: ["train", *lab, none],
        run / "variants": ["sweep", "extras", *lab, run], run / "evaluation": ["evaluate", *lab, run],
        run / "notebooks": ["report", *lab, run, "--only", "02"],
        tmp_path / "trained" / "figures": ["report", *lab, tmp_path / "trained", "--only", "02"],
        data / "packed": ["pack", data], none / "processed_data": ["simulate", none],
        data: ["train", "--preset", "smoke", "--data", data, "--run", tmp_path / "new"]}
    closed = [none, run, data, tmp_path / "trained" / "figures", tiny_root, tiny_root / "packed"]       # whole packs do
    for folder in closed:
        folder.chmod(0o555)
    try:
        result = subprocess.run([*obedient, sys.executable, "-c", COMMANDS, json.dumps(
            [[*map(str, command)] for command in commands.values()])], capture_output=True, text=True)
    finally:
        for folder in closed:
            folder.chmod(0o755)
    assert result.returncode == 0, result.stderr
    for place, line in zip(commands, result.stdout.splitlines(), strict=True):
        status, said = json.loads(line)
        assert status == 1 and re.search(rf"{re.escape(str(place))}.*{os.strerror(errno.EACCES)}.*writable", said), said
    assert not list(none.iterdir())


def test_data_that_cannot_be_written_are_packed_beside_a_link_to_them(tiny_root, tmp_path, monkeypatch):
    shutil.copytree(tiny_root / "processed_data", tmp_path / "closed" / "processed_data")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "processed_data").symlink_to(tmp_path / "closed" / "processed_data")
    monkeypatch.chdir(tmp_path)
    assert main("train --preset smoke --data own/processed_data --run run".split()) == 0
    assert (tmp_path / "own" / "packed").is_dir() and not (tmp_path / "closed" / "packed").exists()


def test_notebooks_run_with_the_interpreter_that_runs_the_command(tiny_root, tmp_path, monkeypatch):
    """Another kernel has the name python3, and is found first."""
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    other = {"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setattr(report, "NOTEBOOKS", tmp_path)
    cell = nbformat.v4.new_code_cell("preset = run = data = ''\nimport sys; print(sys.executable)")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "00_a.ipynb")
    lab = report.run_report("smoke", str(tmp_path / "{run}"), str(tiny_root))           # braces are papermill's own
    assert nbformat.read(lab.folder / "notebooks" / "00_a.ipynb", 4).cells[-1].outputs[0].text.strip() == sys.executable


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_was_computed_is_printed_on_every_terminal(encoding, tiny_root, tmp_path):
    run = tmp_path / "執行"
    Run(preset("smoke"), run, tiny_root).train(progress=False)
    command = [sys.executable, "-m", "lab5.cli", "evaluate", "--preset", "smoke", "--run", str(run)]
    result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    printed = result.stdout.decode(encoding)
    assert result.returncode == 0 and "average PSNR over 4 test sequences" in printed, result.stderr
    assert str(run).encode(encoding, "backslashreplace").decode(encoding) in printed


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_anything_is_computed(tmp_path, capsys):
    """Where the terminal's encoding is another, Python has its bytes as surrogates; safetensors opens no such file."""
    folder = f"{tmp_path}/\udca4\udca4"
    for command in (["train", "--run", folder], ["train", "--data", folder], ["check", folder], ["simulate", folder]):
        assert main(command) == 1
        assert "name a folder whose path is UTF-8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_worked_on_all_the_same(number, tiny_root, tmp_path, monkeypatch,
                                                                        capsys):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    (tmp_path / "processed_data").symlink_to(tiny_root / "processed_data")
    command = ["train", "--preset", "smoke", "--data", str(tmp_path), "--run", str(tmp_path / "run")]
    assert main(command) == 0                                   # packs and trains
    if number != errno.ENOSYS:                                  # for which filelock has a lock of another kind
        said = capsys.readouterr().err
        for folder in "packed", "run":
            where = re.escape(str(tmp_path / folder))
            assert re.search(rf"{where}: .* no locks.*{os.strerror(number)}.*only one", said)
    assert main(command) == 0 and len(read_history(tmp_path / "run")) == preset("smoke").epochs


def test_an_installation_without_its_notebooks_says_where_the_workbook_runs(tiny_root, tmp_path):
    shutil.copytree(files.__file__.removesuffix("/files.py"), tmp_path / "lab5")
    for command, status in ("demo", 1), ("train --preset smoke", 1), ("report", 1), (f"check {tiny_root}", 0):
        result = subprocess.run([sys.executable, "-m", "lab5.cli", *command.split()], capture_output=True, text=True,
                                cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
        assert result.returncode == status
        assert status == 0 or "without its notebooks. The workbook runs from its checkout" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lab5"]


@pytest.mark.parametrize("there", [None, "/nowhere"])
def test_a_home_that_is_not_there_is_named(there, tiny_root, tmp_path, monkeypatch, capsys):
    """No HOME and no entry for the user, as in a container; or a folder that is not there."""
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME") if there is None else monkeypatch.setenv("HOME", there)
    command = ["report", "--preset", "smoke", "--data", str(tiny_root), "--run", str(tmp_path)]
    assert main(command) == 1 and "home folder" in (said := capsys.readouterr().err) and "Set HOME" in said
    if there is None:
        for command in (["train", "--run", "~/run"], ["check", "~/data"]):
            assert main(command) == 1 and "Set HOME where ~ is unknown" in capsys.readouterr().err
