"""Configuration of mPLUG-Owl: a vision tower, an abstractor and any causal language model of transformers.

official config.json + keys -> MPlugOwlConfig.from_official -> model        preset name -> MPlugOwlConfig.preset
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from plait.errors import UsageError


@dataclass
class VisionConfig:
    """The vision tower; defaults are CLIP ViT-L/14 at 224 pixels. image_size: the side it was built for, in pixels."""

    dim: int = 1024
    num_heads: int = 16
    num_layers: int = 24
    mlp_dim: int = 4096
    image_size: int = 224
    patch_size: int = 14
    eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass
class AbstractorConfig:
    """The abstractor, as wide as the tower: `num_queries` learned queries read all positions of an image or clip."""

    num_queries: int = 64
    num_heads: int = 16
    num_layers: int = 6
    mlp_dim: int = 2816
    eps: float = 1e-6
    dropout: float = 0.1


class MPlugOwlConfig(PreTrainedConfig):
    """Everything that decides the shape of a model; defaults are the published mPLUG-Owl with LLaMA-7B.

    text_config: of the language model, any causal one of transformers, a Llama by default; temporal: whether the tower
    has local temporal modules and the abstractor temporal queries, as the video checkpoints do; image_id, video_id:
    stand for every position that an image or a video fills (they have no embedding), by default the two ids behind the
    vocabulary; init_std: of fresh weights; official: quirks of the official code (tables cut for small images).
    """

    model_type = "mplug_owl"
    has_no_defaults_at_init = False
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (transformers reads plain class attributes)
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012

    text_config: PreTrainedConfig | dict[str, Any] | None = None
    vision: VisionConfig | Mapping[str, Any] | None = None
    abstractor: AbstractorConfig | Mapping[str, Any] | None = None
    temporal: bool = False
    image_id: int | None = None
    video_id: int | None = None
    init_std: float = 0.02
    official: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what depends on other fields and turn every field into what JSON gives back."""
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = language_config(self.text_config or {})
        text: Any = self.text_config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(text, name, None))
        self.tie_word_embeddings = bool(text.tie_word_embeddings)
        self.image_id = text.vocab_size if self.image_id is None else self.image_id
        self.video_id = text.vocab_size + 1 if self.video_id is None else self.video_id
        for name, kind in (("vision", VisionConfig), ("abstractor", AbstractorConfig)):
            given = getattr(self, name)
            setattr(self, name, asdict(given if isinstance(given, kind) else kind(**(given or {}))))
        super().__post_init__(**kwargs)

    @property
    def vision_sizes(self) -> VisionConfig:
        """`vision`, typed."""
        sizes = self.vision
        return sizes if isinstance(sizes, VisionConfig) else VisionConfig(**(sizes or {}))

    @property
    def abstractor_sizes(self) -> AbstractorConfig:
        """`abstractor`, typed."""
        sizes = self.abstractor
        return sizes if isinstance(sizes, AbstractorConfig) else AbstractorConfig(**(sizes or {}))

    @property
    def media_ids(self) -> tuple[int, int]:
        """`image_id` and `video_id`, never None."""
        size = self.text_sizes.vocab_size
        return self.image_id or size, self.video_id or size + 1

    @property
    def text_sizes(self) -> Any:
        """`text_config`, of whatever class its language model has."""
        return self.text_config

    @property
    def tokens_per_media(self) -> int:
        """Positions that an image or a video fills: the queries and the learned end vector."""
        return self.abstractor_sizes.num_queries + 1

    @property
    def image_size(self) -> int:
        """Side of the images the model takes, in pixels."""
        return self.vision_sizes.image_size

    @property
    def context(self) -> int | None:
        """Longest sequence of the language model, None where nothing bounds it (BLOOM)."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MPlugOwlConfig:
        """A published or small size by name. Raises ValueError for a name that does not exist."""
        if name not in PRESETS:
            raise UsageError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}; choose one of them")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def from_official(
        cls, official_config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None = None, **changes: Any
    ) -> MPlugOwlConfig:
        """The configuration that an official config.json describes; shapes: of the weights, which know better."""
        from plait.models.mplug_owl.official import config_fields

        return cls(**{**config_fields(official_config, shapes or {}), **changes})


def language_config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration of transformers from its fields, a Llama's without `model_type`. Raises ValueError if unknown."""
    name = fields.get("model_type", "llama")
    if name not in CONFIG_MAPPING:
        raise ValueError(f"expected a text_config of a model that transformers knows, got model_type {name!r}")
    return CONFIG_MAPPING[name](**{key: value for key, value in fields.items() if key != "model_type"})


_LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_BLOOMZ = {
    "model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "tie_word_embeddings": True,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "owl-llama-7b": {"text_config": _LLAMA},
    "owl-bloomz-7b": {"text_config": _BLOOMZ},
    "owl-llama-7b-video": {"text_config": _LLAMA, "temporal": True},
    "nano": {
        "text_config": {
            **_LLAMA, "vocab_size": 512, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        "vision": VisionConfig(dim=64, num_heads=4, num_layers=2, mlp_dim=256, image_size=64, patch_size=8),
        "abstractor": AbstractorConfig(num_queries=16, num_heads=4, num_layers=2, mlp_dim=176),
    },
}  # fmt: skip
