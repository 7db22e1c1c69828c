"""Drawings of named things: CLDR names + icon packages -> concepts -> square RGB rasters on white.

Each icon package is one independent drawing style of the same Unicode characters; Unicode's CLDR names and keywords are
the words. Icons are SVG fragments, rasterised with resvg-py.

Animated 3D emoji: animated WebP packages + CLDR names -> short H.264 clips with names, on white.

Most of them are recognisable from one frame, so a task that claims to need time has to be made from their order.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait.data.packages import Package, lock, unpacked
from plait.errors import import_extra
from plait.types import Sample
from plait_studies.build.sounds import split_by_hash

STYLES = ("noto", "noto-v1", "twemoji", "emojione", "fluent-emoji-flat")
"""Permissively licensed styles that have most characters. `fluent-emoji` draws what its flat sister draws: left out."""

SHARE_ALIKE_STYLES = ("openmoji", "emojione-v1")
HELD_OUT_STYLE = "noto-v1"
SECOND_HELD_OUT_STYLE = "noto"
"""The newer version of the held-out font: 116 of 296 drawings are each other's nearest, so it must not train."""
NOT_IN_HELD_OUT_STYLE = ("accordion", "banjo", "flute", "long drum")
"""Sounding things that the held-out style does not draw; their drawing in the second one is held out instead."""

SILHOUETTE_STYLE = "game-icons"

SILHOUETTES = {
    "accordion": ("accordion",),
    "banjo": ("banjo",),
    "bell": ("ringing-bell",),
    "church": ("church",),
    "drum": ("drum",),
    "flute": ("flute",),
    "guitar": ("guitar",),
    "helicopter": ("helicopter",),
    "microphone": ("microphone", "old-microphone"),
    "musical keyboard": ("musical-keyboard",),
    "postal horn": ("hunting-horn",),
    "saxophone": ("saxophone",),
    "telephone": ("rotary-phone",),
    "trumpet": ("trumpet",),
    "violin": ("violin",),
    "water wave": ("big-wave",),
}
"""One-colour drawings under other names than CLDR's: concept name -> icon names."""

SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
MARGIN = 0.04  # of the icon's larger side, on every side


@dataclass(frozen=True)
class Concept:
    """A named thing: Unicode `char`, CLDR `name` and `keywords`, Unicode `group`."""

    char: str
    name: str
    keywords: tuple[str, ...]
    group: str

    @property
    def slug(self) -> str:
        """The name in lower-case letters and hyphens, as the icon packages spell it."""
        return slugify(self.name)


def slugify(name: str) -> str:
    """`Statue of Liberty` -> `statue-of-liberty`; quotes vanish, everything else unusual becomes a hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’']", "", name.lower())).strip("-")


@cache
def concepts() -> dict[str, Concept]:
    """Every character with a CLDR name and a Unicode group, by name, without skin-tone variants."""
    words: dict[str, dict[str, list[str]]] = {}
    for package, key in (("annotations", "annotations"), ("annotations-derived", "annotationsDerived")):
        path = unpacked(f"cldr-{package}-full") / "package" / key / "en" / "annotations.json"
        words |= _read(path)[key]["annotations"]
    groups = _read(unpacked("unicode-emoji-json") / "package" / "data-by-emoji.json")
    found: dict[str, Concept] = {}
    slugs: set[str] = set()
    for char, about in groups.items():
        entry = words.get(char) or words.get(char.replace("\ufe0f", ""))
        if entry and "tts" in entry and not SKIN_TONES.search(char):
            name = entry["tts"][0]
            if slugify(name) in slugs:  # "keycap: #" and "keycap: *" would share files
                continue
            slugs.add(slugify(name))
            keywords = tuple(word for word in entry.get("default", ()) if word != name)
            found[name] = Concept(char.replace("\ufe0f", ""), name, keywords, about["group"])
    return found


def mini_names() -> list[str]:
    """The chosen concepts of the mini data set, in the order of their list."""
    text = (files("plait_studies.build") / "concepts_mini.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return [name.strip() for line in lines for name in line.split(";") if name.strip()]


class IconSet:
    """One drawing style: finds the icon of a concept and rasterises it."""

    def __init__(self, style: str) -> None:
        self.style = style
        folder = unpacked(f"@iconify-json/{style}") / "package"
        self._data = _read(folder / "icons.json")
        table = folder / "chars.json"  # code points joined by hyphens -> icon name; some styles have no such table
        self._by_codepoints: dict[str, str] = _read(table) if table.is_file() else {}

    @property
    def package(self) -> Package:
        """The pinned package the style comes from, with licence and author."""
        return lock()[f"@iconify-json/{self.style}"]

    def find(self, concept: Concept) -> str | None:
        """Name of the concept's icon, or None when this style lacks it. Mirrored or turned aliases do not count."""
        points = [f"{ord(char):x}" for char in concept.char]
        for name in (concept.slug, self._by_codepoints.get("-".join(points))):
            if name and self._resolve(name):
                return name
        return None

    def _resolve(self, name: str) -> dict[str, Any] | None:
        """The icon of a name or of a plain alias; an alias that turns or mirrors is another drawing."""
        icon = self._data["icons"].get(name)
        if icon is None and (alias := self._data.get("aliases", {}).get(name)):
            return self._resolve(alias["parent"]) if set(alias) == {"parent"} else None
        return icon

    def render(self, name: str, size: int) -> Image.Image:
        """The icon as a `size` x `size` RGB image, whole and centred on white. Needs resvg-py."""
        icon = self._resolve(name)
        if icon is None:
            raise ValueError(f"expected an icon of {self.style}, got {name!r}")
        return rasterise(icon["body"], self._side(icon, "width"), self._side(icon, "height"), size, icon)

    def _side(self, icon: dict[str, Any], side: str) -> float:
        """Width or height: of the icon, else of its package, else the 16 of the Iconify format."""
        return float(icon.get(side, self._data.get(side, 16)))


