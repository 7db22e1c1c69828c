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
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    for script in EXAMPLES.glob("*.py"):
        assert f"]({script.name})" in readme
        assert f'"{script.name}"' in tests or f"def test_{script.stem}(" in tests


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers
def test_owl_with_trainer(tmp_path: Path) -> None:
    import json
    import runpy

    import torch

    from plait.models.auto import load
    from plait.models.merge import merge

    from .models.mplug_owl.tiny import images, model_and_processor

    for part in model_and_processor():
        part.save_pretrained(tmp_path / "owl")
    images(1)[0].save(tmp_path / "a.png")
    talk = [{"role": "user", "content": "hm?"}, {"role": "assistant", "content": "ok"}]
    rows = [{"id": "a", "image": "a.png", "question": "what?", "answers": ["red"]}, {"id": "b", "messages": talk}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    example = runpy.run_path(str(EXAMPLES / "owl_with_trainer.py"))
    loss = example["main"](tmp_path / "owl", tmp_path / "rows.jsonl", tmp_path / "lora", steps=2, batch_size=2, lr=1e-2)
    assert 0 < loss < 50
    assert merge(tmp_path / "owl", tmp_path / "lora", tmp_path / "merged") == 4
    ids = torch.tensor([[0, 50, 60, 70]])
    plain, merged = (load(tmp_path / name)[0](ids).logits for name in ("owl", "merged"))
    adapted = load(tmp_path / "owl", adapter=tmp_path / "lora")[0](ids).logits
    assert torch.allclose(merged, adapted, atol=1e-4) and not torch.allclose(merged, plain, atol=1e-4)
