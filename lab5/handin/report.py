"""The whole workbook as one batch job: every notebook through papermill into a run folder, and the report as a PDF."""

import os
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from tqdm.auto import tqdm

from lab5.evaluation import Evaluation, evaluate
from lab5.files import cores, each
from lab5.handin.paper import fill
from lab5.handin.pdf import build
from lab5.handin.rubric import check, summary
from lab5.handin.words import Details, read_words
from lab5.training import read_history
from lab5.workbook.run import PROJECT, RECORDED, Run, open_run

NOTEBOOKS = PROJECT / "notebooks"
TRAINING = "04_training"                        # the notebook that trains


class Kernel(AsyncKernelManager):
    """The kernel of the interpreter that runs this, whatever kernels are installed beside it."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def find_notebooks(only: list[str] | None = None) -> list[Path]:
    """The ordered notebooks, or those whose names begin with one of `only`, e.g. "05". Raises ValueError."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for wanted in only or []:
        if not any(path.stem.startswith(wanted) for path in notebooks):
            raise ValueError(f"no notebook begins with {wanted!r}; there are {', '.join(p.stem for p in notebooks)}")
    return [path for path in notebooks if not only or path.stem.startswith(tuple(only))]


def run_report(preset: str, run: str = "", data: str = "", only: list[str] | None = None) -> Run:
    """Execute the notebooks; copies with their outputs go to ``RUN/notebooks``, figures to ``RUN/figures``.

    Two run at a time, but for the training, which has the machine to itself; those after it share its scores. Raises
    ValueError on an unknown preset or notebook, OSError without a home folder, RuntimeError where a notebook stopped.
    """
    lab, notebooks = open_run(preset, run, data), find_notebooks(only)
    parameters = {"preset": preset, "run": str(lab.folder), "data": str(lab.data) if data else ""}
    if not os.access(home := os.path.expanduser("~"), os.W_OK):
        raise OSError(f"{home}: there is no such home folder, or it cannot be written, and Jupyter needs one. Set "
                      f"HOME: `HOME={gettempdir()} lab5 report`")
    lab.prepare()
    execute = partial(_execute, lab.folder / "notebooks", parameters)
    before = [path for path in notebooks if path.stem < TRAINING]
    training = [path for path in notebooks if path.stem == TRAINING]
    after = [path for path in notebooks if path.stem > TRAINING]
    with tqdm(total=len(notebooks), unit="notebook") as bar:
        threading.Thread(target=_show_epochs, args=(lab, bar), daemon=True).start()
        for stage in filter(None, (before, training, after)):
            bar.set_description("notebooks " + "–".join(sorted({stage[0].stem[:2], stage[-1].stem[:2]})))
            for _ in each(execute, stage, 2, _use_half_of_the_cores):
                bar.update()
            if stage is training:
                lab.evaluation(progress=False)
    return lab


def _use_half_of_the_cores() -> None:
    """For the kernel that is started from here: where two compute, more threads than cores wait for one another."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // 2))


def _execute(folder: Path, parameters: dict[str, str], notebook: Path) -> None:
    target = folder / notebook.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        places = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, target)]
        papermill.execute_notebook(
            *places, parameters, kernel_name="python3", kernel_manager_class=Kernel, cwd=str(notebook.parent),
            progress_bar=False, extra_arguments=["--IPKernelApp.log_level=ERROR"])              # it would break the bar
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{notebook.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                           f"Its copy with the full traceback: {target}") from error
    except RuntimeError as error:
        raise RuntimeError(f"{notebook.name} stopped: {error}; perhaps memory ran out. The same command starts again, "
                           "and a training resumes") from error
    except OSError as error:
        raise OSError(f"{target}: could not be written ({error.strerror or error}). Free some disk space, make the "
                      "folder writable, or choose another run folder; the same command starts again") from error


def _show_epochs(lab: Run, bar: tqdm) -> None:
    """Show on the bar, once per second until it is closed, how far the training is."""
    while not bar.disable:
        time.sleep(1)
        with suppress(ValueError):                              # a damaged history is notebook 04's to tell
            bar.set_postfix_str(f"{len(read_history(lab.folder))} of {lab.config.epochs} epochs")


def build_pdf(lab: Run, details: Details) -> tuple[str, bool]:
    """Write ``RUN/report.pdf``; returns what `rubric.check` does. Raises what `paper.fill` and `pdf.build` raise."""
    text, words = fill(lab), read_words(details, find_notebooks())
    return check(lab, text, details, words, pages=build(lab.folder, text, details, words))


def demo() -> str:
    """Score the recorded run's weights again on the whole test split; the result beside what is recorded."""
    lab, recorded = open_run("standard", str(RECORDED)), Evaluation.load(RECORDED / "evaluation" / "test")
    scores = evaluate(lab.model(), lab.pack("test"), protocols=("prior_sample", "repeat_last", "copy_previous"))
    return f"\n{summary(lab, scores)}\nrecorded: {recorded.average('prior_sample')[0]:.2f} dB"