def rasterise(body: str, width: float, height: float, size: int, box: dict[str, Any] | None = None) -> Image.Image:
    """SVG inner markup to an image on white with a small margin.

    Args:
        body: markup inside the <svg> element.
        width, height: of its box, in its own units.
        size: side of the image, in pixels.
        box: where `left` and `top` of the box are, 0 without them.

    Returns:
        RGB, `size` x `size`, the box centred.
    """
    resvg_py = import_extra("resvg_py")
    box = box or {}
    side = max(width, height) * (1 + 2 * MARGIN)
    left = box.get("left", 0) - (side - width) / 2
    top = box.get("top", 0) - (side - height) / 2
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000000" '
        f'viewBox="{left} {top} {side} {side}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True, languages=[]
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


PACKAGE = "@lobehub/fluent-emoji-anim-3"
STYLE = "fluent-emoji-anim"
MIN_FRAMES = 24
FPS = 8
QUALITY = {"crf": "12", "preset": "veryfast"}


def samples(out: Path, size: int = 64, num_frames: int = 16, package: str = PACKAGE) -> Iterator[Sample]:
    """Every named animation with at least 24 frames as an MP4 of `num_frames` frames over its whole loop.

    Split by name: one clip in ten is for testing.

    Args:
        out: directory of the data set; files go to `out/videos`.
        size: side in pixels, even.
        num_frames: of every clip.
        package: that brings the animations.
    """
    named = {"-".join(f"{ord(char):x}" for char in c.char): c for c in concepts().values()}
    pinned = lock()[package]
    for path in sorted((unpacked(package) / "package" / "assets").glob("*.webp")):
        concept = named.get(path.stem.replace("-fe0f", ""))
        if concept is None or (frames := frames_over(path, size, num_frames)) is None:
            continue
        target = out / "videos" / STYLE / f"{concept.slug}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_clip(target, frames)
        yield Sample(
            f"{STYLE}/{concept.slug}",
            text=concept.name,
            video=target.relative_to(out).as_posix(),
            captions=list(concept.keywords),
            label=concept.slug,
            split=split_by_hash(concept.slug.encode()),
            source=f"{pinned.name} {pinned.version}",
            license=pinned.license,
            author=pinned.author,
            meta={"style": STYLE, "group": concept.group},
        )


def write_clip(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write RGB frames (num_frames, height, width, 3) uint8 as H.264; height and width even."""
    av = import_extra("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=QUALITY)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def frames_over(path: Path, size: int, num_frames: int) -> np.ndarray | None:
    """(num_frames, size, size, 3) uint8 evenly over an animation, on white; None for one of too few frames."""
    with Image.open(path) as animation:
        total = getattr(animation, "n_frames", 1)
        if total < MIN_FRAMES:
            return None
        chosen = []
        for index in np.linspace(0, total, num_frames, endpoint=False).astype(int):
            animation.seek(int(index))
            page = Image.new("RGBA", animation.size, "white")
            page.alpha_composite(animation.convert("RGBA"))
            chosen.append(np.asarray(page.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)))
    return np.stack(chosen)
