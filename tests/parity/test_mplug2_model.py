"""Golden cases of mPLUG-2's modules and models hold under both attentions, and stored values are never read."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from plait.parity.cases import Place, Settings, discover
from plait.parity.run import run_case, select

DATA_SIDE = {
    "frame_sampling", "lr_schedule", "optimizer_groups", "preprocess_image_eval", "preprocess_video_eval",
    "preprocess_video_train", "randaugment_ops", "retrieval_metrics", "scst_loss", "text_preprocess",
}  # fmt: skip
NAMES = [
    place.name
    for place in discover(Path(__file__).parents[1] / "goldens")
    if place.system == "mplug2" and place.name not in DATA_SIDE
]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_golden_case_holds(goldens: Path, name: str, attn: str) -> None:
    (place,) = select(goldens, "mplug2", name)
    result = run_case(place, Settings(attn))
    assert result.verdict == "ok", result.notes
    assert result.compared == result.stored > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("keys", "checkpoint_key_renames")])
def test_our_values_do_not_depend_on_stored_ones(copies: Path, tmp_path: Path, name: str) -> None:
    (place,) = select(copies, "mplug2", name)
    other = tmp_path / "mplug2" / name
    shutil.copytree(place.directory, other)
    stored = load_file(other / "tensors.safetensors")
    save_file({n: v + 3 if n.startswith("out.") else v for n, v in stored.items()}, other / "tensors.safetensors")
    run_case(place, Settings(), tmp_path / "a")
    assert run_case(Place("mplug2", name, other), Settings(), tmp_path / "b").verdict == "FAIL"
    ours, again = (load_file(tmp_path / out / "mplug2" / name / "actual.safetensors") for out in "ab")
    assert ours.keys() == again.keys()
    assert all(ours[key].equal(again[key]) for key in ours)


def test_other_settings_run(copies: Path, tmp_path: Path) -> None:
    """Directory names with suffixes, settings left out or added, and more texts asked for than there are beams."""
    case = tmp_path / "mplug2" / "videoqa_a_of_another_maker"
    shutil.copytree(copies / "mplug2" / "videoqa_a", case)
    config = json.loads((case / "config.json").read_text())
    for name in ("use_checkpoint", "eos", "clip_name", "embed_dim", "temporal_stride", "temporal_downsampling"):
        del config[name]
    (case / "config.json").write_text(json.dumps(config | {"alpha": 0.4, "optimizer": {"lr1": 2e-5}, "num_workers": 4}))
    assert run_case(Place("mplug2", case.name, case), Settings()).verdict == "ok"
    case = tmp_path / "mplug2" / "beam_search_wide"
    shutil.copytree(copies / "mplug2" / "beam_search_masked", case)
    config = json.loads((case / "config.json").read_text())
    config["generation"] = [[5, 1, 8, 2], [3, 3, 10, 8], [2, 9, 7, 2]]  # the second asks for 8 of 3, the third waits
    (case / "config.json").write_text(json.dumps(config))
    result = run_case(Place("mplug2", case.name, case), Settings())
    assert result.compared == result.stored
    assert all(note.startswith("FAIL: out.g2.") for note in result.notes), result.notes


def test_what_a_task_leaves_out_gets_no_gradient_and_stays(copies: Path, tmp_path: Path) -> None:
    case = tmp_path / "mplug2" / "mplug1_itc_itm_step"
    shutil.copytree(copies / "mplug2" / "mplug1_itc_itm_step", case)
    tensors, weights = (load_file(case / f"{name}.safetensors") for name in ("tensors", "weights"))
    unused, copied = "visual_encoder.visual.proj", "fusion_encoder_m.encoder.layer.0.output.dense.bias"
    tensors[f"out.grad.{unused}"] = weights[unused] * 0
    tensors[f"out.after.{copied}"] = weights[copied]
    save_file(tensors, case / "tensors.safetensors")
    assert run_case(Place("mplug2", case.name, case), Settings()).verdict == "ok"
    tensors[f"out.after.{copied}"] = weights[copied] + 1
    save_file(tensors, case / "tensors.safetensors")
    assert run_case(Place("mplug2", case.name, case), Settings()).verdict == "FAIL"


def test_a_key_nobody_knows_is_a_failure(copies: Path, tmp_path: Path) -> None:
    listed = json.loads(gzip.decompress((copies / "mplug2" / "keys_base_videoqa.json.gz").read_bytes()))
    listed["keys"]["text_encoder.pooler.dense.weight"] = [768, 768]
    folder = tmp_path / "mplug2"
    folder.mkdir()
    (folder / "keys_more.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))
    (place,) = select(folder)
    result = run_case(place, Settings())
    assert result.verdict == "FAIL"
    assert "text_encoder.pooler.dense.weight" in result.notes[0]


def test_names_of_a_pretraining_file_are_made_by_rule(copies: Path, tmp_path: Path) -> None:
    case = tmp_path / "mplug2" / "checkpoint_key_renames"
    shutil.copytree(copies / "mplug2" / "checkpoint_key_renames", case)
    rows = [
        {"from": "fusion_encoder.fusion.encoder.layer.2.output.dense.bias",
         "to": "fusion_encoder.encoder.layer.2.output.dense.bias"},
        {"from": "fusion_encoder.encoder.layer.2.output.dense.bias", "to": None},
        {"from": "text_decoder.bert.embeddings.position_ids", "to": "text_decoder.bert.embeddings.position_ids"},
    ]  # fmt: skip
    (case / "examples.json").write_text(json.dumps({"result": rows}))
    assert run_case(Place("mplug2", case.name, case), Settings()).verdict == "ok"
    rows[1]["to"] = rows[1]["from"]
    (case / "examples.json").write_text(json.dumps({"result": rows}))
    assert run_case(Place("mplug2", case.name, case), Settings()).verdict == "FAIL"
