"""The training loop: teacher forcing, KL annealing, checkpoints, history, and exact resuming.

A run lives in one folder: ``config.json``, ``last.safetensors`` (weights, optimizer, history, sums of the current
epoch), ``best.safetensors`` (weights of the best validation PSNR) and ``history.jsonl``, a copy of the history with one
line per epoch. All randomness of step s comes from (seed, s), and so does its batch: a run that was killed resumes from
its last checkpoint as if it had not been. There is one after each epoch, before each validation, every ten minutes, and
when Ctrl-C or SIGTERM ends the training.

Where several processes train (`lab5.processes`), each computes its share of every batch under
`DistributedDataParallel`; the first one validates, writes and reports.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from lab5.files import lock, tune_malloc, write_text
from lab5.model import CVAE, negative_elbo

Record = dict[str, Any]
OnEpoch = Callable[[list[Record], CVAE], bool | None]

LARGEST_KL = 1e4                                # nats per frame; a model that learns has tens or hundreds
SAVE_EVERY = 600.0                              # seconds between two checkpoints within an epoch
WORTH_MEASURING = 200                           # steps of a run that begins with measuring what is fastest
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
            ends there if it returns True, and the next call resumes. Of several processes only the first calls it.
            It must leave the model unchanged, and in training mode.
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
            config = write_or_match_config(run, config.replace(processes=fastest(config, train_pack)))
        alone = config.processes < 2 or dist.is_initialized()
        try:
            with nullcontext() if alone else processes.companions(
                    config.processes, _train, config, train_pack, validate_pack, run, False, None):
                return _train(config, train_pack, validate_pack, run, progress and first, on_epoch if first else None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RuntimeError(f"a process that loads data has ended ({error}). The same command resumes from the last "
                               "checkpoint; with --set workers=0 the training loads them itself") from error


def _train(config: Config, train_pack: Pack, validate_pack: Pack, run: Path, progress: bool,
           on_epoch: OnEpoch | None) -> list[Record]:
    """What each process does."""
    trainer = Trainer(config, train_pack, run)
    batches = iter(training_loader(train_pack, config, range(trainer.position, config.steps), trainer.share))
    with tqdm(total=config.steps, initial=trainer.position, unit="step", desc="training", disable=not progress) as bar:
        while len(trainer.history) < config.epochs:
            trainer.finish_epoch(trainer.train_epoch(batches, bar), validate_pack)
            stop = on_epoch and on_epoch(trainer.history, trainer.model)
            if processes.largest(int(bool(stop)), trainer.device):
                break
    return trainer.history


def fastest(config: Config, pack: Pack) -> int:
    """In how many processes of one thread each this machine trains fastest; 1: in one with all its threads.

    Measured, for a few seconds, where several are possible and the run is long enough. A small model gains little from
    a second thread, and its threads wait for each other where the machine is busy.
    """
    threads = torch.get_num_threads()
    size = max(n for n in range(1, threads + 1) if config.batch_size % n == 0 and config.batch_size // n > 1)
    if size == 1 or choose_device().type != "cpu" or config.steps < WORTH_MEASURING:
        return 1
    try:
        together = _step_seconds(config, pack)
        torch.set_num_threads(1)
        shared = _step_seconds(config.replace(batch_size=config.batch_size // size), pack)
    finally:
        torch.set_num_threads(threads)
    return size if shared < together else 1


def _step_seconds(config: Config, pack: Pack) -> float:
    """The shorter time of two free-running steps, after a first one."""
    config = config.replace(tf_start=0.0, workers=0)
    trainer = Trainer(config, pack, Path("not a run"))
    seconds = []
    for batch in training_loader(pack, config, range(3)):
        started = time.perf_counter()
        trainer._step(batch)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


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
        self._start_epoch()
        self.saved = time.monotonic()
        if (run / "last.safetensors").exists():
            self._resume(run / "last.safetensors")
        self.parallel = DistributedDataParallel(self.model) if dist.is_initialized() else self.model

    def _start_epoch(self, steps: int = 0, losses: Sequence[float] = (0.0, 0.0, 0.0),
                     ratios: Sequence[float] = (0.0, 0.0, 0.0), seconds: float = 0.0) -> None:
        """Sums over its steps: of loss, MSE and KL, and of KL weight, teacher-forcing ratio and learning rate."""
        self.steps, self.seconds = steps, seconds
        self.losses, self.ratios = torch.tensor(losses, device=self.device), np.array(ratios)

    def _resume(self, path: Path) -> None:
        facts = checkpoint.restore(path, self.model, self.optimizer)
        if "history" not in facts:
            raise checkpoint.CheckpointError(f"{path}: holds no history, so it is not of this version of the package. "
                                             "Choose another run folder")
        self.history = facts["history"]
        self._start_epoch(**facts["within"])
        if processes.rank() == 0:                               # killed between the two files, it is an epoch behind
            write_history(self.run, self.history)

    @property
    def position(self) -> int:
        """Number of finished steps."""
        return len(self.history) * self.config.batches_per_epoch + self.steps

    def record(self) -> Record:
        """Averages over the epoch's steps so far and over all processes. Raises Diverged where loss or KL exploded."""
        started = time.perf_counter()
        loss, mse, kl = (processes.mean(self.losses) / self.steps).tolist()      # waits for a GPU's last steps
        self.seconds += time.perf_counter() - started
        kl_weight, ratio, lr = (self.ratios / self.steps).tolist()
        epoch, lower = len(self.history) + 1, self.config.lr / 2
        if not np.isfinite(loss) or kl > LARGEST_KL:
            raise Diverged(f"epoch {epoch}: loss {loss:.4g}, MSE {mse:.4g}, KL {kl:.4g} nats per frame: the training "
                           "has diverged; checkpoints are kept. Start again at half the learning rate, in another "
                           f"folder: `lab5 train --run {self.run}-lr{lower:g} --set lr={lower:g}`")
        return {"epoch": epoch, "loss": loss, "mse": mse, "kl": kl, "kl_weight": kl_weight, "teacher_forcing": ratio,
                "lr": lr, "psnr": None, "bound": None, "seconds": self.seconds,
                "sequences_per_second": self.steps * self.config.batch_size / self.seconds}

    def save(self) -> None:
        """Write all that is needed to resume from here. All processes call it, and the first writes."""
        within = {"steps": self.steps, "losses": processes.mean(self.losses).tolist(), "ratios": self.ratios.tolist(),
                  "seconds": self.seconds}
        if processes.rank() == 0:
            checkpoint.save(self.run / "last.safetensors", self.model, self.optimizer, history=self.history,
                            within=within)
            write_history(self.run, self.history)
        self.saved = time.monotonic()

    def train_epoch(self, loader: Iterator[Batch], bar: tqdm) -> Record:
        """Train the rest of the epoch. Ctrl-C and SIGTERM take effect when a step is finished and saved."""
        self.model.train()
        with _deferred_signals() as arrived:
            while self.steps < self.config.batches_per_epoch:
                started = time.perf_counter()
                self._step(next(loader))
                self.seconds += time.perf_counter() - started
                bar.update()
                due = time.monotonic() - self.saved > SAVE_EVERY
                request = processes.largest(max([*arrived, int(due)]), self.device)    # 0: no, 1: save, else a signal
                if request:
                    self.record()                               # what has diverged is not saved
                    self.save()
                if request > 1:
                    arrived[:] = [request]                      # all processes end at the same step
                    break
        record = self.record()
        bar.set_postfix(epoch=record["epoch"], mse=f"{record['mse']:.4f}", kl=f"{record['kl']:.2f}")
        return record

    def _step(self, batch: Batch) -> None:
        config, step = self.config, self.position
        progress = step / max(config.steps - 1, 1)
        kl_weight = float(schedules.kl_weight(config, progress))
        ratio = float(schedules.teacher_forcing_ratio(config, progress))
        lr = float(schedules.learning_rate(config, (step + 1) / config.steps))
        noise, forced = _draws(config, step, ratio, self.model.noise_size)
        if step >= config.norm_freeze * config.steps:
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
        self.steps += 1
        self.losses += torch.stack([loss, terms.mse, terms.kl]).detach()
        self.ratios += (kl_weight, ratio, lr)

    def finish_epoch(self, record: Record, validate_pack: Pack) -> None:
        """Validate where that is due, and save the epoch, the best weights and the state of the run."""
        config = self.config
        if record["epoch"] % config.validate_every == 0 or record["epoch"] == config.epochs:
            self.save()                                         # a validation that is killed costs only itself
            if processes.rank() == 0:
                scores = evaluate(self.model, validate_pack, protocols=("prior_sample", "posterior"), seed=config.seed,
                                  limit=config.validate_sequences, precision=self.precision, progress=False)
                record |= {"psnr": scores.average("prior_sample")[0], "bound": scores.bound}
                if is_best(config, record, self.history):
                    checkpoint.save(self.run / "best.safetensors", self.model, precision=self.precision, **{
                        name: record[name] for name in ("epoch", "psnr", "bound")})
        self.history.append(record)
        self._start_epoch()
        self.save()


