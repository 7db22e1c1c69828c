"""Configuration of ONE-PEACE: one encoder for text, image and audio, and a light decoder for denoising.

official cfg (checkpoint) -> OnePeaceConfig.from_official -> model        preset name -> OnePeaceConfig.preset
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

from plait.errors import UsageError
from plait.nn.adapters import ConvSpec
from plait.routing import Ways
from plait.types import MODALITIES

PUBLISHED_CONV_SPEC = ((512, 10, 5), *(((512, 3, 2),) * 4), *(((512, 2, 2),) * 2))


@dataclass
class DecoderConfig:
    """The denoising decoder: a smaller trunk without biases, its inputs full-length sequences with mask tokens."""

    dim: int = 768
    num_heads: int = 12
    num_layers: int = 2
    mlp_dim: int = 2048
    image_bucket_size: int = 16
    max_audio_positions: int = 1026
    layer_scale: float | None = None


class OnePeaceConfig(PreTrainedConfig):
    """Everything that decides the shape of a ONE-PEACE model; defaults are the published 4B model.

    modalities: which branches exist, in the shared order;
    dim, num_heads, num_layers, mlp_dim: the trunk; mlp_ways, norm_ways: partitions of the modalities (None = a way
        each, {} = no final norm);
    layer_scale: initial LayerScale, None for none; drop_path_rate: of the last layer;
    text_bucket_size, audio_bucket_size, image_rel_bucket_size: sizes of the relative-position tables;
    image_bucket_size: side of the stored grid of absolute positions; image size = 16 * image_rel_bucket_size;
    per_layer_bias: a relative-position table per layer instead of one for all;
    audio_conv_spec: (channels, kernel, stride) per convolution; sampling_rate in Hz; durations in seconds;
    init_std: of fresh weights, a normal cut at one sigma;
    use_projections: whether the model embeds (False in classification models and in the bare vision branch);
    decoder: sizes of the denoising decoder, None for a model that never had one;
    logit_scale_init: initial temperature factor, before the logarithm;
    official: reproduce the official quirks (audio padding leaks, the decoder attends to padding).
    Head fields (num_classes and on) are read by `OnePeaceForClassification` only.
    """

    model_type = "one_peace"
    attribute_map = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_size": "dim",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "intermediate_size": "mlp_dim",
    }

    modalities: Sequence[str] = ("text", "image", "audio")
    dim: int = 1536
    num_heads: int = 24
    num_layers: int = 40
    mlp_dim: int = 6144
    mlp_ways: Ways | None = None
    norm_ways: Ways | None = None
    inner_norms: Sequence[bool] = (True, True)
    layer_scale: float | None = 1e-6
    drop_path_rate: float = 0.0
    vocab_size: int = 50264
    text_bucket_size: int = 256
    max_text_positions: int = 514
    image_bucket_size: int = 16
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
    logit_scale_init: float = 1 / 0.07
    num_classes: int = 0
    pool_attention: bool = True
    pool_modality: str | None = None
    use_pooler: bool = False
    use_two_images: bool = False
    head_scale_ratio: float = 2
    official: bool = False
    pad_token_id: int | None = 1
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the modalities and turn every field into what JSON gives back."""
        unknown = set(self.modalities) - {"text", "image", "audio"}
        if unknown or not self.modalities:
            raise ValueError(f"expected modalities among text, image, audio, got {list(self.modalities)}")
        self.modalities = [m for m in MODALITIES if m in self.modalities]
        self.mlp_ways = _as_lists(self.mlp_ways)
        self.norm_ways = _as_lists(self.norm_ways)
        self.inner_norms = list(self.inner_norms)
        self.audio_conv_spec = [list(layer) for layer in self.audio_conv_spec]
        self.embedding_norms = list(self.embedding_norms)
        self.type_embeddings = list(self.type_embeddings)
        sizes = self.decoder
        self.decoder = asdict(sizes) if isinstance(sizes, DecoderConfig) else dict(sizes) if sizes else None
        super().__post_init__(**kwargs)

    @property
    def decoder_sizes(self) -> DecoderConfig | None:
        """`decoder`, typed."""
        sizes = self.decoder
        return sizes if sizes is None or isinstance(sizes, DecoderConfig) else DecoderConfig(**sizes)

    @property
    def conv_spec(self) -> list[ConvSpec]:
        """`audio_conv_spec`, typed."""
        return [(channels, kernel, stride) for channels, kernel, stride in self.audio_conv_spec]

    @property
    def image_size(self) -> int:
        """Side of the images the model takes, in pixels."""
        return 16 * self.image_rel_bucket_size

    @property
    def num_bias_tables(self) -> int:
        """Relative-position tables per modality."""
        return self.num_layers if self.per_layer_bias else 1

    def ways(self, field: str) -> dict[str, list[str]]:
        """The partition `mlp_ways` or `norm_ways`, restricted to the modalities of this model."""
        chosen = getattr(self, field)
        if chosen is None:
            chosen = {m: [m] for m in self.modalities}
        cells = {way: [m for m in cell if m in self.modalities] for way, cell in chosen.items()}
        return {way: cell for way, cell in cells.items() if cell}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> OnePeaceConfig:
        """A published or small size by name. Raises ValueError for a name that does not exist."""
        if name not in PRESETS:
            raise UsageError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}; choose one of them")
        return cls(**{**PRESETS[name], **cls._fields(changes)})

    @classmethod
    def _fields(cls, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """`changes`. Raises ValueError for what is no field: transformers would keep and ignore it."""
        plain = cls()
        unknown = [name for name in changes if not hasattr(plain, name)]
        if unknown:
            raise ValueError(f"expected fields of {cls.__name__}, got {', '.join(unknown)}; leave them out")
        return changes

    @classmethod
    def from_official(cls, official_config: Mapping[str, Any], **changes: Any) -> OnePeaceConfig:
        """The configuration that an official checkpoint's `cfg` (or its `model` section) describes."""
        from plait.models.one_peace.official import config_fields

        return cls(**{**config_fields(official_config), **cls._fields(changes)})


def _as_lists(ways: Ways | None) -> dict[str, list[str]] | None:
    return None if ways is None else {way: list(cell) for way, cell in ways.items()}


_SMALL_CONV = tuple((64, kernel, stride) for _, kernel, stride in PUBLISHED_CONV_SPEC)

PRESETS: dict[str, dict[str, Any]] = {
    # Published (arXiv 2305.11172, table 1): 3.885 B parameters with all three branches and projections.
    "4b": {"decoder": DecoderConfig()},
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
