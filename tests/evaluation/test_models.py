"""Models behind the protocols: batches change nothing, prompts are laid out as each family wants them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_peers import BUILDERS, letters_tokenizer, redraw
from whole_fixtures import fixture

from plait.evaluation.base import Item
from plait.evaluation.models import OurModel, open_model
from plait.evaluation.peers import grid, kinds_of
from plait.evaluation.run import Options, evaluate
from plait.evaluation.tasks import TASKS
from plait.generation.asking import Asking
from plait.models.mplug2.skills import MPlug2Skills
from plait.models.mplug_owl.tasks import MPlugOwlSkills
from plait.models.mplug_owl2.tasks import MPlugOwl2Skills
from plait.types import Ask, Decoding

pytestmark = pytest.mark.filterwarnings("ignore")
DECODING = Decoding(max_new_tokens=4)
RED, BLUE = (Image.new("RGB", (20, 10), colour) for colour in ("red", "blue"))
ASKS = [Ask("what?", (RED,)), Ask("what is this, please?", (BLUE,)), Ask("two", (RED, BLUE)), Ask("?", (BLUE,))]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("peers")

    def get(name: str) -> Any:
        if not (root / name).exists():
            BUILDERS[name](root / name)
        return open_model(f"hf:{root / name}", ("generate", "text"))

    return get


def owl2() -> OurModel:
    """A tiny mPLUG-Owl2 with random weights."""
    from transformers import PreTrainedTokenizerFast

    from plait.models import auto

    family = import_module(auto.FAMILIES["mplug_owl2"])
    small = {"dim": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 16}
    tokenizer: PreTrainedTokenizerFast = letters_tokenizer()
    config = family.CONFIG(
        **small,
        vocab_size=len(tokenizer),
        num_kv_heads=2,
        vision={**small, "image_size": 16, "patch_size": 4},
        abstractor={"num_queries": 3, "num_heads": 2, "num_layers": 1, "mlp_dim": 16, "grid_size": 4},
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    model = family.GENERATIVE_MODEL(config)
    redraw(model)
    pair = (model, family.PROCESSOR.from_config(config, tokenizer))
    return OurModel("owl2", pair)


@pytest.mark.parametrize("name", ["llava", "blip2", "owl2"])
def test_batches_do_not_change_replies(name: str, opened: Any) -> None:
    model = owl2() if name == "owl2" else opened(name)
    alone = [model.generate([ask], DECODING)[0] for ask in ASKS]
    assert model.generate(ASKS, DECODING) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("name", ["llava", "language", "owl2"])
def test_a_question_without_pictures_is_answered(name: str, opened: Any) -> None:
    model = owl2() if name == "owl2" else opened(name)
    assert model.generate([Ask("hello"), Ask("hi")], DECODING) == [
        model.generate([Ask(words)], DECODING)[0] for words in ("hello", "hi")
    ]


def test_prompts_are_laid_out_as_released(opened: Any) -> None:
    assert owl2().prompt(ASKS[2]) == "USER: <|image|><|image|>two ASSISTANT: "
    assert opened("llava").prompt(ASKS[2]) == "<image>\n<image>\ntwo"
    assert opened("blip2").prompt(ASKS[2]) == "two"
    assert opened("language").prompt(Ask("go on")) == "go on"


def test_likelihoods_do_not_depend_on_the_batch(opened: Any) -> None:
    model = opened("language")
    pairs = [("one and", " two"), ("a much longer text before", " b"), ("x", " yz")]
    together, alone = model.likelihoods(pairs), [model.likelihoods([pair])[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-4)
    assert all(value < 0 for value in together)


@pytest.mark.parametrize("task", ["textvqa", "msvd_qa", "coco_caption"])
@pytest.mark.parametrize("peer", ["blip2", "owl2"])
def test_other_families_run_the_same_tasks(task: str, peer: str, opened: Any, tmp_path: Path) -> None:
    model = owl2() if peer == "owl2" else opened(peer)
    data, split = fixture(TASKS[task], TASKS[task].layouts[0], tmp_path / "data")
    result = evaluate(TASKS[task], model, data, tmp_path / "out", Options(split=split, show_progress=False))
    assert result["score"] is not None
    assert result["prompt"].startswith("USER: <|image|>") == (peer == "owl2")


def test_frames_of_a_video_become_a_grid_for_models_with_one_picture() -> None:
    sheet = grid([RED, BLUE, RED])
    assert sheet.size == (40, 20)
    assert [sheet.getpixel(at) for at in ((0, 0), (30, 5), (5, 15), (30, 15))] == [
        (255, 0, 0),
        (0, 0, 255),
        (255, 0, 0),
        (0, 0, 0),
    ]
    assert grid([RED]) is RED


class Skilled(Asking):
    """Skills that tell what they were asked."""

    capabilities = ("generate", "ground", "classify")

    def prepare(self, kind: str, value: Any) -> Any:
        return value

    def reply(self, asks: list[Ask], decoding: Decoding) -> list[str]:
        return [f"{ask.words} {len(ask.images)} {decoding.max_new_tokens}" for ask in asks]

    def ground(self, prepared: list[Any], phrases: list[str]) -> list[tuple[float, ...]]:
        return [(0.1, 0.1, 0.5, 0.5) for _ in prepared]

    def scores(self, asks: list[Ask]) -> torch.Tensor:
        return torch.tensor([[0.25, 0.75]] * len(asks))


@pytest.fixture
def skilled(monkeypatch: pytest.MonkeyPatch) -> OurModel:
    """A model of ours whose family has these skills."""
    from plait.models import auto

    monkeypatch.setattr(auto, "skills_class", lambda model: Skilled)
    monkeypatch.setattr(auto, "skills", lambda model, processor: Skilled())
    return OurModel("anything", (torch.nn.Linear(1, 1), None))


def test_a_model_with_skills_answers_captions_grounds_and_classifies(skilled: OurModel) -> None:
    assert skilled.capabilities == ("generate", "ground", "classify")
    assert skilled.generate([Ask("what?", (RED, BLUE)), Ask("who?", (RED,))], DECODING) == ["what? 2 4", "who? 1 4"]
    assert skilled.ground([Ask("dog", (RED,))]) == pytest.approx(np.array([[0.1, 0.1, 0.5, 0.5]]))
    assert skilled.scores([Ask(images=(RED,)), Ask("text")]).tolist() == [[0.25, 0.75]] * 2


def test_a_grounding_head_is_scored_like_words(skilled: OurModel, tmp_path: Path) -> None:
    data, _ = fixture(TASKS["refcoco"], "refcoco", tmp_path / "data")
    result = evaluate(TASKS["refcoco"], skilled, data, tmp_path / "out", Options(show_progress=False))
    assert result["score"] == 0
    assert result["failures"] == {}
    assert result["model"]["method"] == "locate"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llava"}, ("generate", "text")),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, ("classify",)),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, ("text",)),
        ({"model_type": "yolos", "architectures": ["YolosForObjectDetection"]}, ("detect",)),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, ("embed",)),
    ],
)
def test_a_configuration_tells_what_a_model_can_do(config: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert kinds_of(config, Path("nowhere")) == expected


def test_a_model_that_cannot_do_a_task_is_refused(tmp_path: Path) -> None:
    BUILDERS["clip"](tmp_path / "clip")
    with pytest.raises(ValueError, match=r"expected a model that can decide or generate, got .*, which can embed"):
        open_model(f"hf:{tmp_path / 'clip'}", TASKS["vqav2"].methods)


def test_every_family_words_questions_as_released() -> None:
    item = Item("1", question="What is the dog's name-tag, please?", choices=["a", "b"])
    owl, owl2 = (object.__new__(skills) for skills in (MPlugOwlSkills, MPlugOwl2Skills))
    assert owl2.layout(Ask(owl2.prompt("short", item), ("",))) == (
        "USER: <|image|>What is the dog's name-tag, please? Answer the question using a single word or phrase. "
        "ASSISTANT: "
    )
    head, _, rest = owl.layout(Ask("hi", ("", ""))).partition("\n")
    assert head.startswith("The following is a conversation between a curious human and AI assistant.")
    assert rest == "Human: <image>\nHuman: <image>\nHuman: hi\nAI: "
    assert owl2.prompt("letters_with_hint", item).startswith("N/A\n") and "option\u2019s" in owl2.prompt(
        "letters", item
    )
    assert owl2.decoding("caption", "image") == Decoding(max_new_tokens=60, min_new_tokens=8, length_penalty=0)
    mplug2 = object.__new__(MPlug2Skills)
    assert mplug2.prompt("short", item) == "what is the dogs name tag please"
    assert len(mplug2.prompt("open", Item("2", question="word " * 60)).split()) == 50
    assert mplug2.prompt("caption", item) == ""
    assert mplug2.decoding("caption", "video") == Decoding(max_new_tokens=20, min_new_tokens=4, num_beams=5)
    assert mplug2.decoding("short", "video") == Decoding(num_beams=5)
    with pytest.raises(ValueError, match="expected a known kind of question, got 'riddle'"):
        Asking().prompt(cast("Any", "riddle"), item)
