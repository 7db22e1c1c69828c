"""Files of predictions as benchmarks exchange them -> (id, prediction) in the order of the file."""

from __future__ import annotations

from pathlib import Path

from plait.evaluation.readers.files import read_rows, unique

_FIELDS = (
    ("image_id", "caption"), ("question_id", "answer"), ("questionId", "prediction"), ("image", "answer"),
    ("question_id", "prediction"),
)  # fmt: skip
"""Id and prediction in COCO captions, VQA, GQA, VizWiz and SEED files."""


def read_results(path: Path) -> list[tuple[str, str]]:
    """Predictions of a submission file. ValueError for a row of no known layout or an id that comes twice."""
    results = []
    for row in read_rows(path):
        names = next((pair for pair in _FIELDS if pair[0] in row and pair[1] in row), None)
        if names is None:
            expected = " or ".join(f"{a} and {b}" for a, b in _FIELDS)
            raise ValueError(f"{row.place}: expected the fields {expected}, got {', '.join(row)}")
        key = row.text(names[0])
        results.append((Path(key).stem if names[0] == "image" else key, row.text(names[1])))
    unique(path.name, (key for key, _ in results))
    return results
