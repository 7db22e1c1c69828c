"""Each family is asked as it was released: words, frames, views, beams, lengths and penalties by value, steps by spies.

Values are copied from the specification (mPLUG-2: 2, 8; mPLUG-Owl: 8; mPLUG-Owl2: 11; ONE-PEACE: 5, 7; evaluation: 2).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES
from whole_fixtures import fixture

from plait.cli import main
from plait.evaluation.base import Item
from plait.evaluation.models import open_model
from plait.evaluation.run import Options, evaluate, read_answers
from plait.evaluation.tasks import TASKS
from plait.types import Ask, Decoding

pytestmark = pytest.mark.filterwarnings("ignore")

OWL_SYSTEM = (
    "The following is a conversation between a curious human and AI assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
LETTERS = "\nWhich?\nA. a cat\nB. a dog\nAnswer with the option’s letter from the given choices directly."

WORDS: dict[tuple[str, str], str] = {
    ("mplug2", "caption"): "",
    ("mplug2", "short"): "is this a cat dog",
    ("mplug_owl", "short"): (
        f"{OWL_SYSTEM}\nHuman: <image>\nHuman: Is this a cat/dog? Answer the question using a single word or phrase."
        "\nAI: "
    ),
    ("mplug_owl2", "caption"): "USER: <|image|>Provide a one-sentence caption for the provided image. ASSISTANT: ",
    ("mplug_owl2", "short"): (
        "USER: <|image|>Is this a cat/dog? Answer the question using a single word or phrase. ASSISTANT: "
    ),
    ("mplug_owl2", "letters_with_hint"): f"USER: <|image|>N/A{LETTERS} ASSISTANT: ",
    ("mplug_owl2", "letters_or_words"): f"USER: <|image|>{LETTERS.removeprefix(chr(10))} ASSISTANT: ",
    ("mplug_owl2", "yes_no"): (
        "USER: <|image|>Is it red?\nAnswer the question using a single word or phrase. ASSISTANT: "
    ),
}
"""(family, kind of question) -> the exact text that is read."""

QUESTIONS = {
    "short": Item("1", question="Is this a cat/dog?"),
    "caption": Item("1"),
    "yes_no": Item("1", question="Is it red? Please answer yes or no."),
    "letters_with_hint": Item("1", question="Which?", choices=["a cat", "a dog"]),
    "letters_or_words": Item("1", question="Which?", choices=["a cat", "a dog"]),
}

DECODINGS: dict[tuple[str, Any, Any], Decoding] = {
    ("mplug2", "caption", "video"): Decoding(20, 4, 5, 1.0),
    ("mplug2", "caption", "image"): Decoding(25, 8, 5, 1.0),
    ("mplug2", "short", "video"): Decoding(10, 1, 5, 1.0),
    ("mplug2", "short", "image"): Decoding(10, 1, 5, 1.0),
    ("mplug_owl", "caption", "image"): Decoding(60, 8, 1, 0.0),
    ("mplug_owl2", "caption", "image"): Decoding(60, 8, 1, 0.0),
    ("mplug_owl2", "short", "image"): Decoding(10, 1, 1, 1.0),
    ("mplug_owl2", "letters_with_hint", "image"): Decoding(10, 1, 1, 1.0),
    ("mplug_owl2", "yes_no", "image"): Decoding(10, 1, 1, 1.0),
    ("mplug_owl2", "letters_or_words", "image"): Decoding(20, 1, 1, 1.0),
}
"""(family, kind, medium) -> most and fewest new tokens, beams, length penalty."""

STEPS = {
    "mplug2": {"frames": "middle", "num_frames": 3, "rerank": 0, "ranked": 128},
    "mplug2_retrieval": {"frames": "middle", "num_frames": 3, "rerank": 128},
    "mplug_owl": {"frames": "centred", "num_frames": 2, "rerank": 0, "ranked": 0},
    "mplug_owl2": {"frames": "time", "rerank": 0, "ranked": 0},
    "one_peace": {"frames": "time", "rerank": 0, "ranked": 0},
}
"""Family -> how films are seen (tiny models have their own numbers), retrieval re-scored, answers ranked."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root, made = tmp_path_factory.mktemp("families"), {}

    def get(name: str) -> Any:
        if name not in made:
            FAMILIES[name](root / name)
            made[name] = open_model(root / name, ("generate", "embed", "decide", "classify"))
        return made[name]

    return get


@pytest.mark.parametrize(("family", "kind"), WORDS)
def test_the_words_are_those_of_the_release(family: str, kind: Any, opened: Any) -> None:
    asking = opened(family).asking
    words = asking.prompt(kind, QUESTIONS[kind])
    assert asking.layout(Ask(words, images=("",))) == WORDS[family, kind]


