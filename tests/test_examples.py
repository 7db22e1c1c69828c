"""Every example runs, on a tiny model with random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("lancedb")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from plait.models.one_peace.config import OnePeaceConfig
    from plait.models.one_peace.model import OnePeaceModel
    from plait.models.one_peace.processor import OnePeaceProcessor
    from plait.processing.tokenizers import encode, subset

    torch.manual_seed(0)
    kept = subset(piece for row in encode(["a bird in the snow"]) for piece in row)
    config = OnePeaceConfig.preset("nano", vocab_size=len(kept), decoder=None)
    directory = tmp_path_factory.mktemp("model")
    OnePeaceModel(config).save_pretrained(directory)
    OnePeaceProcessor.from_config(config, kept).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(directory / f"{i}.png")
    soundfile.write(directory / "bird.wav", rng.standard_normal(16000).astype(np.float32) / 9, 16000)
    rows = [f'{{"id": "{i}", "image": "{i}.png", "text": "bird {i}"}}' for i in range(3)]
    rows.append('{"id": "bird", "audio": "bird.wav", "text": "bird"}')
    (directory / "manifest.jsonl").write_text("\n".join(rows))
    return directory


def run(name: str, *args: object) -> str:
    call = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ways() -> None:
    assert "gradient of the absent way: 0.0" in run("ways.py")


def test_fused_search(model_dir: Path, data_dir: Path) -> None:
    lines = run("fused_search.py", model_dir, data_dir, data_dir / "bird.wav", "a bird in the snow").splitlines()
    assert [line.partition(" -> ")[0] for line in lines[1:]] == ["audio", "text", "audio + text"]
    assert all(".png" in line for line in lines[1:])


def test_gap(model_dir: Path, data_dir: Path) -> None:
    output = run("gap.py", model_dir, data_dir)
    assert "text-image: centroids" in output and "image-audio: centroids" in output


def test_every_example_has_a_test_and_a_line_in_the_readme() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f"]({script.name})" in readme
        assert f"def test_{script.stem}(" in Path(__file__).read_text(encoding="utf-8")
