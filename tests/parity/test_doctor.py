"""`plait doctor` says what works here, and fails where something is broken."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import plait
from plait.cli import main
from plait.models import auto
from plait.parity import doctor, shipped_runners
from plait.parity.example import CONCEPTS, Asked


def test_the_installation_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["is_healthy"]
    assert {check["topic"] for check in told["checks"]} == {
        "version",
        "extra",
        "disk",
        "device",
        "dtype",
        "model",
        "parity",
    }
    assert "nano" in {check["name"] for check in told["checks"] if check["topic"] == "model"}
    parity = [check["name"].split("/")[0] for check in told["checks"] if check["topic"] == "parity"]
    assert sorted(parity) == sorted(auto.FAMILIES)


def test_shipped_cases_are_the_golden_ones() -> None:
    goldens = Path(__file__).parents[1] / "goldens"
    files = [path for path in shipped_runners.SHIPPED.rglob("*") if path.is_file()]
    assert len(files) == 16
    for path in files:
        assert path.read_bytes() == (goldens / path.relative_to(shipped_runners.SHIPPED)).read_bytes()


def test_wrong_numbers_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(shipped_runners.SHIPPED / "mplug_owl", tmp_path / "mplug_owl")
    file = tmp_path / "mplug_owl" / "abstractor" / "tensors.safetensors"
    tensors = {name: x + 0.1 if name.startswith("out.") else x for name, x in load_file(file).items()}
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file)
    monkeypatch.setattr(shipped_runners, "SHIPPED", tmp_path)
    assert main(["doctor"]) == 1
    assert "1 broken: mplug_owl/abstractor" in capsys.readouterr().out


def test_missing_and_old_packages_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def version(name: str) -> str:
        if name == "tokenizers":
            raise PackageNotFoundError(name)
        return "1.0" if name == "torch" else "99.0"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "lancedb" else True)
    assert main(["doctor", "--no-parity"]) == 1
    text = capsys.readouterr().out
    assert "not installed; pip install 'tokenizers" in text
    assert "expected >=2.11, got 1.0; pip install 'torch" in text
    assert "without lancedb: pip install 'plait[search]'" in text
    assert "transformers" in text.splitlines()[-1]  # 99 is not below 6


SAVED = Path(__file__).parents[1] / "fixtures" / "saved"


def test_a_model_that_embeds_tells_its_cosines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nano", "--device", "cpu"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "plait doctor nano" and "torch" in told[1] and "2,757,601 parameters" in told[3]
    start = told.index("cosines, a row for every file:")
    assert told[start + 1].split() == list(CONCEPTS)
    table = [line.replace(", ", "-").split() for line in told[start + 2 : start + 8]]
    asked = Asked.shipped()
    vectors = plait.Embedder("nano").embed([*asked.texts, *asked.files])
    expected = vectors[3:] @ vectors[:3].T
    assert [row[0] for row in table] == [f"{name}-{kind}" for kind in ("drawing", "note") for name in CONCEPTS]
    assert np.allclose(np.array([row[1:] for row in table], float), expected, atol=1e-3)
    # it is a real model: the notes of instruments are nearest to their names
    assert [CONCEPTS[row.argmax()] for row in expected[3:]] == list(CONCEPTS)
    assert "GiB at most" in told[-1]


@pytest.mark.parametrize(
    ("model", "words"),
    [("mplug2_captions", ["caption of", "answer of"]), ("mplug_owl", ["answer of"]), ("mplug_owl2", ["caption of"])],
)
def test_a_model_that_writes_tells_its_words(model: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(SAVED / model), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert all(one in told for one in words) and f"directory {model}: " in told


def test_the_example_of_an_authors_page_takes_the_place_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "cow.jpg")
    assert main(["doctor", "nano", str(tmp_path / "cow.jpg"), "--text", "cow", "--text", "dog"]) == 0
    told = capsys.readouterr().out.splitlines()
    start = told.index("cosines, a row for every file:")
    assert told[start + 1].split() == ["cow", "dog"] and told[start + 2].split()[0] == "cow.jpg"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/nowhere"], "no such file or directory"),
        (["one-peace"], "run plait get one-peace"),
        (["nano", "--text", "cow"], "FILES and --text together"),
        (["nano", "--json"], "--json"),
        (["--text", "cow"], "--text"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_vectors_that_are_no_numbers_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = plait.load("nano")
    monkeypatch.setattr(plait, "load", lambda *_, **__: (model, processor))
    monkeypatch.setattr(plait.Embedder, "embed", lambda self, items: np.full((len(items), 4), np.nan))
    assert main(["doctor", "nano"]) == 1
    assert "not finite" in capsys.readouterr().err
