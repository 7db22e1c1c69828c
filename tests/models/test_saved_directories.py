"""Directories that users saved before go on loading, and their models answer as they did.

The directories and answers under tests/fixtures/saved were written by the code of commit cb6c0ea.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import plait

from ..fixtures.asking import ASKED, ask

SAVED = Path(__file__).parents[1] / "fixtures" / "saved"
TOLERANCE = 1e-5
MAX_BYTES = 350_000


@pytest.mark.parametrize("name", ASKED)
def test_a_saved_directory_answers_as_it_did(name: str) -> None:
    folder = SAVED / name
    model, processor = plait.load("nano" if name == "nano" else folder, dtype="float32")
    answers = ask(name, model, processor)
    expected = load_file(folder / "answers.safetensors")
    assert expected.keys() <= answers.values.keys()  # outputs may gain fields, and lose none
    for key, value in expected.items():
        found = answers.values[key]
        if not value.is_floating_point():
            assert torch.equal(found, value), key
            continue
        torch.testing.assert_close(found, value, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text, key=key: key + text)
    said = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    assert {key: answers.said[key] for key in said} == said


def test_saved_directories_are_small_and_all_asked() -> None:
    assert {folder.name for folder in SAVED.iterdir()} == set(ASKED)
    sizes = {folder.name: sum(file.stat().st_size for file in folder.iterdir()) for folder in SAVED.iterdir()}
    assert max(sizes.values()) < MAX_BYTES, sizes
