"""Configuration of mPLUG-2: sizes of its modules, and which task of the family a model is for.

official yaml + bert json, and the shapes of a checkpoint -> MPlug2Config.from_official -> model
preset name -> MPlug2Config.preset

The settings of official files say little and name released files for the rest, so most sizes are read off the tensors;
a setting that nobody knows is an error. Source: specification mPLUG-2, sections 2 and 13.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from transformers import PreTrainedConfig

from plait.models.mplug2.composition import TASKS, TEMPLATES
from plait.nn.contract import OpensAlone, checked
from plait.presets import Presets, choose
from plait.weights.keymap import count_layers


@checked
@dataclass
class VisionConfig:
    """The dual vision encoder; defaults are CLIP ViT-L/14.

    Args:
        dim, num_heads, num_layers: of the ViT; heads are 64 wide in all published sizes.
        patch_size: side of a patch in pixels.
        image_size: side of an image in pixels; a rim that fills no patch is not looked at.
        temporal: whether blocks have local temporal modules.
        temporal_kernel, temporal_stride: frames that a patch spans, and from one patch to the next;
            1 and 1 as published.
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
        """Patches along one side.

        Raises:
            ValueError: for an image smaller than a patch.
        """
        if self.image_size < self.patch_size:
            raise ValueError(f"expected image_size of at least a patch, {self.patch_size}, got {self.image_size}")
        return self.image_size // self.patch_size


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


