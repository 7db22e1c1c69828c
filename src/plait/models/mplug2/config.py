"""Configuration of mPLUG-2: sizes of its modules, and which task of the family a model is for.

official yaml + bert json (or the shapes of a checkpoint) -> MPlug2Config.from_official -> model
preset name -> MPlug2Config.preset
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

from plait.errors import UsageError
from plait.models.mplug2.composition import TASKS


@dataclass
class VisionConfig:
    """The dual vision encoder; defaults are CLIP ViT-L/14.

    image_size: side of the pictures in pixels, of which a rim that fills no patch is not looked at; temporal: whether
    blocks have local temporal modules; temporal_kernel, temporal_stride: frames a patch spans, and from one patch to
    the next.
    """

    dim: int = 1024
    num_heads: int = 16
    num_layers: int = 24
    patch_size: int = 14
    image_size: int = 224
    temporal: bool = True
    temporal_kernel: int = 1
    temporal_stride: int = 1

    @property
    def grid(self) -> int:
        """Patches along one side. Raises ValueError for a picture smaller than a patch."""
        if self.image_size < self.patch_size:
            raise ValueError(f"expected image_size of at least a patch, {self.patch_size}, got {self.image_size}")
        return self.image_size // self.patch_size


class MPlug2Config(PreTrainedConfig):
    """Everything that decides the shape of a model; defaults are the published large one.

    task: of `composition.TASKS`: the modules of that task only; None for all tasks of the model's class;
    modalities: what is looked at, of image and video (without video no temporal modules are built);
    dim, num_heads, mlp_dim, eps, dropout, attention_dropout: of all BERT-like layers;
    num_text_layers: of text alone; num_universal_layers: behind them, shared with vision; 0 as in mPLUG;
    universal_sharing: `shared`, or `apart` at equal parameters; num_latents: of the compressed vision stream;
    num_fusion_layers, fusion_stride: layers, every stride-th of which (not the first) joins both streams in one
        self-attention; stored_fusion_layers: how many an official file holds, of which the last are run;
    num_decoder_layers, max_positions, vocab_size, num_types: decoder and embeddings;
    projection_dim, temperature_init, queue_size: the contrastive objective; queue_size 0 for no queues;
    momentum: of the teacher; distill: whether a generative model has one;
    instructions: whether the model was trained to be told what to do (`models.mplug2.instructions`): then captions are
        asked for, and questions framed, as they were in training;
    num_images: pictures per sample of a sequence classifier (2 as in NLVR2);
    grounding_bins, grounding_start_id: coordinate tokens are the `bins + 1` ids behind the start id;
    init_std: of fresh weights; official: repeat the quirks and bugs of the released code.
    """

    model_type = "mplug2"
    has_no_defaults_at_init = False
    attribute_map = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_size": "dim",
        "num_attention_heads": "num_heads",
        "intermediate_size": "mlp_dim",
        "num_hidden_layers": "num_text_layers",
    }

    task: str | None = None
    modalities: list[str] | tuple[str, ...] = ("image", "video")
    vision: VisionConfig | Mapping[str, Any] | None = None
    dim: int = 1024
    num_heads: int = 16
    mlp_dim: int = 4096
    num_text_layers: int = 22
    num_universal_layers: int = 2
    universal_sharing: str = "shared"
    num_latents: int = 50
    num_fusion_layers: int = 6
    stored_fusion_layers: int = 24
    fusion_stride: int = 1000
    num_decoder_layers: int = 12
    max_positions: int = 512
    vocab_size: int = 30522
    num_types: int = 2
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    projection_dim: int = 256
    temperature_init: float = 0.07
    queue_size: int = 0
    momentum: float = 0.995
    distill: bool = False
    instructions: bool = False
    num_images: int = 1
    grounding_bins: int = 336
    grounding_start_id: int = 344
    num_frames: int = 16
    init_std: float = 0.02
    official: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | None = 102
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check names and turn every field into what JSON gives back."""
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"expected a task among {', '.join(TASKS)}, got {self.task!r}")
        unknown = set(self.modalities) - {"image", "video"}
        if unknown:
            raise ValueError(f"expected modalities among image, video, got {', '.join(sorted(unknown))}")
        if self.universal_sharing not in ("shared", "apart"):
            raise ValueError(f"expected universal_sharing shared or apart, got {self.universal_sharing!r}")
        self.stored_fusion_layers = max(self.stored_fusion_layers, self.num_fusion_layers)
        self.modalities = [m for m in ("image", "video") if m in self.modalities]
        sizes = self.vision if self.vision is not None else VisionConfig()
        self.vision = asdict(sizes if isinstance(sizes, VisionConfig) else VisionConfig(**sizes))
        super().__post_init__(**kwargs)

    @property
    def vision_sizes(self) -> VisionConfig:
        """`vision`, typed."""
        assert isinstance(self.vision, Mapping)
        return VisionConfig(**self.vision)

    @property
    def image_size(self) -> int:
        """Side of the pictures the model takes, in pixels."""
        return self.vision_sizes.image_size

    @property
    def has_projection(self) -> bool:
        """Whether vision tokens are projected to the width of the rest."""
        return self.vision_sizes.dim != self.dim

    @property
    def is_predecessor(self) -> bool:
        """Whether this is mPLUG, without universal layers."""
        return self.num_universal_layers == 0

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MPlug2Config:
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
    def from_official(
        cls, official_config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]], **changes: Any
    ) -> MPlug2Config:
        """The configuration of an official file from its settings, where it has some, and the shapes of its tensors."""
        from plait.models.mplug2.official import config_fields

        return cls(**{**config_fields(official_config, shapes), **cls._fields(changes)})


_B16 = VisionConfig(dim=768, num_heads=12, num_layers=12, patch_size=16)

PRESETS: dict[str, dict[str, Any]] = {
    # The only size with published weights: ViT-L/14 and BERT-large, 1031.5 M parameters for video question answering.
    "large": {},
    "base": {
        "vision": _B16, "dim": 768, "num_heads": 12, "mlp_dim": 3072, "num_text_layers": 10, "num_fusion_layers": 3,
        "stored_fusion_layers": 12,
    },
    # For experiments and for machines without an accelerator.
    "nano": {
        "vision": VisionConfig(dim=96, num_heads=4, num_layers=4, patch_size=16, image_size=96),
        "dim": 96, "num_heads": 4, "mlp_dim": 384, "num_text_layers": 2, "num_latents": 16, "num_fusion_layers": 2,
        "stored_fusion_layers": 2, "num_decoder_layers": 2, "max_positions": 64, "projection_dim": 64,
        "num_frames": 4,
    },
    # For tests: everything is there, nothing costs anything.
    "tiny": {
        "vision": VisionConfig(dim=24, num_heads=3, num_layers=2, patch_size=4, image_size=12),
        "dim": 24, "num_heads": 3, "mlp_dim": 64, "num_text_layers": 1, "num_latents": 5, "num_fusion_layers": 2,
        "stored_fusion_layers": 3, "num_decoder_layers": 2, "max_positions": 24, "vocab_size": 112,
        "projection_dim": 6, "num_frames": 3, "grounding_bins": 5, "grounding_start_id": 104,
        "dropout": 0.0, "attention_dropout": 0.0,
    },
}  # fmt: skip
