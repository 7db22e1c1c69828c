"""Whatever is wrong with an annotation file, a reader succeeds or raises one line that names the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plait.evaluation.base import LAYOUTS, Source

FORMATS = Path(__file__).parents[2] / "goldens" / "formats"
KINDS = sorted(path.name for path in FORMATS.iterdir() if path.is_dir() and path.name in LAYOUTS)
WRONG: tuple[Any, ...] = (None, 7, -1, "", "nonsense", [], {}, [1], True)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside decoded JSON."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def damaged_json(text: str, draw: random.Random) -> str:
    """JSON, or JSON lines, with one field removed or replaced."""
    is_lines = False
    try:
        document = json.loads(text)
    except ValueError:
        document, is_lines = [json.loads(line) for line in text.splitlines()], True
    *way, last = draw.choice(list(places(document)))
    parent = document
    for step in way:
        parent = parent[step]
    if draw.random() < 0.4:
        del parent[last]
    else:
        parent[last] = draw.choice(WRONG)
    return "\n".join(map(json.dumps, document)) if is_lines else json.dumps(document)


def damaged_text(text: str, draw: random.Random) -> str:
    """A table with a line cut, a cell replaced, a separator doubled, or a character that does not belong."""
    at = draw.randrange(len(text))
    return draw.choice((text[:at], text[:at] + draw.choice('\t",\n7{') + text[at + 1 :], text[:at] + text[at + 3 :]))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_line_that_names_the_file(kind: str, tmp_path: Path) -> None:
    draw = random.Random(kind)
    expected = json.loads((FORMATS / kind / "expected.json").read_text(encoding="utf-8"))
    root = Path(shutil.copytree(FORMATS / kind, tmp_path / kind))
    files = {role: root / name for role, name in expected["files"].items() if not name.endswith(".png")}
    refused = 0
    for _ in range(60 if files else 0):
        role = draw.choice(sorted(files))
        whole = files[role].read_bytes()
        text = whole.decode("utf-8", "surrogateescape")
        damage = damaged_json if files[role].suffix in (".json", ".jsonl") else damaged_text
        files[role].write_text(damage(text, draw), encoding="utf-8", errors="surrogateescape")
        try:
            LAYOUTS[kind].read(Source(root, files, expected["split"]))
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            assert any(path.name in str(error) for path in files.values()) or kind in str(error), error
        files[role].write_bytes(whole)
    assert refused or not files
