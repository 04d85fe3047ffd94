"""Make the recorded runs anew: `python recorded/make.py` trains both, which takes hours, and keeps what is shown.

A folder here is a run folder of which only what others need is left: settings, history, the best weights in half
precision, and the scores of just these on the test split. Killed, the same command goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab5 import checkpoint
from lab5.config import preset
from lab5.workbook import PROJECT, Workbook, simulated_root

HERE = Path(__file__).resolve().parent
RUNS = {"standard": {}, "plain": {"conditional_convolution": False}}
TOLERANCE = 0.01                                # dB that half precision may change


def main() -> None:
    for name, changes in RUNS.items():
        config = preset("standard", **changes)
        trained = Workbook(config, PROJECT / "runs" / name, simulated_root(config))
        trained.train()
        record(trained, HERE / name)


def record(trained: Workbook, folder: Path) -> None:
    """Write what is kept of a finished run. Raises ValueError where half precision changes its score."""
    shutil.rmtree(folder, ignore_errors=True)
    model, facts = checkpoint.load_model(trained.run / "best.safetensors")
    checkpoint.save(folder / "best.safetensors", model.half(), **facts)
    for name in ("config.json", "data.json", "history.jsonl"):
        shutil.copy(trained.run / name, folder)
    whole = trained.evaluation(protocols=("sampled",)).average("sampled")[0]
    half = Workbook(trained.config, folder, trained.data).evaluation().average("sampled")[0]
    if abs(whole - half) > TOLERANCE:
        raise ValueError(f"{folder}: half precision scores {half:.3f} dB, single {whole:.3f} dB")
    print(f"{folder.name}: {half:.3f} dB in half precision, {whole:.3f} dB in single")


if __name__ == "__main__":
    main()