@checked
class MPlug2Config(Presets, OpensAlone, PreTrainedConfig):
    """Everything that decides the shape of a model; defaults are the published large one.

    Args:
        task: of `composition.TASKS`, for the modules of that task alone; None for all tasks of the
            model's class.
        modalities: what is looked at, of image and video; without video no temporal modules are
            built.
        vision: sizes of the vision encoder, a `VisionConfig` or its fields.
        dim, num_heads, mlp_dim, eps, dropout, attention_dropout: of all BERT-like layers.
        num_text_layers: layers that text alone passes.
        num_universal_layers: layers behind them, shared with vision; 0 as in mPLUG.
        universal_sharing: `shared`, or `apart`: a stack per modality at equal parameters.
        num_latents: length of the compressed vision stream in the universal layers.
        num_fusion_layers: layers of the fusion module that run.
        fusion_stride: every stride-th fusion layer but the first joins both streams in one
            self-attention.
        stored_fusion_layers: fusion layers that an official file holds, of which the last are run.
        num_decoder_layers, max_positions, vocab_size, num_types: decoder and embeddings.
        projection_dim: width of the space in which class tokens are compared.
        temperature_init: divisor of similarities at the start.
        queue_size: columns of the contrastive queues, 0 for none and no teacher.
        momentum: of the teacher, the share that stays at an update.
        distill: whether a generative model has a teacher.
        instructions: what the model was trained to be told, cells of `composition.TEMPLATES` such as
            `caption image`, and nothing else is sent to it; True, as older files have it, for captions,
            answers and classes of what is seen, False for none.
        num_images: images per sample of a sequence classifier; 2 as in NLVR2.
        grounding_bins, grounding_start_id: coordinate tokens are the `bins + 1` ids behind the
            start id.
        num_frames: frames of a video that the processor samples.
        init_std: of fresh weights.
        official: repeat the quirks and bugs of the released code.

    Raises:
        ValueError: for an unknown task, modality or sharing.

    Example:
        >>> config = MPlug2Config.preset("tiny", task="caption", modalities=["image"])
        >>> config.image_size, config.dim
        (12, 24)

    Source: the released yaml and json files (specification mPLUG-2, section 2).
    """

    model_type = "mplug2"
    has_no_defaults_at_init = False
    presets = PRESETS
    keys_to_ignore_at_inference = ["encoder_last_hidden_state"]  # noqa: RUF012 (Trainer gathers what is left: logits)
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
    # 22 + 2 are the 24 layers of bert-large: the universal ones are its last two.
    num_text_layers: int = 22
    num_universal_layers: int = 2
    universal_sharing: str = "shared"
    num_latents: int = 50
    num_fusion_layers: int = 6
    # The released fusion stack has bert-large's 24 layers, and only the last 6 are called.
    stored_fusion_layers: int = 24
    # Larger than any stack: the published large model has no connected layer (specification 5).
    fusion_stride: int = 1000
    num_decoder_layers: int = 12
    max_positions: int = 512
    vocab_size: int = 30522
    num_types: int = 2
    # BERT's; the vision encoder keeps CLIP's 1e-5.
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    projection_dim: int = 256
    temperature_init: float = 0.07
    queue_size: int = 0
    momentum: float = 0.995
    distill: bool = False
    instructions: bool | list[str] | tuple[str, ...] = False
    num_images: int = 1
    # mPLUG's 337 coordinate tokens; 344 is [unused339] in uncased BERT's vocabulary (specification 7.3).
    grounding_bins: int = 336
    grounding_start_id: int = 344
    num_frames: int = 16
    init_std: float = 0.02
    official: bool = False
    # [PAD], [CLS] and [SEP] of uncased BERT; the released beam search has 101 and 102 written in.
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | None = 102
    # Heads are handed the token table at every call, so transformers has nothing to tie.
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check names and turn every field into what JSON gives back, so that a saved configuration equals its source.

        Raises:
            ValueError: for an unknown task, modality, sharing or instruction.
        """
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"expected a task among {', '.join(TASKS)}, got {self.task!r}")
        unknown = set(self.modalities) - {"image", "video"}
        if unknown:
            raise ValueError(f"expected modalities among image, video, got {', '.join(sorted(unknown))}")
        if self.universal_sharing not in ("shared", "apart"):
            raise ValueError(f"expected universal_sharing shared or apart, got {self.universal_sharing!r}")
        if not isinstance(self.instructions, bool):
            known = [" ".join(cell) for cell in TEMPLATES]
            if unknown := set(self.instructions) - set(known):
                raise ValueError(
                    f"expected instructions among {', '.join(known)}, got {', '.join(map(repr, sorted(unknown)))}"
                )
            self.instructions = [cell for cell in known if cell in self.instructions]
        # A file cannot hold fewer layers than run; presets and changes may name one number only.
        self.stored_fusion_layers = max(self.stored_fusion_layers, self.num_fusion_layers)
        # In the order of the house, whatever order the caller wrote.
        self.modalities = [m for m in ("image", "video") if m in self.modalities]
        self.keep_plain(vision=VisionConfig)
        super().__post_init__(**kwargs)

    @property
    def vision_sizes(self) -> VisionConfig:
        """`vision`, typed; a new object at every access, so changes to it are lost."""
        return self.sizes("vision", VisionConfig)

    @property
    def image_size(self) -> int:
        """Side of the images and frames that the model takes, in pixels."""
        return self.vision_sizes.image_size

    @property
    def has_projection(self) -> bool:
        """Whether vision tokens are projected to the width of the rest, as mPLUG large does (1024 to 768)."""
        return self.vision_sizes.dim != self.dim

    @property
    def is_predecessor(self) -> bool:
        """Whether this is mPLUG (arXiv 2205.12005), without universal layers."""
        return self.num_universal_layers == 0

    def changed(self, changes: Mapping[str, Any], branch: Sequence[str] | None = None) -> MPlug2Config:
        """Another configuration: with other fields, among them `image_size`, and the media of `branch` alone.

        Raises:
            ValueError: for a field that does not exist and a branch that it lacks.
        """
        fields = dict(changes)
        if (size := fields.pop("image_size", None)) is not None:
            fields["vision"] = {**asdict(self.vision_sizes), **(fields.get("vision") or {}), "image_size": size}
        if branch is not None:
            fields["modalities"] = [m for m in choose(("text", *self.modalities), branch) if m != "text"]
        return super().changed(fields)

    @classmethod
    def from_official(
        cls, official_config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]], **changes: Any
    ) -> MPlug2Config:
        """The configuration of an official file.

        Args:
            official_config: settings of the run (yaml, with `bert_config` as a name or a mapping),
                or None.
            shapes: of its tensors by name, under the names of finetuned files.
            changes: fields to set otherwise.

        Returns:
            The configuration; sizes come from the tensors, the rest from the settings or the
                released files they name.

        Raises:
            ValueError: for an unknown setting or field, and for tensors of another model.
        """
        return cls(**{**config_fields(official_config, shapes), **cls.known(changes)})


logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

# Run settings that stand beside the sizes and do not change what a loaded model computes; the released code overwrites
# `momentum` with 0.995.
_IGNORED = frozenset(
    """
    clip_name distill eos use_checkpoint beam_size min_length max_length k_test xclip clip bert_config prompt prompt_ids
    alpha warm_up optimizer schedular batch_size_train batch_size_test train_file test_file val_file answer_list
    add_ocr add_object model_test_frames test_num_frames num_workers video_root image_root vqa_root vg_root gqa_root
    coco_root read_local_data generation answers_per_question train_root dataset label_file accum_steps
    add_prompt_features ans_list ocr object data_root task note seed max_input_length text_encoder text_decoder
    batch_size mlm_probability use_conv_dw no_randaug output_dir evaluate num_frames_train vision_heads max_length_test
    test_frames num_frames_test num_frames_val nworkers checkpoint resume min_scale crop_min_scale max_words
    text_drop_rate no_init_decocde do_two_optim do_amp do_accum dist_url device world_size distributed gpu rank
    result_dir answer_file add_ocr_object min_lr lr momentum bos double_lmhra use_st merge_attention prefix_task
    itm_task mlm_task ita_task mid_cross concat_last_layer split_root extra_dim extra_nhead eval_split max_query_len
    aug_blur aug_crop aug_scale aug_translate image_size ann_root num_frm_test vatex_video_caps_root ref_path
    videoqa_root nocaps_root answer_list_vocab answer_list_vocab_1000 open_generation has_multi_vision_gt
    is_paragraph_retrieval
    """.split()  # noqa: SIM905
)
_READ = frozenset(
    """
    image_res vision_width num_frames model_num_frames embed_dim temporal_stride temporal_downsampling temp queue_size
    grounding_bins grounding_prefix
    """.split()  # noqa: SIM905
)
_BERT = {
    "hidden_size": "dim",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "max_positions",
    "vocab_size": "vocab_size",
    "type_vocab_size": "num_types",
    "layer_norm_eps": "eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "init_std",
    "pad_token_id": "pad_token_id",
    "fusion_layers": "num_fusion_layers",
    "num_hidden_layers": "stored_fusion_layers",
    "text_decode_layers": "num_decoder_layers",
    "stride_layer": "fusion_stride",
}
_BERT_IGNORED = frozenset(
    """
    model_type encoder_width add_cross_attention use_cache gradient_checkpointing architectures attention_type
    text_encoder_layers num_uni_layer transformers_version classifier_dropout
    """.split()  # noqa: SIM905
)
# BERT's code knows other activations and positions; no released configuration uses one.
_BERT_FIXED = {"hidden_act": "gelu", "position_embedding_type": "absolute"}

NAMED_BERTS: dict[str, dict[str, int]] = {
    "config_bert_large_text": {"fusion_layers": 6, "stride_layer": 1000},
    "config_bert": {"fusion_layers": 3, "stride_layer": 100},
    "config_bert_text": {"fusion_layers": 3, "stride_layer": 1000},
    "config_bert_text_grad_ckpt": {"fusion_layers": 3, "stride_layer": 1000},
    "config_bert_stride3": {"fusion_layers": 6, "stride_layer": 3},
}
"""What the released bert configurations say that tensors cannot tell (specification, section 2)."""


def config_fields(official: Mapping[str, Any] | None, shapes: Shapes) -> dict[str, Any]:
    """Fields of `MPlug2Config` that an official file and its settings tell.

    Args:
        official: the settings of a run, or None.
        shapes: of the tensors by name, under the names of finetuned files.

    Returns:
        Keyword arguments of `MPlug2Config`; what nothing tells is left out, so its default stands.

    Raises:
        ValueError: for an unknown setting, for tensors of another model and for activations other
            than GELU.
    """
    official = official or {}
    # Refused, not skipped: a setting that nobody knows might change what the model computes.
    unknown = set(official) - _IGNORED - _READ
    if unknown:
        raise ValueError(f"expected settings of mPLUG-2, got {', '.join(sorted(unknown))}; remove them")
    fields = _from_shapes(shapes)
    bert = official.get("bert_config") or {}
    if isinstance(bert, str):
        name = PurePosixPath(bert).name.removesuffix(".json")
        bert = NAMED_BERTS.get(name, {})
        if not fields["num_universal_layers"]:
            # mPLUG has files of the same names with other numbers: those of its releases are assumed
            bert = {}
        elif name not in NAMED_BERTS:
            known = ", ".join(NAMED_BERTS)
            logger.warning(
                "expected a bert_config among %s, got %s: fusion layers assumed as in the releases", known, name
            )
    fields |= bert_fields(bert)
    fields["vision"] = _vision(official, shapes, fields["num_temporal"] > 0)
    if "prefix_ids" in shapes:
        # mPLUG's grounding cuts the text encoder to as many layers as the stride
        fields["text_layers"] = min(fields["text_layers"], count_layers(shapes, "text_encoder.encoder.layer."))
    fields["num_text_layers"] = fields["text_layers"] - fields["num_universal_layers"]
    # Later entries win: `model_num_frames` stands where a file has both names for frames.
    names = {"embed_dim": "projection_dim", "temp": "temperature_init", "num_frames": "num_frames",
             "model_num_frames": "num_frames", "grounding_bins": "grounding_bins",
             "grounding_prefix": "grounding_start_id"}  # fmt: skip
    fields |= {ours: official[theirs] for theirs, ours in names.items() if theirs in official}
    if "prefix_ids" in shapes:
        # Only grounding files store coordinate tokens.
        fields["task"] = "ground"
        # `target_ids` lists all coordinate tokens, one more than bins.
        fields["grounding_bins"] = shapes["target_ids"][0] - 1
    if "image_queue" in shapes:
        # A queue is (projection_dim, size).
        fields["projection_dim"] = shapes["image_queue"][0]
    return {name: value for name, value in fields.items() if name not in ("num_temporal", "text_layers")}


def bert_fields(bert: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a bert configuration says, which may be part of one.

    Args:
        bert: entries of a released `config_bert*.json`.

    Returns:
        Fields of `MPlug2Config`, and `text_layers`, the text encoder's layers with the universal
            ones.

    Raises:
        ValueError: for an unknown entry, and for another activation or another kind of positions.
    """
    unknown = set(bert) - set(_BERT) - _BERT_IGNORED - set(_BERT_FIXED)
    if unknown:
        raise ValueError(f"expected entries of a bert configuration, got {', '.join(sorted(unknown))}; remove them")
    for name, only in _BERT_FIXED.items():
        if bert.get(name, only) != only:
            raise ValueError(f"expected {name} {only}, got {bert[name]!r}")
    fields = {ours: bert[theirs] for theirs, ours in _BERT.items() if theirs in bert}
    if "text_encoder_layers" in bert:
        fields["text_layers"] = bert["text_encoder_layers"]
    if "fusion_layers" in bert and "num_hidden_layers" in bert:
        # The released code starts at max(0, stored - fusion), so no more run than are stored (specification 5).
        fields["num_fusion_layers"] = min(bert["fusion_layers"], bert["num_hidden_layers"])
    return fields


