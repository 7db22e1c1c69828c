"""Configuration of mPLUG-Owl2: a vision tower, an abstractor and a causal decoder with a way per modality.

official config.json + keys -> MPlugOwl2Config.from_official -> model        preset name -> MPlugOwl2Config.preset

Official files are `mplug_owl2` with Llama's names and `mplug_owl2_1` with Qwen's (specification mPLUG-Owl2, section 2).
Every field is read, known and ignored, or an error: nothing is guessed from names of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from plait.nn.contract import OpensAlone, checked
from plait.presets import Presets
from plait.routing import Ways
from plait.types import MODALITIES

ADAPTIVE = ("norm", "k", "v")
"""What exists once per way in the modality-adaptive module of the paper."""


@checked
@dataclass
class VisionConfig:
    """Sizes of the vision tower; the defaults are CLIP ViT-L/14 at 448 pixels.

    Args:
        dim, num_heads, num_layers, mlp_dim: of the ViT.
        image_size: side of the images the tower was built for, in pixels.
        patch_size: side of a patch, in pixels.
        activation: of its MLP, `quick_gelu` (CLIP) or `gelu` (exact, Owl2.1).
        eps: of its layer norms.
        use_cls_token: whether a class position is put in front. Without one the position table is 16 x 16 whatever
            image_size is, and is stretched (Owl2.1).
        use_post_norm: whether a norm follows the last layer.

    Source:
        Specification mPLUG-Owl2, sections 2 and 3.
    """

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


@checked
@dataclass
class AbstractorConfig:
    """Sizes of the abstractor, which is as wide as the tower.

    Args:
        num_queries: learned queries that read all patches of an image.
        num_heads, num_layers: of its cross attention.
        mlp_dim: inner width of the gated MLP.
        eps: of the norm inside the MLP alone. The other norms have torch's default, 1e-5.
        grid_size: side of the patch grid that its key positions were trained for.
        query_span: number of queries that they were trained for, None for num_queries. Both stay when a checkpoint is
            resized: positions of another grid are stretched to them.

    Source:
        arXiv 2311.04257, section 3; specification mPLUG-Owl2, section 4.
    """

    num_queries: int = 64
    num_heads: int = 16
    num_layers: int = 6
    mlp_dim: int = 2816
    eps: float = 1e-6
    grid_size: int = 32  # 448 pixels in patches of 14
    query_span: int | None = None


# Qwen-VL's ViT-bigG. Its sizes, and the abstractor's 4608, are inferred: with them the parameters sum up to the 9.8B
# that the README of Owl2.1 states (specification mPLUG-Owl2, section 2.2). The file decides where it is at hand.
_BIG_G = VisionConfig(
    dim=1664, num_layers=48, mlp_dim=8192, activation="gelu", use_cls_token=False, use_post_norm=False
)

PRESETS: dict[str, dict[str, Any]] = {
    "owl2-7b": {},
    "owl2.1-7b": {
        "routed": (),  # with a way per modality it would have 11.4B, not the published 9.8B
        "vocab_size": 151936,
        "eps": 1e-6,
        "qkv_bias": True,
        "max_position_embeddings": 8192,
        "trained_length": 8192,
        "vision": _BIG_G,
        "abstractor": AbstractorConfig(mlp_dim=4608),
        "bos_token_id": None,
        "eos_token_id": 151643,  # <|endoftext|>, which pads too: Qwen has no bos and no pad
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


@checked
class MPlugOwl2Config(Presets, OpensAlone, PreTrainedConfig):
    """Everything that decides the shape of a model; defaults are the published 8.2B mPLUG-Owl2.

    Args:
        ways: the partition of the modalities, a named cell each; by default `text`, and `visual` of image and video.
        routed: which parts of a decoder layer exist once per way, of `norm q k v out mlp`. `ADAPTIVE` is the paper's
            module, () a decoder shared by all.
        vocab_size: rows of the token table.
        dim, num_layers, num_heads, mlp_dim, eps: the decoder, a Llama.
        num_kv_heads, head_dim: by default num_heads, and dim / num_heads.
        qkv_bias, out_bias, mlp_bias: which linear layers of the decoder have one.
        max_position_embeddings: longest sequence, in positions; an image fills `tokens_per_image`.
        rope_parameters: as in transformers; by default a base of 10000.
        trained_length: sequence length behind which Qwen's dynamic NTK base and log-n query scale set in, in
            evaluation; None for neither.
        use_ntk, use_log_n: which of the two.
        vision, abstractor: sizes, as dataclasses or mappings. They are stored as plain dicts, as JSON gives them back.
        image_id: stands for every position an image fills; it has no embedding. By default the id behind the
            vocabulary.
        image_aspect: what the training did with images that are not square: `resize`, `pad` or `crop`; `square` is the
            official name of `crop`.
        init_std: standard deviation of fresh weights.
        official: quirks of the official code, such as the beam lengths of transformers 4.31.

    Raises:
        ValueError: for a way of a modality that does not exist.

    Source:
        arXiv 2311.04257, section 3; specification mPLUG-Owl2, sections 2, 5 and 6.

    Example:
        >>> config = MPlugOwl2Config.preset("nano")
        >>> config.ways, config.tokens_per_image
        ({'text': ['text'], 'visual': ['image', 'video']}, 17)
    """

    model_type = "mplug_owl2"
    base_config_key = "mplug_owl2"
    has_no_defaults_at_init = False
    presets = PRESETS
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
    eps: float = 1e-5  # LLaMA-2's; files without the field mean 1e-6 (section 2.1)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    # what LLaMA-2 was trained for; the official converter writes 2048
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
    pad_token_id: int | None = 0  # <unk>, as the released training pads
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what depends on other fields and turn every field into what JSON gives back."""
        # Lists, not tuples: a configuration read back from JSON must equal the one that was written.
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
        # Behind the vocabulary no tokenizer can write it, and no row of the table is lost to it.
        self.image_id = self.vocab_size if self.image_id is None else self.image_id
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
        """Positions an image fills: the queries and the learned end vector, 65 as published."""
        return self.abstractor_sizes.num_queries + 1

    @property
    def image_size(self) -> int:
        """Side of the images the model takes, in pixels."""
        return self.vision_sizes.image_size

    @classmethod
    def from_official(
        cls, official_config: Mapping[str, Any], keys: Iterable[str] = (), **changes: Any
    ) -> MPlugOwl2Config:
        """The configuration that an official config.json describes.

        Args:
            official_config: the parsed config.json, with Llama's or Qwen's names.
            keys: of the weights, which decide on the adaptive module.
            changes: fields to set otherwise.

        Raises:
            ValueError: for an unknown field, or one that no published model sets that way.
        """
        return cls(**{**config_fields(official_config, keys), **cls.known(changes)})


