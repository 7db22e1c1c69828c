"""Several processes train one model: what torchrun says in the environment -> a process group -> DDP (or FSDP2).

The objective is wrapped together with the model, so an objective may call any method of the model and DDP still sees
one forward pass. Parameters that a rank's batch does not touch are found in the graph, so ranks with different
modalities never wait for one another's gradients.
"""

from __future__ import annotations

import inspect
import os
import random
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from plait.errors import UsageError
from plait.training.stages import Batch, Metrics, Objective


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: rank 0 .. size - 1, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def mean(self, values: list[float], device: torch.device) -> list[float]:
        """Mean of each number over all processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return (total / self.size).tolist()

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def wait(self) -> None:
        """As `barrier`, but up to a day: for the process that measures or writes alone, longer than a hang may last."""
        if self.size > 1:
            dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(days=1)))


def check_shared(directory: Path, world: World) -> None:
    """Raise ValueError in every process unless all see one `directory`: nodes have to share a file system."""
    if world.size == 1:
        return
    mark = directory / f".seen-by-{world.size}"
    if world.is_main:
        directory.mkdir(parents=True, exist_ok=True)
        mark.touch()
    world.barrier()
    seeing = round(world.size * world.mean([float(mark.exists())], torch.device("cpu"))[0])
    if world.is_main:
        mark.unlink()
    if seeing < world.size:
        raise ValueError(
            f"expected {directory} on a file system that all nodes share, got {seeing} of {world.size} processes that "
            "see it; choose another --out"
        )


@contextmanager
def process_group(device: str | torch.device | None = None) -> Generator[tuple[World, torch.device]]:
    """The world torchrun describes (one process without it) and the device of this process.

    device: "cpu", "cuda" or "cuda:1"; None takes a GPU where there is one. Backend: nccl on GPUs, gloo on the CPU.
    Leaves a process group that exists already as it is. Raises ValueError for a device that is not there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f"expected a device such as cuda or cpu, got {str(device)!r}; pass one of them") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"expected a device of this machine, got {str(kind)!r} without a GPU; pass --device cpu")
    if kind.type == "cuda":
        kind = torch.device("cuda", local_rank if kind.index is None else kind.index)
        torch.cuda.set_device(kind)
    starts = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if starts:
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind.type == "cuda" else "gloo")
    try:
        yield current_world(), kind
    finally:
        if starts:
            dist.destroy_process_group()


_is_alone = False


@contextmanager
def alone() -> Generator[None]:
    """Inside, this process is a world of its own: what it does alone (a plan, a measurement) waits for no other."""
    global _is_alone  # noqa: PLW0603 (a process group is global as well)
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def current_world() -> World:
    """The world of the running process group, a world of one without a group or `alone`."""
    if _is_alone or not dist.is_initialized():
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """All processes' rows, without gradient, and where this process's rows start among them.

    x: (batch, ...), the same shape everywhere -> ((world * batch, ...), rank * batch). As in ONE-PEACE, every process
    learns from its own rows alone; the mean of the gradients over processes, which DDP and FSDP take, is then the
    gradient of one large batch: no further factor.
    """
    world, x = current_world(), x.detach().contiguous()
    if world.size == 1:
        return x, 0
    gathered = torch.empty(world.size * len(x), *x.shape[1:], dtype=x.dtype, device=x.device)
    _ALL_GATHER(gathered, x)
    return gathered, world.rank * len(x)


_ALL_GATHER: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""By its name of torch 2.13, which warns about the older one."""


def chunk_of(batch: int) -> int:
    """Rows of contrastive logits to hold at a time, so that their memory does not grow with the number of processes.

    batch: rows of this process. A chunk of batch / world rows against world * batch columns has batch ** 2 numbers.
    """
    return max(1, batch // current_world().size)


class ObjectiveModule(nn.Module):
    """A model and its objective as one module, whose forward is `objective(model, batch, step, generator)`."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = [objective]  # in a list: its own state (a momentum twin) is none of DDP's business

    def forward(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The objective's (loss, metrics)."""
        return self.objective[0](self.model, batch, step, generator)


def distributed(module: ObjectiveModule, world: World) -> nn.Module:
    """`module` itself in a world of one or when it is sharded, else under DDP (gradients are means over processes)."""
    if world.size == 1 or isinstance(module, FSDPModule):
        return module
    accepted = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"  # name by version
    how: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
    return DistributedDataParallel(module, **how)


@contextmanager
def without_gradient_sync(module: nn.Module, active: bool) -> Generator[None]:
    """Keep gradients local (all but the last micro batch of an accumulated step)."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not active)
        yield
    elif active and isinstance(module, DistributedDataParallel):
        with cast("Any", module).no_sync():
            yield
    else:
        yield


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """`batch` with `function` applied to every tensor in its dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def seed_everything(*key: int) -> int:
    """Seed the global generators of Python, numpy and torch from `key`; returns a further seed for a generator."""
    first, second, third, fourth = (int(word) for word in np.random.SeedSequence(key).generate_state(4))
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)  # torch.manual_seed also formats a stack trace per absent device type
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(third)
    return fourth


@contextmanager
def stop_signals() -> Generator[list[signal.Signals]]:
    """Collect SIGTERM and Ctrl-C instead of dying of them; the second Ctrl-C raises KeyboardInterrupt."""
    seen: list[signal.Signals] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield seen  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
