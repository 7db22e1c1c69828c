"""`plait doctor` says what works here, and fails where something is broken."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plait.cli import main
from plait.models import auto
from plait.parity import doctor, shipped_runners


def test_the_installation_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["is_healthy"]
    assert {check["topic"] for check in told["checks"]} == {"version", "extra", "disk", "device", "dtype", "parity"}
    parity = [check["name"].split("/")[0] for check in told["checks"] if check["topic"] == "parity"]
    assert sorted(parity) == sorted(auto.FAMILIES)


def test_shipped_cases_are_the_golden_ones() -> None:
    goldens = Path(__file__).parents[1] / "goldens"
    files = [path for path in shipped_runners.SHIPPED.rglob("*") if path.is_file()]
    assert len(files) == 16
    for path in files:
        assert path.read_bytes() == (goldens / path.relative_to(shipped_runners.SHIPPED)).read_bytes()


def test_wrong_numbers_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(shipped_runners.SHIPPED / "mplug_owl", tmp_path / "mplug_owl")
    file = tmp_path / "mplug_owl" / "abstractor" / "tensors.safetensors"
    tensors = {name: x + 0.1 if name.startswith("out.") else x for name, x in load_file(file).items()}
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file)
    monkeypatch.setattr(shipped_runners, "SHIPPED", tmp_path)
    assert main(["doctor"]) == 1
    assert "1 broken: mplug_owl/abstractor" in capsys.readouterr().out


def test_missing_and_old_packages_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def version(name: str) -> str:
        if name == "tokenizers":
            raise PackageNotFoundError(name)
        return "1.0" if name == "torch" else "99.0"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "lancedb" else True)
    assert main(["doctor", "--no-parity"]) == 1
    text = capsys.readouterr().out
    assert "not installed; pip install 'tokenizers" in text
    assert "expected >=2.11, got 1.0; pip install 'torch" in text
    assert "without lancedb: pip install 'plait[search]'" in text
    assert "transformers" in text.splitlines()[-1]  # 99 is not below 6