def test_lengths_beams_and_penalties_are_those_of_the_release(opened: Any) -> None:
    for (family, kind, medium), wanted in DECODINGS.items():
        assert (family, kind, medium, opened(family).asking.decoding(kind, medium)) == (family, kind, medium, wanted)


@pytest.mark.parametrize("family", STEPS)
def test_frames_and_steps_are_those_of_the_release(family: str, opened: Any) -> None:
    asking = opened(family).asking
    assert {name: getattr(asking, name) for name in STEPS[family]} == STEPS[family]


def test_sentences_and_words_of_one_peace_are_published(opened: Any) -> None:
    from plait.models.mplug2.skills import MPlug2HeadSkills
    from plait.models.one_peace.tasks import PHRASES, OnePeaceHeadSkills

    assert PHRASES["audio"] == "This is a sound of {label}"
    assert opened("one_peace").asking.choice("what barks", "a dog") == "what barks answer: a dog"
    assert OnePeaceHeadSkills.released["statement"] == ("True", "False")
    assert MPlug2HeadSkills.released["statement"] == ("False", "True")
    assert MPlug2HeadSkills.released["entailment"] == ("contradiction", "neutral", "entailment")


def test_published_frames_and_views_are_numbers_of_the_presets() -> None:
    from plait.models.mplug2 import MPlug2Config
    from plait.processing.videos import CLIPS, three_crops

    assert MPlug2Config.preset("large").num_frames == 16
    crops = three_crops(Image.new("RGB", (40, 32)), 32, (0, 0, 0), (1, 1, 1))
    assert (CLIPS, len(crops), crops[0].shape) == (3, 3, (3, 32, 32))


