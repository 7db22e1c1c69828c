from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import nn

import plait.recipes
from plait import cli
from plait.errors import UsageError
from plait.recipes import find_recipe
from plait.training.logging import read_metrics
from plait.training.run import call_recipe, claim_run_dir, parse_settings, run_recipe
from plait.training.stages import Options, Recipe


def settings_recipe(
    *,
    data: str = "mini",
    steps: int = 20,
    lr: float = 1e-3,
    seed: int = 0,
    flip: bool = False,
    out: Path = Path("x"),
    limit: int | None = 5,
    loss: Literal["l2", "dcl"] = "dcl",
    names: tuple[str, ...] = (),
    betas: tuple[float, float] = (0.9, 0.98),
    scale: float | None = None,
    sizes: Sequence[int] = (1, 2),
) -> Recipe:
    raise NotImplementedError


def parse(*settings: str) -> dict[str, Any]:
    return parse_settings(settings_recipe, settings, seed=3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps=40", 40),
        ("lr=3e-4", 3e-4),
        ("flip=true", True),
        ("out=a/b", Path("a/b")),
        ("limit=none", None),
        ("limit=7", 7),
        ("loss=l2", "l2"),
        ("names=a.*,b", ("a.*", "b")),
        ("betas=0.8,0.9", (0.8, 0.9)),
        ("data=a=b", "a=b"),
    ],
)
def test_a_setting_is_read_by_the_type_of_its_parameter(setting: str, value: object) -> None:
    parsed = parse(setting)
    name = setting.partition("=")[0]
    assert parsed[name] == value
    assert type(parsed[name]) is type(value) or isinstance(value, Path)
    assert {**parsed, name: parse()[name]} == parse()


def test_settings_not_given_keep_their_defaults() -> None:
    parsed = parse()
    assert (parsed["steps"], parsed["lr"], parsed["seed"], parsed["limit"]) == (20, 1e-3, 3, 5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("step=3", "got 'step'; did you mean 'steps'?"),
        ("zzzz=3", "got 'zzzz'; one of betas, data,"),
        ("steps=many", "expected steps as a whole number, got 'many'; for example --set steps=20"),
        ("lr=fast", "expected lr as a number, got 'fast'; for example --set lr=0.001"),
        ("flip=maybe", "expected flip as true or false, got 'maybe'; for example --set flip=false"),
        ("limit=few", "expected limit as a whole number or none, got 'few'; for example --set limit=5"),
        ("scale=big", "expected scale as a number or none, got 'big'; for example --set scale=0.1"),
        ("loss=l3", "expected loss as l2 or dcl, got 'l3'; for example --set loss=dcl"),
        ("betas=0.9", "expected betas as 2 numbers with a comma between, got '0.9'; for example --set betas=0.9,0.98"),
        ("sizes=a,2", "expected sizes as whole numbers with a comma between, got 'a,2'; for example --set sizes=1,2"),
        ("steps", "expected --set key=value, got 'steps'"),
        ("seed=1", "use --seed"),
    ],
)
def test_a_wrong_setting_is_a_usage_error(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(setting)
    assert message in str(caught.value)


def test_a_parameter_without_default_has_to_be_set() -> None:
    def recipe(model: str, steps: int = 3) -> None: ...

    assert parse_settings(recipe, ["model=m"], 0) == {"model": "m", "steps": 3}
    with pytest.raises(UsageError, match="expected a value for model, got none; add --set model=VALUE"):
        parse_settings(recipe, [], 0)


@dataclass(frozen=True)
class Shared:
    """What several recipes take."""

    steps: int = 3
    rate: float | None = None


def test_fields_of_a_dataclass_are_set_as_parameters_are() -> None:
    def recipe(model: str, how: Shared = Shared(steps=5)) -> Any:
        return model, how

    arguments = parse_settings(recipe, ["model=m", "rate=0.5"], 0)
    assert arguments == {"model": "m", "steps": 5, "rate": 0.5}
    assert call_recipe(recipe, arguments) == ("m", Shared(5, 0.5))
    with pytest.raises(UsageError, match=r"got 'stepz'; did you mean 'steps'\?"):
        parse_settings(recipe, ["model=m", "stepz=1"], 0)
    with pytest.raises(UsageError, match="expected steps as a whole number, got 'x'; for example --set steps=5"):
        parse_settings(recipe, ["model=m", "steps=x"], 0)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"got 'onepeace.stage1'; did you mean 'one_peace.stage1'\?"):
        find_recipe("onepeace.stage1")


