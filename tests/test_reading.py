"""Files of strangers are read within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plait.reading import check_regular, read_json

from .fuzzing import within

WRONG = {
    "no json": b"{",
    "no text": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "levels": b"[" * 200_000,
    "digits": b"[" + b"9" * 10_000 + b"]",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_json_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with within(), pytest.raises(ValueError, match=r"expected .*config\.json") as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_a_large_json_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with within(), pytest.raises(ValueError, match="at most"):
        read_json(path)


def test_a_pipe_or_device_is_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero"):
        with within(), pytest.raises(ValueError, match="a device or a pipe"):
            read_json(place)
    check_regular(tmp_path)
    check_regular(tmp_path / "absent")
