"""A cache of answers that holds something else is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.evaluation.cache import ResponseCache


@pytest.mark.parametrize("line", ["[]", "7", "null", "{}", "[" * 100_000, '{"key": "a"}'])
def test_a_cache_of_another_shape_is_one_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    path.write_text(f'{{"about": {{"model": "m"}}}}\n{line}\n')
    with pytest.raises(ValueError, match=r"cache\.jsonl, line 2: expected JSON"), ResponseCache(path, {"model": "m"}):
        pass


@pytest.mark.parametrize("content", ["my notes", '{"about": {"model": "other"', "a\nb", "[1, 2]"])
def test_a_file_of_another_kind_keeps_its_content(content: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        ResponseCache(path, {"model": "m"})
    assert path.read_text() == content


def test_a_first_line_cut_off_by_a_kill_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    path.write_text('{"about": {"mod')
    with ResponseCache(path, {"model": "m"}) as cache:
        cache.add({"a": 1})
    with ResponseCache(path, {"model": "m"}) as cache:
        assert cache.answers == {"a": 1}
