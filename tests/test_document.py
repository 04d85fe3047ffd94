"""From executed notebooks to the report: what is in it, what is left out, what it is counted by; the PDF."""

import nbformat
import pytest
import typst
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pypdf import PdfReader

from lab5.handin import pdf
from lab5.handin.document import Chapter, Details, count_words, read_chapter


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
        code("assert 1", printed("ok: True\n"), tags=["report-output", "proof"]),
        code("show.figure()", picture("01_plot"), text("*A plot of $x$ [dB].*"), tags=["report-code"]),
        code("show.gif()", picture("01_moving.gif"), text("*It moves.*")),
        markdown("## 1.3 Secret", "no-report"), code("show.say(2)", text("secret text")),
        markdown("### References\n\n- B. First (2000). *B*.")))


def test_what_is_kept_and_what_is_left_out(chapter):
    for phrase in ("A computed sentence.", "# a comment\n", "def shown()", "ok: True", "show.figure()", "B. First"):
        assert phrase in chapter.text
    for phrase in ("Press a key", "Still commands", "hidden", "secret", "show.say", "1.1", "1.3"):
        assert phrase not in chapter.text
    assert chapter.proof == "ok: True\n" and chapter.listings == 2


def test_sections_keep_their_numbers_and_figures_their_captions(chapter):
    assert chapter.labels == ["section-1", "section-1-2", "figure-01_plot"] and chapter.gifs == ["01_moving.gif"]
    assert "## 1.2 Kept {#section-1-2}" in chapter.text
    assert "![A plot of $x$ [dB].](/figures/01_plot.pdf){#figure-01_plot}" in chapter.text
    assert "`figures/01_moving.gif`: It moves." in chapter.text


def test_words_are_those_of_prose():
    counted = count_words("One two.\n\n| a | four |\n|:--|:--|\n| 6 | seven |\n\n$$\\mathrm{eight}$$ Nine 十一, ten.")
    assert counted == len("one two nine 十 一 ten".split())


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

MEI_LIN = Details(student_id="0856001", name="Mei Lin", discussion="My **own** view.")


def build(chapter, run, details=MEI_LIN):
    """(the page of every label, the PDF's bytes, its text)."""
    plot = Figure(figsize=(3, 1))
    plot.subplots().plot([0, 1])
    (run / "figures").mkdir(parents=True, exist_ok=True)
    plot.savefig(run / "figures" / "01_plot.pdf", metadata={"CreationDate": None})
    pages = pdf.build(run, [chapter], details, {"headline": "20.00 dB", "date": "2020-01-01"}, "# Appendix {#appendix}")
    path = run / "report.pdf"
    return pages, path.read_bytes(), " ".join(page.extract_text() for page in PdfReader(path).pages)


def test_the_pdf_holds_the_text_and_says_where(chapter, tmp_path):
    pages, _, shown = build(chapter, tmp_path)
    assert all(phrase in shown for phrase in ("Mei Lin", "0856001", "Figure 1. A plot of", "Appendix", "My own view"))
    assert {"section-1", "section-1-2", "figure-01_plot", "own-words", "appendix"} == set(pages)
    assert "$" not in shown and "\\" not in shown and "{=" not in shown


def test_equal_input_gives_equal_bytes(chapter, tmp_path):
    assert build(chapter, tmp_path / "a")[1] == build(chapter, tmp_path / "b")[1]


def test_a_reference_to_a_section_of_the_report_is_a_link(chapter, tmp_path):
    build(chapter, tmp_path)
    body = PdfReader(tmp_path / "report.pdf").pages[2]          # after the title page and the contents
    assert "section 1.2 and section 9.9" in body.extract_text() and len(body["/Annots"]) == 1


def test_a_figure_that_is_gone_is_named(chapter, tmp_path):
    with pytest.raises(ValueError, match="01_plot.pdf is missing"):
        pdf.build(tmp_path, [chapter], MEI_LIN, {}, "")


def test_a_formula_that_cannot_be_set_is_an_error_and_not_raw_latex(tmp_path):
    with pytest.raises(RuntimeError, match="nosuchcommand"):
        build(Chapter("$$\\nosuchcommand{x}{y}$$"), tmp_path)


def test_a_chinese_name_is_printed(chapter, tmp_path):
    details = Details(student_id="0856001", name="王小明", language="zh")
    try:
        family, = pdf.find_fonts(details)
    except ValueError:
        pytest.skip("no font with Chinese glyphs on this machine (Debian: fonts-noto-cjk)")
    _, _, shown = build(chapter, tmp_path, details)
    assert "王小明" in shown and "學號" in shown
    fonts = {str(font) for page in PdfReader(tmp_path / "report.pdf").pages for font in page._get_fonts()[0]}
    assert any(family.split()[0] in font for font in fonts)


def test_without_a_font_for_a_name_the_command_says_which_to_install(monkeypatch):
    class NoFonts:
        def __init__(self, **_):
            pass

        def fonts(self):
            return []

    monkeypatch.setattr(typst, "Fonts", NoFonts)
    assert pdf.find_fonts(Details(name="Mei Lin", discussion="Äußerst schön.")) == []
    with pytest.raises(ValueError, match="no installed font has all of 小明王.*fonts-noto-cjk"):
        pdf.find_fonts(Details(name="王小明"))


# ---- the student's details ----

@pytest.mark.parametrize("content, problem", [("name: [", "expected the node"), ("- a", "mapping"), ("id: 5", "id\n"),
                                              ("language: fr", "'en' or 'zh'"), ("name: [a, b]", "valid string")])
def test_bad_details_are_named(tmp_path, content, problem):
    path = tmp_path / "report.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"(?s)report.yaml.*{problem}.*the keys are student_id, name, language"):
        Details.load(path)


def test_details_are_read(tmp_path):
    path = tmp_path / "report.yaml"
    path.write_text("student_id: 0712345\nname: 王小明\nlanguage: zh\ndiscussion: |\n  One.\n\n  Two.\n", "utf-8")
    assert Details.load(path) == Details(student_id="0712345", name="王小明", language="zh",
                                         discussion="One.\n\nTwo.\n")
