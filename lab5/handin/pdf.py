"""The report as a PDF: Markdown through pandoc to Typst, and Typst to a PDF, both from wheels; no LaTeX, no browser."""

import json
import re
import shutil
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
PANDOC = shutil.which("pandoc", path=str(Path(pypandoc.__file__).with_name("files")))  # the wheel's, not the PATH's
PAPER = "markdown-citations"                    # what pandoc reads: paper.md
STUDENT = "commonmark+implicit_figures+pipe_tables+smart+tex_math_dollars"      # ... and what a student writes
SPACED = re.compile(r"(!\[[^]\n]*\]\()([^<>()\n]* [^<>()\n]*\.\w+)\)")          # a picture with a space in its name
END = "endofthestudentswords"
TYPEFACE = sorted(Path(matplotlib.get_data_path()).glob("fonts/ttf/STIXGeneral*.ttf"))      # that of the figures


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
    """Typst with ``RUN/report``: report.typ, which is the template and under it the body, and the fonts."""
    main = run / "report" / TEMPLATE.name
    main.parent.mkdir(parents=True, exist_ok=True)
    for font in TYPEFACE:
        shutil.copy(font, main.parent)
    write_text(main, TEMPLATE.read_text(encoding="utf-8") + body)
    facts = {**details.model_dump(), "date": date.today().isoformat()}
    return typst.Compiler(main, root=run, font_paths=[main.parent], sys_inputs={"facts": json.dumps(facts)})


def convert(words: Words, run: Path) -> str:
    """A student's text as Typst, compiled alone, so that an error names its place and nothing goes on past its end.

    Pictures are looked for beside report.yaml and copied to ``RUN/report``. Raises ValueError.
    """
    def attempt(text: str) -> str:
        *body, end = to_typst(SPACED.sub(r"\1<\2>)", text) + f"\n\n{END}", STUDENT, "--extract-media=media",
                              f"--resource-path={PROJECT}", "--shift-heading-level-by=2", folder=report).split("\n")
        if end != END:
            raise ValueError("a fence (``` or ~~~) or a comment (<!--) begins here and has no end")
        _compiler(run, "\n".join(body), Details()).compile(format="pdf")
        return "\n".join(body)

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
    """Raise ValueError where something that is in the student's hand cannot be printed; `folder` is that of the data."""
    require_fonts({"report.yaml": details.name + details.student_id, f"the folder {folder}": folder,
                   **{part.origin: part.text for part in words}})
    with TemporaryDirectory() as aside:
        for part in filter(lambda part: part.text, words):
            convert(part, Path(aside))


def require_fonts(printed: dict[str, str]) -> None:
    """Raise ValueError where no font, the embedded ones included, has a character of the texts (origin -> text).

    Every character is drawn alone: one that no font has looks like one that no font can have.
    """
    unusual = sorted({character for text in printed.values() for character in text if not character.isascii()})
    pages = typst.compile("#pagebreak()".join(
        f'#text("\\u{{{ord(character):x}}}")' for character in ("\U0010fffd", "a", *unusual)).encode(), format="svg")
    nothing, _, *glyphs = [set(re.findall(rb'href="#(g\w+)"', page)) for page in pages]
    if lost := [character for character, glyph in zip(unusual, glyphs, strict=True) if glyph & nothing]:
        where = [origin for origin, text in printed.items() if set(lost) & set(text)]
        raise ValueError(
            f"{', '.join(where)}: no font here has {' '.join(lost[:12])}, and the PDF would show boxes. Install one, "
            "e.g. `apt-get install fonts-noto-cjk` for Chinese, `fonts-noto-core` for most scripts, or put a font's "
            "file into ~/.local/share/fonts (Linux) or ~/Library/Fonts (macOS); or write it in other characters")


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
               if part.text and part.place == place]
        body = body.replace(f"//own-{place}", "\n".join(own))
    require_fonts({"the report": body + TEMPLATE.read_text(encoding="utf-8") * (details.language == "zh")})
    compiler = _compiler(run, body, details)
    write_atomically(run / "report.pdf", lambda path: path.write_bytes(compiler.compile(format="pdf")))
    return dict(json.loads(compiler.query("<places>", field="value", one=True)))
