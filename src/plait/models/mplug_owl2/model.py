"""mPLUG-Owl2: images become positions of a causal language model that keeps a way per modality (arXiv 2311.04257).

pixel_values -> vision tower -> abstractor -> placed over the image positions of input_ids -> routed decoder -> logits
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plait.generation.cache_name import CACHE, CACHE_NAMES, named, one_cache
from plait.generation.official_beams import OfficialBeams
from plait.models.mplug_owl2.abstractor import Abstractor
from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.positions import position_ids_of, query_scale, rotary
from plait.models.mplug_owl2.repetition import WordsInPenalties
from plait.models.mplug_owl2.vision import VisionTower
from plait.nn.attention import attention_function
from plait.nn.decoder import Pass, RoutedDecoder, eager_attention
from plait.nn.layers import RMSNorm
from plait.routing import Route
from plait.types import MODALITIES

TEXT, IMAGE = MODALITIES.index("text"), MODALITIES.index("image")


class MPlugOwl2PreTrainedModel(PreTrainedModel):
    """Initialisation and loading shared by the models of this family."""

    config: MPlugOwl2Config
    config_class = MPlugOwl2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = CACHE_NAMES
    _no_split_modules = ["RoutedDecoderLayer", "VisionLayer", "AbstractorLayer"]  # noqa: RUF012

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # looked up in the config at every forward pass

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Published initialisation: language model normal of `init_std`, tower and abstractor as torch draws them."""
        if isinstance(module, nn.LayerNorm | RMSNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, VisionTower | Abstractor):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter)
            for inner in module.modules():
                if isinstance(inner, nn.Linear | nn.Conv2d):
                    bound = inner.weight[0].numel() ** -0.5
                    init.uniform_(inner.weight, -bound, bound)
                    if inner.bias is not None:
                        init.uniform_(inner.bias, -bound, bound)
                    setattr(inner, "_is_hf_initialized", True)  # noqa: B010 (transformers asks for it)
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.config.init_std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)


