"""From executed notebooks to the report: what is in it, what is left out, how parts refer to one another; the PDF."""

import nbformat
import pytest
import typst
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pypdf import PdfReader

from lab5 import figures, pdf
from lab5.document import Details, Incomplete, merged_references, read_chapters


def code(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata={"tags": list(tags)})


def text(content, **kind):
    return new_output("display_data", {"text/markdown": content}, metadata={"lab5": kind} if kind else {})


def picture(name):
    return new_output("display_data", {"image/png": "", "text/plain": ""}, metadata={"lab5": {"figure": name}})


def printed(content):
    return new_output("stream", name="stdout", text=content)


def write(folder, name, *cells):
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def markdown(source, *tags):
    return new_markdown_cell(source, metadata={"tags": list(tags)})


@pytest.fixture
def chapters(tmp_path):
    first = write(
        tmp_path, "01_first", markdown("# 1. First\n\nAs notebook 02 shows, see section 1.2 and section 9.9."),
        markdown("## 1.1 Commands\n\nPress a key.", "no-report"), markdown("### Deeper\n\nStill commands."),
        markdown("## 1.2 Kept\n\nNotebooks 01 and 02 agree (1.2): 1.2 dB, $$x_{1.2}$$"),
        code("book.say(1)", text("A computed sentence."), printed("hidden print")),
        code("workbook.source(f)", text("```python\ndef hidden(): ...\n```")),
        code("workbook.source(g)", text("```python\n# a comment\ndef shown(): ...\n```"), tags=["report-code"]),
        code("assert 1", printed("ok: True\n"), tags=["report-output", "proof"]),
        code("book.show()", picture("01_plot"), text("*A plot of $x$ [dB].*"), tags=["report-code"]),
        code("book.show_gif()", picture("01_moving.gif"), text("*It moves.*")),
        markdown("## 1.3 Secret", "no-report"), code("book.say(2)", text("secret text")),
        markdown("### References\n\n- Z. Last (2001). *A*.\n- B. First (2000). *B*."))
    second = write(tmp_path, "02_second", markdown("# 2. Second"),
                   markdown("### References\n\n- B. First (2000). *B*."))
    return read_chapters([first, second])


def test_what_is_kept_and_what_is_left_out(chapters):
    kept = chapters[0].text
    for phrase in ("A computed sentence.", "# a comment\ndef shown()", "ok: True", "book.show()"):
        assert phrase in kept
    for phrase in ("Press a key", "Still commands", "hidden", "secret", "References", "book.say"):
        assert phrase not in kept
    assert chapters[0].proof == "ok: True\n" and chapters[0].listings == 2 and chapters[1].proof is None


def test_chapters_and_sections_are_referred_to_by_the_reports_numbers(chapters):
    kept = chapters[0].text
    reference = "`#ref(<{}>, supplement: none)`{{=typst}}"
    assert f"As chapter {reference.format('chapter-02')} shows" in kept
    assert f"Chapters {reference.format('chapter-01')} and {reference.format('chapter-02')} agree" in kept
    assert f"see section {reference.format('section-1-2')} and section 9.9 of the workbook" in kept
    assert "1.2 dB" in kept and "$$x_{1.2}$$" in kept           # a number is not a reference
    assert chapters[0].sections == {"1.2": "Kept"}


def test_figures_have_captions_and_moving_ones_a_line(chapters):
    assert chapters[0].figures == {"01_plot": "A plot of $x$ [dB]."}
    assert chapters[0].gifs == {"01_moving.gif": "It moves."}
    assert "![A plot of $x$ [dB].](/figures/01_plot.pdf){#figure-01_plot}" in chapters[0].text


def test_a_figure_is_named_in_the_prose_before_it(tmp_path):
    path = write(tmp_path, "01_first", markdown("# 1. First\n\nTwo pictures of it:"),
                 code("", picture("01_a"), text("*A.*")), code("", picture("01_b"), text("*B.*")),
                 markdown("| a | b |\n|:--|:--|\n| 1 | 2 |"), code("", picture("01_c"), text("*C.*")))
    chapter, = read_chapters([path])
    assert "Two pictures of it (`#ref(<figure-01_a>)`{=typst}) (`#ref(<figure-01_b>)`{=typst}):" in chapter.text
    assert "#ref(<figure-01_c>)" not in chapter.text            # a table stands before it, not prose


def test_words_are_those_of_prose(tmp_path):
    path = write(tmp_path, "01_first", markdown("# 1. First\n\nOne two three."),
                 markdown("| four | five |\n|:--|:--|\n| 6 | seven |"),
                 markdown("$$\\mathrm{eight}$$\n\nNine 十一, ten."))
    chapter, = read_chapters([path])
    assert chapter.words == len("first chapter one two three nine 十 一 ten".split())