QWEN_ROUTED = ("q", "k", "v")
"""Owl2.1's `multiway`: the fused projection is duplicated, the norms are shared."""

_LLAMA = {
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "intermediate_size": "mlp_dim",
    "rms_norm_eps": "eps", "max_position_embeddings": "max_position_embeddings",
}  # fmt: skip
_QWEN = {
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "kv_channels": "head_dim", "layer_norm_epsilon": "eps",
    "max_position_embeddings": "max_position_embeddings", "seq_length": "trained_length",
    "use_dynamic_ntk": "use_ntk", "use_logn_attn": "use_log_n",
}  # fmt: skip
_BOTH = {
    "initializer_range": "init_std", "tie_word_embeddings": "tie_word_embeddings", "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id", "pad_token_id": "pad_token_id", "image_aspect_ratio": "image_aspect",
    "use_cache": "use_cache",
}  # fmt: skip
_READ_ELSEWHERE = {
    "visual_config", "rope_theta", "rope_scaling", "attention_bias", "rotary_emb_base", "no_bias", "multiway",
    "intermediate_size",
}  # fmt: skip
# What the model has built in, as all published files have it: another value would be another model.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "pretraining_tp": (1,), "rotary_pct": (1.0,), "scale_attn_weights": (True,),
    "softmax_in_fp32": (False, True), "use_cache_quantization": (False,), "emb_dropout_prob": (0, 0.0),
    "attn_dropout_prob": (0, 0.0), "attention_dropout": (0, 0.0),
}  # fmt: skip
# Names, training settings and speed: nothing here changes what the model computes.
_IGNORED = {
    "architectures", "model_type", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "image_grid_pinpoints", "tune_visual_abstractor", "freeze_vision_model", "visual_abstractor_lr", "bf16", "fp16",
    "fp32", "use_flash_attn", "use_cache_kernel", "onnx_safe", "tokenizer_type", "generate_kwargs", "lora", "optimizer",
    "unsloth_version", "return_dict", "output_attentions", "output_hidden_states",
}  # fmt: skip
_CLUTTER = {
    "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length",
    "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_scores", "prefix", "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p",
    "use_bfloat16",
}  # fmt: skip
"""What transformers 4 writes into a config.json that it saves whole."""

_VISION = {
    "hidden_size": "dim", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
    "intermediate_size": "mlp_dim", "image_size": "image_size", "patch_size": "patch_size",
    "hidden_act": "activation", "layer_norm_eps": "eps", "use_cls_token": "use_cls_token",
    "use_post_layernorm": "use_post_norm",
}  # fmt: skip
_ABSTRACTOR = {
    "num_learnable_queries": "num_queries", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
    "intermediate_size": "mlp_dim", "layer_norm_eps": "eps", "grid_size": "grid_size",
}  # fmt: skip


