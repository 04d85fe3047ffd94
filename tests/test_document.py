"""From Markdown to the report: what a student may write and how it comes out, what is refused and how it is named."""

import re
from functools import partial

import nbformat
import pytest
import typst
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from pypdf import PdfReader

from lab5.handin import paper, pdf
from lab5.handin.words import ANSWER, Details, Words, read_words, with_answers

MEI_LIN = Details(student_id="0856001", name="Mei Lin")
PLAIN = """# First {#sec-first}

See @fig-plot, @eq-one and @sec-first.

$$ x = y $$ {#eq-one}

![A plot of $x$ [dB].](/figures/01_plot.pdf){#fig-plot}

`//own-01`{=typst}

# Second {#sec-second}

The end.
"""


def build(run, text=PLAIN, details=MEI_LIN, words=()):
    """(the page of every label, the text of the PDF)."""
    plot = Figure(figsize=(3, 1))
    plot.subplots().plot([0, 1])
    (run / "figures").mkdir(parents=True)
    plot.savefig(run / "figures" / "01_plot.pdf", metadata={"CreationDate": None})
    pages = pdf.build(run, text, details, list(words))
    shown = " ".join(page.extract_text() for page in PdfReader(run / "report.pdf").pages)
    return pages, shown.replace("\xa0", " ")


def answered(run, text, question=""):
    """The text of a report with this answer in it."""
    return build(run, words=[Words("01_first.ipynb, cell 3", "01", text, question)])[1]


def test_the_pdf_holds_the_text_and_says_where_everything_is_and_equal_input_gives_equal_bytes(tmp_path):
    pages, shown = build(tmp_path / "a")
    assert pages == {"sec-first": 1, "fig-plot": 1, "sec-second": 1}
    for phrase in ("Mei Lin", "0856001", "Figure 1. A plot of", "See Figure 1, (1) and Section 1.", "The end"):
        assert phrase in shown
    assert not re.search(r"[$\\{}@]|own-|//", shown)
    build(tmp_path / "b")
    assert (tmp_path / "a" / "report.pdf").read_bytes() == (tmp_path / "b" / "report.pdf").read_bytes()


@pytest.mark.parametrize("text, problem", [("$$\\nosuchcommand{x}$$", "TeX math .*nosuchcommand"),
                                           ("![Lost.](/figures/02_lost.pdf)", "02_lost.pdf.*--only 02` makes it again"),
                                           ("See @fig-lost.", "label.*fig-lost.*does not exist")])
def test_what_the_report_needs_and_is_not_there_is_named(tmp_path, text, problem):
    with pytest.raises((ValueError, RuntimeError), match=problem):
        build(tmp_path, text)


def test_values_are_shown_as_they_are(tmp_path):
    values = r"""a|b *c* _d_ `e` <f> [g](h) $i$ #j @fig-k \l {m} ~n~ ^o^ "p" 'q' -- &amp; !["""
    pages, shown = build(tmp_path, f"Data: {paper.escape(values)}.\n\n| a | b |\n|---|---|\n"
                                   f"| {paper.escape('a|b')} | the second cell |\n")
    assert re.sub(r"\s", "", values) in re.sub(r"\s", "", shown) and "the second cell" in shown


FORMULAS = r"""A\cap B|\bigcap_i A_i|A\cup B|A\sqcap B|x\odot y|x\otimes y|x\ominus y|\bigotimes|\frac{a}{b}|\dfrac12
\binom{n}{k}|\sqrt[3]{x}|\sum_{i=1}^n i|\prod_i x_i|\int_0^1 x\,\mathrm dx|\oint|\lim_{x\to0}|\arg\max_x
\operatorname{KL}(q\,\Vert\,p)|\operatorname*{arg\,min}_x|\mathbb{R}|\mathbb E|\mathcal{N}(\mu,\sigma^2)|\mathbf{x}
\mathsf{A}|\mathfrak{g}|\mathscr{L}|\boldsymbol{\mu}|\bm{x}|\text{if } x>0|\textbf{a}|\texttt{a\_b}|\hat{x}
\widetilde{xy}|\bar{x}|\vec{x}|\ddot{x}|\overline{ab}|\underbrace{a+b}_{n}|\overset{a}{=}|\stackrel{a}{=}
\left(\frac12\right)|\left\{a\right\}|\left.x\right|_0|\bigl(a\bigr)|\Big[a\Big]|\lVert x\rVert|\langle x\rangle
\lceil x\rceil|\lfloor x\rfloor|\begin{pmatrix}a&b\\c&d\end{pmatrix}|\begin{vmatrix}a&b\\c&d\end{vmatrix}
\begin{Vmatrix}a\end{Vmatrix}|\begin{cases}a&b\\c&d\end{cases}|\substack{a\\b}|\begin{aligned}a&=b\\c&=d\end{aligned}
\begin{align*}a&=b\end{align*}|\begin{array}{cc}a&b\end{array}|a\quad b|\boxed{x}|\cancel{x}|\neq|\leq|\geq|\ll
\approx|\sim|\simeq|\cong|\equiv|\propto|\pm|\times|\div|\cdot|\cdots|\ldots|\vdots|\infty|\partial|\nabla|\forall
\exists|\nexists|\in|\notin|\subseteq|\setminus|\emptyset|\to|\Rightarrow|\Leftrightarrow|\mapsto|\implies|\iff|\land
\lor|\neg|\oplus|\star|\ast|\circ|\bullet|\dagger|f'(x)|\ell|\hbar|\Re|\aleph|\angle|\perp|\parallel|p(x\mid z)
\therefore
\alpha\beta\gamma\delta\epsilon\varepsilon\zeta\eta\theta\vartheta\iota\kappa\lambda\mu\nu\xi\pi\rho\varrho\sigma\tau\phi\varphi
\chi\psi\omega|\Gamma\Delta\Theta\Lambda\Xi\Pi\Sigma\Upsilon\Phi\Psi\Omega|\log x|\Pr(x)|\pmod{n}|\xrightarrow{d}
\phantom{x}|\coloneqq|\lesssim|x_{\text{max}}|10^{-3}|\square|\triangleq|\models|\prec|\bowtie|\circledast
\leftrightarrow|\nearrow"""


