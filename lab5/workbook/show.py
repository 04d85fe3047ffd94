"""What a notebook shows: exported figures with a caption, tables, source code, and where results come from."""

from __future__ import annotations

import base64
import html
import inspect
import platform
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from lab5.files import cores, write_atomically
from lab5.workbook import figures, film

if TYPE_CHECKING:
    from lab5.workbook.run import Run

PROJECT = Path(__file__).resolve().parents[2]
if not (PROJECT / "notebooks").is_dir():
    raise RuntimeError(f"{Path(__file__).parents[1]}: lab5 was installed without its notebooks. The workbook runs from "
                       "its checkout: `pip install --editable .` there, or `make report`")
SCREEN = round(1.15 * 96 * figures.WIDTH)       # pixels, the width of a figure


def figure(lab: Run, drawn: Figure, name: str, caption: str) -> None:
    """Export a figure as PDF and PNG under its name, and show it with its caption."""
    figures.save(drawn, lab.folder / "figures", name)
    _picture(lab, name, caption)


def drawing(lab: Run, name: str, caption: str) -> None:
    """Export one of the project's drawings, which no data change, and show it with its caption."""
    for file in (f"{name}.pdf", f"{name}.png"):
        write_atomically(lab.folder / "figures" / file, partial(shutil.copy, PROJECT / "figures" / file))
    _picture(lab, name, caption)


def _picture(lab: Run, name: str, caption: str) -> None:
    display(Image(data=(lab.folder / "figures" / f"{name}.png").read_bytes(), width=SCREEN, alt=caption))
    display(Markdown(f"*{caption}*"))


def gif(lab: Run, videos: dict[str, np.ndarray], name: str, caption: str) -> None:
    """Export videos, uint8 (T, H, W, C), side by side as a GIF, and show it with its caption."""
    path = lab.folder / "figures" / f"{name}.gif"
    film.gif(path, videos, n_past=lab.config.n_past)
    encoded = base64.b64encode(path.read_bytes()).decode()
    display({"text/html": f'<img src="data:image/gif;base64,{encoded}" alt="{html.escape(caption)}">',
             "text/plain": f"({path.name} plays here.)"}, raw=True)     # nbconvert and GitHub do not know image/gif
    display(Markdown(f"*{caption}*"))


def say(text: str) -> None:
    """Show a Markdown text whose numbers were computed."""
    display(Markdown(text))


def table(*columns: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table for `say`: the headings of its columns, then a sequence of cells for each row."""
    lines = [[re.sub(r"(?<!\\)\|", r"\|", str(cell)) for cell in line] for line in (columns, *rows)]
    rule = [":" + "-" * max(2, *map(len, column)) for column in zip(*lines, strict=True)]      # widths in the PDF
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def source(*objects: object) -> None:
    """Show the package's own source code, so that a notebook prints what runs."""
    for item in objects:
        display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(item))}```"))


def provenance(lab: Run) -> str:
    """Run, configuration, seed, data, machine and versions in one line, to stand under a result."""
    return ("Run `{run}`, configuration `{configuration}` (preset {preset}), seed {seed}; {data}, test split "
            "`{test split}` of {test sequences} sequences; {machine}, {precision}; torch {torch}, lab5 {lab5}, Python "
            "{Python}.".format_map(lab.facts()))


def machine() -> str:
    """The accelerator, or where there is none the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {cores()} cores"