def test_beams_are_searched(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task, seen = opened("mplug2"), TASKS["vqav2"], []
    generate = type(model.model).generate
    monkeypatch.setattr(
        type(model.model), "generate", lambda self, *a, **k: seen.append(k["num_beams"]) or generate(self, *a, **k)
    )
    place, split = fixture(task, "vqav2", tmp_path / "data")
    found = evaluate(task, model, place, None, Options(split=split, limit=2))
    assert set(seen) == {5} and found["model"]["decoding"]["num_beams"] == 5


def test_vqa_answers_are_chosen_from_the_published_list(opened: Any, tmp_path: Path) -> None:
    model, task = opened("mplug2"), TASKS["vqav2"]
    place, split = fixture(task, "vqav2", tmp_path / "data")
    (place / "answer_list.json").write_text(json.dumps(["yes", "no", "a red bus"]))
    result = evaluate(task, model, place, tmp_path / "out", Options(split=split))
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {row["prediction"] for row in rows} <= {"yes", "no", "a red bus"}
    assert result["model"]["method"] == "rank_answers" and result["model"]["answers"] == 3
    other = tmp_path / "other.txt"
    other.write_text("blue\nblue\ngreen\n")
    chosen = evaluate(task, model, place, None, Options(split=split, answers=other))
    assert chosen["model"]["answers"] == 2
    # a family that writes its answers does so beside a list too
    plain = evaluate(task, opened("mplug_owl2"), place, None, Options(split=split, limit=1))
    assert plain["model"]["method"] == "prompt"
    with pytest.raises(ValueError, match="expected no list of answers for vqav2 with mplug_owl2, got"):
        evaluate(task, opened("mplug_owl2"), place, None, Options(split=split, answers=other))


@pytest.mark.parametrize("held", ["[]", "", "{}", '["", " "]'])
def test_an_empty_list_of_answers_is_one_line(held: str, tmp_path: Path) -> None:
    path = tmp_path / ("answers.txt" if not held else "answers.json")
    path.write_text(held)
    with pytest.raises(ValueError, match=r"expected a list of answers in .*, got none"):
        read_answers(path)
    with pytest.raises(ValueError, match="expected a file of answers"):
        read_answers(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("task", "layout"),
    [
        ("coco_retrieval", "retrieval_json_list"),
        pytest.param("msrvtt_retrieval", "msrvtt_retrieval_1ka", marks=pytest.mark.slow),
    ],
)
def test_retrieval_is_rescored_by_the_match_head(
    task: str, layout: str, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks are those of the released scoring, which the golden case `mplug1_retrieval_scoring` proves."""
    model, calls = opened("mplug2_retrieval"), []
    match = type(model.model).match
    monkeypatch.setattr(type(model.model), "match", lambda self, *a: calls.append(len(a[0])) or match(self, *a))
    place, split = fixture(TASKS[task], layout, tmp_path / "data")
    plain = evaluate(TASKS[task], model, place, None, Options(split=split, rerank=0))
    assert not calls and "rerank" not in plain["model"]
    result = evaluate(TASKS[task], model, place, tmp_path / "out", Options(split=split, rerank=2, batch_size=1))
    assert calls and result["model"]["rerank"] == 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == released_ranks(model, TASKS[task], place, split, k=2)
    assert evaluate(TASKS[task], model, place, None, Options(split=split))["model"]["rerank"] == 128


def released_ranks(model: Any, task: Any, place: Path, split: str, k: int) -> list[int]:
    """By `MPlug2ForRetrieval.score`, all media and texts at once."""
    from plait.evaluation.files import frames_of
    from plait.evaluation.run import load_items
    from plait.media.image import load_image
    from plait.metrics.retrieval import ranks
    from plait.processing.videos import chooser

    loaded, asking = load_items(task, place, Options(split=split)), model.asking
    shown = []
    for item in loaded.items:
        ((modality, name),) = item.media(task.media)
        file = loaded.files.find(name, modality)
        value = load_image(file) if modality == "image" else frames_of(
            file, asking.num_frames, chooser(asking.frames, asking.num_frames, item.media_start, item.media_end)
        )  # fmt: skip
        shown.append(asking.prepare(modality, value))
    texts = [(i, text) for i, item in enumerate(loaded.items) for text in item.captions or []]
    words = asking.processor.tokenize([text for _, text in texts], truncation=True)
    name = "pixel_values" if task.media == ("image",) else "pixel_values_videos"
    found = model.model.score(
        **{name: torch.stack(shown)}, **{n: words[n] for n in ("input_ids", "attention_mask")}, k=k
    )
    owner = np.array([i for i, _ in texts])
    own = np.arange(len(shown))[:, None] == owner[None]
    both = ranks(found.vision_to_text.numpy(), own), ranks(found.text_to_vision.numpy(), own.T)
    return [int(rank) for side in both for rank in side]


def test_more_to_rescore_than_there_is_and_no_head_are_one_line(
    opened: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = TASKS["coco_retrieval"]
    place, split = fixture(task, "retrieval_json_list", tmp_path / "data")
    with pytest.raises(ValueError, match=r"expected --rerank of at most the gallery's .*, got 1000; lower it"):
        evaluate(task, opened("mplug2_retrieval"), place, None, Options(split=split, rerank=1000))
    with pytest.raises(ValueError, match="of a model with a match head, got one_peace, which has none"):
        evaluate(task, opened("one_peace"), place, None, Options(split=split, rerank=2))
    with pytest.raises(ValueError, match="expected no --rerank for vqav2, got 2"):
        place, split = fixture(TASKS["vqav2"], "vqav2", tmp_path / "vqa")
        evaluate(TASKS["vqav2"], opened("mplug2"), place, None, Options(split=split, rerank=2))
    capsys.readouterr()
    assert main(["eval", "vqav2", "nano", "--data", str(tmp_path / "absent"), "--rerank", "x"]) == 2


@pytest.mark.parametrize(("task", "layout"), [("scienceqa", "scienceqa"), ("mmmu", "mmmu")])
def test_subjects_have_scores_of_their_own(task: str, layout: str, opened: Any, tmp_path: Path) -> None:
    place, split = fixture(TASKS[task], layout, tmp_path / "data")
    result = evaluate(TASKS[task], opened("mplug_owl2"), place, None, Options(split=split, limit=4))
    assert result["categories"]


@pytest.mark.parametrize(
    ("family", "task", "layout", "options", "said"),
    [
        ("mplug2", "vqav2", "vqav2", ["--answers", "empty.json"], "expected a list of answers in"),
        ("mplug2_retrieval", "coco_retrieval", "retrieval_json_list", ["--rerank", "1000"], "expected --rerank of at"),
        ("mplug2_ground", "vqav2", "vqav2", [], "which can ground"),
        ("mplug2", "vqav2", "refcoco", [], "v2_OpenEnded_mscoco"),
    ],
)
def test_wrong_protocols_are_one_line_of_the_command(
    family: str, task: str, layout: str, options: list[str], said: str, opened: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """An empty list, more than the gallery, the head of another task, the rows of another benchmark."""
    FAMILIES[family](tmp_path / "model")
    owner = next(name for name in (layout, task) if name in TASKS)
    place, split = fixture(TASKS[owner], layout, tmp_path / "data")
    (tmp_path / "empty.json").write_text("[]")
    given = [str(tmp_path / word) if word.endswith(".json") else word for word in options]
    capsys.readouterr()
    command = ["eval", task, str(tmp_path / "model"), "--data", str(place), "--split", split, *given]
    assert main([*command, "--out", str(tmp_path / "out")]) in (1, 2)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plait: ")]
    assert len(error) == 1 and said in error[0]
    assert not (tmp_path / "out" / "result.json").exists()
