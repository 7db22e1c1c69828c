"""ONE-PEACE's vision branch with heads of its own: pictures and videos (specification 8.1-8.3).

pixels -> image adapter -> trunk without final norm -> mean of patches -> norm -> head                    picture
frames -> image adapter + time -> trunk with bottlenecks -> norm -> CLS of every frame, averaged -> head        video
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from plait.generation.deciding import DecidingSkills, named_labels
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.models.one_peace.weights import vision_key_map
from plait.nn.attention import AttentionFunction, attention_function
from plait.nn.contract import outputs_for_transformers
from plait.nn.encoder import RoutedEncoderLayer
from plait.nn.layers import drop_path, linear_drop_path_rates
from plait.processing.images import shorter_side_and_centre_crop
from plait.processing.videos import CLIPS, three_crops
from plait.routing import Route
from plait.types import Capability
from plait.weights.keymap import KeyMap, Rename, Rule, prefixed

_P = "{p:weight|bias}"
# Fields of the released configurations of all four vision models; not every one is read here.
_KNOWN = frozenset(
    """
    attention_heads bucket_size pretrain_bucket_size effective_adapter_pretrain_bucket_size dropout embed_dim
    ffn_embed_dim layers rp_bias shared_rp_bias num_classes global_pool num_frames adapter_scale use_decomposed_rel_pos
    window_size window_block_indexes init_values drop_path_rate conv_inplane n_points deform_num_heads cffn_ratio
    deform_ratio interaction_indexes
    """.split()  # noqa: SIM905
)


def vision_config(official: Mapping[str, Any], **changes: Any) -> OnePeaceConfig:
    """The branch that an official vision configuration describes.

    Args:
        official: its fields, such as `embed_dim`, `layers` and `bucket_size`.
        changes: fields of `OnePeaceConfig` to set otherwise.

    Returns:
        A configuration of images alone, without projections and final norm.

    Raises:
        ValueError: for a field nobody knows.
    """
    unknown = [name for name in official if name not in _KNOWN]
    if unknown:
        raise ValueError(f"expected known fields of an official vision model, got {', '.join(unknown)}")
    fields: dict[str, Any] = {
        "dim": official["embed_dim"],
        "num_heads": official["attention_heads"],
        "num_layers": official["layers"],
        "mlp_dim": official["ffn_embed_dim"],
        "image_bucket_size": official["bucket_size"],
        # The branch has one size for both: its images are exactly 16 * bucket_size pixels wide (specification 8.1).
        "image_rel_bucket_size": official["bucket_size"],
        "per_layer_bias": not official.get("shared_rp_bias", True),
        "layer_scale": official.get("init_values", 1e-6),
        "drop_path_rate": official.get("drop_path_rate", 0.0),
        "num_classes": official.get("num_classes", 0),
    }
    return OnePeaceConfig(modalities=["image"], use_projections=False, norm_ways={}, **{**fields, **changes})


def branch_rules(official: str = "") -> list[Rule]:
    """Rules of the branch, its tables named as the finetuned files name them.

    Args:
        official: prefix of the branch in the file.
    """
    tables: list[Rule] = [
        Rename("image_adapter.rel_pos_table.weight", "adapters.image.bias.tables.0"),
    ]
    return [*prefixed([*tables, *vision_key_map().rules], official=official, native="vision.")]


def classified(logits: Tensor, labels: Tensor | None) -> ImageClassifierOutput:
    """logits: (batch, classes); labels: (batch,) class numbers for a mean cross entropy, or None for no loss."""
    loss = None if labels is None else F.cross_entropy(logits.float(), labels)
    return ImageClassifierOutput(loss=cast("torch.FloatTensor | None", loss), logits=cast("torch.FloatTensor", logits))


class OnePeaceImageClassifier(OnePeacePreTrainedModel):
    """Images -> logits: the mean of the patches (or CLS, where `mean` is off) behind a norm.

    Args:
        config: of the branch, as `vision_config` makes it, with `num_classes`. With `mean` off a
            copy has `norm_ways`, since CLS is read behind the trunk's final norm.
        mean: whether patches are averaged, as published; what the configuration's `norm_ways` say without it.

    Example:
        >>> import torch
        >>> fields = {"modalities": ["image"], "norm_ways": {}, "use_projections": False, "num_classes": 3}
        >>> OnePeaceImageClassifier(OnePeaceConfig.preset("nano", **fields))(torch.rand(2, 3, 64, 64)).logits.shape
        torch.Size([2, 3])

    Source: specification ONE-PEACE, section 8.2.
    """

    main_input_name = "pixel_values"

    def __init__(self, config: OnePeaceConfig, *, mean: bool | None = None) -> None:
        mean = not config.ways("norm_ways") if mean is None else mean
        if not mean and not config.ways("norm_ways"):
            config = copy.deepcopy(config)  # the caller's stays as it is
            config.norm_ways = {"image": ["image"]}
        super().__init__(config)
        self.vision = OnePeaceModel(config)
        self.norm = nn.LayerNorm(config.dim) if mean else None
        self.head = nn.Linear(config.dim, config.num_classes)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the trunk makes of images.

        Args:
            pixel_values: (batch, 3, side, side).

        Returns:
            (batch, 1 + patches, dim), CLS first, behind a norm only where `mean` is off.

        Raises:
            ValueError: for images of another size.
        """
        return self.vision.encode({"image": pixel_values}).features["image"]

    def classify(self, features: Tensor) -> Tensor:
        """The head alone.

        Args:
            features: (batch, 1 + patches, dim), CLS first.

        Returns:
            Logits (batch, num_classes).
        """
        return self.head(features[:, 0] if self.norm is None else self.norm(features[:, 1:].mean(dim=1)))

    @outputs_for_transformers
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Images to logits.

        Args:
            pixel_values: (batch, 3, side, side).
            labels: (batch,) class numbers.

        Returns:
            Logits (batch, num_classes), and the mean cross entropy where labels are given.
        """
        return classified(self.classify(self.features(pixel_values)), labels)

    @staticmethod
    def key_map() -> KeyMap:
        """Official file (its `model`) <-> this module."""
        return KeyMap([*branch_rules(), Rename(f"fc_norm.{_P}", "norm.{p}"), Rename(f"head.{_P}", "head.{p}")])


class Bottleneck(nn.Module):
    """Down to a quarter of the width and up, 0 at first; with `skip` it starts as the identity.

    Args:
        dim: width.
        skip: whether the input is added.

    Source: AIM (arXiv 2302.03024); specification ONE-PEACE, section 8.3.
    """

    def __init__(self, dim: int, *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.down = nn.Linear(dim, dim // 4)
        self.up = nn.Linear(dim // 4, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        cast("Any", self.up).fresh_std = 0.0  # whoever draws a model anew leaves it so

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        y = self.up(F.gelu(self.down(x)))
        return x + y if self.skip else y


class VideoLayer(nn.Module):
    """What one layer gains for videos; the layer's own attention serves both time and space.

    Args:
        dim: width.
        scale: factor on the bottleneck beside the feed-forward network, 0.5 as published.
        drop_path_rate: of its branches, in training.

    Source: AIM (arXiv 2302.03024); specification ONE-PEACE, section 8.3.
    """

    def __init__(self, dim: int, scale: float, drop_path_rate: float) -> None:
        super().__init__()
        self.scale, self.drop_path_rate = scale, drop_path_rate
        self.time = Bottleneck(dim, skip=False)
        self.space = Bottleneck(dim, skip=True)
        self.mlp = Bottleneck(dim, skip=False)

    def forward(
        self, x: Tensor, layer: RoutedEncoderLayer, bias: Tensor, num_frames: int, attend: AttentionFunction
    ) -> Tensor:
        """One layer of the branch, over time and then over space.

        Args:
            x: (batch * frames, seq, dim), CLS first.
            layer: of the trunk, whose weights are used.
            bias: (1, heads, seq, seq), of space alone; time has none.
            num_frames: of every video.
            attend: the attention implementation.

        Returns:
            (batch * frames, seq, dim).
        """
        # Every token, CLS included, attends to itself in the other frames.
        over_time = x.unflatten(0, (-1, num_frames)).transpose(1, 2).flatten(0, 1)  # (batch * seq, frames, dim)
        # Norm and attention are those of the layer, the same weights that serve space below.
        over_time = self.time(layer.attn(layer.attn_norm(over_time), None, None, attend))
        over_time = over_time.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)
        informed = x + self._dropped(over_time)
        y = self.space(layer.attn(layer.attn_norm(informed), bias, None, attend))
        # of the layer's input: time acts through space only
        x = x + self._dropped(layer.attn_scale(y))
        normed = layer.mlp_norm(x)
        y = layer.mlp_scale(layer.mlp(normed, Route.only("image")))
        # Drop path meets the bottleneck alone; the feed-forward network itself is never dropped, as released.
        return x + y + self._dropped(self.scale * self.mlp(normed))

    def _dropped(self, x: Tensor) -> Tensor:
        """Rows left out at `drop_path_rate` in training."""
        return drop_path(x, self.drop_path_rate, self.training)


class OnePeaceVideoClassifier(OnePeacePreTrainedModel):
    """Videos -> logits, or vectors: frames through the branch with bottlenecks, CLS averaged over time.

    Args:
        config: of the branch, as `vision_config` makes it, with `num_classes`.
        num_frames: of every video, 16 or 32 as published; `config.num_frames` without it.
        adapter_scale: factor on the bottlenecks beside the feed-forward networks; likewise.

    Raises:
        ValueError: for a configuration that names no number of frames.

    Example:
        >>> import torch
        >>> fields = {"modalities": ["image"], "norm_ways": {}, "use_projections": False, "num_classes": 3}
        >>> model = OnePeaceVideoClassifier(OnePeaceConfig.preset("nano", num_frames=2, **fields))
        >>> model(torch.rand(1, 2, 3, 64, 64)).logits.shape
        torch.Size([1, 3])

    Source: specification ONE-PEACE, section 8.3.
    """

    main_input_name = "pixel_values"

    def __init__(
        self, config: OnePeaceConfig, *, num_frames: int | None = None, adapter_scale: float | None = None
    ) -> None:
        super().__init__(config)
        config.num_frames = num_frames or config.num_frames
        config.adapter_scale = config.adapter_scale if adapter_scale is None else adapter_scale
        if not config.num_frames:
            raise ValueError("expected config.num_frames for a model of videos, got 0; published are 16 and 32")
        self.vision = OnePeaceModel(config)
        self.time_embedding = nn.Parameter(torch.zeros(1, config.num_frames, config.dim))
        rates = linear_drop_path_rates(config.drop_path_rate, config.num_layers)
        self.adapters = nn.ModuleList(VideoLayer(config.dim, config.adapter_scale, rate) for rate in rates)
        # A new norm, since extraction threw that of the branch away.
        self.norm = nn.LayerNorm(config.dim)
        # The published rate, in front of the head.
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(config.dim, config.num_classes)
        self.post_init()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it embeds: clips, and nothing that could be compared with them."""
        return ("video",)

    def frames(self, video: Tensor) -> Tensor:
        """All frames of all videos behind the final norm.

        Args:
            video: (batch, 3, frames, side, side).

        Returns:
            (batch * frames, 1 + patches, dim), CLS first.

        Raises:
            ValueError: for another number of frames, and images of another size.
        """
        num_frames = video.shape[2]
        if num_frames != self.time_embedding.shape[1]:
            raise ValueError(f"expected {self.time_embedding.shape[1]} frames, got {num_frames}; sample as many")
        adapted = self.vision.adapters["image"](video.transpose(1, 2).flatten(0, 1))
        # Behind the positions in space, one vector per frame for all its tokens.
        x = adapted.x.unflatten(0, (-1, num_frames)) + self.time_embedding[:, :, None]
        x = x.flatten(0, 1)
        attend = attention_function(self.vision.config._attn_implementation)
        for i, (layer, adapters) in enumerate(zip(self.vision.trunk.layers, self.adapters, strict=True)):
            x = adapters(x, layer, adapted.biases[i % len(adapted.biases)], num_frames, attend)
        return self.norm(x)

    def classify(self, frames: Tensor) -> Tensor:
        """The head alone: CLS of every frame, averaged over time.

        Args:
            frames: (batch * frames, 1 + patches, dim) of `frames`.

        Returns:
            Logits (batch, num_classes).
        """
        return self.head(self.dropout(self.pooled(frames)))

    def pooled(self, frames: Tensor) -> Tensor:
        """CLS of every frame, averaged over time. frames: (batch * frames, 1 + patches, dim) -> (batch, dim)."""
        return frames[:, 0].unflatten(0, (-1, self.time_embedding.shape[1])).mean(dim=1)

    def get_video_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors of videos, near where they look and move alike; they share no space with words.

        Args:
            pixel_values: (batch, frames, 3, side, side), of one clip of `config.num_frames` or of several in a row,
                which are looked at apart and averaged.

        Returns:
            (batch, dim), of length 1.

        Raises:
            ValueError: for frames that are no whole number of clips.
        """
        count, length = pixel_values.shape[1], self.time_embedding.shape[1]
        if count % length or not count:
            raise ValueError(f"expected clips of {length} frames, got {count} frames; pass one clip or several")
        # One after another: a batch of films of three clips is large enough.
        clips = [self.pooled(self.frames(clip.transpose(1, 2))) for clip in pixel_values.split(length, dim=1)]
        return F.normalize(torch.stack(clips).mean(dim=0), dim=-1)

    @outputs_for_transformers
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Videos to logits; probabilities of several clips and crops are averaged by the caller.

        Args:
            pixel_values: (batch, frames, 3, side, side), as models of transformers take videos.
            labels: (batch,) class numbers.

        Returns:
            Logits (batch, num_classes), and the mean cross entropy where labels are given.
        """
        return classified(self.classify(self.frames(pixel_values.transpose(1, 2))), labels)

    @staticmethod
    def key_map() -> KeyMap:
        """Official file (its `state_dict`) <-> this module."""
        layer = "backbone.encoder.layers.{i}."
        parts = {"T_Adapter": "time", "S_Adapter": "space", "MLP_Adapter": "mlp"}
        own = [
            Rename("backbone.image_adapter.temporal_embedding", "time_embedding"),
            Rename(f"backbone.encoder.image_layer_norm.{_P}", "norm.{p}"),
            Rename(f"cls_head.fc_cls.{_P}", "head.{p}"),
        ]
        for source, target in parts.items():
            own += [
                Rename(f"{layer}{source}.D_fc1.{_P}", f"adapters.{{i}}.{target}.down.{{p}}"),
                Rename(f"{layer}{source}.D_fc2.{_P}", f"adapters.{{i}}.{target}.up.{{p}}"),
            ]
        return KeyMap([*own, *branch_rules("backbone.")])


