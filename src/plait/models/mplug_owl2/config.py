"""Configuration of mPLUG-Owl2: a vision tower, an abstractor and a causal decoder with a way per modality.

official config.json + keys -> MPlugOwl2Config.from_official -> model        preset name -> MPlugOwl2Config.preset
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

from plait.errors import UsageError
from plait.routing import Ways
from plait.types import MODALITIES

ADAPTIVE = ("norm", "k", "v")
"""What exists once per way in the modality-adaptive module of the paper."""


@dataclass
class VisionConfig:
    """The vision tower; defaults are CLIP ViT-L/14 at 448 pixels. image_size: the side it was built for, in pixels."""

    dim: int = 1024
    num_heads: int = 16
    num_layers: int = 24
    mlp_dim: int = 4096
    image_size: int = 448
    patch_size: int = 14
    activation: str = "quick_gelu"
    eps: float = 1e-6
    use_cls_token: bool = True
    use_post_norm: bool = True

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass
class AbstractorConfig:
    """The abstractor: `num_queries` learned queries read all patches of an image.

    grid_size: side of the patch grid its key positions were trained for; query_span: number of queries they were
    trained for. Both stay when a checkpoint is resized: positions of another grid are stretched to them.
    """

    num_queries: int = 64
    num_heads: int = 16
    num_layers: int = 6
    mlp_dim: int = 2816
    eps: float = 1e-6
    grid_size: int = 32
    query_span: int | None = None


class MPlugOwl2Config(PreTrainedConfig):
    """Everything that decides the shape of a model; defaults are the published 8.2B mPLUG-Owl2.

    ways: the partition of the modalities, a named cell each; routed: which parts of a decoder layer exist once per
        cell, of `norm q k v out mlp`: `ADAPTIVE` is the paper's module, () a decoder shared by all;
    dim, num_layers, num_heads, num_kv_heads, head_dim, mlp_dim, eps, *_bias: the decoder, a Llama;
    rope_parameters: as in transformers; trained_length: sequence length behind which Qwen's dynamic NTK base and log-n
        query scale set in (in evaluation), None for neither; use_ntk, use_log_n: which of the two;
    image_id: stands for every position an image fills (it has no embedding), by default the id behind the
        vocabulary; init_std: of fresh weights; official: quirks of the official code (4.31's beam lengths, ...).
    """

    model_type = "mplug_owl2"
    base_config_key = "mplug_owl2"
    has_no_defaults_at_init = False
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "dim",
        "intermediate_size": "mlp_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
    }

    ways: Ways | None = None
    routed: Sequence[str] = ADAPTIVE
    vocab_size: int = 32000
    dim: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int = 11008
    eps: float = 1e-5
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 4096
    rope_parameters: dict[str, Any] | None = None
    trained_length: int | None = None
    use_ntk: bool = True
    use_log_n: bool = True
    vision: VisionConfig | Mapping[str, Any] | None = None
    abstractor: AbstractorConfig | Mapping[str, Any] | None = None
    image_id: int | None = None
    image_aspect: str = "resize"
    init_std: float = 0.02
    official: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what depends on other fields and turn every field into what JSON gives back."""
        self.ways = {
            way: list(cell) for way, cell in (self.ways or {"text": ["text"], "visual": ["image", "video"]}).items()
        }
        strangers = [m for cell in self.ways.values() for m in cell if m not in MODALITIES]
        if strangers:
            raise ValueError(f"expected ways of {', '.join(MODALITIES)}, got {', '.join(strangers)}")
        self.routed = list(self.routed)
        self.num_kv_heads = self.num_kv_heads or self.num_heads
        self.head_dim = self.head_dim or self.dim // self.num_heads
        self.rope_parameters = dict(self.rope_parameters or {"rope_type": "default", "rope_theta": 10000.0})
        self.image_id = self.vocab_size if self.image_id is None else self.image_id
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
    def modalities(self) -> tuple[str, ...]:
        """All modalities that have a way, in the shared order."""
        owned = {m for cell in (self.ways or {}).values() for m in cell}
        return tuple(m for m in MODALITIES if m in owned)

    @property
    def image_token(self) -> int:
        """`image_id`, never None."""
        return self.vocab_size if self.image_id is None else self.image_id

    @property
    def tokens_per_image(self) -> int:
        """Positions an image fills: the queries and the learned end vector."""
        return self.abstractor_sizes.num_queries + 1

    @property
    def image_size(self) -> int:
        """Side of the images the model takes, in pixels."""
        return self.vision_sizes.image_size

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MPlugOwl2Config:
        """A published or small size by name. Raises ValueError for a name that does not exist."""
        if name not in PRESETS:
            raise UsageError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}; choose one of them")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def from_official(
        cls, official_config: Mapping[str, Any], keys: Iterable[str] = (), **changes: Any
    ) -> MPlugOwl2Config:
        """The configuration that an official config.json describes; the weights' keys decide on the adaptive module."""
        from plait.models.mplug_owl2.official import config_fields

        return cls(**{**config_fields(official_config, keys), **changes})


_BIG_G = VisionConfig(
    dim=1664, num_layers=48, mlp_dim=8192, activation="gelu", use_cls_token=False, use_post_norm=False
)

PRESETS: dict[str, dict[str, Any]] = {
    "owl2-7b": {},
    "owl2.1-7b": {
        "routed": (),
        "vocab_size": 151936,
        "eps": 1e-6,
        "qkv_bias": True,
        "max_position_embeddings": 8192,
        "trained_length": 8192,
        "vision": _BIG_G,
        "abstractor": AbstractorConfig(mlp_dim=4608),
        "bos_token_id": None,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
    },
    "nano": {
        "vocab_size": 512,
        "dim": 128,
        "num_layers": 4,
        "num_heads": 4,
        "mlp_dim": 352,
        "vision": VisionConfig(dim=64, num_heads=4, num_layers=2, mlp_dim=256, image_size=64, patch_size=8),
        "abstractor": AbstractorConfig(num_queries=16, num_heads=4, num_layers=2, mlp_dim=176, grid_size=8),
    },
}
