"""Every registered task with a tiny random model of each of our families that supports it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import FAMILIES
from whole_fixtures import fixture

from plait.evaluation.base import Capability, Task
from plait.evaluation.models import open_model
from plait.evaluation.run import Options, evaluate
from plait.evaluation.tasks import TASKS, read
from plait.types import Ask, Decoding

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about generation settings
JUDGED = {"mm_vet": "0.5", "owl_eval": "B", "mmhal_bench": "Rating: 4"}
GLUE = {"glue_mnli": "mplug2_texts3", "glue_stsb": "mplug2_texts1"}


def models_for(task: Task) -> list[tuple[Capability, str]]:
    """(capability, tiny model) of our families for a task."""
    found: list[tuple[Capability, str]] = []
    for capability in task.methods:
        if capability == "generate":
            found += [(capability, "mplug_owl"), (capability, "mplug_owl2")]
            if task.kind in ("caption", "short", "open"):  # captions and open questions
                found.append((capability, "mplug2"))
        elif capability == "text":
            found += [(capability, "mplug_owl"), (capability, "mplug_owl2")]
        elif capability == "embed":
            found.append((capability, "one_peace"))
            if task.media != ("audio",):
                found.append((capability, "mplug2_retrieval"))
        elif capability == "ground":
            found += [(capability, "mplug2_ground"), (capability, "one_peace_ground")]
        elif capability == "decide":
            names = (f"mplug2_{task.name}", f"one_peace_{task.name}")
            found += [(capability, name) for name in names if name in FAMILIES]
        elif capability == "classify":
            found.append((capability, head_for(task)))
    return found


def head_for(task: Task) -> str:
    """The tiny classifier of a task."""
    if task.media == ("text",):
        return GLUE.get(task.name, "mplug2_texts2")
    if task.media == ("audio",):
        return "one_peace_tags" if task.primary == "mAP" else "one_peace_sounds"
    return "mplug2_pictures" if task.media == ("image",) else "mplug2_videos"


CASES = [
    (name, model, capability)
    for name, task in TASKS.items()
    if not task.layouts[0].startswith("plait_mini")
    for capability, model in models_for(task)
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that opens a tiny model of ours from its directory, once."""
    root, known = tmp_path_factory.mktemp("families"), {}

    def get(name: str, capability: Capability) -> Any:
        if not (root / name).exists():
            FAMILIES[name](root / name)
        if (name, capability) not in known:
            known[name, capability] = open_model(root / name, (capability,))
        return known[name, capability]

    return get


@pytest.mark.parametrize(("name", "model", "capability"), CASES)
def test_a_family_runs_a_task_end_to_end(
    name: str, model: str, capability: Capability, opened: Any, tmp_path: Path
) -> None:
    task = dataclasses.replace(TASKS[name], methods={capability: TASKS[name].methods[capability]})
    data, split = fixture(task, task.layouts[0], tmp_path / "data")
    judge = None
    if name in JUDGED:
        judge = str(tmp_path / "judge.jsonl")
        items = read(data, task.layouts[:1], split)[0]
        rows = [{"id": item.id, "judge": "test", "reply": JUDGED[name]} for item in items]
        Path(judge).write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(
        split=split, judge=judge, show_progress=False, batch_size=2, decoding=Decoding(max_new_tokens=3), num_frames=2
    )
    result = evaluate(task, opened(model, capability), data, tmp_path / "out", options)
    assert result["score"] is not None
    assert result["model"]["method"] == task.methods[capability]
    assert model.startswith(result["model"]["family"])


FROM_FILES = ("image_folder", "mmbench")
"""Tasks whose media are the annotation, or lie inside it."""
NEED_MEDIA = [
    case
    for case in CASES
    if TASKS[case[0]].media != ("text",) and case[0] not in FROM_FILES and case[1] in ("mplug_owl2", "one_peace")
]


@pytest.mark.parametrize(("name", "model", "capability"), NEED_MEDIA)
def test_a_missing_medium_is_listed_first_and_counts_as_wrong_when_skipped(
    name: str, model: str, capability: Capability, opened: Any, tmp_path: Path
) -> None:
    task, short = TASKS[name], {"decoding": Decoding(max_new_tokens=2), "num_frames": 2}
    data, split = fixture(task, task.layouts[0], tmp_path / "data")
    items = read(data, task.layouts[:1], split)[0]
    gone = next((name for item in items for _, name in item.media(task.media) if isinstance(name, str)), None)
    assert gone is not None
    for path in data.rglob(f"{Path(gone).stem}.*"):
        path.unlink()
    with pytest.raises(ValueError, match=f"got none for 1: {re.escape(gone)}"):
        evaluate(task, opened(model, capability), data, None, Options(split=split, show_progress=False, **short))
    options = Options(split=split, show_progress=False, skip_missing=True, **short)
    if task.primary == "mean_recall" and len(items) == 1:
        return  # nothing is left to be found
    result = evaluate(task, opened(model, capability), data, tmp_path / "out", options)
    failed = result["failures"]["media missing"]
    assert failed["count"] >= 1
    assert all(value == 0 for name, value in result["units"].items() if name in failed["ids"])


def test_no_task_is_without_a_family_but_those_for_detectors_and_segmenters() -> None:
    run = {name for name, _, _ in CASES}
    alone = {"coco_detection", "ade20k", "coco_stuff", "mini_pictures", "mini_sounds", "mini_questions"}
    assert set(TASKS) - run == alone


def test_heads_decide_in_any_batch_as_alone(opened: Any, tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.effect_mandelbrot((24, 20), (-2 + i, -1, 1, 1), 20).convert("RGB") for i in range(3)]
    asks = [Ask("two dogs and a bird", (pictures[0], pictures[1])), Ask("no", (pictures[1], pictures[2]))]
    for name in ("one_peace_nlvr2", "mplug2_nlvr2"):
        model = opened(name, "decide")
        alone = np.concatenate([model.scores([ask]) for ask in asks])
        assert model.scores(asks) == pytest.approx(alone, abs=1e-4)
        assert not np.allclose(alone[0], alone[1])
        with pytest.raises(ValueError, match="expected 2 pictures per item"):
            model.scores([Ask("one", (pictures[0],))])


@pytest.mark.parametrize("name", ["one_peace", "mplug2_retrieval"])
def test_embedders_tell_texts_and_pictures_apart(name: str, opened: Any) -> None:
    from PIL import Image

    pictures = [{"image": Image.effect_mandelbrot((24, 20), (-2 + i, -1, 1, 1), 20).convert("RGB")} for i in range(2)]
    made = opened(name, "embed").embed([{"text": "two dogs"}, {"text": "snow"}, *pictures])
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert (made @ made.T)[np.triu_indices(4, 1)].max() < 0.9999


def test_classes_are_named_by_the_configuration_or_the_release(opened: Any) -> None:
    assert opened("one_peace_vqav2", "decide").asking.class_words("short") == ("yes", "2", "no")
    assert opened("one_peace_nlvr2", "decide").asking.class_words("statement") == ("True", "False")
    assert opened("mplug2_nlvr2", "decide").asking.class_words("statement") == ("False", "True")
    with pytest.raises(ValueError, match="expected names of the classes in id2label for short questions"):
        opened("one_peace_nlvr2", "decide").asking.class_words("short")
