"""Numbers that the papers and releases state, and what configurations and recipes have where nothing is set.

Each block names the section of the specification from which its numbers were copied by hand; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.models.mplug2 import MPlug2Config
from plait.models.mplug_owl import MPlugOwlConfig
from plait.models.mplug_owl2 import MPlugOwl2Config
from plait.models.one_peace import OnePeaceConfig, OnePeaceProcessor
from plait.recipes import find_recipe
from plait.training.run import call_recipe, parse_settings
from plait.training.stages import Stage

from .tiny_world import SAVED

SIZES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ONE-PEACE 4B (1)": (
        lambda: OnePeaceConfig.preset("4b"),
        {
            "dim": 1536, "mlp_dim": 6144, "num_layers": 40, "num_heads": 24, "inner_norms": [True, True],
            "layer_scale": 1e-6, "vocab_size": 50264, "max_text_positions": 514, "text_bucket_size": 256,
            "image_bucket_size": 16, "image_rel_bucket_size": 16, "image_stem": "hmlp", "audio_bucket_size": 512,
            "audio_position_depth": 5, "audio_position_width": 95, "audio_position_groups": 16,
            "audio_conv_bias": False, "sampling_rate": 16000, "max_audio_seconds": 15.0, "min_audio_seconds": 1.0,
            "gradient_scale": 1.0, "init_std": 0.02, "embedding_norms": [], "type_embeddings": [],
            "head_scale_ratio": 2, "image_size": 256, "decoder.dim": 768, "decoder.mlp_dim": 2048,
            "decoder.num_layers": 2, "decoder.num_heads": 12, "decoder.max_audio_positions": 1026,
        },
    ),
    "mPLUG-2 large (2)": (
        lambda: MPlug2Config.preset("large"),
        {
            "dim": 1024, "num_heads": 16, "mlp_dim": 4096, "num_text_layers": 22, "num_universal_layers": 2,
            "stored_fusion_layers": 24, "num_fusion_layers": 6, "fusion_stride": 1000, "num_decoder_layers": 12,
            "max_positions": 512, "vocab_size": 30522, "num_types": 2, "eps": 1e-12, "dropout": 0.1,
            "projection_dim": 256, "num_frames": 16, "num_latents": 50, "momentum": 0.995, "temperature_init": 0.07,
            "grounding_bins": 336, "vision.dim": 1024, "vision.num_layers": 24, "vision.num_heads": 16,
            "vision.patch_size": 14, "vision.image_size": 224,
        },
    ),
    "mPLUG-2 base (2)": (
        lambda: MPlug2Config.preset("base"),
        {
            "dim": 768, "num_heads": 12, "mlp_dim": 3072, "num_text_layers": 10, "num_universal_layers": 2,
            "num_fusion_layers": 3, "num_decoder_layers": 12, "vision.dim": 768, "vision.num_layers": 12,
            "vision.patch_size": 16,
        },
    ),
    "mPLUG-Owl LLaMA-7B (1)": (
        lambda: MPlugOwlConfig.preset("owl-llama-7b"),
        {
            "text_config.vocab_size": 32000, "text_config.hidden_size": 4096, "text_config.intermediate_size": 11008,
            "text_config.num_hidden_layers": 32, "text_config.rms_norm_eps": 1e-6, "vision.dim": 1024,
            "vision.num_layers": 24, "vision.num_heads": 16, "vision.mlp_dim": 4096, "vision.image_size": 224,
            "vision.patch_size": 14, "vision.eps": 1e-6, "abstractor.num_queries": 64, "abstractor.num_layers": 6,
            "abstractor.mlp_dim": 2816, "abstractor.dropout": 0.1, "init_std": 0.02, "temporal": False,
        },
    ),
    "mPLUG-Owl2 7B (2.1)": (
        lambda: MPlugOwl2Config.preset("owl2-7b"),
        {
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vision.dim": 1024, "vision.image_size": 448, "vision.patch_size": 14,
            "vision.num_layers": 24, "vision.eps": 1e-6, "abstractor.num_queries": 64, "abstractor.num_layers": 6,
            "abstractor.mlp_dim": 2816, "abstractor.grid_size": 32,
        },
    ),
}  # fmt: skip

STAGES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "ONE-PEACE stage 1 (6.4)": (
        "one_peace.stage1",
        ["data=D", "preset=4b"],
        {
            "batch_size": 32_768, "steps": 200_000, "peak_lr": 5e-4, "floor": 1e-6, "warmup": 3000,
            "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.05, "clip": 3.0, "layer_decay": 1.0,
            "objective.denoise_every": 1, "objective.denoising": "contrast",
        },
    ),
    "ONE-PEACE stage 2 (6.4)": (
        "one_peace.stage2",
        ["init=P", "data=D"],
        {
            "batch_size": 3072, "epochs": 10, "peak_lr": 2e-4, "floor": 1e-6, "warmup": 0.1, "betas": (0.9, 0.98),
            "eps": 1e-8, "weight_decay": 0.05, "clip": 3.0, "objective.denoise_every": 1,
        },
    ),
    "mPLUG base pretraining (10.4)": (
        "mplug2.pretraining",
        ["data=D/media.jsonl"],
        {
            "batch_size": 256, "epochs": 30, "peak_lr": 1e-4, "vision_lr": 1e-5, "floor": 1e-6, "weight_decay": 0.02,
            "betas": (0.9, 0.999), "objective.alpha": 0.4, "objective.probability": 0.15,
        },
    ),
    "mPLUG large pretraining (10.4)": (
        "mplug2.pretraining",
        ["data=D/media.jsonl", "preset=large"],
        {"batch_size": 128, "epochs": 30, "peak_lr": 5e-5, "vision_lr": 5e-6, "floor": 2e-6},
    ),
    "mPLUG-2 captioning (2, 12)": (
        "mplug2.captioning",
        ["init=M/mplug2", "data=D/videos.jsonl"],
        {
            "batch_size": 64, "epochs": 10, "peak_lr": 2e-5, "vision_lr": 2e-6, "floor": 1e-6, "warmup": 200,
            "weight_decay": 0.02, "clip": 0.0,
        },
    ),
    "mPLUG-2 answering (2, 9)": (
        "mplug2.answering",
        ["init=M/mplug2", "data=D/images.jsonl"],
        {"batch_size": 32, "epochs": 10, "peak_lr": 2e-5, "vision_lr": 2e-6, "objective.alpha": 0.4},
    ),
    "mPLUG self-critical (7.3)": (
        "mplug2.self_critical",
        ["init=M/mplug2", "data=D/images.jsonl"],
        {"peak_lr": 1e-6, "vision_lr": 1e-6, "objective.lengths": {"num_beams": 5, "min_length": 8, "max_length": 25}},
    ),
    "mPLUG-Owl stage 1 (9)": (
        "mplug_owl.stage1",
        ["llm=M/llm", "tower=tiny", "data=D/owl.jsonl"],
        {
            "batch_size": 4096, "steps": 50_000, "peak_lr": 1e-4, "warmup": 2000, "betas": (0.9, 0.98),
            "weight_decay": 0.1,
        },
    ),
    "mPLUG-Owl stage 2 with LoRA (9)": (
        "mplug_owl.stage2",
        ["init=S/mplug_owl", "data=D/talks.jsonl"],
        {
            "batch_size": 256, "epochs": 3, "peak_lr": 2e-5, "warmup": 50, "betas": (0.9, 0.999), "eps": 1e-8,
            "weight_decay": 1e-4, "clip": 1.0, "floor": 0.0,
        },
    ),
    "mPLUG-Owl stage 2, whole language model (9)": (
        "mplug_owl.stage2", ["init=S/mplug_owl", "lora=0", "data=D/talks.jsonl"], {"peak_lr": 1e-5, "warmup": 50}
    ),
    "mPLUG-Owl2 pretraining (10.2)": (
        "mplug_owl2.pretrain",
        ["init=S/mplug_owl2", "image_size=16", "data=D/images.jsonl"],
        {
            "batch_size": 8192, "steps": 42_500, "peak_lr": 1e-4, "floor": 1e-6, "warmup": 1000, "betas": (0.9, 0.98),
            "eps": 1e-6, "weight_decay": 0.05, "clip": 1.0, "layer_decay": 0.9,
        },
    ),
    "mPLUG-Owl2 joint (10.2)": (
        "mplug_owl2.joint",
        ["init=S/mplug_owl2", "data=D/talks.jsonl"],
        {"batch_size": 256, "epochs": 1, "peak_lr": 2e-5, "floor": 1e-7, "warmup": 250, "abstractor_lr": 2e-5},
    ),
    "mPLUG-Owl2 joint with LoRA (10.3)": (
        "mplug_owl2.joint",
        ["init=S/mplug_owl2", "lora=2", "data=D/talks.jsonl"],
        {"peak_lr": 1e-4, "abstractor_lr": 2e-5, "layer_decay": 0.9},
    ),
}  # fmt: skip


def value(held: Any, name: str) -> Any:
    """A dotted name of attributes, where a part of a configuration may be a mapping."""
    for part in name.split("."):
        held = held[part] if isinstance(held, dict) else getattr(held, part)
    return held


@pytest.fixture(scope="session")
def four_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that says that it is the published size; a plan of it needs no weights."""
    place, config = tmp_path_factory.mktemp("4b"), OnePeaceConfig.preset("4b")
    config.save_pretrained(place)
    OnePeaceProcessor.from_config(config, None).save_pretrained(place)
    return place


