"""mPLUG-Owl: images and videos become positions of a causal language model (arXiv 2304.14178, section 3).

pixel_values -> vision tower -> abstractor -> placed over the media positions of the text's embeddings -> language model

Top to bottom: the tower (a CLIP ViT whose layers, in the video variant, first exchange information between frames), the
abstractor (learned queries read an image or a clip), placing, the language model, and the whole.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance
from transformers.modeling_outputs import CausalLMOutputWithPast

from plait.generation.media_prompts import MediaPrompts, Places
from plait.generation.official_beams import CACHE, CACHE_NAMES, OfficialBeams, named, one_cache
from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig
from plait.nn.abstractor import AbstractorLayer
from plait.nn.attention import AttentionFunction, attention_function
from plait.nn.contract import labels_shifted, outputs_for_transformers
from plait.nn.positions import resize_absolute
from plait.nn.temporal import LocalTemporal, ZeroLinear
from plait.nn.vit import VisionLayer, VisionTower
from plait.processing.talking import IGNORED, IMAGE_APART, VIDEO_APART

IMAGE_RUN, VIDEO_RUN = -1, -2
"""Ids that the released code writes on positions of media; no embedding table has them."""


class OwlVisionLayer(VisionLayer):
    """A pre-norm layer of the tower.

    Args:
        sizes: of the tower.
        temporal: whether a local temporal module stands before it, as in the video variant.

    Source:
        Specification mPLUG-Owl, sections 2 and 4.
    """

    def __init__(self, sizes: VisionConfig, *, temporal: bool) -> None:
        super().__init__(sizes.dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps)
        self.temporal = LocalTemporal(sizes.dim) if temporal else None

    def forward(self, x: Tensor, attend: AttentionFunction, frames: int | None = None) -> Tensor:
        """One layer; attention stays within a frame.

        Args:
            x: (clips * frames, 1 + patches, dim), or (images, 1 + patches, dim).
            attend: the attention function.
            frames: of a clip; None for images, which no temporal module sees.

        Returns:
            Like x.
        """
        if frames is not None:
            x = self.add_temporal(x, frames)
        return super().forward(x, attend)

    def add_temporal(self, x: Tensor, frames: int) -> Tensor:
        """x + temporal(x), x: (clips * frames, 1 + patches, dim): add what neighbouring frames hold."""
        assert self.temporal is not None
        patches = x[:, 1:].unflatten(0, (-1, frames))
        # The released module returns the class position as it came, so the sum doubles it in every layer: odd, but what
        # the published weights were trained with.
        return torch.cat([2 * x[:, :1], (patches + self.temporal(patches)).flatten(0, 1)], dim=1)


class OwlVisionTower(VisionTower):
    """Images or clips to features of every position; frames have no position of their own, only their order in layers.

    Args:
        sizes: of the tower.
        temporal: whether it takes clips.
        official: cut the position table for smaller images instead of resizing it.

    Source:
        arXiv 2304.14178, section 3; specification mPLUG-Owl, sections 2 and 4. A CLIP ViT, with fp32 norms.
    """

    def __init__(self, sizes: VisionConfig, *, temporal: bool = False, official: bool = False) -> None:
        super().__init__(
            sizes.dim, sizes.patch_size, sizes.num_layers, sizes.eps, (1, sizes.grid**2 + 1, sizes.dim),
            lambda: OwlVisionLayer(sizes, temporal=temporal),
        )  # fmt: skip
        self.sizes, self.has_temporal, self.official = sizes, temporal, official

    def positions(self, height: int, width: int) -> Tensor:
        """The position table for a grid of patches.

        Args:
            height, width: of the grid, in patches.

        Returns:
            (1, 1 + height * width, dim), the class position first.

        Raises:
            ValueError: for images that are not square or, where `official`, need more rows than the table has.
        """
        side, rows = self.sizes.image_size, height * width + 1
        if height == width == self.sizes.grid:  # as it is: resizing to its own size could round
            return self.position_embedding
        if rows > self.position_embedding.shape[1] if self.official else height != width:
            raise ValueError(f"expected images of {side} x {side} pixels, got {height} x {width} patches; resize them")
        if self.official:  # the first rows in raster order, without a word: they belong to other places
            return self.position_embedding[:, :rows]
        return resize_absolute(self.position_embedding[0], width)[None]

    def forward(
        self, pixel_values: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None, *beside: Any
    ) -> Tensor:
        """Images or clips to features of every position, the class position included.

        Args:
            pixel_values: (images, 3, height, width) or (clips, 3, frames, height, width), normalised.
            attend: the attention function.
            hidden: a list that takes the states of every layer, as in `VisionTower`, frames in one batch.

        Returns:
            (images, positions, dim) or (clips, frames, positions, dim).

        Raises:
            ValueError: for clips without temporal modules, and images of a size that the table does not fit.
        """
        if pixel_values.dim() == 4:
            return super().forward(pixel_values, attend, hidden, None)
        frames = pixel_values.shape[2]
        if frames > 1 and not self.has_temporal:
            raise ValueError("expected images, got clips: this checkpoint reads a video as images, one per frame")
        images = pixel_values.transpose(1, 2).flatten(0, 1)  # (clips * frames, 3, height, width)
        # A clip of one frame is an image, which no temporal module sees (the released code stops there with an error).
        x = super().forward(images, attend, hidden, frames if frames > 1 else None)
        return x.unflatten(0, (-1, frames))


class Abstractor(nn.Module):
    """Features of an image or a clip to `num_queries + 1` vectors of the language model's width.

    Args:
        dim: width of the vision tower.
        out_dim: width of the language model.
        sizes: of the abstractor.
        temporal: whether clips bring queries and a projection of their own, whose result is added to that of the
            others.

    Source:
        arXiv 2304.14178, section 3; specification mPLUG-Owl, sections 3 and 4. No positions: a query knows a patch by
        what the tower wrote into it.
    """

    def __init__(self, dim: int, out_dim: int, sizes: AbstractorConfig, *, temporal: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        # Zeros until `_init_weights` draws them: alike, all queries would read the same.
        self.queries = nn.Parameter(torch.zeros(1, sizes.num_queries, dim))
        self.temporal_queries = nn.Parameter(torch.zeros(1, sizes.num_queries, dim)) if temporal else None
        self.layers = nn.ModuleList(
            AbstractorLayer(dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps, dropout=sizes.dropout)
            for _ in range(sizes.num_layers)
        )
        self.proj = nn.Linear(dim, out_dim)
        self.temporal_proj = nn.Linear(dim, out_dim) if temporal else None
        self.end = nn.Parameter(torch.zeros(1, 1, out_dim))

    def forward(
        self,
        features: Tensor,
        attend: AttentionFunction,
        feature_mask: Tensor | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Read an image or a clip by learned queries.

        Args:
            features: (batch, positions, dim) of images or (batch, frames, positions, dim) of clips.
            attend: the attention function.
            feature_mask: (batch, positions, or frames * positions) bool, True = read; None reads everything.
            hidden: a list to which the queries after every layer are appended.

        Returns:
            (batch, num_queries + 1, out_dim), the learned end vector last.
        """
        # Several frames bring the temporal queries; all queries read all positions of all frames, in the order of time.
        is_clip = features.dim() == 4 and features.shape[1] > 1
        x = self.queries
        if is_clip and self.temporal_queries is not None:
            x = torch.cat([x, self.temporal_queries], dim=1)
        if features.dim() == 4:
            features = features.flatten(1, 2)
        x = x.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, features, attend, None, feature_mask)
            if hidden is not None:
                hidden.append(x)
        count = self.sizes.num_queries
        out = self.proj(x[:, :count])
        if x.shape[1] > count and self.temporal_proj is not None:
            out = out + self.temporal_proj(x[:, count:])
        # The end vector lives in the language model's space, behind the projection.
        return torch.cat([out, self.end.expand(out.shape[0], -1, -1)], dim=1)


