"""What a run directory holds, read for a report: summary, evaluations, curves, commands, facts about the data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.manifest import read_manifest


@dataclass
class Seed:
    """One seed of a run: its evaluation, its vectors and the directory of its composed pictures."""

    evaluation: dict[str, Any]
    vectors: dict[str, np.ndarray]
    gallery: Path


@dataclass
class RunFiles:
    """Everything a report shows. What a run does not have is empty."""

    directory: Path
    summary: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    data: Path | None = None
    seed: Seed | None = None
    curves: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    worth: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: str | Path) -> RunFiles:
        """Read the directory of one training run or of a demonstration with seeds. ValueError where it is neither."""
        directory = Path(directory)
        run = cls(directory, _json(directory / "summary.json"), _json(directory / "quickstart.json"))
        run.worth = _json(directory / "finetune.json")
        if run.log:
            run.data = directory / run.log["data"]
        seeds = sorted(directory.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
        for place in seeds or [directory]:
            for file in sorted(place.rglob("metrics.jsonl")):
                if "shuffled" not in file.parent.name:
                    run._add_curves(file)
        first = seeds[0] if seeds else directory
        if (first / "evaluation" / "evaluation.json").is_file():
            run.seed = _seed(first / "evaluation")
        run.config = next((_json(path) for path in sorted(first.rglob("model/config.json"))), {})
        if not run.curves and not run.summary:
            raise ValueError(f"expected a run with metrics.jsonl or summary.json, got {directory}; train into it first")
        return run

    def _add_curves(self, file: Path) -> None:
        """Rows of one metrics.jsonl, by stage. A line torn by a kill is the last one and is left out."""
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        stages: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            row = json.loads(line)
            stages.setdefault(str(row.get("stage", "training")), []).append(row)
        for stage, rows in stages.items():
            self.curves.setdefault(stage, []).append(rows)

    def names(self) -> dict[str, str]:
        """Concept -> its name, from the data set."""
        if self.data is None:
            return {}
        rows = read_manifest(self.data)
        return {row.label: row.text for row in rows if row.label and row.text and row.image is not None}

    def familiar_styles(self) -> list[str]:
        """Names of things whose held-out drawing is in a style that training shows on other things."""
        if self.data is None:
            return []
        pictures = [row for row in read_manifest(self.data) if row.image is not None]
        trained = {row.meta.get("style") for row in pictures if row.split == "train"} - {None}
        return sorted(
            row.text or row.id for row in pictures if row.split == "test" and row.meta.get("style") in trained
        )

    def data_facts(self) -> list[tuple[str, str]]:
        """Counts, splits and licences of the data set."""
        if self.data is None:
            return []
        rows = read_manifest(self.data)
        pictures = [row for row in rows if row.image is not None]
        sounds = [row for row in rows if row.audio is not None]
        facts = [("drawings" if self.is_shipped else "pictures", _splits(pictures)), ("sounds", _splits(sounds))]
        facts.append(("things", f"{len({row.label for row in pictures}):,}"))
        if sounds:
            facts.append(("things that sound", f"{len({row.label for row in sounds}):,}"))
        for name, values in (
            ("styles", Counter(row.meta.get("style") for row in pictures)),
            ("sources", Counter(row.source for row in rows)),
            ("licences", Counter(row.license for row in rows)),
        ):
            known = [(str(value), count) for value, count in values.most_common() if value]
            if known:
                facts.append((name, ", ".join(f"{value} ({count:,})" for value, count in known)))
        return facts

    @property
    def is_shipped(self) -> bool:
        """Whether the run used the data that comes with the package."""
        return bool(self.log.get("is_shipped_data"))


def _splits(rows: list[Any]) -> str:
    counts: Mapping[Any, int] = Counter(row.split for row in rows)
    words = {"train": "to train on", "test": "held out", "unseen_font": "from an unseen soundfont"}
    return ", ".join(f"{count:,} {words.get(split, split or 'without a split')}" for split, count in counts.items())


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _seed(directory: Path) -> Seed:
    with np.load(directory / "vectors.npz") as stored:
        vectors = {name: stored[name] for name in stored.files}
    return Seed(_json(directory / "evaluation.json"), vectors, directory / "gallery")
