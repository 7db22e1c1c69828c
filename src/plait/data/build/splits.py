"""Which clips train and which test: held-out notes, no copies, no look-alikes across the border.

A note is held out in every font, program and velocity at once. Soundfonts share samples between programs, kits and
fonts, so copies and look-alikes are dropped first and, after the split, test clips that correlate with a training clip
at any lag are removed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from plait.data.build.instruments import Clip

HELD_OUT_EVERY = 6
HELD_OUT_PHASE = 2
LEAK_CORRELATION = 0.9
COPY_CORRELATION = 0.98
SAME_DRAWING = 0.2
MIN_TEST_CLIPS = 6


def is_held_out(note: int) -> bool:
    """Every sixth semitone is for testing."""
    return note % HELD_OUT_EVERY == HELD_OUT_PHASE


def split_by_hash(key: bytes, test_share: int = 10) -> str:
    """`test` for one key in `test_share`, `train` for the others; the same on every machine."""
    return "test" if int(hashlib.sha256(key).hexdigest(), 16) % test_share == 0 else "train"


@dataclass
class LeakReport:
    """What the leak check saw: clips dropped as copies or look-alikes, test clips removed and the correlation left,
    per concept; held-out drawings removed because a training drawing is nearly the same."""

    copies: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    worst_left: dict[str, float] = field(default_factory=dict)
    median_left: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    drawings_removed: list[str] = field(default_factory=list)


def fingerprint(samples: np.ndarray) -> str:
    """Hash of float samples `(n,)` as 16-bit audio."""
    return hashlib.sha256((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()).hexdigest()


def peak_correlations(queries: Sequence[np.ndarray], keys: Sequence[np.ndarray]) -> np.ndarray:
    """Largest absolute normalised cross-correlation over all lags, `(len(queries), len(keys))`, in 0..1."""
    if not queries or not keys:
        return np.zeros((len(queries), len(keys)), dtype=np.float32)
    size = 2 * max(len(clip) for clip in (*queries, *keys))

    def spectra(clips: Sequence[np.ndarray]) -> np.ndarray:
        unit = [clip / max(float(np.linalg.norm(clip)), 1e-9) for clip in clips]
        return np.stack([np.fft.rfft(clip, size).astype(np.complex64) for clip in unit])

    conjugate = spectra(keys).conj()
    rows = [np.abs(np.fft.irfft(query * conjugate, size)).max(axis=1) for query in spectra(queries)]
    return np.stack(rows).astype(np.float32)


def without_copies(clips: Iterable[Clip]) -> list[Clip]:
    """The clips without exact copies of earlier ones and without look-alikes of the same thing at the same note.

    Look-alikes are strokes that differ only in loudness, or one sample that two programs or fonts share.
    """
    seen: set[str] = set()
    by_note: dict[tuple[str, int], list[Clip]] = defaultdict(list)
    for clip in clips:
        if (mark := fingerprint(clip.samples)) not in seen:
            seen.add(mark)
            by_note[clip.concept, clip.note].append(clip)
    kept = []
    for group in by_note.values():
        alike = peak_correlations([clip.samples for clip in group], [clip.samples for clip in group]) > COPY_CORRELATION
        chosen: list[int] = []
        for number in sorted(range(len(group)), key=lambda i: -group[i].velocity):
            if not alike[number, chosen].any():
                chosen.append(number)
        kept += [group[number] for number in chosen]
    return kept


def spread(clips: Iterable[Clip], count: int, rng: np.random.Generator) -> list[Clip]:
    """At most `count` clips, in turn from each (font, bank, program), louder strokes first, notes in random order."""
    pools: dict[tuple[str, int, int], list[Clip]] = defaultdict(list)
    for clip in clips:
        pools[clip.font.name, clip.bank, clip.program].append(clip)
    queues = []
    for pool in pools.values():
        order = rng.permutation(len(pool))
        queues.append(sorted((pool[i] for i in order), key=lambda clip: clip.velocity))
    chosen: list[Clip] = []
    while queues and len(chosen) < count:
        for queue in queues:
            if len(chosen) < count:
                chosen.append(queue.pop())
        queues = [queue for queue in queues if queue]
    return chosen


def split_clips(
    clips: Sequence[Clip], max_train: int, max_test: int, seed: int = 0, progress: bool = False
) -> tuple[list[tuple[Clip, str]], LeakReport]:
    """Clips with their split (`train` or `test`), concept by concept, and the report of the leak check.

    Concepts that keep fewer than six clean test clips are dropped whole and listed.
    """
    report = LeakReport()
    unique = without_copies(clips)
    report.copies = len(clips) - len(unique)
    rng = np.random.default_rng(seed)
    result: list[tuple[Clip, str]] = []
    names = list(dict.fromkeys(clip.concept for clip in unique))
    for concept in tqdm(names, desc="leak check", disable=not progress, unit=""):
        mine = [clip for clip in unique if clip.concept == concept]
        train = spread((clip for clip in mine if not is_held_out(clip.note)), max_train, rng)
        held = [clip for clip in mine if is_held_out(clip.note)]
        worst = peak_correlations([c.samples for c in held], [c.samples for c in train]).max(axis=1, initial=0.0)
        clean = [(clip, value) for clip, value in zip(held, worst) if value < LEAK_CORRELATION]
        report.removed[concept] = len(held) - len(clean)
        if len(clean) < MIN_TEST_CLIPS:
            report.dropped[concept] = len(clean)
            continue
        test = spread((clip for clip, _ in clean), max_test, rng)
        kept = [value for clip, value in clean if clip in test]
        report.worst_left[concept] = round(float(max(kept)), 3)
        report.median_left[concept] = round(float(np.median(kept)), 3)
        result += [(clip, "train") for clip in train] + [(clip, "test") for clip in test]
    return result, report


def ink_difference(left: np.ndarray, right: np.ndarray) -> float:
    """How much two pictures on white differ: 0 for equal ones, near 1 for drawings without common ink.

    left, right: (height, width, 3) in 0..1. Sum of absolute differences over the sum of the darker values' ink.
    """
    ink = np.maximum(1 - left, 1 - right).sum()
    return float(np.abs(left - right).sum() / max(float(ink), 1e-9))
