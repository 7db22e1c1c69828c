"""Golden cases of annotation formats: the files of a case -> items -> the stored samples.

A runner answers the fields that a stored sample has; a reader may know more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.evaluation.base import LAYOUTS, Item, Source
from plait.evaluation.files import read_results
from plait.evaluation.tasks.regions import mask_classes
from plait.parity.cases import Case
from plait.parity.runners import runner

PARTS = {
    "one_peace_audio": {
        "retrieval": "one_peace_audio",
        "aqa": "one_peace_aqa",
        "fsd50k": "one_peace_fsd50k",
        "vggsound": "one_peace_vggsound",
    },
    "glue": {name.removeprefix("glue_"): name for name in LAYOUTS if name.startswith("glue_")},
}
"""Cases with several tables: name of the table -> layout."""
BESIDE = {"folder": "imagenet_folder", "iqa": "q_bench_iqa"}
"""Other expected fields of a case -> layout."""
INPUTS = ("benchmark", "files", "split")


def run(case: Case, kind: str) -> Mapping[str, Any]:
    """Our values for every expected field of a format case."""
    document = case.document
    split = document["split"] or "all"
    source = Source(case.path, {role: case.path / name for role, name in document["files"].items()}, split)
    actual: dict[str, Any] = {}
    for name, stored in document.items():
        if name in ("note", *INPUTS):
            continue
        if name == "results":
            actual[name] = [{"id": key, "prediction": value} for key, value in read_results(source["results"])]
        elif isinstance(stored, dict):
            tables = {part: _samples(PARTS[kind][part], source, rows, case) for part, rows in stored.items()}
            actual[name] = tables
        else:
            actual[name] = _samples(BESIDE.get(name, kind), source, stored, case)
    return actual | {"split": split}


def _samples(layout: str, source: Source, stored: list[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    items = LAYOUTS[layout].read(source)
    templates = stored + [{"id": None}] * (len(items) - len(stored))
    return [_row(item, template, case) for item, template in zip(items, templates)]


def _row(item: Item, template: dict[str, Any], case: Case) -> dict[str, Any]:
    row = item.to_row()
    if item.mask is not None and "mask_classes" in template:
        row["mask_classes"] = mask_classes(case.path / item.mask).tolist()
    return {name: row.get(name) for name in template}


def _register(kind: str) -> None:
    # the samples of refcoco have a field `split` too: there it is an expected value, and all splits are read
    inputs = tuple(name for name in INPUTS if name != "split") if kind == "refcoco" else INPUTS
    runner("formats", kind, json_inputs=inputs)(lambda case: run(case, kind))


for _kind in sorted({*LAYOUTS, "glue"}):
    _register(_kind)
