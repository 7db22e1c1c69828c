"""mPLUG-Owl: images and videos become positions of a causal language model (arXiv 2304.14178).

pixels -> vision tower -> abstractor -> placed over the media positions of the text's embeddings -> language model
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from plait.generation.cache_name import CACHE, CACHE_NAMES, named, one_cache
from plait.generation.official_beams import OfficialBeams
from plait.models.mplug_owl.abstractor import Abstractor
from plait.models.mplug_owl.config import MPlugOwlConfig
from plait.models.mplug_owl.language_model import build_language_model, embed_text, takes_positions
from plait.models.mplug_owl.placeholders import place
from plait.models.mplug_owl.vision import VisionTower
from plait.nn.attention import attention_function
from plait.nn.temporal import LocalTemporal, ZeroLinear

MEDIA = ("pixel_values", "pixel_values_videos", "image_features", "video_features", "num_images", "num_videos")


class MPlugOwlForConditionalGeneration(PreTrainedModel, OfficialBeams, GenerationMixin):
    """Images, videos and text in, text out. The language model is a `language_model` of transformers, unchanged."""

    config: MPlugOwlConfig
    config_class = MPlugOwlConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = CACHE_NAMES
    _no_split_modules = ["OwlVisionLayer", "AbstractorLayer"]  # noqa: RUF012

    def __init__(self, config: MPlugOwlConfig, language_model: Any = None) -> None:
        super().__init__(config)
        vision, text = config.vision_sizes, config.text_sizes
        self.vision = VisionTower(vision, temporal=config.temporal, official=config.official)
        width = config.text_sizes.hidden_size
        self.abstractor = Abstractor(vision.dim, width, config.abstractor_sizes, temporal=config.temporal)
        self.language_model = build_language_model(text) if language_model is None else language_model
        self.takes_positions = takes_positions(self.language_model)
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
        """Published initialisation, but for the queries: the released code leaves them all zero, and so all alike."""
        std = self.config.init_std
        if isinstance(module, VisionTower | Abstractor):
            for parameter in module.parameters(recurse=False):
                init.trunc_normal_(parameter, std=std)
        elif isinstance(module, LocalTemporal | ZeroLinear):
            if isinstance(module, ZeroLinear):
                init.zeros_(module.weight)
                init.zeros_(module.bias)
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
        """Images (images, 3, side, side) or clips (clips, 3, frames, side, side) -> (count, tokens_per_media, dim)."""
        attend = attention_function("eager" if self.config._attn_implementation == "eager" else "sdpa")
        return self.abstractor(self.vision(pixel_values.to(self.vision.cls_embedding.dtype), attend), attend)

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
        """Embeddings with media in place, (batch, seq, dim); arguments as `forward`.

        Raises ValueError where media and media positions do not agree.
        """
        media = (pixel_values, pixel_values_videos, image_features, video_features)
        if input_ids.shape[1] == 1 and all(given is None for given in media) and not self.training:
            return embed_text(self.language_model, input_ids)
        return self._embed_with_media(input_ids, media, (num_images, num_videos))

    @partial(torch.compiler.disable, recursive=False)  # it counts on the host
    def _embed_with_media(
        self, input_ids: Tensor, media: tuple[Tensor | None, ...], counts: tuple[Tensor | None, Tensor | None]
    ) -> Tensor:
        image_id, video_id = self.config.media_ids
        is_media = (input_ids == image_id) | (input_ids == video_id)
        embeds = embed_text(self.language_model, input_ids.masked_fill(is_media, 0))
        images, videos, image_features, video_features = media
        if images is None and image_features is None and self.training:
            # Gradients of tower and abstractor are 0, not None, so that all ranks issue the same collectives.
            side = self.config.image_size
            images = embeds.new_zeros(0, 3, side, side)
            counts = (input_ids.new_zeros(len(input_ids)) if counts[0] is not None else None, counts[1])
        kinds = (("image", image_id, images, image_features), ("video", video_id, videos, video_features))
        for (kind, media_id, pixels, features), count in zip(kinds, counts):
            if features is None and pixels is not None:
                features = self.encode(pixels)
            embeds = place(embeds, input_ids == media_id, features, self.config.tokens_per_media, kind, count)
        return embeds

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
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given.

        input_ids: (batch, seq) with `config.image_id` or `video_id` on every position that a medium fills;
        pixel_values: (images, 3, side, side) and pixel_values_videos: (videos, 3, frames, side, side), each in reading
        order over the batch, or what `encode` made of them as image_features and video_features: (count,
        tokens_per_media, dim); num_images, num_videos: (batch,) how many of them belong to each row, where a row may
        have lost positions;
        attention_mask: (batch, past + seq), either padding side; labels: (batch, seq), -100 where nothing is learned;
        num_items_in_batch: what the summed loss is divided by, by default the number of learned labels (0 labels give
        0, not NaN); logits_to_keep: how many of the last positions get logits, 0 for all.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds, got both or none")
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.embed(
                input_ids, pixel_values, pixel_values_videos, image_features=image_features,
                video_features=video_features, num_images=num_images, num_videos=num_videos,
            )  # fmt: skip
        if self.takes_positions:
            kwargs["position_ids"] = position_ids
        result = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            logits_to_keep=logits_to_keep,
            **named(one_cache(cache, past_key_values)),
            **kwargs,
        )
        if labels is not None:
            result.loss = token_loss(result.logits, labels, num_items_in_batch)
        return result

    def generate(self: Any, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, media included; each is encoded once, however many beams there are.

        Returns prompt and answer. Rules about repetition see the answer alone, as in the released code. Raises
        ValueError for a prompt that leaves no room in the context.
        """
        ids = kwargs.get("input_ids") if inputs is None else inputs
        context = self.config.context
        if ids is not None and context is not None and ids.shape[1] >= context:
            raise ValueError(f"expected a prompt of less than {context} positions, got {ids.shape[1]}; shorten it")
        with torch.no_grad():
            for pixels, features in (("pixel_values", "image_features"), ("pixel_values_videos", "video_features")):
                if kwargs.get(pixels) is not None:
                    kwargs[features] = self.encode(kwargs.pop(pixels))
        return GenerationMixin.generate(self, inputs, *args, **kwargs)

    def uncounted_positions(self, prompt_ids: Tensor) -> Tensor:
        """(rows, seq) -> (rows,): the official `generate` sees a start id in place of the prompt."""
        return prompt_ids.new_full(prompt_ids.shape[:1], prompt_ids.shape[1] - 1)

    def _get_logits_processor(
        self: Any, generation_config: Any, input_ids_seq_length: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
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

        return LogitsProcessorList(partial(on_answer, processor) for processor in found)

    def prepare_inputs_for_generation(
        self: Any, input_ids: Any, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Media are placed once, with the prompt; later steps are text. ALiBi needs the mask as it was given."""
        inputs = GenerationMixin.prepare_inputs_for_generation(
            self, input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.update(dict.fromkeys(MEDIA))
        if not self.takes_positions:
            mask, cache = kwargs.get("attention_mask"), kwargs.get(CACHE)
            inputs["attention_mask"] = _as_long_as_the_cache(mask, cache)
        return inputs

    def _expand_inputs_for_generation(
        self: Any, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows for beams; media follow the rows they stand in, so a row's media repeat as a block."""
        held = {}
        for name, media_id in zip(("image_features", "video_features"), self.config.media_ids):
            features = kwargs.pop(name, None)
            if features is not None and expand_size > 1 and input_ids is not None:
                per_row = (input_ids == media_id).sum(dim=1) // self.config.tokens_per_media
                features = torch.cat([block.repeat(expand_size, 1, 1) for block in features.split(per_row.tolist())])
            held[name] = features
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | {name: value for name, value in held.items() if value is not None}


def _as_long_as_the_cache(mask: Tensor | None, cache: Any) -> Tensor | None:
    """A mask (batch, seq) with zeros for what a static cache will hold later."""
    if mask is None or cache is None or not cache.is_compileable:
        return mask
    return F.pad(mask, (0, cache.layers[0].max_cache_len - mask.shape[1]))


def token_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Mean cross entropy of the next token over labels other than -100; 0, with gradients of 0, where there is none.

    logits: (batch, seq, vocab), labels: (batch, seq); num_items: divide the sum by this instead.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=-100).to(logits.device)
    total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    return total / ((targets != -100).sum().clamp(min=1) if num_items is None else num_items)