@pytest.fixture
def stage_of(world: tuple[Path, Path], four_billion: Path) -> Callable[[str], Stage]:
    """Name in `STAGES` -> the stage of its recipe, with nothing set but what it needs."""
    places = {"D": world[0], "M": world[1], "S": SAVED, "P": four_billion}

    def made(name: str) -> Stage:
        recipe, settings, _ = STAGES[name]
        given = []
        for setting in settings:
            key, _, text = setting.partition("=")
            first, slash, rest = text.partition("/")
            given.append(f"{key}={places[first]}{slash}{rest}" if first in places else setting)
        function = find_recipe(recipe)
        return call_recipe(function, parse_settings(function, given, 0)).stages[0]

    return made


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_the_presets(name: str) -> None:
    build, wanted = SIZES[name]
    config = build()
    assert {key: value(config, key) for key in wanted} == wanted


@pytest.mark.parametrize("name", STAGES)
def test_published_settings_are_the_defaults(name: str, stage_of: Callable[[str], Stage]) -> None:
    stage, wanted = stage_of(name), STAGES[name][2]
    beside = wanted.keys() & {"vision_lr", "abstractor_lr"}
    found = {key: value(stage, key) for key in wanted.keys() - beside}
    for key in beside:  # rates beside the peak are factors of the optimiser
        found[key] = pytest.approx(stage.optimizer.args[0] * stage.peak_lr)  # ty: ignore[unresolved-attribute]
    assert found == wanted


