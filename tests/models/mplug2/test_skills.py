"""mPLUG-2 as an assistant sees it: every class offers its own tasks, with the inputs its model takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from plait.generation import RankedAnswers
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.skills import OFFERS, MPlug2Skills
from plait.models.mplug2.skills import skills as skills_of

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "runs", "who", "is"]
GREY = Image.new("RGB", (8, 8), (90, 90, 90))


class Recorder(nn.Module):
    """Answers every call with fixed tensors and keeps what it was asked."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(model_type="mplug2", id2label={0: "cat", 1: "dog"})

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, torch.Tensor] = {}

    def generate(self, **inputs):
        self.asked = inputs
        batch = len(next(iter(inputs.values())))
        return torch.tensor([[2, 5, 6, 3, 0]]).repeat(batch, 1)

    def rank_answers(self, *, answer_ids, answer_mask, **inputs):
        self.asked = inputs | {"answer_ids": answer_ids, "answer_mask": answer_mask}
        return RankedAnswers(torch.tensor([[1, 0]]), torch.tensor([[0.75, 0.25]]))

    def ground(self, **inputs):
        self.asked = inputs
        return torch.tensor([[0.5, 0.5, 0.5, 1.0]])

    def forward(self, **inputs):
        self.asked = inputs
        return SimpleNamespace(logits=torch.tensor([[0.0, 1.0]]))

    def get_image_features(self, pixel_values):
        return torch.tensor([[1.0, 0.0]])

    def get_text_features(self, input_ids, attention_mask):
        return torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    def temperature(self):
        return torch.tensor(0.5)


def skills(name: str) -> MPlug2Skills:
    model = type(name, (Recorder,), {})()
    return skills_of(model, MPlug2Processor.build(4, VOCABULARY, num_frames=2, max_text_tokens=6))


def prepared(of: MPlug2Skills):
    return [of.prepare("image", GREY)]


def test_captions_need_no_text_and_clips_go_where_clips_go() -> None:
    writer = skills("MPlug2ForConditionalGeneration")
    assert writer.caption("image", prepared(writer), {"num_beams": 2}) == ["a man"]
    assert set(writer.model.asked) == {"pixel_values", "num_beams"}
    clip = writer.prepare("video", [GREY, GREY])
    assert writer.answer("video", [clip, clip], ["who runs", "who"], {}) == ["a man", "a man"]
    assert writer.model.asked["pixel_values_videos"].shape == (2, 3, 2, 4, 4)
    assert writer.model.asked["input_ids"].shape == (2, 4)


def test_answers_are_ranked_by_the_model() -> None:
    writer = skills("MPlug2ForConditionalGeneration")
    assert writer.rank("image", prepared(writer), ["who"], ["man", "a man"]) == [[("a man", 0.75), ("man", 0.25)]]
    assert writer.model.asked["answer_ids"].tolist() == [[2, 6, 3, 0], [2, 5, 6, 3]]
    assert writer.classify("image", prepared(writer), ["man", "a man"])[0][0] == ("a man", 0.75)
    assert "input_ids" not in writer.model.asked
    with pytest.raises(ValueError, match="expected labels to choose from"):
        writer.classify("image", prepared(writer), None)


def test_heads_know_their_labels_and_retrieval_compares_texts() -> None:
    head = skills("MPlug2ForImageClassification")
    (found,) = head.classify("image", prepared(head), None)
    assert [label for label, _ in found] == ["dog", "cat"]
    with pytest.raises(ValueError, match=r"expected the words of the head \(cat, dog\), got 1"):
        head.classify("image", prepared(head), ["x"])
    texts = skills("MPlug2ForSequenceClassification")
    texts.classify("text", ["who runs"], None)
    assert set(texts.model.asked) == {"input_ids", "attention_mask"}
    retrieval = skills("MPlug2ForRetrieval")
    (found,) = retrieval.classify("image", prepared(retrieval), ["a man", "runs"])
    assert found[0][0] == "runs"
    assert found[0][1] == pytest.approx(torch.tensor([0.0, 2.0]).softmax(0)[1].item())


def test_boxes_come_as_corners() -> None:
    finder = skills("MPlug2ForGrounding")
    assert finder.ground(prepared(finder), ["a man"]) == [(0.25, 0.0, 0.75, 1.0)]


def test_an_instructed_model_is_told_what_to_do() -> None:
    class Instructed(Recorder):
        config = SimpleNamespace(model_type="mplug2", id2label={}, instructions=True)

    model = type("MPlug2ForConditionalGeneration", (Instructed,), {})()
    words = ["describe", "the", "image", "video", "answer", "question", "about", "name", "what", "shows"]
    told = MPlug2Skills(model, MPlug2Processor.build(4, [*VOCABULARY, *words], max_text_tokens=12))

    def asked() -> str:
        return told.processor.tokenizer.decode(model.asked["input_ids"][0], skip_special_tokens=True)

    told.caption("image", prepared(told), {})
    assert asked() == "describe the image"
    told.answer("image", prepared(told), ["who runs"], {})
    assert asked() == "answer the question about the image who runs"
    told.classify("image", prepared(told), ["man", "a man"])
    assert asked() == "name what the image shows"
    with pytest.raises(ValueError, match="at most 12 tokens"):
        told.check_text("who is a man a man")


def test_a_configuration_may_offer_less_than_its_class() -> None:
    def offered(name: str, **config) -> MPlug2Skills:
        model = type(name, (Recorder,), {"config": SimpleNamespace(id2label={0: "cat"}, **config)})()
        return skills_of(model, MPlug2Processor.build(4, VOCABULARY, num_frames=2, max_text_tokens=6))

    captioner = offered("MPlug2ForConditionalGeneration", task="caption", modalities=["image"])
    assert (captioner.tasks, captioner.kinds) == ({"caption", "classify"}, {"image"})
    assert offered("MPlug2ForConditionalGeneration", task="answer").tasks >= {"answer", "rank"}
    judge = offered("MPlug2ForSequenceClassification", task="entail")
    assert (judge.tasks, judge.capabilities) == ({"answer", "rank"}, ("decide",))


def test_a_vocabulary_of_another_model_is_one_line() -> None:
    of = skills("MPlug2ForGrounding")
    of.model.config = SimpleNamespace(vocab_size=7)
    with pytest.raises(ValueError, match="expected ids below 7, got a vocabulary of 10"):
        of.ground(prepared(of), ["who is a man"])


def test_long_texts_and_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 6 tokens"):
        skills("MPlug2ForConditionalGeneration").check_text("who is a man a man")
    with pytest.raises(ValueError, match="got MPlug2Model"):
        skills("MPlug2Model")
    assert all(offer.tasks for offer in OFFERS.values())
