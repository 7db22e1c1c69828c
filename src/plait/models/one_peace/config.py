"""Configuration of ONE-PEACE: one encoder for text, image and audio, and a light decoder for denoising.

`cfg` of an official checkpoint -> OnePeaceConfig.from_official -> model        preset name -> OnePeaceConfig.preset

A field of an official `cfg` that nobody knows is an error. Source: specification ONE-PEACE, sections 1 and 3.1.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from plait.modalities import in_order, is_registered
from plait.nn.adapters import ConvSpec
from plait.nn.contract import OpensAlone, checked
from plait.nn.detection import CascadeSizes
from plait.presets import Presets
from plait.routing import Ways

BUILT_IN = ("text", "image", "audio")
"""The modalities that the published model has."""

PUBLISHED_CONV_SPEC = ((512, 10, 5), *(((512, 3, 2),) * 4), *(((512, 2, 2),) * 2))


@checked
@dataclass
class DecoderConfig:
    """The denoising decoder: a smaller trunk without biases, its inputs full-length sequences with mask tokens.

    Args:
        dim, num_heads, num_layers, mlp_dim: of its trunk; heads are 64 wide as published.
        image_bucket_size: side of its stored grid of positions; resized where images have another
            grid.
        max_audio_positions: rows of its audio positions, CLS included; audio has a table here, no
            convolutions.
        layer_scale: initial LayerScale, None for none, as published.

    Source: the published cfg (specification ONE-PEACE, section 1).
    """

    dim: int = 768
    num_heads: int = 12
    num_layers: int = 2
    mlp_dim: int = 2048
    image_bucket_size: int = 16
    # 2 * 512 + 2, as many as rows of the relative table of audio (specification 2.3).
    max_audio_positions: int = 1026
    layer_scale: float | None = None


@checked
@dataclass
class DetectionConfig(CascadeSizes):
    """The windowed backbone of the detector, and its heads (fields of `CascadeSizes`); defaults are published.

    Args:
        window: side of a window in patches.
        windowed: layers that attend inside windows, None for all but every fourth.
        axis_positions: whether layers have positions per axis too.
        table_width: side of the grid that the shared relative table was trained for.

    Source: specification ONE-PEACE, section 8.4.
    """

    window: int = 16
    windowed: Sequence[int] | None = None
    axis_positions: bool = True
    table_width: int = 16


@dataclass(frozen=True)
class AdapterSizes:
    """Sizes of what ViT-Adapter adds to the branch (a name of its paper; no entrance of a modality).

    Args:
        stem_channels: of the spatial prior.
        num_points, num_heads: of the sampling attention, points per level.
        value_ratio: width of its values, as a share of the model's.
        mlp_ratio: width of the convolutional network, likewise.
        groups: first and last layer between two exchanges; four of them, one for each map.

    Source: specification ONE-PEACE, 8.5.
    """

    stem_channels: int = 64
    num_points: int = 4
    num_heads: int = 24
    value_ratio: float = 0.5
    mlp_ratio: float = 0.25
    groups: Sequence[Sequence[int]] = ((0, 9), (10, 19), (20, 29), (30, 39))


@checked
@dataclass(frozen=True)
class SegmentationConfig(AdapterSizes):
    """The adapted backbone of the segmenter (fields of `AdapterSizes`), and its mask transformer; defaults published.

    Args:
        head_dim, head_heads: of the mask transformer, a multiple of 32.
        num_queries: masks of an image at most.
        head_mlp_dim: of its feed-forward networks.
        pixel_layers, query_layers: of its two decoders.
        num_loss_points: at which masks are compared in training.

    Source: specification ONE-PEACE, section 8.5.
    """

    head_dim: int = 1024
    head_heads: int = 32
    num_queries: int = 200
    head_mlp_dim: int = 4096
    pixel_layers: int = 6
    query_layers: int = 9
    num_loss_points: int = 12544


_NO_LABELS = ({0: "LABEL_0", 1: "LABEL_1"}, {"0": "LABEL_0", "1": "LABEL_1"})
"""What transformers writes where nobody named labels."""


_SMALL_CONV = tuple((64, kernel, stride) for _, kernel, stride in PUBLISHED_CONV_SPEC)

PRESETS: dict[str, dict[str, Any]] = {
    # Published (arXiv 2305.11172, table 1): 3.885 B parameters with all three branches and projections.
    "4b": {"decoder": DecoderConfig()},
    # Between: 91.1 M and 298 M parameters with all three branches, to be distilled (`one_peace.distil`).
    "300m": {
        "dim": 768,
        "num_heads": 12,
        "num_layers": 15,
        "mlp_dim": 2048,
        "layer_scale": 1e-2,
        "decoder": DecoderConfig(dim=384, num_heads=6, mlp_dim=1024),
    },
    "90m": {
        "dim": 512,
        "num_heads": 8,
        "num_layers": 10,
        "mlp_dim": 1024,
        "layer_scale": 1e-2,
        "decoder": DecoderConfig(dim=256, num_heads=4, mlp_dim=1024),
    },
    # Small sizes for experiments and for machines without an accelerator.
    "base": {
        "dim": 768,
        "num_heads": 12,
        "num_layers": 12,
        "mlp_dim": 2048,
        "layer_scale": 1e-2,
        "decoder": DecoderConfig(dim=384, num_heads=6, mlp_dim=1024),
    },
    "nano": {
        "dim": 128,
        "num_heads": 4,
        "num_layers": 4,
        "mlp_dim": 384,
        "layer_scale": 0.3,
        "init_std": 0.15,
        "text_bucket_size": 16,
        "max_text_positions": 72,
        "image_bucket_size": 4,
        "image_rel_bucket_size": 4,
        "audio_conv_spec": _SMALL_CONV,
        "audio_bucket_size": 32,
        "decoder": DecoderConfig(
            dim=64, num_heads=2, num_layers=1, mlp_dim=128, image_bucket_size=4, max_audio_positions=130
        ),
    },
}


@checked
class OnePeaceConfig(Presets, OpensAlone, PreTrainedConfig):
    """Everything that decides the shape of a ONE-PEACE model; defaults are the published 4B model.

    Args:
        modalities: which branches exist, in the shared order; others than text, image and audio are
            registered first (`plait.modalities`).
        joint: which pairs of modalities may be encoded as one sequence, since a stage trained them
            together.
        dim, num_heads, num_layers, mlp_dim: of the trunk.
        mlp_ways, norm_ways: partitions of the modalities; None is a way each, {} no final norm.
        inner_norms: whether attention and feed-forward networks have a norm before their last
            projection.
        layer_scale: initial LayerScale, None for none.
        drop_path_rate: of the last layer, rising linearly from 0 at the first.
        vocab_size, max_text_positions: tables of the text branch; CLS takes the first position.
        text_bucket_size, audio_bucket_size, image_rel_bucket_size: sizes of the relative-position
            tables.
        image_bucket_size: side of the stored grid of absolute positions.
        image_stem: `hmlp`, three convolutions, or `mlp`, one.
        audio_conv_spec: (channels, kernel, stride) per convolution; audio_conv_bias: whether they
            have one.
        audio_position_depth, audio_position_width, audio_position_groups: of the positional
            convolutions.
        sampling_rate: in Hz.
        max_audio_seconds, min_audio_seconds: what longer clips are cut to, and shorter ones tiled
            to.
        per_layer_bias: a relative-position table per layer instead of one for all.
        embedding_norms, type_embeddings: modalities that have them.
        gradient_scale: factor on the gradient of the embeddings, 1.0 as published.
        init_std: of fresh weights, a normal cut at one sigma.
        use_projections: whether the model embeds; False in classification models and the vision
            branch.
        decoder: sizes of the denoising decoder, None for a model that never had one.
        logit_scale_init: initial factor on similarities, before the logarithm.
        detection: of `OnePeaceForObjectDetection` and its backbone alone.
        segmentation: of `OnePeaceForUniversalSegmentation` and its backbone alone.
        out_features, out_indices: which of `stage_names` `OnePeaceBackbone` gives, all without them.
        num_frames, adapter_scale: of `OnePeaceVideoClassifier` alone.
        num_classes, pool_attention, pool_modality, use_pooler, use_two_images, head_scale_ratio: of
            `OnePeaceForClassification` alone.
        official: reproduce the official quirks: audio padding leaks, the decoder attends to
            padding.

    Raises:
        ValueError: for no modality, and for one that nobody registered.

    Example:
        >>> config = OnePeaceConfig.preset("nano", modalities=["text", "image"])
        >>> config.image_size, config.modalities
        (64, ['text', 'image'])

    Source: the published cfg (specification ONE-PEACE, section 1; section 2.8 for the head).
    """

    model_type = "one_peace"
    presets = PRESETS
    attribute_map = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_size": "dim",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "intermediate_size": "mlp_dim",
    }

    modalities: Sequence[str] = BUILT_IN
    joint: Sequence[Sequence[str]] = (("text", "image"), ("text", "audio"))
    dim: int = 1536
    num_heads: int = 24
    num_layers: int = 40
    mlp_dim: int = 6144
    mlp_ways: Ways | None = None
    norm_ways: Ways | None = None
    inner_norms: Sequence[bool] = (True, True)
    # The official code's own defaults differ (1e-2, other norms, dropout); these are the published cfg's.
    layer_scale: float | None = 1e-6
    drop_path_rate: float = 0.0
    # GPT-2's byte pairs in a frequency-sorted dictionary with <pad> 1 and </s> 2 (specification 5.1).
    vocab_size: int = 50264
    text_bucket_size: int = 256
    # 512 + 2; no offset for padding, so CLS has row 0 and the first token row 1 (specification 2.1).
    max_text_positions: int = 514
    image_bucket_size: int = 16
    # The side of images is 16 times this: relative positions fit one grid only (specification 2.2).
    image_rel_bucket_size: int = 16
    image_stem: str = "hmlp"
    audio_conv_spec: Sequence[Sequence[int]] = PUBLISHED_CONV_SPEC
    audio_conv_bias: bool = False
    audio_position_depth: int = 5
    audio_position_width: int = 95
    audio_position_groups: int = 16
    audio_bucket_size: int = 512
    sampling_rate: int = 16000
    max_audio_seconds: float = 15.0
    min_audio_seconds: float = 1.0
    per_layer_bias: bool = False
    embedding_norms: Sequence[str] = ()
    type_embeddings: Sequence[str] = ()
    gradient_scale: float = 1.0
    init_std: float = 0.02
    use_projections: bool = True
    decoder: DecoderConfig | Mapping[str, Any] | None = None
    # CLIP's initial temperature of 0.07.
    logit_scale_init: float = 1 / 0.07
    num_classes: int = 0
    pool_attention: bool = True
    pool_modality: str | None = None
    use_pooler: bool = False
    use_two_images: bool = False
    head_scale_ratio: float = 2
    detection: DetectionConfig | Mapping[str, Any] | None = None
    segmentation: SegmentationConfig | Mapping[str, Any] | None = None
    out_features: Sequence[str] | None = None
    out_indices: Sequence[int] | None = None
    num_frames: int = 0
    adapter_scale: float = 0.5
    official: bool = False
    pad_token_id: int | None = 1
    eos_token_id: int | None = 2
    # Nothing is tied: the text branch has no output head (specification 3.2).
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the modalities and turn every field into what JSON gives back, so that it survives saving.

        Raises:
            ValueError: for no modality, and for one that nobody registered.
        """
        unknown = [m for m in self.modalities if m not in BUILT_IN and not is_registered(m)]
        if unknown or not self.modalities:
            remedy = f"; plait.use(...) the file that registers {', '.join(unknown)}" if unknown else ""
            raise ValueError(f"expected modalities among {', '.join(BUILT_IN)}, got {list(self.modalities)}{remedy}")
        # One order everywhere, so that a saved model and a loaded one list their branches alike.
        self.modalities = in_order(self.modalities)
        self.joint = [list(pair) for pair in self.joint]
        for name in ("mlp_ways", "norm_ways"):
            ways = getattr(self, name)
            setattr(self, name, None if ways is None else {way: list(cell) for way, cell in ways.items()})
        self.inner_norms = list(self.inner_norms)
        self.audio_conv_spec = [list(layer) for layer in self.audio_conv_spec]
        self.embedding_norms = list(self.embedding_norms)
        self.type_embeddings = list(self.type_embeddings)
        self.decoder = self.decoder or None
        parts = {"decoder": DecoderConfig, "detection": DetectionConfig, "segmentation": SegmentationConfig}
        self.keep_plain(**{name: kind for name, kind in parts.items() if getattr(self, name) is not None})
        held = self.num_classes
        is_named = kwargs.get("num_labels") is not None or self.id2label not in (None, *_NO_LABELS)
        super().__post_init__(**kwargs)
        if held and is_named and held != self.num_labels:
            raise ValueError(f"expected {held} labels for num_classes {held}, got {self.num_labels}; make them agree")
        # transformers gives every configuration two labels, also one of a model without a head
        self.num_classes = held or ((self.num_labels or 0) if is_named else 0)

    def __setattr__(self, key: str, value: Any) -> None:
        """Keep `num_classes` and transformers' `num_labels` and `id2label` one number, whichever is set."""
        super().__setattr__(key, value)
        if "num_classes" not in self.__dict__ or self.__dict__.get("id2label") is None:
            return
        if key == "id2label":
            super().__setattr__("num_classes", len(value))
        elif key == "num_classes" and value and value != self.num_labels:
            self.num_labels = value

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> OnePeaceConfig:
        """This configuration: one encoder takes text too.

        transformers takes any field called `decoder` for a language model's configuration; ours holds the sizes of
        the denoising decoder. Both arguments are transformers' and change nothing here.
        """
        return self

    @property
    def decoder_sizes(self) -> DecoderConfig | None:
        """`decoder`, typed; None for a model that never had one."""
        return None if self.decoder is None else self.sizes("decoder", DecoderConfig)

    @property
    def detection_sizes(self) -> DetectionConfig:
        """`detection`, typed.

        Raises:
            ValueError: for a model that does not detect.
        """
        if self.detection is None:
            raise ValueError("expected config.detection for a detector, got None; pass a DetectionConfig")
        return self.detection if isinstance(self.detection, DetectionConfig) else DetectionConfig(**self.detection)

    @property
    def segmentation_sizes(self) -> SegmentationConfig:
        """`segmentation`, typed.

        Raises:
            ValueError: for a model that does not segment.
        """
        if self.segmentation is None:
            raise ValueError("expected config.segmentation for a segmenter, got None; pass a SegmentationConfig")
        given = self.segmentation
        return given if isinstance(given, SegmentationConfig) else SegmentationConfig(**given)

    @property
    def conv_spec(self) -> list[ConvSpec]:
        """`audio_conv_spec` as tuples of channels, kernel and stride."""
        return [(channels, kernel, stride) for channels, kernel, stride in self.audio_conv_spec]

    @property
    def image_size(self) -> int:
        """Side of the images that the model takes, in pixels; patches are 16 pixels wide."""
        return 16 * self.image_rel_bucket_size

    @property
    def stage_names(self) -> list[str]:
        """Maps of `OnePeaceBackbone`, as transformers calls them: one of the detector, four of the segmenter."""
        return [f"stage{i + 1}" for i in range(4 if self.segmentation is not None else 1)]

    @property
    def num_bias_tables(self) -> int:
        """Relative-position tables per modality: one for all layers, or one for each."""
        return self.num_layers if self.per_layer_bias else 1

    def ways(self, field: str) -> dict[str, list[str]]:
        """A partition, restricted to the modalities of this model.

        Args:
            field: `mlp_ways` or `norm_ways`.

        Returns:
            Way -> its modalities; ways that none of them is in are left out.
        """
        chosen = getattr(self, field)
        if chosen is None:
            chosen = {m: [m] for m in self.modalities}
        cells = {way: [m for m in cell if m in self.modalities] for way, cell in chosen.items()}
        return {way: cell for way, cell in cells.items() if cell}

    @classmethod
    def from_official(cls, official_config: Mapping[str, Any], **changes: Any) -> OnePeaceConfig:
        """The configuration that an official checkpoint describes.

        Args:
            official_config: its `cfg`, or the `model` section alone.
            changes: fields to set otherwise.

        Raises:
            ValueError: for a setting that nobody knows, or that no published model uses, and an
                unknown field.
        """
        return cls(**{**config_fields(official_config), **cls.known(changes)})