def test_the_usual_formulas_come_out(tmp_path):
    formulas = [formula for formula in re.split(r"\n|(?<!\\right)\|(?!_0)", FORMULAS) if formula]
    shown = answered(tmp_path, "\n\n".join(f"${formula}$" for formula in formulas))
    assert len(formulas) > 130 and "∩" in shown and "⊙" in shown and not re.search(r"\\[a-z]", shown)


def test_what_looks_like_markup_and_is_not_is_shown(tmp_path):
    shown = answered(tmp_path, "The ratio <tf_min> is a vector<float>, x<y and y>z.\n\n<b>\n\n---\n\nTwo <!-- a note "
                               "--> parts\n\n# My heading\n\n@fig-plot #x \\`a`", "*Why* `x<y>`?")
    for phrase in ("<tf_min> is a vector<float>, x<y and y>z", "<b>", "Two parts", "My heading", "@fig-plot #x",
                   "Why x<y>?", "The end"):
        assert phrase in shown, phrase
    assert "a note" not in shown and "2 Second" in shown                            # a heading is no section


@pytest.mark.parametrize("part, problem", [
    (r"$\argmin_x f$", "argmin_x"), (r"$\textcolor{red}{x}$", "textcolor"), (r"$\frac{a}$", "frac"),
    ("```python\nx = 1\n\ny = 2", "has no end"), ("~~~", "has no end"), ("<!-- a note\n\nmore", "has no end"),
    ("![a](lost.png)", "fetch resource lost.png"), ("\U0010fff0", "no font here has .*10fff0.*fonts-noto-cjk")])
def test_what_cannot_be_printed_is_named_with_its_line_and_swallows_nothing(tmp_path, part, problem):
    with pytest.raises(ValueError, match=f"(?s)01_first.ipynb, cell 3, in the paragraph of line 7: .*{problem}"):
        answered(tmp_path, f"One.\n\n```\na = 1\n```\n\n{part}\n\nThe last words.")


@pytest.mark.parametrize("written, line", [
    ("discussion: |\n  One.\n\n  $\\lost{}$\n", 5), ("discussion: $\\lost$\n", 2),
    ("name: 'A discussion: of it'\ndiscussion: >-\n  $\\lost$\n", 4), ("discussion:\n  $\\lost$\n", 3)])
def test_an_error_in_the_discussion_names_its_line_in_the_file(tmp_path, written, line):
    path = tmp_path / "report.yaml"
    path.write_text(f"student_id: 0712345\n{written}", encoding="utf-8")
    with pytest.raises(ValueError, match=f"report.yaml, in the paragraph of line {line}: .*lost"):
        pdf.try_words(details := Details.load(path), read_words(details, []), "")


def test_a_picture_is_found_beside_report_yaml(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "PROJECT", tmp_path)
    for name, width in (("my plot.png", 30), ("large.jpg", 3000)):
        Image.new("RGB", (width, 20), "red").save(tmp_path / name)
    shown = answered(tmp_path / "run", "![Small one](my plot.png)\n\n![](large.jpg) ![Too](my%20plot.png)")
    assert "Small one" in shown and "my plot" not in shown
    images = [image for page in PdfReader(tmp_path / "run" / "report.pdf").pages for image in page.images]
    assert {image.image.size for image in images} == {(30, 20), (3000, 20)}


def test_the_pandoc_of_the_wheel_is_used_whatever_is_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "pandoc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "pandoc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert pdf.to_typst("*a*", pdf.STUDENT) == "#emph[a]"


def test_every_character_is_tested_against_the_fonts_that_are_there(monkeypatch):
    common = "Zoë Müller – ‘naïve’ β ∂ ½"
    pdf.try_words(Details(name=common), [Words("01_first.ipynb, cell 3", "01", f"{common} `{common}` $∂$")], common)
    monkeypatch.setattr(typst, "Compiler", partial(typst.Compiler, ignore_system_fonts=True))
    for details, text, folder, lost in ((Details(name="ก"), "", "", "ก"), (Details(language="zh"), "", "", "深以"),
                                        (Details(), "", "資料", "資料"), (Details(), "a `王` b", "", "王")):
        with pytest.raises(ValueError, match=f"no font here has [{lost}], "):
            pdf.try_words(details, [Words("01_first.ipynb, cell 3", "01", text)], folder)


