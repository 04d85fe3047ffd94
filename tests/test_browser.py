"""The workbook in JupyterLab in a real browser: its notebooks run and its widgets are operated.

Chromium opens the server that `make lab` starts, on small copies of the notebooks. A test checks what is on the
screen, not what a widget holds.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import nbformat
import papermill
import pytest
from jupyter_server.serverapp import list_running_servers

from lab5.handin.report import find_notebooks
from lab5.training import read_history

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
expect = sync_api.expect
expect.set_options(timeout=30_000)
if not shutil.which("chromium"):
    pytest.skip("no chromium on the path: apt-get install chromium", allow_module_level=True)

PROJECT = Path(__file__).parents[1]
NOTEBOOKS = find_notebooks()
LAPTOP = {"width": 1366, "height": 768}
FOLDERS = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
           "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")                # what this machine's user has set plays no part
OUTPUT = ".jp-Cell-outputArea > * > .jp-OutputArea-output"
CODE_CELLS = """Array.from(jupyterapp.shell.currentWidget.content.model.cells, cell => cell.toJSON())
                .filter(cell => cell.cell_type === 'code')"""


# The server, the browser, and a notebook that has run ----------------------------------------------------

@pytest.fixture(scope="module")
def lab(tiny_root, tmp_path_factory):
    """The server of `make lab` on small copies of the notebooks: its `url` and its `token`."""
    folder = tmp_path_factory.mktemp("lab")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    parameters = {"preset": "smoke", "run": str(folder / "run"), "data": str(tiny_root)}
    for path in NOTEBOOKS:
        papermill.execute_notebook(path, notebooks / path.name, parameters, prepare_only=True, progress_bar=False)
    settings = folder / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    options = re.search(r"jupyter lab notebooks (.*) \$\(ARGS\)", (PROJECT / "Makefile").read_text())[1].split()
    command = [sys.executable, "-m", "jupyterlab", str(notebooks), *options, "--no-browser",
               "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    if os.geteuid() == 0:
        command.append("--allow-root")
    environment = os.environ | {name: str(folder / name) for name in FOLDERS}
    log = folder / "log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server:
        try:
            yield soon(lambda: next(filter(listens, list_running_servers(folder / "JUPYTER_RUNTIME_DIR")), None),
                       lambda: f"JupyterLab does not start:\n{log.read_text()[-2000:]}")
        finally:
            server.terminate()


def listens(server: dict) -> bool:
    """Whether a server takes connections: it announces itself a moment before it does."""
    with suppress(ConnectionRefusedError), socket.create_connection((server["hostname"], server["port"])):
        return True
    return False


@pytest.fixture(scope="module")
def browser(lab):
    """Chromium, logged in with the token, without a way to other machines."""
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"),
                                                  args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
        except sync_api.Error as error:
            pytest.skip(f"chromium does not start: {error.message.splitlines()[0]}")
        context = chromium.new_context(base_url=lab["url"], viewport=LAPTOP)
        context.set_default_timeout(90_000)                          # two cores may be busy with other tests
        context.request.get("lab", params={"token": lab["token"]})
        yield context
        chromium.close()


@pytest.fixture(scope="module")
def page(browser, request):
    """A tab with a notebook whose cells have all run; tests of one notebook share it. No error may be logged."""
    tab, errors = browser.new_page(), []
    tab.on("console", lambda message: message.type == "error" and errors.append(
        f"{message.text} ({message.location['url']})"))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    try:
        run_all(tab, request.param)
        yield tab
        assert not errors
    finally:
        close(tab)


def on(*notebooks: str):
    """Marks a test that takes place in each of these notebooks."""
    return pytest.mark.parametrize("page", notebooks, indirect=True)


def start(page, notebook: str) -> None:
    """Open a notebook and begin to run it from top to bottom."""
    page.goto(f"lab/workspaces/{notebook}/tree/{notebook}.ipynb")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.evaluate("""() => { window.fine = null
        jupyterapp.commands.execute('notebook:run-all-cells').then(fine => window.fine = fine) }""")


def run_all(page, notebook: str) -> None:
    """Run a notebook to its end; fails where a cell does."""
    start(page, notebook)
    page.wait_for_function("window.fine !== null", timeout=300_000)
    cells = page.evaluate(CODE_CELLS)
    errors = ["\n".join(output["traceback"]) for cell in cells for output in cell["outputs"]
              if output["output_type"] == "error"]
    assert not errors, errors[0]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert page.evaluate("window.fine")


def close(page) -> None:
    """Close a tab, and its kernel with it."""
    page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
    page.close()


# A student's hands and eyes ------------------------------------------------------------------------------

def soon(look, otherwise=lambda: "it does not come", seconds: float = 30):
    """What `look()` finds, as soon as it finds anything; fails with the words of `otherwise()` if it never does."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, otherwise()
        time.sleep(0.05)
    return found


