"""Every golden case of ONE-PEACE that is built holds, and our values do not depend on the stored ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.parity.cases import Case, Place, Settings, discover
from plait.parity.run import LATER, find, run_all, run_case, select
from plait.parity.runners import NotRun, Runner

BUILT = [place.name for place in discover(Path(__file__).parents[1] / "goldens") if place.system == "one_peace"]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", BUILT)
def test_golden_case_holds(goldens: Path, name: str, attn: str) -> None:
    (place,) = select(goldens, "one_peace", name)
    result = run_case(place, Settings(attn))
    assert result.verdict in {"ok", "properties"}, result.notes
    assert result.compared > 0


def test_recordings_left_out_are_absent_outputs(copies: Path) -> None:
    (result,) = run_all(select(copies, "one_peace", "audio_preprocess"), Settings())
    assert result.verdict == "ok"
    assert sum(note.startswith("absent") for note in result.notes) == 10
    assert result.compared == result.stored - 10


def test_a_broken_mask_violates_its_properties(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.processing import masking

    monkeypatch.setattr(masking, "image_mask", lambda patches, generator: torch.ones(patches, dtype=torch.bool))
    (result,) = run_all(select(copies, "one_peace", "mask_sampling"), Settings())
    assert result.verdict == "FAIL"
    assert "FAIL: out.image_mask masks another number of patches" in result.notes


def test_every_case_beside_the_checkout_is_known(goldens: Path) -> None:
    unknown = [place[:2] for place in discover(goldens) if find(place.system, place.name) is None]
    assert not unknown


def test_later_kinds_have_no_runner_yet() -> None:
    assert all(isinstance(find(system, kind), NotRun) for system, kinds in LATER.items() for kind in kinds)


def scramble(source: Path, target: Path, runner: Runner) -> None:
    """Copy a case with every stored output value replaced, shapes, types and names kept."""
    shutil.copytree(source, target)
    path = target / "tensors.safetensors"
    if path.exists():
        generator = torch.Generator().manual_seed(0)
        tensors = load_file(path)
        for name, value in tensors.items():
            if name.startswith("out."):
                noise = torch.randint(0, 2, value.shape, generator=generator)
                tensors[name] = (noise + 7 * torch.ones_like(noise)).to(value.dtype)
        save_file(tensors, path)
    path = target / "config.json"
    if path.exists():
        config = json.loads(path.read_text())
        hidden = Case("one_peace", target.name, target, config_outputs=runner.config_outputs).config_entries
        config |= {key: other_values(config[key]) for key in hidden}
        path.write_text(json.dumps(config))


def other_values(value):
    if isinstance(value, dict):
        return {key: other_values(item) for key, item in value.items()}
    return [other_values(item) for item in value] if isinstance(value, list) else "scrambled"


@pytest.mark.parametrize("name", BUILT)
def test_our_values_do_not_depend_on_stored_ones(copies: Path, tmp_path: Path, name: str) -> None:
    runner = find("one_peace", name)
    assert isinstance(runner, Runner)
    scrambled = tmp_path / "one_peace" / name
    scramble(copies / "one_peace" / name, scrambled, runner)
    for place, out in (
        (Place("one_peace", name, copies / "one_peace" / name), "a"),
        (Place("one_peace", name, scrambled), "b"),
    ):
        run_case(place, Settings(), tmp_path / out)
    first, second = (sorted((tmp_path / out).rglob("actual.*")) for out in "ab")
    assert [path.name for path in first] == [path.name for path in second] != []
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def other_case(tmp_path: Path, kind: str, config: dict, **tensors: torch.Tensor) -> Place:
    """A case of a known kind with sizes of its own; stored values are zeros, so only coverage and shapes count."""
    path = tmp_path / "one_peace" / f"{kind}_of_other_size"
    path.mkdir(parents=True)
    (path / "CASE.md").write_text("# other sizes\n")
    (path / "config.json").write_text(json.dumps(config))
    save_file(
        {name.replace("__", "."): value.contiguous() for name, value in tensors.items()}, path / "tensors.safetensors"
    )
    return Place("one_peace", path.name, path)


def uncovered(place: Place) -> list[str]:
    result = run_case(place, Settings())
    assert result.stored > 0
    return [note for note in result.notes if "differ" not in note]


def test_masks_of_other_lengths_run(tmp_path: Path) -> None:
    ids = torch.tensor([12094, 313, 5793, 42891])
    place = other_case(
        tmp_path,
        "mask_sampling",
        {"seed": 5},
        **{
            "in.text7.ids": ids,
            "out.text7.whole_word.0.15": torch.zeros(4, dtype=torch.bool),
            "out.text7.whole_word.0.5": torch.zeros(4, dtype=torch.bool),
            "out.text7.vl_mask_after_whole_word": torch.zeros(4, dtype=torch.bool),
            "out.audio.101.0.3": torch.zeros(101, dtype=torch.bool),
            "out.image_mask": torch.zeros(64, dtype=torch.bool),
            "out.vl_image_mask": torch.zeros(64, dtype=torch.bool),
        },
    )
    assert run_case(place, Settings()).verdict == "properties"


def test_tables_of_other_sizes_run(tmp_path: Path) -> None:
    place = other_case(
        tmp_path,
        "position_interpolation",
        {},
        **{
            "in.3to7.rel_pos_table": torch.zeros(28, 5),
            "out.3to7.rel_pos_table": torch.zeros(172, 5),
            "in.3to7.pos_embed": torch.zeros(10, 2),
            "out.3to7.pos_embed": torch.zeros(50, 2),
            "out.image_bucket.3": torch.zeros(10, 10, dtype=torch.int32),
            "out.token_bucket.12.first_row": torch.zeros(1024, dtype=torch.int32),
            "out.token_bucket.12.row0": torch.zeros(6, dtype=torch.int32),
        },
    )
    assert not uncovered(place)


def test_losses_of_other_sizes_run(tmp_path: Path) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    place = other_case(
        tmp_path,
        "losses",
        {"dcl_logit_scale": 4.0},
        **{
            "in.itc.image_all": vectors,
            "in.itc.text_all": vectors.flip(0),
            "in.itc.logit_scale_exp": torch.tensor(2.0),
            **{f"out.itc.ls0.2.rank{rank}.loss": torch.zeros(()) for rank in range(3)},
            "out.itc.ls0.2.rank1.grad_text": torch.zeros(2, 4),
            "in.dcl.student": torch.randn(2, 5, 4),
            "in.dcl.teacher": torch.randn(2, 5, 4),
            "in.dcl.mask_indices": torch.tensor([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool),
            "in.dcl.padding_masks": torch.zeros(2, 4, dtype=torch.bool),
            "out.dcl.pad.ls0.3.grad_student": torch.zeros(2, 5, 4),
            "in.cls.logits": torch.randn(2, 3),
            "in.cls.hard": torch.tensor([0, 2]),
            "out.cls.hard_ls0.3.loss_sum": torch.zeros(()),
        },
    )
    assert not uncovered(place)
