"""Golden cases of mPLUG-2's data side hold, other sizes and options run, and stored values are never read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.parity.cases import Place, Settings
from plait.parity.run import run_case, select

KINDS = (
    "frame_sampling", "lr_schedule", "optimizer_groups", "preprocess_image_eval", "preprocess_video_eval",
    "preprocess_video_train", "randaugment_ops", "retrieval_metrics", "scst_loss", "text_preprocess",
)  # fmt: skip
JSON_OUTPUTS = {"indices", "out", "ids", "max_length_8", "lr_used_at_iteration", "labels_before_shift", "ids_max20"}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_case_holds(goldens: Path, kind: str) -> None:
    for place in select(goldens, "mplug2", f"{kind}*"):
        result = run_case(place, Settings())
        assert result.verdict == "ok", result.notes
        assert result.compared == result.stored > 0


@pytest.mark.parametrize("kind", KINDS)
def test_our_values_do_not_depend_on_stored_ones(copies: Path, tmp_path: Path, kind: str) -> None:
    scrambled = tmp_path / "mplug2" / kind
    shutil.copytree(copies / "mplug2" / kind, scrambled)
    scramble(scrambled)
    (place,) = select(copies, "mplug2", kind)
    run_case(place, Settings(), tmp_path / "a")
    assert run_case(Place("mplug2", kind, scrambled), Settings(), tmp_path / "b").verdict == "FAIL"
    first, second = (sorted((tmp_path / out).rglob("actual.*")) for out in "ab")
    assert first
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def scramble(case: Path) -> None:
    path = case / "tensors.safetensors"
    if path.exists():
        stored = load_file(path)
        save_file({n: v + 3 if n.startswith("out.") else v for n, v in stored.items()}, path)
    path = case / "examples.json"
    if path.exists():
        document = json.loads(path.read_text())
        if isinstance(document, dict):
            document = {k: v + "x" if isinstance(v, str) else v for k, v in document.items()}
        path.write_text(json.dumps(_scrambled(document)))


def _scrambled(value, inside: bool = False):
    if isinstance(value, dict):
        return {k: _scrambled(v, inside or k in JSON_OUTPUTS or k == "result") for k, v in value.items()}
    if isinstance(value, list):
        return [_scrambled(item, inside) for item in value]
    if not inside or value is None:
        return value
    return value + "x" if isinstance(value, str) else value + 1


def test_a_step_of_one_grey_level_is_allowed_where_the_case_says_so_and_two_are_not(
    copies: Path, tmp_path: Path
) -> None:
    for step, verdict in ((1, "ok"), (2, "FAIL")):
        case = tmp_path / str(step) / "mplug2" / "randaugment_ops"
        shutil.copytree(copies / "mplug2" / "randaugment_ops", case)
        stored = load_file(case / "tensors.safetensors")
        moved = stored["out.Rotate_5"]
        stored["out.Rotate_5"] = torch.where(moved < 128, moved + step, moved - step)
        save_file(stored, case / "tensors.safetensors")
        assert run_case(Place("mplug2", "randaugment_ops", case), Settings()).verdict == verdict


def test_other_sizes_and_levels_run(copies: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (9, 7, 3), generator=generator, dtype=torch.uint8)
    cases = {
        "randaugment_ops_large": {"in.frame": frame, "out.Sharpness_9": frame + 1, "out.Equalize_1": frame + 2},
        "preprocess_image_eval_small": {"in.image": frame, "out.image_5": torch.zeros(3, 5, 5)},
        "preprocess_video_eval_one_frame": {"in.frames": frame[None], "out.video_6": torch.zeros(3, 1, 6, 6)},
    }
    for name, tensors in cases.items():
        case = tmp_path / "mplug2" / name
        case.mkdir(parents=True)
        (case / "CASE.md").write_text("# other sizes\n")
        save_file(tensors, case / "tensors.safetensors")
        result = run_case(Place("mplug2", name, case), Settings())
        assert result.stored == result.compared, result.notes
        assert all("values differ" in note for note in result.notes)
