"""A missing path asks no host, and a hub that is not reached is said so."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from plait.models import locate
from plait.search import Index


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that the hub was asked for; it is not reached."""
    names: list[str] = []

    def download(name: str) -> str:
        names.append(name)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return names


@pytest.mark.parametrize("name", ["runs/mine", "mine", "photos/modle", "./a/b", "../a", "a/b/c", "/a/b", "nnao"])
def test_a_mistyped_path_is_missing_and_asks_no_host(
    name: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for spelling in (name, name if name.startswith("./") else Path(name)):  # a Path drops the dot
        with pytest.raises(ValueError, match="no such file or directory"):
            locate(spelling)
    assert asked == []


def test_offline_is_said_as_offline(asked: list[str]) -> None:
    with pytest.raises(ValueError, match="offline"):
        locate("nobody/nothing")
    with pytest.raises(ValueError, match="offline"):
        locate("hf:runs/mine")
    assert asked == ["nobody/nothing", "runs/mine"]


def test_what_the_hub_does_not_have_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str) -> str:
        raise HFValidationError(name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match="not on the hub"):
        locate("nobody/nothing")


def test_an_index_never_asks_a_hub_for_its_model(asked: list[str], tmp_path: Path) -> None:
    for description in (
        {"model": "evil/model", "model_beside": None},
        {"model": "evil/model", "model_beside": "../evil/model"},
        {"model": None, "model_beside": None},
    ):
        index = Index(tmp_path, None, {"fingerprint": "", "dim": 4, **description})
        with pytest.raises(ValueError, match="pass"):
            index.embedder  # noqa: B018 (loads)
    assert asked == []
