"""The handout's first check: overfit a few sequences with KL weight 0, and see that all parts take part."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import trange

from lab5.config import Config
from lab5.data import Pack, Windows, to_video
from lab5.evaluation import infer, predict, prior_noise
from lab5.metrics import psnr
from lab5.training import Trainer
from lab5.workbook.run import as_pictures

SEQUENCES = 8
STEPS = 100                                     # with teacher forcing: half a minute of two cores for `quick`


class Overfit(NamedTuple):
    """What the overfitted model predicts for its sequences, with z from the posterior and from the prior."""

    videos: dict[str, np.ndarray]               # truth, posterior, prior of the first sequence: uint8 (T, H, W, C)
    scores: dict[str, float]                    # posterior, prior, repeat_last: average PSNR in dB
    idle: list[str]                             # parts of the model that get no gradient


def overfit(config: Config, pack: Pack, steps: int = STEPS, progress: bool = True) -> Overfit:
    """Train a new model on the first window of the first sequences, teacher-forced, with KL weight 0."""
    batch = Windows(pack, config.length).__getitems__(range(min(SEQUENCES, len(pack))))
    config = config.replace(
        kl_schedule="zero", tf_start=1.0, tf_min=1.0, lr_warmup=0.2, lr_schedule="constant", norm_freeze=1.0,
        batch_size=len(batch.index), epochs=1, batches_per_epoch=steps + 1)     # norms freeze in the last, not taken
    trainer = Trainer(config, pack, Path("not a run"))
    for step in trange(steps, unit="step", desc="overfitting", disable=not progress):
        trainer.step(batch, step)
    model, n_past = trainer.model, config.n_past
    noise = prior_noise(len(batch.index), config.length - 1, model.noise_size, config.seed)
    for norm in trainer.norms:                                  # their running averages need more steps than there were
        norm.reset_running_stats()
        norm.momentum = None                                    # the average of all that follows
    infer(model, batch.frames, batch.condition, noise)
    model.eval()
    context, truth = to_video(batch.frames).split([n_past, config.n_future])
    posterior = infer(model, batch.frames, batch.condition, 0 * noise).predictions[n_past - 1:]
    futures = {"truth": truth, "posterior": posterior.float().cpu(),
               "prior": predict(model, batch.frames, batch.condition, noise).cpu(),
               "repeat_last": context[-1].expand_as(truth)}
    videos = {name: as_pictures(torch.cat([context, futures[name]])[:, 0]) for name in ("truth", "posterior", "prior")}
    scores = {name: psnr(future, truth).mean().item() for name, future in futures.items() if name != "truth"}
    return Overfit(videos, scores, _idle_parts(trainer))


def _idle_parts(trainer: Trainer) -> list[str]:
    """Modules whose parameters never had a gradient; a prior has none at KL weight 0, and is not named."""
    moved: dict[str, bool] = {}
    for name, parameter in trainer.model.named_parameters():
        part, momentum = name.rpartition(".")[0], trainer.optimizer.state[parameter].get("exp_avg", torch.zeros(()))
        moved[part] = moved.get(part, False) or bool(momentum.any())
    return [part for part, has_moved in moved.items() if not has_moved and "prior" not in part.split(".")]
