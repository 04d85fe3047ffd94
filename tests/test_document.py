"""From executed notebooks to the report: what is in it, what is left out; the PDF and the student's details."""

import types

import nbformat
import pytest
import typst
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pypdf import PdfReader

from lab5.handin import pdf
from lab5.handin.document import read_chapter
from lab5.handin.pdf import Details


def code(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata={"tags": list(tags)})


def text(content):
    return new_output("display_data", {"text/markdown": content})


def picture(name):
    return new_output("display_data", {"image/png": "", "text/plain": ""}, metadata={"lab5": {"figure": name}})


def printed(content):
    return new_output("stream", name="stdout", text=content)


def markdown(source, *tags):
    return new_markdown_cell(source, metadata={"tags": list(tags)})


def write(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def chapter(tmp_path):
    return read_chapter(write(
        tmp_path / "01_first.ipynb", markdown("# 1. First\n\nSee section 1.2 and section 9.9."),
        markdown("## 1.1 Commands\n\nPress a key.", "no-report"), markdown("### Deeper\n\nStill commands."),
        markdown("## 1.2 Kept\n\n```python\n# a comment\n```\n\n$$x_{1.2}$$"),
        code("show.say(1)", text("A computed sentence."), printed("hidden print")),
        code("show.source(f)", text("```python\ndef hidden(): ...\n```")),
        code("show.source(g)", text("```python\ndef shown(): ...\n```"), tags=["report-code"]),
        code("assert 1", printed("ok: True\n"), tags=["report-output"]),
        code("show.figure()", picture("01_plot"), text("*A plot of $x$ [dB].*"), tags=["report-code"]),
        code("show.gif()", picture("01_moving.gif"), text("*It moves.*")),
        markdown("## 1.3 Secret", "no-report"), code("show.say(2)", text("secret text")),
        markdown("### References\n\n- B. First (2000). *B*.")))


def test_what_is_kept_and_what_is_left_out(chapter):
    for phrase in ("A computed sentence.", "# a comment\n", "def shown()", "ok: True", "show.figure()", "B. First",
                   "## 1.2 Kept {#section-1.2}", "`figures/01_moving.gif`: It moves.",
                   "![A plot of $x$ [dB].](/figures/01_plot.pdf){#figure-01_plot}"):
        assert phrase in chapter
    for phrase in ("Press a key", "Still commands", "hidden", "secret", "show.say", "1.1", "1.3"):
        assert phrase not in chapter


@pytest.mark.parametrize("cell", [new_code_cell("1"), code("1 / 0", new_output("error", ename="", evalue=""))])
def test_a_notebook_that_was_not_executed_to_its_end_is_named(tmp_path, cell):
    with pytest.raises(ValueError, match="04_y.ipynb was not executed to its end"):
        read_chapter(write(tmp_path / "04_y.ipynb", markdown("# 4. Y"), cell))


def test_a_notebook_that_is_missing_or_torn_is_named(tmp_path):
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    for name in ("missing.ipynb", "torn.ipynb"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read .*`lab5 report` executes"):
            read_chapter(tmp_path / name)


# ---- the PDF ----

MEI_LIN = Details(student_id="0856001", name="Mei Lin")


def build(run, text, details=MEI_LIN):
    """(the page of every label, the PDF)."""
    plot = Figure(figsize=(3, 1))
    plot.subplots().plot([0, 1])
    (run / "figures").mkdir(parents=True)
    plot.savefig(run / "figures" / "01_plot.pdf", metadata={"CreationDate": None})
    return pdf.build(run, text, details, "20.00 dB"), PdfReader(run / "report.pdf")


def test_the_pdf_holds_the_text_says_where_and_links_sections(chapter, tmp_path):
    pages, made = build(tmp_path, chapter)
    shown = " ".join(page.extract_text() for page in made.pages)
    assert all(phrase in shown for phrase in ("Mei Lin", "0856001", "20.00 dB", "Figure 1. A plot of", "It moves"))
    assert pages == {"section-1": 3, "section-1.2": 3, "figure-01_plot": 3}     # after title page and contents
    assert "$" not in shown and "\\" not in shown and "{=" not in shown
    assert "section 1.2 and section 9.9" in shown and len(made.pages[2]["/Annots"]) == 1        # no 9.9 is here


def test_equal_input_gives_equal_bytes(chapter, tmp_path):
    for name in "ab":
        build(tmp_path / name, chapter)
    assert (tmp_path / "a" / "report.pdf").read_bytes() == (tmp_path / "b" / "report.pdf").read_bytes()


@pytest.mark.parametrize("text, problem", [("$$\\nosuchcommand{x}$$", "nosuchcommand"),
                                           ("![Lost.](/figures/02_lost.pdf)", "not found.*figures/02_lost.pdf")])
def test_a_formula_that_cannot_be_set_and_a_figure_that_is_gone_are_named(tmp_path, text, problem):
    with pytest.raises(RuntimeError, match=problem):
        build(tmp_path, text)


def test_a_chinese_name_is_printed(tmp_path):
    details = Details(student_id="0856001", name="王小明", language="zh")
    try:
        family, = pdf.find_fonts(details)
    except ValueError:
        pytest.skip("no font with Chinese glyphs on this machine (Debian: fonts-noto-cjk)")
    page = build(tmp_path, "# 1", details)[1].pages[0]
    assert "王小明" in page.extract_text() and "學號" in page.extract_text()
    assert any(family.split()[0] in font for font in page._get_fonts()[0])


def test_without_a_font_for_a_name_the_command_says_which_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(typst, "Fonts", lambda **_: types.SimpleNamespace(fonts=list))
    assert pdf.find_fonts(Details(name="Mei Lin", discussion="Äußerst schön.")) == []
    path = tmp_path / "report.yaml"
    path.write_text("name: 王小明", encoding="utf-8")
    with pytest.raises(ValueError, match="no installed font has all of 小明王.*fonts-noto-cjk"):
        Details.load(path)


# ---- the student's details ----

@pytest.mark.parametrize("content, problem", [("name: [", "expected the node"), ("- a", "valid dictionary"),
                                              ("id: 5", "id\n"), ("language: fr", "'en' or 'zh'"),
                                              ("name: [a, b]", "valid string"), ("name: \xe9", "utf-8")])
def test_bad_details_are_named(tmp_path, content, problem):
    path = tmp_path / "report.yaml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=f"(?s)report.yaml.*{problem}.*The keys are student_id, name, language"):
        Details.load(path)


def test_details_are_read_and_without_a_file_they_are_empty(tmp_path):
    path = tmp_path / "report.yaml"
    assert Details.load(path) == Details()
    path.write_text("student_id: 0712345\nname: Zoë\ndiscussion: |\n  One.\n\n  Two.\n", encoding="utf-8")
    assert Details.load(path) == Details(student_id="0712345", name="Zoë", discussion="One.\n\nTwo.\n")