def is_official_config(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of an official directory; ours says `vision`, not `visual_config`."""
    return "visual_config" in config


def config_fields(official: Mapping[str, Any], keys: Iterable[str] = ()) -> dict[str, Any]:
    """Fields of `MPlugOwl2Config` from an official config.

    Args:
        official: the parsed config.json; Qwen's field names tell Owl2.1 from Owl2.
        keys: of the weights, which know whether ways exist; empty where only the config is at hand.

    Returns:
        Fields that the file decides, and the defaults of the official classes for those it leaves out.

    Raises:
        ValueError: for a field that is unknown, or one that no published model sets that way; for an Owl2.1 without
            seq_length; for an abstractor of another width than the tower.

    Source:
        Specification mPLUG-Owl2, section 2.
    """
    is_qwen = "kv_channels" in official or "layer_norm_epsilon" in official
    # By fields, not by the directory's name: the published names match neither of the official tests (section 8.2).
    names = {**(_QWEN if is_qwen else _LLAMA), **_BOTH}
    for name, value in official.items():
        if name in _FIXED:
            if value not in _FIXED[name]:
                expected = f"config.json with {name} = {_FIXED[name][0]!r}, as in all published models"
                raise ValueError(f"expected {expected}, got {value!r}")
        elif name not in names.keys() | _READ_ELSEWHERE | _IGNORED | _CLUTTER and not name.startswith("_"):
            raise ValueError(f"expected a known field in the official config.json, got {name!r}; add it to config.py")
    visual = official.get("visual_config") or {}
    fields = {ours: official[theirs] for theirs, ours in names.items() if theirs in official}
    if not isinstance(fields.get("image_aspect"), str):  # null where no training wrote it
        fields.pop("image_aspect", None)
    fields["vision"] = vision_sizes(visual.get("visual_model") or {})
    fields["abstractor"] = abstractor_sizes(visual.get("visual_abstractor") or {})
    if is_qwen:
        # seq_length has no default: Qwen-7B was released with 2048 and again with 8192, and NTK hangs on it.
        if official.get("seq_length") is None and official.get("use_dynamic_ntk", True):
            raise ValueError("expected seq_length in the config.json of an Owl2.1 model, got none; Qwen-7B has 8192")
        keys, bias = list(keys), not official.get("no_bias", True)
        # The keys cannot be wrong about it; the field can, and defaults to false.
        multiway = any(".c_attn.multiway." in key for key in keys) if keys else bool(official.get("multiway"))
        return {
            "routed": QWEN_ROUTED if multiway else (),
            "rope_parameters": {"rope_type": "default", "rope_theta": official.get("rotary_emb_base", 10000)},
            "mlp_dim": official.get("intermediate_size", 22016) // 2,  # the official field counts both halves
            "vocab_size": 151936,
            "eps": 1e-6,
            "head_dim": 128,
            "qkv_bias": True,  # c_attn has one whatever no_bias says
            "out_bias": bias,
            "mlp_bias": bias,
            "max_position_embeddings": 8192,
            "bos_token_id": None,
            "eos_token_id": 151643,
            "pad_token_id": 151643,
        } | fields
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": official.get("rope_theta", 10000.0)}
    scaling = official.get("rope_scaling")  # null in all published files
    if scaling:
        rope |= {"rope_type": scaling.get("type", scaling.get("rope_type")), "factor": scaling["factor"]}
    bias = bool(official.get("attention_bias", False))
    # `fields` last: what the file says goes before these defaults of the official class, 2048 positions among them.
    # LLaMA-2 itself has eps 1e-5; a file without the field was written by a class whose default is 1e-6.
    return {
        "routed": ADAPTIVE, "rope_parameters": rope, "eps": 1e-6, "qkv_bias": bias, "out_bias": bias,
        "max_position_embeddings": 2048,
    } | fields  # fmt: skip


def vision_sizes(official: Mapping[str, Any]) -> VisionConfig:
    """Sizes of the tower from `visual_config.visual_model`.

    Older files lack use_cls_token and use_post_layernorm, which are true then (specification mPLUG-Owl2, section 2.1).
    Unknown fields are clutter of transformers and left alone.
    """
    return VisionConfig(**{ours: official[theirs] for theirs, ours in _VISION.items() if theirs in official})


def abstractor_sizes(official: Mapping[str, Any]) -> AbstractorConfig:
    """Sizes of the abstractor from `visual_config.visual_abstractor`. A falsy grid_size means 32.

    Raises:
        ValueError: where it is not as wide as the tower; queries and features are concatenated and share a norm.
    """
    if official.get("hidden_size") != official.get("encoder_hidden_size", official.get("hidden_size")):
        raise ValueError(
            f"expected an abstractor as wide as the tower, got {official['hidden_size']} and "
            f"{official['encoder_hidden_size']}"
        )
    fields = {ours: official[theirs] for theirs, ours in _ABSTRACTOR.items() if theirs in official}
    return AbstractorConfig(**{**fields, "grid_size": fields.get("grid_size") or 32})
