from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.parity.cases import Case, Place, Settings
from plait.parity.compare import FLOAT32, GRADIENT, compare_json, compare_tensors, judge
from plait.parity.run import find, load_runners, run_case
from plait.parity.runners import REGISTRY, NotRun, Runner, Tolerance

SMALL = Tolerance(1e-3, 0.0)
NAN = math.nan


@pytest.mark.parametrize(
    "ours, stored, agrees",
    [
        ([1.0005, 2.0], [1.0, 2.0], True),
        ([1.002, 2.0], [1.0, 2.0], False),
        ([NAN, -math.inf], [NAN, -math.inf], True),
        ([NAN, 0.0], [0.0, 0.0], False),
        ([math.inf, 0.0], [0.0, 0.0], False),
    ],
)
def test_floats_agree_within_tolerance(ours: list[float], stored: list[float], agrees: bool) -> None:
    assert (compare_tensors("out.x", torch.tensor(ours), torch.tensor(stored), SMALL).problem is None) is agrees


def test_integers_are_exact_whatever_the_tolerance() -> None:
    stored = torch.tensor([100, 200])
    assert (
        compare_tensors("out.x", torch.tensor([100, 200], dtype=torch.int32), stored, Tolerance(9, 9)).problem is None
    )
    assert compare_tensors("out.x", torch.tensor([100, 201]), stored, Tolerance(9, 9)).problem == "1 of 2 values differ"
    assert "expected torch.int64" in str(compare_tensors("out.x", torch.tensor([100.0, 200.0]), stored, SMALL).problem)


def test_shapes_must_agree() -> None:
    assert compare_tensors("out.x", torch.ones(1, 2), torch.ones(2), SMALL).problem == "expected shape (2,), got (1, 2)"


def test_relative_part_grows_with_the_stored_value() -> None:
    tolerance = Tolerance(0.0, 0.01)
    assert compare_tensors("out.x", torch.tensor([100.9]), torch.tensor([100.0]), tolerance).problem is None
    assert compare_tensors("out.x", torch.tensor([1.2]), torch.tensor([1.0]), tolerance).problem


@pytest.mark.parametrize(
    "ours, agrees",
    [
        ({"a": [1, 2.0001], "b": "x", "c": None}, True),
        ({"a": [1, 2.1], "b": "x", "c": None}, False),
        ({"a": [2, 2.0], "b": "x", "c": None}, False),
        ({"a": [1], "b": "x", "c": None}, False),
        ({"a": [1, 2.0], "b": "y", "c": None}, False),
        ({"a": [1, 2.0], "b": "x"}, False),
        ({"a": [True, 2.0], "b": "x", "c": None}, False),
        ({"a": [1, 2.0], "b": "x", "c": None, "note": "ours"}, True),
        ({"a": [1, NAN], "b": "x", "c": None}, False),
    ],
)
def test_json_agrees_leaf_by_leaf(ours: Any, agrees: bool) -> None:
    stored = {"a": [1, 2.0], "b": "x", "c": None, "note": "stored"}
    assert (compare_json("json.x", ours, stored, SMALL).problem is None) is agrees


def test_inputs_in_json_are_not_compared() -> None:
    stored = [{"input": "a", "expected": 1}]
    assert compare_json("json.x", [{"input": "b", "expected": 1}], stored, SMALL, ("input",)).problem is None
    assert compare_json("json.x", [{"input": "b", "expected": 2}], stored, SMALL, ("input",)).problem


@pytest.fixture
def case(tmp_path: Path) -> Case:
    (tmp_path / "config.json").write_text(json.dumps({"names": ["a", "b"], "size": 3}))
    (tmp_path / "data.json").write_text(json.dumps({"question": "?", "answers": [1, 2], "note": "why"}))
    tensors = {"out.x": torch.tensor([1.0, 2.0]), "out.grad.w": torch.tensor([1.0]), "in.z": torch.ones(1)}
    save_file(tensors, tmp_path / "tensors.safetensors")
    return Case("sys", "case", tmp_path, Settings(), ("names",), ("question",))


def right() -> dict[str, Any]:
    return {
        "out.x": torch.tensor([1.0, 2.0]),
        "out.grad.w": torch.tensor([1.0]),
        "config.names": ["a", "b"],
        "answers": [1, 2],
    }


def verdict(case: Case, actual: Mapping[str, Any], **options: Any) -> tuple[str, int, int]:
    runner = Runner("sys", "case", lambda case: actual, config_outputs=("names",), json_inputs=("question",), **options)
    result = judge(case, runner, actual)
    return result.verdict, result.compared, result.stored


def test_everything_stored_is_compared(case: Case) -> None:
    assert verdict(case, right()) == ("ok", 4, 4)


@pytest.mark.parametrize("name", ["out.x", "out.grad.w", "config.names", "answers"])
def test_a_missing_output_is_uncovered(case: Case, name: str) -> None:
    actual = right()
    del actual[name]
    assert verdict(case, actual) == ("UNCOVERED", 3, 4)


@pytest.mark.parametrize("name", ["out.x", "out.grad.w", "config.names", "answers"])
def test_a_wrong_output_fails(case: Case, name: str) -> None:
    wrong = {"out.x": torch.zeros(2), "out.grad.w": torch.zeros(1), "config.names": ["a", "c"], "answers": [1]}
    assert verdict(case, right() | {name: wrong[name]}) == ("FAIL", 4, 4)


