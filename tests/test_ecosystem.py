"""Every block of docs/ecosystem.md runs, in at most ten lines, on tiny models."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from .models.mplug_owl2 import tiny as owl2
from .models.test_export import saved_one_peace

PAGE = (Path(__file__).parents[1] / "docs" / "ecosystem.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
EXTRA = ("sentence_transformers", "mteb", "polars", "datasets", "trl")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    saved_one_peace(root / "one-peace-dir")
    for one in owl2.model_and_processor()[:2]:
        one.save_pretrained(root / "owl2-dir")
    if find_spec("datasets"):
        from datasets import Dataset

        talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a dog"}]
        Dataset.from_dict({"images": [[Image.new("RGB", (8, 8))]], "messages": [talk]}).save_to_disk(root / "talks")
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB").save(root / "dog.jpg")
    return root


def test_no_use_takes_more_than_ten_lines() -> None:
    assert max(len(block.splitlines()) for block in BLOCKS) <= 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_runs(number: int, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = BLOCKS[number]
    for name in EXTRA:
        if re.search(rf"^(from|import) {name}\b", block, re.MULTILINE):
            pytest.importorskip(name, reason=f"{name} is not installed; pip install 'plait[neighbours]'")
    monkeypatch.chdir(places)
    exec(compile(block, f"docs/ecosystem.md, block {number}", "exec"), {})
