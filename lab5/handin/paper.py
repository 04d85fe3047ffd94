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

    ``{{name}}`` and ``{{name:format}}`` are values, escaped; ``{{source MODULE:NAME}}`` is a listing of the package.
    """
    config, scores, history = lab.config, lab.evaluation(), lab.history()
    psnr, repeated = (scores.psnr[protocol] for protocol in ("prior_sample", "repeat_last"))
    (score, half), still = scores.average("prior_sample"), scores.average("repeat_last")[0]
    validated = max((record for record in history if record["psnr"] is not None), key=lambda record: record["psnr"])
    recorded, longer = (sweep.Sweep.read(sweep.RECORDED / f"sweep_{name}.csv") for name in ("full", "extras"))
    proof = read_cells(lab.folder / "notebooks" / "03_model.ipynb")
    values = {
        "config": config, "lab": PRESETS["full"], "facts": lab.facts(), "epoch": history[-1], "best": validated,
        "score": score, "half": half, "grade": scores.grade, "still": still, "gain": score - still,
        "first": psnr[:, 0].mean(), "last": psnr[:, -1].mean(), "count": len(psnr), "full_marks": GRADES[0][0],
        "lowest": psnr.mean(axis=1).min(), "highest": psnr.mean(axis=1).max(),
        "won": int((psnr.mean(axis=1) > repeated.mean(axis=1)).sum()),
        "means": scores.average("prior_mean")[0] - score, "chosen": scores.average("best_of_n")[0] - score,
        **{measure: {name: scores.average(name, measure) for name in scores.psnr} for measure in ("psnr", "ssim")},
        "parameters": sum(weight.numel() for weight in lab.model().parameters()),
        "minutes": sum(record["seconds"] for record in history) / 60,
        "extras": ", ".join(name.replace("_", " ") for name in sweep.EXTRAS if getattr(config, name)) or "none",
        "recorded": recorded, "longer": longer,
        "swept": {f"{result.group}, {result.option}": "the reference" if result.is_reference else
                  sweep.signed(*recorded.gain(result)) for result in recorded.results}}
    blocks = {"proof": "\n\n".join(cell.source for cell in proof if "report-code" in cell.metadata.get("tags", [])),
              "printed": "".join(output.get("text", "") for cell in proof for output in cell.get("outputs", ())
                                 if "report-output" in cell.metadata.get("tags", [])),
              "extras_table": re.sub(r"^\|.*?(?=\|)", "", longer.table(), flags=re.M)}      # all are of one group

    def value(name: re.Match) -> str:
        if name[1].startswith("source "):
            return _listing(*name[1].removeprefix("source ").split(":"))
        return blocks[name[1]].rstrip() if name[1] in blocks else escape(f"{{{name[1]}}}".format(**values))

    return re.sub(r"\{\{(.+?)\}\}", value, PAPER.read_text(encoding="utf-8"))


def escape(text: str) -> str:
    """A text as Markdown that shows it, whatever is in it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _listing(module: str, name: str) -> str:
    """The source of a class or function without its docstrings."""
    source = inspect.getsource(attrgetter(name)(import_module(module)))
    return textwrap.dedent(re.sub(r'^ *""".*?"""\n+', "", source, flags=re.M | re.S)).rstrip()