# `vl` and `al` are joint passes of text with one other; `val` has all three branches, apart.
_HEAD_MODALITIES = {
    "text": ("text",),
    "image": ("image",),
    "audio": ("audio",),
    "vl": ("text", "image"),
    "al": ("text", "audio"),
    "val": ("text", "image", "audio"),
}

# Run settings that stand beside the architecture and do not change what a loaded model computes.
_IGNORED_MODEL = frozenset(
    """
    _name criterion copy_rel_pos_table head_type vocab_size reset_logit_scale stage2_pretrain use_text_moe
    freeze_finetune_updates pooler_dropout source_rel_bucket_size keys_after dropped_keys trainable frozen
    trainable_without_grad params_without_grad generate_kwargs lora optimizer lr_scheduler attn_pooling use_pooler
    use_image_features use_two_images head_scale_ratio num_classes logit_scale_init encoder decoder seed note
    key_map missing_in_vit unexpected_in_vit label_smoothing task bpe_dir
    """.split()  # noqa: SIM905
)
_IGNORED_ENCODER = frozenset(
    """
    normalize_before learned_pos attention_dropout activation_dropout dropout max_positions layerdrop
    checkpoint_activations fsdp_checkpoint_wrap_layer_preserve_frequency fsdp_checkpoint_wrap_layer_skip_frequency
    offload_activations min_params_to_wrap use_text_moe use_image_moe use_audio_moe text_adapter image_adapter
    audio_adapter embed_dim ffn_embed_dim layers attention_heads drop_path_rate magneto_scale_attn scale_fc
    use_layer_scale layer_scale_init_value
    """.split()  # noqa: SIM905
)
_IGNORED_ADAPTER = frozenset(
    """
    bucket_size rel_bucket_size vision_encoder_type layernorm_embedding add_type_embedding dropout
    feature_embed_dim feature_encoder_spec abs_pos_type conv_pos_depth conv_pos_width conv_pos_groups
    conv_bias freeze_extractor
    """.split()  # noqa: SIM905
)
# Options of the official code that no published model uses; a file that sets one of them is refused, not misread.
_FIXED = {
    "scale_attn": False,
    "scale_heads": False,
    "activation_fn": "gelu",
    "conv_pos_pre_ln": False,
    "shrink_alpha": 1.0,
    "use_attn_bias": True,
}


