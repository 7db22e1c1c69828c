"""`plait info` reads the facts of a model directory from its headers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plait.cli import main
from plait.models.catalog import model_info, part_of
from plait.report.tables import format_bytes, format_count, format_table


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    config = {"model_type": "one_peace", "architectures": ["OnePeaceModel"], "modalities": ["text", "audio"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\nlicense: none of this\n")
    attention = {f"trunk.layers.{i}.attn.q_proj.weight": np.zeros((4, 4), np.float32) for i in range(2)}
    save_file(attention, tmp_path / "model-00001-of-00002.safetensors")
    rest = {"model.trunk.layers.0.mlp.audio.up_proj.weight": np.zeros((8, 4), np.float16), "logit_scale": np.zeros(())}
    save_file(rest, tmp_path / "model-00002-of-00002.safetensors")
    return tmp_path


def test_shards_are_counted_together(model_dir: Path) -> None:
    info = model_info(model_dir)
    assert (info.family, info.modalities, info.license) == ("one_peace", ["text", "audio"], "apache-2.0")
    assert info.parameters == 65
    assert info.parts == {"trunk.attn": 32, "trunk.mlp.audio": 32, "logit_scale": 1}
    assert info.dtypes == {"F32": 32, "F16": 32, "F64": 1}


def test_the_verb_prints_for_people_and_for_machines(model_dir: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["info", str(model_dir)]) == 0
    text = capsys.readouterr().out
    assert "apache-2.0" in text and "trunk.mlp.audio" in text and "49.2%" in text
    assert main(["info", str(model_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == asdict(model_info(model_dir))


def test_something_else_than_a_model_directory_is_refused(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture
) -> None:
    assert main(["info", str(tmp_path_factory.mktemp("empty"))]) == 1
    assert "expected config.json" in capsys.readouterr().err
    assert main(["info", str(model_dir / "model-00001-of-00002.safetensors")]) == 1
    assert "plait convert" in capsys.readouterr().err
    (model_dir / "config.json").write_text("{")
    assert main(["info", str(model_dir)]) == 1
    assert "expected JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("adapters.image.stem.0.weight", "adapters.image"),
        ("trunk.norm.text.weight", "trunk.norm.text"),
        ("decoder.trunk.layers.1.attn.q_proj.weight", "decoder.trunk"),
        ("decoder.trunk.layers.1.mlp.image.up_proj.weight", "decoder.trunk.mlp.image"),
        ("trunk.layers.7.k_proj.visual.weight", "trunk.k_proj.visual"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_parts_name_the_way_and_not_the_layer(name: str, part: str) -> None:
    assert part_of(name) == part


def test_sizes_are_readable() -> None:
    assert [format_count(n) for n in (7, 12_000, 999_950, 3_885_000_000)] == ["7", "12.0 k", "1.0 M", "3.9 B"]
    assert [format_bytes(n) for n in (7, 1536, 3 * 2**30, 5 * 2**41)] == ["7 B", "1.5 KiB", "3.0 GiB", "10240.0 GiB"]
    assert format_table(("a", "b"), [("long", "1")]) == "a     b\nlong  1"