class OnePeaceVisionSkills(DecidingSkills):
    """Classes of images, or of videos seen in three clips and three crops, whose probabilities are averaged."""

    tasks = frozenset({"classify"})
    capabilities: tuple[Capability, ...] = ("classify",)

    def __init__(self, model: Any, processor: OnePeaceProcessor) -> None:
        self.model, self.processor = model, processor
        self.labels = named_labels(model.config)
        if isinstance(model, OnePeaceVideoClassifier):
            self.kinds, self.frames = frozenset({"video"}), "clips"
            self.num_frames = CLIPS * model.config.num_frames
        else:
            self.kinds = frozenset({"image"})

    def prepare(self, kind: str, value: Any) -> Tensor:
        """An image -> (1, 3, side, side), its shorter side fitted and its middle cut out; frames -> all views of a
        video, (clips * crops, frames, 3, side, side).

        Raises ValueError for frames that are no whole number of clips.
        """
        tools = self.processor.image_processor
        size, norm = self.processor.image_size, (tools.image_mean, tools.image_std)
        if kind == "image":
            return shorter_side_and_centre_crop(value.convert("RGB"), size, *norm)[None]
        count = self.model.config.num_frames
        if len(value) % count:
            raise ValueError(f"expected clips of {count} frames, got {len(value)} frames; pass one clip or several")
        views = [torch.stack(view) for view in zip(*(three_crops(frame, size, *norm) for frame in value))]
        # (all frames, 3, side, side) of every crop -> the clips of every crop
        return torch.cat([torch.stack(view.split(count)) for view in views])

    def check_text(self, text: str) -> None:
        """No text is read but names of classes, which have no limit."""

    def outputs(self, kind: str, prepared: Sequence[Any], words: Sequence[str] | None) -> Tensor:
        """Logarithms of the mean probabilities over the views of each item (n, classes)."""
        first = next(self.model.parameters())
        found = []
        for views in prepared:  # a film at a time: nine views are a batch
            with torch.inference_mode():
                logits = self.model(views.to(first.device, first.dtype)).logits.float()
            # the mean of logarithms would not be the published mean of probabilities
            found.append(logits.log_softmax(-1).logsumexp(0) - math.log(len(views)))
        return torch.stack(found)