def test_a_chinese_name_is_printed(tmp_path):
    try:
        shown = build(tmp_path, details=Details(student_id="0856001", name="王小明", language="zh"))[1]
    except ValueError:
        pytest.skip("no font with Chinese glyphs on this machine (Debian: fonts-noto-cjk)")
    assert "王小明" in shown and "學號" in shown


def test_answers_are_the_tagged_cells_without_the_words_that_were_there(tmp_path):
    def cell(source, *tags):
        return new_markdown_cell(source, metadata={"tags": list(tags)})

    nbformat.write(new_notebook(cells=[
        cell("### Your turn: why?\n\nThink of it.", "your-turn"), cell("*Your answer:*", "answer"), cell("Not this."),
        new_code_cell("1"), cell("**What?**", "your-turn"), cell("*Your answer:* Because\n\nof it.", "answer")]),
        tmp_path / "03_x.ipynb")
    assert read_words(Details(discussion="Mine."), [tmp_path / "03_x.ipynb"]) == [
        Words("report.yaml", "discussion", "Mine."), Words("03_x.ipynb, cell 2", "03", "", "Your turn: why?"),
        Words("03_x.ipynb, cell 6", "03", " Because\n\nof it.", "**What?**")]


def test_an_answer_goes_into_its_own_cell_of_an_executed_copy(tmp_path, monkeypatch):
    """Also where the student has deleted another one since."""
    old, new = ([new_markdown_cell(text, id=name, metadata={"tags": ["answer"]}) for name, text in answers.items()]
                for answers in ({"a": "Old a.", "b": "Old b."}, {"b": "New b."}))
    for folder, cells in ((tmp_path, old), (tmp_path / "notebooks", new)):
        folder.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=cells), folder / "03_x.ipynb")
    monkeypatch.setattr("lab5.handin.words.PROJECT", tmp_path)
    sent = nbformat.reads(with_answers(tmp_path / "03_x.ipynb"), 4)
    assert [cell.source for cell in sent.cells] == [ANSWER, "New b."]


def test_a_notebook_that_is_missing_or_torn_is_named(tmp_path):
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    for name in ("missing.ipynb", "torn.ipynb"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read .*`lab5 report` executes"):
            read_words(Details(), [tmp_path / name])


@pytest.mark.parametrize("content, problem", [("name: [", "expected the node"), ("- a", "valid dictionary"),
                                              ("id: 5", "id\n"), ("language: fr", "'en' or 'zh'"),
                                              ("name: [a, b]", "valid string"), ("name: \xe9", "utf-8")])
def test_bad_details_are_named_and_good_ones_are_read(tmp_path, content, problem):
    path = tmp_path / "report.yaml"
    assert Details.load(path) == Details()
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=f"(?s)report.yaml.*{problem}.*The keys are student_id, name, language"):
        Details.load(path)
    path.write_text("student_id: 0712345\nname: Zoë\n", encoding="utf-8")
    assert Details.load(path) == Details(student_id="0712345", name="Zoë")


def test_every_figure_table_and_listing_of_the_paper_is_named_in_its_text_once_shown():
    text = paper.PAPER.read_text(encoding="utf-8")
    labels = re.findall(r"(?:\{#|<)((?:fig|tab|lst)-[\w-]+)[ }>]", text)
    figures = re.findall(r"/figures/(\w+)\.pdf", text)
    assert len(labels) == len(set(labels)) > 15 and len(figures) == len(set(figures))
    assert set(labels) == set(re.findall(r"@((?:fig|tab|lst)-[\w-]+)", text))
    assert not re.search(r"[Nn]otebook|[Ss]ection \d", text)


def test_listings_are_short_enough_for_the_page():
    """But for a few lines, which go on under themselves; types and docstrings are left out, and nothing else."""
    named = re.findall(r"\{\{source (.+?):(.+?)\}\}", paper.PAPER.read_text(encoding="utf-8"))
    lines = [line for name in named for line in paper._listing(*name).splitlines()]
    assert len(named) == 8 and sum(len(line) > 95 for line in lines) <= 4
    assert "def gaussian_kl(mu, logvar, prior_mu=None, prior_logvar=None):" in lines
    assert not [line for line in lines if "Tensor" in line or '"""' in line]


def test_every_reference_of_the_paper_is_cited():
    text, _, references = paper.PAPER.read_text(encoding="utf-8").partition("# References")
    entries = re.findall(r"^([A-Z][\w' ]+?), .*?\((\d{4})\)\.", references, re.M)
    assert len(entries) > 15
    for author, year in entries:
        assert re.search(rf"{author}[^.()]*\(?[^.()]*{year}", text.replace("et al.", "et al")), f"{author} {year}"
