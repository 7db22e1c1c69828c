"""mPLUG-Owl2: images become positions of a causal language model that keeps a way per modality (arXiv 2311.04257, 3).

pixel_values -> vision tower -> abstractor -> placed over the image positions of input_ids -> routed decoder -> logits

Top to bottom: the tower (CLIP ViT-L/14 in Owl2, a ViT-bigG in Owl2.1), the abstractor (learned queries read the patches
of an image), rotary positions of Owl2 (Llama) and Owl2.1 (Qwen), the model, and the chat model with its generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor as Penalty
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plait.generation.media_prompts import MediaPrompts, Places
from plait.generation.official_beams import CACHE, CACHE_NAMES, OfficialBeams, named, one_cache
from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
from plait.nn.abstractor import AbstractorLayer
from plait.nn.attention import AttentionFunction, attention_function
from plait.nn.contract import NamedForPeft, labels_shifted, outputs_for_transformers
from plait.nn.decoder import Pass, RoutedDecoder, eager_attention
from plait.nn.layers import RMSNorm
from plait.nn.positions import (
    inverse_frequencies,
    log_n_scale,
    ntk_alpha,
    ntk_theta,
    position_tables,
    rotary_tables,
)
from plait.nn.vit import VisionLayer, VisionTower
from plait.processing.talking import IGNORED, IMAGE_APART
from plait.routing import Route
from plait.types import MODALITIES

IMAGE_PLACEHOLDER = -200
"""The id that official batches write for a whole image."""


TABLE_WIDTH = 16
"""Side of the position table of towers without class position, whatever their image size: 224 pixels."""


class Owl2VisionTower(VisionTower):
    """Images to features of every position, the class position first where there is one.

    Args:
        sizes: of the tower.
        official: cut the position table for smaller images, which the released tower does without a word.

    Source:
        Specification mPLUG-Owl2, section 3. A CLIP ViT-L/14 in Owl2, Qwen-VL's ViT-bigG in Owl2.1.
    """

    def __init__(self, sizes: VisionConfig, *, official: bool = False) -> None:
        rows = sizes.grid**2 + 1 if sizes.use_cls_token else TABLE_WIDTH**2
        super().__init__(
            sizes.dim, sizes.patch_size, sizes.num_layers, sizes.eps,
            (1, rows, sizes.dim) if sizes.use_cls_token else (rows, sizes.dim),  # as in the files
            lambda: VisionLayer(
                sizes.dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps, activation=sizes.activation
            ),
            use_cls_token=sizes.use_cls_token, use_post_norm=sizes.use_post_norm, fresh=torch.randn,
        )  # fmt: skip
        self.sizes, self.official = sizes, official

    def positions(self, height: int, width: int) -> Tensor:
        """The position table for a grid of patches, bicubic from 16 x 16 without class position.

        Args:
            height, width: of the grid, in patches.

        Returns:
            (1, 1 + height * width, dim) with class position, (height * width, dim) without.

        Raises:
            ValueError: where the image does not fit the table of a tower with a class position.
        """
        table, sizes = self.position_embedding, self.sizes
        # The released tower slices the table of one variant and stretches that of the other (section 3).
        if not sizes.use_cls_token:
            if height == width == TABLE_WIDTH:
                return table
            # In every forward pass, in fp32 and without antialiasing, as released.
            square = table.float().reshape(1, TABLE_WIDTH, TABLE_WIDTH, -1).permute(0, 3, 1, 2)
            square = F.interpolate(square, size=(height, width), mode="bicubic", align_corners=False)
            return square.flatten(2)[0].T.to(table.dtype)
        if self.official and height * width < table.shape[1]:
            return table[:, : height * width + 1]
        if height != sizes.grid or width != sizes.grid:
            side, got = sizes.image_size, (height * sizes.patch_size, width * sizes.patch_size)
            raise ValueError(
                f"expected images of {side} x {side} pixels, got {got}; "
                "resize them, or the checkpoint with plait.models.mplug_owl2.weights"
            )
        return table


class Abstractor(nn.Module):
    """Features of an image to `num_queries + 1` vectors of the language model's width.

    Args:
        dim: width of the vision tower.
        out_dim: width of the language model.
        sizes: of the abstractor.
        with_cls: whether features start with a class position.

    Source:
        arXiv 2311.04257, section 3; specification mPLUG-Owl2, section 4.
    """

    def __init__(self, dim: int, out_dim: int, sizes: AbstractorConfig, *, with_cls: bool) -> None:
        super().__init__()
        self.sizes, self.with_cls = sizes, with_cls
        # Normal of 1, as the released code draws queries and end vector.
        self.queries = nn.Parameter(torch.randn(1, sizes.num_queries, dim))
        self.layers = nn.ModuleList(
            AbstractorLayer(dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps) for _ in range(sizes.num_layers)
        )
        self.proj = nn.Linear(dim, out_dim)
        self.end = nn.Parameter(torch.randn(1, 1, out_dim))

    @torch.compiler.disable
    def tables(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Sine positions of queries and keys.

        Args:
            num_positions: of the features, the class position included.

        Returns:
            (num_queries, dim) and (num_positions, dim).

        Raises:
            ValueError: where the features form no square grid.
        """
        patches = num_positions - self.with_cls
        grid = round(patches**0.5)
        if grid * grid != patches:
            raise ValueError(f"expected features of a square grid of patches, got {patches}; pass square images")
        sizes = self.sizes
        span = sizes.query_span or sizes.num_queries
        # Positions stand over the grid and the queries that they were trained for, stretched where those are others.
        made = position_tables(self.queries.shape[-1], (sizes.num_queries, span, grid, sizes.grid_size, self.with_cls))
        queries, keys = (torch.from_numpy(table).to(self.queries) for table in made)
        return queries, keys

    def forward(self, features: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None) -> Tensor:
        """Read images by learned queries.

        Args:
            features: (images, positions, dim) of the tower.
            attend: the attention function.
            hidden: a list to which the queries after every layer are appended.

        Returns:
            (images, num_queries + 1, out_dim), the learned end vector last.
        """
        tables = self.tables(features.shape[1])
        x = self.queries.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, features, attend, tables)
            if hidden is not None:
                hidden.append(x)
        return torch.cat([self.proj(x), self.end.expand(x.shape[0], -1, -1)], dim=1)