class MPlugOwl2Model(MPlugOwl2PreTrainedModel):
    """Vision tower, abstractor, embeddings and decoder: (batch, seq) ids and images to (batch, seq, dim) states."""

    def __init__(self, config: MPlugOwl2Config) -> None:
        super().__init__(config)
        vision = config.vision_sizes
        self.vision = VisionTower(vision)
        self.abstractor = Abstractor(vision.dim, config.dim, config.abstractor_sizes, with_cls=vision.use_cls_token)
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.decoder = RoutedDecoder(
            config.dim,
            config.num_heads,
            config.mlp_dim,
            config.num_layers,
            config.ways or {},
            config.routed,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.eps,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
            mlp_bias=config.mlp_bias,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.token_embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token table."""
        self.token_embedding = value

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (images, 3, height, width) -> (images, tokens_per_image, dim)."""
        # No masks here, so sdpa picks the flash kernel by itself where the decoder asks for one by name.
        attend = attention_function("eager" if self.config._attn_implementation == "eager" else "sdpa")
        return self.abstractor(self.vision(pixel_values.to(self.dtype), attend), attend)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embeddings with image features in place: (batch, seq, dim), and (batch, seq) bool, True on image positions.

        Raises ValueError where image positions and images do not agree.
        """
        if input_ids.shape[1] == 1 and pixel_values is None and not self.training:
            return self.token_embedding(input_ids), None
        return self._embed_with_images(input_ids, pixel_values)

    @partial(torch.compiler.disable, recursive=False)  # it counts on the host
    def _embed_with_images(self, input_ids: Tensor, pixel_values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        is_image = torch.eq(input_ids, self.config.image_token)
        positions, images = int(is_image.sum()), 0 if pixel_values is None else len(pixel_values)
        per_image = self.config.tokens_per_image
        if positions != images * per_image:
            raise ValueError(
                f"expected {images * per_image} image positions for {images} images of {per_image}, got {positions}; "
                "give one <|image|> per image and let the processor expand it"
            )
        try:
            embeds = self.token_embedding(input_ids.masked_fill(is_image, 0))
        except IndexError as error:  # on a CPU; a GPU stops by itself
            largest = int(input_ids.masked_fill(is_image, 0).max())
            raise ValueError(
                f"expected ids below {self.config.vocab_size}, got {largest}; use the tokenizer of this model"
            ) from error
        if pixel_values is None and self.training:
            # Gradients of tower and abstractor are 0, not None, so that all ranks issue the same collectives.
            side = self.config.image_size
            pixel_values = embeds.new_zeros(0, 3, side, side)
        if pixel_values is None:
            return embeds, None
        features = self.encode_images(pixel_values).flatten(0, 1).to(embeds.dtype)
        return embeds.masked_scatter(is_image[..., None], features), is_image

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        modality_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """States after the final norm, in `hidden_states[-1]`.

        input_ids: (batch, seq) with `config.image_id` on every position an image fills; pixel_values: (images, 3, side,
        side) in reading order; or inputs_embeds: (batch, seq, dim) with modality_ids: (batch, seq) indices into
        `plait.types.MODALITIES`; attention_mask: (batch, past + seq), either padding side. output_attentions needs the
        attention "eager", the others keep no weights.
        """
        is_image = None
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds, is_image = self.embed(input_ids, pixel_values)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("expected either input_ids or inputs_embeds, got both or none")
        cache = one_cache(cache, past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache()
        run = self._pass(inputs_embeds, attention_mask, position_ids, cache)
        run.weights = self._kept_weights() if output_attentions else None
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        x = self.decoder(inputs_embeds, self.route(inputs_embeds, is_image, modality_ids), run, hidden)
        return CausalLMOutputWithPast(
            hidden_states=tuple(hidden) if hidden else (x,),
            attentions=None if run.weights is None else tuple(run.weights),
            **named(cache),
        )

    def _pass(self, x: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None) -> Pass:
        """What all layers of a forward pass over x: (batch, seq, dim) share."""
        past = cache.get_seq_length() if cache is not None else 0
        position_ids = position_ids_of(position_ids, mask, past, x.shape[:2], x.device)
        cos, sin = rotary(self.config, position_ids, mask, past, cache, x, self.training)
        return Pass(
            shape=(x.shape[0], x.shape[1]),
            cos=cos,
            sin=sin,
            attend=ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention),
            mask=create_causal_mask(self.config, x, mask, cache, position_ids),
            cache=cache,
            query_scale=None if self.training else query_scale(self.config, position_ids),
        )

    def _kept_weights(self) -> list[Tensor]:
        """A list for attention weights. Raises ValueError for an attention that returns none."""
        chosen = self.config._attn_implementation
        if chosen != "eager":
            raise ValueError(
                f"expected attention 'eager' to return weights, got {chosen!r}; call "
                "model.set_attn_implementation('eager')"
            )
        return []

    def route(self, x: Tensor, is_image: Tensor | None, modality_ids: Tensor | None) -> Route:
        """Which modality owns each token of x: (batch, seq, dim); in training every modality is listed."""
        if not self.config.routed:
            return Route.only("text")
        if is_image is not None and modality_ids is None:
            modality_ids = is_image.long() * (IMAGE - TEXT) + TEXT
        if modality_ids is None:
            return Route.segments({"text": x.shape[1]}, listed=self.config.modalities) if self.training else TEXT_ONLY
        return interleaved(modality_ids)


TEXT_ONLY = Route.only("text")


@torch.compiler.disable
def interleaved(modality_ids: Tensor) -> Route:
    """The route of (batch, seq) modality ids, counted on the host."""
    return Route.interleaved(modality_ids.cpu()).to(modality_ids.device)


class MPlugOwl2ForConditionalGeneration(MPlugOwl2PreTrainedModel, OfficialBeams, WordsInPenalties, GenerationMixin):
    """The chat model: images and text in, text out."""

    _tied_weights_keys = {"lm_head.weight": "model.token_embedding.weight"}  # noqa: RUF012

    def __init__(self, config: MPlugOwl2Config) -> None:
        super().__init__(config)
        self.model = MPlugOwl2Model(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.model.token_embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token table."""
        self.model.token_embedding = value

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        modality_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given. Arguments as `MPlugOwl2Model.forward`, and:

        labels: (batch, seq), -100 where nothing is learned (image positions never are); logits_to_keep: how many of the
        last positions get logits, 0 for all.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            one_cache(cache, past_key_values),
            inputs_embeds,
            pixel_values,
            modality_ids,
            use_cache,
            bool(output_hidden_states),
            bool(output_attentions),
        )
        assert outputs.hidden_states is not None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.hidden_states[-1][:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        hidden = outputs.hidden_states if output_hidden_states else None
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=hidden, attentions=outputs.attentions, **named(outputs.get(CACHE))
        )

    def uncounted_positions(self, prompt_ids: Tensor) -> Tensor:
        """(rows, seq) -> (rows,): to the official `generate` an image is one id."""
        images = torch.eq(prompt_ids, self.config.image_token).sum(dim=1)
        return images - images // self.config.tokens_per_image

    def prepare_inputs_for_generation(
        self: Any, input_ids: Any, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Images are read once, with the prompt; later steps are text."""
        inputs = GenerationMixin.prepare_inputs_for_generation(
            self, input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["pixel_values"] = inputs["modality_ids"] = None
        return inputs

    def _expand_inputs_for_generation(
        self: Any, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows for beams; images follow the rows they stand in, so a row's images repeat as a block."""
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None and expand_size > 1 and input_ids is not None:
            per_row = (input_ids == self.config.image_id).sum(dim=1) // self.config.tokens_per_image
            blocks: Iterable[Tensor] = pixel_values.split(per_row.tolist())
            pixel_values = torch.cat([block.repeat(expand_size, 1, 1, 1) for block in blocks])
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | ({} if pixel_values is None else {"pixel_values": pixel_values})
