"""Batches from disk: the same with any number of workers; bad samples are fatal, or counted, listed and replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from plait.data.reader import Reader, Reading
from plait.types import Sample


def samples(tmp_path, bad=()):
    rows = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        if number in bad:
            path.write_bytes(b"torn")
        rows.append(Sample(f"s{number}", image=str(path)))
    return rows


def collate(parts: list[Sample], rng: np.random.Generator) -> Any:
    return [part.image.getpixel((0, 0))[0] for part in parts], float(rng.random())


def refuses(number: int) -> Any:
    """A collate that does not take one sample."""

    def taken(parts: list[Sample], rng: np.random.Generator) -> Any:
        values, drawn = collate(parts, rng)
        if number in values:
            raise ValueError(f"expected a caption in row s{number}, got none")
        return values, drawn

    return taken


@pytest.mark.parametrize("bad", [(), (3, 4, 11)])
def test_a_batch_does_not_depend_on_the_workers(tmp_path, bad):
    made = []
    for workers in (0, 1, 4):
        reader = Reader(samples(tmp_path, bad), collate, reading=Reading(workers, "skip"))
        rows = [reader.rows(5, step, 4) for step in range(6)]
        made.append([reader.load(row, np.random.default_rng([7, step])) for step, row in enumerate(rows)])
    assert made[0] == made[1] == made[2]


def test_a_random_decode_draws_the_same_with_any_number_of_workers(tmp_path):
    def decode(sample: Sample, rng: np.random.Generator) -> float:
        return float(rng.random())

    made = [
        Reader(samples(tmp_path), lambda parts, rng: parts, decode, reading=Reading(workers)).load(
            range(8), np.random.default_rng(0)
        )
        for workers in (0, 3)
    ]
    assert made[0] == made[1] and len(set(made[0])) == 8


def test_the_first_bad_sample_is_fatal_unless_they_are_skipped(tmp_path):
    reader = Reader(samples(tmp_path, (2,)), collate, reading=Reading(2))
    with pytest.raises(ValueError, match=r"expected an image file, got .*2\.png"):
        reader.load([0, 2], np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected a caption in row s3"):
        Reader(samples(tmp_path), refuses(3)).load([3], np.random.default_rng(0))


def test_bad_samples_are_replaced_counted_and_listed(tmp_path):
    reader = Reader(samples(tmp_path, (2, 3)), collate, reading=Reading(0, "skip"))
    values, _ = reader.load([1, 2, 11], np.random.default_rng(0))
    assert values == [1, 4, 11]
    assert [line.partition(":")[0] for line in reader.bad.messages.values()] == ["s2", "s3"]
    assert "2.png" in reader.bad.messages[2]


def test_what_collate_refuses_is_found_and_replaced(tmp_path):
    wanted = Reader(samples(tmp_path), collate).load([1, 5, 6], np.random.default_rng(0))
    reader = Reader(samples(tmp_path, (4,)), refuses(3), reading=Reading(0, "skip"))
    assert reader.load([1, 3, 6], np.random.default_rng(0)) == wanted
    assert reader.bad.messages.keys() == {3, 4}


def test_too_many_bad_samples_are_fatal(tmp_path):
    reader = Reader(samples(tmp_path, (2, 3, 5)), collate, reading=Reading(0, "skip", 2))
    with pytest.raises(ValueError, match=r"expected at most 2 bad samples, got 3, the last: s5: .*plait data check"):
        reader.load([2, 5], np.random.default_rng(0))
    hopeless = Reader(samples(tmp_path, range(12)), collate, reading=Reading(0, "skip"))
    with pytest.raises(ValueError, match="expected samples that can be read, got 12 bad ones of 12"):
        hopeless.load([0], np.random.default_rng(0))


def test_wrong_options_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="expected on_bad 'raise' or 'skip', got 'ask'"):
        Reading(on_bad="ask")  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match="expected 0 or more workers, got -1"):
        Reading(-1)