def position_ids_of(
    given: Tensor | None, mask: Tensor | None, past: int | Tensor, shape: Sequence[int], device: torch.device
) -> Tensor:
    """Positions count from the first token that is attended, so left padding shifts nothing.

    The released code counts padding too, and forgets it while decoding; one prompt at a time is all it can do
    (specification mPLUG-Owl2, section 7).

    Args:
        given: (batch, seq) of the caller, which go first.
        mask: (batch, past + seq), 0 on padding; masks of other shapes tell nothing here.
        past: positions in the cache.
        shape: (batch, seq).

    Returns:
        (batch or 1, seq); padding on the left has position 0.
    """
    if given is not None:
        return given
    positions = torch.arange(shape[1], device=device) + past
    if mask is None or mask.dim() != 2:
        return positions[None]
    first = (mask != 0).long().argmax(dim=1, keepdim=True)
    return (positions[None] - first).clamp_min(0)


def rotary(
    config: MPlugOwl2Config,
    position_ids: Tensor,
    mask: Tensor | None,
    past: int | Tensor,
    cache: Any,
    x: Tensor,
    is_training: bool,
) -> tuple[Tensor, Tensor]:
    """Rotary tables of a forward pass: Llama's, with scaling of transformers, or Qwen's dynamic NTK.

    Args:
        config: whose trained_length switches NTK on.
        position_ids: (batch or 1, seq).
        mask: (batch, past + seq), as in `frozen_alpha`.
        past: positions in the cache.
        cache: keeps the NTK factor.
        x: (batch, seq, dim), for batch, device and dtype.
        is_training: NTK belongs to evaluation.

    Returns:
        cos and sin, (batch or 1, 1, seq, head_dim) in the dtype of x.

    Source:
        Specification mPLUG-Owl2, sections 5 and 6.
    """
    assert config.head_dim is not None and config.rope_parameters is not None
    kind, theta = config.rope_parameters["rope_type"], config.rope_parameters["rope_theta"]
    if kind != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        # Only these kinds depend on the length; reading it from a GPU waits for the device.
        longest = int(position_ids.max()) + 1 if kind in ("dynamic", "longrope") else None
        inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, x.device, longest)
        return rotary_tables(position_ids, inv_freq, x.dtype, scale)
    if config.trained_length is None or not config.use_ntk or is_training:
        return rotary_tables(position_ids, inverse_frequencies(config.head_dim, theta, x.device), x.dtype)
    alpha = frozen_alpha(config.trained_length, mask, past, cache, x)
    inv_freq = inverse_frequencies(config.head_dim, ntk_theta(theta, alpha, config.head_dim), x.device)
    return rotary_tables(position_ids, inv_freq, x.dtype)