def test_a_run_directory_belongs_to_one_configuration(tmp_path: Path) -> None:
    config = {"recipe": "r", "seed": 0, "dtype": "float32", "arguments": {"steps": 3, "data": Path("mini")}}
    claim_run_dir(tmp_path / "run", config, resume=True)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored == {**config, "arguments": {"steps": 3, "data": "mini"}, "plait": plait.__version__}
    claim_run_dir(tmp_path / "run", config, resume=True)
    other = {**config, "arguments": {"steps": 4, "data": Path("mini")}}
    with pytest.raises(UsageError, match=r"got another steps \(3, now 4\); choose another --out, or --no-resume"):
        claim_run_dir(tmp_path / "run", other, resume=True)
    with pytest.raises(UsageError, match=r"got another seed \(0, now 1\)"):
        claim_run_dir(tmp_path / "run", {**config, "seed": 1}, resume=True)
    claim_run_dir(tmp_path / "run", other, resume=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]["steps"] == 4


@pytest.fixture
def registered(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe `tiny.pair` whose objective sends `signal` at step 5, and how often its parts were called."""
    state: dict[str, Any] = {"signal": None, "built": 0}

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        if step == 5 and state["signal"] is not None:
            os.kill(os.getpid(), state["signal"])
        return tiny.noisy_loss(model, batch, step, generator)

    def save(model: nn.Module, directory: Path) -> None:
        torch.save(model.state_dict(), directory / "weights.pt")

    def recipe(dropout: float = 0.2, seed: int = 0) -> Recipe:
        if math.isnan(dropout):
            raise ValueError("expected dropout from 0 to 1, got nan")
        state["built"] += 1
        state["seed"] = seed
        return Recipe(lambda: tiny.Net(dropout), tiny.stages(objective), save)

    module = ModuleType("tiny_recipes")
    module.__dict__["recipe"] = recipe
    monkeypatch.setitem(sys.modules, "tiny_recipes", module)
    monkeypatch.setitem(plait.recipes.RECIPES, "tiny.pair", "tiny_recipes:recipe")
    return state


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "model" / "weights.pt", weights_only=True)


def test_train_writes_a_run_and_does_not_repeat_it(
    registered: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "tiny.pair", "--set", "dropout=0.1", "--out", str(tmp_path), "--seed", "4", "--device", "cpu"]
    assert cli.main(command) == 0
    assert registered["seed"] == 4
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["recipe"], config["arguments"]) == ("tiny.pair", {"dropout": 0.1, "seed": 4})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 20
    assert "trained 20 steps" in capsys.readouterr().out
    first = weights(tmp_path)
    assert cli.main(command) == 0
    assert registered["built"] == 1
    assert cli.main([*command, "--no-resume"]) == 0
    assert registered["built"] == 2
    assert all(torch.equal(value, first[name]) for name, value in weights(tmp_path).items())
    assert cli.main([*command[:3], "dropout=0.3", *command[4:]]) == 2
    assert "got another dropout (0.1, now 0.3)" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--no-resume"]])
@pytest.mark.parametrize("name", ["model/weights.pt", "checkpoints/mine.pt", "config.json", "notes.txt"])
def test_a_directory_that_is_no_run_is_left_alone(
    registered: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: list[str]
) -> None:
    mine = tmp_path / "work" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"model_type": "clip"}')
    assert cli.main(["train", "tiny.pair", "--out", str(tmp_path / "work"), "--device", "cpu", *more]) == 2
    err = capsys.readouterr().err
    assert "that Plait did not make; choose another, nothing was changed" in err
    assert len(err.strip().splitlines()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == '{"model_type": "clip"}'
    assert registered["built"] == 0


def test_a_finished_model_without_checkpoints_is_kept_and_used(registered: dict[str, Any], tmp_path: Path) -> None:
    command = ["train", "tiny.pair", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(command) == 0
    first = (tmp_path / "model" / "weights.pt").stat()
    shutil.rmtree(tmp_path / "checkpoints")
    assert cli.main(command) == 0
    assert registered["built"] == 1
    assert (tmp_path / "model" / "weights.pt").stat() == first


def test_a_finished_model_stays_until_the_one_that_replaces_it_stands(
    registered: dict[str, Any], tmp_path: Path
) -> None:
    command = ["train", "tiny.pair", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(command) == 0
    first = (tmp_path / "model" / "weights.pt").read_bytes()
    registered["signal"] = signal.SIGTERM
    again = [*command, "--set", "dropout=0.5"]
    assert cli.main([*again, "--no-resume"]) == 0
    assert (tmp_path / "model" / "weights.pt").read_bytes() == first
    registered["signal"] = None
    assert cli.main(again) == 0  # goes on: what is there is the older model
    assert (tmp_path / "model" / "weights.pt").read_bytes() != first
    assert registered["built"] == 3
    assert cli.main(again) == 0
    assert registered["built"] == 3


@pytest.mark.parametrize("resume", [True, False])
def test_a_model_beside_no_run_is_not_replaced_from_python(
    registered: dict[str, Any], tmp_path: Path, resume: bool
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.pt").write_text("of years")
    with pytest.raises(UsageError, match="that Plait did not make"):
        run_recipe(find_recipe("tiny.pair"), tmp_path, device="cpu", resume=resume)
    assert (tmp_path / "model" / "weights.pt").read_text() == "of years"


def test_a_run_of_before_the_marker_goes_on(registered: dict[str, Any], tmp_path: Path) -> None:
    command = ["train", "tiny.pair", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(command) == 0
    (tmp_path / ".plait").unlink()
    assert cli.main(command) == 0
    assert cli.main([*command, "--no-resume"]) == 0
    assert registered["built"] == 2


def test_starting_again_keeps_what_lies_among_the_checkpoints(registered: dict[str, Any], tmp_path: Path) -> None:
    command = ["train", "tiny.pair", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(command) == 0
    (tmp_path / "checkpoints" / "best.pt").write_text("mine")
    assert cli.main([*command, "--no-resume"]) == 0
    assert (tmp_path / "checkpoints" / "best.pt").read_text() == "mine"


@pytest.mark.parametrize("setting", ["dropout=2", "dropout=nan"])
def test_settings_that_a_recipe_or_its_model_refuses_leave_no_directory(
    registered: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", "tiny.pair", "--set", setting, "--out", str(out), "--device", "cpu"]) == 1
    assert "dropout" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    assert cli.main(["train", "tiny.pair", "--set", setting, "--out", str(out), "--device", "cpu"]) == 1
    assert list(tmp_path.rglob("*")) == [out]


def test_starting_again_with_settings_that_are_refused_keeps_the_run(
    registered: dict[str, Any], tmp_path: Path
) -> None:
    command = ["train", "tiny.pair", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(command) == 0
    kept = (tmp_path / "config.json").read_text(), weights(tmp_path)
    assert cli.main([*command, "--no-resume", "--set", "dropout=nan"]) == 1
    assert (tmp_path / "config.json").read_text() == kept[0]
    assert all(torch.equal(value, kept[1][name]) for name, value in weights(tmp_path).items())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_says_how_to_go_on_and_exits(
    registered: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def run(name: str) -> int:
        return cli.main(["train", "tiny.pair", "--out", str(tmp_path / name), "--device", "cpu"])

    assert run("whole") == 0
    registered["signal"] = number
    assert run("stopped") == code
    assert "stopped and saved at step 6; run the same command again" in capsys.readouterr().out
    assert not (tmp_path / "stopped" / "model").exists()
    registered["signal"] = None
    assert run("stopped") == 0
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "stopped").items())


def test_starting_again_and_stopping_does_not_leave_the_old_model(
    registered: dict[str, Any], tiny: ModuleType, tmp_path: Path
) -> None:
    def run(seed: int, resume: bool) -> Any:
        recipe = find_recipe("tiny.pair")
        return run_recipe(recipe, tmp_path, seed=seed, device="cpu", resume=resume, options=Options(progress=False))

    run(0, True)
    old = weights(tmp_path)
    registered["signal"] = signal.SIGTERM
    assert run(1, False).interrupted == signal.SIGTERM
    registered["signal"] = None
    assert run(1, True).interrupted is None
    assert not torch.equal(weights(tmp_path)["shared.weight"], old["shared.weight"])


def test_the_command_loads_no_torch_before_it_runs() -> None:
    code = "import sys, plait.cli.train, plait.recipes, plait.training.stages; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
