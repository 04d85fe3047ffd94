"""Train the recorded run again, which takes hours, and keep what is shown: `python recorded/make.py`.

`standard` is a run folder reduced to what others need: settings, history, the best weights in half precision, and
the scores of these weights on the test split. An interrupted training resumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab5 import checkpoint
from lab5.config import preset
from lab5.workbook.run import PROJECT, Run, simulated_root

HERE = Path(__file__).resolve().parent
TOLERANCE = 0.01                                # dB that half precision may change


def main() -> None:
    config = preset("standard")
    trained = Run(config, PROJECT / "runs" / "standard", simulated_root(config))
    trained.train()
    record(trained, HERE / "standard")


def record(trained: Run, folder: Path) -> None:
    """Write what is kept of a finished run. Raises ValueError where half precision changes its score."""
    shutil.rmtree(folder, ignore_errors=True)
    model, facts = checkpoint.load_model(trained.folder / "best.safetensors")
    checkpoint.save(folder / "best.safetensors", model.half(), **facts)
    for name in ("config.json", "data.json", "history.jsonl"):
        shutil.copy(trained.folder / name, folder)
    single = trained.evaluation(protocols=("prior_sample",)).average("prior_sample")[0]
    half = Run(trained.config, folder, trained.data).evaluation().average("prior_sample")[0]
    if abs(single - half) > TOLERANCE:
        raise ValueError(f"{folder}: half precision scores {half:.3f} dB, single {single:.3f} dB")
    print(f"{folder.name}: {half:.3f} dB in half precision, {single:.3f} dB in single")


if __name__ == "__main__":
    main()