def is_best(config: Config, record: Record, history: list[Record]) -> bool:
    """Whether a validation is the best so far: by its bound where the objective is one, else by the graded PSNR."""
    measure = "bound" if config.reconstruction == "calibrated" else "psnr"
    return record[measure] > max((old[measure] for old in history if old["psnr"]), default=-np.inf)


def _draws(config: Config, step: int, ratio: float, noise_size: int) -> tuple[torch.Tensor, list[bool]]:
    """The randomness of one step, from (seed, step) alone: noise (T-1, B, noise_size) and which steps are forced."""
    entropy = np.random.SeedSequence([config.seed, step]).generate_state(2)
    generator = torch.Generator().manual_seed(int(entropy[0]))
    noise = torch.randn(config.length - 1, config.batch_size, noise_size, generator=generator)
    coins = np.random.default_rng(entropy[1]).random(1 if config.tf_coin == "batch" else config.length - 1) < ratio
    return noise, np.broadcast_to(coins, config.length - 1).tolist()


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Hold Ctrl-C and SIGTERM back until the block ends; yields the list of those that arrived."""
    arrived: list[int] = []

    def hold(number: int, frame: object) -> None:
        arrived.append(number)
        if number == signal.SIGINT:                             # a second Ctrl-C acts at once; torchrun repeats SIGTERM
            signal.signal(number, before[number])

    main = threading.current_thread() is threading.main_thread()
    before = {number: handler for number in (signal.SIGINT, signal.SIGTERM)
              if main and (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, hold)
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)


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
