"""The data sets: drawings + words + rendered notes -> plain files, manifest, card, attribution.

`mini`: 300 concepts in five permissive styles at 64 px and the sounds of some of them, small enough to ship.
`full`: every concept and style at 128 px, Tux Paint photographs, three soundfonts.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from plait.data.build import emoji, instruments, tuxpaint
from plait.data.build.card import write_card
from plait.data.build.splits import SAME_DRAWING, LeakReport, ink_difference, split_clips
from plait.data.manifest import write_manifest
from plait.data.mini import write_flac
from plait.types import Sample

WEBP = {"quality": 85, "method": 6}


@dataclass(frozen=True)
class Plan:
    """Sizes of one data set. `mini` concepts come from a list, `full` takes all."""

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

    `permissive` leaves out of `full` what is share-alike or GPL (two styles, Tux Paint, the third soundfont).
    Raises ValueError for another name, an existing non-empty `out`, or a package that cannot be fetched.
    """
    if name not in PLANS:
        raise ValueError(f"expected data set {' or '.join(map(repr, PLANS))}, got {name!r}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"expected a new or empty directory, got {out}; choose another or delete it")
    plan, rich = PLANS[name], PLANS[name].everything and not permissive
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        drawings = list(tqdm(_images(plan, rich, scratch), desc="drawings", disable=not progress, unit=""))
        drawings, copied = without_copied_drawings(drawings, scratch)
        clips, report = _audio(plan, rich, scratch, seed, progress)
        report.drawings_removed = copied
        samples = drawings + clips
        if rich:
            samples += list(tqdm(tuxpaint.samples(scratch, plan.size), desc="photographs", disable=not progress))
        write_manifest(scratch / "manifest.jsonl", samples)
        write_card(scratch, name, samples, report)
        scratch.chmod(0o755)
        if out.exists():
            out.rmdir()
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _images(plan: Plan, rich: bool, out: Path) -> Iterator[Sample]:
    known = emoji.concepts()
    names = list(known) if plan.everything else emoji.mini_names()
    styles = (*emoji.STYLES, *(emoji.SHARE_ALIKE_STYLES if rich else ()))
    held_out = emoji.held_out_styles(names)
    for style in styles:
        icons = emoji.IconSet(style)
        for name in names:
            if icon := icons.find(known[name]):
                sample = _image(icons, icon, known[name], known[name].slug, plan.size, out)
                yield replace(sample, split=_split_of_style(style, held_out[name]))
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
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255


def _image(icons: emoji.IconSet, icon: str, concept: emoji.Concept, stem: str, size: int, out: Path) -> Sample:
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


def _split_of_style(style: str, held_out: str) -> str:
    if style == held_out:
        return "test"
    return "unseen_style" if style in emoji.SHARE_ALIKE_STYLES else "train"


def _audio(plan: Plan, rich: bool, out: Path, seed: int, progress: bool) -> tuple[list[Sample], LeakReport]:
    voices = instruments.VOICES | (instruments.MORE_VOICES if plan.everything else {})
    bar = tqdm(desc="notes", disable=not progress, unit="")
    rendered = []
    for font in instruments.FONTS:
        for clip in instruments.render(font, voices, plan.velocities):
            rendered.append(clip)
            bar.update()
    bar.close()
    chosen, report = split_clips(rendered, plan.max_train, plan.max_test, seed, progress)
    if rich:
        unseen = instruments.render(instruments.UNSEEN_FONT, voices, (80,))
        chosen += [(clip, "unseen_font") for clip in unseen if clip.concept not in report.dropped]
    return [_clip(clip, split, out) for clip, split in chosen], report


def _clip(clip: instruments.Clip, split: str, out: Path) -> Sample:
    concept = emoji.concepts()[clip.concept]
    path = out / "audio" / concept.slug / f"{clip.key}.flac"
    write_flac(path, clip.samples, instruments.SAMPLING_RATE)
    package = instruments.package()
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
