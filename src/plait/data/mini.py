"""The shipped mini data set: packed files inside the package -> plain files and a manifest on disk.

Pictures travel as one `.tar.gz` of WebP files, clips as one Ogg Vorbis file per concept and split with short silences
between clips (an index says which clip is where), rows as `manifest.jsonl.gz`. Unpacked clips are 16-bit FLAC files.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from importlib.resources import files
from pathlib import Path

import numpy as np

from plait.data.packages import sha256
from plait.errors import import_extra
from plait.places import atomic_directory, cache_directory, check_free, claim


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
STAMP = ".complete"


def packed_dir() -> Path:
    """Where the packed files lie in the installed package."""
    return Path(str(files("plait.data") / PACKED))


def cached_mini() -> Path:
    """The mini data set as plain files in the user's cache (`$PLAIT_CACHE`, else `~/.cache/plait`), unpacked once."""
    return unpack_mini(cache_directory() / f"mini-{_version()[:12]}")


def unpack_mini(out: str | Path) -> Path:
    """Materialise the mini data set as plain files under `out` and return it; takes seconds, needs soundfile.

    A finished directory of the same version is kept as it is. Files are written aside and moved into place in one step,
    so an interrupted call leaves nothing half done. Raises UsageError when `out` holds something else.
    """
    out = Path(out)
    version = _version()
    if (out / STAMP).is_file() and (out / STAMP).read_text(encoding="utf-8").strip() == version:
        return out
    if not (out / STAMP).is_file():
        check_free(out)
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
