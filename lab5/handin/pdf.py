"""The report as a PDF: Markdown through pandoc to Typst, and Typst to a PDF, both from wheels; no LaTeX, no browser."""

import json
import re
import subprocess
from contextlib import suppress
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import pypandoc
import typst

from lab5.files import write_atomically, write_text
from lab5.handin.words import Details, Words
from lab5.workbook.run import PROJECT

TEMPLATE = Path(__file__).with_name("report.typ")
PANDOC = Path(pypandoc.__file__).with_name("files") / "pandoc"                  # the wheel's, not the PATH's
PAPER = "markdown-citations"                    # what pandoc reads: paper.md
STUDENT = "commonmark+implicit_figures+pipe_tables+smart+tex_math_dollars"      # ... and what a student writes
SPACED = re.compile(r"(!\[[^]\n]*\]\()([^<>()\n]* [^<>()\n]*\.\w+)\)")          # a picture with a space in its name
END = "endofthestudentswords"
NO_FONT = ("no font here has {}, and the PDF would show a box. Install one, e.g. `apt-get install fonts-noto-cjk` for "
           "Chinese, `fonts-noto-core` for most scripts, or put a font's file into ~/.local/share/fonts (Linux) or "
           "~/Library/Fonts (macOS); or write it in other characters")
TYPEFACE = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("STIXGeneral*"))      # the figures'


def to_typst(text: str, reader: str, *options: str, folder: Path | None = None) -> str:
    """Markdown as Typst. Raises ValueError on a formula that pandoc does not know and a picture that it cannot find."""
    command = [PANDOC, "--from", reader, "--to=typst", "--columns=9999",        # no width for a table's columns
               "--lua-filter", str(TEMPLATE.with_suffix(".lua")), *options]
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", cwd=folder)
    lost = re.search(r"Could not (?:convert TeX math|fetch resource) .*?(?=\n *expecting|\n\[|\Z)", done.stderr, re.S)
    if lost or done.returncode:
        raise ValueError(lost[0] if lost else done.stderr)
    return done.stdout.rstrip()


def _compiler(run: Path, body: str, details: Details) -> typst.Compiler:
    """Typst with ``RUN/report/report.typ``, which is the template and under it the body.

    Raises ValueError where no font has a character of it: the export as PDF/A, which can hold no figures, refuses that.
    """
    main, facts = run / "report" / TEMPLATE.name, details.model_dump() | {"date": date.today().isoformat()}
    main.parent.mkdir(parents=True, exist_ok=True)
    for font in TYPEFACE:                                       # alone: one of the others has a box for every character
        (main.parent / font.name).unlink(missing_ok=True)
        (main.parent / font.name).symlink_to(font)
    write_text(main, TEMPLATE.read_text(encoding="utf-8") + body)
    text, whole = (typst.Compiler(main, root=run, font_paths=[main.parent], sys_inputs={"facts": json.dumps(
        facts | {"pictures": pictures})}) for pictures in (False, True))
    try:
        text.compile(format="pdf", pdf_standards="a-2b")
    except RuntimeError as error:
        if lost := re.search(r'the text `"(.+?)"` could not be displayed', str(error)):
            raise ValueError(NO_FONT.format(lost[1])) from error
        raise
    return whole


def convert(words: Words, run: Path) -> str:
    """A student's text as Typst, compiled alone, so that an error names its place and nothing goes on past its end.

    Pictures are looked for beside report.yaml and copied to ``RUN/report``. Raises ValueError.
    """
    def attempt(text: str) -> str:
        body = to_typst(SPACED.sub(r"\1<\2>)", text) + f"\n\n{END}", STUDENT, "--extract-media=media",
                        f"--resource-path={PROJECT}", "--shift-heading-level-by=2", folder=report)
        if not body.endswith(END):
            raise ValueError("a fence (``` or ~~~) or a comment (<!--) begins here and has no end")
        _compiler(run, body := body.removesuffix(END), Details()).compile(format="pdf")
        return body

    (report := run / "report").mkdir(parents=True, exist_ok=True)
    try:
        return attempt(words.text)
    except (ValueError, RuntimeError) as error:
        lines = words.text.splitlines()
        for start in [n for n, line in enumerate(lines) if line.strip() and not (n and lines[n - 1].strip())][::-1]:
            with suppress(ValueError, RuntimeError):            # the last paragraph before which all is well
                attempt("\n".join(lines[:start]))
                break
        raise ValueError(f"{words.origin}, in the paragraph of line {start + 1}: {error}") from error


def try_words(details: Details, words: list[Words], folder: str) -> None:
    """Raise ValueError where something that is the student's cannot be printed; `folder` is the name of the data's."""
    with TemporaryDirectory() as aside:
        _compiler(Path(aside), f"#{json.dumps(folder, ensure_ascii=False)}", details)
        for part in (part for part in words if part.text.strip()):
            convert(part, Path(aside))


def build(run: Path, paper: str, details: Details, words: list[Words]) -> dict[str, int]:
    """Write ``RUN/report.pdf`` of a Markdown text; returns the page of every label. Equal input gives equal bytes.

    In it ``@label`` is a reference, ``{#label}`` after a formula its label, ``//own-PLACE`` is the student's words.
    Raises ValueError on these and on a figure that is not in ``RUN/figures``; RuntimeError on what Typst cannot set.
    """
    for name in re.findall(r"\(/figures/(.+?)\.pdf\)", paper):
        if not (run / "figures" / f"{name}.pdf").exists():
            raise ValueError(f"{run / 'figures' / name}.pdf, a figure of the report, is not there; "
                             f"`lab5 report --only {name[:2]}` makes it again")
    paper = re.sub(r"\$\$ \{#([\w-]+)\}", r"$$`<\1>`{=typst}", paper)
    body = to_typst(re.sub(r"(?<!\w)@([a-z]+-[\w-]+)", r"`@\1`{=typst}", paper), PAPER)
    for place in re.findall(r"//own-(\w+)", body):
        own = [f"#own[{to_typst(part.question, PAPER)}][\n{convert(part, run)}\n]" for part in words
               if part.text.strip() and part.place == place]
        body = body.replace(f"//own-{place}", "\n".join(own))
    compiler = _compiler(run, body, details)
    write_atomically(run / "report.pdf", lambda path: path.write_bytes(compiler.compile(format="pdf")))
    return dict(json.loads(compiler.query("<places>", field="value", one=True)))
