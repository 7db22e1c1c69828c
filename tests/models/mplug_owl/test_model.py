"""The model as people run it: batches, beams and caches give the ids of the single run; training is safe."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import plait.models.auto
from plait.models.mplug_owl.config import MPlugOwlConfig
from plait.models.mplug_owl.conversation import prompt
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration, token_loss
from plait.models.mplug_owl.tasks import language_names, lora_targets, visual_names
from plait.models.mplug_owl.weights import around

from ..mplug_owl2.tiny import byte_tokenizer
from .tiny import LLAMA, PROMPTS, config, images, model_and_processor, video

NEW = 7


def new_ids(model, batch, **options) -> torch.Tensor:
    found = model.generate(**batch, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    return found[:, batch["input_ids"].shape[1] :]


def singles(model, processor, **options) -> torch.Tensor:
    pictures, rows = images(), []
    for text in PROMPTS:
        count = text.count("<image>")
        mine, pictures = pictures[:count], pictures[count:]
        clips = [video()] if "<|video|>" in text else None
        rows.append(new_ids(model, processor(text=text, images=mine or None, videos=clips), **options))
    return torch.cat(rows)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("text", ["llama", "bloom"])
@pytest.mark.parametrize("temporal", [True, False])
def test_a_left_padded_ragged_batch_gives_the_ids_of_single_runs(text, attn, temporal) -> None:
    model, processor = model_and_processor(text, temporal=temporal)
    model.set_attn_implementation(attn)
    batch = processor(text=list(PROMPTS), images=images(), videos=[video()])
    assert ("pixel_values_videos" in batch) is temporal
    assert torch.equal(new_ids(model, batch), singles(model, processor))


@pytest.mark.parametrize("text", ["llama", "bloom"])
def test_beams_no_cache_and_a_static_cache(text) -> None:
    model, processor = model_and_processor(text)
    batch = processor(text=list(PROMPTS), images=images(), videos=[video()])
    assert torch.equal(new_ids(model, batch, num_beams=3), singles(model, processor, num_beams=3))
    expected = new_ids(model, batch)
    assert torch.equal(new_ids(model, batch, use_cache=False), expected)
    assert torch.equal(new_ids(model, batch, cache_implementation="static", disable_compile=True), expected)


@pytest.mark.parametrize("rule", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}])
def test_rules_about_repetition_see_the_whole_answer_of_a_padded_row(rule) -> None:
    model, processor = model_and_processor()
    batch = processor(text=list(PROMPTS), images=images(), videos=[video()])
    found = new_ids(model, batch, **rule)
    assert torch.equal(found, singles(model, processor, **rule))
    assert not torch.equal(found, new_ids(model, batch)), "a rule that changes nothing tests nothing"


def test_features_encoded_once_serve_many_prompts() -> None:
    model, processor = model_and_processor()
    batch = processor(text=PROMPTS[0], images=images(1))
    expected = new_ids(model, batch)
    features = model.encode(batch.pop("pixel_values"))
    assert torch.equal(new_ids(model, batch, image_features=features), expected)


def test_the_rule_against_repetition_sees_the_answer_alone() -> None:
    model, processor = model_and_processor()
    batch = processor(text=PROMPTS[0], images=images(1))
    plain = new_ids(model, batch)
    longer = torch.cat([batch["input_ids"], plain], dim=1)
    again = {**batch, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
    free = new_ids(model, again)
    assert torch.equal(new_ids(model, again, no_repeat_ngram_size=NEW + 1), free)
    seen = new_ids(model, batch, no_repeat_ngram_size=1)[0].tolist()
    assert len(set(seen)) == len(seen)


def test_a_least_length_counts_the_answer_alone() -> None:
    """The end, made certain, comes right behind the least length, however long the prompt is."""
    model, processor = model_and_processor()
    batch = processor(text=PROMPTS[0], images=images(1))
    end, length = 7, batch["input_ids"].shape[1]
    model.get_output_embeddings().register_forward_hook(lambda m, i, out: out + 1e3 * torch.eye(out.shape[-1])[end])
    ended = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": end}
    assert model.generate(**batch, **ended, min_new_tokens=5).shape[1] == length + 6
    assert model.generate(**batch, **ended, min_length=length + 4).shape[1] == length + 5  # here the prompt counts


def test_official_rules_about_repetition_see_a_start_id() -> None:
    """The old `generate` began every answer with a start id, which a rule against repetition then refused to give."""
    model, processor = model_and_processor()
    batch = processor(text=PROMPTS[0], images=images(1))
    start = model.config.text_config.bos_token_id
    model.get_output_embeddings().register_forward_hook(lambda m, i, out: out + 1e3 * torch.eye(out.shape[-1])[start])
    first = {}
    for official in (False, True):
        model.config.official = official
        first[official] = int(new_ids(model, batch, no_repeat_ngram_size=1)[0, 0])
    assert first[False] == start != first[True]


def test_an_official_tower_cuts_its_table_for_any_smaller_image() -> None:
    model, _ = model_and_processor(official=True)
    tower = model.vision
    assert torch.equal(tower.positions(2, 3), tower.position_embedding[:, :7])
    with pytest.raises(ValueError, match="expected images of 16 x 16 pixels, got 4 x 5 patches"):
        tower.positions(4, 5)


def test_every_media_run_gets_its_own_features() -> None:
    model, processor = model_and_processor()
    batch = processor(
        text="a <image> b <image> c <|video|> d <|video|>", images=images(2), videos=[video(), video()[::-1]]
    )
    embeds = model.embed(**{k: v for k, v in batch.items() if k != "attention_mask"})[0]
    ids = batch["input_ids"][0]
    for media_id, pixels in zip(model.config.media_ids, (batch["pixel_values"], batch["pixel_values_videos"])):
        assert torch.allclose(embeds[ids == media_id], model.encode(pixels).flatten(0, 1), atol=1e-6)
    first, second = model.encode(batch["pixel_values_videos"])
    assert not torch.allclose(first, second)


def test_the_order_of_frames_matters_and_one_frame_is_an_image() -> None:
    model, processor = model_and_processor()
    clip = processor.image_processor.clip(video())[None]
    assert not torch.allclose(model.encode(clip), model.encode(clip.flip(2)))
    still = clip[:, :, :1]
    assert torch.allclose(model.encode(still), model.encode(still[:, :, 0]), atol=1e-6)


@pytest.mark.parametrize("text", ["llama", "bloom"])
def test_video_trains(text) -> None:
    model, processor = model_and_processor(text)
    batch = processor.supervised([[("<|video|>What?", "a cat")], [("Hm?", "ok")]], videos=[video()])
    model.train()
    model(**batch).loss.backward()
    for name in visual_names(model):
        parameter = model.get_parameter(name)
        assert parameter.grad is not None, name
    assert model.abstractor.temporal_queries.grad.abs().sum() > 0
    assert model.vision.layers[0].temporal.conv.weight.grad.abs().sum() > 0


def test_a_text_batch_gives_zero_gradients_to_the_visual_part_not_none() -> None:
    model, processor = model_and_processor()
    model.train()
    model(**processor.supervised([[("Hm?", "ok")]])).loss.backward()
    assert all(model.get_parameter(n).grad is not None for n in visual_names(model) if "temporal" not in n)


def test_a_batch_with_nothing_to_learn_has_loss_zero() -> None:
    logits = torch.randn(2, 5, 7, requires_grad=True)
    loss = token_loss(logits, torch.full((2, 5), -100))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_fresh_queries_differ_and_dropout_is_in_training_only() -> None:
    model = MPlugOwlForConditionalGeneration(config())
    assert model.abstractor.queries.std() > 0.01
    clip = torch.randn(1, 3, 16, 16)
    assert torch.equal(model.eval().encode(clip), model.encode(clip))
    assert not torch.equal(model.train().encode(clip), model.encode(clip))


def test_rows_that_lost_a_place_keep_later_rows_aligned() -> None:
    model, processor = model_and_processor()
    batch = processor(text=["<image>a", "<image>b"], images=images(2))
    pixels = batch["pixel_values"]
    # Encoded once: on some processors a batch of three rounds otherwise than one of two.
    features = model.encode(torch.cat([pixels[:1], torch.zeros_like(pixels[:1]), pixels[1:]]))
    counted = model.embed(batch["input_ids"], image_features=features, num_images=torch.tensor([2, 1]))
    assert torch.equal(counted, model.embed(batch["input_ids"], image_features=features[[0, 2]]))
    assert not torch.equal(counted, model.embed(batch["input_ids"], image_features=features[:2]))


@pytest.mark.parametrize("text", ["llama", "bloom"])
def test_save_and_load_through_every_door(tmp_path, text) -> None:
    model, processor = model_and_processor(text)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = processor(text=list(PROMPTS), images=images(), videos=[video()])
    expected = model(**batch).logits
    ours, reader = plait.models.auto.load(tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)(text=list(PROMPTS), images=images(), videos=[video()])
    assert torch.equal(again["input_ids"], batch["input_ids"]) and reader.num_frames == 3
    for loaded in (ours, theirs):
        assert torch.allclose(loaded(**again).logits, expected, atol=1e-5)


def test_an_untrained_owl_keeps_its_language_model(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {key: value for key, value in LLAMA.items() if key != "model_type"}
    source = LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1)).eval()
    source.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    small = config()
    model, processor = around(tmp_path, vision=small.vision_sizes, abstractor=small.abstractor_sizes)
    ids = torch.tensor([processor.encode("hello there")])
    assert torch.equal(model(ids).logits, source(ids).logits)
    with pytest.raises(ValueError, match="expected a transformers directory"):
        around(tmp_path / "nowhere")


def test_stages_train_what_they_name() -> None:
    model, _ = model_and_processor()
    everything = {name for name, _ in model.named_parameters()}
    assert set(visual_names(model)) | set(language_names(model)) == everything
    assert set(visual_names(model, "projection")) < set(visual_names(model, "abstractor")) < set(visual_names(model))
    assert {name.rpartition(".")[2] for name in lora_targets(model)} == {"q_proj", "v_proj"}
    assert all(name.endswith("query_key_value") for name in lora_targets(model_and_processor("bloom")[0]))
    with pytest.raises(ValueError, match="expected one of all, abstractor, projection"):
        visual_names(model, "tower")


def test_wrong_inputs_give_one_clear_line() -> None:
    model, processor = model_and_processor()
    with pytest.raises(ValueError, match="expected 3 images for 3 <image> placeholders, got 2"):
        processor(text="<image><image><image>", images=images(2))
    batch = processor(text="<image>", images=images(1))
    with pytest.raises(ValueError, match="expected one image per placeholder, got 2 images for 1 placeholders"):
        model(batch["input_ids"], pixel_values=torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="expected a prompt of less than 512 positions, got 513"):
        model.generate(torch.full((1, 513), 5), max_new_tokens=1)
    with pytest.raises(ValueError, match="expected videos of one number of frames"):
        processor(text="<|video|><|video|>", videos=[video(), video(2)])
    with pytest.raises(ValueError, match="expected a preset among"):
        MPlugOwlConfig.preset("owl-70b")


def test_the_assistant_answers_ranks_and_describes() -> None:
    model, processor = model_and_processor()
    skills = plait.models.auto.skills(model, processor)
    pictures = images(2)
    told = skills.answer("image", pictures, ["What?", "Where then?"], {"max_length": 4})
    alone = [skills.answer("image", [p], [q], {"max_length": 4})[0] for p, q in zip(pictures, ("What?", "Where then?"))]
    assert told == alone
    assert len(skills.caption("video", [video()], {"max_length": 3})) == 1
    ranked = skills.rank("image", pictures, ["a?", "b?"], ["yes", "no", "maybe so"])
    assert all(abs(sum(p for _, p in row) - 1) < 1e-5 and row[0][1] >= row[-1][1] for row in ranked)
    batch = processor(text=prompt([("<image>a?", None)]), images=pictures[:1])
    first = model(**batch).logits[0, -1].log_softmax(-1)
    assert first.argmax() >= 0 and {a for a, _ in ranked[0]} == {"yes", "no", "maybe so"}
