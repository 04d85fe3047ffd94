"""The assignment's list of marks, compared with the report: where each point is answered, or what is missing."""

from lab5.evaluation import Evaluation
from lab5.handin.pdf import Details
from lab5.workbook.run import Run

POINTS = (                                      # a point, its marks (0: in those above), its label in the report
    ("Introduction", 5, "section-0"),
    ("Derivation of the CVAE", 10, "section-1.3"),
    ("Implementation: encoder and decoder", 15, "section-3.2"),
    ("Implementation: reparameterization", 0, "section-3.6"),
    ("Implementation: data loader", 0, "section-2"),
    ("Implementation: training", 0, "section-4"),
    ("Teacher forcing: idea, benefits, drawbacks", 0, "section-3.9"),
    ("Proof of ratio 0 in testing", 0, "section-3.11"),
    ("A GIF of one test sequence", 5, "section-7"),
    ("The prediction at each time step", 5, "figure-06_strip"),
    ("Curves of losses, PSNR and ratios", 5, "figure-05_training_curves"),
    ("Discussion by setting", 15, "section-8"),
    ("Extra: learned prior", 10, "section-3.13"),
    ("Extra: hierarchical structure, aligned features", 10, "section-3.16"),
    ("Extra: conditional convolution", 10, "section-3.14"),
    ("Demo: average PSNR on the test set", 20, "section-9"))
PROOF = "future frames poisoned: bit-identical: True"           # what the experiment of section 3.11 prints


def check(lab: Run, text: str, details: Details, pages: dict[str, int]) -> tuple[str, bool]:
    """Every point with its page or what a grader would miss, as lines; and whether all are answered.

    `text` is the report's Markdown, `pages` the page of each of its labels. Raises NotYet where nothing is trained.
    """
    missing = {label: f"{label} is not in the report" for _, _, label in POINTS if label not in pages}
    if PROOF not in text:
        missing["section-3.11"] = f"notebook 03 did not print {PROOF!r}"
    if not any((lab.folder / "figures").glob("*.gif")):
        missing["section-7"] = f"no GIF is in {lab.folder / 'figures'}; notebook 07 exports some"
    lines = [f"{'MISSING' if label in missing else 'ok':7}  {marks or '':>2}  {point:47}  "
             f"{missing.get(label) or f'page {pages[label]}'}" for point, marks, label in POINTS]
    lines += ["", describe(lab, lab.evaluation()),
              "20 more marks are for the demo's questions; notebooks 01 to 08 close with what to say"]
    if not details.discussion.strip():
        lines.append("your own discussion is missing: write it under `discussion:` in report.yaml")
    if not (details.student_id and details.name):
        lines.append("no student id or name on the title page: write student_id and name into report.yaml")
    return "\n".join(lines), not missing


def describe(lab: Run, scores: Evaluation) -> str:
    """The graded score, and on what."""
    mean, half = scores.average("prior_sample")
    return (f"{mean:.2f} ± {half:.2f} dB average PSNR over {len(scores.names)} test sequences of {lab.data_name}, "
            f"a grade of {scores.grade:.0%}")
