"""The data sets: drawings + words + rendered notes -> plain files, manifest, card, attribution.

`mini`: 300 concepts in five permissive styles at 64 px and the sounds of some of them, small enough to ship.
`full`: every concept and style at 128 px, Tux Paint photographs, three soundfonts.

What a data set says about itself: card.json (for programs), README.md (for people), ATTRIBUTION.md (who made it).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait.data.manifest import write_manifest
from plait.data.mini import write_flac
from plait.data.packages import lock
from plait.errors import UsageError
from plait.places import MARK, atomic_directory
from plait.report.tables import markdown_row
from plait.terminal import progress_bar
from plait.types import Sample
from plait_studies.build import emoji, sounds, stamps
from plait_studies.build.sounds import (
    COPY_CORRELATION,
    HELD_OUT_EVERY,
    HELD_OUT_PHASE,
    LEAK_CORRELATION,
    SAME_DRAWING,
    LeakReport,
    ink_difference,
    split_clips,
)

WEBP = {"quality": 85, "method": 6}


@dataclass(frozen=True)
class Plan:
    """Sizes of one data set. `mini` concepts come from a list, `full` takes all.

    Args:
        size: side of pictures, in pixels.
        max_train, max_test: notes of a thing.
        velocities: how hard notes are struck, as MIDI counts it.
        everything: all concepts and voices.
    """

    size: int
    max_train: int
    max_test: int
    velocities: tuple[int, ...]
    everything: bool


PLANS = {
    "mini": Plan(size=64, max_train=110, max_test=24, velocities=(64, 110), everything=False),
    "full": Plan(size=128, max_train=400, max_test=60, velocities=(45, 80, 110), everything=True),
}


def build(name: str, out: str | Path, permissive: bool = False, seed: int = 0, progress: bool = True) -> Path:
    """Build data set `mini` or `full` as a new directory `out` and return it.

    Args:
        name: of the data set.
        out: a directory that does not exist or is empty; it is there whole or not at all.
        permissive: leave out of `full` what is share-alike or GPL (two styles, Tux Paint, the third soundfont).
        seed: of which notes are kept.
        progress: show bars.

    Raises:
        ValueError: for another name, an existing non-empty `out`, or a package that cannot be fetched.
    """
    if name not in PLANS:
        raise ValueError(f"expected data set {' or '.join(map(repr, PLANS))}, got {name!r}")
    out = Path(out)
    plan, rich = PLANS[name], PLANS[name].everything and not permissive
    with atomic_directory(out, replace=True) as scratch:
        if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {MARK}):
            raise UsageError(f"expected a new or empty directory, got {out}; choose another or delete it")
        drawings = list(progress_bar("drawings", _images(plan, rich, scratch), show=None if progress else False))
        drawings, copied = without_copied_drawings(drawings, scratch)
        clips, report = _audio(plan, rich, scratch, seed, progress)
        report.drawings_removed = copied
        samples = drawings + clips
        if rich:
            samples += list(
                progress_bar("photographs", stamps.samples(scratch, plan.size), show=None if progress else False)
            )
        write_manifest(scratch / "manifest.jsonl", samples)
        about = card(name, samples, report)
        (scratch / "card.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (scratch / "README.md").write_text(_readme(about), encoding="utf-8")
        (scratch / "ATTRIBUTION.md").write_text(attribution(samples), encoding="utf-8")
    return out


def _images(plan: Plan, rich: bool, out: Path) -> Iterator[Sample]:
    """Every drawing of the data set, rendered into `out`: styles with their splits, then silhouettes."""
    known = emoji.concepts()
    names = list(known) if plan.everything else emoji.mini_names()
    styles = (*emoji.STYLES, *(emoji.SHARE_ALIKE_STYLES if rich else ()))
    for style in styles:
        icons = emoji.IconSet(style)
        for name in names:
            if icon := icons.find(known[name]):
                sample = _image(icons, icon, known[name], known[name].slug, plan.size, out)
                yield replace(sample, split=_split_of_style(style, name))
    silhouettes = emoji.IconSet(emoji.SILHOUETTE_STYLE)
    for name, icons_of_name in emoji.SILHOUETTES.items():
        for icon in icons_of_name:
            yield _image(silhouettes, icon, known[name], icon, plan.size, out)


def without_copied_drawings(samples: list[Sample], out: Path) -> tuple[list[Sample], list[str]]:
    """The drawings without held-out ones that nearly equal a training drawing of the same thing, and the ids removed.

    Styles of one maker share a few drawings. The files of removed drawings are deleted.
    """
    training: dict[str, list[np.ndarray]] = defaultdict(list)
    for sample in samples:
        if sample.split == "train":
            training[sample.label or ""].append(_pixels(out / sample.image))
    kept, removed = [], []
    for sample in samples:
        if sample.split != "train":
            picture = _pixels(out / sample.image)
            others = training[sample.label or ""]
            if any(ink_difference(picture, other) < SAME_DRAWING for other in others):
                removed.append(sample.id)
                (out / sample.image).unlink()
                continue
        kept.append(sample)
    return kept, removed


def _pixels(path: Path) -> np.ndarray:
    """(side, side, 3) from 0 to 1."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255


