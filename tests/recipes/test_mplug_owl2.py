"""mPLUG-Owl2's stages through the loop: what trains, at which rate, in which order, on one process and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plait.data.order import Grouped
from plait.errors import UsageError
from plait.models.auto import load
from plait.recipes import mplug_owl2 as module
from plait.recipes import mplug_owl2 as rows
from plait.training.logging import read_metrics
from plait.training.run import run_recipe
from plait.training.stages import Options, freeze
from plait.types import Sample

from ..models.mplug_owl2.tiny import byte_tokenizer, model_and_processor, official_directory
from . import owl_world


@pytest.fixture(scope="module")
def init(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("owl2")
    torch.manual_seed(0)
    model, processor = model_and_processor()
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Two texts, then four pictures; the last two have several answers to draw from."""
    place = tmp_path_factory.mktemp("data")
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    asked = [{"role": "user", "content": "how are you?"}, {"role": "assistant", "content": "very well, thank you"}]
    shown = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "noise"}]
    lines = [
        {"id": "talk", "messages": asked},
        {"id": "sum", "question": "one and one?", "answers": ["two"]},
        {"id": "messages", "image": "0.png", "messages": shown},
        {"id": "caption", "image": "1.png", "text": "a lot of noise"},
        {"id": "question", "image": "2.png", "question": "is it?", "answers": ["yes", "no"]},
        {"id": "captions", "image": "3.png", "captions": ["noise", "more noise"]},
    ]
    (place / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(place)


def state(place: Path | str) -> dict[str, torch.Tensor]:
    return load(place)[0].state_dict()


def trained(recipe) -> list[str]:
    return freeze(recipe.model_builder(), recipe.stages[0].trainable)[0]


def test_pretraining_moves_tower_abstractor_and_visual_ways_alone(init, data, tmp_path):
    def build():
        return module.pretrain(init, data, image_size=None, steps=2, batch_size=2, lr=1e-2)

    run_recipe(build, tmp_path, device="cpu", options=Options(progress=False))
    before, after = state(init), state(tmp_path / "model")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert all(name.startswith(("model.vision.", "model.abstractor.")) or ".visual." in name for name in moved)
    assert any(".vision." in name for name in moved) and any(".k_proj.visual." in name for name in moved)
    frozen = trained(module.pretrain(init, data, image_size=None, steps=1, batch_size=2, train_vision=False))
    assert not any(".vision." in name for name in frozen) and any(".abstractor." in name for name in frozen)


def test_captions_are_learned_whole_and_nothing_else(init, data):
    model, processor = load(init)
    batch = processor.captioned(["noise", "no"], [Image.new("RGB", (9, 7))] * 2)
    learned = [[i for i in row if i != -100] for row in batch["labels"].tolist()]
    end = processor.tokenizer.eos_token_id
    assert [processor.tokenizer.decode(row) for row in learned] == ["noise<|end|>", "no<|end|>"] and learned[1][
        -1
    ] == end
    model(**batch).loss.backward()
    with pytest.raises(ValueError, match="expected an image per caption, got 1 for 2 captions"):
        processor.captioned(["a", "b"], Image.new("RGB", (9, 7)))


def test_joint_tuning_trains_everything_or_what_lora_means(init, data):
    everything = module.joint(init, data, steps=1, batch_size=2)
    assert len(trained(everything)) == len(list(everything.model_builder().parameters()))
    assert not any(n.startswith("model.vision.") for n in trained(module.joint(init, data, train_vision=False)))
    for train_vision in (False, True):
        names = trained(module.joint(init, data, lora=2, train_vision=train_vision))
        whole = {n for n in names if "modules_to_save" in n}
        assert all(".lora_" in n for n in set(names) - whole)
        parts = {n.split(".")[1] for n in whole}
        assert parts == ({"abstractor", "vision"} if train_vision else {"abstractor"})
        assert not any("lm_head" in n or "token_embedding" in n for n in names)


def test_a_lora_is_merged_into_what_is_saved(init, data, tmp_path):
    run_recipe(
        lambda: module.joint(init, data, lora=2, steps=2, batch_size=4, lr=1e-1, warmup=0), tmp_path, device="cpu",
        options=Options(progress=False),
    )  # fmt: skip
    before, after = state(init), state(tmp_path / "model")
    assert set(before) == set(after)
    assert not torch.equal(before[q := "model.decoder.layers.0.attn.q_proj.weight"], after[q])
    assert torch.equal(before[norm := "model.decoder.norm.weight"], after[norm])


def test_the_example_trains_under_trainer_what_lora_means(init, data, tmp_path):
    script = Path(__file__).parents[2] / "examples" / "owl2_trainer.py"
    call = [sys.executable, str(script), init, data, str(tmp_path / "adapter"), "--steps", "2", "--rank", "2"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(call, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the adapter is in" in done.stdout
    before, after = state(init), load(init, adapter=tmp_path / "adapter")[0].state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert all(name.startswith("model.abstractor.") or any(part in name for part in linear) for name in moved)
    assert any("abstractor" in name for name in moved) and any("decoder" in name for name in moved)


def test_rates_fall_layer_by_layer_and_the_abstractor_has_its_own(init, data):
    for lora in (0, 2):
        recipe = module.joint(init, data, lora=lora, steps=1, batch_size=2, lr=1e-4, abstractor_lr=2e-5)
        model, stage = recipe.model_builder(), recipe.stages[0]
        freeze(model, stage.trainable)
        scales = {n: g["lr_scale"] for g in stage.optimizer(model, stage).param_groups for n in g["names"]}

        def of(part, scales=scales):
            (found,) = {round(scale, 6) for name, scale in scales.items() if part in name}
            return found

        layers = [f"model.vision.{'modules_to_save.default.' * bool(lora)}layers.{i}." for i in range(2)]
        assert [of(layer) for layer in layers] == [0.81, 0.9]
        assert of("patch_embed") == pytest.approx(0.729) and of(".abstractor.") == 0.2 and of(".decoder.") == 1


def test_settings_are_the_published_ones(init, data):
    first, second = (build(init, data).stages[0] for build in (module.pretrain, module.joint))
    for stage in (first, second):
        assert (stage.betas, stage.eps, stage.weight_decay, stage.clip) == ((0.9, 0.98), 1e-6, 0.05, 1.0)
        assert stage.layer_decay == 0.9
    assert (first.peak_lr, first.floor, first.warmup) == (1e-4, 1e-6, 1000)
    assert (first.batch_size, first.steps) == (8192, 42_500)
    assert (second.peak_lr, second.floor, second.warmup) == (2e-5, 1e-7, 250)
    assert (second.batch_size, second.epochs) == (256, 1)
    assert module.joint(init, data, lora=2).stages[0].peak_lr == 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 0.0}, r"expected layer_decay above 0 and at most 1, got 0\.0; 1 gives every layer one rate"),
        ({"layer_decay": 1.5}, "expected layer_decay above 0"),
        ({"layer_decay": float("nan")}, "expected layer_decay above 0"),
        ({"frames": 0}, "expected frames of at least 1, got 0; the default is 8"),
    ],
)
def test_settings_that_teach_nothing_are_refused(init, data, settings, message):
    builds = [module.joint] if "frames" in settings else [module.joint, module.pretrain]
    for build in builds:
        with pytest.raises(UsageError, match=message):
            build(init, data, steps=1, batch_size=2, **settings)


