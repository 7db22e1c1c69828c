"""Selected rows cost a few bytes each, whatever they are stored as; orders and batches are those of rows in memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.data.manifest import Manifest, digest, read_manifest
from plait.data.order import Grouped, Shuffled, Spread, rows_of_step
from plait.data.reader import Reader, Reading, as_it_is, select
from plait.data.shards import pack
from plait.data.sources import open_samples
from plait.types import Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two colours in named sub-folders, and the same rows as a manifest, compressed, and as shards."""
    root = tmp_path_factory.mktemp("data")
    for number in range(6):
        colour = ("red", "blue")[number % 2]
        (root / "folder" / colour).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8), colour).save(root / "folder" / colour / f"{number}.png")
    rows = [
        {"id": f"r{n}", "image": f"folder/{('red', 'blue')[n % 2]}/{n}.png", "text": f"words {n}", "label": "ab"[n % 2]}
        for n in range(6)
    ]
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "packed.jsonl.gz").write_bytes(gzip.compress((root / "manifest.jsonl").read_bytes()))
    pack(read_manifest(root / "manifest.jsonl"), root / "shards")
    return root


def test_every_door_gives_the_same_rows(folder: Path) -> None:
    wanted = read_manifest(folder / "manifest.jsonl")
    for name in ("manifest.jsonl", "packed.jsonl.gz", "shards"):
        found = open_samples(folder / name)
        assert [(s.id, s.text) for s in found] == [(s.id, s.text) for s in wanted]
        assert [s.id for s in found[1:3]] == ["r1", "r2"] and found[-1].id == "r5"
    media = open_samples(folder / "folder")
    assert {s.label for s in media} == {"red", "blue"} and len(media) == 6
    assert all(Path(s.image).is_file() for s in media)


def test_a_manifest_that_is_written_anew_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a"}\n\n{"id": "b"}\n')
    rows = Manifest(path)
    (tmp_path / "new").write_text('{"id": "z"}\n')
    (tmp_path / "new").replace(path)
    assert [rows[i].id for i in (1, 0)] == ["b", "a"]


def test_repeated_ids_are_found_and_equal_digests_are_no_repetition(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"id": name}) + "\n" for name in "abcbd"))
    with pytest.raises(ValueError, match=r"line 4: field 'id': 'b' is already on line 2"):
        Manifest(path)
    monkeypatch.setattr("plait.data.manifest.digest", lambda text: 7)
    with pytest.warns(UserWarning, match="already on line 2"):
        assert [s.id for s in Manifest(path, "skip")] == ["a", "b", "c", "d"]


def test_only_rows_that_are_wanted_are_selected_and_measured(folder: Path) -> None:
    rows = select(
        str(folder / "manifest.jsonl"), "label a", lambda s: s.label == "a", measure=lambda s: int(s.text[-1])
    )
    assert [s.id for s in rows] == ["r0", "r2", "r4"] and rows.measures.tolist() == [0, 2, 4]
    assert [s.id for s in rows[1:]] == ["r2", "r4"]
    with pytest.raises(ValueError, match=r"expected rows with boxes in .*, got none among 6 rows of split 'train'"):
        select(str(folder), "boxes", lambda s: bool(s.boxes))


def test_rows_that_cannot_be_selected_are_fatal_or_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"text": "no id"}\n{"id": "c", "text": "3"}\n')

    def keep(sample: Sample) -> bool:
        if sample.text == "x":
            raise ValueError("expected a number, got x")
        return True

    with pytest.raises(ValueError, match="line 2: field 'id'"):
        select(str(path), "text", keep)
    rows = select(str(path), "text", keep, reading=Reading(on_bad="skip"))
    assert [s.id for s in rows] == ["c"]
    assert sorted(rows.bad.messages.values())[1] == "expected a number, got x" and len(rows.bad) == 2
    assert Reader(rows, lambda parts, rng: parts).bad is rows.bad  # one list for the whole run
    with pytest.raises(ValueError, match="expected at most 1 bad samples, got 2"):
        select(str(path), "text", keep, reading=Reading(on_bad="skip", most_bad=1))


def test_rows_cost_a_few_bytes_each(tmp_path: Path) -> None:
    sizes = []
    for count in (1_000, 20_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text(
            "".join(json.dumps({"id": f"row-{n}", "text": f"some words {n} " * 9}) + "\n" for n in range(count))
        )
        tracemalloc.start()
        rows = select(str(path), "text", lambda s: bool(s.text), measure=lambda s: digest(s.text or "") >> 1)
        reader = Reader(rows, lambda parts, rng: [s.id for s in parts], as_it_is, order=Spread(rows.measures))
        batch = reader.load(reader.rows(0, 5, 8), np.random.default_rng(0))
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(set(batch)) == 8
        sizes.append((held, peak))
    assert sizes[1][0] - sizes[0][0] < 60 * 19_000  # a Sample of such a row takes more than 800 bytes
    assert sizes[1][1] - sizes[0][1] < 200 * 19_000


def test_kept_parts_are_decoded_once_and_no_more_are_kept_than_there_is_room_for() -> None:
    seen: list[int] = []

    def decode(sample: int, rng: np.random.Generator) -> np.ndarray:
        seen.append(sample)
        return np.full(10, sample, np.uint8)

    reader = Reader(list(range(6)), lambda parts, rng: [int(p[0]) for p in parts], decode, keep_bytes=30)
    for _ in range(3):
        assert reader.load([0, 1, 2, 3], np.random.default_rng(0)) == [0, 1, 2, 3]
    assert seen == [0, 1, 2, 3, 3, 3]


def test_what_collate_draws_does_not_depend_on_decoding() -> None:
    def collate(parts: list[int], rng: np.random.Generator) -> float:
        return float(rng.random())

    drawing = Reader([1, 2], collate, lambda sample, rng: rng.random())
    assert drawing.load([0, 1], np.random.default_rng(3)) == float(np.random.default_rng(3).random())


def test_orders_are_functions_of_seed_and_step() -> None:
    concepts = np.array([digest(name) >> 1 for name in "abcabcab"])
    lengths = np.array([3, -4, 5, -1, 8, -9, 2, -2])
    orders = (Shuffled(8), Spread(concepts), Grouped(lengths, 2))
    for order in orders:
        forwards = [list(order.rows(1, step, 4)) for step in range(6)]
        assert forwards == [list(order.rows(1, step, 4)) for step in reversed(range(6))][::-1]
        assert len(order) == 8
    assert list(orders[0].rows(1, 3, 4)) == rows_of_step(8, 4, 1, 3).tolist()
    assert [Spread(concepts).number(one) for one in concepts] == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(("count", "size"), [(3, 7), (10, 4), (5, 5)])
def test_concepts_repeat_no_more_than_they_must(count: int, size: int) -> None:
    order = Spread(np.repeat(np.arange(count), 3))
    repeats = np.bincount([row // 3 for row in order.rows(0, 1, size)], minlength=count)
    assert repeats.sum() == size and repeats.max() - repeats.min() <= 1
