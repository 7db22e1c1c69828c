"""mPLUG-2's network and its writers: batches equal singles, caches change nothing, padding is not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from plait.generation import beam_search
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2Model
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> bool:
    return torch.allclose(a, b, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.no_grad()
def test_a_batch_equals_its_items_one_by_one(build, clips: Tensor, texts: dict[str, Tensor], attn: str) -> None:
    model = build(MPlug2Model)
    model.set_attn_implementation(attn)
    whole = model(pixel_values_videos=clips, **texts)
    for i in range(3):
        length = int(texts["attention_mask"][i].sum())
        own = {name: value[i : i + 1, :length] for name, value in texts.items()}
        alone = model(pixel_values_videos=clips[i : i + 1], **own)
        assert close(alone.fused_vision, whole.fused_vision[i : i + 1])
        assert close(alone.fused_text, whole.fused_text[i : i + 1, :length])


@torch.no_grad()
def test_padding_is_not_seen(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2Model, fusion_stride=1)
    wider = {name: torch.nn.functional.pad(value, (0, 3)) for name, value in texts.items()}
    plain, padded = (model(pixel_values=pictures, **inputs) for inputs in (texts, wider))
    seen = texts["attention_mask"].bool()
    assert close(plain.fused_text[seen], padded.fused_text[:, :6][seen])
    assert close(plain.fused_vision, padded.fused_vision)


@torch.no_grad()
def test_a_picture_is_a_clip_of_one_frame_without_temporal_modules(build, pictures: Tensor) -> None:
    model = build(MPlug2Model)
    picture = model.see(pictures)
    assert not close(picture, model.see(None, pictures[:, :, None]))
    tokens = model.vision(pictures[:, :, None], model.attend, temporal=False)
    assert close(picture, model.universal.see(tokens, model.attend))
    for name, parameter in model.named_parameters():
        if ".temporal" in name and ".up_proj." in name:
            parameter.zero_()  # a branch that adds nothing
    assert close(model.see(pictures), model.see(None, pictures[:, :, None]))


@torch.no_grad()
def test_a_fresh_model_sees_frames_as_pictures(clips: Tensor) -> None:
    model = MPlug2Model(MPlug2Config.preset("tiny")).eval()
    assert torch.equal(model.vision(clips, model.attend), model.vision(clips, model.attend, temporal=False))
    scale = {name: p.std().item() for name, p in model.named_parameters() if p.ndim > 1 and "up_proj" not in name}
    assert all(0.01 < std < 0.03 for name, std in scale.items() if "latents" not in name)
    assert 0.8 < scale["universal.latents"] < 1.2


@torch.no_grad()
def test_official_pictures_pass_the_temporal_modules(build, pictures: Tensor) -> None:
    model = build(MPlug2Model, official=True)
    assert close(model.see(pictures), model.see(None, pictures[:, :, None]))


@torch.no_grad()
def test_the_order_of_frames_matters_to_clips(build, clips: Tensor) -> None:
    model = build(MPlug2Model)
    forth, back = model.see(None, clips)[:, 0], model.see(None, clips.flip(2))[:, 0]
    assert not close(forth, back, 1e-3)


@torch.no_grad()
def test_searching_with_a_cache_equals_recomputing_the_prefix(build, clips: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForConditionalGeneration)
    for encoded in (model.encode(None, clips), model.encode(None, clips, **texts)):
        states, mask = encoded.states()
        start = torch.full((3, 1), 101)
        options = {"num_beams": 4, "min_length": 2, "max_length": 7, "num_return": 3}

        def recomputed(ids: Tensor, beam_indices: Tensor | None, states: Tensor = states, mask: Any = mask) -> Tensor:
            """Without any cache, as the released code does it: the prefix and all its keys, for every beam."""
            beams = len(ids) // len(states)
            seen = None if mask is None else mask.repeat_interleave(beams, 0)
            copied = states.repeat_interleave(beams, 0)
            return model.model.decoder(ids, copied, model.attend, states_mask=seen)[:, -1]

        plain = beam_search(recomputed, start, end_id=102, **options)
        cached = model.search(encoded, **options)
        for one, other in zip(plain, cached, strict=True):
            assert [h.ids.tolist() for h in one] == [h.ids.tolist() for h in other]
            assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-5)


@torch.no_grad()
def test_texts_written_for_a_batch_are_those_written_alone(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForConditionalGeneration)
    rows = model.generate(pictures, **texts, num_beams=3, max_length=6)
    for i in range(3):
        length = int(texts["attention_mask"][i].sum())
        own = {name: value[i : i + 1, :length] for name, value in texts.items()}
        (alone,) = model.generate(pictures[i : i + 1], **own, num_beams=3, max_length=6)
        assert rows[i, : len(alone)].tolist() == alone.tolist()
        assert not rows[i, len(alone) :].any()


@torch.no_grad()
def test_a_prompt_begins_every_text(build, pictures: Tensor) -> None:
    model = build(MPlug2ForConditionalGeneration, task="caption")
    rows = model.generate(pictures, num_beams=2, max_length=4, prompt_ids=torch.tensor([7, 8]))
    assert rows[:, :3].tolist() == [[101, 7, 8]] * 3


@torch.no_grad()
def test_ranking_agrees_with_the_loss_of_every_answer(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForConditionalGeneration)
    answers = torch.tensor([[101, 5, 102, 0], [101, 6, 7, 102], [101, 9, 102, 0], [101, 6, 102, 0]])
    mask = answers.ne(0)
    ranked = model.rank_answers(answers, mask, pictures, **texts)
    for i in range(3):
        losses = [
            float(model(
                pictures[i : i + 1], None, texts["input_ids"][i : i + 1], texts["attention_mask"][i : i + 1],
                decoder_input_ids=row[None], decoder_attention_mask=seen[None],
                labels=row[None].masked_fill(~seen[None], -100),
            ).loss)
            for row, seen in zip(answers, mask, strict=True)
        ]  # fmt: skip
        assert ranked.indices[i].tolist() == sorted(range(4), key=lambda j: losses[j])
        expected = torch.tensor(losses).neg().softmax(0)[ranked.indices[i]]
        assert close(ranked.probabilities[i], expected)


@torch.no_grad()
def test_only_the_best_candidates_are_scored(build, pictures: Tensor) -> None:
    model = build(MPlug2ForConditionalGeneration, task="caption")
    answers = torch.tensor([[101, 5, 102], [101, 6, 102], [101, 9, 102]])
    assert model.rank_answers(answers, answers.ne(0), pictures, k=2).indices.shape == (3, 2)
    with pytest.raises(ValueError, match="expected k of at most the 3 answers"):
        model.rank_answers(answers, answers.ne(0), pictures, k=4)


@torch.no_grad()
def test_bfloat16_stays_within_two_percent_of_float32(build, clips: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForConditionalGeneration)

    def made(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        model.to(dtype)
        encoded = model.encode(None, clips.to(dtype), **texts)
        logits = model(None, clips.to(dtype), **texts, decoder_input_ids=texts["input_ids"]).logits
        return encoded.vision, encoded.fused_text, logits

    for exact, rough in zip(made(torch.float32), made(torch.bfloat16), strict=True):
        error = (exact - rough.float()).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
        assert rough.dtype == torch.bfloat16
        assert 0 < error < 0.02


def test_a_question_that_has_no_answers_is_an_error(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForConditionalGeneration)
    with pytest.raises(ValueError, match="expected a text for each of 3 items, got 2"):
        model(pictures, **texts, decoder_input_ids=torch.tensor([[101, 5], [101, 6]]))
    with pytest.raises(ValueError, match="expected decoder_input_ids, got none"):
        model(pictures)


def test_a_teacher_moves_slowly_and_teaches(build, clips: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForConditionalGeneration, distill=True)
    before = model.teacher.fusion.layers[0].fc1.weight.clone()
    model.update_teacher(0.75)
    student = model.model.fusion.layers[0].fc1.weight
    assert close(model.teacher.fusion.layers[0].fc1.weight, 0.75 * before + 0.25 * student)
    ids = torch.tensor([[101, 5, 102], [101, 6, 102], [101, 9, 102]])
    inputs = {"pixel_values_videos": clips, **texts, "decoder_input_ids": ids, "labels": ids}
    plain, taught = model(**inputs).loss, model(**inputs, alpha=0.4).loss
    assert not torch.equal(plain, taught)
    taught.backward()
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_official_teacher_is_inert_and_leaves_fusion_behind(build, clips: Tensor, texts: dict[str, Tensor]) -> None:
    model = build(MPlug2ForConditionalGeneration, distill=True, official=True)
    before = model.teacher.fusion.layers[0].fc1.weight.clone()
    other = model.teacher.text.layers[0].fc1.weight.clone()
    model.update_teacher(0.5)
    assert torch.equal(model.teacher.fusion.layers[0].fc1.weight, before)
    assert not torch.equal(model.teacher.text.layers[0].fc1.weight, other)
    ids = torch.tensor([[101, 5, 102]] * 3)
    inputs = {"pixel_values_videos": clips, **texts, "decoder_input_ids": ids, "labels": ids}
    assert torch.equal(model(**inputs).loss, model(**inputs, alpha=0.4).loss)


def test_self_critical_training_weighs_texts_by_their_advantage(build, pictures: Tensor) -> None:
    model = build(MPlug2ForConditionalGeneration, task="caption")
    rewards = torch.tensor([[0.0, 0.5, 1.0], [2.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    scores = []

    def reward(found) -> Tensor:
        scores.extend([one.score for one in item] for item in found)
        return rewards

    lengths = {"num_beams": 3, "min_length": 2, "max_length": 5}
    loss = model.self_critical_loss(model.encode(pictures), reward, **lengths)
    advantage = rewards - rewards.mean(1, keepdim=True)
    assert close(loss, -(torch.tensor(scores) * advantage).mean())
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "temporal" not in name)
    even = model.self_critical_loss(model.encode(pictures), lambda found: torch.ones(3, 3), **lengths)
    assert abs(even.item()) < 1e-6


def test_a_teacher_stays_in_evaluation(build) -> None:
    model = build(MPlug2ForConditionalGeneration, distill=True, dropout=0.5).train()
    assert model.model.training
    assert not any(module.training for module in model.teacher.modules())


def test_parts_follow_the_task(build, pictures: Tensor, texts: dict[str, Tensor]) -> None:
    captioner = build(MPlug2ForConditionalGeneration, task="caption", modalities=["image"])
    names = {name.split(".")[1] for name, _ in captioner.named_parameters()}
    assert names == {"vision", "universal", "decoder"}
    assert not any("temporal" in name for name, _ in captioner.named_parameters())
    with pytest.raises(ValueError, match="expected a model with its text part"):
        captioner.encode(pictures, **texts)
    with pytest.raises(ValueError, match="expected image, got video"):
        captioner.encode(None, pictures[:, :, None])


def test_pictures_of_another_size_are_an_error(build) -> None:
    with pytest.raises(ValueError, match=r"expected clips \(batch, 3, frames, 12, 12\), got"):
        build(MPlug2Model).see(torch.zeros(1, 3, 16, 16))


def test_gradient_checkpointing_changes_no_gradient(build, clips: Tensor) -> None:
    model = build(MPlug2Model).train()
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.vision.gradient_checkpointing = True
        model.zero_grad()
        model.see(None, clips).square().sum().backward()
        gradients.append(model.vision.layers[0].fc1.weight.grad.clone())
    assert close(*gradients)


def test_the_predecessor_finishes_every_frame_before_it_averages(build, clips: Tensor) -> None:
    """mPLUG's zero-shot clips: class tokens are averaged behind the last norm and the projection."""
    sizes = {"dim": 12, "num_heads": 3, "num_layers": 2, "patch_size": 4, "image_size": 12, "temporal": False}
    model = build(MPlug2Model, num_universal_layers=0, vision=sizes)
    with torch.no_grad():
        whole = model.see(None, clips)
        frames = torch.stack([model.see(frame) for frame in clips.unbind(2)], dim=1)
    torch.testing.assert_close(whole[:, 0], frames[:, :, 0].mean(1))
    torch.testing.assert_close(whole[:, 1:], frames[:, :, 1:].flatten(1, 2))


def test_a_setting_that_no_model_has_is_one_line() -> None:
    with pytest.raises(ValueError, match="expected fields of MPlug2Config, got dept, hads; leave them out"):
        MPlug2Config.preset("tiny", dept=3, hads=2, dim=24)
