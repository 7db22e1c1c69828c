"""Animated 3D emoji: animated WebP packages + CLDR names -> short H.264 clips with names, on white.

Most of them are recognisable from one frame, so a task that claims to need time has to be made from their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from plait.data.build.emoji import concepts
from plait.data.build.splits import split_by_hash
from plait.data.packages import lock, unpacked
from plait.errors import import_extra
from plait.types import Sample

PACKAGE = "@lobehub/fluent-emoji-anim-3"
STYLE = "fluent-emoji-anim"
MIN_FRAMES = 24
FPS = 8
QUALITY = {"crf": "12", "preset": "veryfast"}


def samples(out: Path, size: int = 64, num_frames: int = 16, package: str = PACKAGE) -> Iterator[Sample]:
    """Every named animation with at least 24 frames as an MP4 of `num_frames` frames over its whole loop.

    size: side in pixels, even. Split by name: one clip in ten is for testing. Files go to `out/videos`.
    """
    named = {"-".join(f"{ord(char):x}" for char in c.char): c for c in concepts().values()}
    pinned = lock()[package]
    for path in sorted((unpacked(package) / "package" / "assets").glob("*.webp")):
        concept = named.get(path.stem.replace("-fe0f", ""))
        if concept is None or (frames := _frames(path, size, num_frames)) is None:
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


def _frames(path: Path, size: int, num_frames: int) -> np.ndarray | None:
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