def _from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Sizes read off the tensors, `num_temporal` and `text_layers` among them, which are no fields.

    Raises:
        ValueError: where there is neither a text encoder nor a decoder, or no vision encoder.
    """
    table = shapes.get("text_encoder.embeddings.word_embeddings.weight") or shapes.get(
        "text_decoder.bert.embeddings.word_embeddings.weight"
    )
    conv = shapes.get("visual_encoder.visual.conv1.weight")
    if table is None or conv is None:
        raise ValueError("expected a text encoder or decoder and a vision encoder, got a file without")
    dim = table[1]
    text = count_layers(shapes, "text_encoder.encoder.layer.")
    fusion = count_layers(shapes, "fusion_encoder.encoder.layer.")
    # Universal layers are those of the text encoder with cross-attention, its last ones; mPLUG has none.
    crossed = {key.split(".")[3] for key in shapes if key.startswith("text_encoder.") and ".crossattention." in key}
    positions = next(s for k, s in shapes.items() if k.endswith("embeddings.position_embeddings.weight"))
    mlp = next(s for k, s in shapes.items() if re.match(r"text_\w+\..*layer\.0\.intermediate\.dense\.weight", k))
    # How many fusion layers run, and the stride, no tensor tells: those of the released configurations.
    if crossed:
        run, stride = 6 if fusion == 24 else 3, 1000
    else:
        # mPLUG large is the only one whose vision encoder is wider than its text encoder (1024, 768).
        run, stride = 6, 6 if conv[0] > dim else 3
    return {
        "dim": dim,
        # All released heads are 64 wide; tiny ones narrower than that have one.
        "num_heads": max(dim // 64, 1),
        "mlp_dim": mlp[0],
        "vocab_size": table[0],
        "max_positions": positions[0],
        "text_layers": text,
        "num_universal_layers": len(crossed),
        "num_latents": next((s[0] for k, s in shapes.items() if re.match(r"text_encoder\..*latents", k)), 50),
        "num_decoder_layers": count_layers(shapes, "text_decoder.bert.encoder.layer."),
        "stored_fusion_layers": fusion,
        "num_temporal": sum(".lmhra1." in key for key in shapes),
        "num_fusion_layers": min(run, fusion),
        "fusion_stride": stride,
    }


def _vision(official: Mapping[str, Any], shapes: Shapes, temporal: bool) -> VisionConfig:
    """The vision encoder. The size of its images is the file's; the settings may add a rim that fills no patch.

    temporal: whether the file has local temporal modules.
    """
    conv, table = (shapes[f"visual_encoder.visual.{name}"] for name in ("conv1.weight", "positional_embedding"))
    sizes = official.get("xclip") or official.get("clip") or {}
    # Videos have a Conv3d (dim, 3, time, P, P); mPLUG's image files a Conv2d without time.
    kernel = conv[2] if len(conv) == 5 else 1
    grid = round((table[0] - 1) ** 0.5)
    said = official.get("image_res", 0)
    return VisionConfig(
        dim=conv[0],
        num_heads=sizes.get("vision_heads") or official.get("vision_heads") or max(conv[0] // 64, 1),
        num_layers=count_layers(shapes, "visual_encoder.visual.transformer.resblocks."),
        patch_size=conv[-1],
        # The table tells patches, not pixels: 230 make the same 16 patches of 14 as 224, so the
        # settings decide there.
        image_size=said if said // conv[-1] == grid else grid * conv[-1],
        temporal=temporal,
        temporal_kernel=kernel,
        # 2 is the released default, and read only together with a kernel over time.
        temporal_stride=official.get("temporal_stride", 2) if kernel > 1 else 1,
    )
