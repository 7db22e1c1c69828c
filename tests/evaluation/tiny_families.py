"""Tiny random models of our four families in model directories, as `plait eval` opens them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tiny_peers import IDS, VOCABULARY, letters_tokenizer, redraw

from plait.models import auto

VIT = {"dim": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 16}
ONE_PEACE = {
    "dim": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 16, "text_bucket_size": 8, "image_bucket_size": 4,
    "image_rel_bucket_size": 2, "audio_bucket_size": 16, "audio_conv_spec": ((8, 10, 5), (8, 3, 2), (8, 2, 2)),
    "audio_position_groups": 4, "layer_scale": 0.3, "sampling_rate": 8000, "max_audio_seconds": 0.5,
    "min_audio_seconds": 0.1,
}  # fmt: skip


def family(name: str) -> Any:
    return import_module(auto.FAMILIES[name])


def saved(model: Any, processor: Any, place: Path) -> None:
    """A directory of a model whose inputs matter."""
    redraw(model)
    model.save_pretrained(place)
    processor.save_pretrained(place)


def owl(place: Path) -> None:
    ours = family("mplug_owl")
    text = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, **IDS,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    }  # fmt: skip
    abstractor = {"num_queries": 3, "num_heads": 2, "num_layers": 1, "mlp_dim": 16}
    config = ours.CONFIG(
        text_config=text, vision={**VIT, "image_size": 16, "patch_size": 4}, abstractor=abstractor, temporal=True
    )
    processor = ours.PROCESSOR.from_config(config, letters_tokenizer(), num_frames=2)
    saved(ours.GENERATIVE_MODEL(config), processor, place)


def owl2(place: Path) -> None:
    ours = family("mplug_owl2")
    config = ours.CONFIG(
        **VIT,
        **IDS,
        vocab_size=VOCABULARY,
        num_kv_heads=2,
        vision={**VIT, "image_size": 16, "patch_size": 4},
        abstractor={"num_queries": 3, "num_heads": 2, "num_layers": 1, "mlp_dim": 16, "grid_size": 4},
    )
    saved(ours.GENERATIVE_MODEL(config), ours.PROCESSOR.from_config(config, letters_tokenizer()), place)


def mplug2(module: str, name: str, **changes: Any) -> Callable[[Path], None]:
    """A builder of a class of mPLUG-2; changes of its preset tiny."""

    def build(place: Path) -> None:
        ours = family("mplug2")
        torch.manual_seed(0)
        config = ours.CONFIG.preset("tiny", vocab_size=30522, **changes)
        model = getattr(import_module(f"plait.models.mplug2.{module}"), name)(config)
        saved(model, ours.PROCESSOR.from_config(config), place)

    return build


def one_peace(name: str | None = None, **changes: Any) -> Callable[[Path], None]:
    """A builder of ONE-PEACE's encoder, or of a class of it."""

    def build(place: Path) -> None:
        ours = family("one_peace")
        torch.manual_seed(0)
        config = ours.CONFIG(**{**ONE_PEACE, **changes})
        model = (ours.HEADS["AutoModelForImageClassification"] if name else ours.BASE_MODEL)(config)
        saved(model, ours.PROCESSOR.from_config(config), place)

    return build


def labels(*words: str) -> dict[str, Any]:
    """The names of a head's classes as a configuration keeps them."""
    return {"id2label": dict(enumerate(words)), "label2id": {word: i for i, word in enumerate(words)}}


FAMILIES: dict[str, Callable[[Path], None]] = {
    "mplug_owl": owl,
    "mplug_owl2": owl2,
    "mplug2": mplug2("tasks", "MPlug2ForConditionalGeneration"),
    "mplug2_ground": mplug2("tasks", "MPlug2ForGrounding"),
    "mplug2_retrieval": mplug2("alignment", "MPlug2ForRetrieval"),
    "mplug2_pictures": mplug2("tasks", "MPlug2ForImageClassification", **labels(*"abcdef")),
    "mplug2_videos": mplug2("tasks", "MPlug2ForVideoClassification", **labels(*"abcdef")),
    "mplug2_texts1": mplug2("tasks", "MPlug2ForSequenceClassification", num_labels=1),
    "mplug2_texts2": mplug2("tasks", "MPlug2ForSequenceClassification", num_labels=2),
    "mplug2_texts3": mplug2("tasks", "MPlug2ForSequenceClassification", num_labels=3),
    "mplug2_nlvr2": mplug2("tasks", "MPlug2ForSequenceClassification", task="compare", num_images=2, num_labels=2),
    "mplug2_snli_ve": mplug2("tasks", "MPlug2ForSequenceClassification", task="entail", num_labels=3),
    "one_peace": one_peace(),
    "one_peace_vqav2": one_peace(
        "vqa", num_classes=3, use_pooler=True, pool_modality="text", **labels("yes", "2", "no")
    ),
    "one_peace_nlvr2": one_peace(
        "nlvr2", num_classes=2, use_two_images=True, pool_modality="text", type_embeddings=("text", "image")
    ),
    "one_peace_ground": one_peace("ground", num_classes=4, pool_modality="image"),
    "one_peace_avqa": one_peace("aqa", num_classes=1, pool_modality="text"),
    "one_peace_sounds": one_peace("sounds", num_classes=6, pool_modality="audio"),
    "one_peace_tags": one_peace("tags", num_classes=200, pool_modality="audio"),
}