def test_references_are_merged_and_sorted(chapters):
    assert merged_references(chapters) == ["B. First (2000). *B*.", "Z. Last (2001). *A*."]


def test_a_notebook_that_is_missing_or_not_executed_is_named(tmp_path):
    with pytest.raises(Incomplete, match="03_x.ipynb is missing"):
        read_chapters([tmp_path / "03_x.ipynb"])
    path = write(tmp_path, "04_y", markdown("# 4. Y"), new_code_cell("1 + 1"))
    with pytest.raises(Incomplete, match="04_y.ipynb was not executed"):
        read_chapters([path])


FACTS = {"headline": "20.00 dB", "date": "2020-01-01"}


def make(chapters, run, details):
    from matplotlib.figure import Figure

    plot = Figure(figsize=(3, 1))
    plot.subplots().plot([0, 1])
    figures.save(plot, run / "figures", "01_plot")
    places = dict(pdf.build(run, chapters, details, FACTS, "# Appendix {#appendix}"))
    return places, (run / "report.pdf").read_bytes()


def words(run):
    return " ".join(page.extract_text() for page in PdfReader(run / "report.pdf").pages)


def test_the_pdf_holds_the_text_and_says_where(chapters, tmp_path):
    places, _ = make(chapters, tmp_path, Details("0856001", "Mei Lin", discussion="My **own** view."))
    shown = words(tmp_path)
    for phrase in ("Mei Lin", "0856001", "A computed sentence.", "Figure 1. A plot of", "Appendix", "B. First"):
        assert phrase in shown
    assert {"chapter-01", "section-1-2", "figure-01_plot", "appendix"} <= set(places)
    assert "$" not in shown and "\\" not in shown and "{=typst}" not in shown


def test_the_same_notebooks_give_the_same_bytes(chapters, tmp_path):
    details = Details("0856001", "Mei Lin")
    assert make(chapters, tmp_path / "a", details)[1] == make(chapters, tmp_path / "b", details)[1]


def test_a_figure_that_is_gone_is_named(chapters, tmp_path):
    with pytest.raises(Incomplete, match="01_plot.pdf is missing"):
        pdf.build(tmp_path, chapters, Details(), FACTS, "")


def test_a_formula_that_cannot_be_set_is_an_error_and_not_raw_latex(tmp_path):
    with pytest.raises(RuntimeError, match="nosuchcommand"):
        pdf._to_typst("$$\\nosuchcommand{x}{y}$$")


def test_a_chinese_name_is_printed(chapters, tmp_path):
    details = Details("0856001", "王小明", "zh")
    try:
        family, = pdf.find_fonts(details)
    except pdf.MissingFont:
        pytest.skip("no font with Chinese glyphs on this machine (Debian: fonts-noto-cjk)")
    make(chapters, tmp_path, details)
    assert "王小明" in words(tmp_path) and "學號" in words(tmp_path)
    fonts = {str(font) for page in PdfReader(tmp_path / "report.pdf").pages for font in page._get_fonts()[0]}
    assert any(family.split()[0] in font for font in fonts)


def test_without_a_font_for_a_name_the_command_says_which_to_install(monkeypatch):
    class NoFonts:
        def __init__(self, **_):
            pass

        def fonts(self):
            return []

    monkeypatch.setattr(typst, "Fonts", NoFonts)
    assert pdf.find_fonts(Details("0856001", "Mei Lin", discussion="Äußerst schön.")) == []
    with pytest.raises(pdf.MissingFont, match="name: no installed font has all of 小明王.*fonts-noto-cjk"):
        pdf.find_fonts(Details("0856001", "王小明"))


@pytest.mark.parametrize("content, problem", [
    ("student_id: [", "not readable as YAML"), ("- a", "the keys are student_id, name"),
    ("studentid: 5", "has studentid; the keys are"), ("language: fr", "language is 'fr'"),
    ("name: [a, b]", "every value must be a text")])
def test_bad_details_are_named(tmp_path, content, problem):
    path = tmp_path / "report.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"report.yaml.*{problem}"):
        Details.load(path)


def test_details_are_read(tmp_path):
    path = tmp_path / "report.yaml"
    path.write_text("student_id: 0712345\nname: 王小明\nlanguage: zh\ndiscussion: |\n  One.\n\n  Two.\n",
                    encoding="utf-8")
    details = Details.load(path)
    assert (details.student_id, details.name, details.language, details.discussion) == (
        "0712345", "王小明", "zh", "One.\n\nTwo.\n")