def from_runs(input_ids: Tensor, media_ids: tuple[int, int]) -> Tensor:
    """Ids in official notation, -1 on positions of images and -2 on those of videos, in ours.

    Args:
        input_ids: (..., seq).
        media_ids: `config.media_ids`, of images and of videos.
    """
    image_id, video_id = media_ids
    return input_ids.masked_fill(input_ids == IMAGE_RUN, image_id).masked_fill(input_ids == VIDEO_RUN, video_id)


def count_runs(input_ids: list[int], media_id: int, tokens_per_media: int) -> int:
    """How many media of one kind a sequence has places for.

    Args:
        input_ids: of one row.
        media_id: the id on their positions.
        tokens_per_media: positions of each. Neighbours form one run, which counts by its length: the released code
            takes it for a single medium and shifts those of later rows.

    Raises:
        ValueError: for a run that is no multiple, as truncation leaves it.
    """
    lengths = [len(list(run)) for value, run in groupby(input_ids) if value == media_id]
    for length in lengths:
        if length % tokens_per_media:
            raise ValueError(f"expected {tokens_per_media} positions per medium, got a run of {length}")
    return sum(lengths) // tokens_per_media


def place(
    embeds: Tensor, where: Tensor, features: Tensor | None, per_media: int, kind: str, counts: Tensor | None = None
) -> Tensor:
    """Put features over the positions of their media, the k-th of a row over its k-th place.

    Args:
        embeds: (batch, seq, dim).
        where: (batch, seq) bool, True on positions of this kind of media.
        features: (count, per_media, dim) in reading order over the whole batch.
        per_media: positions of each.
        kind: its name, for messages.
        counts: (batch,) media of each row, where some may have lost their place to truncation; those are left out.

    Returns:
        Like embeds.

    Raises:
        ValueError: where media and places do not agree.

    Source:
        Specification mPLUG-Owl, section 5.1.
    """
    places = where.sum(dim=1)
    given = 0 if features is None else len(features)
    if counts is not None and features is not None:
        # Of every row the first media have a place: what truncation cut away stood at its end.
        starts = counts.cumsum(0) - counts
        kept = torch.cat([
            torch.arange(int(start), int(start) + min(int(count), int(held) // per_media))
            for start, count, held in zip(starts, counts, places)
        ]).to(places.device)  # fmt: skip
        features, given = features[kept], len(kept)
    if int(places.sum()) != given * per_media:
        held = int(places.sum()) / per_media
        raise ValueError(
            f"expected one {kind} per placeholder, got {given} {kind}s for {held:g} placeholders of {per_media} "
            f"positions; pass as many {kind}s as the prompt has placeholders"
        )
    if features is None:
        return embeds
    # It fills row by row from left to right, which is the order of features.
    return embeds.masked_scatter(where[..., None], features.flatten(0, 1).to(embeds.dtype))


class EmbeddingNorm(nn.LayerNorm):
    """A norm that the body must not apply, because `embed_text` did: called, it returns its input.

    BLOOM normalises its embeddings, and Owl splices media behind that norm: it is applied to text alone (specification
    mPLUG-Owl, section 5.5). The body of transformers always calls its norm, hence this one in its place.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., dim) -> itself."""
        return input

    def apply_to(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> normalised."""
        return super().forward(x)


def build_language_model(config: PreTrainedConfig) -> Any:
    """A fresh causal language model of `config`, ready for embeddings; no code of its directory is run."""
    return adopt(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def adopt(model: Any) -> Any:
    """Make a causal language model ready for embeddings that are already normalised; the names of weights stay."""
    body = model.base_model
    norm = getattr(body, "word_embeddings_layernorm", None)
    if norm is not None and not isinstance(norm, EmbeddingNorm):
        waiting = EmbeddingNorm(norm.normalized_shape, norm.eps, device=norm.weight.device, dtype=norm.weight.dtype)
        # A module in the same place, so that state dicts keep the key of the norm.
        waiting.load_state_dict(norm.state_dict())
        body.word_embeddings_layernorm = waiting
    return model


def embed_text(model: Any, input_ids: Tensor) -> Tensor:
    """input_ids: (batch, seq) -> (batch, seq, dim), normalised where the model's family does so."""
    x = model.get_input_embeddings()(input_ids)
    norm = getattr(model.base_model, "word_embeddings_layernorm", None)
    return x if norm is None else norm.apply_to(x)


class Media(NamedTuple):
    """One kind of media of a batch: its name, pixels or what `encode` made of them.

    counts: (batch,) how many belong to each row, where rows may have lost positions.
    """

    kind: str
    pixels: Tensor | None
    features: Tensor | None
    counts: Tensor | None

    @property
    def is_given(self) -> bool:
        """Whether there are any in the batch."""
        return self.pixels is not None or self.features is not None


@dataclass
class MPlugOwlOutput(CausalLMOutputWithPast):
    """Of transformers, and the states in front of the head: TRL passes them through the head by itself."""

    last_hidden_state: Tensor | None = None


@labels_shifted
class MPlugOwlForConditionalGeneration(PreTrainedModel, MediaPrompts, OfficialBeams, GenerationMixin):
    """Images, videos and text in, text out. The language model is a `language_model` of transformers, unchanged.

    Args:
        config: of the whole model.
        language_model: to use instead of a fresh one of `config.text_config`; see `weights.around`.

    Source:
        arXiv 2304.14178, section 3; specification mPLUG-Owl, sections 1 and 5.

    Example:
        >>> config = MPlugOwlConfig.preset("nano")
        >>> model = MPlugOwlForConditionalGeneration(config).eval()
        >>> ids = torch.tensor([[1, *[config.media_ids[0]] * config.tokens_per_media, 5]])
        >>> model(ids, pixel_values=torch.zeros(1, 3, 64, 64)).logits.shape
        torch.Size([1, 19, 512])
    """

    config: MPlugOwlConfig
    config_class = MPlugOwlConfig
    base_model_prefix = ""  # no body under a name of its own: tower, abstractor and language model stand side by side
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = CACHE_NAMES
    _tied_weights_keys = {}  # noqa: RUF012 (those of the language model; PEFT asks a model that has the name)
    _no_split_modules = ["OwlVisionLayer", "AbstractorLayer"]  # noqa: RUF012
    prompt_only = (
        "pixel_values",
        "pixel_values_videos",
        "image_features",
        "video_features",
        "num_images",
        "num_videos",
    )

    def __init__(self, config: MPlugOwlConfig, language_model: Any = None) -> None:
        super().__init__(config)
        vision, text = config.vision_sizes, config.text_sizes
        self.vision = OwlVisionTower(vision, temporal=config.temporal, official=config.official)
        self.abstractor = Abstractor(vision.dim, text.hidden_size, config.abstractor_sizes, temporal=config.temporal)
        self.language_model = build_language_model(text) if language_model is None else language_model
        # Rotary models are told positions; BLOOM derives its ALiBi from the mask.
        self.takes_positions = "position_ids" in inspect.signature(self.language_model.forward).parameters
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # looked up in the config at every forward pass

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; a language model with an attention of its own (BLOOM) keeps it."""
        if self.language_model._can_set_attn_implementation():
            super().set_attn_implementation(attn_implementation, *args, **kwargs)
        else:
            self.config._attn_implementation_internal = attn_implementation

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Published initialisation, but for the queries (specification mPLUG-Owl, section 7).

        The released code leaves all queries zero: they stay alike but for dropout, and 64 of them read as one.
        """
        std = self.config.init_std
        if isinstance(module, VisionTower | Abstractor):
            for parameter in module.parameters(recurse=False):
                init.trunc_normal_(parameter, std=std)
        elif isinstance(module, ZeroLinear):  # the temporal path starts as the identity
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LocalTemporal):
            pass  # its convolution as torch draws it
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            init.normal_(module.weight, std=std)
            bias = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The token table of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token table."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head of the language model."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """What the language model gets of each medium.

        Args:
            pixel_values: images (images, 3, side, side) or clips (clips, 3, frames, side, side).

        Returns:
            (count, tokens_per_media, dim of the language model): pass it as image_features or video_features.
        """
        # Only two attentions here: nothing is masked, so sdpa picks the fastest kernel by itself.
        attend = attention_function("eager" if self.config._attn_implementation == "eager" else "sdpa")
        return self.abstractor(self.vision(pixel_values.to(self.vision.position_embedding.dtype), attend), attend)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (images, 3, side, side) -> (images, tokens_per_media, dim), as `encode`."""
        return self.encode(pixel_values)

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """pixel_values_videos: (clips, 3, frames, side, side) -> (clips, tokens_per_media, dim), as `encode`."""
        return self.encode(pixel_values_videos)

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        *,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
        num_images: Tensor | None = None,
        num_videos: Tensor | None = None,
    ) -> Tensor:
        """Embeddings with media in place, arguments as `forward`.

        Returns:
            (batch, seq, dim), for `forward` as inputs_embeds.

        Raises:
            ValueError: where media and media positions do not agree.
        """
        images = Media("image", pixel_values, image_features, num_images)
        videos = Media("video", pixel_values_videos, video_features, num_videos)
        has_media = images.is_given or videos.is_given
        if input_ids.shape[1] == 1 and not has_media and not self.training:
            return embed_text(self.language_model, input_ids)  # a step of decoding, which compiles
        return self._embed_with_media(input_ids, images, videos)

    @partial(torch.compiler.disable, recursive=False)  # it counts on the host
    def _embed_with_media(self, input_ids: Tensor, images: Media, videos: Media) -> Tensor:
        """Text and media to (batch, seq, dim). Media ids lie behind the table: they look up row 0 instead."""
        where = self._positions(input_ids, images.is_given, videos.is_given)
        embeds = embed_text(self.language_model, input_ids.masked_fill(where[0] | where[1], 0))
        if self.training:
            # Gradients of all of tower and abstractor are 0, not None, whatever a batch shows, so that all ranks issue
            # the same collectives: images, and where the model has modules for them alone, clips of two frames.
            side = self.config.image_size
            none = input_ids.new_zeros(len(input_ids))
            if not images.is_given:
                counts = None if images.counts is None else none
                images = images._replace(pixels=embeds.new_zeros(0, 3, side, side), counts=counts)
            if self.config.temporal and not videos.is_given:
                counts = None if videos.counts is None else none
                videos = videos._replace(pixels=embeds.new_zeros(0, 3, 2, side, side), counts=counts)
        for media, places in zip((images, videos), where):
            features = media.features
            if features is None and media.pixels is not None:
                features = self.encode(media.pixels)
            embeds = place(embeds, places, features, self.config.tokens_per_media, media.kind, media.counts)
        return embeds

    def _positions(self, input_ids: Tensor, has_images: bool, has_videos: bool) -> tuple[Tensor, Tensor]:
        """Positions of images and of videos, (batch, seq) bool each."""
        images, videos = self.media_places().values()
        return images.of(input_ids, has_media=has_images), videos.of(input_ids, has_media=has_videos)

    @outputs_for_transformers
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
        num_images: Tensor | None = None,
        num_videos: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: Cache | None = None,
    ) -> MPlugOwlOutput:
        """Logits, and the loss where labels are given.

        Args:
            input_ids: (batch, seq) with `config.image_id` or `video_id` on every position that a medium fills.
            attention_mask: (batch, past + seq), 1 or True = attend, either padding side.
            position_ids: (batch, seq), for language models that take them.
            cache, past_key_values: keys and values so far; one cache, two names.
            inputs_embeds: (batch, seq, dim) of `embed`, instead of ids and media.
            pixel_values: (images, 3, side, side) in reading order over the batch.
            pixel_values_videos: (videos, 3, frames, side, side), likewise.
            image_features, video_features: (count, tokens_per_media, dim), what `encode` made of them.
            num_images, num_videos: (batch,) how many of them belong to each row, where a row may have lost positions.
            labels: (batch, seq), -100 where nothing is learned.
            logits_to_keep: how many of the last positions get logits, 0 for all.
            num_items_in_batch: divides the summed loss, else the number of learned labels does (of none the loss is 0).

        Returns:
            logits: (batch, seq, vocab), cache, loss; last_hidden_state: (batch, seq, dim) after the final norm, where
                hidden states are asked for or `use_cache` is False.

        Raises:
            ValueError: where media and media positions do not agree, and for both or none of ids and embeddings.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds, got both or none")
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.embed(
                input_ids, pixel_values, pixel_values_videos, image_features=image_features,
                video_features=video_features, num_images=num_images, num_videos=num_videos,
            )  # fmt: skip
        # A pass that declines a cache belongs to a trainer, which may read the states in front of the head (TRL does).
        has_states = bool(output_hidden_states) or use_cache is False
        asked = {
            "use_cache": use_cache,
            "output_hidden_states": has_states or output_hidden_states,
            "output_attentions": output_attentions,
            "position_ids": position_ids if self.takes_positions else None,
        }
        result = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            logits_to_keep=logits_to_keep,
            **named(one_cache(cache, past_key_values)),
            **{name: value for name, value in asked.items() if value is not None},  # others have defaults of their own
        )
        if labels is not None:
            if input_ids is not None:  # labels copied from ids hold ids there that no logits have
                given = (pixel_values, image_features), (pixel_values_videos, video_features)
                images, videos = self._positions(input_ids, *(any(x is not None for x in kind) for kind in given))
                labels = labels.masked_fill(images | videos, IGNORED)
            result.loss = token_loss(result.logits, labels, num_items_in_batch)
        return MPlugOwlOutput(
            loss=result.loss,
            logits=result.logits,
            hidden_states=result.hidden_states if output_hidden_states else None,
            attentions=result.attentions,
            last_hidden_state=result.hidden_states[-1] if has_states else None,
            **named(result.get(CACHE)),
        )

    def generate(self: Any, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, media included; each is encoded once, however many beams there are.

        Args:
            inputs: (batch, seq) ids, as `forward` takes them; padding on the left.
            args, kwargs: of transformers, and the media of `forward`.

        Returns:
            (batch, seq + new) prompt and answer. Rules about repetition see the answer alone, as in the released code.

        Raises:
            ValueError: for a prompt that leaves no room in the context.
        """
        ids = kwargs.get("input_ids") if inputs is None else inputs
        context = self.config.context
        if ids is not None and context is not None and ids.shape[1] >= context:
            raise ValueError(f"expected a prompt of less than {context} positions, got {ids.shape[1]}; shorten it")
        with torch.no_grad():
            for pixels, features in (("pixel_values", "image_features"), ("pixel_values_videos", "video_features")):
                if kwargs.get(pixels) is not None:
                    kwargs[features] = self.encode(kwargs.pop(pixels))
        return super().generate(inputs, *args, **kwargs)

    def uncounted_positions(self, prompt_ids: Tensor) -> Tensor:
        """Positions of each prompt that lengths of beams leave out, (rows, seq) -> (rows,).

        All but one, as the official `generate` starts from embeddings and sees one start id in place of the prompt.
        """
        return prompt_ids.new_full(prompt_ids.shape[:1], prompt_ids.shape[1] - 1)

    def _get_logits_processor(
        self: Any, generation_config: Any, input_ids_seq_length: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Rules over generated ids that see the answer alone.

        The released `generate` starts from embeddings, so transformers 4.28 showed its rules no prompt but one start id
        (`official`): repetition is penalised in the answer only, and lengths count that id.
        """
        length, lead = input_ids_seq_length or 0, int(self.config.official)
        seen = copy.copy(generation_config)
        if seen.min_length is not None:  # transformers counts the prompt, these rules do not see it
            seen.min_length = max(seen.min_length - length + lead, 0)
        held = dict(kwargs.pop("model_kwargs", None) or {})
        held.pop("attention_mask", None)  # rules that skip padding would skip as much of the answer
        kwargs["model_kwargs"] = held
        with warnings.catch_warnings():  # of rules that will not see the prompt, which is what is wanted
            warnings.simplefilter("ignore", UserWarning)
            found = GenerationMixin._get_logits_processor(self, seen, lead, *args, **kwargs)
        start = self.config.text_sizes.bos_token_id

        def on_answer(processor: Any, input_ids: Tensor, scores: Tensor) -> Tensor:
            answer = input_ids[:, length:]
            return processor(F.pad(answer, (1, 0), value=1 if start is None else start) if lead else answer, scores)

        # guidance runs a pass over all ids, so it gets them all
        return LogitsProcessorList(rule if isinstance(rule, Guidance) else partial(on_answer, rule) for rule in found)

    def media_places(self) -> dict[str, Places]:
        """Features follow their rows into beams; `generate` has encoded all pixels by then."""
        size, rows = self.config.tokens_per_media, self.config.text_sizes.vocab_size
        image_id, video_id = self.config.media_ids
        return {
            "image_features": Places(image_id, size, IMAGE_APART, rows),
            "video_features": Places(video_id, size, VIDEO_APART, rows),
        }

    def prepare_inputs_for_generation(
        self: Any, input_ids: Any, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in `MediaPrompts`; a BLOOM, which builds ALiBi from it, gets the mask as it was given."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        if not self.takes_positions:
            mask, cache = kwargs.get("attention_mask"), kwargs.get(CACHE)
            if mask is not None and cache is not None and cache.is_compileable:  # as long as what it will hold
                mask = F.pad(mask, (0, cache.layers[0].max_cache_len - mask.shape[1]))
            inputs["attention_mask"] = mask
        return inputs


def token_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Mean cross entropy of the next token over labels other than -100; 0, with gradients of 0, where there is none.

    Args:
        logits: (batch, seq, vocab); position t predicts label t + 1.
        labels: (batch, seq).
        num_items: divide the sum by this instead of the number of learned labels, as accumulated batches need.

    Source:
        Specification mPLUG-Owl, section 5.2.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED).to(logits.device)
    # In fp32 whatever the model's type, as transformers computes its own losses.
    total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED)
    return total / ((targets != IGNORED).sum().clamp(min=1) if num_items is None else num_items)
