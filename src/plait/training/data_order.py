"""Batches of a run: which rows a step reads and in what order (`plait.data.order`), loaded ahead in the background."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from plait.data.order import permuted, rows_of_step

if TYPE_CHECKING:
    from plait.training.stages import Source, Stage

T = TypeVar("T")

__all__ = ["Shuffled", "ahead", "permuted", "rows_of_step", "step_loader"]


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
    """step -> (rows of the global batch, the micro batches of process `rank`, each after its place in the batch).

    key: (seed, stage). finish: applied to every batch after loading, in the loading thread.
    Raises ValueError when processes and micro batches do not divide the batch.
    """
    check_divides(batch_size, world_size, accumulation)

    def load(step: int) -> tuple[Sequence[int], list[tuple[int, Any]]]:
        rows = source.rows(key[0], step, batch_size)
        size, left = divmod(len(rows), world_size * accumulation)  # a source may give a multiple of batch_size
        if left:
            raise ValueError(f"expected batches of a multiple of {batch_size} rows from the source, got {len(rows)}")
        parts = []
        for start in range(rank * size * accumulation, (rank + 1) * size * accumulation, size):
            rng = np.random.default_rng([*key, step, start, 1])
            batch = source.load([int(row) for row in rows[start : start + size]], rng)
            parts.append((start, batch if finish is None else finish(batch)))
        return rows, parts

    return load


def check_divides(batch_size: int, world_size: int, accumulation: int = 1) -> None:
    """Raise ValueError when processes and micro batches do not divide the batch."""
    if batch_size % (world_size * accumulation):
        raise ValueError(
            f"expected a batch_size that {world_size} processes x {accumulation} micro batches divide, got {batch_size}"
        )


def dry_data(stages: Sequence[Stage], seed: int, count: int) -> list[dict[str, Any]]:
    """What the first `count` batches of every stage hold: `{stage, step, samples, tensors}`, as one process reads them.

    Of every tensor the name (its path in the batch), shape, dtype and the SHA-256 of its bytes; of floating-point
    values also their sum weighted by place, which tells whether two machines agree but for the last bits. What is no
    tensor (reference captions, the name of a task) counts as its JSON.
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
            "sha256": hashlib.sha256(array.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        if array.is_floating_point():
            flat = array.double().flatten()  # a swap of rows changes the weighted sum, the plain one stays
            facts["sum"] = float((flat * torch.linspace(1, 2, len(flat), dtype=torch.float64)).sum())
        yield facts
    else:
        written = json.dumps(value, default=str).encode()
        yield {
            "name": name.rstrip("."), "shape": [], "dtype": type(value).__name__,
            "sha256": hashlib.sha256(written).hexdigest(),
        }  # fmt: skip


@dataclass(slots=True)
class Flow:
    """Seconds spent loading batches, in the background, and waiting for them, which training could have used."""

    loaded: float = 0.0
    waited: float = 0.0

    def loading(self, load: Callable[[int], T], step: int) -> T:
        """`load(step)`, timed."""
        start = time.monotonic()
        try:
            return load(step)
        finally:
            self.loaded += time.monotonic() - start

    def waiting(self, future: Future[T]) -> T:
        """The future's result, timed."""
        start = time.monotonic()
        try:
            return future.result()
        finally:
            self.waited += time.monotonic() - start

    def since(self, last: Flow) -> Flow:
        """What came on top of `last`, which becomes the present state."""
        added = Flow(self.loaded - last.loaded, self.waited - last.waited)
        last.loaded, last.waited = self.loaded, self.waited
        return added


@contextmanager
def ahead(
    load: Callable[[int], T], steps: Iterable[int], depth: int, flow: Flow | None = None
) -> Generator[Iterator[T]]:
    """Iterate over `load(step)` in order, loaded by one background thread up to `depth` steps before it is needed.

    flow: adds up how long loading took and how long the iterator was waited for.
    """
    flow = flow or Flow()
    pool = ThreadPoolExecutor(1, "plait-batches")
    _keep_to_one_core(pool)

    def results() -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for step in steps:
            waiting.append(pool.submit(lambda step=step: flow.loading(load, step)))
            if len(waiting) > depth:
                yield flow.waiting(waiting.popleft())
        while waiting:
            yield flow.waiting(waiting.popleft())

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


class Shuffled:
    """A source over samples in memory: every epoch a new order, `collate(samples, rng)` makes the batch.

    samples: anything with `[number]` and `len`; their `id` names them in messages, their number where they have none.
    """

    def __init__(self, samples: Sequence[Any], collate: Callable[[list[Any], np.random.Generator], Any]) -> None:
        self.samples = samples
        self.collate = collate

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """Sample numbers of global batch `step`."""
        return rows_of_step(len(self), batch_size, seed, step).tolist()

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """The collated batch of these samples."""
        return self.collate([self.samples[row] for row in rows], rng)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these samples."""
        return [str(getattr(self.samples[row], "id", row)) for row in rows]
