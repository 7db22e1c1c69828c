"""Batches of a run: which rows a step reads and in what order (`plait.data.order`), loaded ahead in the background.

(seed, stage, step) -> `source.rows` -> micro batches of this process -> `source.load` in a thread -> `ahead` ->
loop

No state: a batch follows from its step alone, so a run that goes on loads what it would have loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from plait.training.stages import Source, Stage

T = TypeVar("T")


def step_loader(
    source: Source,
    key: tuple[int, int],
    *,
    batch_size: int,
    accumulation: int = 1,
    rank: int = 0,
    world_size: int = 1,
    finish: Callable[[Any], Any] | None = None,
) -> Callable[[int], tuple[Sequence[int], list[tuple[int, Any]]]]:
    """What loads the batches of one step for one process.

    Args:
        source: gives the rows of a step and loads them.
        key: (seed, stage).
        batch_size: rows of a step over all processes.
        accumulation: micro batches of a step in each process.
        rank, world_size: this process among all.
        finish: applied to every batch after loading, in the loading thread (pinning memory, for example).

    Returns:
        step -> (rows of the global batch, the micro batches of `rank`, each after its place in the batch).

    Raises:
        ValueError: when processes and micro batches do not divide the batch, also later of the rows of a source.

    Example:
        >>> load = step_loader(source, (0, 0), batch_size=2)
        >>> rows, [(start, batch)] = load(0)
        >>> batch.shape
        torch.Size([2, 2])
    """
    check_divides(batch_size, world_size, accumulation)

    def load(step: int) -> tuple[Sequence[int], list[tuple[int, Any]]]:
        rows = source.rows(key[0], step, batch_size)
        # a source may give a multiple of batch_size
        size, left = divmod(len(rows), world_size * accumulation)
        if left:
            raise ValueError(f"expected batches of a multiple of {batch_size} rows from the source, got {len(rows)}")
        parts = []
        for start in range(rank * size * accumulation, (rank + 1) * size * accumulation, size):
            # by the place in the global batch; the 1 tells augmentation apart from other draws of the same step
            rng = np.random.default_rng([*key, step, start, 1])
            batch = source.load([int(row) for row in rows[start : start + size]], rng)
            parts.append((start, batch if finish is None else finish(batch)))
        return rows, parts

    return load


def check_divides(batch_size: int, world_size: int, accumulation: int = 1) -> None:
    """Check that every process and micro batch gets equally many rows.

    Raises:
        ValueError: when `world_size * accumulation` does not divide `batch_size`.
    """
    if batch_size % (world_size * accumulation):
        raise ValueError(
            f"expected a batch_size that {world_size} processes x {accumulation} micro batches divide, got {batch_size}"
        )


def dry_data(stages: Sequence[Stage], seed: int, count: int) -> list[dict[str, Any]]:
    """What the first batches of every stage hold, as one process reads them (`plait train --dry-data`).

    Args:
        stages: of a recipe.
        seed: of the run.
        count: batches of each stage.

    Returns:
        Dicts `{stage, step, samples, tensors}`. Of every tensor its name (path in the batch), shape, dtype and
        the SHA-256 of its bytes. Of floating-point values also their sum weighted by place, which tells whether
        two machines agree but for the last bits. What is no tensor (reference captions, the name of a task)
        counts as its JSON.
    """
    found: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        source = stage.batches()
        load = step_loader(source, (seed, number), batch_size=stage.batch_size, accumulation=stage.accumulation)
        for step in range(count):
            rows, parts = load(step)
            tensors = [one for start, batch in parts for one in _digests(batch, f"{start}." if len(parts) > 1 else "")]
            found.append({"stage": stage.name, "step": step, "samples": source.names(rows), "tensors": tensors})
    return found


def _digests(value: Any, name: str) -> Iterator[dict[str, Any]]:
    """Facts about every tensor in `value`, named `name` plus its path, depth first."""
    import torch

    if isinstance(value, dict):
        for key, part in value.items():
            yield from _digests(part, f"{name}{key}.")
    elif isinstance(value, list | tuple) and any(isinstance(part, dict | torch.Tensor) for part in value):
        for place, part in enumerate(value):
            yield from _digests(part, f"{name}{place}.")
    elif isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        facts: dict[str, Any] = {
            "name": name.rstrip("."),
            "shape": list(array.shape),
            "dtype": str(array.dtype).removeprefix("torch."),
            # as raw bytes: numpy has no bfloat16
            "sha256": hashlib.sha256(array.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        if array.is_floating_point():
            # a swap of rows changes the weighted sum, the plain one stays
            flat = array.double().flatten()
            facts["sum"] = float((flat * torch.linspace(1, 2, len(flat), dtype=torch.float64)).sum())
        yield facts
    else:
        written = json.dumps(value, default=str).encode()
        yield {
            "name": name.rstrip("."), "shape": [], "dtype": type(value).__name__,
            "sha256": hashlib.sha256(written).hexdigest(),
        }  # fmt: skip


@dataclass(slots=True)
class Waiting:
    """Seconds that the training waited for batches and could have used: the figure `data_wait` of a run."""

    seconds: float = 0.0

    def on(self, future: Future[T]) -> T:
        """The future's result, timed."""
        start = time.monotonic()
        try:
            return future.result()
        finally:
            self.seconds += time.monotonic() - start

    def taken(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


@contextmanager
def ahead(
    load: Callable[[int], T], steps: Iterable[int], depth: int, timed: Waiting | None = None
) -> Generator[Iterator[T]]:
    """Iterate over `load(step)` in order, loaded by one background thread before it is needed.

    Args:
        load: called with every step, in that thread alone.
        steps: in the order wanted.
        depth: most batches that lie ready beside the one in use; 0 loads each when it is asked for.
        timed: adds up how long the iterator was waited for.

    Returns:
        A context with the iterator. Errors of `load` are raised where its batch is asked for; leaving the
        context cancels what was not begun and waits for what was.
    """
    timed = timed or Waiting()
    pool = ThreadPoolExecutor(1, "plait-batches")
    _keep_to_one_core(pool)

    def results() -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for step in steps:
            waiting.append(pool.submit(load, step))
            if len(waiting) > depth:
                yield timed.on(waiting.popleft())
        while waiting:
            yield timed.on(waiting.popleft())

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def use_idle_cores(own: int = 0) -> None:
    """As many threads of torch as there are cores with nothing else to do, where OMP_NUM_THREADS does not say.

    Threads that wait for one whose core another program took make a step of a small model many times slower than one
    thread alone.

    Args:
        own: threads of this process that are at work now, which count in the system's load.
    """
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = max(0, round(os.getloadavg()[0] - own))
    threads = max(1, min(_threads_at_first(), cores - others))
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@cache
def _threads_at_first() -> int:
    """torch's own number, which counts real cores where a system lists two threads for each."""
    import torch

    return torch.get_num_threads()


def _keep_to_one_core(pool: ThreadPoolExecutor) -> None:
    """Let torch use one core in the pool's thread: a second team of OpenMP threads fights the training for cores.

    `set_num_threads` binds the calling thread and what later threads begin with; the latter is put back.
    """
    import torch

    def keep() -> None:
        torch.get_num_threads()  # a thread's first question binds it to the number of the others
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    pool.submit(keep).result()
    torch.set_num_threads(threads)
