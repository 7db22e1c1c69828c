"""mPLUG-2's other tasks: retrieval, grounding, classification, pretraining."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.models.mplug2.alignment import NOT_SCORED, MPlug2ForRetrieval, Pairs
from plait.models.mplug2.composition import TABLE, Path
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2Model
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.tasks import (
    MPlug2ForConditionalGeneration,
    MPlug2ForGrounding,
    MPlug2ForImageClassification,
    MPlug2ForSequenceClassification,
    MPlug2ForVideoClassification,
)
from plait.objectives.grounding import boxes_to_tokens, tokens_to_boxes


def idle(model: torch.nn.Module) -> set[str]:
    """Parameters that should train and got no gradient."""
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


@torch.no_grad()
def test_scores_are_the_match_logits_of_the_nearest_pairs(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForRetrieval)
    found = model.score(pictures, **texts, k=2)
    vision, (text, mask) = model.model.see(pictures), model.model.read(**texts)
    assert torch.allclose(found.similarity, model.get_image_features(pictures) @ model.get_text_features(**texts).T)
    for scores, similarity in (
        (found.vision_to_text, found.similarity),
        (found.text_to_vision.T, found.similarity.T.contiguous().T),
    ):
        for i in range(3):
            for j in range(3):
                if scores[i, j] != NOT_SCORED:
                    logit = model.match(text[j : j + 1], mask[j : j + 1], vision[i : i + 1])[0, 1]
                    assert torch.allclose(scores[i, j], logit, atol=1e-5)
        assert int((scores != NOT_SCORED).sum()) == 6
        assert similarity.shape == scores.shape
    added = model.score(pictures, **texts, k=3, add_similarity=True).vision_to_text
    assert torch.allclose(added, model.score(pictures, **texts, k=3).vision_to_text + found.similarity, atol=1e-5)


def test_keys_of_a_picture_are_made_once_for_all_texts(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForRetrieval)
    cross = [layer.cross_attn for layer in model.model.fusion.layers if layer.cross_attn is not None]
    projected: list[int] = []
    for attention in cross:
        attention.k_proj.register_forward_hook(lambda _, given, out: projected.append(len(given[0])))
    model.score(pictures, **texts, k=3)
    assert sum(projected) == len(pictures) * len(cross)
    projected.clear()
    model.align(Pairs(pictures, None, texts["input_ids"], texts["attention_mask"]))
    assert sum(projected) == len(pictures) * len(cross)  # true pairs, wrong pictures and wrong texts together


@torch.no_grad()
def test_clips_share_the_space_of_pictures(build, clips: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForRetrieval)
    features = model.get_video_features(clips)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert model.modalities == ("text", "image", "video")
    assert model.score(None, clips, **texts).similarity.shape == (3, 3)


@pytest.mark.parametrize("queue_size", [0, 12])
def test_alignment_trains_everything_it_runs(build, pictures, texts, queue_size: int) -> None:
    model = build(MPlug2ForRetrieval, queue_size=queue_size, modalities=["image"])
    if queue_size:
        model.update_teacher()
    found = model(pictures, **texts, ids=torch.tensor([4, 5, 6]), alpha=0.4 if queue_size else 0.0)
    found.loss.backward()
    assert not idle(model)
    assert torch.equal(found.loss, found.contrast_loss + found.match_loss)
    assert found.match_logits.shape == (9, 2)
    assert (found.negative_vision != torch.arange(3)).all()


def test_queues_are_filled_and_wrap(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForRetrieval, queue_size=6)
    for step in range(3):
        model(pictures, **texts, ids=torch.arange(3) + 3 * step)
    heads = model.alignment
    assert heads.id_queue[0].tolist() == [6, 7, 8, 3, 4, 5]
    assert int(heads.queue_pointer) == 3
    features = heads.embed(model.teacher.see(pictures), "vision", teacher=True)
    assert torch.allclose(heads.vision_queue[:, :3], features.T, atol=1e-5)


def test_equal_identities_are_partners_not_negatives(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForRetrieval)
    for _ in range(5):
        found = model(pictures, **texts, ids=torch.tensor([7, 7, 8]))
        assert found.negative_vision.tolist()[:2] == [2, 2]
    with pytest.raises(ValueError, match="expected at least two identities"):
        model(pictures, **texts, ids=torch.tensor([7, 7, 7]))


def test_the_temperature_stays_in_bounds_except_in_official_models(build, pictures, texts) -> None:
    for queue_size in (0, 6):
        model = build(MPlug2ForRetrieval, queue_size=queue_size)
        model.alignment.temperature_parameter.data.fill_(-0.1)
        assert model.temperature().item() == pytest.approx(0.001)
        assert model(pictures, **texts).contrast_loss.isfinite()
    official = build(MPlug2ForRetrieval, official=True)
    official.alignment.temperature_parameter.data.fill_(0.9)
    assert official.temperature().item() == pytest.approx(0.9)


def test_a_fresh_teacher_is_its_student(build) -> None:
    model = MPlug2ForRetrieval(MPlug2Config.preset("tiny", queue_size=6))
    student = dict(model.model.named_parameters())
    assert all(torch.equal(p, student[name]) for name, p in model.teacher.named_parameters())
    assert torch.equal(model.alignment.teacher_text_proj.weight, model.alignment.text_proj.weight)


@torch.no_grad()
def test_boxes_are_found_coordinate_by_coordinate(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForGrounding)
    boxes = model.ground(pictures, **texts)
    assert boxes.shape == (3, 4)
    tokens = boxes_to_tokens(boxes + 1e-4, model.config.grounding_bins, model.first_id)
    assert torch.equal(tokens_to_boxes(tokens, model.config.grounding_bins, model.first_id), boxes)
    logits = model(pictures, **texts, boxes=boxes + 1e-4).logits
    assert torch.equal(logits.argmax(-1), tokens)  # fed its own choice it chooses it again
    alone = model.ground(pictures[1:2], texts["input_ids"][1:2, :4], texts["attention_mask"][1:2, :4])
    assert torch.equal(alone, boxes[1:2])


def test_grounding_trains_everything_it_runs(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForGrounding)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.3, 0.2, 0.1], [0.7, 0.6, 0.3, 0.3]])
    model(pictures, **texts, boxes=boxes).loss.backward()
    assert not idle(model)
    official = build(MPlug2ForGrounding, official=True)
    assert not torch.equal(official(pictures, **texts, boxes=boxes).loss, model(pictures, **texts, boxes=boxes).loss)


def test_one_configuration_serves_several_classes() -> None:
    config = MPlug2Config.preset("tiny")
    models = [cls(config) for cls in (MPlug2ForRetrieval, MPlug2ForGrounding, MPlug2ForPreTraining)]
    assert [model.config.task for model in models] == ["retrieve", "ground", None]
    assert config.task is None


def test_coordinate_tokens_must_fit_the_vocabulary(build) -> None:
    with pytest.raises(ValueError, match="expected coordinate tokens below vocab_size 112, got ids up to 112"):
        build(MPlug2ForGrounding, grounding_bins=7)


def test_classifiers_train_everything_they_run(build, pictures, clips, texts) -> None:
    labels = torch.tensor([0, 2, 1])
    pairs = {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]] * 3)}
    for model, inputs in (
        (build(MPlug2ForImageClassification, num_labels=3), {"pixel_values": pictures}),
        (build(MPlug2ForVideoClassification, num_labels=3), {"pixel_values_videos": clips}),
        (build(MPlug2ForSequenceClassification, num_labels=3), {**texts, **pairs}),
        (build(MPlug2ForSequenceClassification, num_labels=3, task="entail"), {**texts, "pixel_values_videos": clips}),
        (
            build(MPlug2ForSequenceClassification, num_labels=3, task="compare", num_images=2),
            {**texts, "pixel_values": torch.stack([pictures, pictures.flip(0)], 1)},
        ),
    ):
        out = model(**inputs, labels=labels)
        out.loss.backward()
        assert out.logits.shape == (3, 3)
        assert not idle(model)
        assert torch.allclose(model(**inputs).logits, out.logits)
        several = model(**inputs, labels=torch.nn.functional.one_hot(labels, 3).float()).loss
        assert not torch.equal(several, out.loss)


@torch.no_grad()
def test_the_order_of_two_pictures_matters(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForSequenceClassification, task="compare", num_images=2)
    both = torch.stack([pictures, pictures.flip(0)], 1)
    assert not torch.allclose(
        model(**texts, pixel_values=both).logits, model(**texts, pixel_values=both.flip(1)).logits
    )
    with pytest.raises(ValueError, match=r"expected input_ids and pixel_values \(batch, 2, 3, side, side\), got"):
        model(**texts, pixel_values=both[:, :1])


def pretraining_inputs(texts: dict[str, Tensor]) -> dict[str, Tensor]:
    hidden = torch.zeros_like(texts["input_ids"]).bool()
    hidden[:, 1:3] = True
    ids = torch.cat([torch.full((3, 1), 101), texts["input_ids"][:, :4]], dim=1)
    return {
        **texts,
        "masked_input_ids": texts["input_ids"].masked_fill(hidden, 103),
        "masked_labels": texts["input_ids"].masked_fill(~hidden, -100),
        "decoder_input_ids": ids,
        "decoder_attention_mask": ids.ne(0),
        "labels": ids.masked_fill(ids == 0, -100),
    }


@pytest.mark.parametrize("instructed", [False, True])
def test_pretraining_on_clips_trains_every_part(build, clips: Tensor, texts, instructed: bool) -> None:
    model = build(MPlug2ForPreTraining, queue_size=12)
    inputs = pretraining_inputs(texts)
    if instructed:
        inputs |= {"instruction_ids": texts["input_ids"][:, :3], "instruction_mask": texts["attention_mask"][:, :3]}
    model.update_teacher()
    out = model(pixel_values_videos=clips, **inputs, alpha=0.4)
    parts = (out.contrast_loss, out.match_loss, out.masked_loss, out.generate_loss)
    assert torch.allclose(out.loss, sum(parts))
    out.loss.backward()
    assert not idle(model)


def test_a_batch_of_texts_is_masked_language_modelling(build, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForPreTraining)
    inputs = pretraining_inputs(texts)
    out = model(**inputs)
    assert out.contrast_loss is None
    assert torch.equal(out.loss, out.masked_loss)
    text, mask = model.model.read(inputs["masked_input_ids"], texts["attention_mask"])
    logits = model.model.masked_lm(text, model.model.text.embeddings.token_embedding.weight)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["masked_labels"].flatten())
    assert torch.allclose(out.masked_loss, expected)
    assert mask.shape == (3, 6)


def test_weights_scale_and_switch_off_objectives(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForPreTraining)
    inputs = pretraining_inputs(texts)
    only = model(pictures, **inputs, weights={"contrast": 0, "match": 0, "generate": 0, "masked": 2.0})
    assert (only.contrast_loss, only.match_loss, only.generate_loss) == (None, None, None)
    assert torch.equal(only.loss, 2 * only.masked_loss)
    no_match = model(pictures, **inputs, weights={"match": 0})
    assert no_match.match_loss is None
    assert no_match.contrast_loss is not None
    with pytest.raises(ValueError, match="expected weights of contrast, match, masked, generate, got itc"):
        model(pictures, **inputs, weights={"itc": 1.0})
    with pytest.raises(ValueError, match="expected inputs of an objective with a weight above 0"):
        model(pictures)


def test_the_table_decides_what_is_built_and_what_is_run(
    build, pictures: Tensor, texts: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLE["classify"], "image", Path(("vision",), ("classifier",)))
    model = build(MPlug2ForImageClassification)
    assert model.model.has == {"vision"}
    tokens = model.model.vision(pictures[:, :, None], model.attend, temporal=False)
    assert torch.equal(model(pictures).logits, model.classifier(tokens[:, 0]))
    monkeypatch.setitem(TABLE["caption"], "video", Path(("vision", "universal", "decoder")))
    model = build(MPlug2ForConditionalGeneration, task="caption")
    assert not model.model.vision.has_temporal
    monkeypatch.setitem(TABLE["answer"], "image", Path(("vision", "universal", "text", "decoder")))
    model = build(MPlug2ForConditionalGeneration, task="answer", modalities=["image"])
    assert not hasattr(model.model, "fusion")
    encoded = model.encode(pictures, **texts)
    states, mask = encoded.states()
    assert torch.equal(states, torch.cat([encoded.vision, encoded.text], dim=1))
    assert mask.shape == states.shape[:2]


def test_one_model_takes_each_task_its_own_way(
    build, clips: Tensor, texts: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(MPlug2ForConditionalGeneration)
    before = model.encode(None, clips).vision
    monkeypatch.setitem(TABLE["answer"], "video", Path(("vision", "universal", "text", "fusion", "decoder")))
    assert torch.equal(model.encode(None, clips).vision, before)
    assert not torch.equal(model.encode(None, clips, **texts).vision, before)


def test_universal_layers_apart_cost_the_same(build, clips: Tensor, texts: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        a, b = (
            sum(
                p.numel()
                for p in MPlug2Model(MPlug2Config.preset("base", universal_sharing=way)).universal.parameters()
            )
            for way in ("shared", "apart")
        )
    assert abs(a - b) / a < 1e-3
    apart = build(MPlug2Model, universal_sharing="apart")
    assert set(apart.universal.stacks) == {"text", "visual"}
    apart(pixel_values_videos=clips, **texts).fused_text.sum().backward()
    assert apart.universal.stacks["text"][0].fc1.weight.grad is not None


def test_a_text_classifier_leaves_out_no_images_without_a_word(
    build, pictures: Tensor, texts: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="expected no images and no videos where the class token of the text"):
        build(MPlug2ForSequenceClassification)(**texts, pixel_values=pictures)