def changes(look, act) -> bool:
    """Whether `look()` finds something else soon after `act()`: image.screenshot, label.inner_text, ..."""
    before = look()
    act()
    return soon(lambda: look() != before, lambda: "nothing changes")


def board(page, text: str):
    """The widget that has these words on it. All that follows happens on a board."""
    return page.locator(".lab5").filter(has_text=text)


def panel(board, name: str):
    """The picture under this name."""
    return board.locator(".lab5-panel").filter(has=board.page.get_by_text(name, exact=True)).locator("img")


def control(board, description: str):
    """The slider, dropdown, box or field with this description beside it."""
    return board.locator(".jupyter-widgets:has(> label)").filter(
        has=board.page.get_by_text(description, exact=True))


def button(board, name: str):
    """The button with this text or this icon."""
    return board.locator(".jupyter-button").filter(has_text=re.compile(rf"^\s*{re.escape(name)}\s*$")).or_(
        board.locator(f'.jupyter-button:has([class~="fa-{name}"])'))


def handle(board, description: str):
    """A slider's handle, which takes keys."""
    return control(board, description).locator(".noUi-handle")


# What must hold ------------------------------------------------------------------------------------------

def test_make_lab_serves_this_machine_only_and_asks_for_its_token(lab):
    assert lab["hostname"] == "127.0.0.1" and lab["token"]
    with pytest.raises(HTTPError, match="403"):
        urlopen(f"{lab['url']}api/contents")
    assert urlopen(f"{lab['url']}api/contents?token={lab['token']}").status == 200


@on(*(path.stem for path in NOTEBOOKS))
def test_a_notebook_runs_from_top_to_bottom_without_an_error(page):
    """The fixture opens and runs it, and looks for errors afterwards."""


@on("06_timesteps")
def test_a_prediction_can_be_stepped_through_and_another_asked_for(page):
    """A key moves the picture, play continues by itself, and each control changes what is shown."""
    player = board(page, "worst")
    truth, prediction = panel(player, "truth"), panel(player, "prediction")
    player.scroll_into_view_if_needed()
    assert changes(prediction.screenshot, button(player, "play").click)
    button(player, "pause").click()
    for key in ("Home", "End"):
        assert changes(prediction.screenshot, lambda key=key: handle(player, "frame").press(key))
    button(player, "worst").click()
    number = control(player, "sequence").locator("input")
    worst = number.input_value()
    assert changes(truth.screenshot, button(player, "best").click)
    assert number.input_value() != worst
    for mode in ("posterior", "teacher forcing", "prior sample"):
        assert changes(prediction.screenshot,
                       lambda mode=mode: control(player, "mode").locator("select").select_option(mode))
    assert changes(truth.screenshot, lambda: (number.fill(worst), number.press("Enter")))


@on("06_timesteps")
def test_the_robot_can_be_driven(page, lab):
    """The pad steers the model and the simulated robot, and steps can be taken back."""
    wheel = board(page, "the simulated robot")
    model, robot = panel(wheel, "the model"), panel(wheel, "the simulated robot")
    wheel.scroll_into_view_if_needed()
    start = robot.screenshot()
    assert changes(robot.screenshot, button(wheel, "→").click)
    assert changes(model.screenshot, button(wheel, "↑").click)
    expect(wheel.get_by_text(re.compile("^3 of 28 steps"))).to_be_visible()
    assert changes(robot.screenshot, button(wheel, "undo").click)
    button(wheel, "reset").click()
    assert soon(lambda: robot.screenshot() == start)
    expect(button(wheel, "undo")).to_be_disabled()


def test_a_training_can_be_watched_and_stopped(browser, lab, tiny_root):
    """The button ends it after the epoch at hand; the words say where, and the checkpoint is there."""
    folder = Path(lab["root_dir"])
    run = folder.parent / "stopped"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=kernel, cells=[nbformat.v4.new_code_cell(
        f"from pathlib import Path\nfrom lab5.config import preset\nfrom lab5.workbook.live import View\n"
        f"from lab5.workbook.run import Run\n"
        f"lab = Run(preset('smoke', epochs=2000), Path({str(run)!r}), Path({str(tiny_root)!r}))\n"
        "with View(lab) as view:\n    lab.train(view)")])
    nbformat.write(notebook, folder / "stop.ipynb")
    page = browser.new_page()
    start(page, "stop")
    curves = page.locator(f"{OUTPUT} img").first
    expect(curves).to_be_visible(timeout=60_000)
    assert changes(lambda: curves.get_attribute("src"), lambda: None)           # the next epoch, by itself
    button(page, "stop after this epoch").click()
    words = page.get_by_text(re.compile(r"Stopped after epoch \d+ of 2000"))
    expect(words).to_be_visible(timeout=60_000)
    epoch = int(re.search(r"epoch (\d+)", words.inner_text())[1])
    assert len(read_history(run)) == epoch and (run / "last.safetensors").exists()
    close(page)
