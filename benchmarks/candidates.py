"""What candidates share, computed once: 64 labels of a picture with either Owl, matching of 16 x 16 pairs with mPLUG-2.

Baselines are in official/candidates.py: every label behind its own prompt, every pair with its own keys. Random
weights, fp32, sdpa, one thread; a language model of dim 512 with 2 layers and 2,048 words behind a picture of 64
queries; fusion of two layers, of dim 512 over pictures of 197 positions, of dim 256 over clips of 16 x 196. Losses and
scores are compared first; encoding media is left out on both sides.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from measure import compare, interleaved, milliseconds, peak_memory, write
from official import candidates as one_by_one
from PIL import Image

from plait.generation.candidates import answer_losses
from plait.models.mplug2 import alignment
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug_owl import config as owl_config
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.models.mplug_owl.tasks import MPlugOwlSkills
from plait.models.mplug_owl2 import config as owl2_config
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.models.mplug_owl2.tasks import MPlugOwl2Skills

DIM, LAYERS, HEADS, HIDDEN, VOCAB = 512, 2, 8, 1376, 2048
LABELS, ROUNDS = 64, 2


def tokenizer() -> Any:
    """Bytes as tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<s>")


def owls() -> dict[str, Any]:
    """Skills of both Owls: one tower, one abstractor, one size of language model."""
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    tower = {"dim": 128, "num_heads": 4, "num_layers": 2, "mlp_dim": 256, "image_size": 56, "patch_size": 14}
    reader = {"num_queries": 64, "num_heads": 4, "num_layers": 1, "mlp_dim": 256}
    text = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, **ids,
    }  # fmt: skip
    owl = owl_config.MPlugOwlConfig(
        text_config=text, vision=owl_config.VisionConfig(**tower), abstractor=owl_config.AbstractorConfig(**reader)
    )
    owl2 = owl2_config.MPlugOwl2Config(
        vocab_size=VOCAB, dim=DIM, num_layers=LAYERS, num_heads=HEADS, mlp_dim=HIDDEN, **ids,
        vision=owl2_config.VisionConfig(**tower), abstractor=owl2_config.AbstractorConfig(**reader, grid_size=4),
    )  # fmt: skip
    words = tokenizer()
    return {
        "mplug_owl": MPlugOwlSkills(
            MPlugOwlForConditionalGeneration(owl).eval(), MPlugOwlProcessor.from_config(owl, words)
        ),
        "mplug_owl2": MPlugOwl2Skills(
            MPlugOwl2ForConditionalGeneration(owl2).eval(), MPlugOwl2Processor.from_config(owl2, words)
        ),
    }


def labels(skills: Any, count: int) -> Any:
    """Rows of `count` labels behind one picture."""
    picture = Image.effect_mandelbrot((60, 60), (-2, -1, 1, 1), 20).convert("RGB")
    rows = skills.answered("image", picture, skills.asked("image", picture, "What is in this image?"), [
        f"label {i}" for i in range(count)
    ])  # fmt: skip
    if hasattr(skills.model, "encode"):  # mPLUG-Owl: the picture is encoded outside, so that both arms can share it
        rows["image_features"] = skills.model.encode(rows.pop("pixel_values"))
    return rows


def ranking(skills: Any) -> dict[str, Any]:
    """Ratio, times and memory of ranking labels."""
    rows = labels(skills, LABELS)
    ours, theirs = answer_losses(skills.model, rows), one_by_one.answer_losses(skills, rows)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-6)
    arms = {
        "shared": lambda: answer_losses(skills.model, rows),
        "one_by_one": lambda: one_by_one.answer_losses(skills, rows),
    }
    found = interleaved(arms, ROUNDS, warmup=0)  # the comparison has run both
    thousand = labels(skills, 1000)
    return {
        "one_by_one / shared": compare(found, "one_by_one", "shared"),
        "milliseconds": milliseconds(found),
        "peak_mib": {name: peak_memory(arm) for name, arm in arms.items()},
        "peak_mib_of_1000_labels": peak_memory(lambda: answer_losses(skills.model, thousand)),
        "largest_difference": float((ours - theirs).abs().max()),
    }


def matching(dim: int, positions: int, count: int, rounds: int) -> dict[str, Any]:
    """Ratio and times of matching `count` pictures, or clips, of so many positions with `count` texts, both ways."""
    model = MPlug2ForRetrieval(MPlug2Config.preset("tiny", dim=dim, num_heads=dim // 64, mlp_dim=4 * dim)).eval()
    vision, text = torch.randn(count, positions, dim), torch.randn(count, 24, dim)
    mask = torch.ones(count, 24, dtype=torch.bool)
    alignment.Pairs.encode = lambda *_: (vision, text, mask)  # ty: ignore[invalid-assignment]
    arms = {
        "shared": lambda: model.score(None, None, torch.zeros(1), k=count)[1:],
        "one_by_one": lambda: one_by_one.match_scores(model, vision, text, mask, count),
    }
    torch.testing.assert_close(arms["shared"](), arms["one_by_one"](), atol=2e-5, rtol=1e-4)
    found = interleaved(arms, rounds, warmup=0)
    return {
        "pairs": f"{count} x {count}", "one_by_one / shared": compare(found, "one_by_one", "shared"),
        "milliseconds": milliseconds(found),
    }  # fmt: skip


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = sys.argv[1:] or ["ranking", "matching"]
    if "ranking" in parts:
        result: dict[str, Any] = {"labels": LABELS, "rounds": ROUNDS}
        for name, skills in owls().items():
            result[name] = ranking(skills)
            print(name, result[name], flush=True)
        write("candidates_ranking", result)
    if "matching" in parts:
        clips, pictures = matching(256, 1 + 16 * 196, 8, ROUNDS), matching(512, 197, 16, ROUNDS)
        write("candidates_matching", {"rounds": ROUNDS, "pictures": pictures, "clips": clips})


if __name__ == "__main__":
    main()
