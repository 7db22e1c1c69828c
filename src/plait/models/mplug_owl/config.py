"""Configuration of mPLUG-Owl: a vision tower, an abstractor and any causal language model of transformers.

official config.json + shapes of weights -> MPlugOwlConfig.from_official -> model   preset name -> MPlugOwlConfig.preset

The abstractor's width comes from the weights where they are at hand: two releases compute it differently from the same
field (specification mPLUG-Owl, section 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from plait.nn.contract import OpensAlone, checked
from plait.presets import Presets
from plait.weights.keymap import count_layers


@checked
@dataclass
class VisionConfig:
    """Sizes of the vision tower; the defaults are CLIP ViT-L/14 at 224 pixels.

    Args:
        dim, num_heads, num_layers, mlp_dim: of the ViT; heads of 64 in the published tower.
        image_size: side of the images the position table was built for, in pixels.
        patch_size: side of a patch, in pixels.
        eps: of the tower's layer norms. The published towers have 1e-6 where CLIP itself has 1e-5.

    Source:
        arXiv 2304.14178, section 3; specification mPLUG-Owl, sections 1 and 2.
    """

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


@checked
@dataclass
class AbstractorConfig:
    """Sizes of the abstractor, which is as wide as the tower.

    Args:
        num_queries: learned queries that read all positions of an image or a clip.
        num_heads, num_layers: of its cross attention.
        mlp_dim: inner width of the gated MLP; every published abstractor has 2816.
        eps: of the norm inside the MLP alone. The other norms have torch's default, 1e-5.
        dropout: of attention probabilities, in training.

    Source:
        Specification mPLUG-Owl, sections 1 and 3.
    """

    num_queries: int = 64
    num_heads: int = 16
    num_layers: int = 6
    mlp_dim: int = 2816
    eps: float = 1e-6
    dropout: float = 0.1


# The tokenizer pads with <unk>, 0; the official class has a default of 2 (section 1).
_LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_BLOOMZ = {
    "model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "tie_word_embeddings": True,
}  # fmt: skip

# Parameters as published: 7,123,068,928 with LLaMA, 7,152,633,856 of the video model, 7,453,669,376 with BLOOMZ.
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


@checked
class MPlugOwlConfig(Presets, OpensAlone, PreTrainedConfig):
    """Everything that decides the shape of a model; defaults are the published mPLUG-Owl with LLaMA-7B.

    Args:
        text_config: of the language model, any causal one of transformers, or its fields; without `model_type` a Llama.
        vision, abstractor: sizes, as dataclasses or mappings. They are stored as plain dicts, as JSON gives them back.
        temporal: whether the tower has local temporal modules and the abstractor temporal queries, as the video
            checkpoints do.
        image_id, video_id: stand for every position that an image or a video fills; they have no embedding. By default
            the two ids behind the vocabulary.
        init_std: standard deviation of fresh weights.
        official: quirks of the official code: position tables cut for small images, one start id before the answer in
            rules over generated ids.
        bos_token_id, eos_token_id, pad_token_id: by default those of `text_config`.
        tie_word_embeddings: follows `text_config`, whatever is passed.

    Raises:
        ValueError: for a text_config of a model that transformers does not know.

    Source:
        arXiv 2304.14178; specification mPLUG-Owl, section 1.

    Example:
        >>> config = MPlugOwlConfig.preset("nano", temporal=True)
        >>> config.tokens_per_media, config.media_ids
        (17, (512, 513))
    """

    model_type = "mplug_owl"
    has_no_defaults_at_init = False
    presets = PRESETS
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (transformers reads plain class attributes)
    keys_to_ignore_at_inference = ["cache", "past_key_values", "last_hidden_state"]  # noqa: RUF012

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
        if not isinstance(self.text_config, PreTrainedConfig):  # from JSON it comes as a dict
            self.text_config = language_config(self.text_config or {})
        text: Any = self.text_config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(text, name, None))
        # The head belongs to the language model: its own config alone decides whether it is tied (BLOOM's is).
        self.tie_word_embeddings = bool(text.tie_word_embeddings)
        # Behind the vocabulary no tokenizer can write them, and no row of the table is lost to them.
        self.image_id = text.vocab_size if self.image_id is None else self.image_id
        self.video_id = text.vocab_size + 1 if self.video_id is None else self.video_id
        self.keep_plain(vision=VisionConfig, abstractor=AbstractorConfig)
        super().__post_init__(**kwargs)

    @property
    def vision_sizes(self) -> VisionConfig:
        """`vision`, typed."""
        return self.sizes("vision", VisionConfig)

    @property
    def abstractor_sizes(self) -> AbstractorConfig:
        """`abstractor`, typed."""
        return self.sizes("abstractor", AbstractorConfig)

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
        """Positions that an image or a video fills: the queries and the learned end vector, 65 as published."""
        return self.abstractor_sizes.num_queries + 1

    @property
    def image_size(self) -> int:
        """Side of the images the model takes, in pixels."""
        return self.vision_sizes.image_size

    @property
    def use_cache(self) -> bool:
        """Whether the language model keeps keys and values; set, it is set there."""
        return getattr(self.text_config, "use_cache", True)

    @use_cache.setter
    def use_cache(self, value: bool) -> None:
        self.text_sizes.use_cache = value

    @property
    def context(self) -> int | None:
        """Longest sequence of the language model, in positions; None where nothing bounds it (BLOOM has ALiBi)."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @classmethod
    def from_official(
        cls, official_config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None = None, **changes: Any
    ) -> MPlugOwlConfig:
        """The configuration that an official config.json describes.

        Args:
            official_config: the parsed config.json.
            shapes: official key -> shape of the weights, which decide over the variant and the width of the MLP.
            changes: fields to set otherwise.

        Raises:
            ValueError: where tower and abstractor differ in width.
        """
        return cls(**{**config_fields(official_config, shapes or {}), **cls.known(changes)})


