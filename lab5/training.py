"""The training loop: teacher forcing, KL annealing, checkpoints, history, and going on after a kill.

A run lives in one folder: ``config.json``, ``history.jsonl`` (a line an epoch), ``last.safetensors`` (weights,
optimizer, position, and the history once more) and ``best.safetensors`` (weights of the best validation PSNR). All
randomness of step s comes from (seed, s), and the batch of step s too, so the step number is the whole
position: a run that was killed goes on from its last checkpoint as if nothing had happened. There is one after
each epoch, before each validation, every ten minutes, and when Ctrl-C or SIGTERM ends the training.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from lab5 import checkpoint, parallel, schedules
from lab5.config import Config
from lab5.data import Batch, Pack, condition_statistics, to_video, training_loader
from lab5.evaluation import autocast, choose_device, choose_precision, evaluate, keep_memory
from lab5.files import write_text
from lab5.model import CVAE, ElboTerms

Record = dict[str, Any]
OnEpoch = Callable[[list[Record], CVAE], bool | None]


FALL = 6.0                                      # dB below the best validation that end a run as diverged
MOST_KL = 1e4                                   # nats a frame; a model that learns says tens, hundreds at most
SAVE_EVERY = 600.0                              # seconds between two checkpoints within an epoch
MEASURES = "epoch loss mse kl kl_weight teacher_forcing lr seconds sequences_per_second".split()     # of an epoch
AGREE_EVERY = 10                                # steps after which several processes ask each other whether to stop


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
    with alone(run) if world.is_first else nullcontext():
        keep_memory()
        share = world.share(config.batch_size)
        claim(run, config)
        training = _Training(config, train_pack, run, world)
        loader = iter(training_loader(train_pack, config.length, config.batch_size, config.seed, training.position,
                                      config.steps, config.workers, share))
        with tqdm(total=config.steps, initial=training.position, unit="step", desc="training",
                  disable=not (progress and world.is_first)) as bar:
            while len(training.history) < config.epochs:
                training.go_through_epoch(loader, bar)
                training.finish_epoch(validate_pack)
                stop = world.is_first and on_epoch and on_epoch(training.history, training.model)
                _refuse_divergence(training.history, config, run)
                if parallel.largest(float(bool(stop)), training.device):         # one says so, and all end together
                    break
        return training.history


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold the run folder, which a killed process lets go of by itself.

    Raises Busy where another holds it, and OSError where it cannot be written.
    """
    lock = FileLock(run / ".training.lock", timeout=0)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise Busy(f"{run}: another process is training this run; `lab5 watch --run {run}` follows it. Stop it, or "
                   "choose another run folder") from None
    except OSError as error:
        raise OSError(f"{run}: cannot be written ({error.strerror or error}). Make the folder writable, or choose "
                      "another run folder") from error
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Tally:
    """What the steps of the epoch under way add up to; a checkpoint within the epoch holds it."""

    steps: int
    losses: torch.Tensor                        # sums of loss, MSE and KL, on the device
    ratios: np.ndarray                          # sums of KL weight, teacher-forcing ratio and learning rate
    seconds: float


