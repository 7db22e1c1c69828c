"""Any data set -> an ordered stream of batches that never lies in memory.

manifest | tar shards | parquet | saved set | folder -> open_samples -> select (which rows: 8 bytes each)
    -> rows of a step (`plait.data.order`) -> decode (workers, media limits) -> collate -> batch

What a batch holds is a function of its rows and the generator alone, never of the number or the speed of workers. The
rows of a step are a function of seed and step, so nothing has to be stored to go on with them.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from plait.data.manifest import Skipped
from plait.data.order import Order, Shuffled
from plait.data.sources import open_samples
from plait.media.image import load_image
from plait.types import Sample

Decode = Callable[[Any, np.random.Generator], Any]
Collate = Callable[[list[Any], np.random.Generator], Any]


class Source(Protocol):
    """What a step's batch comes from: a `Reader`, a `plait.data.mixture.Mixture`, or examples that are drawn.

    Nothing here keeps a position: a run that continues asks for its step and gets the same batch.
    """

    def __len__(self) -> int:
        """Samples in one epoch."""
        ...

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """The sample numbers of global batch `step`: a pure function, the same for every number of processes.

        Args:
            seed: of the run. step: from 0, counted on through all epochs.
            batch_size: rows of a global batch.

        Returns:
            As many numbers as batch_size, or a multiple of it where batches are filled to a budget
            (`plait.data.order.Budgeted`).
        """
        ...

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """Read and collate these samples; runs in a background thread, so every random draw must come from `rng`."""
        ...

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these samples, for messages."""
        ...


