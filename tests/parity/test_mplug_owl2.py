"""Every golden case of mPLUG-Owl2 holds, none of our values depends on a stored one, and other cases run too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.parity.cases import DOCUMENTS, Case, Place, Settings, discover
from plait.parity.run import find, run_case, runner_module, select
from plait.parity.runners import Runner
from plait.processing.tokenizers import llama_tokenizer

supervised = runner_module("mplug_owl2_data").supervised
new_tokens = runner_module("mplug_owl2_model").new_tokens
ROOT = Path(__file__).parents[1] / "goldens"
CASES = [place.name for place in discover(ROOT) if place.system == "mplug_owl2"]
BUILT = [name for name in CASES if isinstance(find("mplug_owl2", name), Runner)]
DIRECTORIES = [name for name in BUILT if (ROOT / "mplug_owl2" / name).is_dir()]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", BUILT)
def test_golden_case_holds(goldens: Path, name: str, attn: str) -> None:
    (place,) = select(goldens, "mplug_owl2", name)
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
    source, scrambled = ROOT / "mplug_owl2" / name, tmp_path / "mplug_owl2" / name
    shutil.copytree(source, scrambled)
    runner = find("mplug_owl2", name)
    assert isinstance(runner, Runner)
    if (scrambled / "tensors.safetensors").exists():
        tensors = load_file(scrambled / "tensors.safetensors")
        changed = {k: torch.full_like(v, 7) if k.startswith("out.") else v for k, v in tensors.items()}
        save_file(changed, scrambled / "tensors.safetensors")
    for document in (scrambled / d for d in DOCUMENTS if (scrambled / d).exists()):
        document.write_text(json.dumps(other(json.loads(document.read_text()), runner.json_inputs)))
    for directory, out in ((source, "a"), (scrambled, "b")):
        run_case(Place("mplug_owl2", name, directory), Settings(), tmp_path / out)
    first, second = (sorted((tmp_path / out).rglob("actual.*")) for out in "ab")
    assert [path.name for path in first] == [path.name for path in second] != []
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def other_case(tmp_path: Path, name: str, config: dict | None = None, **tensors: torch.Tensor) -> list[str]:
    """What is not covered in a case of a known kind with sizes of its own; stored values are zeros."""
    path = tmp_path / "mplug_owl2" / name
    path.mkdir(parents=True)
    (path / "CASE.md").write_text("# other sizes\n")
    (path / "config.json").write_text(json.dumps(config or {}))
    save_file({key.replace("__", "."): value for key, value in tensors.items()}, path / "tensors.safetensors")
    result = run_case(Place("mplug_owl2", name, path), Settings())
    assert result.stored > 0
    return [note for note in result.notes if "values differ" not in note]


def test_tables_of_other_sizes_run(tmp_path: Path) -> None:
    shapes = {
        "out.k_pos_24_8_cls": (3, 24),
        "out.k_pos_nocls": (3, 16),
        "out.q_pos_24_9": (9, 6),
        "out.q_small": (4, 8),
        "out.k_small": (9, 8),
    }
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    config = {"step": 4, "nocls_dim": 16}
    assert not other_case(tmp_path, "sincos_tables_b", config, **tensors, **{"in.rows": torch.tensor([1, 5, 64])})


def test_images_of_other_sizes_run(tmp_path: Path) -> None:
    config = {"crop_size": {"height": 20, "width": 20}, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    image = torch.randint(0, 255, (9, 30, 3), dtype=torch.uint8)
    outputs = {
        "out.pad.x": torch.zeros(3, 20, 20),
        "out.resize32.x": torch.zeros(3, 16, 16),
        "out.padded_uint8.x": torch.zeros(30, 30, 3, dtype=torch.uint8),
    }
    assert not other_case(tmp_path, "preprocess_images_b", config, **outputs, **{"in.image.x": image})


def test_searches_run_to_the_limit_that_the_case_tells(tmp_path: Path) -> None:
    """Two best hypotheses that ended early do not show how long the search could go on."""
    source, path = ROOT / "mplug_owl2" / "owl2_beam", tmp_path / "mplug_owl2" / "owl2_beam_b"
    shutil.copytree(source, path)
    tensors = load_file(path / "tensors.safetensors")
    kept = {k: v for k, v in tensors.items() if k.startswith("in.") or k.endswith(".b4")}
    assert kept["out.seq.b4"].shape[1] < tensors["out.seq.b2"].shape[1]
    save_file(kept, path / "tensors.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["_runs"] = [run for run in config["_runs"] if run["num_beams"] == 4]
    (path / "config.json").write_text(json.dumps(config))
    result = run_case(Place("mplug_owl2", "owl2_beam_b", path), Settings())
    assert result.verdict == "ok", result.notes
    assert new_tokens(Case("mplug_owl2", "owl2_beam_b", path), 5) == 9


def test_a_case_that_tells_no_limit_has_that_of_its_longest_answer(tmp_path: Path) -> None:
    case = Case("mplug_owl2", "owl2_beam_b", tmp_path)
    assert new_tokens(case, 5) == 5
    (tmp_path / "CASE.md").write_text("Three beams, no length named.")
    assert new_tokens(case, 5) == 5


def test_a_model_without_ntk_has_the_factor_one(tmp_path: Path) -> None:
    source, path = ROOT / "mplug_owl2" / "owl21_ntk_logn", tmp_path / "mplug_owl2" / "owl21_ntk_logn_b"
    shutil.copytree(source, path)
    tensors = load_file(path / "tensors.safetensors")
    kept = ("in.short_ids", "out.short_alpha")
    save_file({name: tensors[name] for name in kept}, path / "tensors.safetensors")
    config = json.loads((path / "config.json").read_text()) | {"use_dynamic_ntk": False}
    (path / "config.json").write_text(json.dumps(config))
    result = run_case(Place("mplug_owl2", "owl21_ntk_logn_b", path), Settings())
    assert result.verdict == "ok", result.notes


def test_a_question_left_open_asks_nobody_in_a_training_sample() -> None:
    messages = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    tokenizer = llama_tokenizer(ROOT / "mplug_owl2" / "prompts_tokenize")

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    made = supervised({"conversations": messages, "has_image": False, "template": "mplug_owl2"}, encode, tokenizer)
    assert made["input_ids"] == encode("USER: a ASSISTANT: b</s>USER: c ")


def test_text_alone_is_sorted_by_its_negative_lengths(tmp_path: Path) -> None:
    path = tmp_path / "mplug_owl2" / "length_sampler_b"
    path.mkdir(parents=True)
    (path / "CASE.md").write_text("# text only\n")
    item = {"lengths": [-9, -3, -5], "batch_size": 3, "world_size": 1, "torch_seed": 1}
    item |= {"modality_grouped": [1, 2, 0], "length_grouped": [0, 2, 1]}
    (path / "data.json").write_text(json.dumps({"cases": [item], "chunks": []}))
    result = run_case(Place("mplug_owl2", "length_sampler_b", path), Settings())
    assert result.verdict == "ok", result.notes


def test_images_may_lie_in_a_list_as_the_release_takes_them(tmp_path: Path) -> None:
    source, path = ROOT / "mplug_owl2" / "owl2_multi_image", tmp_path / "mplug_owl2" / "owl2_multi_image_b"
    shutil.copytree(source, path)
    tensors = load_file(path / "tensors.safetensors")
    images = tensors.pop("in.grouped_images")
    tensors |= {f"in.grouped_images.{i}": image.contiguous() for i, image in enumerate(images)}
    save_file(tensors, path / "tensors.safetensors")
    result = run_case(Place("mplug_owl2", "owl2_multi_image_b", path), Settings())
    assert result.verdict == "ok", result.notes