class _Training:
    """A run under way in this process: the objects that change, and how far they are."""

    def __init__(self, config: Config, pack: Pack, run: Path, world: parallel.World) -> None:
        self.config, self.run, self.world, self.device = config, run, world, choose_device()
        self.share = world.share(config.batch_size)
        self.precision = choose_precision(config.precision, self.device)
        torch.manual_seed(config.seed)
        model = CVAE(config, pack.condition_dim)
        model.set_condition_statistics(*map(torch.as_tensor, condition_statistics(pack)))
        self.model = parallel.share_norms(model).to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=(config.beta1, 0.999),
                                          fused=True)
        self.history: list[Record] = []
        self.tally = self._no_steps()
        self.saved = time.monotonic()
        last = run / "last.safetensors"
        if any(path.exists() for path in (last, checkpoint.previous(last))):
            self._restore(last)
        if world.is_first:
            _write_history(run, self.history)
        _refuse_divergence(self.history, config, run)

    def _no_steps(self) -> _Tally:
        return _Tally(0, torch.zeros(3, device=self.device), np.zeros(3), 0.0)

    def _restore(self, path: Path) -> None:
        facts = checkpoint.restore(path, self.model, self.optimizer)
        try:
            self.history = _checked_history(facts)
            if within := facts.get("within"):
                self.tally = _Tally(int(within["steps"]), torch.tensor(within["losses"], device=self.device),
                                    np.array(within["ratios"]), float(within["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path}: its facts are not those of a training ({error!r}); "
                                             f"{checkpoint.ADVICE}") from error

    @property
    def position(self) -> int:
        """Steps that are done."""
        return len(self.history) * self.config.batches_per_epoch + self.tally.steps

    def save(self) -> None:
        """Write all that the run needs to go on from here. All processes call it, and the first writes.

        Raises Diverged before anything is written where the epoch's loss or KL is beyond all measure.
        """
        tally, losses = self.tally, parallel.mean(self.tally.losses).tolist()
        if tally.steps:
            _refuse_explosion(self._record(), self.config, self.run)
        within = {"steps": tally.steps, "losses": losses, "ratios": tally.ratios.tolist(), "seconds": tally.seconds}
        if self.world.is_first:
            checkpoint.save(self.run / "last.safetensors", self.model, self.optimizer, epoch=len(self.history),
                            precision=self.precision, history=self.history, within=within if tally.steps else None)
        self.saved = time.monotonic()

    def go_through_epoch(self, loader: Iterator[Batch], bar: tqdm) -> None:
        """Make the steps that the epoch still lacks. Ctrl-C and SIGTERM act when the step is done and saved."""
        planned = self.config.batches_per_epoch
        self.model.train()
        with _held_signals() as arrived:
            while self.tally.steps < planned:
                started = time.perf_counter()
                self._step(next(loader))
                self.tally.seconds += time.perf_counter() - started
                bar.update()
                if self.world.size > 1 and self.tally.steps % AGREE_EVERY and self.tally.steps < planned:
                    continue
                wish = max([*arrived, float(time.monotonic() - self.saved > SAVE_EVERY)])
                wish = int(parallel.largest(wish, self.device))     # 0: go on, 1: save, more: a signal that ends it
                if wish:
                    self.save()
                if wish > 1:
                    arrived[:] = [wish]
                    self._say_stopped()
                    break
        started = time.perf_counter()
        record = self._record()                                 # waits for a GPU's last steps
        self.tally.seconds += time.perf_counter() - started
        bar.set_postfix(epoch=record["epoch"], mse=f"{record['mse']:.4f}", kl=f"{record['kl']:.2f}")

    def _say_stopped(self) -> None:
        if self.world.is_first:
            with suppress(OSError):             # who read what this process says may be gone
                print(f"\nstopped within epoch {len(self.history) + 1}, after {self.tally.steps} of its "
                      f"{self.config.batches_per_epoch} steps, and saved in {self.run}", file=sys.stderr)

    def _step(self, batch: Batch) -> None:
        config, step = self.config, self.position
        progress = step / max(config.steps - 1, 1)
        kl_weight = float(schedules.kl_weight(config, progress))
        ratio = float(schedules.teacher_forcing_ratio(config, progress))
        lr = float(schedules.learning_rate(config, (step + 1) / config.steps))
        noise, forced = _draws(config, step, ratio, self.model.noise_size)
        if progress >= config.norm_freeze:
            freeze_norms(self.model)
        frames = to_video(batch.frames.to(self.device, non_blocking=True))
        with autocast(self.precision, self.device):
            terms = self.model.elbo_terms(frames, batch.condition.to(self.device, non_blocking=True),
                                          noise[:, self.share].to(self.device, non_blocking=True), forced)
        loss = objective(config, terms, kl_weight)
        loss.backward()
        parallel.average_gradients(self.model)
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tally.steps += 1
        self.tally.losses += torch.stack([loss, terms.mse, terms.kl]).detach()
        self.tally.ratios += (kl_weight, ratio, lr)

    def _record(self) -> Record:
        """The epoch under way: averages over its steps so far, and over all processes."""
        tally = self.tally
        loss, mse, kl = (parallel.mean(tally.losses) / tally.steps).tolist()
        kl_weight, ratio, lr = (tally.ratios / tally.steps).tolist()
        return {"epoch": len(self.history) + 1, "loss": loss, "mse": mse, "kl": kl, "kl_weight": kl_weight,
                "teacher_forcing": ratio, "lr": lr, "psnr": None, "seconds": tally.seconds,
                "sequences_per_second": tally.steps * self.config.batch_size / tally.seconds}

    def finish_epoch(self, validate_pack: Pack) -> None:
        """Validate where that is due, and put the epoch, the best weights and the whole run on the disk."""
        config, record = self.config, self._record()
        _refuse_explosion(record, config, self.run)
        due = record["epoch"] % config.validate_every == 0 or record["epoch"] == config.epochs
        if due:
            self.save()                         # validating takes minutes, and need not be lost with the epoch
            record["psnr"] = self._validate(validate_pack) if self.world.is_first else None
        best = max((old["psnr"] for old in self.history if old["psnr"] is not None), default=-np.inf)
        self.history.append(record)
        self.tally = self._no_steps()
        if self.world.is_first:
            _write_history(self.run, self.history)
            if record["psnr"] is not None and record["psnr"] > best:
                checkpoint.save(self.run / "best.safetensors", self.model, epoch=record["epoch"], psnr=record["psnr"],
                                precision=self.precision)
        self.save()

    def _validate(self, pack: Pack) -> float:
        scores = evaluate(self.model, pack, protocols=("sampled",), limit=self.config.validate_sequences,
                          seed=self.config.seed, precision=self.precision, progress=False)
        return scores.average("sampled")[0]


@contextmanager
def _held_signals() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM act when the block ends, which is told of them; a second one does not wait."""
    arrived: list[int] = []
    before: dict[int, Any] = {}

    def hold(number: int, frame: object) -> None:
        arrived.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)
                  if signal.getsignal(number) is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, hold)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)


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
            records.append(_checked(json.loads(line), number))
        except (ValueError, RecursionError) as error:
            torn = ValueError(f"{path}, line {number}: not the record of epoch {number} ({error}); delete that line "
                              "and those after it, or the run folder to start anew")
            return _history_in_checkpoint(path, torn)
    return records


def _checked(record: Any, number: int) -> Record:
    """A line of the history. Raises ValueError unless it is this epoch's, with a number under each name."""
    found = record if isinstance(record, dict) else {}
    scored = ("psnr",) if found.get("psnr", "") is not None else ()             # null where nothing was validated
    for name in (*MEASURES, *scored):
        if type(found.get(name)) not in (int, float):
            raise ValueError(f"{name} is {found[name]!r}, expected a number" if name in found else f"{name} is missing")
    if found["epoch"] != number:
        raise ValueError(f"epoch is {found['epoch']}")
    return found


def _checked_history(facts: Record) -> list[Record]:
    return [_checked(record, number) for number, record in enumerate(facts["history"], 1)]


def _history_in_checkpoint(path: Path, torn: ValueError) -> list[Record]:
    try:
        history = _checked_history(checkpoint.read_facts(path.with_name("last.safetensors")))
    except (ValueError, KeyError, TypeError):                   # a CheckpointError is a ValueError
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
                       f"{record['kl']:.4g} nats a frame: the training has diverged; the checkpoints before it are "
                       f"kept. {_way_out(config, run)}")


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
    epoch = facts.get("epoch")
    history = read_history(source)[:epoch] if isinstance(epoch, int) else []
    if len(history) != epoch:
        raise ValueError(f"{source / 'history.jsonl'}: has {len(history)} epochs, the weights beside it are of epoch "
                         f"{epoch}; without them there is no going on")
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
