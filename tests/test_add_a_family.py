"""`docs/add-a-family.md` word by word: the example is planned, trained, measured, embeds and searches, tiny."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.cli import main
from plait.models.registry import FAMILIES

from .test_cli import commands_in

pytest.importorskip("lancedb")
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "blip2_stage1.py"
TINY = ["--set", "steps=2", "--set", "batch_size=4", "--set", "dim=32", "--set", "num_layers=2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with eight pictures of four things under data/mini, in which the page's commands are run."""
    root = tmp_path_factory.mktemp("home")
    (root / "data" / "mini").mkdir(parents=True)
    rows, rng = [], np.random.default_rng(0)
    for i in range(8):
        name, split = ["dog", "bird", "fish", "tree"][i % 4], "test" if i > 5 else "train"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / "data" / "mini" / f"{i}.png")
        rows.append({"id": str(i), "image": f"{i}.png", "text": name, "label": name, "split": split})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "data" / "mini" / "manifest.jsonl").write_text(lines)
    return root


@pytest.fixture(autouse=True)
def in_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(home)
    known = dict(FAMILIES)
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("plait_plugin_")}
    yield
    for name in [name for name in sys.modules if name.startswith("plait_plugin_")]:
        del sys.modules[name]
    sys.modules.update(held)
    FAMILIES.clear()
    FAMILIES.update(known)


def test_the_commands_of_the_page_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built, *lines = commands_in(ROOT / "docs" / "add-a-family.md")
    assert built == "plait data build mini --shipped --out data/mini"
    assert [line.split()[1] for line in lines] == ["plan", "train", "info", "eval", "embed", "index", "search"]
    for line in lines:
        words = shlex.split(line)[1:]
        words = [str(EXAMPLE) if word == "examples/blip2_stage1.py" else word for word in words]
        assert main([*words, *(TINY if words[0] in ("plan", "train") else [])]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "tower" in said
    assert "trained 2 steps" in said
    assert "mini_pictures: top1" in said
    assert np.load(home / "vectors.npy").shape == (8, 32)


def test_the_directory_loads_and_the_tower_stayed_as_it_was(home: Path, tmp_path: Path) -> None:
    run = home / "runs" / "blip2"
    if not run.exists():
        words = ["--set", "data=data/mini", "--out", str(run), "--plugin", str(EXAMPLE)]
        assert main(["train", "blip2.stage1", *words, *TINY]) == 0
    plait.use(EXAMPLE)
    model, processor = plait.load(run / "model")
    nano, _ = plait.load("nano", branch=("image",))
    kept = model.tower.state_dict()
    assert all(torch.equal(kept[name].float(), tensor.float()) for name, tensor in nano.state_dict().items())
    picture = Image.new("RGB", (40, 30), "red")
    out = model(**processor(images=picture, text=["a dog"]))
    assert out.match_logits.shape == (1, 2)
    vectors = plait.Embedder(run / "model").embed([{"image": picture}, "a dog"])
    assert np.allclose(vectors, torch.cat([out.image_embeds, out.text_embeds]).detach().numpy(), atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again, _ = plait.load(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="expected fields of Blip2Config, got nonsense"):
        plait.load(run / "model", nonsense=1)
    with pytest.raises(ValueError, match="expected no branch for blip2_stage1"):
        plait.load(run / "model", branch=("image",))


def test_without_the_file_the_directory_is_of_no_known_family(home: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip2_stage1"}')
    with pytest.raises(ValueError, match="blip2_stage1"):
        plait.load(tmp_path)
