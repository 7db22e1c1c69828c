"""What the model has never seen: held-out drawings, held-out notes and the names of their concepts.

manifest.jsonl -> rows of split test -> drawings + names (one concept each), notes and unseen-font clips (labelled)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from plait.data.manifest import read_manifest
from plait.types import Sample


def concept(sample: Sample) -> str:
    """What a row is about: its label, or its text where it has none."""
    return sample.label or sample.text or sample.id


@dataclass
class HeldOut:
    """Held-out rows of a data set. `notes` and `unseen_notes` hold only sounds that have a held-out drawing."""

    root: Path
    drawings: list[Sample]
    notes: list[Sample] = field(default_factory=list)
    unseen_notes: list[Sample] = field(default_factory=list)
    training_drawings: list[Sample] = field(default_factory=list)

    @classmethod
    def read(cls, data: str | Path) -> HeldOut:
        """Read a data set directory. ValueError where no picture is held out."""
        rows = read_manifest(data)
        drawings = [row for row in rows if row.image is not None and row.split == "test"]
        if not drawings:
            raise ValueError(
                f"expected pictures of split 'test' in {data}, got none; hold some out: "
                "plait data from-folder does, or set the field in the manifest"
            )
        drawn = {concept(row) for row in drawings}
        heard = [row for row in rows if row.audio is not None and row.image is None and concept(row) in drawn]
        return cls(
            Path(data).resolve(),
            drawings,
            notes=[row for row in heard if row.split == "test"],
            unseen_notes=[row for row in heard if row.split == "unseen_font"],
            training_drawings=[row for row in rows if row.image is not None and row.split == "train"],
        )

    @cached_property
    def names(self) -> dict[str, str]:
        """Concept -> its name in words, for every concept with a held-out drawing, in the order of the manifest."""
        names: dict[str, str] = {}
        for row in self.drawings:
            names.setdefault(concept(row), row.text or concept(row))
        return names

    @cached_property
    def sounding(self) -> list[str]:
        """Concepts with a held-out drawing and held-out notes, sorted."""
        return sorted({concept(row) for row in self.notes})

    def one_drawing_each(self, concepts: Sequence[str]) -> list[Sample]:
        """The first held-out drawing of each concept."""
        first = {concept(row): row for row in reversed(self.drawings)}
        return [first[name] for name in concepts]

    def spread(self, label: str, count: int) -> list[Sample]:
        """`count` held-out notes of a sound, evenly over all it has (all of them where it has fewer)."""
        notes = [row for row in self.notes if concept(row) == label]
        count = min(count, len(notes))
        return [notes[i * len(notes) // count] for i in range(count)]

    def relative(self, path: str | Path) -> str:
        """A media path as it can be stored: relative to the data set where it lies inside."""
        path = Path(path).resolve()
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