def test_outputs_that_could_not_run_are_told_apart(case: Case) -> None:
    absent = NotRun("absent", "no file")
    assert verdict(case, right() | {"out.x": absent}) == ("ok", 3, 4)
    assert verdict(case, dict.fromkeys(right(), absent)) == ("absent", 0, 4)


def test_gradients_and_named_outputs_have_their_own_tolerance(case: Case) -> None:
    assert verdict(case, right() | {"out.grad.w": torch.tensor([1.0009])})[0] == "ok"
    off = right() | {"out.x": torch.tensor([1.0, 2.05])}
    assert verdict(case, off)[0] == "FAIL"
    assert verdict(case, off, tolerance={"out.x": Tolerance(0.1, 0.0)})[0] == "ok"


def test_positions_without_meaning_count_under_eager_only(case: Case) -> None:
    actual = right() | {"out.x": torch.tensor([1.0, 9.0]), "valid.out.x": torch.tensor([True, False])}
    assert verdict(case, actual)[0] == "FAIL"
    sdpa = Case("sys", "case", case.path, Settings(attn="sdpa"), ("names",), ("question",))
    assert verdict(sdpa, actual)[0] == "ok"


def test_random_draws_are_held_against_properties(case: Case) -> None:
    draws = {"properties": ("out.x",), "check": lambda case, actual: ["out.x is empty"] * (len(actual["out.x"]) == 0)}
    assert verdict(case, right() | {"out.x": torch.zeros(5)}, **draws) == ("properties", 4, 4)
    assert verdict(case, right() | {"out.x": torch.zeros(0)}, **draws)[0] == "FAIL"


COPIES = Path(__file__).parents[1] / "goldens"


def changed_case(tmp_path: Path, name: str) -> Place:
    """A copy of a case of ONE-PEACE to spoil."""
    shutil.copytree(COPIES / "one_peace" / name, tmp_path / "one_peace" / name)
    return Place("one_peace", name, tmp_path / "one_peace" / name)


@pytest.mark.parametrize("spoil", ["renamed", "misshapen", "added"])
def test_a_corrupted_key_list_fails(tmp_path: Path, spoil: str) -> None:
    (tmp_path / "one_peace").mkdir()
    path = tmp_path / "one_peace" / "one-peace-vision.pkl.keys.json.gz"
    keys = json.loads(gzip.decompress((COPIES / "one_peace" / "keys" / path.name).read_bytes()))
    place = Place("one_peace", "keys", path.parent)
    path.write_bytes(gzip.compress(json.dumps(keys).encode()))
    assert run_case(place, Settings()).verdict == "ok"
    if spoil == "renamed":
        keys["encoder.layers.3.self_attn.q_prj.weight"] = keys.pop("encoder.layers.3.self_attn.q_proj.weight")
    elif spoil == "misshapen":
        keys["encoder.layers.3.self_attn.q_proj.weight"] = [[1536, 0], "float32"]
    else:
        keys["encoder.layers.3.self_attn.more.weight"] = [[4], "float32"]
    path.write_bytes(gzip.compress(json.dumps(keys).encode()))
    assert run_case(place, Settings()).verdict == "FAIL"


def test_an_error_beyond_the_tolerance_fails_and_a_thousandfold_tolerance_would_let_it_pass(tmp_path: Path) -> None:
    """The written tolerances stand: an error of a hundred times a tolerance is seen in every kind of output."""
    place = changed_case(tmp_path, "losses")
    path = place.directory / "tensors.safetensors"
    tensors = load_file(path)
    tensors["out.box.loss"] += 100 * (FLOAT32.absolute + FLOAT32.relative * tensors["out.box.loss"].abs())
    tensors["out.box.grad"] += 100 * (GRADIENT.absolute + GRADIENT.relative * tensors["out.box.grad"].abs())
    save_file(tensors, path)
    notes = run_case(place, Settings()).notes
    assert [note.split(":")[1].strip() for note in notes] == ["out.box.grad", "out.box.loss"]
    assert (FLOAT32, GRADIENT) == ((2e-5, 1e-4, 0), (1e-5, 1e-3, 0))


def test_no_runner_loosens_a_tolerance_beyond_what_its_case_says() -> None:
    for system in ("one_peace", "mplug2", "mplug_owl", "mplug_owl2", "metrics", "formats"):
        load_runners(system)
    loosest = {pattern: t for runner in REGISTRY.values() for pattern, t in runner.tolerance.items()}
    for pattern, tolerance in loosest.items():
        assert tolerance.absolute <= 1e-4 and tolerance.relative <= 1e-3 and tolerance.steps <= 1, pattern


def test_a_skipped_output_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = changed_case(tmp_path, "losses")
    runner = find("one_peace", "losses")
    assert isinstance(runner, Runner)

    def without(case: Case) -> dict[str, Any]:
        return {name: value for name, value in runner.function(case).items() if name != "out.box.loss"}

    monkeypatch.setitem(REGISTRY, ("one_peace", "losses"), replace(runner, function=without))
    result = run_case(place, Settings())
    assert (result.verdict, result.notes) == ("UNCOVERED", ["UNCOVERED: out.box.loss"])
    assert result.is_broken
