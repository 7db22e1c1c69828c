"""Every golden case of mPLUG-Owl holds, none of our values depends on a stored one, and other cases run too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.parity.cases import DOCUMENTS, Place, Settings, discover
from plait.parity.run import find, run_case, select
from plait.parity.runners import Runner

ROOT = Path(__file__).parents[1] / "goldens"
CASES = [place.name for place in discover(ROOT) if place.system == "mplug_owl"]
BUILT = [name for name in CASES if isinstance(find("mplug_owl", name), Runner)]
DIRECTORIES = [name for name in BUILT if (ROOT / "mplug_owl" / name).is_dir()]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", BUILT)
def test_golden_case_holds(goldens: Path, name: str, attn: str) -> None:
    (place,) = select(goldens, "mplug_owl", name)
    result = run_case(place, Settings(attn))
    assert result.verdict == "ok", result.notes
    assert result.compared == result.stored > 0


def other(value: object, inputs: tuple[str, ...]) -> object:
    """The same structure with every expected leaf replaced."""
    if isinstance(value, dict):
        return {key: item if key in inputs else other(item, inputs) for key, item in value.items()}
    return [other(item, inputs) for item in value] if isinstance(value, list) else "scrambled"


@pytest.mark.parametrize("name", DIRECTORIES)
def test_our_values_do_not_depend_on_stored_ones(tmp_path: Path, name: str) -> None:
    source, scrambled = ROOT / "mplug_owl" / name, tmp_path / "mplug_owl" / name
    shutil.copytree(source, scrambled)
    runner = find("mplug_owl", name)
    assert isinstance(runner, Runner)
    if (scrambled / "tensors.safetensors").exists():
        tensors = load_file(scrambled / "tensors.safetensors")
        changed = {k: torch.full_like(v, 7) if k.startswith("out.") else v for k, v in tensors.items()}
        save_file(changed, scrambled / "tensors.safetensors")
    for document in (scrambled / d for d in DOCUMENTS if (scrambled / d).exists()):
        document.write_text(json.dumps(other(json.loads(document.read_text()), runner.json_inputs)))
    for directory, out in ((source, "a"), (scrambled, "b")):
        run_case(Place("mplug_owl", name, directory), Settings(), tmp_path / out)
    first, second = (sorted((tmp_path / out).rglob("actual.*")) for out in "ab")
    assert [path.name for path in first] == [path.name for path in second] != []
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_an_answer_ends_with_the_language_models_own_end_where_a_case_names_none(tmp_path: Path) -> None:
    path = tmp_path / "mplug_owl" / "generate_greedy_b"
    shutil.copytree(ROOT / "mplug_owl" / "generate_greedy", path)
    tensors = load_file(path / "tensors.safetensors")
    tensors["out.sequences"] = tensors["out.sequences"][:, :5].contiguous()
    save_file(tensors, path / "tensors.safetensors")
    config = json.loads((path / "config.json").read_text())
    del config["generate_kwargs"]["eos_token_id"]
    config["text_config"]["eos_token_id"] = int(tensors["out.sequences"][0, -1])
    (path / "config.json").write_text(json.dumps(config))
    result = run_case(Place("mplug_owl", "generate_greedy_b", path), Settings())
    assert result.verdict == "ok", result.notes


def test_prompts_with_other_lengths_run(tmp_path: Path) -> None:
    path = tmp_path / "mplug_owl" / "tokenize_prompts_b"
    path.mkdir(parents=True)
    (path / "CASE.md").write_text("# other lengths\n")
    item = {"prompts": ["a<image>b", "c"], "media_lengths": {"<image>": 3}}
    item |= {"input_ids": [[1, 3, 101, -1, -1, -1, 3, 102], [1, 3, 103, 2, 2, 2, 2, 2]]}
    item |= {"attention_mask": [[1.0] * 8, [1.0] * 3 + [0.0] * 5]}
    clips = {"prompts": ["<|video|>a<image>"], "media_lengths": {"<|video|>": 1, "<image>": 2}}
    clips |= {"input_ids": [[1, -1, 3, 101, -2, -2]], "attention_mask": [[1.0] * 6]}
    (path / "data.json").write_text(json.dumps([item, clips]))
    result = run_case(Place("mplug_owl", "tokenize_prompts_b", path), Settings())
    assert result.verdict == "ok", result.notes
