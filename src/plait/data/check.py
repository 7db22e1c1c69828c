"""Is a data set whole? Every row read, every file decoded, counts, and no test file that is also a training file."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plait.data.manifest import MEDIA, Skipped, read_manifest
from plait.data.packages import sha256
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.types import Sample


@dataclass
class CheckReport:
    """Counts of a data set and everything wrong with it; `problems` is empty when all is well."""

    path: str
    rows: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    labels: int = 0
    bad_rows: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All findings, one line each."""
        return [*self.bad_rows, *self.missing, *self.damaged, *self.leaks]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"ok": not self.problems}


def check(path: str | Path, progress: bool = False) -> CheckReport:
    """Read every row, decode every file, count, and compare files of training and other splits by SHA-256.

    Raises ValueError only when there is no manifest; what is wrong inside is in the report.
    """
    skipped = Skipped()
    samples = read_manifest(path, on_bad="skip", skipped=skipped)
    report = CheckReport(str(path), rows=len(samples), bad_rows=skipped.messages)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for sample in tqdm(samples, desc="check", disable=not progress, unit=""):
        split = sample.split or "none"
        for modality in sample.modalities:
            counts[split][modality] += 1
        for name in MEDIA:
            if (file := getattr(sample, name)) is not None:
                digest = _check_file(sample, name, Path(file), report)
                if digest is not None:
                    splits[digest].setdefault(split, sample.id)
    report.counts = {split: dict(count) for split, count in counts.items()}
    report.licenses = dict(Counter(sample.license or "not stated" for sample in samples))
    report.labels = len({sample.label for sample in samples if sample.label})
    report.leaks = [
        f"{ids[split]} ({split}) is the same file as {ids['train']} (train)"
        for ids in splits.values()
        for split in ids
        if split != "train" and "train" in ids
    ]
    return report


def _check_file(sample: Sample, name: str, file: Path, report: CheckReport) -> str | None:
    """SHA-256 of a file that decodes; otherwise a line in the report and None."""
    if not file.is_file():
        report.missing.append(f"{sample.id}: expected the {name} {file}, got no such file")
        return None
    try:
        if name == "image":
            load_image(file)
        elif name == "audio":
            load_audio(file)
        else:
            from plait.media.video import load_video

            load_video(file, num_frames=1)
    except ValueError as error:
        report.damaged.append(f"{sample.id}: {error}")
        return None
    return sha256(file)
