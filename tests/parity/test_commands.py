from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait import cli
from plait.parity.run import select


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, list[str]]:
    code = cli.main(["parity", *map(str, args)])
    return code, capsys.readouterr().out.splitlines()


def test_the_table_has_a_line_per_case(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, copies, "--system", "one_peace", "--case", "pos*")
    assert code == 0
    assert lines[1].split()[:2] == ["one_peace/position_interpolation", "18/18"]
    assert lines[1].endswith("ok")
    assert lines[-1].endswith("1 ok")


def test_json_lines_for_machines(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, copies, "--case", "losses", "--json")
    assert code == 0
    assert json.loads(lines[0])["verdict"] == "ok"


def test_a_wrong_value_makes_the_command_fail(copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "one_peace" / "losses_of_mine"
    shutil.copytree(copies / "one_peace" / "losses", case)
    tensors = load_file(case / "tensors.safetensors")
    tensors["out.box.loss"] += 0.1
    save_file(tensors, case / "tensors.safetensors")
    code, lines = run(capsys, tmp_path)
    assert code == 1
    assert "FAIL: out.box.loss: 1 of 1 values differ, largest error 0.1" in "\n".join(lines)


def test_an_unknown_kind_makes_the_command_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one_peace" / "unheard_of").mkdir(parents=True)
    (tmp_path / "one_peace" / "unheard_of" / "CASE.md").write_text("# new\n")
    code, lines = run(capsys, tmp_path)
    assert code == 1
    assert "UNCOVERED: no runner" in "\n".join(lines)


def test_a_runner_that_raises_fails_its_case_alone(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("optim", "losses"):
        shutil.copytree(copies / "one_peace" / name, tmp_path / "one_peace" / name)
    (tmp_path / "one_peace" / "optim" / "config.json").write_text("{}")
    code, lines = run(capsys, tmp_path)
    assert code == 1
    assert "FAIL: KeyError: 'cosine'" in "\n".join(lines)
    assert any(line.startswith("one_peace/losses") and line.endswith("ok") for line in lines)


def test_our_values_are_written(copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(capsys, copies, "--case", "tokenizer", "--out", tmp_path)
    assert code == 0
    actual = load_file(tmp_path / "one_peace" / "tokenizer" / "actual.safetensors")
    stored = load_file(copies / "one_peace" / "tokenizer" / "tensors.safetensors")
    expected = {name: value for name, value in stored.items() if name.startswith("out.")}
    assert actual.keys() == expected.keys()
    assert all(
        torch.equal(actual[name], value) and actual[name].dtype == value.dtype for name, value in expected.items()
    )
    document = json.loads((tmp_path / "one_peace" / "tokenizer" / "actual.json").read_text())
    config = json.loads((copies / "one_peace" / "tokenizer" / "config.json").read_text())
    assert document["config"]["processed"] == config["processed"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["no/such/directory"], "expected a directory of golden cases"),
        (["{goldens}", "--system", "two_peace"], "expected one of the systems"),
        (["{goldens}", "--case", "losess"], "got none named 'losess'"),
    ],
)
def test_a_wrong_command_is_one_line(
    copies: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    code = cli.main(["parity", *(arg.format(goldens=copies) for arg in args)])
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_half_precision_runs_with_its_own_tolerance(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(capsys, copies, "--case", "forward_text", "--dtype", "bfloat16")
    assert code == 0


def test_selection_needs_no_runner(copies: Path) -> None:
    assert [place.name for place in select(copies, "one_peace", "forward_*")] == [
        "forward_al",
        "forward_audio",
        "forward_image",
        "forward_text",
        "forward_vl",
    ]


def test_an_installed_copy_runs_the_shipped_kinds_alone(copies: Path, tmp_path: Path) -> None:
    """A copy of the package without tests beside it: other kinds are unavailable, which breaks nothing."""
    source = copies.parents[1] / "src" / "plait"
    shutil.copytree(source, tmp_path / "plait", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import sys; from plait.cli import main; from plait.parity.doctor import examine\n"
        "assert [c.state for c in examine() if c.topic == 'parity'] == ['ok'] * 4\n"
        "sys.exit(main(['parity', sys.argv[1], '--json']))"
    )
    command = [sys.executable, "-c", script, str(copies / "mplug_owl")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdicts = {row["name"]: row["verdict"] for row in map(json.loads, done.stdout.splitlines())}
    assert all((verdict == "ok") == name.startswith("abstractor") for name, verdict in verdicts.items()), verdicts
    assert set(verdicts.values()) == {"ok", "unavailable"}


def test_shipped_runners_are_found_where_no_other_imports_them() -> None:
    script = "import sys; from plait.parity.run import find; print(find('mplug_owl2', 'multiway_modules').kind)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "multiway_modules"
