"""The training loop: teacher forcing, KL annealing, checkpoints, history, and going on after a kill.

A run lives in one folder: ``config.json``, ``history.jsonl`` (a line an epoch), ``last.safetensors`` (weights,
optimizer, position, and the history once more) and ``best.safetensors`` (weights of the best validation PSNR). All
randomness of step s comes from (seed, s), and the batch of step s too, so the step number is the whole
position: a run that was killed goes on from its last epoch as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from lab5 import checkpoint, parallel, schedules
from lab5.config import Config
from lab5.data import Pack, condition_statistics, to_video, training_loader
from lab5.evaluation import autocast, choose_device, choose_precision, evaluate, keep_memory
from lab5.files import write_text
from lab5.model import CVAE, ElboTerms

Record = dict[str, Any]
OnEpoch = Callable[[list[Record], CVAE], bool | None]


FALL = 6.0                                      # dB below the best validation that end a run as diverged
MOST_KL = 1e4                                   # nats a frame; a model that learns says tens, hundreds at most


class Diverged(RuntimeError):
    """Training no longer leads anywhere. The best weights are still there, and the message says how to go on."""


class Busy(RuntimeError):
    """Another process trains in this run folder."""


def train(config: Config, train_pack: Pack, validate_pack: Pack, run: Path, *, progress: bool = True,
          on_epoch: OnEpoch | None = None) -> list[Record]:
    """Train to the end of the schedule, or go on with the run that is in the folder.

    Args:
        run: the run folder; made if it is not there.
        on_epoch: called with the whole history and the model after each epoch, when both are on the disk. Training
            ends there if it returns True, and the next call goes on. Of several processes only the first calls it,
            and what it answers holds for all. It must leave the model as it is, and in training mode.
    Returns:
        The history, a record an epoch.
    Raises:
        ValueError: the folder holds a run with another configuration.
        Busy: another process trains in this folder.
        Diverged: the loss became NaN or infinite, the KL exploded, or the validation PSNR fell far below its best.
    """
    run = Path(run)
    world = parallel.join()
    with _alone(run) if world.is_first else nullcontext():
        return _train(config, train_pack, validate_pack, run, world, progress, on_epoch)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the run folder, which a killed process lets go of by itself. Raises Busy where another holds it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with FileLock(run / ".training.lock", timeout=0):
            yield
    except Timeout:
        raise Busy(f"{run}: another process is training this run; `lab5 watch --run {run}` follows it. Stop it, or "
                   "choose another run folder") from None


def _train(config: Config, train_pack: Pack, validate_pack: Pack, run: Path, world: parallel.World, progress: bool,
           on_epoch: OnEpoch | None) -> list[Record]:
    keep_memory()
    share = world.share(config.batch_size)
    claim(run, config)
    device = choose_device()
    precision = choose_precision(config.precision, device)
    torch.manual_seed(config.seed)
    model = CVAE(config, train_pack.condition_dim)
    model.set_condition_statistics(*map(torch.as_tensor, condition_statistics(train_pack)))
    model = parallel.share_norms(model).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(config.beta1, 0.999), fused=True)

    history: list[Record] = []
    if any(path.exists() for path in (run / "last.safetensors", checkpoint.previous(run / "last.safetensors"))):
        history = checkpoint.restore(run / "last.safetensors", model, optimizer)["history"]
    if world.is_first:
        _write_history(run, history)
    _refuse_divergence(history, config, run)

    best = max((record["psnr"] for record in history if record["psnr"] is not None), default=-np.inf)
    loader = iter(training_loader(train_pack, config.length, config.batch_size, config.seed,
                                  len(history) * config.batches_per_epoch, config.steps, config.workers, share))
    with tqdm(total=config.steps, initial=len(history) * config.batches_per_epoch, unit="step", desc="training",
              disable=not (progress and world.is_first)) as bar:
        for epoch in range(len(history) + 1, config.epochs + 1):
            record = _train_epoch(model, optimizer, loader, epoch, precision, share, bar)
            _refuse_explosion(record, config, run)
            history.append(record)
            stop = False
            if world.is_first:
                if epoch % config.validate_every == 0 or epoch == config.epochs:
                    scores = evaluate(model, validate_pack, protocols=("sampled",), limit=config.validate_sequences,
                                      seed=config.seed, precision=precision, progress=False)
                    record["psnr"] = scores.average("sampled")[0]
                _write_history(run, history)
                if record["psnr"] is not None and record["psnr"] > best:
                    best = record["psnr"]
                    checkpoint.save(run / "best.safetensors", model, epoch=epoch, psnr=best, precision=precision)
                checkpoint.save(run / "last.safetensors", model, optimizer, epoch=epoch, precision=precision,
                                history=history)
                stop = bool(on_epoch and on_epoch(history, model))
            _refuse_divergence(history, config, run)
            if parallel.mean(torch.tensor(float(stop), device=device)) > 0:      # one says so, and all end together
                break
    return history


def claim(run: Path, config: Config) -> None:
    """Make the run folder this configuration's. Raises ValueError when it already holds another one."""
    path = run / "config.json"
    if not path.exists():
        write_text(path, config.to_json())
        return
    found = Config.load(path)
    if found != config:
        differ = [f"{field.name} is {getattr(found, field.name)!r} there and {getattr(config, field.name)!r} here"
                  for field in dataclasses.fields(Config) if getattr(found, field.name) != getattr(config, field.name)]
        raise ValueError(f"{path}: this run folder belongs to another configuration ({'; '.join(differ)}). "
                         "Choose another run folder, or delete this one to start anew")


