"""The assignment's list of marks, compared with the report: where each point is answered, or what is missing."""

from textwrap import shorten

from lab5.evaluation import Evaluation
from lab5.handin.words import Details, Words
from lab5.metrics import grade
from lab5.workbook.run import Run

POINTS = (                                      # a point, its marks (0: in those above), its label in the report
    ("Introduction", 5, "sec-introduction"),
    ("Derivation of the CVAE", 10, "sec-derivation"),
    ("Implementation: encoder and decoder", 15, "sec-encoder"),
    ("Implementation: reparameterization", 0, "sec-reparameterization"),
    ("Implementation: data loader", 0, "sec-loader"),
    ("Implementation: training", 0, "sec-training"),
    ("Teacher forcing: idea, benefits, drawbacks", 0, "sec-forcing"),
    ("Proof of ratio 0 in testing", 0, "lst-proof"),
    ("A GIF of one test sequence", 5, "sec-motion"),
    ("The prediction at each time step", 5, "fig-strip"),
    ("Curves of losses, PSNR and ratios", 5, "fig-curves"),
    ("Discussion by setting", 15, "sec-discussion"),
    ("Extra: learned prior", 10, "sec-prior"),
    ("Extra: hierarchical structure, aligned features", 10, "sec-hierarchy"),
    ("Extra: conditional convolution", 10, "sec-convolution"),
    ("Demo: average PSNR on the test set", 20, "tab-scores"))
PROOF = "future frames poisoned: bit-identical: True"           # what the experiment in notebook 03 prints


def check(lab: Run, text: str, details: Details, words: list[Words], pages: dict[str, int]) -> tuple[str, bool]:
    """Every point with its page or what a grader would miss, as lines; and whether all are answered.

    `text` is the report's Markdown, `pages` the page of each of its labels. Raises NotYet where nothing is trained.
    """
    missing = {label: f"{label} is not in the report" for _, _, label in POINTS if label not in pages}
    if PROOF not in text:
        missing["lst-proof"] = f"notebook 03 did not print {PROOF!r}"
    if not any((lab.folder / "figures").glob("*.gif")):
        missing["sec-motion"] = f"no GIF is in {lab.folder / 'figures'}; notebook 07 exports some"
    lines = [f"{'MISSING' if label in missing else 'ok':7}  {marks or '':>2}  {point:47}  "
             f"{missing.get(label) or f'page {pages[label]}'}" for point, marks, label in POINTS]
    lines += ["", summary(lab, lab.evaluation()),
              "20 more marks are for the demo's questions; notebooks 01 to 08 close with what to say", "",
              "What you wrote yourself, in words:",
              *(f"{len(part.text.split()) or 'EMPTY':>7}  {part.origin}: {shorten(part.question or part.place, 80)}"
                for part in words)]
    if not (details.student_id and details.name):
        lines.append("no student id or name under the title: write student_id and name into report.yaml")
    return "\n".join(lines), not missing


def summary(lab: Run, scores: Evaluation) -> str:
    """Scores as a table, the marks that they earn, and where everything is."""
    mean, half = scores.average("prior_sample")
    return (f"{scores.table()}\n\n{mean:.2f} ± {half:.2f} dB average PSNR over {len(scores.names)} test sequences of "
            f"{lab.data_name}: {20 * grade(mean):.0f} of the 20 marks for the prediction\nall files: {lab.folder}")
