"""A teacher's relations are learned beside contrast, and a fused vector teaches its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import plait
from plait.models.one_peace import OnePeaceConfig, OnePeaceModel
from plait.recipes import find_recipe
from plait.recipes.teaching import Fusing, follow
from plait.training.run import run_recipe
from plait.training.stages import Options


def test_following_is_least_where_both_agree() -> None:
    teacher = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    same, other = follow(teacher + 7, teacher), follow(teacher.flip(1), teacher)
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(same, entropy, atol=1e-6) and other > same


def test_the_teacher_of_a_fused_vector_gets_no_gradient() -> None:
    class Still:
        """A tower whose vectors are its inputs."""

        class model:  # noqa: N801
            temperature = staticmethod(lambda: torch.tensor(5.0))

        encode = staticmethod(lambda modality, vectors: vectors)

    batch = {m: torch.randn(4, 6, requires_grad=True) for m in ("audio", "text", "image")}
    batch["ids"] = torch.arange(4)
    with torch.no_grad():
        alone, _ = Fusing(Still(), 0.0)(None, batch, 0, torch.Generator())
    loss, parts = Fusing(Still(), 1.0)(None, batch, 0, torch.Generator())
    assert torch.allclose(loss, parts["contrast"] + parts["match"]) and torch.allclose(alone, parts["contrast"])
    parts["match"].backward()
    fused = torch.nn.functional.normalize(batch["audio"] + batch["text"], dim=-1)
    assert fused.requires_grad and batch["audio"].grad.abs().sum() > 0  # through its own logits alone
    swapped = {**batch, "audio": batch["text"], "text": batch["audio"]}
    assert torch.allclose(Fusing(Still(), 1.0)(None, swapped, 0, torch.Generator())[0], loss)


@pytest.fixture(scope="module")
def student(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Distilled for two steps from `nano`, on pictures."""
    out = tmp_path_factory.mktemp("distilled")
    distil = find_recipe("one_peace.distil")
    settings = {"teacher": "nano", "data": str(world[0] / "manifest.jsonl"), "steps": 2, "batch_size": 4}
    run_recipe(lambda: distil(**settings), out / "pictures", options=Options(progress=False))
    return out / "pictures" / "model"


@pytest.mark.slow
def test_a_student_goes_on_with_sounds_and_fuses(world, student: Path, tmp_path: Path) -> None:
    data = str(world[0] / "manifest.jsonl")
    settings = {"teacher": "nano", "data": data, "medium": "audio", "init": str(student), "steps": 2, "batch_size": 4}
    run_recipe(lambda: find_recipe("one_peace.distil")(**settings), tmp_path / "s", options=Options(progress=False))
    before, after = (plait.load(place)[0].state_dict() for place in (student, tmp_path / "s" / "model"))
    changed = {OnePeaceModel.modality_of(key) for key in after if not torch.equal(before[key], after[key])}
    assert changed - {None} == {"audio"}
    init = str(tmp_path / "s" / "model")
    fused = find_recipe("one_peace.fuse")
    run_recipe(
        lambda: fused(init=init, data=data, steps=2, batch_size=4), tmp_path / "f", options=Options(progress=False)
    )
    fresh = plait.load(tmp_path / "f" / "model")[0].state_dict()
    assert {key.partition(".")[0] for key in fresh if not torch.equal(fresh[key], after[key])} == {"projections"}


def test_wrong_settings_are_one_line(world) -> None:
    distil = find_recipe("one_peace.distil")
    for settings, words in (
        ({"medium": "audio"}, "medium=audio with the student in init, got audio and None"),
        ({"medium": "video"}, "medium=image without init"),
    ):
        with pytest.raises(ValueError, match=words):
            distil(**{"teacher": "nano", "data": str(world[0] / "manifest.jsonl")} | settings)


@pytest.mark.parametrize(("preset", "millions"), [("90m", 91.1), ("300m", 298.0)])
def test_sizes_between_are_what_they_are_called(preset: str, millions: float) -> None:
    with torch.device("meta"):
        model = OnePeaceModel(OnePeaceConfig.preset(preset))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["90m", "300m"])
def test_sizes_between_take_a_step(preset: str) -> None:
    torch.manual_seed(0)
    model = OnePeaceModel(OnePeaceConfig.preset(preset))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    ids, pixels, waves = torch.tensor([[5, 6, 2], [7, 2, 1]]), torch.randn(2, 3, 256, 256), torch.randn(2, 16000)
    before = model.projections["audio"].weight.detach().clone()
    out = model(input_ids=ids, pixel_values=pixels, input_values=waves, return_loss=True)
    out.loss.backward()
    optimizer.step()
    assert out.loss.isfinite() and not torch.equal(before, model.projections["audio"].weight)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
