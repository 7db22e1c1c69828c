"""The model as people run it: batches, beams, caches and compilation all give the ids of the single run."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

import plait
from plait.generation.official_beams import CACHE
from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.model import (
    MPlugOwl2ForConditionalGeneration,
    Owl2VisionTower,
    words_only,
)
from plait.models.mplug_owl2.weights import resized
from plait.nn.attention import attention_function
from plait.parity.run import runner_module

from .tiny import PROMPTS, config, images, model_and_processor, redraw

expand_placeholders = runner_module("mplug_owl2_model").expand_placeholders
QWEN = {"routed": ("q", "k", "v"), "trained_length": 24, "qkv_bias": True}
NEW = 9


def new_ids(model, batch, **options) -> torch.Tensor:
    found = model.generate(**batch, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    return found[:, batch["input_ids"].shape[1] :]


def singles(model, processor, **options) -> torch.Tensor:
    pictures, rows = images(), []
    for prompt in PROMPTS:
        count = prompt.count("<|image|>")
        mine, pictures = pictures[:count], pictures[count:]
        rows.append(new_ids(model, processor(text=prompt, images=mine or None), **options))
    return torch.cat(rows)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, QWEN, {**QWEN, "routed": ()}])
def test_a_left_padded_ragged_batch_gives_the_ids_of_single_runs(changes, attn) -> None:
    model, processor = model_and_processor(**changes)
    model.set_attn_implementation(attn)
    batch = processor(text=list(PROMPTS), images=images())
    assert torch.equal(new_ids(model, batch), singles(model, processor))


@pytest.mark.parametrize("changes", [{}, QWEN])
def test_beams_in_a_batch_give_the_beams_of_single_runs(changes) -> None:
    model, processor = model_and_processor(**changes)
    batch = processor(text=list(PROMPTS), images=images())
    assert torch.equal(new_ids(model, batch, num_beams=3), singles(model, processor, num_beams=3))


@pytest.mark.parametrize("rule", [{"repetition_penalty": 1.7}, {"encoder_repetition_penalty": 1.5}, {"num_beams": 2}])
def test_rules_about_repetition_see_words_but_neither_images_nor_padding(rule) -> None:
    model, processor = model_and_processor()
    plain = new_ids(model, processor(text=list(PROMPTS), images=images()))
    rule = {"repetition_penalty": 1.7, **rule}
    found = new_ids(model, processor(text=list(PROMPTS), images=images()), **rule)
    assert torch.equal(found, singles(model, processor, **rule))
    assert not torch.equal(found, plain)


def test_images_and_padding_become_a_word_of_their_row() -> None:
    ids = torch.tensor([[0, 0, 9, 99, 99, 7], [3, 4, 99, 99, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert words_only(ids, 99, mask).tolist() == [[7, 7, 9, 7, 7, 7], [3, 4, 3, 3, 5, 6]]
    assert words_only(ids[:1].repeat(2, 1), 99, mask[:1]).tolist() == [[7, 7, 9, 7, 7, 7]] * 2
    assert words_only(torch.full((1, 3), 99), 99).tolist() == [[99, 99, 99]]


@pytest.mark.parametrize("changes", [{}, QWEN])
def test_no_cache_and_a_static_cache_change_nothing(changes) -> None:
    model, processor = model_and_processor(**changes)
    batch = processor(text=list(PROMPTS), images=images())
    expected = new_ids(model, batch)
    assert torch.equal(new_ids(model, batch, cache_implementation="static"), expected)
    if "trained_length" not in changes:  # without a cache there is nothing to keep the frozen base
        assert torch.equal(new_ids(model, batch, use_cache=False), expected)


def test_compiling_changes_nothing() -> None:
    model, processor = model_and_processor()
    batch = processor(text=list(PROMPTS[:3]), images=images()[:3])
    expected = new_ids(model, batch)
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend="aot_eager")
    assert torch.equal(new_ids(model, batch, cache_implementation="static"), expected)


@torch.no_grad()
@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("changes", [{}, QWEN])
def test_a_decoding_step_is_one_graph(changes, is_static) -> None:
    model, processor = model_and_processor(**changes)
    batch = processor(text=PROMPTS[0], images=images()[:1])
    cache = StaticCache(model.config, max_cache_len=60) if is_static else DynamicCache()
    model(**batch, cache=cache, use_cache=True)
    torch._dynamo.reset()
    step = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    token = torch.tensor([[5]])
    assert step(input_ids=token, cache=cache, use_cache=True).logits.shape == (1, 1, 260)


def test_the_ntk_base_stays_as_chosen_at_prefill() -> None:
    model, processor = model_and_processor(**QWEN)
    short, long = processor(text="x" * 20), processor(text="x" * 30)
    caches = [model(**batch, use_cache=True)[CACHE] for batch in (short, long)]
    assert [cache.ntk_alpha.item() for cache in caches] == [1.0, 3.0]
    for _ in range(8):
        model(torch.tensor([[7]]), cache=caches[0], use_cache=True)
    assert caches[0].ntk_alpha.item() == 1.0 and caches[0].get_seq_length() == 28


def test_training_knows_neither_ntk_nor_log_n() -> None:
    model, processor = model_and_processor(**QWEN)
    plain, _ = model_and_processor(**{**QWEN, "trained_length": None})
    plain.load_state_dict(model.state_dict())
    batch = processor(text="The quick brown fox jumps over the lazy dog")
    torch.testing.assert_close(model.train()(**batch).logits, plain(**batch).logits)
    assert not torch.allclose(model.eval()(**batch).logits, plain(**batch).logits, atol=1e-3)


def test_image_features_stand_where_their_image_stands() -> None:
    model, processor = model_and_processor()
    batch = processor(text=["<|image|>a<|image|>", "b"], images=images()[:2])
    embeds, is_image = model.model.embed(batch["input_ids"], batch["pixel_values"])
    assert is_image.sum(dim=1).tolist() == [8, 0]
    torch.testing.assert_close(embeds[is_image].view(2, 4, -1), model.model.encode_images(batch["pixel_values"]))


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_images_is_one_clear_line(count: int) -> None:
    model, processor = model_and_processor()
    batch = processor(text="<|image|>a", images=images()[:1])
    pixels = torch.zeros(count, 3, 16, 16) if count else None
    with pytest.raises(ValueError, match=rf"expected {4 * count} image positions for {count} images of 4, got 4; give"):
        model(batch["input_ids"], pixel_values=pixels)


def test_an_image_of_another_size_is_one_clear_line() -> None:
    model, processor = model_and_processor()
    batch = processor(text="<|image|>a", images=images()[:1])
    with pytest.raises(ValueError, match=r"expected images of 16 x 16 pixels, got \(24, 24\); resize them"):
        model(batch["input_ids"], pixel_values=torch.zeros(1, 3, 24, 24))


def test_ids_and_embeddings_together_are_refused() -> None:
    model, _ = model_and_processor()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(torch.ones(1, 2, dtype=torch.long), inputs_embeds=torch.zeros(1, 2, 32))


def test_a_third_way_takes_its_own_weights() -> None:
    ways = {"text": ["text"], "visual": ["image", "video"], "audio": ["audio"]}
    model, _ = model_and_processor(ways=ways)
    x = torch.randn(1, 6, 32)
    ids = torch.tensor([[0, 1, 3, 3, 0, 2]])
    before = model(inputs_embeds=x, modality_ids=ids).logits
    with torch.no_grad():
        model.model.decoder.layers[0].attn.v_proj["audio"].weight.add_(1.0)
    after = model(inputs_embeds=x, modality_ids=ids).logits
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:])
    assert "model.decoder.layers.0.attn.k_proj.audio.weight" in model.state_dict()


@pytest.mark.parametrize("routed", [(), ("norm",), ("k", "v"), ("norm", "q", "k", "v", "out", "mlp")])
def test_every_ablation_is_one_field(routed) -> None:
    model, processor = model_and_processor(routed=routed)
    batch = processor(text=list(PROMPTS), images=images())
    assert torch.equal(new_ids(model, batch), singles(model, processor))
    parts = {key.split(".")[5] for key in model.state_dict() if ".visual." in key and ".attn." in key}
    assert parts == {f"{'o' if part == 'out' else part}_proj" for part in routed} - {"norm_proj", "mlp_proj"}


def test_a_saved_model_is_the_same_model(tmp_path) -> None:
    model, processor = model_and_processor(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = processor(text=list(PROMPTS), images=images())
    loaded, again = plait.load(tmp_path)
    auto = MPlugOwl2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(again(text=list(PROMPTS), images=images())["pixel_values"], batch["pixel_values"])
    for other in (loaded, auto):
        assert torch.equal(other(**again(text=list(PROMPTS), images=images())).logits, model(**batch).logits)
        assert other.lm_head.weight is other.model.token_embedding.weight


def test_auto_classes_know_the_family(tmp_path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = model_and_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is MPlugOwl2ForConditionalGeneration
    assert AutoProcessor.from_pretrained(tmp_path).tokens_per_image == processor.tokens_per_image == 4


def test_parameters_are_those_of_the_published_model() -> None:
    with torch.device("meta"):
        model = MPlugOwl2ForConditionalGeneration(MPlugOwl2Config.preset("owl2-7b"))
        other = MPlugOwl2ForConditionalGeneration(MPlugOwl2Config.preset("owl2.1-7b", vocab_size=151_851))
    assert sum(p.numel() for p in model.parameters()) == 8_197_859_328
    assert sum(p.numel() for p in other.parameters()) == 9_775_022_080


def test_fresh_weights_are_drawn_as_published() -> None:
    model = MPlugOwl2ForConditionalGeneration(config(dim=64, vocab_size=2000))
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.model.abstractor.end.std().item() == pytest.approx(1.0, rel=0.3)
    fc1 = model.model.vision.layers[0].fc1
    assert fc1.weight.abs().max() <= 16**-0.5 and fc1.weight.std().item() == pytest.approx(16**-0.5 / 3**0.5, rel=0.15)
    assert torch.equal(model.model.decoder.norm.weight, torch.ones(64))


def test_only_an_official_tower_cuts_its_table_for_a_smaller_image() -> None:
    sizes = config().vision_sizes
    towers = {official: Owl2VisionTower(sizes, official=official) for official in (False, True)}
    towers[True].load_state_dict(towers[False].state_dict())
    small, whole = torch.randn(1, 3, 8, 12), torch.randn(1, 3, 16, 16)
    table = towers[True].position_embedding
    assert torch.equal(towers[True].positions(2, 3), table[:, :7])
    attend = attention_function("eager")
    assert towers[True](small, attend).shape[1] == 7
    assert torch.equal(towers[True](whole, attend), towers[False](whole, attend))
    with pytest.raises(ValueError, match="expected images of 16 x 16 pixels"):
        towers[False](small, attend)


def test_a_resized_checkpoint_stays_close() -> None:
    model, _ = model_and_processor()
    redraw(model, std=0.1)
    with torch.no_grad():  # trained position tables are smooth
        table = torch.nn.functional.interpolate(torch.randn(1, 16, 2, 2), size=4, mode="bicubic", align_corners=False)
        model.model.vision.position_embedding[0, 1:] = table.flatten(2)[0].T
    color = torch.randn(1, 3, 1, 1)
    small = model.model.encode_images(color.expand(1, 3, 16, 16))
    larger = resized(model, image_size=32)
    far = resized(model, image_size=32)
    with torch.no_grad():
        far.model.vision.position_embedding.normal_()
    big, wrong = (m.model.encode_images(color.expand(1, 3, 32, 32)) for m in (larger, far))
    assert (big - small).norm() < 0.1 * small.norm() < (wrong - small).norm() * 5
    more = resized(model, num_queries=6)
    doubled = more.model.encode_images(color.expand(1, 3, 16, 16))
    assert doubled.shape[1] == more.config.tokens_per_image == 7
    assert torch.equal(
        resized(model, num_queries=3, image_size=16).model.encode_images(color.expand(1, 3, 16, 16)), small
    )
    with pytest.raises(ValueError, match="multiple of 4 pixels"):
        resized(model, image_size=18)


def test_official_ids_expand_where_the_image_stands() -> None:
    ids = torch.tensor([[1, -200, 5, 0], [7, 8, 9, 0], [-200, -200, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    made = expand_placeholders(ids, pixels, tokens_per_image=2, image_token_id=99, attention_mask=mask)
    assert made.input_ids.tolist() == [[1, 99, 99, 5, 0, 0], [7, 8, 9, 0, 0, 0], [99, 99, 99, 99, 3, 4]]
    assert made.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1] * 6]
    assert made.pixel_values[:, 0, 0, 0].tolist() == [0.0, 2.0, 3.0]  # the second row's dummy is passed over
    with pytest.raises(ValueError, match="expected 3 images for 3 placeholders"):
        expand_placeholders(ids, pixels[:2], tokens_per_image=2, image_token_id=99)
    with pytest.raises(ValueError, match="got none"):
        expand_placeholders(ids, None, tokens_per_image=2, image_token_id=99)


def test_left_padding_stays_in_front_of_an_image() -> None:
    ids, mask = torch.tensor([[0, 0, -200, 5]]), torch.tensor([[0, 0, 1, 1]])
    made = expand_placeholders(ids, torch.zeros(1, 3, 2, 2), tokens_per_image=3, image_token_id=99, attention_mask=mask)
    assert made.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("attn", ["eager", "sdpa", "flash_attention_2"])
def test_images_are_read_with_any_attention_of_the_decoder(attn) -> None:
    model, _ = model_and_processor()
    pixels = torch.randn(2, 3, 16, 16)
    expected = model.model.encode_images(pixels)
    model.config._attn_implementation = attn
    torch.testing.assert_close(model.model.encode_images(pixels), expected, atol=1e-5, rtol=1e-4)


def test_beams_count_what_they_generated_and_the_official_ones_their_prompt_too() -> None:
    """With a strong preference for length the two conventions choose differently; without one they agree."""
    model, processor = model_and_processor()
    batch = processor(text="<|image|>what is this thing?", images=images()[:1])
    length = batch["input_ids"].shape[1]
    scores: dict[tuple[bool, float], torch.Tensor] = {}
    for official in (False, True):
        model.config.official = official
        for penalty in (0.0, 1.0):
            found = model.generate(
                **batch, num_beams=3, num_return_sequences=3, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                length_penalty=penalty, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            scores[official, penalty] = found.sequences_scores
    torch.testing.assert_close(scores[False, 0.0], scores[True, 0.0])
    torch.testing.assert_close(scores[False, 1.0], scores[False, 0.0] / 4)
    torch.testing.assert_close(scores[True, 1.0], scores[True, 0.0] / (length - 3 + 4))  # an image counts as one id