def test_steps_hold_one_modality_of_similar_length():
    samples = [Sample(str(i), image="x" if i % 2 else None, question="w " * (i + 1), answers=["a"]) for i in range(40)]
    source = Grouped(np.array([rows.length_of(sample) for sample in samples]), micro=2)
    steps = [source.rows(3, step, 4) for step in range(10)]
    assert sorted(row for step in steps for row in step) == list(range(40))
    assert all(len({row % 2 for row in step}) == 1 for step in steps[:8])  # the rest of both comes last, as published
    assert [source.rows(3, step, 4) for step in reversed(range(10))] == steps[::-1]  # a function, whatever was asked
    assert [source.rows(3, 10 + step, 4) for step in range(10)] != steps  # another epoch, another order
    with pytest.raises(ValueError, match="expected at least 41 samples for one batch, got 40"):
        source.rows(0, 0, 41)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_rank_without_pictures_goes_on_and_two_equal_one(init, data, tmp_path, lora):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [owl_world.__file__, "mplug_owl2", init, data, str(tmp_path / "two"), str(lora)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *script], env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    owl_world.run("mplug_owl2", init, data, tmp_path / "one", lora)
    two, one = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert len(two) == 3 and one[0]["loss"] != pytest.approx(one[2]["loss"])
    for name in ("loss", "gradient_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4)


def test_a_resized_start_takes_other_images_and_queries(init, data):
    recipe = module.joint(init, data, image_size=24, num_queries=5, steps=1, batch_size=2)
    model, source = recipe.model_builder(), recipe.stages[0].batches()
    batch = source.load([4, 5], np.random.default_rng(0))
    assert batch["pixel_values"].shape[-1] == 24 and (batch["input_ids"] == model.config.image_id).sum() == 2 * 6
    loss, _ = recipe.stages[0].objective(model, batch, 0, torch.Generator())
    assert torch.isfinite(loss)


def test_frames_of_a_clip_stand_where_its_placeholder_is(monkeypatch):
    frames, page = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)], Image.new("RGB", (4, 4), "white")
    monkeypatch.setattr("plait.data.conversation.load_frames", lambda clip, count: frames[:count])
    row = Sample("clip", video="x.mp4", messages=[{"role": "user", "content": "see <image> this"}])
    talk = rows.read_talk(3, row, np.random.default_rng(0))
    assert talk.turns[0]["value"] == "see <|image|><|image|><|image|> this" and list(talk.pictures) == frames
    both = Sample("both", image=page, video="x.mp4", question="<video> or <image>?", answers=["this"])
    talk = rows.read_talk(2, both, np.random.default_rng(0))
    assert talk.turns[0]["value"] == "<|image|><|image|> or <|image|>?"
    assert [p.getpixel((0, 0)) for p in talk.pictures] == [(0, 0, 0), (1, 0, 0), (255, 255, 255)]


