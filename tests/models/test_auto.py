"""Families are found by their folders, and only the one that is asked for is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from plait.models import SHIPPED, auto, shipped

NANO = str(shipped(SHIPPED[0]))
IMPORTED = "print(json.dumps(sorted(n for n in sys.modules if n.startswith('plait.models.') and n.count('.') > 2)))"


def imported_by(statement: str) -> set[str]:
    """Families of which a module is imported after `statement`, in a process of its own."""
    code = f"import json, sys; {statement}; {IMPORTED}"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    return {name.split(".")[2] for name in json.loads(run.stdout.splitlines()[-1])}


def test_a_folder_is_a_family_by_the_name_of_its_model_type() -> None:
    assert set(auto.FAMILIES) == {"one_peace", "mplug2", "mplug_owl", "mplug_owl2"}
    for model_type, package in auto.FAMILIES.items():
        assert import_module(package).CONFIG.model_type == model_type


@pytest.mark.parametrize(
    ("statement", "families"),
    [
        ("import plait.models.auto", set()),
        (f"import plait; plait.load({NANO!r})", {"one_peace"}),
        (f"import plait.models.auto as a; a.load_processor({NANO!r})", {"one_peace"}),
        (
            f"import plait.models.auto; from transformers import AutoModel as A; A.from_pretrained({NANO!r})",
            {"one_peace"},
        ),
    ],
)
def test_only_the_family_that_is_asked_for_is_imported(statement: str, families: set[str]) -> None:
    assert imported_by(statement) == families


@pytest.mark.parametrize("name", ["AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"])
def test_the_auto_classes_of_transformers_find_a_family_on_their_own(name: str) -> None:
    statement = f"import plait.models.auto; from transformers import {name} as A; x = A.from_pretrained({NANO!r})"
    assert "one_peace" in imported_by(f"{statement}; assert type(x).__module__.startswith('plait.models.one_peace')")


def test_a_model_type_that_nobody_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match=r"expected a model of mplug2, mplug_owl, .* got 'clip'"):
        auto.load(tmp_path)
