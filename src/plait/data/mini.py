"""The shipped mini data set: packed files inside the package <-> plain files and a manifest on disk.

Pictures travel as one `.tar.gz` of WebP files, clips as one Ogg Vorbis file per concept and split with short silences
between clips (an index says which clip is where), rows as `manifest.jsonl.gz`. Unpacked clips are 16-bit FLAC files.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from plait.data.manifest import read_manifest, write_manifest
from plait.data.packages import cache_root, sha256
from plait.errors import import_extra
from plait.places import atomic_directory, claim, is_ours
from plait.types import Sample


def write_flac(path: Path, samples: np.ndarray, sampling_rate: int) -> None:
    """Write float samples `(n,)` in -1..1 as 16-bit mono FLAC and make the directory. Needs soundfile.

    Encoded in memory: soundfile waits for the disk whenever it closes a file, which is slow for many clips.
    """
    memory = io.BytesIO()
    import_extra("soundfile").write(memory, samples, sampling_rate, subtype="PCM_16", format="FLAC")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(memory.getvalue())


PACKED = "mini"
DOCUMENTS = ("card.json", "README.md", "ATTRIBUTION.md")
# Samples of silence between clips, so that Vorbis does not smear one into the next.
GAP = 2048
VORBIS_COMPRESSION = 0.8
WRITE_CLIPS = 4
STAMP = ".complete"


def packed_dir() -> Path:
    """Where the packed files lie in the installed package."""
    return Path(str(files("plait.data") / PACKED))


def cached_mini() -> Path:
    """The mini data set as plain files in the user's cache (`$PLAIT_CACHE`, else `~/.cache/plait`), unpacked once."""
    return unpack_mini(cache_root() / f"mini-{_version()[:12]}")


def unpack_mini(out: str | Path) -> Path:
    """Materialise the mini data set as plain files under `out` and return it; takes seconds, needs soundfile.

    A finished directory of the same version is kept as it is. Files are written aside and moved into place in one step,
    so an interrupted call leaves nothing half done. Raises ValueError when `out` holds something else.
    """
    out = Path(out)
    version = _version()
    if (out / STAMP).is_file() and (out / STAMP).read_text(encoding="utf-8").strip() == version:
        return out
    is_old = is_ours(out) or (out / STAMP).is_file()
    if out.exists() and not is_old and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"expected a new directory or an unpacked mini data set, got {out}; choose another directory")
    with atomic_directory(out, replace=True) as aside:
        claim(aside)
        _unpack_into(aside)
        (aside / STAMP).write_text(version + "\n", encoding="utf-8")
    return out


def _version() -> str:
    """SHA-256 of the packed index, which lists the hash of every packed file."""
    return sha256(packed_dir() / "index.json")


def _unpack_into(folder: Path) -> None:
    """Plain files, manifest and documents of the packed data set in `folder`."""
    soundfile = import_extra("soundfile")
    source = packed_dir()
    with tarfile.open(source / "images.tar.gz") as tar:
        # Refuses members that lead out of the folder.
        tar.extractall(folder, filter="data")
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    for name, clips in index["files"].items():
        samples, _ = soundfile.read(source / name, dtype="float32")
        for number, clip in enumerate(clips):
            start = number * (index["clip_samples"] + index["gap_samples"])
            target = folder / clip
            piece = samples[start : start + index["clip_samples"]]
            write_flac(target, piece, index["sampling_rate"])
    with gzip.open(source / "manifest.jsonl.gz", "rb") as rows:
        (folder / "manifest.jsonl").write_bytes(rows.read())
    for name in DOCUMENTS:
        shutil.copyfile(source / name, folder / name)


def pack(folder: str | Path, target: str | Path) -> Path:
    """Pack a data set of one-second clips and small pictures made by `build` into `target`, replacing it."""
    folder, target = Path(folder), Path(target)
    shutil.rmtree(target, ignore_errors=True)
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
        _write_vorbis(soundfile, target / name, clips, rate)
    listed = {name: [path.relative_to(folder).as_posix() for path in paths] for name, paths in packs.items()}
    return {"sampling_rate": rate, "clip_samples": clip_samples, "gap_samples": GAP, "files": listed}


def _write_vorbis(soundfile: ModuleType, path: Path, clips: Sequence[np.ndarray], rate: int) -> None:
    """Write in pieces of a few seconds: libsndfile crashes on one long Vorbis write."""
    options = {"samplerate": rate, "channels": 1, "format": "OGG", "subtype": "VORBIS"}
    with soundfile.SoundFile(path, "w", compression_level=VORBIS_COMPRESSION, **options) as file:
        for start in range(0, len(clips), WRITE_CLIPS):
            file.write(np.concatenate(clips[start : start + WRITE_CLIPS]))