def frozen_alpha(trained_length: int, mask: Tensor | None, past: int | Tensor, cache: Any, x: Tensor) -> Tensor:
    """Qwen's NTK factor per sample, (batch,): chosen at prefill by the prompt's own length, then kept with its keys.

    Keys in the cache were rotated with it, so a longer answer must not choose another one. It is kept on the cache: the
    official code keeps it in the module, where two generations at once would mix it up.

    Args:
        trained_length: up to which the factor is 1.
        mask: (batch, seq) or the prepared (batch, 1, seq, keys); None counts every position.
        past: positions in the cache.
        cache: to keep it on, None for a pass by itself.
        x: (batch, seq, dim), for batch and length.

    Source:
        Specification mPLUG-Owl2, section 6.
    """
    kept = getattr(cache, "ntk_alpha", None)
    # A compiled step never asks how full a static cache is: that number lives on the device.
    if kept is not None and (torch.compiler.is_compiling() or past):
        return kept
    lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
    if mask is not None and mask.dim() == 2:
        lengths = (mask != 0).sum(dim=1)
    elif mask is not None:  # (batch, 1, seq, keys), prepared for a static cache: what the last query attends
        last = mask[:, 0, -1]
        lengths = (last if last.dtype == torch.bool else last == 0).sum(dim=-1).expand(x.shape[0])
    alpha = ntk_alpha(lengths, trained_length)
    if cache is not None:
        cache.ntk_alpha = alpha
    return alpha


TEXT, IMAGE = MODALITIES.index("text"), MODALITIES.index("image")