def test_the_published_network_drops_paths_and_small_ones_do_not(world: tuple[Path, Path]) -> None:
    from plait.recipes.one_peace import STAGE1, STAGE2, stage1

    assert (STAGE1["4b"].drop_path_rate, STAGE2["4b"].drop_path_rate) == (0.4, 0.4)
    data = str(world[0] / "images.jsonl")
    for settings, rate in ({}, 0.0), ({"drop_path_rate": 0.2}, 0.2):
        trunk: Any = stage1(data, **settings).model_builder().model.trunk
        assert trunk.layers[-1].drop_path_rate == pytest.approx(rate) and trunk.layers[0].drop_path_rate == 0


def test_layers_decay_where_asked(world: tuple[Path, Path]) -> None:
    from plait.recipes.one_peace import stage1
    from plait.training.optim import adamw

    recipe = stage1(str(world[0] / "images.jsonl"), layer_decay=0.5)
    groups = adamw(recipe.model_builder(), recipe.stages[0]).param_groups
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    # nano has four layers: adapters are five steps below the heads
    assert scales[_first(scales, "layers.3.")] == 0.5
    assert scales[_first(scales, "adapters.text.cls_embedding")] == 0.5**5


def _first(names: Any, part: str) -> str:
    return next(name for name in names if part in name)


def test_a_hundred_numbers_are_held() -> None:
    assert sum(len(wanted) for _, wanted in SIZES.values()) + sum(len(row[2]) for row in STAGES.values()) >= 100


def test_two_ways_to_say_how_many_rows_are_refused(world: tuple[Path, Path]) -> None:
    from plait.errors import UsageError
    from plait.recipes.mplug_owl import stage1

    data, models = world
    how: dict[str, Any] = {"data": str(data / "owl.jsonl"), "llm": str(models / "llm"), "tower": "tiny"}
    with pytest.raises(UsageError, match="expected no tokens=512 beside batch_size=2"):
        stage1(**how, batch_size=2, tokens=512)
    assert stage1(**how, tokens=512, max_length=128).stages[0].batch_size == 4