def language_config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration of transformers from its fields.

    Args:
        fields: of a config.json; without `model_type` a Llama's, as in the official code.

    Raises:
        ValueError: for a model_type that transformers does not know.
    """
    name = fields.get("model_type", "llama")
    if name not in CONFIG_MAPPING:
        raise ValueError(f"expected a text_config of a model that transformers knows, got model_type {name!r}")
    return CONFIG_MAPPING[name](**{key: value for key, value in fields.items() if key != "model_type"})


_VISION = {
    "hidden_size": "dim", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
    "intermediate_size": "mlp_dim", "image_size": "image_size", "patch_size": "patch_size", "layer_norm_eps": "eps",
}  # fmt: skip
_ABSTRACTOR = {
    "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers", "intermediate_size": "mlp_dim",
    "layer_norm_eps": "eps", "attention_probs_dropout_prob": "dropout",
}  # fmt: skip
_MLP = "abstractor.encoder.layers.0.crossattention.output.mlp.w1.weight"
_SECTIONS = ("vision_config", "visual_abstractor_config")
HEAD_DIM = 64
"""Width of a head of the published towers, where only shapes are known."""


def is_official_config(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of an official directory."""
    return config.get("model_type") == "mplug-owl" or all(name in config for name in _SECTIONS)