@dataclass
class BadSamples:
    """Samples that could not be read: row number -> one line.

    Args:
        most: so many are skipped, the next one is fatal; None for no limit.
        messages: what was noted; rows that have no number, since they were never opened, count down from -1.
    """

    most: int | None = None
    messages: dict[int, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        return len(self.messages)

    def add(self, row: int, message: str) -> None:
        """Note a bad sample once, from any thread.

        Raises:
            ValueError: when there are more than `most`.
        """
        with self._lock:
            if row in self.messages:
                return
            if self.most is not None and len(self.messages) >= self.most:
                # not kept: met again, it is fatal again
                raise ValueError(
                    f"expected at most {self.most} bad samples, got {len(self.messages) + 1}, the last: {message}; "
                    "correct them (plait data check lists all) or allow more"
                )
            self.messages[row] = message


@dataclass(frozen=True)
class Reading:
    """How rows are read, never which they are or what becomes of them; every recipe has these three settings.

    Args:
        workers: threads that decode (decoders of media let others run meanwhile), 0 for the thread that collates.
        on_bad: "raise", or "skip": a sample that cannot be read is counted and listed, and the next one stands in.
        most_bad: so many are skipped, one more is fatal; None for no limit.

    Raises:
        ValueError: for another on_bad, and for fewer than 0 workers.

    Example:
        >>> Reading(workers=2, on_bad="skip", most_bad=10).workers
        2
    """

    workers: int = 0
    on_bad: Literal["raise", "skip"] = "raise"
    most_bad: int | None = None

    def __post_init__(self) -> None:
        if self.on_bad not in ("raise", "skip"):
            raise ValueError(f"expected on_bad 'raise' or 'skip', got {self.on_bad!r}")
        if self.workers < 0:
            raise ValueError(f"expected 0 or more workers, got {self.workers}")


class Rows(Sequence[Sample]):
    """Some rows of a data set in its order, read when they are asked for; 8 bytes a row are held.

    Args:
        samples: the whole data set.
        numbers: (rows,) int64, which of its samples these are.
        measures: (rows,) int64, what `select` was asked to measure of each.
        bad: what could not be read so far; a `Reader` over these rows goes on with its count.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        numbers: np.ndarray,
        measures: np.ndarray | None = None,
        bad: BadSamples | None = None,
    ) -> None:
        self.samples, self.numbers = samples, numbers
        self.measures = np.zeros(len(numbers), np.int64) if measures is None else measures
        self.bad = BadSamples() if bad is None else bad

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self.samples[number] for number in self.numbers[place].tolist()]
        return self.samples[int(self.numbers[place])]

    def __iter__(self) -> Iterator[Sample]:
        return (self[place] for place in range(len(self)))


def select(
    data: str | Sequence[Sample],
    wanted: str,
    keep: Callable[[Sample], bool],
    *,
    splits: Sequence[str | None] | None = (None, "train"),
    measure: Callable[[Sample], int] | None = None,
    reading: Reading | None = None,
    may_be_none: bool = False,
) -> Rows:
    """The rows of a data set that are of `splits` and that `keep` takes, found in one pass that holds none of them.

    A row that cannot be read, or that keep or measure refuse with a ValueError, is fatal, or skipped as `reading` says.
    How many rows keep passed over is said on stderr, by their media: a data set may hold what a recipe has no use for.

    Args:
        data: a path for `open_samples`, or samples, such as rows that were selected before.
        wanted: what kept rows have, in words, for the error.
        keep: whether a row is wanted.
        splits: of the rows, None for all; a row without a split trains.
        measure: a whole number of each row (its length, the digest of its concept).
        may_be_none: whether nothing may be left.

    Raises:
        ValueError: where no row is left, for the first bad one unless they are skipped, and beyond `reading.most_bad`.

    Example:
        >>> rows = select([Sample("a", text="cat"), Sample("b")], "text", lambda sample: bool(sample.text))
        >>> [sample.id for sample in rows]
        ['a']
    """
    reading = reading or Reading()
    skips, skipped = reading.on_bad == "skip", Skipped()
    bad = data.bad if isinstance(data, Rows) else BadSamples(reading.most_bad)
    samples = open_samples(data, reading.on_bad, skipped) if isinstance(data, str) else data
    for line in skipped.messages:
        bad.add(-1 - len(bad), line)  # these have no number: the manifest left them out
    # Arrays of the C kind, 8 bytes a row: a list of a billion Python integers would not fit.
    numbers, measures, seen, others = array("q"), array("q"), 0, Counter[str]()
    for number in range(len(samples)):
        try:
            sample = samples[number]
            if splits is not None and sample.split not in splits:
                continue
            seen += 1
            if keep(sample):
                measures.append(measure(sample) if measure else 0)
                numbers.append(number)
            else:
                others[" and ".join(medium for medium in sample.modalities if medium != "text") or "text alone"] += 1
        except ValueError as error:
            if not skips:
                raise
            bad.add(-1 - len(bad), " ".join(str(error).split()))
    if not numbers and not may_be_none:
        named = " or ".join(repr(split) for split in splits or ("any",) if split)
        raise ValueError(f"expected rows with {wanted} in {data}, got none among {seen} rows of split {named}")
    if others and not may_be_none and os.environ.get("RANK", "0") == "0":
        # of several processes one tells
        left = ", ".join(f"{count} with {name}" for name, count in others.items())
        print(f"{len(numbers)} rows with {wanted}; left out: {left}", file=sys.stderr, flush=True)
    return Rows(samples, np.array(numbers, np.int64), np.array(measures, np.int64), bad)


class Reader:
    """A source over any sequence of samples.

    Args:
        samples: `Rows`, or any sequence; its position is the row number.
        collate: `(parts, rng) -> batch`.
        decode: `(sample, rng) -> part`, run by the workers; without it images are decoded and everything else is
            left as it is. A sample that decode or collate refuses (ValueError, OSError) is bad.
        reading: workers, and what becomes of bad samples.
        order: which rows a step has, without it a new order every epoch.
        keep_bytes: so many bytes of decoded parts are kept for when their rows come again, which pays for small files
            that are met in many epochs; only for a decode that draws nothing.

    Example:
        >>> reader = Reader([1, 2, 3, 4], lambda parts, rng: sorted(parts), as_it_is)
        >>> reader.load([3, 0], np.random.default_rng(0))
        [1, 4]
    """

    def __init__(
        self,
        samples: Sequence[Any],
        collate: Collate,
        decode: Decode | None = None,
        *,
        reading: Reading | None = None,
        order: Order | None = None,
        keep_bytes: int = 0,
    ) -> None:
        reading = reading or Reading()
        self.samples, self.collate, self.decode = samples, collate, decode or decoded
        self.order = order or Shuffled(len(samples))
        self.skips = reading.on_bad == "skip"
        self.bad = samples.bad if isinstance(samples, Rows) else BadSamples(reading.most_bad)
        self._pool = ThreadPoolExecutor(reading.workers, "plait-decode") if reading.workers else None
        self._kept: dict[int, Any] = {}
        self._room = keep_bytes

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """Sample numbers of global batch `step`."""
        return self.order.rows(seed, step, batch_size)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these samples, their number where a row cannot be read."""
        return [self._name(row) for row in rows]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """The collated batch of these samples. Raises ValueError or OSError for the first bad one unless they skip."""
        # a generator a sample, since workers do not share one; drawn from a copy, so that what collate draws is the
        # same whether decode draws or not
        keys = copy.deepcopy(rng).integers(1 << 62, size=len(rows)).tolist()
        work = list(zip(rows, keys, strict=True))
        parts = list(self._pool.map(self._part, work) if self._pool else map(self._part, work))
        state = rng.bit_generator.state
        try:
            return self.collate(parts, rng)
        except (ValueError, OSError):
            if not self.skips:
                raise
        # The collate of the whole batch does not say whose fault it was: each part is tried alone.
        parts = [self._collated_alone(part, row, key) for part, (row, key) in zip(parts, work, strict=True)]
        # The failed collate may have drawn; the batch must not depend on how far it came.
        rng.bit_generator.state = state
        return self.collate(parts, rng)

    def _part(self, work: tuple[int, int]) -> Any:
        """The decoded sample of a row, or of the next row that can be read."""
        row, key = work
        # The next row in the data set's order stands in, the same in every process and run.
        for number in range(len(self.samples)):
            place = (row + number) % len(self.samples)
            if place in self.bad.messages:
                continue
            if place in self._kept:
                return self._kept[place]
            try:
                part = self.decode(self.samples[place], np.random.default_rng(key))
            except (ValueError, OSError) as error:
                if not self.skips:
                    raise
                self.bad.add(place, f"{self._name(place)}: {' '.join(str(error).split())}")
                continue
            if self._room > 0:  # two workers may take a little more than there is
                self._kept[place] = part
                self._room -= num_bytes(part)
            return part
        raise ValueError(f"expected samples that can be read, got {len(self.bad)} bad ones of {len(self.samples)}")

    def _collated_alone(self, part: Any, row: int, key: int) -> Any:
        """`part` where it can be collated; else its row is bad and the next one that can be stands in."""
        for number in range(len(self.samples)):
            place = (row + number) % len(self.samples)
            if number:
                if place in self.bad.messages:
                    continue
                part = self._part((place, key))
            try:
                self.collate([part], np.random.default_rng(key))
            except (ValueError, OSError) as error:
                self.bad.add(place, f"{self._name(place)}: {' '.join(str(error).split())}")
            else:
                return part
        raise ValueError(f"expected samples that can be read, got {len(self.bad)} bad ones of {len(self.samples)}")

    def _name(self, row: int) -> str:
        """The id of a row, or its number where it has none or cannot be read."""
        try:
            return str(getattr(self.samples[row], "id", row))
        except ValueError:
            return str(row)


def decoded(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with its image decoded, under the limits of `plait.media`."""
    if sample.image is None:
        return sample
    return Sample.from_row({**sample.to_row(), "image": load_image(sample.image)})


def as_it_is(sample: Any, rng: np.random.Generator) -> Any:
    """Nothing is decoded: the samples lie in memory, or collate reads what they name."""
    return sample


def num_bytes(part: Any) -> int:
    """Bytes of arrays and tensors in any nest of dicts, lists and tuples; everything else counts as nothing."""
    if isinstance(part, dict):
        return sum(map(num_bytes, part.values()))
    if isinstance(part, list | tuple):
        return sum(map(num_bytes, part))
    return int(getattr(part, "nbytes", 0))