def _image(icons: emoji.IconSet, icon: str, concept: emoji.Concept, stem: str, size: int, out: Path) -> Sample:
    """One drawing, written as WebP, and its row; it is for training until a split is said."""
    path = out / "images" / icons.style / f"{stem}.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    icons.render(icon, size).save(path, "WEBP", **WEBP)
    meta: dict[str, Any] = {"style": icons.style, "group": concept.group}
    return Sample(
        id=f"{icons.style}/{stem}",
        text=concept.name,
        image=path.relative_to(out).as_posix(),
        captions=list(concept.keywords),
        label=concept.slug,
        split="train",
        source=f"{icons.package.name} {icons.package.version}",
        license=icons.package.license,
        author=icons.package.author,
        meta=meta,
    )


def _split_of_style(style: str, name: str) -> str:
    """The split of a drawing: the style held out for its thing tests, styles under share-alike licences never train.

    A font that looks like the tested one never trains either: it is there to choose settings by, and tests the things
    that are not drawn in the other.
    """
    if style == emoji.SECOND_HELD_OUT_STYLE:
        return "test" if name in emoji.NOT_IN_HELD_OUT_STYLE else "validation"
    if style == emoji.HELD_OUT_STYLE:
        return "train" if name in emoji.NOT_IN_HELD_OUT_STYLE else "test"
    return "unseen_style" if style in emoji.SHARE_ALIKE_STYLES else "train"


def _audio(plan: Plan, rich: bool, out: Path, seed: int, progress: bool) -> tuple[list[Sample], LeakReport]:
    """Every note of the data set, and what was removed because it nearly equals a note of the other split."""
    voices = sounds.VOICES | (sounds.MORE_VOICES if plan.everything else {})
    bar = progress_bar("notes", show=None if progress else False)
    rendered = []
    for font in sounds.FONTS:
        for clip in sounds.render(font, voices, plan.velocities):
            rendered.append(clip)
            bar.update()
    bar.close()
    chosen, report = split_clips(rendered, plan.max_train, plan.max_test, seed, progress)
    if rich:
        unseen = sounds.render(sounds.UNSEEN_FONT, voices, (80,))
        chosen += [(clip, "unseen_font") for clip in unseen if clip.concept not in report.dropped]
    return [_clip(clip, split, out) for clip, split in chosen], report


def _clip(clip: sounds.Clip, split: str, out: Path) -> Sample:
    """One note, written as FLAC, and its row."""
    concept = emoji.concepts()[clip.concept]
    path = out / "audio" / concept.slug / f"{clip.key}.flac"
    write_flac(path, clip.samples, sounds.SAMPLING_RATE)
    package = sounds.package()
    return Sample(
        id=f"{concept.slug}/{clip.key}",
        text=concept.name,
        audio=path.relative_to(out).as_posix(),
        label=concept.slug,
        split=split,
        source=f"{package.name} {package.version}: {clip.font.name}",
        license=clip.font.license,
        author=clip.font.author,
        meta={
            "font": clip.font.name,
            "bank": clip.bank,
            "program": clip.program,
            "note": clip.note,
            "velocity": clip.velocity,
            "group": concept.group,
        },
    )


