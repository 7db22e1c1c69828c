"""Every registered task runs end to end on the fixture of each of its layouts, with tiny random peers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_peers import BUILDERS
from whole_fixtures import fixture

from plait.evaluation.base import LAYOUTS, Capability
from plait.evaluation.models import open_model
from plait.evaluation.run import Options, evaluate, score_file
from plait.evaluation.tasks import TASKS, read
from plait.types import Decoding

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries of peers warn about their own affairs
LABELS = {"glue_mnli": "texts3", "glue_stsb": "texts1"}
JUDGED = {"mm_vet": "0.5 good", "owl_eval": "B", "mmhal_bench": "Rating: 4"}
SPECIFIED = """
    coco_caption flickr30k_caption nocaps msrvtt_caption msvd_caption vatex_caption vqav2 ok_vqa gqa vizwiz textvqa
    scienceqa nlvr2 snli_ve refcoco refcoco_plus refcocog coco_retrieval flickr30k_retrieval msrvtt_retrieval
    didemo_retrieval lsmdc_retrieval msrvtt_qa msvd_qa tgif_frameqa mme mmbench mm_vet seed_bench q_bench mmmu pope
    owl_eval mmhal_bench mmlu bbh agieval arc_challenge arc_easy imagenet image_folder kinetics400 kinetics600
    kinetics700 something_something_v2 coco_detection ade20k coco_stuff audiocaps_retrieval clotho_retrieval esc50
    fsd50k vggsound avqa
"""
CASES = [
    (name, layout, capability)
    for name, task in TASKS.items()
    for layout in task.layouts
    for capability in task.methods
    if layout not in ("plait_mini_pictures", "plait_mini_sounds")
    and capability not in ("ground", "decide")  # no peer does: see test_families
]


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that opens a tiny peer, built and opened once."""
    root, opened = tmp_path_factory.mktemp("peers"), {}

    def get(name: str, capability: Capability) -> Any:
        if name not in opened:
            BUILDERS[name](root / name)
            opened[name] = open_model(f"hf:{root / name}", (capability,))
        return opened[name]

    return get


def peer_for(name: str, capability: Capability) -> str:
    """The tiny peer that has a capability for a task."""
    task = TASKS[name]
    if capability == "classify":
        kinds_of_heads = {"image": "pictures", "video": "videos", "audio": "tags" if name == "fsd50k" else "sounds"}
        return LABELS.get(name, "texts2") if task.media == ("text",) else kinds_of_heads[task.media[0]]
    if capability == "embed":
        return {("audio",): "clap", ("text",): "sentence"}.get(task.media, "clip")
    kinds: dict[Capability, str] = {
        "generate": "llava",
        "text": "language",
        "detect": "detector",
        "segment": "segmenter",
    }
    return kinds[capability]


def judge_file(name: str, ids: list[str], place: Path) -> str | None:
    """Stored replies of a judge for a task that needs one."""
    if name not in JUDGED:
        return None
    path = place / "judge.jsonl"
    path.write_text("".join(json.dumps({"id": i, "judge": "test", "reply": JUDGED[name]}) + "\n" for i in ids))
    return str(path)


@pytest.mark.parametrize(("name", "layout", "capability"), CASES)
def test_a_task_runs_end_to_end(name: str, layout: str, capability: Capability, peers: Any, tmp_path: Path) -> None:
    task = dataclasses.replace(TASKS[name], layouts=(layout,))
    data, split = fixture(task, layout, tmp_path / "data")
    peer = peer_for(name, capability)
    judge = judge_file(name, [item.id for item in read(data, (layout,), split)[0]], tmp_path)
    options = Options(
        split=split, judge=judge, show_progress=False, batch_size=2, decoding=Decoding(max_new_tokens=3), num_frames=2
    )
    result = evaluate(task, peers(peer, capability), data, tmp_path / "out", options)
    assert result["score"] is not None
    assert {"task", "scores", "prompt", "environment", "failures"} <= result.keys()
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored["scores"] == result["scores"]
    assert task.name in (tmp_path / "out" / "result.html").read_text()
    again = score_file(task, tmp_path / "out" / "predictions.jsonl", data, None, options)
    assert again["scores"] == pytest.approx(result["scores"])
    assert again["units"] == pytest.approx(result["units"])


def test_every_task_of_the_specification_is_registered() -> None:
    assert set(SPECIFIED.split()) <= TASKS.keys()


def test_every_task_names_layouts_that_exist_and_says_where_its_numbers_are_from() -> None:
    for task in TASKS.values():
        assert set(task.layouts) <= LAYOUTS.keys()
        assert all(one.status in ("readme", "paper", "web", "recalled") for one in task.published)
