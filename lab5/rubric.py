"""The assignment's list of marks, held against the report: where each point is answered, or what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lab5.document import Chapter, Details, section_label
from lab5.workbook import Workbook

DISCUSSION_WORDS = 500                          # a discussion below this is too short for its 15 marks
OWN_WORDS = 80                                  # of the student's own discussion


@dataclass(frozen=True)
class Item:
    """One point of the assignment. `place` is a label in the report, `missing` says what a grader would miss."""

    part: str
    marks: int                                  # 0 for what belongs to the point above
    place: str = ""
    missing: str = ""
    note: str = ""                              # what else there is to say; never a reason to fail

    @property
    def ok(self) -> bool:
        return not self.missing


def check(book: Workbook, chapters: list[Chapter], details: Details) -> list[Item]:
    """Every point of the assignment, in its order."""
    by_number = {chapter.number: chapter for chapter in chapters}
    return [*_report_parts(by_number), *_results(book, by_number, details), *_extras(by_number),
            *_demo(book), _title_page(details)]


def _point(part: str, marks: int, chapter: Chapter | None, section: str = "",
           demand: Callable[[Chapter], str] = lambda _: "", note: str = "") -> Item:
    """A point that a chapter, or a section of it, answers; `demand` says what the chapter still lacks."""
    if chapter is None:
        return Item(part, marks, missing="its chapter is not in the report")
    if section and section not in chapter.sections:
        return Item(part, marks, missing=f"section {section} of notebook {chapter.number} is not in the report")
    return Item(part, marks, section_label(section) if section else chapter.label, demand(chapter), note)


def _at_least(words: int) -> Callable[[Chapter], str]:
    return lambda chapter: "" if chapter.words >= words else f"{chapter.words} words; expected {words} or more"


def _report_parts(chapters: dict[str, Chapter]) -> list[Item]:
    def proof(chapter: Chapter) -> str:
        if chapter.proof is None:
            return "the experiment that poisons the future frames is not in notebook 03"
        if "False" in chapter.proof or "True" not in chapter.proof:
            return f"the experiment did not succeed: {chapter.proof.strip() or 'it printed nothing'}"
        return ""

    derivation, model = chapters.get("01"), chapters.get("03")
    return [
        _point("Introduction", 5, chapters.get("00"), demand=_at_least(150)),
        _point("Derivation of the CVAE", 10, derivation, "1.3", lambda chapter: (
            "" if chapter.formulas >= 8 else f"{chapter.formulas} displayed formulas; a derivation needs more")),
        _point("Implementation: encoder and decoder", 15, model, "3.2", lambda chapter: (
            "" if chapter.listings else "no listing of the code")),
        _point("Implementation: reparameterization", 0, model, "3.6"),
        _point("Implementation: data loader", 0, chapters.get("02"), demand=_at_least(150)),
        _point("Implementation: training", 0, chapters.get("04"), demand=_at_least(150)),
        _point("Teacher forcing: idea, benefits, drawbacks", 0, model, "3.9"),
        _point("Proof of ratio 0 in testing", 0, model, "3.11", proof)]


def _results(book: Workbook, chapters: dict[str, Chapter], details: Details) -> list[Item]:
    def shown(part: str, name: str) -> Item:
        if any(name in chapter.figures for chapter in chapters.values()):
            return Item(part, 5, f"figure-{name}")
        return Item(part, 5, missing=f"figure {name} is not in the report")

    own = len(details.discussion.split()) + sum("\u4e00" <= c <= "\u9fff" for c in details.discussion) // 2
    yours = "" if own >= OWN_WORDS else (f"your own words are still {'few' if own else 'missing'}: write them under "
                                         "`discussion:` in report.yaml")
    return [
        _moving(book, chapters), shown("The prediction at each time step", "06_strip"),
        shown("Curves of losses, PSNR and ratios", "05_training_curves"),
        _point("Discussion by setting", 15, chapters.get("08"), demand=_at_least(DISCUSSION_WORDS), note=yours)]


def _moving(book: Workbook, chapters: dict[str, Chapter]) -> Item:
    part = "A GIF of one test sequence"
    for chapter in chapters.values():
        for name in chapter.gifs:
            path = book.run / "figures" / name
            if _frames(path) < book.config.length:
                return Item(part, 5, missing=f"{path} is missing, torn, or of fewer than {book.config.length} frames")
            return Item(part, 5, chapter.label, note=f"figures/{name}")
    return Item(part, 5, missing="no chapter shows one (notebook 07 makes it)")


def _frames(path: Path) -> int:
    """Frames of a GIF; none where it is missing or damaged."""
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, EOFError):    # Pillow's for a damaged file
        return 0


def _extras(chapters: dict[str, Chapter]) -> list[Item]:
    model = chapters.get("03")
    return [_point("Extra: learned prior", 10, model, "3.13"),
            _point("Extra: hierarchical structure, aligned features", 10, model, "3.16"),
            _point("Extra: conditional convolution", 10, model, "3.14")]


def _demo(book: Workbook) -> list[Item]:
    part = "Demo: average PSNR on the test set"
    if not (book.run / "best.safetensors").exists():
        return [Item(part, 20, missing=f"{book.run} holds no weights; `lab5 train` or notebook 04 makes them")]
    scores, count = book.evaluation(), len(book.pack("test"))
    mean, half = scores.average("sampled")
    short = "" if len(scores.names) == count else f"measured on {len(scores.names)} of {count} test sequences"
    return [Item(part, 20, "chapter-09", short, f"{mean:.2f} ± {half:.2f} dB on {count} sequences of {book.data_name}: "
                                                f"{20 * scores.grade:.0f} of 20 marks"),
            Item("Demo: questions", 20, note="asked in person; notebooks 01 to 08 close with what to say")]


def _title_page(details: Details) -> Item:
    empty = [name for name, value in (("student_id", details.student_id), ("name", details.name)) if not value]
    return Item("Title page", 0, note=f"{' and '.join(empty)} still empty: give --id and --name, or write report.yaml"
                if empty else f"{details.student_id} {details.name}")


def as_text(items: list[Item], pages: dict[str, int]) -> str:
    """The list for a terminal, a line a point, with page numbers."""
    width = max(len(item.part) for item in items)
    lines = []
    for item in items:
        place = f"page {pages[item.place]}" if item.place in pages else ""
        state = "ok" if item.ok else "MISSING"
        lines.append(f"{state:7}  {item.marks or '':>2}  {item.part:{width}}  "
                     + "; ".join(part for part in (place, item.missing, item.note) if part))
    return "\n".join(lines)


def as_markdown(items: list[Item], labels: set[str]) -> str:
    """The list for the report's last page; the PDF fills in the page numbers."""
    rows = []
    for item in items:
        page = f"`#ref(<{item.place}>, form: \"page\", supplement: none)`{{=typst}}" if item.place in labels else ""
        rows.append(f"| {item.part} | {item.marks or ''} | {'yes' if item.ok else '**missing**'} | {page} | "
                    f"{'; '.join(part for part in (item.missing, item.note) if part)} |")
    return "\n".join(["| Point of the assignment | Marks | Answered | Page | |",
                      "|:-----------------------|:----|:-----|:---|:-----------------|", *rows])