SPLIT_MEANING = {
    "train": "for training",
    "test": f"drawings: the style `{emoji.HELD_OUT_STYLE}` (four things: `{emoji.SECOND_HELD_OUT_STYLE}`); notes: "
    "those "
    f"whose MIDI number leaves {HELD_OUT_PHASE} when divided by {HELD_OUT_EVERY}, in every font and program at once; "
    "Tux Paint: a tenth of the stamps",
    "validation": f"drawings of the style `{emoji.SECOND_HELD_OUT_STYLE}`, to choose settings by: the held-out style "
    "is an older version of it, so neither trains",
    "unseen_font": "every note of a soundfont that is not in training",
    "unseen_style": "drawings under share-alike licences, kept for evaluation only",
}
WORDING = (
    "Drawings are emoji: drawings, not photographs. Sounds are sampled instruments and effects rendered note by note, "
    "not recordings of performances. Neighbouring notes of a font are usually one recording at two pitches, so a "
    "held-out note is an unseen pitch, not an unseen recording.",
    "Three couplings of drawing and sound are loose: church (pipe organ), microphone (a sung vowel), postal horn "
    "(French horn). The pictures and the sounds of a thing come from unrelated sources.",
    "Maracas and wind chime are left out: velocity changes only their loudness, so every held-out clip equals a "
    "training clip.",
    f"Accordion, banjo, flute and long drum are not drawn in the style `{emoji.HELD_OUT_STYLE}`: their held-out "
    f"drawing is the one in the style `{emoji.SECOND_HELD_OUT_STYLE}`, which does not train either.",
)