def test_no_model_or_another_is_a_wrong_command(data, tmp_path):
    with pytest.raises(UsageError, match=r"expected init=DIR with an mPLUG-Owl2, got .*plait upcycle"):
        module.joint(str(tmp_path), data)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match=r"expected init=DIR with an mPLUG-Owl2, got .* with 'llama'"):
        module.joint(str(tmp_path), data)


@pytest.mark.parametrize("case", ["owl2_mm_prefill_decode", "owl21_mm_prefill_decode", "owl21_mm_multiway"])
def test_official_directories_train_without_converting(data, tmp_path, case):
    place = official_directory(tmp_path / "official", case)
    byte_tokenizer().save_pretrained(place)
    before = load(place)[0].state_dict()
    recipe = module.joint(str(place), data, lora=2, steps=1, batch_size=2)
    names = trained(recipe)
    assert any(".lora_A." in name for name in names)
    assert all(".lora_" in name or ".abstractor." in name or ".vision." in name for name in names)
    after = recipe.model_builder().state_dict()
    assert torch.equal(before["model.decoder.norm.weight"], after["model.decoder.norm.weight"])


def test_a_batch_whose_answers_were_cut_off_is_an_error(init, data, tmp_path):
    with pytest.raises(ValueError, match="an answer within 4 positions, got none in conversation 0; raise max_len"):
        run_recipe(lambda: module.joint(init, data, steps=1, batch_size=2, max_length=4), tmp_path, device="cpu")
