"""Train the recorded runs again, which takes hours, and keep what is shown: `python recorded/make.py`.

`told` is a run of preset `standard`, `action_free` of the preset of that name, each reduced to what others need:
settings, history, the best weights (matrices in half precision), and their scores. `twin` is `action_free` without a
latent, by the loss that gives it up; of it only settings, history and scores are kept. An interrupted training resumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab5 import checkpoint
from lab5.config import preset
from lab5.workbook.run import PROJECT, Run, simulated_root

HERE = Path(__file__).resolve().parent
RUNS = {"told": preset("standard"), "action_free": preset("action_free"),
        "twin": preset("action_free", reconstruction="mse", beta=1.0, learned_prior=False)}
HUNDRED = {"best_of": 100, "limit": 64}         # samples of each of the first sequences
LONG = {"best_of": 100, "limit": 32, "n_future": 28}            # the papers' protocol, on fewer sequences
TOLERANCE = 0.01                                # dB that half precision may change


def main() -> None:
    for name, config in RUNS.items():
        trained = Run(config, PROJECT / "runs" / name, simulated_root(config))
        trained.train()
        record(trained, HERE / name)
        if name == "twin":
            (HERE / name / "best.safetensors").unlink()


def record(trained: Run, folder: Path) -> None:
    """Write what is kept of a finished run. Raises ValueError where half precision changes its score."""
    shutil.rmtree(folder, ignore_errors=True)
    model, facts = checkpoint.load_model(trained.folder / "best.safetensors")
    for parameter in model.parameters():
        if parameter.ndim > 1:                  # norms and biases are small, and cost 0.01 dB
            parameter.data = parameter.data.half()
    checkpoint.save(folder / "best.safetensors", model, **facts)
    for name in ("config.json", "data.json", "history.jsonl"):
        shutil.copy(trained.folder / name, folder)
    single = trained.evaluation(protocols=("prior_sample",)).average("prior_sample")[0]
    half = score(Run(trained.config, folder, trained.data))
    if abs(single - half) > TOLERANCE:
        raise ValueError(f"{folder}: half precision scores {half:.3f} dB, single {single:.3f} dB")
    print(f"{folder.name}: {half:.3f} dB in half precision, {single:.3f} dB in single")


def score(recorded: Run) -> float:
    """Keep the scores of all test sequences, and those of a hundred samples each of the first; the graded average."""
    recorded.evaluation(**HUNDRED)
    if recorded.config.learned_prior:
        recorded.evaluation(protocols=("prior_sample", "mean_of_n", "best_of_n", "repeat_last"), **LONG)
    return recorded.evaluation().average("prior_sample")[0]


if __name__ == "__main__":
    main()