def card(name: str, samples: Sequence[Sample], leak: LeakReport) -> dict[str, Any]:
    """Counts, splits, licences, sounding concepts and the result of the leak check, as plain JSON values."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    clips: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        counts[sample.split or "none"]["audio" if sample.audio is not None else "image"] += 1
        if "font" in sample.meta:
            clips[sample.label or ""][sample.split or "none"] += 1
    tests = [s for s in samples if s.split == "test"]
    drawn = {s.label for s in tests if s.image is not None}
    heard = {s.label for s in tests if s.audio is not None and "font" in s.meta}
    pictures = [s for s in samples if s.image is not None]
    return {
        "name": name,
        "concepts": len({s.label for s in pictures}),
        "test_concepts": len(drawn),
        "sounding": sorted(label for label in heard & drawn if label),
        "counts": {split: dict(count) for split, count in counts.items()},
        "styles": dict(Counter(s.meta["style"] for s in pictures)),
        "fonts": dict(Counter(s.meta["font"] for s in samples if "font" in s.meta)),
        "groups": dict(Counter(s.meta["group"] for s in pictures if s.split == "test")),
        "clips_per_concept": {label: dict(count) for label, count in clips.items()},
        "licenses": dict(Counter(s.license for s in samples)),
        "held_out": {"style": emoji.HELD_OUT_STYLE, "every_nth_note": HELD_OUT_EVERY},
        "leak_check": {"max_correlation_allowed": LEAK_CORRELATION, **asdict(leak)},
    }


def attribution(samples: Sequence[Sample]) -> str:
    """One line per source with author, licence and what was changed, then the sources of the words."""
    sources = Counter((s.source or "unknown", s.author or "unknown", s.license or "unknown") for s in samples)
    lines = [
        "# Attribution",
        "",
        "Drawings were rasterised on white at a small size and compressed; notes were rendered from the soundfonts, "
        "brought to 16 kHz mono, scaled to one peak and, in the shipped files, compressed. Nothing else was changed.",
        "",
        "| source | author | licence | items |",
        "|---|---|---|---|",
    ]
    lines += [markdown_row((source, author, license_, n)) for (source, author, license_), n in sorted(sources.items())]
    for name in ("cldr-annotations-full", "cldr-annotations-derived-full", "unicode-emoji-json"):
        package = lock()[name]
        what = "groups" if name == "unicode-emoji-json" else "names and keywords"
        lines.append(f"| {package.name} {package.version} ({what}) | {package.author} | {package.license} | - |")
    return "\n".join([*lines, "", *_notices(samples)]) + "\n"


def _notices(samples: Sequence[Sample]) -> list[str]:
    held = {s.license for s in samples}
    texts = {
        "Apache-2.0": "Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0",
        "CC-BY-4.0": "Creative Commons Attribution 4.0: https://creativecommons.org/licenses/by/4.0/",
        "CC-BY-3.0": "Creative Commons Attribution 3.0: https://creativecommons.org/licenses/by/3.0/ (game-icons.net)",
        "CC-BY-SA-4.0": "Creative Commons Attribution-ShareAlike 4.0: https://creativecommons.org/licenses/by-sa/4.0/",
        "GPL-2.0-only": "GNU General Public License 2: https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
    }
    lines = ["## Licences", ""]
    lines += [f"- {text}" for name, text in texts.items() if name in held]
    lines.append("- Unicode License v3: https://www.unicode.org/license.txt, Copyright © 2004-2026 Unicode, Inc.")
    if "MIT" in held:
        notices = (files("plait_studies.build") / "mit_notices.txt").read_text(encoding="utf-8").strip()
        lines += ["- MIT (Fluent Emoji, MuseScore_General, FluidR3Mono), with these notices:", "", notices]
    return lines


def _readme(about: dict[str, Any]) -> str:
    leak = about["leak_check"]
    worst = max(leak["worst_left"].values(), default=0.0)
    lines = [f"# Plait data set `{about['name']}`", "", *(f"{text}\n" for text in WORDING)]
    lines += ["| split | images | clips | meaning |", "|---|---|---|---|"]
    for split, count in about["counts"].items():
        lines.append(
            f"| {split} | {count.get('image', 0)} | {count.get('audio', 0)} | {SPLIT_MEANING.get(split, '')} |"
        )
    lines += [
        "",
        f"- {about['concepts']} concepts, {about['test_concepts']} of them with a held-out drawing; words are Unicode "
        "CLDR short names (`text`) and keywords (`captions`).",
        f"- {len(about['sounding'])} concepts have held-out drawings and held-out clips: "
        f"{', '.join(about['sounding'])}.",
        f"- Clips last {sounds.SECONDS:g} s at {sounds.SAMPLING_RATE} Hz, mono, peak {sounds.PEAK}.",
        "- Styles: " + ", ".join(f"{style} {n}" for style, n in about["styles"].items()) + ".",
        "- Licences: "
        + ", ".join(f"{license_} {n}" for license_, n in about["licenses"].items())
        + " (ATTRIBUTION.md).",
        "",
        "## Leak check",
        "",
        f"Held-out drawings removed because a training drawing is nearly the same (differences below {SAME_DRAWING} "
        "of the ink): " + (", ".join(leak["drawings_removed"]) or "none") + ".",
        "",
        f"{leak['copies']} rendered clips were copies of others, or look-alikes of the same thing at the same note "
        f"(peak cross-correlation over {COPY_CORRELATION}), and dropped. Then held-out clips whose peak "
        f"cross-correlation with a training clip of the same thing reaches {leak['max_correlation_allowed']} "
        "were removed: "
        + (", ".join(f"{concept} {n}" for concept, n in leak["removed"].items() if n) or "none")
        + f". The largest correlation left is {worst:.2f}. Concepts dropped for want of clean held-out clips: "
        + (", ".join(leak["dropped"]) or "none")
        + ". Rendered clips were compared before compression; after it, no test file equals a training file.",
    ]
    return "\n".join(lines) + "\n"
