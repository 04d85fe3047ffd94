"""The report's text: paper.md, with a run's values in the place of its ``{{names}}``."""

import inspect
import re
import textwrap
from importlib import import_module
from operator import attrgetter
from pathlib import Path

from lab5.config import PRESETS
from lab5.handin.words import read_cells
from lab5.metrics import GRADES
from lab5.workbook import sweep
from lab5.workbook.run import Run

PAPER = Path(__file__).with_name("paper.md")


def fill(lab: Run) -> str:
    """The Markdown of a finished run. Raises NotYet where nothing is trained, ValueError without notebook 03.

    ``{{name}}`` and ``{{name:format}}`` are values, escaped; ``{{source MODULE:NAME}}`` is a listing of the package,
    ``{{comparison NAME}}`` the table of a recorded comparison.
    """
    scores, history = lab.evaluation(), lab.history()
    each = {protocol: values.mean(axis=1) for protocol, values in scores.psnr.items()}          # (sequences,)
    graded, steps = each["prior_sample"], scores.psnr["prior_sample"].mean(axis=0)
    cells = [(cell, cell.metadata.get("tags", [])) for cell in read_cells(lab.folder / "notebooks" / "03_model.ipynb")]
    values = {
        "config": lab.config, "lab": PRESETS["full"], "facts": lab.facts(), "epoch": history[-1],
        "best": max((r for r in history if r["psnr"] is not None), key=lambda record: record["psnr"]),
        "psnr": {name: scores.average(name) for name in each}, "lowest": graded.min(), "highest": graded.max(),
        "ssim": {name: scores.average(name, "ssim") for name in scores.ssim}, "first": steps[0], "last": steps[-1],
        "over": {name: graded.mean() - values.mean() for name, values in each.items()}, "count": len(graded),
        "won": int((graded > each["repeat_last"]).sum()), "minutes": sum(record["seconds"] for record in history) / 60,
        "parameters": sum(weight.numel() for weight in lab.model().parameters()), "full_marks": GRADES[0][0],
        "extras": ", ".join(name.replace("_", " ") for name in sweep.EXTRAS if getattr(lab.config, name)) or "none"}
    proof = (cell.source for cell, tags in cells if "report-code" in tags and not cell.source.startswith("show."))
    printed = (output.get("text", "") for cell, tags in cells if "report-output" in tags for output in cell.outputs)
    blocks = {"proof": "\n\n".join(proof), "printed": "".join(printed).rstrip()}

    def value(name: re.Match) -> str:
        kind, _, rest = name[1].partition(" ")
        if kind == "source":
            return _listing(*rest.split(":"))
        if kind == "comparison":
            return sweep.report(sweep.read(sweep.RECORDED / f"comparison_{rest}.csv"))
        return blocks[kind] if kind in blocks else escape(f"{{{name[1]}}}".format(**values))

    text = re.sub(r"\{\{(.+?)\}\}", value, PAPER.read_text(encoding="utf-8"))
    return re.sub(r"(?m)^(?=.{96})(.*\S) +# .*$", r"\1", text)                  # no comment that a page has no room for


def escape(text: str) -> str:
    """A text as Markdown that shows it, whatever is in it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _listing(module: str, name: str) -> str:
    """The source of a function without its docstring and the types of its parameters, which make its lines too long."""
    source = inspect.getsource(attrgetter(name)(import_module(module)))
    source = re.sub(r'^ *""".*?"""\n+', "", source, flags=re.M | re.S)
    header = re.search(r"def \w+\([^)]*\).*:\n", source)[0]
    untyped = re.sub(r": [\w.]+( \| None)?|\).*", "", header).replace(" = ", "=")
    return textwrap.dedent(source.replace(header, " ".join(untyped.split()) + "):\n")).rstrip()