def config_fields(official: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `OnePeaceConfig` out of an official cfg.

    Args:
        official: the `cfg` of a checkpoint with its `model` and `task` sections, or the `model`
            section alone.

    Returns:
        Fields; those that only the user decides, such as `official`, are left out.

    Raises:
        ValueError: for an unknown or unsupported setting, and a cfg without an encoder.
    """
    task = official.get("task") or {}
    model = official["model"] if isinstance(official.get("model"), Mapping) else official
    if "encoder" not in model:
        raise ValueError("expected an official ONE-PEACE cfg with model.encoder, got none; pass config= explicitly")
    encoder = model["encoder"]
    _check(model, _IGNORED_MODEL, "model")
    _check(encoder, _IGNORED_ENCODER, "model.encoder")
    adapters = {name: encoder.get(f"{name}_adapter") or {} for name in BUILT_IN}
    for name, adapter in adapters.items():
        _check(adapter, _IGNORED_ADAPTER, f"model.encoder.{name}_adapter")
    text, image, audio = adapters.values()
    head = model.get("head_type") or task.get("head_type")
    if head is not None and head not in _HEAD_MODALITIES:
        raise ValueError(f"expected head_type among {sorted(_HEAD_MODALITIES)}, got {head!r}")
    # Defaults of the official code differ from the published cfg: what follows where a field is absent is the latter.
    branches = tuple(m for m in BUILT_IN if encoder.get(f"use_{m}_moe", m == "text"))
    fields: dict[str, Any] = {
        # `head_type` says what a task uses; without one the branches are those that were switched on.
        "modalities": branches if head is None else _HEAD_MODALITIES[head],
        "dim": encoder["embed_dim"],
        "num_heads": encoder["attention_heads"],
        "num_layers": encoder["layers"],
        "mlp_dim": encoder["ffn_embed_dim"],
        "inner_norms": (bool(encoder.get("magneto_scale_attn", True)), bool(encoder.get("scale_fc", True))),
        "layer_scale": encoder.get("layer_scale_init_value", 1e-6) if encoder.get("use_layer_scale", True) else None,
        # 0.4 in pretraining and another rate per task; it acts in training alone.
        "drop_path_rate": encoder.get("drop_path_rate", 0.0),
        "vocab_size": model.get("vocab_size", 50264),
        "text_bucket_size": text.get("bucket_size", 256),
        "image_bucket_size": image.get("bucket_size", 16),
        "image_rel_bucket_size": image.get("rel_bucket_size", 16),
        "image_stem": image.get("vision_encoder_type", "hmlp"),
        "audio_bucket_size": audio.get("bucket_size", 512),
        "audio_conv_bias": audio.get("conv_bias", False),
        "audio_position_depth": audio.get("conv_pos_depth", 5),
        "audio_position_width": audio.get("conv_pos_width", 95),
        "audio_position_groups": audio.get("conv_pos_groups", 16),
        "per_layer_bias": bool(model.get("copy_rel_pos_table", False)),
        "embedding_norms": [m for m, a in adapters.items() if a.get("layernorm_embedding")],
        "type_embeddings": [m for m, a in adapters.items() if a.get("add_type_embedding")],
        "gradient_scale": text.get("shrink_alpha", 1.0),
        "logit_scale_init": model.get("logit_scale_init", 1 / 0.07),
    }
    if audio.get("feature_encoder_spec"):
        fields["audio_conv_spec"] = parse_conv_spec(audio["feature_encoder_spec"])
    if "num_classes" in model or "num_classes" in task:
        fields |= _head_fields(model, task, head)
    # Only pretraining cfgs have these two switches, and only pretraining models have a decoder.
    if "stage2_pretrain" in model or "reset_logit_scale" in model:
        fields["decoder"] = _decoder(model.get("decoder") or {})
    return fields


MAX_CONVS = 64
"""Convolutions in a stack; the published one has 7."""


def parse_conv_spec(spec: str | Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """The official spelling of a convolution stack, without evaluating code.

    Args:
        spec: such as `"[(512, 10, 5)] + [(512, 3, 2)] * 4"`, or the layers themselves.

    Returns:
        (channels, kernel, stride) per layer.

    Raises:
        ValueError: for another spelling.
    """
    if not isinstance(spec, str):
        return [(int(c), int(k), int(s)) for c, k, s in spec]
    layers: list[tuple[int, int, int]] = []
    for term in spec.split("+"):
        block, _, times = term.partition("*")
        try:
            found, count = [(int(c), int(k), int(s)) for c, k, s in ast.literal_eval(block.strip())], int(times or 1)
            if len(layers) + len(found) * max(count, 0) > MAX_CONVS:
                # a factor of eight digits takes all memory
                raise ValueError("too many layers")
            layers += found * count
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"expected '[(channels, kernel, stride)] * n + ...', got {spec!r:.80}") from error
    return layers


def _head_fields(model: Mapping[str, Any], task: Mapping[str, Any], head: str | None) -> dict[str, Any]:
    """Fields of the classification head, from the model and task sections of a cfg.

    head: its head type, which decides what is pooled where `use_image_features` does not.
    """
    # RefCOCO and RefCOCO+ pool what the picture became, RefCOCOg and all other pairs what the text became.
    pooled = (
        "image" if model.get("use_image_features") else {"image": "image", "audio": "audio"}.get(head or "", "text")
    )
    return {
        "num_classes": model.get("num_classes", task.get("num_classes")),
        "pool_attention": model.get("attn_pooling", True),
        "pool_modality": pooled,
        "use_pooler": model.get("use_pooler", False),
        "use_two_images": model.get("use_two_images", task.get("use_two_images", False)),
        "head_scale_ratio": model.get("head_scale_ratio", 2),
        "use_projections": False,
        "per_layer_bias": True,  # every official classification model has a table per layer
    }


def _decoder(decoder: Mapping[str, Any]) -> DecoderConfig:
    """Sizes of the denoising decoder. Raises ValueError for an unknown or unsupported setting."""
    _check(decoder, _IGNORED_ENCODER, "model.decoder")
    image = decoder.get("image_adapter") or {}
    return DecoderConfig(
        dim=decoder["embed_dim"],
        num_heads=decoder["attention_heads"],
        num_layers=decoder["layers"],
        mlp_dim=decoder["ffn_embed_dim"],
        image_bucket_size=image.get("bucket_size", 16),
        layer_scale=decoder.get("layer_scale_init_value", 1e-6) if decoder.get("use_layer_scale", False) else None,
    )


def _check(section: Mapping[str, Any], known: Set[str], where: str) -> None:
    """Refuse what nobody knows and what no published model uses.

    Args:
        section: settings by name.
        known: names that are read or harmless.
        where: the section, for the message.

    Raises:
        ValueError: naming the setting, its place and the remedy.
    """
    for name, value in section.items():
        if name in _FIXED:
            if value != _FIXED[name]:
                raise ValueError(
                    f"expected {where}.{name} = {_FIXED[name]!r}, as in all published models, got {value!r}"
                )
        elif name not in known:
            raise ValueError(f"expected a known field in the official {where}, got {name!r}; add it to config.py")