def config_fields(official: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Fields of `MPlugOwlConfig` from an official config and the shapes of the weights, where they are known.

    Args:
        official: the parsed config.json.
        shapes: official key -> shape; empty where only the config is at hand.

    Returns:
        vision, abstractor, temporal and text_config.

    Raises:
        ValueError: where tower and abstractor differ in width. Queries and features share a norm and are concatenated.
    """
    # The temporal weights tell the video variant.
    temporal = any(".temporal." in key or key.startswith("temporal_") for key in shapes)
    vision = vision_sizes(official.get("vision_config") or {})
    abstractor = abstractor_sizes(official, published_mlp=temporal)
    # The abstractor has no width of its own here: it takes the tower's.
    width = (official.get("visual_abstractor_config") or {}).get("hidden_size", vision.dim)
    if width != vision.dim:
        raise ValueError(f"expected an abstractor as wide as the tower, got {width} and {vision.dim}")
    # Two releases read the same field differently; the weights are right about both (section 1).
    if _MLP in shapes:
        abstractor.mlp_dim = shapes[_MLP][0]
    text = dict(official.get("text_config") or {})
    return {"vision": vision, "abstractor": abstractor, "temporal": temporal, "text_config": text}


def vision_sizes(official: Mapping[str, Any]) -> VisionConfig:
    """Sizes of the tower from `vision_config`; its activation is QuickGELU whatever `hidden_act` says."""
    return VisionConfig(**{ours: official[theirs] for theirs, ours in _VISION.items() if theirs in official})


def abstractor_sizes(official: Mapping[str, Any], *, published_mlp: bool = False) -> AbstractorConfig:
    """Sizes of the abstractor from the top of an official config.

    Args:
        official: the parsed config.json, whose top level holds the number of queries.
        published_mlp: compute the width of the gated MLP as the video release does, 4096 -> 2816, instead of taking
            the field as the image release does (specification mPLUG-Owl, section 1).

    Raises:
        ValueError: for encoder features of another width than the queries'.
    """
    section = official.get("visual_abstractor_config") or {}
    fields = {ours: section[theirs] for theirs, ours in _ABSTRACTOR.items() if theirs in section}
    dim = section.get("hidden_size")
    if section.get("encoder_hidden_size", dim) != dim:
        raise ValueError(
            f"expected encoder_hidden_size = hidden_size in visual_abstractor_config, got "
            f"{section['encoder_hidden_size']} and {dim}; queries and features share a norm"
        )
    if "num_query_tokens" in official:
        fields["num_queries"] = official["num_query_tokens"]
    if published_mlp and fields.get("mlp_dim", 2816) != 2816:
        # Two thirds, as a gated MLP has a third matrix, up to a multiple of 256. The release truncates before it
        # rounds up, and leaves 2816 alone: that is already the result of 4096.
        fields["mlp_dim"] = 256 * -(-int(2 * fields["mlp_dim"] / 3) // 256)
    return AbstractorConfig(**fields)


def described(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """An official config.json that fits the shapes of a whole checkpoint, for files that lie without one.

    Numbers of heads are those of the published models: heads of 64 in tower and abstractor, of 128 in the language
    model.

    Args:
        shapes: official key -> shape, of the language model too.

    Returns:
        Fields as in an official config.json.

    Raises:
        ValueError: where the language model is neither a LLaMA nor a BLOOM.
    """
    cls, table = shapes["vision_model.embeddings.cls_token"], shapes["vision_model.embeddings.position_embedding"]
    patch = shapes["vision_model.embeddings.patch_embed.weight"][-1]
    # The table has a row for the class position and one per patch of a square grid.
    dim, grid = cls[-1], round((table[1] - 1) ** 0.5)
    heads = max(dim // HEAD_DIM, 1)
    return {
        "model_type": "mplug-owl",
        "num_query_tokens": shapes["query_tokens"][1],
        "vision_config": {
            "hidden_size": dim,
            "num_hidden_layers": count_layers(shapes, "vision_model.encoder.layers."),
            "num_attention_heads": heads,
            "intermediate_size": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
            "image_size": grid * patch,
            "patch_size": patch,
        },
        "visual_abstractor_config": {
            "hidden_size": dim,
            "encoder_hidden_size": dim,
            "num_hidden_layers": count_layers(shapes, "abstractor.encoder.layers."),
            "num_attention_heads": heads,
            "intermediate_size": shapes[_MLP][0],
        },
        "text_config": _language_model(shapes),
    }


def _language_model(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """`text_config` of a language model by the shapes of its weights; defaults of transformers for what none shows."""
    llama, bloom = "language_model.model.embed_tokens.weight", "language_model.transformer.word_embeddings.weight"
    if llama in shapes:
        vocab, dim = shapes[llama]
        heads = max(dim // 128, 1)
        # Fewer rows than queries have mean grouped heads, each as wide as a query head.
        key = shapes["language_model.model.layers.0.self_attn.k_proj.weight"][0]
        return {
            "model_type": "llama", "vocab_size": vocab, "hidden_size": dim, "num_attention_heads": heads,
            "num_key_value_heads": max(key * heads // dim, 1), "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
            "intermediate_size": shapes["language_model.model.layers.0.mlp.up_proj.weight"][0],
            "num_hidden_layers": count_layers(shapes, "language_model.model.layers."), "pad_token_id": 0,
        }  # fmt: skip
    if bloom in shapes:
        vocab, dim = shapes[bloom]
        return {
            "model_type": "bloom", "vocab_size": vocab, "hidden_size": dim, "n_head": max(dim // 128, 1),
            "n_layer": count_layers(shapes, "language_model.transformer.h."), "pad_token_id": 3,
        }  # fmt: skip
    raise ValueError("expected a LLaMA or a BLOOM under language_model., got neither; pass official_config=")
