"""Several processes that train one model, as `torchrun` starts them, on one host or many.

Each process computes its share of every batch. Gradients and the statistics of batch norms are averaged over all
of them, so that the numbers are those of a single process with the whole batch, whatever their number.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

PATIENCE = timedelta(hours=2)                   # the first process validates while the others wait for it


@dataclass(frozen=True)
class World:
    """This process's place among all: number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """The one that validates, writes and reports."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """Which sequences of a batch are this process's. Raises ValueError unless all get equally many."""
        if batch_size % self.size:
            raise ValueError(f"a batch of {batch_size} sequences cannot be shared equally by {self.size} processes; "
                             f"choose a batch_size that {self.size} divides, or another number of processes")
        part = batch_size // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


def join() -> World:
    """Join the processes that `torchrun` has started; alone where it has not."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return World(dist.get_rank(), size)


def leave() -> None:
    """Leave the group that `join` joined, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(processes: int, arguments: list[str]) -> None:
    """Run `lab5` with these arguments in several processes on this host, and wait for them.

    Raises RuntimeError where one of them failed or was killed; the others are then stopped too. Ctrl-C and SIGTERM
    reach them, and become a KeyboardInterrupt here when they have saved and ended.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               "-m", "--", "lab5.cli", *arguments]
    told: list[int] = []
    with subprocess.Popen(command) as job:
        def pass_on(number: int, frame: object) -> None:
            told.append(number)
            if number == signal.SIGTERM:                        # Ctrl-C the terminal sends to every process itself
                job.terminate()

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        status = job.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        raise KeyboardInterrupt
    if status:
        raise RuntimeError(f"one of the {processes} processes ended before its time (see above), so all were stopped. "
                           "The run folder holds the last checkpoint: the same command goes on from it, with any "
                           "number of processes")


def mean(value: torch.Tensor) -> torch.Tensor:
    """The average over all processes, which gradients pass through; alone, the value itself."""
    return all_reduce(value) / dist.get_world_size() if dist.is_initialized() else value


def largest(number: float, device: torch.device) -> float:
    """The largest of all processes' numbers; alone, the number itself."""
    if not dist.is_initialized():
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.item()


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its average over all processes, in one message."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    for gradient, averaged in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def share_norms(model: nn.Module) -> nn.Module:
    """Let batch norms take their statistics over the whole batch: PyTorch's on GPUs, our own where it has none."""
    if not dist.is_initialized():
        return model
    if torch.cuda.is_available():
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)
    return model


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes together, equally large each (Ioffe & Szegedy 2015)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features)
        values = features.float()
        first, second = mean(torch.stack([values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))]))
        variance = (second - first.square()).clamp(min=0)
        with torch.no_grad():
            count = features.numel() // features.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(first, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - first * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(features)
