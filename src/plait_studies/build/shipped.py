"""The mini data set as it ships: what `build` made -> packed files, which `plait.data.mini` unpacks again."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.manifest import read_manifest, write_manifest
from plait.data.mini import DOCUMENTS
from plait.data.packages import sha256
from plait.errors import import_extra
from plait.types import Sample

# Samples of silence between clips, so that Vorbis does not smear one into the next.
GAP = 2048
VORBIS_COMPRESSION = 0.8
# libsndfile crashes on one long Vorbis write.
WRITE_CLIPS = 4


def pack(folder: str | Path, target: str | Path) -> Path:
    """Pack a data set of one-second clips and small pictures made by `build` into the new directory `target`.

    Raises:
        FileExistsError: where `target` is there: nothing is replaced.
    """
    folder, target = Path(folder), Path(target)
    target.mkdir(parents=True)
    samples = read_manifest(folder)
    _pack_images(folder, [s for s in samples if s.image is not None], target / "images.tar.gz")
    index = _pack_audio(folder, [s for s in samples if s.audio is not None], target)
    relative = [_relative(sample, folder) for sample in samples]
    write_manifest(target / "manifest.jsonl.gz", relative)
    for name in DOCUMENTS:
        shutil.copyfile(folder / name, target / name)
    index["content"] = _content(target)
    (target / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return target


def _content(target: Path) -> dict[str, str]:
    """Every packed file -> its SHA-256."""
    return {path.relative_to(target).as_posix(): sha256(path) for path in sorted(target.rglob("*")) if path.is_file()}


def _relative(sample: Sample, folder: Path) -> Sample:
    """The sample with media paths relative to `folder`."""
    row = sample.to_row()
    for name in ("image", "audio"):
        if name in row:
            row[name] = os.path.relpath(row[name], folder)
    return Sample.from_row(row)


def _pack_images(folder: Path, samples: Sequence[Sample], target: Path) -> None:
    """One archive of all pictures, the same bytes whenever it is made: sorted, without times or owners."""
    with gzip.GzipFile(target, "wb", mtime=0) as raw, tarfile.open(fileobj=raw, mode="w") as tar:
        for path in sorted(Path(sample.image) for sample in samples):
            content = path.read_bytes()
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _pack_audio(folder: Path, samples: Sequence[Sample], target: Path) -> dict[str, Any]:
    """One Vorbis file per concept and split, and the index of which clip is where in it."""
    soundfile = import_extra("soundfile")
    packs: dict[str, list[Path]] = defaultdict(list)
    for sample in samples:
        packs[f"audio/{sample.label}-{sample.split}.ogg"].append(Path(sample.audio))
    (target / "audio").mkdir()
    rate = clip_samples = 0
    for name, paths in packs.items():
        clips = []
        for path in paths:
            clip, rate = soundfile.read(path, dtype="float32")
            clip_samples = len(clip)
            clips.append(np.concatenate((clip, np.zeros(GAP, dtype=np.float32))))
        options = {"samplerate": rate, "channels": 1, "format": "OGG", "subtype": "VORBIS"}
        with soundfile.SoundFile(target / name, "w", compression_level=VORBIS_COMPRESSION, **options) as file:
            for start in range(0, len(clips), WRITE_CLIPS):
                file.write(np.concatenate(clips[start : start + WRITE_CLIPS]))
    listed = {name: [path.relative_to(folder).as_posix() for path in paths] for name, paths in packs.items()}
    return {"sampling_rate": rate, "clip_samples": clip_samples, "gap_samples": GAP, "files": listed}
