"""The assignment's list of marks, compared with the report: where each point is answered, or what is missing."""

from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

from lab5.evaluation import Evaluation
from lab5.handin.document import Chapter, Details, count_words
from lab5.workbook.run import Run
from lab5.workbook.show import table


@dataclass(frozen=True)
class Item:
    """One point of the assignment."""

    part: str
    marks: int                                  # 0 for what belongs to the point above
    ok: bool = True
    place: str = ""                             # a label in the report
    remark: str = ""                            # what a grader would miss, or what else there is to say


def check(lab: Run, chapters: list[Chapter], details: Details) -> list[Item]:
    """Every point of the assignment, in its order. Raises NotYet where nothing is trained."""
    def point(part: str, marks: int, label: str, note: str = "", **least: int) -> Item:
        chapter = next((chapter for chapter in chapters if label in chapter.labels), None)
        if chapter is None:
            return Item(part, marks, False, remark=f"{label} is not in the report")
        found = _counts(lab, chapter) | {"scored_sequences": len(scores.names)}
        lacks = [f"{found[what]} {what}, expected {least[what]} or more" for what in least if found[what] < least[what]]
        return Item(part, marks, not lacks, label, "; ".join(lacks) or note)

    scores, few = lab.evaluation(), count_words(details.discussion) < 80
    return [
        point("Introduction", 5, "section-0", words=150),
        point("Derivation of the CVAE", 10, "section-1-3", formulas=8),
        point("Implementation: encoder and decoder", 15, "section-3-2", listings=1),
        point("Implementation: reparameterization", 0, "section-3-6"),
        point("Implementation: data loader", 0, "section-2", words=150),
        point("Implementation: training", 0, "section-4", words=150),
        point("Teacher forcing: idea, benefits, drawbacks", 0, "section-3-9"),
        point("Proof of ratio 0 in testing", 0, "section-3-11", successful_proofs=1),
        point("A GIF of one test sequence", 5, "section-7", gif_frames=lab.config.length),
        point("The prediction at each time step", 5, "figure-06_strip"),
        point("Curves of losses, PSNR and ratios", 5, "figure-05_training_curves"),
        point("Discussion by setting", 15, "section-8",
              "your own discussion is missing or short: write it under `discussion:` in report.yaml" * few, words=500),
        point("Extra: learned prior", 10, "section-3-13"),
        point("Extra: hierarchical structure, aligned features", 10, "section-3-16"),
        point("Extra: conditional convolution", 10, "section-3-14"),
        point("Demo: average PSNR on the test set", 20, "section-9", describe(lab, scores),
              scored_sequences=len(lab.pack("test"))),
        Item("Demo: questions", 20, remark="asked in person; notebooks 01 to 08 close with what to say"),
        Item("Title page", 0, remark="no student id or name: give --id and --name, or write report.yaml"
             * ("" in (details.student_id, details.name)))]


def describe(lab: Run, scores: Evaluation) -> str:
    """The graded score, and on what."""
    mean, half = scores.average("prior_sample")
    return (f"{mean:.2f} ± {half:.2f} dB average PSNR over {len(scores.names)} test sequences of {lab.data_name}, "
            f"a grade of {scores.grade:.0%}")


def _counts(lab: Run, chapter: Chapter) -> dict[str, int]:
    """How much of each kind a chapter has; a GIF that is missing or damaged has no frames."""
    frames = 0
    for name in chapter.gifs[:1]:
        with suppress(OSError, SyntaxError, EOFError), Image.open(lab.folder / "figures" / name) as image:
            frames = getattr(image, "n_frames", 1)
    return {"words": count_words(chapter.text), "formulas": chapter.text.count("$$") // 2, "listings": chapter.listings,
            "successful_proofs": int("True" in chapter.proof and "False" not in chapter.proof), "gif_frames": frames}


def as_text(items: list[Item], pages: dict[str, int]) -> str:
    """The list for a terminal, one line per point, with page numbers."""
    width = max(len(item.part) for item in items)
    places = [f"page {pages[item.place]}" if item.place in pages else "" for item in items]
    return "\n".join(f"{'ok' if item.ok else 'MISSING':7}  {item.marks or '':>2}  {item.part:{width}}  {place:8}  "
                     f"{item.remark}".rstrip() for item, place in zip(items, places, strict=True))


def as_markdown(items: list[Item]) -> str:
    """The list for the report's last page; the PDF fills in the page numbers."""
    page = '`#ref(<{}>, form: "page", supplement: none)`{{=typst}}'.format
    return table("Point of the assignment", "Marks", "Answered", "Page", "Remark", rows=[
        (item.part, item.marks or "", "yes" if item.ok else "**missing**", page(item.place) if item.place else "",
         item.remark) for item in items])