def read_history(run: Path) -> list[Record]:
    """The epochs' records, oldest first; an empty list where nothing was trained yet.

    A torn file is made up for, with a warning, by what the checkpoint beside it says. Raises ValueError naming file
    and line where that is lost too.
    """
    path = Path(run) / "history.jsonl"
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            torn = ValueError(f"{path}, line {number}: not a record of an epoch ({error}); delete that line and those "
                              "after it, or the run folder to start anew")
            return _history_in_checkpoint(path, torn)
    return records


def _history_in_checkpoint(path: Path, torn: ValueError) -> list[Record]:
    try:
        history = checkpoint.read_facts(path.with_name("last.safetensors"))["history"]
    except (checkpoint.CheckpointError, KeyError):
        raise torn from None
    warnings.warn(f"{torn}. What last.safetensors says is taken instead", stacklevel=3)
    return history


def _write_history(run: Path, history: list[Record]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in history)
    write_text(run / "history.jsonl", text)


def _refuse_explosion(record: Record, config: Config, run: Path) -> None:
    """Raise Diverged where an epoch's loss is no number or its KL is beyond all measure, before that is saved."""
    if not np.isfinite(record["loss"]) or record["kl"] > MOST_KL:
        raise Diverged(f"epoch {record['epoch']}: loss {record['loss']:.4g}, MSE {record['mse']:.4g}, KL "
                       f"{record['kl']:.4g} nats a frame: the training has diverged, and the last good checkpoint is "
                       f"that of epoch {record['epoch'] - 1}. {_way_out(config, run)}")


def _refuse_divergence(history: list[Record], config: Config, run: Path) -> None:
    """Raise Diverged where the newest validation lies far below the best: such a run does not come back by itself."""
    scored = [(record["psnr"], record["epoch"]) for record in history if record["psnr"] is not None]
    if scored and not scored[-1][0] >= max(scored)[0] - FALL:                  # NaN is not either
        (last, epoch), (best, then) = scored[-1], max(scored)
        raise Diverged(f"epoch {epoch}: validation PSNR fell to {last:.1f} dB from {best:.1f} dB after epoch {then}. "
                       "Often this comes as teacher forcing decays and the model must live on its own predictions, at "
                       f"too high a learning rate. The weights of epoch {then} are kept. {_way_out(config, run)}")


def _way_out(config: Config, run: Path) -> str:
    lower = config.lr / 2
    if not (run / "best.safetensors").exists():
        return f"No validation came before it: start anew, in a new run folder, with --set lr={lower:g}"
    return ("Go on from the best weights at half the learning rate:\n"
            f"  lab5 train --from {run} --run {run}-lr{lower:g} --set lr={lower:g}")


