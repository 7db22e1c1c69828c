"""Samples on disk -> batches: decoded by several workers, with bad samples fatal, or counted, listed and replaced.

rows of a step -> decode (workers, media limits) -> collate -> batch

What a batch holds is a function of its rows and the generator alone, never of the number or the speed of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from plait.data.order import rows_of_step
from plait.media.image import load_image
from plait.types import Sample

Decode = Callable[[Sample, np.random.Generator], Any]
Collate = Callable[[list[Any], np.random.Generator], Any]
T = TypeVar("T")


@dataclass
class BadSamples:
    """Samples that could not be read: row number -> one line. most: so many are skipped, the next one is fatal."""

    most: int | None = None
    messages: dict[int, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        return len(self.messages)

    def add(self, row: int, message: str) -> None:
        """Note a bad sample once. Raises ValueError when there are more than `most`."""
        with self._lock:
            self.messages.setdefault(row, message)
            if self.most is not None and len(self.messages) > self.most:
                raise ValueError(
                    f"expected at most {self.most} bad samples, got {len(self.messages)}, the last: {message}; "
                    "correct them (plait data check lists all) or allow more"
                )


class Reader(Generic[T]):
    """A source over any sequence of samples, in a new order every epoch.

    decode: `(sample, rng) -> part`, run by `workers` threads (decoders of media let others run meanwhile); without it
        pictures are decoded and everything else is left as it is. collate: `(parts, rng) -> batch`.
    on_bad: "raise", or "skip": a sample that decode or collate refuse (ValueError, OSError) is counted and listed in
        `bad`, and the next row that can be read stands in, so every process keeps the size of its batch and the batch
        stays a function of its rows. most_bad: so many are skipped, one more is fatal.
    """

    def __init__(
        self,
        samples: Sequence[Any],
        collate: Collate,
        decode: Decode | None = None,
        *,
        workers: int = 0,
        on_bad: Literal["raise", "skip"] = "raise",
        most_bad: int | None = None,
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"expected on_bad 'raise' or 'skip', got {on_bad!r}")
        if workers < 0:
            raise ValueError(f"expected 0 or more workers, got {workers}")
        self.samples, self.collate, self.decode = samples, collate, decode or decoded
        self.skips = on_bad == "skip"
        self.bad = BadSamples(most_bad)
        self._pool = ThreadPoolExecutor(workers, "plait-decode") if workers else None

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """Sample numbers of global batch `step`."""
        return rows_of_step(len(self), batch_size, seed, step).tolist()

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these samples, their number where a row cannot be read."""
        return [self._name(row) for row in rows]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """The collated batch of these samples. Raises ValueError or OSError for the first bad one unless they skip."""
        keys = rng.integers(1 << 62, size=len(rows))  # one generator a sample: workers do not share one
        work = list(zip(rows, keys.tolist(), strict=True))
        parts = list(self._pool.map(self._part, work) if self._pool else map(self._part, work))
        state = rng.bit_generator.state
        try:
            return self.collate(parts, rng)
        except (ValueError, OSError):
            if not self.skips:
                raise
        parts = [self._collated_alone(part, row, key) for part, (row, key) in zip(parts, work, strict=True)]
        rng.bit_generator.state = state
        return self.collate(parts, rng)

    def _part(self, work: tuple[int, int]) -> Any:
        """The decoded sample of a row, or of the next row that can be read."""
        row, key = work
        for number in range(len(self.samples)):
            place = (row + number) % len(self.samples)
            if place in self.bad.messages:
                continue
            try:
                return self.decode(self.samples[place], np.random.default_rng(key))
            except (ValueError, OSError) as error:
                if not self.skips:
                    raise
                self.bad.add(place, _line(self._name(place), error))
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
                self.bad.add(place, _line(self._name(place), error))
            else:
                return part
        raise ValueError(f"expected samples that can be read, got {len(self.bad)} bad ones of {len(self.samples)}")

    def _name(self, row: int) -> str:
        try:
            return str(getattr(self.samples[row], "id", row))
        except ValueError:
            return str(row)


def decoded(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with its picture decoded, under the limits of `plait.media`."""
    if sample.image is None:
        return sample
    return Sample.from_row({**sample.to_row(), "image": load_image(sample.image)})


def _line(name: str, error: Exception) -> str:
    return f"{name}: {' '.join(str(error).split())}"