class MPlugOwl2PreTrainedModel(NamedForPeft, PreTrainedModel):
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
    _input_embed_layer = "token_embedding"  # transformers finds table and head by name
    _no_split_modules = ["RoutedDecoderLayer", "VisionLayer", "AbstractorLayer"]  # noqa: RUF012

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # looked up in the config at every forward pass

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Published initialisation: language model normal of `init_std`, tower and abstractor as torch draws them.

        Their tables, queries and end vectors are normal of 1; their linear layers keep torch's uniform draw,
        +-1 / sqrt(fan_in) (specification mPLUG-Owl2, section 8.4).
        """
        if isinstance(module, nn.LayerNorm | RMSNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, VisionTower | Abstractor):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter)
            # transformers visits inner modules by themselves too, and would draw them as the language model's.
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
    """Vision tower, abstractor, embeddings and decoder: (batch, seq) ids and images to (batch, seq, dim) states.

    Args:
        config: of the whole model.

    Source:
        arXiv 2311.04257, section 3; specification mPLUG-Owl2, sections 5 to 7.

    Example:
        >>> config = MPlugOwl2Config.preset("nano")
        >>> model = MPlugOwl2Model(config).eval()
        >>> ids = torch.tensor([[1, *[config.image_token] * config.tokens_per_image, 5]])
        >>> model(ids, pixel_values=torch.zeros(1, 3, 64, 64)).last_hidden_state.shape
        torch.Size([1, 19, 128])
    """

    def __init__(self, config: MPlugOwl2Config) -> None:
        super().__init__(config)
        vision = config.vision_sizes
        self.vision = Owl2VisionTower(vision)
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

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """What the decoder gets of each image.

        Args:
            pixel_values: (images, 3, side, side), normalised.

        Returns:
            (images, tokens_per_image, dim), the learned end vector last.

        Raises:
            ValueError: for images of a size that the tower's position table does not fit.
        """
        # No masks here, so sdpa picks the flash kernel by itself where the decoder asks for one by name.
        attend = attention_function("eager" if self.config._attn_implementation == "eager" else "sdpa")
        # Of one parameter: `self.dtype` walks them all, which dynamo cannot always trace.
        return self.abstractor(self.vision(pixel_values.to(self.vision.position_embedding.dtype), attend), attend)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embeddings with image features in place.

        Args:
            input_ids: (batch, seq) with `config.image_id` on every position an image fills.
            pixel_values: (images, 3, side, side) in reading order over the batch.

        Returns:
            (batch, seq, dim), and (batch, seq) bool, True on image positions; None where there is none.

        Raises:
            ValueError: where image positions and images do not agree, and for ids outside the vocabulary.
        """
        if input_ids.shape[1] == 1 and pixel_values is None and not self.training:
            return self.token_embedding(input_ids), None  # a step of decoding, which compiles
        return self._embed_with_images(input_ids, pixel_values)

    @partial(torch.compiler.disable, recursive=False)  # it counts on the host
    def _embed_with_images(self, input_ids: Tensor, pixel_values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `embed`. The image id lies behind the table, so its positions look up row 0 and are replaced."""
        is_image = image_places(self.config).of(input_ids, has_media=pixel_values is not None)
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
        # It fills row by row from left to right, which is the order of images.
        return embeds.masked_scatter(is_image[..., None], features), is_image

    @outputs_for_transformers
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
    ) -> BaseModelOutputWithPast:
        """States after the final norm.

        Args:
            input_ids: (batch, seq) with `config.image_id` on every position an image fills.
            attention_mask: (batch, past + seq), 1 or True = attend, either padding side.
            position_ids: (batch, seq), by default counted from the first attended token.
            cache, past_key_values: keys and values so far; one cache, two names.
            inputs_embeds: (batch, seq, dim), instead of ids and images.
            pixel_values: (images, 3, side, side) in reading order over the batch.
            modality_ids: (batch, seq) indices into `plait.types.MODALITIES`, which choose the way of every position;
                by default image on image positions and text elsewhere.
            use_cache: whether to make a cache where none is given.
            output_hidden_states: whether `hidden_states` holds the states of all layers.
            output_attentions: needs the attention "eager", the others keep no weights.

        Returns:
            last_hidden_state: (batch, seq, dim), the cache, and `hidden_states` and `attentions` where asked for.

        Raises:
            ValueError: where image positions and images do not agree, for both or none of ids and embeddings, and for
                weights of another attention than "eager".
        """
        is_image = None
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds, is_image = self.embed(input_ids, pixel_values)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("expected either input_ids or inputs_embeds, got both or none")
        cache = one_cache(cache, past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache()
        chosen = self.config._attn_implementation
        if output_attentions and chosen != "eager":
            raise ValueError(
                f"expected attention 'eager' to return weights, got {chosen!r}; call "
                "model.set_attn_implementation('eager')"
            )
        config, mask, x = self.config, attention_mask, inputs_embeds
        past = cache.get_seq_length() if cache is not None else 0
        position_ids = position_ids_of(position_ids, mask, past, x.shape[:2], x.device)
        cos, sin = rotary(config, position_ids, mask, past, cache, x, self.training)
        # Log-n scaling belongs to evaluation, as NTK does: in training no sequence is longer than the trained length.
        scales = config.trained_length is not None and config.use_log_n and not self.training
        run = Pass(
            shape=(x.shape[0], x.shape[1]),
            cos=cos,
            sin=sin,
            attend=ALL_ATTENTION_FUNCTIONS.get_interface(chosen, eager_attention),
            mask=create_causal_mask(config, x, mask, cache, position_ids),
            cache=cache,
            query_scale=log_n_scale(position_ids, config.trained_length) if scales else None,
            weights=[] if output_attentions else None,
        )
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        x = self.decoder(x, self.route(x, is_image, modality_ids), run, hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=None if hidden is None else tuple(hidden),
            attentions=None if run.weights is None else tuple(run.weights),
            **named(cache),
        )

    def route(self, x: Tensor, is_image: Tensor | None, modality_ids: Tensor | None) -> Route:
        """Which modality owns each token.

        Args:
            x: (batch, seq, dim), for its length.
            is_image: (batch, seq) bool, of `embed`.
            modality_ids: (batch, seq), which go first.

        Returns:
            The route of the decoder. In training it lists every modality: a way without tokens then gets gradients of
            0, and all ranks the same parameters to reduce.
        """
        if not self.config.routed:
            return TEXT_ONLY
        if is_image is not None and modality_ids is None:
            modality_ids = is_image.long() * (IMAGE - TEXT) + TEXT
        if modality_ids is not None:
            return interleaved(modality_ids)
        return Route.segments({"text": x.shape[1]}, listed=self.config.modalities) if self.training else TEXT_ONLY


TEXT_ONLY = Route.only("text")


@torch.compiler.disable
def interleaved(modality_ids: Tensor) -> Route:
    """modality_ids: (batch, seq) -> their route, counted on the host."""
    return Route.interleaved(modality_ids.cpu()).to(modality_ids.device)


@labels_shifted
class MPlugOwl2ForConditionalGeneration(MPlugOwl2PreTrainedModel, MediaPrompts, OfficialBeams, GenerationMixin):
    """The chat model: images and text in, text out.

    Args:
        config: of the whole model.

    Source:
        arXiv 2311.04257; specification mPLUG-Owl2, sections 5, 7 and 11.

    Example:
        >>> config = MPlugOwl2Config.preset("nano")
        >>> model = MPlugOwl2ForConditionalGeneration(config).eval()
        >>> ids = torch.tensor([[1, *[config.image_token] * config.tokens_per_image, 5]])
        >>> model(ids, pixel_values=torch.zeros(1, 3, 64, 64)).logits.shape
        torch.Size([1, 19, 512])
    """

    prompt_only = ("pixel_values", "modality_ids")
    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "model.token_embedding.weight"}  # noqa: RUF012

    def __init__(self, config: MPlugOwl2Config) -> None:
        super().__init__(config)
        self.model = MPlugOwl2Model(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.post_init()

    @outputs_for_transformers
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
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given. Arguments as `MPlugOwl2Model.forward`, and:

        labels: (batch, seq), -100 where nothing is learned (image positions never are); logits_to_keep: how many of the
        last positions get logits, 0 for all; num_items_in_batch: what the summed loss is divided by, by default the
        number of learned labels.
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
        # 0 keeps all of them: -0 is 0, where the slice begins.
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if input_ids is not None:  # labels copied from ids hold an id there that no logits have
                is_image = image_places(self.config).of(input_ids, has_media=pixel_values is not None)
                labels = labels.masked_fill(is_image, IGNORED)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **named(outputs.get(CACHE)),
        )

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (images, 3, side, side) -> (images, tokens_per_image, dim), what the decoder gets of each."""
        return self.model.encode_images(pixel_values)

    def generate(self: Any, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `MediaPrompts.generate`; from `inputs_embeds` the new ids alone.

        Raises:
            ValueError: for embeddings without `modality_ids` where ways are routed: nothing else says which are images.
        """
        embeds, ways = kwargs.get("inputs_embeds"), kwargs.get("modality_ids")
        if embeds is not None and ways is None and inputs is None and self.config.routed:
            raise ValueError("expected modality_ids beside inputs_embeds, got none; they choose the ways of positions")
        return super().generate(inputs, *args, **kwargs)

    def uncounted_positions(self, prompt_ids: Tensor) -> Tensor:
        """Positions of each prompt that lengths of beams leave out, (rows, seq) -> (rows,).

        To the official `generate` an image is one id, so all but one of its positions (section 11).
        """
        images = image_places(self.config).of(prompt_ids).sum(dim=1)
        return images - images // self.config.tokens_per_image

    @property
    def _unworded_id(self) -> int:
        """The id of images, unless the table has grown over it: then it may be a word's."""
        return self.config.image_token if self.config.image_token >= self.config.vocab_size else IMAGE_APART

    def media_places(self) -> dict[str, Places]:
        """Images follow their rows into beams."""
        return {"pixel_values": image_places(self.config)}

    def _get_logits_processor(self: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Penalties of repeated ids see the words of a prompt, neither its images nor its padding."""
        ids, mask = kwargs.get("encoder_input_ids"), (kwargs.get("model_kwargs") or {}).get("attention_mask")
        if ids is not None and ids.dim() == 2:
            kwargs["encoder_input_ids"] = words_only(ids, self._unworded_id, mask)
        else:  # embeddings: rules see the answer alone, of which nothing is padding; transformers would skip as much
            kept = (kwargs.get("model_kwargs") or {}).items()
            kwargs["model_kwargs"], mask = {name: x for name, x in kept if name != "attention_mask"}, None
        found = GenerationMixin._get_logits_processor(self, *args, **kwargs)

        def on_words(processor: LogitsProcessor, input_ids: Tensor, scores: Tensor) -> Tensor:
            return processor(words_only(input_ids, self._unworded_id, mask), scores)

        return LogitsProcessorList(partial(on_words, rule) if isinstance(rule, Penalty) else rule for rule in found)


def image_places(config: MPlugOwl2Config) -> Places:
    """Where images stand in ids."""
    return Places(config.image_token, config.tokens_per_image, IMAGE_APART, config.vocab_size)


def words_only(ids: Tensor, image_id: int, mask: Tensor | None = None) -> Tensor:
    """Ids for a rule that asks which ones occur: images and padding replaced by an id that occurs anyway.

    Image positions hold an id outside the vocabulary, and padding is no word; each becomes the smallest id that its row
    has elsewhere, which changes nothing for such a rule.

    Args:
        ids: (rows, seq), prompt and answer.
        image_id: on positions of images.
        mask: (rows, prompt), once or once per beam, 0 on padding.

    Returns:
        Like ids.
    """
    if not ids.shape[1]:  # the first step from embeddings
        return ids
    hidden = (ids == image_id) | (ids == IMAGE_APART)
    if mask is not None:
        mask = mask[:: max(1, len(mask) // len(ids))].repeat_interleave(max(1, len(ids) // len(mask)), dim=0)
        padding = mask[:, : ids.shape[1]] == 0
        hidden[:, : padding.shape[1]] |= padding
    none = torch.iinfo(ids.dtype).max
    word = ids.masked_fill(hidden, none).amin(dim=1, keepdim=True)
    # A row without a word keeps its ids: there is nothing to put in their place.
    return torch.where(hidden & (word < none), word, ids)
