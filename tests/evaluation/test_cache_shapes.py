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
