"""Manifests under fire: damaged bytes are read, or refused in one line that names the file; skipping reads the rest."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from plait.data.manifest import Skipped, read_manifest

from ..fuzzing import bounded_memory, within

ROWS = [
    {"id": "a", "image": "a.webp", "text": "ein Bär", "captions": ["x"], "boxes": [[0, 1, 2, 3.5]], "meta": {"k": 1}},
    {"id": 7, "audio": "b.flac", "label": "b", "split": "test", "answers": ["1"], "messages": [{"role": "user"}]},
    {"id": "c", "video": "c.mp4", "question": "what?", "license": "MIT", "style": "noto"},
]
PIECES = [
    *(b"null", b"[", b"]" * 50, b"{", b"}", b'"', b"\x00", b"\xff", b"\n", b"\\u0000", b"1e999", b"-", b"NaN", b","),
    *(b"[" * 20_000, b'{"a":' * 5_000, b"9" * 5_000, b'"id":', b'"meta": 3', b'"boxes": [[1]]', b"\xe2\x80\xa8"),
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 6])):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(4):
            case 0:
                made[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del made[at : at + rng.randrange(1, 30)]
            case 2:
                made[at:at] = rng.choice(PIECES)
            case 3:
                made[at:at] = made[rng.randrange(len(made) + 1) :][:60]
    return bytes(made)


@bounded_memory()
@pytest.mark.parametrize("count", [1_500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_damaged_manifests_are_read_or_refused(count: int, tmp_path: Path) -> None:
    rng, refused, left_out = random.Random(3), 0, 0
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    seeds = {tmp_path / "m.jsonl": text, tmp_path / "m.jsonl.gz": gzip.compress(text, mtime=0)}
    for turn in range(count):
        path = list(seeds)[turn % 4 == 3]
        path.write_bytes(mutated(seeds[path], rng))
        try:
            with within():
                assert all(sample.id for sample in read_manifest(path))
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
        skipped = Skipped()
        try:
            with within():
                kept = read_manifest(path, on_bad="skip", skipped=skipped)
        except ValueError as error:  # a file that cannot be read as lines at all
            assert "write the file again" in str(error)
        else:
            assert len(kept) + len(skipped) >= 1 or not path.read_bytes().strip()
            left_out += bool(skipped)
    assert refused > count // 3
    assert left_out > count // 10
