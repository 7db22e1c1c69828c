from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plait.data.reader import Reader, as_it_is
from plait.errors import UsageError
from plait.training.checkpoint import CheckpointStore
from plait.training.data_order import check_divides
from plait.training.logging import read_metrics
from plait.training.loop import NonFiniteLossError, train
from plait.training.schedules import linear
from plait.training.stages import Options, Stage

TIMING = ("seconds", "samples_per_second", "memory_gib", "data_wait")
QUIET = Options(progress=False)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The logged lines without what a clock says."""
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read_metrics(run_dir / "metrics.jsonl")]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def die(run_dir: Path, how: str, may_finish: bool = False) -> bool:
    """Whether a run was killed as `how` says. may_finish: it may also come to its end before."""
    script = Path(__file__).with_name("tiny_run.py")
    done = subprocess.run([sys.executable, str(script), str(run_dir), how], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL or (may_finish and done.returncode == 0), done.stderr
    return done.returncode != 0


@pytest.fixture(scope="module")
def undisturbed(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    run_dir, model = tmp_path_factory.mktemp("undisturbed"), tiny.build()
    result = tiny.run(run_dir, model)
    assert (result.steps, result.interrupted) == (20, None)
    return run_dir, model


def test_two_runs_are_bit_identical(tiny: ModuleType, undisturbed: tuple[Path, nn.Module], tmp_path: Path) -> None:
    model = tiny.build()
    tiny.run(tmp_path, model)
    assert lines(tmp_path) == lines(undisturbed[0])
    assert same_weights(model, undisturbed[1])
    assert len({row["loss"] for row in lines(tmp_path)}) == 20


def test_another_seed_is_another_run(tiny: ModuleType, undisturbed: tuple[Path, nn.Module], tmp_path: Path) -> None:
    tiny.run(tmp_path, seed=1)
    assert all(a["loss"] != b["loss"] for a, b in zip(lines(tmp_path), lines(undisturbed[0]), strict=True))
    with pytest.raises(ValueError, match=r"expected seed 1 .* got 0"):
        tiny.run(tmp_path)


def test_a_killed_run_goes_on_as_if_nothing_happened(
    tiny: ModuleType, undisturbed: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    die(tmp_path, "step:7")  # after the checkpoint of step 4 was begun
    die(tmp_path, "sync:4")  # in the middle of writing the next one
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} <= {"step-00000004"}
    model = tiny.build()
    tiny.run(tmp_path, model)
    assert lines(tmp_path) == lines(undisturbed[0])
    assert same_weights(model, undisturbed[1])
    assert not list((tmp_path / "checkpoints").glob(".writing-*"))


@pytest.mark.slow
def test_ten_kills_in_a_row_change_nothing(
    tiny: ModuleType, undisturbed: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    """At a random moment, in a random step, or at a random file of a save; a run that ends first is begun again."""
    draw, kills, runs = random.Random(3), 0, 0
    while kills < 10:
        moment = f"time:{draw.uniform(0.0, 0.12):.3f}"
        how = draw.choice([moment, f"step:{draw.randint(1, 5)}", f"sync:{draw.randint(1, 6)}"])
        if die(tmp_path / str(runs), how, may_finish=True):
            kills += 1
        else:
            assert lines(tmp_path / str(runs)) == lines(undisturbed[0])
            runs += 1
    for number in range(runs + 1):
        model = tiny.build()
        tiny.run(tmp_path / str(number), model)
        assert lines(tmp_path / str(number)) == lines(undisturbed[0])
        assert same_weights(model, undisturbed[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(
    tiny: ModuleType, undisturbed: tuple[Path, nn.Module], tmp_path: Path, number: signal.Signals
) -> None:
    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        if step == 5:
            os.kill(os.getpid(), number)
        return tiny.noisy_loss(model, batch, step, generator)

    before = signal.getsignal(number)
    result = tiny.run(tmp_path, stages=tiny.stages(objective), options=QUIET)
    assert (result.steps, result.interrupted) == (6, number)
    assert signal.getsignal(number) == before
    assert len(lines(tmp_path)) == 6
    model = tiny.build()
    tiny.run(tmp_path, model)
    assert lines(tmp_path) == lines(undisturbed[0])
    assert same_weights(model, undisturbed[1])


def test_the_second_ctrl_c_does_not_wait(tiny: ModuleType, tmp_path: Path) -> None:
    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return tiny.noisy_loss(model, batch, step, generator)

    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, stages=tiny.stages(objective), options=QUIET)


def test_a_finished_run_is_not_trained_again(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.run(tmp_path)
    model = tiny.build()
    saved, before = lines(tmp_path), model.state_dict()["shared.weight"].clone()
    assert tiny.run(tmp_path, model).steps == 20
    assert lines(tmp_path) == saved
    assert not torch.equal(model.state_dict()["shared.weight"], before)  # the trained weights were loaded
    tiny.run(tmp_path, resume=False, stages=tiny.stages()[:1])
    assert len(lines(tmp_path)) == 11


def test_a_shorter_stage_does_not_continue_a_longer_one(tiny: ModuleType, tmp_path: Path) -> None:
    def stop(model: nn.Module, step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    def stage(steps: int) -> Stage:
        return Stage(
            name="s",
            steps=steps,
            batch_size=4,
            objective=tiny.noisy_loss,
            batches=lambda: Reader(tiny.points(), tiny.collate, as_it_is),
            after_step=(stop,),
        )

    tiny.run(tmp_path, stages=[stage(9)])
    with pytest.raises(ValueError, match="expected more than 6 steps to continue 's', got 3"):
        tiny.run(tmp_path, stages=[stage(3)])


def test_frozen_parameters_do_not_change(tiny: ModuleType, tmp_path: Path) -> None:
    model, before = tiny.build(), tiny.build().state_dict()
    tiny.run(tmp_path, model, stages=tiny.stages()[1:])
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        "audio.1.weight",
        "audio.1.bias",
        "num_calls",
    }


def quiet_stage(tiny: ModuleType, **changes: Any) -> Stage:
    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        return (model.embed(batch["x"], "image") - batch["y"][:, :3]).square().mean(), {}

    return Stage(
        **{
            "name": "quiet",
            "steps": 6,
            "batch_size": 8,
            "objective": tiny.still(objective),
            "batches": lambda: Reader(tiny.points(), tiny.collate, as_it_is),
            "peak_lr": 1e-2,
            "trainable": ("shared.*", "image.*"),
            **changes,
        }
    )


def test_accumulation_equals_a_large_batch(tiny: ModuleType, tmp_path: Path) -> None:
    models = [tiny.build(dropout=0.0) for _ in range(2)]
    for model, accumulation in zip(models, (1, 4), strict=True):
        train(model, [quiet_stage(tiny, accumulation=accumulation)], tmp_path / str(accumulation), options=QUIET)
    for large, small in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(large, small, atol=1e-6, rtol=1e-5)
    for large, small in zip(lines(tmp_path / "1"), lines(tmp_path / "4"), strict=True):
        assert large["loss"] == pytest.approx(small["loss"], rel=1e-5)


def test_gradients_are_clipped_and_their_norm_logged(tiny: ModuleType, tmp_path: Path) -> None:
    def sgd(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)

    model, before = tiny.build(dropout=0.0), tiny.build(dropout=0.0)
    stage = quiet_stage(tiny, steps=1, warmup=0, peak_lr=1.0, clip=1e-3, optimizer=sgd)
    train(model, [stage], tmp_path, options=QUIET)
    moves = [(a - b).detach() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    moved = float(torch.cat([move.flatten() for move in moves]).norm())
    assert moved == pytest.approx(1e-3, rel=1e-2)
    assert lines(tmp_path)[0]["gradient_norm"] > 1e-2


def test_the_rate_follows_the_schedule_and_the_groups(tiny: ModuleType, tmp_path: Path) -> None:
    seen: list[list[float]] = []

    def watched(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
        groups = [{"params": model.shared.parameters()}, {"params": model.image.parameters(), "lr_scale": 0.1}]
        optimizer = torch.optim.SGD(groups, lr=0.0)
        optimizer.register_step_pre_hook(lambda opt, *_: seen.append([group["lr"] for group in opt.param_groups]))
        return optimizer

    stage = quiet_stage(tiny, schedule=linear, warmup=2, peak_lr=1.0, floor=0.0, optimizer=watched)
    train(tiny.build(), [stage], tmp_path, options=QUIET)
    assert [row["lr"] for row in lines(tmp_path)] == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert seen == [pytest.approx([row["lr"], row["lr"] * 0.1]) for row in lines(tmp_path)]


def test_a_loss_that_is_not_a_number_names_step_and_samples(tiny: ModuleType, tmp_path: Path) -> None:
    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        loss, metrics = tiny.noisy_loss(model, batch, step, generator)
        seen.append([f"p{number:02d}" for number in batch["numbers"].tolist()])
        return loss * (math.nan if step == 5 else 1.0), metrics

    seen: list[list[str]] = []
    with pytest.raises(NonFiniteLossError) as caught:
        tiny.run(tmp_path, stages=tiny.stages(objective), options=Options(checkpoint_steps=2, progress=False))
    assert "loss nan" in str(caught.value)
    assert "at step 6 of stage 'first'" in str(caught.value)
    assert f"with samples {', '.join(seen[5])};" in str(caught.value)
    assert "the checkpoint of step 4 is intact" in str(caught.value)


def test_rare_looks_log_the_same_values_and_miss_no_bad_step(
    tiny: ModuleType, undisturbed: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    tiny.run(tmp_path / "rare", options=Options(log_every=3, progress=False))
    expected = [row for row in lines(undisturbed[0]) if row["step"] % 3 == 0 or row["step"] in (11, 20)]
    assert lines(tmp_path / "rare") == expected

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        loss, metrics = tiny.noisy_loss(model, batch, step, generator)
        return loss * (math.inf if step == 3 else 1.0), metrics

    with pytest.raises(NonFiniteLossError, match="at step 4 "):
        tiny.run(tmp_path / "bad", stages=tiny.stages(objective), options=Options(log_every=5, progress=False))
    assert not (tmp_path / "bad" / "checkpoints").exists()


@pytest.mark.parametrize(("name", "period", "steps"), [("nonsense", 1, 1), ("nonsense", 3, 3), ("late", 3, 8)])
def test_a_best_metric_that_no_step_has_is_refused_after_one_period(
    name: str, period: int, steps: int, tiny: ModuleType, tmp_path: Path
) -> None:
    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        seen.append(step)
        loss, metrics = tiny.noisy_loss(model, batch, step, generator)
        return loss, {**metrics, **({"late": loss.detach()} if step % 3 == 2 else {})}

    seen: list[int] = []
    options = Options(progress=False, best=name)
    stage = replace(tiny.stages(objective)[0], steps=8, period=period)
    if name == "nonsense":
        with pytest.raises(UsageError, match=r"expected one of the metrics loss, .* got 'nonsense'"):
            tiny.run(tmp_path, stages=[stage], options=options)
    else:
        tiny.run(tmp_path, stages=[stage], options=options)
    assert len(seen) == steps
    if name == "nonsense":  # nothing is lost: the corrected command trains
        tiny.run(tmp_path, stages=[stage], options=QUIET)
        assert lines(tmp_path)[-1]["step"] == 8


def test_bf16_runs_products_in_bf16_and_keeps_float32_weights(tiny: ModuleType, tmp_path: Path) -> None:
    dtypes = set()

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        hidden = model.shared(batch["x"])
        dtypes.add(hidden.dtype)
        return hidden.float().square().mean(), {}

    model = tiny.build()
    stage = quiet_stage(tiny, objective=objective, trainable=("shared.*",))
    train(model, [stage], tmp_path, dtype="bf16", device="cpu", options=QUIET)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match=r"expected a dtype of .* got 'int8'"):
        train(model, [stage], tmp_path, dtype="int8")


def test_a_batch_that_does_not_divide_is_an_error(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 processes x 3 micro batches divide, got 8"):
        train(tiny.build(), [quiet_stage(tiny, accumulation=3)], tmp_path, options=QUIET)


def test_a_source_that_fails_stops_the_run(tiny: ModuleType, tmp_path: Path) -> None:
    def collate(samples: list[Any], rng: Any) -> Any:
        raise OSError("expected a picture, got a torn file")

    stage = quiet_stage(tiny, batches=lambda: Reader(tiny.points(), collate, as_it_is))
    with pytest.raises(OSError, match="torn file"):
        train(tiny.build(), [stage], tmp_path, options=QUIET)


def test_fp16_scales_the_loss_skips_overflows_and_remembers(tiny: ModuleType, tmp_path: Path) -> None:
    """An overflow halves the scale and skips the step; a stopped run goes on with the scale it had."""

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        loss = (model.embed(batch["x"], "image").float() - batch["y"][:, :3]).square().mean()
        return loss * (1e36 if step == 1 else 1.0), {}  # finite, and its scaled gradient is not

    def stage(*after: Any) -> Stage:
        return quiet_stage(tiny, objective=tiny.still(objective), after_step=after)

    for name, after in {"whole": (), "stopped": (tiny.stops_at(3),)}.items():
        train(tiny.build(0.0), [stage(*after)], tmp_path / name, dtype="fp16", device="cpu", options=QUIET)
    train(tiny.build(0.0), [stage()], tmp_path / "stopped", dtype="fp16", device="cpu", options=QUIET)
    whole, stopped = lines(tmp_path / "whole"), lines(tmp_path / "stopped")
    assert not math.isfinite(whole[1]["gradient_norm"])
    kept = [[(row["loss"], row["loss_scale"]) for row in run] for run in (whole, stopped)]
    assert kept[0] == kept[1]
    assert whole[-1]["loss_scale"] == whole[2]["loss_scale"] == whole[1]["loss_scale"] / 2


def test_no_two_micro_batches_or_steps_draw_alike(tmp_path: Path) -> None:
    """Dropout, masks and noise of a micro batch follow from its place in the global batch, whoever computes it."""
    drawn: list[tuple[float, ...]] = []

    def objective(model: nn.Module, batch: torch.Tensor, step: int, generator: torch.Generator) -> Any:
        own = torch.rand((), generator=generator).item()
        drawn.append((own, torch.rand(()).item(), random.random(), float(np.random.rand())))
        return model(batch).square().mean(), {}

    def run(place: Path, accumulation: int, seed: int = 0) -> list[tuple[float, ...]]:
        drawn.clear()
        rows = Reader([1.0, 2.0, 3.0, 4.0], lambda found, _: torch.tensor(found)[:, None], as_it_is)
        stage = Stage(
            name="all", objective=objective, batches=lambda: rows, batch_size=4, steps=3, accumulation=accumulation
        )
        train(nn.Linear(1, 1), [stage], place, device="cpu", seed=seed, options=QUIET)
        return list(drawn)

    parts = run(tmp_path / "parts", 2)
    assert len(parts) == 6
    for stream in zip(*parts, strict=True):  # each of the four generators
        assert len(set(stream)) == 6
    assert run(tmp_path / "again", 2) == parts
    assert not set(run(tmp_path / "other", 2, seed=1)) & set(parts)
    # the first half of a batch draws as the whole one does: its place is the same
    assert run(tmp_path / "whole", 1) == parts[::2]


def squares(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
    return model(batch).square().mean(), {}


def small_stage(objective: Any = squares, **changes: Any) -> Stage:
    """Three steps over four rows of one number."""
    rows = Reader([1.0, 2.0, 3.0, 4.0], lambda found, _: torch.tensor(found)[:, None], as_it_is)
    fields = {"name": "all", "objective": objective, "batches": lambda: rows, "batch_size": 2, "steps": 3}
    return Stage(**(fields | changes))


def test_a_stage_prepares_its_model_once_whatever_happens_later(tmp_path: Path) -> None:
    prepared: list[str] = []
    calls = iter(range(100))

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        if next(calls) == 4:
            raise RuntimeError("the power went")
        return squares(model, batch, step, generator)

    stages = [
        small_stage(before=(lambda model: prepared.append("first"),)),
        small_stage(objective, name="second", steps=8, before=(lambda model: prepared.append("second"),)),
    ]
    options = replace(QUIET, checkpoint_steps=1)
    with pytest.raises(RuntimeError, match="the power went"):
        train(nn.Linear(1, 1), stages, tmp_path, device="cpu", options=options)
    assert prepared == ["first", "second"]
    assert train(nn.Linear(1, 1), stages, tmp_path, device="cpu", options=options).steps == 11
    assert prepared == ["first", "second"]  # it went on in the middle of the second


def test_modules_train_in_training_mode(tmp_path: Path) -> None:
    modes: list[bool] = []

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        modes.extend(module.training for module in model.modules())
        return squares(model, batch, step, generator)

    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1)).eval()
    train(model, [small_stage(objective)], tmp_path, device="cpu", options=QUIET)
    assert modes and all(modes)


def test_a_gradient_that_is_infinite_stops_the_run_though_the_loss_is_not(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    stage = small_stage(lambda model, batch, step, generator: (model.weight.sqrt().sum(), {}))  # 0, infinitely steep
    with pytest.raises(NonFiniteLossError, match="step 1"):
        train(model, [stage], tmp_path, device="cpu", options=QUIET)
    assert not list(tmp_path.glob("checkpoints/*/model*"))


def test_the_checkpoint_with_the_lowest_mean_of_the_chosen_metric_is_kept(tmp_path: Path) -> None:
    worth = [5.0, 5.0, 1.0, 2.0, 9.0, 9.0, 8.0, 8.0]  # means of two steps: 5, 1.5, 9, 8

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        return squares(model, batch, step, generator)[0], {"error": torch.tensor(worth[step])}

    options = replace(QUIET, checkpoint_steps=2, keep_last=1, best="error")
    train(nn.Linear(1, 1), [small_stage(objective, steps=8)], tmp_path, device="cpu", options=options)
    store = CheckpointStore(tmp_path / "checkpoints")
    scores = {step: store.position(step).score for step in store.steps()}
    assert scores == {4: 1.5, 8: 8.0}


def test_micro_batches_have_to_divide_what_a_process_gets() -> None:
    with pytest.raises(ValueError, match="2 processes x 2 micro batches divide, got 6"):
        check_divides(6, 2, 2)
    check_divides(8, 2, 2)


@pytest.mark.parametrize("shares", [True, False])
def test_a_run_that_shares_cores_looks_at_them_again(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    looks: list[int] = []
    monkeypatch.setattr("plait.training.loop.SHARE_SECONDS", -1.0)
    monkeypatch.setattr("plait.training.loop.use_idle_cores", looks.append)
    tiny.run(tmp_path, options=Options(progress=False, share_cores=shares))
    assert bool(looks) is shares and all(own >= 1 for own in looks)
