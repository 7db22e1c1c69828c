"""mPLUG-Owl's stages on tiny models through the loop: what trains, what video and text rows do, what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config

from plait.cli import main
from plait.errors import UsageError
from plait.models.auto import load
from plait.models.mplug_owl.weights import around
from plait.recipes.finetune import finetune
from plait.recipes.mplug_owl import TOWERS, answer_loss, read, stage1, stage2
from plait.training.logging import read_metrics
from plait.training.run import run_recipe
from plait.types import Sample

from ..models.mplug_owl2.tiny import byte_tokenizer
from . import owl_world
from .tiny_world import SAVED


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    place = tmp_path_factory.mktemp("llm")
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    rows = []
    for i, color in enumerate(("red", "green", "navy", "white")):
        Image.new("RGB", (20 + i, 30), color).save(place / f"{color}.png")
        rows.append({"id": color, "image": f"{color}.png", "text": color})
    write_video(place / "clip.mp4", [Image.new("RGB", (32, 32), c) for c in ("red", "navy", "red", "white")])
    rows.append({"id": "clip", "video": "clip.mp4", "question": "what happens?", "answers": ["it blinks"]})
    talk = [{"role": "user", "content": "hm?"}, {"role": "assistant", "content": "ok"}]
    rows.append({"id": "talk", "messages": talk})
    (place / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place / "manifest.jsonl"


def write_video(path, frames) -> None:
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_two_stages_train_what_they_should_from_images_video_and_text(tmp_path, llm, data) -> None:
    made: dict[str, dict[str, torch.Tensor]] = {}

    def first():
        recipe = stage1(str(data), llm=str(llm), tower="tiny", temporal=True, steps=2, batch_size=3, warmup=0, lr=1e-2)
        made["before"] = parameters(recipe.model_builder())
        return recipe

    run_recipe(first, tmp_path / "one", options=None)
    after = parameters(load(tmp_path / "one" / "model")[0])
    changed = {name for name, value in after.items() if not torch.equal(value, made["before"][name])}
    assert changed and all(name.startswith(("vision.", "abstractor.")) for name in changed)
    assert {"abstractor.queries", "abstractor.proj.weight", "vision.cls_embedding"} <= changed

    def second():
        return stage2(str(tmp_path / "one" / "model"), str(data), lora=2, steps=2, batch_size=2, warmup=0, lr=1e-2)

    run_recipe(second, tmp_path / "two", options=None)
    final, processor = load(tmp_path / "two" / "model")
    tuned = {name for name, value in parameters(final).items() if not torch.equal(value, after[name])}
    assert tuned and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in tuned)
    assert processor.temporal and processor.tokens_per_media == 5


def test_released_rows_of_instructions_convert_and_train(tmp_path, llm, data) -> None:
    """JSON lines with `image`, `text` and `task_type`: text alone, one image, two images."""
    text = "A talk.\n{}Human: what?\nAI: paint\nHuman: why?\nAI: so"
    names = ["red.png", "navy.png", "white.png"]
    rows = [
        {"image": names[:n], "text": text.format("Human: <image>\n" * n), "task_type": "llava_sft"} for n in (1, 2, 3)
    ]
    rows.append({"text": text.format(""), "task_type": "sharegpt_chat_sft"})
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = ["--media", str(data.parent), "--test-share", "0"]
    assert main(["data", "from-folder", str(tmp_path / "sft.jsonl"), str(tmp_path / "rows"), *folder]) == 0
    first = train(
        "mplug_owl.stage1", tmp_path / "one", [f"llm={llm}", "tower=tiny", "steps=1", "batch_size=4", f"data={data}"]
    )
    assert main(first) == 0
    rows = [f"init={tmp_path / 'one' / 'model'}", f"data={tmp_path / 'rows'}", "steps=2", "batch_size=4"]
    assert main(train("mplug_owl.stage2", tmp_path / "two", rows)) == 0
    losses = [row["loss"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 2 and np.isfinite(losses).all()


_SIZES = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**_SIZES),
    "mistral": MistralConfig(**_SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**_SIZES),
    "bloom": BloomConfig(
        vocab_size=260, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=0
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_language_model_learns_to_see_in_both_stages(tmp_path, data, family) -> None:
    torch.manual_seed(0)
    source = AutoModelForCausalLM.from_config(FAMILIES[family])
    source.save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    sets = [f"llm={tmp_path / 'llm'}", f"data={data}", "tower=tiny", "temporal=true", "steps=2", "batch_size=3"]
    assert main(train("mplug_owl.stage1", tmp_path / "one", sets)) == 0
    sets = [f"init={tmp_path / 'one' / 'model'}", f"data={data}", "lora=2", "steps=2", "batch_size=2", "lr=0.01"]
    assert main(train("mplug_owl.stage2", tmp_path / "two", sets)) == 0
    first, final = (load(tmp_path / run / "model")[0] for run in ("one", "two"))
    ids = torch.tensor([[0, 50, 60, 70]])
    assert torch.allclose(first(ids).logits, source.eval()(ids).logits, atol=1e-5)
    assert not torch.equal(final(ids).logits, first(ids).logits)


def train(recipe, out, settings) -> list[str]:
    return ["train", recipe, "--out", str(out), *(part for one in settings for part in ("--set", one))]


@pytest.mark.parametrize(
    ("trains", "moves", "stays"),
    [
        ("all", {"vision.patch_embedding", "abstractor.queries", "abstractor.proj"}, {"language_model.lm_head"}),
        ("abstractor", {"abstractor.queries", "abstractor.proj"}, {"vision.patch_embedding", "language_model.lm_head"}),
        ("projection", {"abstractor.proj", "abstractor.end"}, {"abstractor.queries", "vision.patch_embedding"}),
    ],
)
def test_one_switch_says_what_stage_one_trains(tmp_path, llm, data, trains, moves, stays) -> None:
    made = {}

    def first():
        recipe = stage1(str(data), llm=str(llm), tower="tiny", trains=trains, steps=1, batch_size=3, warmup=0, lr=1e-2)
        made["before"] = parameters(recipe.model_builder())
        return recipe

    run_recipe(first, tmp_path / "run", options=None)
    after = parameters(load(tmp_path / "run" / "model")[0])
    changed = {name for name, value in after.items() if not torch.equal(value, made["before"][name])}
    assert all(any(name.startswith(part) for name in changed) for part in moves)
    assert not any(name.startswith(part) for name in changed for part in stays)


def test_the_loss_is_that_of_the_model(llm, data) -> None:
    recipe = stage1(str(data), llm=str(llm), tower="tiny", steps=1, batch_size=4)
    model, source = recipe.model_builder().eval(), recipe.stages[0].batches()
    batch = source.load([0, 1, 3], np.random.default_rng(0))
    loss, metrics = answer_loss(model, batch, 0, torch.Generator())
    assert torch.allclose(loss, model(**batch).loss, atol=1e-5) and 0 <= metrics["right"] <= 1


def test_turns_that_do_not_alternate_name_their_row(llm) -> None:
    processor = around(llm, vision=TOWERS["tiny"][0], abstractor=TOWERS["tiny"][1])[1]
    with pytest.raises(ValueError, match="row d: expected messages from human and gpt in turn"):
        read(processor, Sample("d", messages=[{"role": "assistant", "content": "red"}]), np.random.default_rng(0))


@pytest.mark.parametrize("lora", [0, 2])
def test_processes_and_micro_batches_that_learn_unequally_equal_one(tmp_path, lora) -> None:
    """The mean is over the words of the whole step: short answers of one process do not count for more."""
    colour = "navy blue with a very long name that goes on and on"
    rows = [{"id": f"t{i}", "question": "what?", "answers": ["no" if i < 2 else colour]} for i in range(4)]
    data, owl = tmp_path / "rows.jsonl", str(SAVED / "mplug_owl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    owl_world.run("mplug_owl", owl, str(data), tmp_path / "one", lora)
    owl_world.run("mplug_owl", owl, str(data), tmp_path / "micro", lora, accumulation=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [owl_world.__file__, "mplug_owl", owl, str(data), str(tmp_path / "two"), str(lora)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *script], env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two, micro = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two", "micro"))
    assert len(one) == 3 and one[0]["loss"] != pytest.approx(one[2]["loss"])
    for other in (two, micro):
        for name in ("loss", "gradient_norm"):
            assert [row[name] for row in other] == pytest.approx([row[name] for row in one], rel=1e-4)


def test_wrong_settings_give_one_clear_line(tmp_path, llm, data) -> None:
    with pytest.raises(UsageError, match=r"expected llm=DIR .* or init=DIR"):
        stage1(str(data))
    with pytest.raises(UsageError, match="expected trains among all, abstractor, projection"):
        stage1(str(data), llm=str(llm), trains="everything")
    with pytest.raises(UsageError, match="expected a tower among"):
        stage1(str(data), llm=str(llm), tower="huge")
    with pytest.raises(UsageError, match="expected init=DIR with an mPLUG-Owl"):
        stage2(str(data.parent), str(data))
    with pytest.raises(UsageError, match="expected init=DIR with an mPLUG-Owl"):
        stage2(str(llm), str(data))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"expected a causal language model of transformers in .* got vit"):
        stage1(str(data), llm=str(tmp_path), tower="tiny")


@pytest.mark.parametrize("lora", [0, 2])
def test_finetuning_on_own_rows_scores_before_and_after(tmp_path, llm, lora) -> None:
    colors = ("red", "green", "navy", "white", "red", "green")
    lines = []
    for i, color in enumerate(colors):
        Image.new("RGB", (20, 20), color).save(tmp_path / f"{i}.png")
        row = {"id": str(i), "image": f"{i}.png", "question": "which color?", "answers": [color]}
        lines.append(json.dumps({**row, "split": "test" if i > 3 else "train"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")

    def first():
        return stage1(str(tmp_path / "pairs.jsonl"), llm=str(llm), tower="tiny", steps=1, batch_size=2, warmup=0)

    pairs = [{"id": str(i), "image": f"{i}.png", "text": color} for i, color in enumerate(colors[:4])]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    run_recipe(first, tmp_path / "one", options=None)

    def second():
        owl = str(tmp_path / "one" / "model")
        return finetune(owl, str(tmp_path / "rows.jsonl"), "vqa", lora=lora, steps=2, batch_size=2)

    (tmp_path / "two").mkdir()
    run_recipe(second, tmp_path / "two", options=None)
    before, after = (load(tmp_path / run / "model")[0].state_dict() for run in ("one", "two"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and (lora == 0 or all("lora" not in name for name in after))
