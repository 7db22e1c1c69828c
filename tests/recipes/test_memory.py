"""Memory is flat: a data set twenty times as large costs a stage a few bytes a row, and the rows themselves nothing."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.reading import outside
from plait.recipes import find_recipe
from plait.training.data_order import step_loader
from plait.training.run import call_recipe, parse_settings

from .tiny_world import RUNS, command, write_data, write_models

FEW = 300
MORE, MOST = 1_500, 20_000
BYTES_A_ROW = 64
"""Bytes of numbers that may be held of a row: its place and length in the manifest, which rows are wanted, what they
measure, their order. One of these rows as a `Sample` takes more than 1,000."""

SLACK = 200_000
"""What two runs of the same size may differ by: caches of regular expressions, of tokenizers, of modules."""

STAGES = [name for name in RUNS if not name.startswith("finetune")]
ONE_FINETUNING = "finetune mplug_owl2 caption"
# A stage takes seconds to measure: one of each family and the finetuning always, the others when asked.
ALWAYS = {next(name for name in STAGES if name.startswith(f"{family}.")) for family in
          ("one_peace", "mplug2", "mplug_owl", "mplug_owl2")} | {ONE_FINETUNING}  # fmt: skip
CASES = [
    pytest.param(name, count, marks=() if name in ALWAYS and count == MORE else pytest.mark.slow)
    for name in [*STAGES, ONE_FINETUNING]
    for count in (MORE, MOST)
]


@pytest.fixture(autouse=True)
def names_may_lead_outside() -> Iterator[None]:
    """The repeated lists name the files of the data set beside them."""
    with outside():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny data, every manifest of it repeated to 300, 1,500 and 20,000 rows, and the models."""
    data = write_data(tmp_path_factory.mktemp("data"))
    for path in list(data.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for count in (FEW, 1_500, 20_000):
            (data / str(count)).mkdir(exist_ok=True)
            with (data / str(count) / path.name).open("w") as file:
                for number in range(count):
                    row = dict(rows[number % len(rows)], id=f"row-{number}", remark=f"told at length {number} " * 12)
                    for medium in ("image", "video", "audio"):
                        if medium in row:
                            row[medium] = f"../{row[medium]}"
                    if "images" in row:
                        row["images"] = [f"../{name}" for name in row["images"]]
                    file.write(json.dumps(row) + "\n")
    return data, write_models(tmp_path_factory.mktemp("models"))


def held(name: str, data: Path, models: Path) -> int:
    """Bytes that the data path of a run holds when it has read three batches; the model is not counted."""
    argv = command(name, data, models)
    settings = [argv[place + 1] for place, word in enumerate(argv) if word == "--set"]
    function = find_recipe(argv[1])
    arguments: dict[str, Any] = parse_settings(function, settings, 0)
    importlib.import_module(inspect.getmodule(function).__name__)  # ty: ignore[possibly-missing-attribute]
    tracemalloc.start()
    try:
        (stage,) = call_recipe(function, arguments).stages
        source = stage.batches()
        load = step_loader(source, (0, 0), batch_size=4)
        for step in range(3):
            load(step)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "count"), CASES)
def test_a_larger_data_set_takes_no_more_memory(name: str, count: int, world: tuple[Path, Path]) -> None:
    data, models = world
    few = held(name, data / str(FEW), models)
    # the less of two: what is imported or cached at a first use is held once, rows would be held each time
    many = min(held(name, data / str(count), models) for _ in range(2))
    assert many - few < BYTES_A_ROW * (count - FEW) + SLACK, f"{(many - few) / (count - FEW):.0f} bytes a row"


def test_rows_in_memory_would_be_seen(world: tuple[Path, Path]) -> None:
    """The bound is one that a list of samples breaks."""
    from plait.data.manifest import read_manifest

    sizes = []
    for count in (FEW, 1_500):
        tracemalloc.start()
        rows = read_manifest(world[0] / str(count) / "images.jsonl")
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(rows) == count
    assert np.diff(sizes)[0] > 10 * BYTES_A_ROW * (1_500 - FEW)