def branch(source: Path, run: Path, **changes: Any) -> Config:
    """Begin a run folder with the best weights of another run, at their epoch, and some settings changed.

    The next `train` goes on from there, with a fresh optimizer. Where the folder is begun already, nothing is written.
    Raises ValueError where the source has no weights with a history, or a change asks for another model.
    """
    model, facts = checkpoint.load_model(source / "best.safetensors")
    config = model.config.replace(**changes)
    if any((run / name).exists() for name in ("last.safetensors", "history.jsonl", "best.safetensors")):
        claim(run, config)
        return config
    history = read_history(source)[:facts["epoch"]]
    if len(history) < facts["epoch"]:
        raise ValueError(f"{source / 'history.jsonl'}: has {len(history)} epochs, the weights beside it are of epoch "
                         f"{facts['epoch']}; without them there is no going on")
    begun = CVAE(config, len(model.condition_mean))
    try:
        begun.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{source}: its weights do not fit a model with {changes}; change settings of the training "
                         "only, such as lr") from error
    claim(run, config)
    _write_history(run, history)
    checkpoint.save(run / "best.safetensors", begun, **facts)
    checkpoint.save(run / "last.safetensors", begun, **facts, history=history)
    return config


def _train_epoch(model: CVAE, optimizer: torch.optim.Optimizer, loader: Iterator, epoch: int, precision: str,
                 share: slice, bar: tqdm) -> Record:
    """One epoch of steps; returns its record, averages over its batches (and over all processes)."""
    config, device = model.config, model.condition_mean.device
    model.train()
    sums = torch.zeros(3, device=device)                        # loss, mse, kl
    ratios = np.zeros(3)                                        # kl weight, teacher-forcing ratio, learning rate
    started = time.perf_counter()
    for step in range((epoch - 1) * config.batches_per_epoch, epoch * config.batches_per_epoch):
        progress = step / max(config.steps - 1, 1)
        kl_weight = float(schedules.kl_weight(config, progress))
        ratio = float(schedules.teacher_forcing_ratio(config, progress))
        lr = float(schedules.learning_rate(config, (step + 1) / config.steps))
        noise, forced = _draws(config, step, ratio, model.noise_size)
        if progress >= config.norm_freeze:
            freeze_norms(model)
        batch = next(loader)
        frames = to_video(batch.frames.to(device, non_blocking=True))
        with autocast(precision, device):
            terms = model.elbo_terms(frames, batch.condition.to(device, non_blocking=True),
                                     noise[:, share].to(device, non_blocking=True), forced)
        loss = objective(config, terms, kl_weight)
        loss.backward()
        parallel.average_gradients(model)
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums += torch.stack([loss, terms.mse, terms.kl]).detach()
        ratios += (kl_weight, ratio, lr)
        bar.update()
    seconds = time.perf_counter() - started
    loss, mse, kl = (parallel.mean(sums) / config.batches_per_epoch).tolist()
    bar.set_postfix(epoch=epoch, mse=f"{mse:.4f}", kl=f"{kl:.2f}")
    kl_weight, ratio, lr = (ratios / config.batches_per_epoch).tolist()
    return {"epoch": epoch, "loss": loss, "mse": mse, "kl": kl, "kl_weight": kl_weight, "teacher_forcing": ratio,
            "lr": lr, "psnr": None, "seconds": seconds,
            "sequences_per_second": config.batches_per_epoch * config.batch_size / seconds}


def freeze_norms(model: CVAE) -> None:
    """Let batch norms use their running statistics, as in testing, and keep them as they are."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):          # SyncBatchNorm is one too
            module.eval()


def objective(config: Config, terms: ElboTerms, kl_weight: float) -> torch.Tensor:
    """The loss that is minimised: the negative bound up to scale and constants.

    With "mse" the pixel-mean squared error + beta * kl_weight * KL: the bound of a decoder whose variance is
    fixed at beta * D / 2, D being the numbers in a frame. With "calibrated" the variance is the one that
    maximises the likelihood of the batch, which is the MSE itself (sigma-VAE: Rybkin, Daniilidis & Levine 2021);
    a frame's negative bound is then D/2 log MSE + KL, and is divided by D to keep gradients in a common range.
    """
    if config.reconstruction == "mse":
        return terms.mse + config.beta * kl_weight * terms.kl
    return 0.5 * parallel.mean(terms.mse).log() + kl_weight * terms.kl / terms.predictions[0, 0].numel()


def _draws(config: Config, step: int, ratio: float, noise_size: int) -> tuple[torch.Tensor, list[bool]]:
    """The randomness of one step, from (seed, step) alone: noise (T-1, B, noise_size) and which steps are forced."""
    entropy = np.random.SeedSequence([config.seed, step]).generate_state(2)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    noise = torch.randn(config.length - 1, config.batch_size, noise_size, generator=generator)
    coins = np.random.default_rng(entropy[1]).random(1 if config.tf_coin == "batch" else config.length - 1) < ratio
    return noise, np.broadcast_to(coins, config.length - 1).tolist()
