"""The training loop: teacher forcing, KL annealing, checkpoints, history, and exact resuming.

A run lives in one folder: ``config.json``, ``last.safetensors`` (weights, optimizer, history), ``best.safetensors``
(weights of the best validation score) and ``history.jsonl``, a copy of the history with one line per epoch. They are
written after an epoch. All randomness of step s comes from (seed, s), and so does its batch: a run that was
interrupted or killed resumes from its last finished epoch as if it had not been.

Where several processes train (`lab5.processes`), each computes its share of every batch under
`DistributedDataParallel`; the first one validates, writes and reports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from filelock import Timeout
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from lab5 import checkpoint, processes, schedules
from lab5.config import Config
from lab5.data import Batch, Pack, condition_statistics, to_video, training_loader
from lab5.evaluation import autocast, choose_device, choose_precision, evaluate, require_fit
from lab5.files import cores, lock, tune_malloc, write_text
from lab5.model import CVAE, negative_elbo

Record = dict[str, Any]
OnEpoch = Callable[[list[Record], CVAE], bool | None]

LARGEST_KL = 1e4                                # nats per frame; a model that learns has tens or hundreds
WORTH_SHARING = 200                             # steps from which on starting further processes pays
NUMBERS = "loss mse kl kl_weight teacher_forcing lr seconds sequences_per_second".split()        # of every epoch


class Diverged(RuntimeError):
    """The loss is not a number, or the KL explodes. The message says what to try."""


class RunLocked(RuntimeError):
    """Another process trains in this run folder."""


def train(config: Config, train_pack: Pack, validate_pack: Pack, run: Path, *, progress: bool = True,
          on_epoch: OnEpoch | None = None) -> list[Record]:
    """Train to the end of the schedule, or resume the run that is in the folder.

    Args:
        run: the run folder; created if it does not exist.
        on_epoch: called with the whole history and the model after each epoch, when both are saved. Training
            ends there if it returns True, and the next call resumes. Of several processes only the first calls it
            (it cannot stop those of torchrun). It must leave the model unchanged, and in training mode.
    Returns:
        The history, one record per epoch.
    Raises:
        ValueError: the folder holds a run with other settings, or the packs do not fit the model.
        RunLocked: another process trains in this folder.
        Diverged: the loss became NaN or infinite, or the KL exploded.
    """
    run, first = Path(run), processes.join() == 0
    for pack in (train_pack, validate_pack):
        require_fit(config, train_pack.condition_dim, pack)
    with run_lock(run) if first else nullcontext():
        tune_malloc()
        config = write_or_match_config(run, config)
        if not config.processes and not dist.is_initialized():
            config = write_or_match_config(run, config.replace(processes=process_count(config)))
        alone = config.processes < 2 or dist.is_initialized()
        with nullcontext() if alone else processes.companions(
                config.processes, _train, config, train_pack, validate_pack, run, False, None):
            return _train(config, train_pack, validate_pack, run, progress and first, on_epoch if first else None)


def _train(config: Config, train_pack: Pack, validate_pack: Pack, run: Path, progress: bool,
           on_epoch: OnEpoch | None) -> list[Record]:
    """What each process does."""
    trainer = Trainer(config, train_pack, run)
    begin = len(trainer.history) * config.batches_per_epoch
    batches = iter(training_loader(train_pack, config, range(begin, config.steps), trainer.share))
    with tqdm(total=config.steps, initial=begin, unit="step", desc="training", disable=not progress) as bar:
        while len(trainer.history) < config.epochs:
            trainer.finish_epoch(trainer.train_epoch(batches, bar), validate_pack)
            if on_epoch and on_epoch(trainer.history, trainer.model):
                break
    return trainer.history


def process_count(config: Config) -> int:
    """In how many processes a run trains on this machine: on a CPU one per core, if each gets two sequences of a batch.

    A small model gains little from a second thread, and its threads wait for each other where the machine is busy. On a
    GPU, and where starting processes would take longer than it saves, in one.
    """
    if choose_device().type != "cpu" or config.steps < WORTH_SHARING:
        return 1
    return max(n for n in range(1, cores() + 1) if config.batch_size % n == 0 and config.batch_size // n > 1)


class Trainer:
    """The training of one run in this process: model, optimizer, history and position."""

    def __init__(self, config: Config, pack: Pack, run: Path) -> None:
        self.config, self.run, self.device = config, run, choose_device()
        self.share = processes.share(config.batch_size)
        self.precision = choose_precision(config.precision, self.device)
        torch.manual_seed(config.seed)
        self.model = CVAE(config, pack.condition_dim)
        self.model.set_condition_statistics(*condition_statistics(pack))
        self.model = self.model.to(self.device, memory_format=torch.channels_last)
        if dist.is_initialized() and self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.norms = [part for part in self.model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self.optimizer = torch.optim.Adam(self.model.parameters(), betas=(config.beta1, 0.999), fused=True)
        self.history: list[Record] = []
        if (last := run / "last.safetensors").exists():
            facts = checkpoint.restore(last, self.model, self.optimizer)
            if "history" not in facts:
                raise checkpoint.CheckpointError(f"{last}: holds no history, so it is not of this version of the "
                                                 "package. Choose another run folder")
            self.history = facts["history"]
            if processes.rank() == 0:                           # killed between the two files, it is an epoch behind
                write_history(run, self.history)
        self.parallel = DistributedDataParallel(self.model) if dist.is_initialized() else self.model

    def train_epoch(self, loader: Iterator[Batch], bar: tqdm) -> Record:
        """Train for an epoch; returns the averages over its steps. Raises Diverged where loss or KL exploded."""
        config, started = self.config, time.perf_counter()
        steps = len(self.history) * config.batches_per_epoch + np.arange(config.batches_per_epoch)
        sums = torch.zeros(3, device=self.device)
        self.model.train()
        for step in steps.tolist():
            sums += self.step(next(loader), step)
            bar.update()
        loss, mse, kl = (processes.mean(sums) / len(steps)).tolist()            # waits for a GPU's last steps
        seconds = time.perf_counter() - started
        epoch, lower = len(self.history) + 1, config.lr / 2
        if not np.isfinite(loss) or kl > LARGEST_KL:
            raise Diverged(f"epoch {epoch}: loss {loss:.4g}, MSE {mse:.4g}, KL {kl:.4g} nats per frame: the training "
                           "has diverged; checkpoints are kept. Start again at half the learning rate, in another "
                           f"folder: `lab5 train --run {self.run}-lr{lower:g} --set lr={lower:g}`")
        bar.set_postfix(epoch=epoch, mse=f"{mse:.4f}", kl=f"{kl:.2f}")
        kl_weight, ratio, lr = (float(values.mean()) for values in scheduled(config, steps))
        return {"epoch": epoch, "loss": loss, "mse": mse, "kl": kl, "kl_weight": kl_weight, "teacher_forcing": ratio,
                "lr": lr, "psnr": None, "bound": None, "seconds": seconds,
                "sequences_per_second": len(steps) * config.batch_size / seconds}

    def step(self, batch: Batch, number: int) -> torch.Tensor:
        """One step of the optimizer; `number` counts from 0 over the whole run. Returns loss, MSE and KL, (3,)."""
        config = self.config
        kl_weight, ratio, lr = map(float, scheduled(config, number))
        noise, forced = draws(config, number, ratio, self.model.noise_size)
        if number >= config.norm_freeze * config.steps:
            for norm in self.norms:
                norm.eval()                                     # uses its running averages, and keeps them
        frames = to_video(batch.frames.to(self.device, non_blocking=True))
        with autocast(self.precision, self.device):
            terms = self.parallel(frames, batch.condition.to(self.device, non_blocking=True),
                                  noise[:, self.share].to(self.device, non_blocking=True), forced)
            whole = replace(terms, mse=processes.mean(terms.mse))       # the calibrated variance is of the whole batch
            loss = negative_elbo(config, whole, kl_weight)
        loss.backward()
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss, terms.mse, terms.kl]).detach()

    def finish_epoch(self, record: Record, validate_pack: Pack) -> None:
        """Validate where that is due, and save the epoch: the first process does."""
        config, run, epoch = self.config, self.run, record["epoch"]
        if processes.rank() == 0:
            if epoch % config.validate_every == 0 or epoch == config.epochs:
                scores = evaluate(self.model, validate_pack, protocols=("prior_sample", "posterior"), seed=config.seed,
                                  limit=config.validate_sequences, precision=self.precision, progress=False)
                record |= {"psnr": scores.average("prior_sample")[0], "bound": scores.bound}
                if is_best(config, record, self.history):
                    checkpoint.save(run / "best.safetensors", self.model, precision=self.precision, **{
                        name: record[name] for name in ("epoch", "psnr", "bound")})
            checkpoint.save(run / "last.safetensors", self.model, self.optimizer, history=[*self.history, record])
            write_history(run, [*self.history, record])
        self.history.append(record)


def is_best(config: Config, record: Record, history: list[Record]) -> bool:
    """Whether a validation is the best so far: by its bound where the objective is one, else by the graded PSNR."""
    measure = "bound" if config.reconstruction == "calibrated" else "psnr"
    return record[measure] > max((old[measure] for old in history if old["psnr"]), default=-np.inf)


def scheduled(config: Config, step: int | np.ndarray) -> tuple[np.ndarray, ...]:
    """KL weight, teacher-forcing ratio and learning rate of a step, or of an array of steps."""
    progress = step / max(config.steps - 1, 1)
    return (schedules.kl_weight(config, progress), schedules.teacher_forcing_ratio(config, progress),
            schedules.learning_rate(config, (step + 1) / config.steps))


def draws(config: Config, step: int, ratio: float, noise_size: int) -> tuple[torch.Tensor, list[bool]]:
    """The randomness of one step, from (seed, step) alone: noise (T-1, B, noise_size) and which steps are forced."""
    entropy = np.random.SeedSequence([config.seed, step]).generate_state(2)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    noise = torch.randn(config.length - 1, config.batch_size, noise_size, generator=generator)
    coins = np.random.default_rng(entropy[1]).random(1 if config.tf_coin == "batch" else config.length - 1) < ratio
    return noise, np.broadcast_to(coins, config.length - 1).tolist()


# The run folder ------------------------------------------------------------------------------------------

@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Lock the run folder; a killed process releases the lock.

    Raises RunLocked where another process holds it, and OSError where the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        held = lock(run / ".training.lock", timeout=0)
    except Timeout:
        raise RunLocked(f"{run}: another process is training this run; `tail -f {run / 'history.jsonl'}` shows its "
                        "epochs. Stop it, or choose another run folder") from None
    except OSError as error:
        raise OSError(f"{run}: cannot be written ({error.strerror or error}). Make the folder writable, or choose "
                      "another run folder") from error
    with held:
        yield


def write_or_match_config(run: Path, config: Config) -> Config:
    """Write ``config.json``; returns it, with the number of processes that was chosen before.

    Raises ValueError where the folder's run has other settings that decide the result.
    """
    path = run / "config.json"
    known = Config.load(path) if path.exists() else None
    if known and (differences := config.differences(known)):
        raise ValueError(f"{path}: this run folder was made with other settings ({'; '.join(differences)}). Choose "
                         "another run folder, or delete this one to start again")
    if known and not config.processes:
        config = config.replace(processes=known.processes)
    if known != config:                                         # the machine's settings may change
        write_text(path, config.to_json())
    return config


def read_history(run: Path) -> list[Record]:
    """The epochs' records, oldest first; an empty list where nothing was trained. Raises ValueError naming the file."""
    path = Path(run) / "history.jsonl"
    try:
        history = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        for number, record in enumerate(history, 1):
            complete = all(isinstance(record[name], int | float) for name in NUMBERS)
            if not complete or record["epoch"] != number or not isinstance(record["psnr"], float | None):
                raise ValueError(f"line {number} is {record}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: not the records of epochs 1, 2, ... ({type(error).__name__}: {error}). Restore the "
                         "file, or delete the run folder to start again") from error
    return history


def write_history(run: Path, history: list[Record]) -> None:
    """Replace ``history.jsonl``."""
    write_text(run / "history.jsonl", "".join(json.dumps(record) + "\n" for record in history))
