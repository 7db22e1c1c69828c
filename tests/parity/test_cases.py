from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plait.parity.cases import Case, Settings, discover, hide


def write_case(root: Path, **tensors: torch.Tensor) -> Path:
    root.mkdir(parents=True)
    (root / "CASE.md").write_text("# a case\n")
    if tensors:
        save_file({name.replace("__", "."): value for name, value in tensors.items()}, root / "tensors.safetensors")
    return root


def write_keys(path: Path) -> None:
    with gzip.open(path, "wt") as file:
        json.dump({"weight": [[2], "float32"]}, file)


def test_cases_are_found_by_their_files(tmp_path: Path) -> None:
    write_case(tmp_path / "sys_a" / "first")
    (tmp_path / "sys_b" / "second" / "images").mkdir(parents=True)
    (tmp_path / "sys_b" / "second" / "expected.json").write_text("{}")
    (tmp_path / "sys_b" / "no_case").mkdir()
    write_keys(tmp_path / "sys_a" / "keys.model.json.gz")
    found = [place[:2] for place in discover(tmp_path)]
    assert found == [("sys_a", "first"), ("sys_a", "keys"), ("sys_b", "second")]
    assert [place[:2] for place in discover(tmp_path / "sys_a")] == found[:2]
    assert [place[:2] for place in discover(tmp_path / "sys_a" / "first")] == found[:1]


def test_key_lists_inside_a_case_belong_to_it(tmp_path: Path) -> None:
    path = write_case(tmp_path / "sys" / "keys")
    write_keys(path / "model.pt.keys.json.gz")
    assert [place[:2] for place in discover(tmp_path)] == [("sys", "keys")]
    assert list(Case("sys", "keys", path).key_lists) == ["keys.model.pt"]


def test_runners_see_inputs_but_only_descriptions_of_outputs(tmp_path: Path) -> None:
    path = write_case(
        tmp_path / "sys" / "case",
        in__x=torch.ones(2, dtype=torch.float32),
        in__n=torch.tensor([3]),
        data__t=torch.zeros(1, dtype=torch.uint8),
        out__y=torch.full((2, 3), 5.0, dtype=torch.bfloat16),
        out__b=torch.ones((), dtype=torch.bool),
    )
    (path / "config.json").write_text(json.dumps({"size": 4, "groups": {"w": [1.0, 2.0]}}))
    (path / "data.json").write_text(json.dumps({"cases": [{"input": {"a": 1}, "expected": [1, {"b": 2}]}]}))
    case = Case("sys", "case", path, Settings(dtype="float64"), ("groups",), ("input",))
    assert case.inputs["x"].dtype == torch.float64
    assert case.inputs["n"].dtype == torch.int64
    assert case.stored_inputs["x"].dtype == torch.float32
    assert list(case.data) == ["t"]
    assert case.outputs == {"out.y": ((2, 3), torch.bfloat16), "out.b": ((), torch.bool)}
    assert case.config == {"size": 4, "groups": {"w": [None, None]}}
    assert case.document == {"cases": [{"input": {"a": 1}, "expected": [None, {"b": None}]}]}


def test_missing_files_are_empty_or_say_so(tmp_path: Path) -> None:
    case = Case("sys", "case", write_case(tmp_path / "sys" / "case"))
    assert (case.inputs, case.outputs, case.config, case.document) == ({}, {}, {}, None)
    assert case.file("sound.flac") is None
    with pytest.raises(ValueError, match=r"expected weights\.safetensors"):
        case.weights()


def test_hiding_keeps_structure_and_inputs() -> None:
    assert hide([{"a": "x", "b": {"a": [1]}}], ("b",)) == [{"a": None, "b": {"a": [1]}}]
