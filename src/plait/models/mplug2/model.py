"""mPLUG-2's network: the parts that a task needs, and the path of pictures, clips and texts through them.

pictures | clips -> vision encoder -> (projection) -> universal layers --+
                                                                          +-> fusion -> states -> decoder -> ids
texts -> embeddings -> text layers -> universal layers ------------------+

Which of these parts exist and are passed is read from `composition.TABLE`. The classes stand in the order of the data;
the teacher of momentum distillation, a slow copy of the network, comes last. Source: mPLUG-2 (arXiv 2302.00402), figure
2; mPLUG (arXiv 2205.12005), section 3.2, for the fusion module; specification mPLUG-2, sections 3 to 6.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from plait.models.mplug2.composition import PARTS, Part, Path, Task, parts_of, path_of
from plait.models.mplug2.config import MPlug2Config
from plait.nn.attention import AttentionFunction, attention_function
from plait.nn.bert import BertAttention, BertEmbeddings, BertLayer, Cache, KeysValues, LMHead, causal_bias
from plait.nn.contract import outputs_for_transformers
from plait.nn.encoder import Reader, UniversalLayers
from plait.nn.temporal import DualVisionEncoder, ZeroLinear
from plait.objectives.distillation import update_teacher

EMPTY_ID = -100
"""Identity of a place in the queues that nothing filled: no pair has it, so it is never a positive."""


@dataclass
class Encoded(ModelOutput):
    """What the network makes of its inputs, None where a path does without.

    Attributes:
        vision: (batch, 1 + patches, dim) behind the universal layers, class token first.
        text: (batch, tokens, dim) likewise.
        text_mask: (batch, tokens) bool, True = real.
        fused_vision, fused_text: the same two behind the fusion module.
    """

    vision: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    fused_vision: Tensor | None = None
    fused_text: Tensor | None = None

    def states(self) -> tuple[Tensor, Tensor | None]:
        """What a decoder attends to: vision, with text behind it where there is one, fused where they were, or text.

        Returns:
            States (batch, seq, dim), and which of them are real, (batch, seq) bool, None where all are.
        """
        vision = self.vision if self.fused_vision is None else self.fused_vision
        text = self.text if self.fused_text is None else self.fused_text
        if vision is None or text is None:
            found = text if vision is None else vision
            assert found is not None
            return found, self.text_mask if vision is None else None
        # Vision is never padded: images and videos of a batch have one size.
        seen = vision.new_ones(vision.shape[:2], dtype=torch.bool)
        mask = None if self.text_mask is None else torch.cat([seen, self.text_mask], dim=1)
        return torch.cat([vision, text], dim=1), mask


class MPlug2PreTrainedModel(PreTrainedModel):
    """Initialisation and loading shared by the mPLUG-2 models.

    A subclass names its `TASKS` and `MEDIA`; which parts it builds follows from them and from the
    configuration.

    Source: BERT's initialisation with std 0.02, as the released configurations say (specification
    mPLUG-2, section 2).
    """

    config: MPlug2Config
    config_class = MPlug2Config
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False  # means over pairs, texts or questions, of which Trainer counts none
    # For `device_map`: residual streams must not cross devices inside a layer.
    _no_split_modules = ["ClipBlock", "BertLayer"]  # noqa: RUF012

    TASKS: tuple[Task, ...] = ()
    """What the class can do; `config.task` picks one."""
    MEDIA: tuple[str, ...] = ("text", "image", "video")
    """What the class can look at or read."""

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has a `generate`, its own one: pipelines ask."""
        return hasattr(cls, "generate")

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers would read the source for it; ours asks the configuration at every call."""
        return True  # looked up in the config at every forward pass

    @classmethod
    def parts(cls, config: MPlug2Config) -> frozenset[Part]:
        """The parts that a model of this class and configuration has.

        Args:
            config: `task` and `modalities` of it are read.

        Returns:
            Names of `composition.PARTS`.

        Raises:
            ValueError: for a task of another class, and where none of its media is left.
        """
        tasks = cls.TASKS if config.task is None else tuple(t for t in cls.TASKS if t == config.task)
        if not tasks:
            raise ValueError(f"expected a task of {cls.__name__}, {', '.join(cls.TASKS)}, got {config.task!r}")
        media = tuple(m for m in cls.MEDIA if m == "text" or m in config.modalities)
        return parts_of(tasks, media)

    def post_init(self) -> None:
        """Fresh weights where nothing is loaded, and a teacher that does not train."""
        super().post_init()
        self.freeze_teacher()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it, except that the teacher stays frozen.

        Args:
            args, kwargs: as `transformers.PreTrainedModel.from_pretrained` takes them.

        Returns:
            The model, or the pair with loading information where `output_loading_info` asks for it.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading makes every parameter trainable again, whatever `post_init` had frozen.
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_teacher()
        return loaded

    def freeze_teacher(self) -> None:
        """Take the parameters of momentum copies out of training: all under `teacher` or `teacher_*`.

        The released code freezes its copies too, except the one of the fusion module, which it
        forgot (specification 9).
        """
        for name, parameter in self.named_parameters():
            if any(part == "teacher" or part.startswith("teacher_") for part in name.split(".")):
                parameter.requires_grad_(False)

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """Fresh modules behind the network, by the name of their attribute.

        Where a file lacks them, training begins with these; a class without heads has none.

        Args:
            config: sizes, and for classifiers the number of labels.
        """
        return {}

    def medium(self, pixel_values: Tensor | None, pixel_values_videos: Tensor | None) -> str:
        """Which of the two inputs is given.

        Args:
            pixel_values: (batch, 3, side, side), or None.
            pixel_values_videos: (batch, 3, frames, side, side), or None.

        Returns:
            `image` or `video`.

        Raises:
            ValueError: unless exactly one is given.
        """
        if (pixel_values is None) == (pixel_values_videos is None):
            raise ValueError("expected either pixel_values or pixel_values_videos, got both or neither")
        return "video" if pixel_values is None else "image"

    @property
    def attend(self) -> AttentionFunction:
        """The attention implementation that the configuration names, `sdpa` by default.

        Read at every forward pass, so that `set_attn_implementation` works on a loaded model.
        """
        return attention_function(self.config._attn_implementation or "sdpa")

    def _init_weights(self, module: nn.Module) -> None:
        """BERT's normal initialisation; fresh temporal modules add nothing; latents N(0, 1) as published.

        transformers calls it for every module from the leaves up. The functions of
        `transformers.initialization` leave loaded tensors alone, which torch's own in-place calls
        would overwrite.
        """
        if isinstance(module, ZeroLinear):  # asked first: transformers initialises no tensor twice
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv3d):
            init.normal_(module.weight, std=self.config.init_std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(cast("Tensor", module.bias))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, UniversalLayers) and module.latents is not None:
            # Fifty times the std of everything else, as released: `latents` is drawn from N(0, 1) (specification 4).
            init.normal_(module.latents, std=1.0)
        elif isinstance(module, DualVisionEncoder):
            init.normal_(module.class_embedding, std=self.config.init_std)
            init.normal_(module.position_embedding, std=self.config.init_std)
        elif hasattr(module, "temperature_parameter"):  # the heads of `alignment`
            init.constant_(cast("Tensor", module.temperature_parameter), self.config.temperature_init)
            # Queues that a file lacks are uninitialised memory after `from_pretrained`: begun here as when fresh.
            for name, queue in module.named_buffers(recurse=False):
                if name in ("vision_queue", "text_queue"):
                    init.copy_(queue, nn.functional.normalize(torch.randn_like(queue), dim=0))
                else:
                    init.constant_(queue, EMPTY_ID if name == "id_queue" else 0)


class MPlug2Model(MPlug2PreTrainedModel):
    """The parts of the network and the paths through them.

    Args:
        config: sizes, task and media.
        parts: which to build, by default those of `config.task`, or all.

    Raises:
        ValueError: for a task that cannot be done with the media of the configuration.

    Example:
        >>> import torch
        >>> model = MPlug2Model(MPlug2Config.preset("tiny")).eval()
        >>> model(pixel_values=torch.rand(2, 3, 12, 12)).vision.shape
        torch.Size([2, 10, 24])

    Source: mPLUG-2 (arXiv 2302.00402), figure 2; specification mPLUG-2, sections 3 to 6.
    """

    TASKS = ("caption", "answer", "retrieve", "ground", "entail", "compare", "classify")

    def __init__(self, config: MPlug2Config, parts: frozenset[Part] | None = None) -> None:
        super().__init__(config)
        # `_require` and the paths ask this set, so that an absent part is a clear error and no AttributeError.
        self.has = frozenset(p for p in PARTS if p in (self.parts(config) if parts is None else parts))
        sizes = config.vision_sizes
        if "vision" in self.has:
            self.vision = DualVisionEncoder(
                sizes.dim,
                sizes.num_heads,
                sizes.num_layers,
                patch_size=sizes.patch_size,
                image_size=sizes.image_size,
                # The released encoder has no switch: with `official` pictures pass the temporal modules too.
                temporal=sizes.temporal and ("temporal" in self.has or config.official),
                temporal_kernel=sizes.temporal_kernel,
                temporal_stride=sizes.temporal_stride,
            )
        if "vision" in self.has and config.has_projection:
            self.vision_adapter = VisionAdapter(sizes.dim, config.dim, config.eps, config.dropout)
        if "text" in self.has:
            self.text = TextEncoder(config)
        # Who never calls the layers gets no weights for it: text alone has neither latents nor cross-attention.
        if "universal" in self.has and config.num_universal_layers:
            readers: dict[Reader, bool] = {"text": "text" in self.has, "visual": "vision" in self.has}
            self.universal = UniversalLayers(
                config.dim,
                config.num_heads,
                config.mlp_dim,
                config.num_universal_layers,
                num_latents=config.num_latents,
                sharing=cast("Any", config.universal_sharing),
                readers=tuple(reader for reader, wanted in readers.items() if wanted),
                **rates(config),
            )
        if "fusion" in self.has:
            self.fusion = FusionModule(config)
        if "decoder" in self.has:
            self.decoder = TextDecoder(config)
        # Over the token table of the text encoder; no released file is known to hold one.
        if "masked_lm" in self.has:
            self.masked_lm = LMHead(config.dim, config.vocab_size, config.eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token table of the text encoder, or of the decoder in a model without one.

        Both exist in a model that answers; the two tables are not tied (specification 6).
        """
        owner = self.text if "text" in self.has else self.decoder
        return owner.embeddings.token_embedding

    def see(
        self, pixel_values: Tensor | None = None, pixel_values_videos: Tensor | None = None, path: Path | None = None
    ) -> Tensor:
        """Vision tokens behind the universal layers, class token first.

        Args:
            pixel_values: (batch, 3, side, side), which pass no temporal module; or
            pixel_values_videos: (batch, 3, frames, side, side). Exactly one of the two.
            path: by default that of classification. `config.official` sends images through the
                temporal modules as videos of one frame.

        Returns:
            (batch, 1 + patches, dim), the patches of a video frame by frame.

        Raises:
            ValueError: for both inputs or none, a model without a vision part, a medium it does not
                have, and another size.
        """
        self._require("vision")
        medium = self.medium(pixel_values, pixel_values_videos)
        path = path_of("classify", medium) if path is None else path
        if medium not in self.config.modalities:
            raise ValueError(f"expected {' or '.join(self.config.modalities)}, got {medium}; load the model with it")
        # The encoder takes videos alone; an image is one of a single frame.
        clips = cast("Tensor", pixel_values_videos) if pixel_values is None else pixel_values[:, :, None]
        # A processor makes float32, whatever the weights are. (`self.dtype` walks all parameters, which dynamo cannot.)
        clips = clips.to(self.vision.position_embedding.dtype)
        # mPLUG never saw a clip in training: each frame is a picture of its own, finished, before they are joined.
        frame_by_frame = medium == "video" and self.config.is_predecessor
        if frame_by_frame:
            frames = clips.transpose(1, 2).flatten(0, 1)[:, :, None]  # (batch * frames, 3, 1, side, side)
            x = self.vision(frames, self.attend)
        else:
            x = self.vision(clips, self.attend, temporal=path.uses("temporal") or bool(self.config.official))
        if self.config.has_projection:
            x = self.vision_adapter(x)
        if frame_by_frame:  # the mean of the class tokens, then all patches: (batch, 1 + frames * patches, dim)
            x = x.unflatten(0, (clips.shape[0], -1))
            return torch.cat([x[:, :, :1].mean(1), x[:, :, 1:].flatten(1, 2)], dim=1)
        return self.universal.see(x, self.attend) if self._is_universal(path) else x

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        path: Path | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text states behind the universal layers.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 1 = real; by default ids other than padding.
            token_type_ids: (batch, tokens), 0 for the first text and 1 for the second; by default
                all 0.
            path: by default that of classification.

        Returns:
            States (batch, tokens, dim), and which are real, (batch, tokens) bool.

        Raises:
            ValueError: for a model without a text part, and for more tokens than
                `config.max_positions`.
        """
        self._require("text")
        path = path_of("classify", "text") if path is None else path
        mask = input_ids.ne(self.config.pad_token_id or 0) if attention_mask is None else attention_mask.bool()
        x = self.text(input_ids, mask, self.attend, token_type_ids)
        # No residual around the layers here: the figure draws one on both sides, the released code has vision's only.
        return (self.universal.read(x, mask, self.attend) if self._is_universal(path) else x), mask

    def _is_universal(self, path: Path) -> bool:
        """Whether a path passes universal layers that this model has; mPLUG has none."""
        return path.uses("universal") and self.config.num_universal_layers > 0

    def fuse(
        self, text: Tensor, text_mask: Tensor | None, vision: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vision and text after reading each other.

        Args:
            text: (batch, tokens, dim).
            text_mask: (batch, tokens) bool, True = attend; None means all.
            vision: (batch, 1 + patches, dim), unpadded; (1, ...) where all texts read the same.
            seen: (batch,) which row of vision each text reads, where those are others; its keys are made once.

        Returns:
            Vision and text, in this order, shaped like what was given.

        Raises:
            ValueError: for a model without a fusion part.
        """
        self._require("fusion")
        return self.fusion(text, text_mask, vision, self.attend, seen)

    def run(
        self,
        path: Path,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Encoded:
        """The encoding part of a path: everything before decoder and heads.

        Args:
            path: of `composition.path_of`; it says which inputs are needed.
            pixel_values: (batch, 3, side, side), or
            pixel_values_videos: (batch, 3, frames, side, side).
            input_ids, attention_mask, token_type_ids: (batch, tokens).

        Returns:
            What came out of every part that the path passes.

        Raises:
            ValueError: for text and media that the path has no use for or lacks, and as `see` and `read`.
        """
        if path.uses("text") != (input_ids is not None):
            raise ValueError(f"expected {'input_ids' if path.uses('text') else 'no input_ids'} where {path.about}")
        if not path.uses("vision") and not (pixel_values is None and pixel_values_videos is None):
            raise ValueError(f"expected no images and no videos where {path.about}")
        out = Encoded()
        if path.uses("vision"):
            out.vision = self.see(pixel_values, pixel_values_videos, path)
        if input_ids is not None:
            out.text, out.text_mask = self.read(input_ids, attention_mask, token_type_ids, path)
        if path.uses("fusion") and out.vision is not None and out.text is not None:
            out.fused_vision, out.fused_text = self.fuse(out.text, out.text_mask, out.vision)
        return out

    @outputs_for_transformers
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Encoded:
        """Encode what is given: text alone, an image or video alone, or both, fused.

        Args:
            pixel_values: (batch, 3, side, side), or
            pixel_values_videos: (batch, 3, frames, side, side).
            input_ids, attention_mask, token_type_ids: (batch, tokens).

        Returns:
            `Encoded`; its fused fields are None where there is one modality alone.

        Raises:
            ValueError: for a part that this model lacks, and as `see` and `read`.
        """
        if pixel_values is None and pixel_values_videos is None:
            path = path_of("classify", "text")
        else:
            medium = self.medium(pixel_values, pixel_values_videos)
            # Entailment is the plainest path that fuses: no decoder, and both streams are returned.
            path = path_of("entail" if input_ids is not None else "classify", medium)
        return self.run(path, pixel_values, pixel_values_videos, input_ids, attention_mask, token_type_ids)

    def _require(self, part: Part) -> None:
        """Raise ValueError, naming the parts that there are, unless the model has `part`."""
        if part not in self.has:
            raise ValueError(
                f"expected a model with its {part} part, got one with {', '.join(p for p in PARTS if p in self.has)}; "
                "load it with another task="
            )


class VisionAdapter(nn.Module):
    """Vision tokens to the width of the rest: linear, norm, dropout.

    Only mPLUG large has one, whose vision encoder is 1024 wide and the rest 768 (specification
    mPLUG-2, section 2).

    Args:
        vision_dim, dim: widths before and behind.
        eps: of the norm.
        dropout: rate.
    """

    def __init__(self, vision_dim: int, dim: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.proj = nn.Linear(vision_dim, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq, vision_dim) -> (batch, seq, dim)."""
        return self.dropout(self.norm(self.proj(x)))


class TextEncoder(nn.Module):
    """Embeddings and the layers that text alone passes; the universal layers follow."""

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__()
        self.embeddings = embeddings_of(config)
        sizes = (config.dim, config.num_heads, config.mlp_dim)
        self.layers = nn.ModuleList(BertLayer(*sizes, **rates(config)) for _ in range(config.num_text_layers))

    def forward(
        self,
        input_ids: Tensor,
        key_mask: Tensor | None,
        attend: AttentionFunction,
        token_type_ids: Tensor | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Post-norm BERT layers over ids; the universal layers are not among them.

        Args:
            input_ids, token_type_ids: (batch, tokens).
            key_mask: (batch, tokens) bool, True = attend; None means all.
            attend: the attention implementation.
            hidden: a list to which the embeddings and the output of every layer are appended.

        Returns:
            (batch, tokens, dim).
        """
        x = self.embeddings(input_ids, token_type_ids)
        if hidden is not None:
            hidden.append(x)
        for layer in self.layers:
            x = layer(x, attend, key_mask=key_mask)
            if hidden is not None:
                hidden.append(x)
        return x


class FusionModule(nn.Module):
    """Text reads vision by cross-attention; connected layers join both streams in one self-attention instead.

    Every `fusion_stride`-th layer but the first is connected. Large has a stride of 1000, so none of those.

    Source: mPLUG (arXiv 2205.12005), section 3.2, cross-modal skip connections; specification mPLUG-2, section 5.
    """

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__()
        stride, sizes = config.fusion_stride, (config.dim, config.num_heads, config.mlp_dim)
        if stride < 1:
            raise ValueError(f"expected a fusion stride of at least 1, got {stride}")
        self.layers = nn.ModuleList(
            BertLayer(*sizes, cross=not is_connected(i, stride), **rates(config))
            for i in range(config.num_fusion_layers)
        )

    def forward(
        self, text: Tensor, text_mask: Tensor | None, vision: Tensor, attend: AttentionFunction,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Both streams after all layers.

        Args:
            text, text_mask, vision, seen: as in `MPlug2Model.fuse`.
            attend: the attention implementation.

        Returns:
            Vision and text, in this order. Without a connected layer vision is what was given.
        """
        patches = vision.shape[1]
        for layer in self.layers:
            assert isinstance(layer, BertLayer)
            if layer.cross_attn is not None:
                # Most of the work of a pair: made once for all texts that read the same image or clip.
                text = layer(text, attend, key_mask=text_mask, other=vision, seen=seen)
                continue
            # From here on vision depends on the text beside it.
            vision, seen = vision.expand(len(text), -1, -1) if seen is None else vision[seen], None
            joint = torch.cat([vision, text], dim=1)
            # Vision stands in front of the text and is all real.
            real = None if text_mask is None else nn.functional.pad(text_mask, (patches, 0), value=True)
            joint = layer(joint, attend, key_mask=real)
            # mPLUG's skip connection: what the layer makes of vision is added, what it makes of text replaces.
            vision, text = vision + joint[:, :patches], joint[:, patches:]
        return vision, text


def is_connected(index: int, stride: int) -> bool:
    """Whether layer `index`, counted from the first that runs, joins both streams.

    Args:
        index: from 0. The first layer never does, whatever the stride.
        stride: `config.fusion_stride`.
    """
    return index > 0 and index % stride == 0


class TextDecoder(nn.Module):
    """Next-token logits of texts about something seen: causal, with cross-attention to the encoder's states.

    ids -> embeddings -> [causal self-attention -> cross-attention -> MLP] x layers -> LM head over the token table

    Keys of the states are made once (`cross_keys`), those of the ids kept in a `Cache`: the released code makes all of
    them anew at every step, since its cache drops the keys and keeps the values.
    """

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__()
        sizes = (config.dim, config.num_heads, config.mlp_dim)
        self.embeddings = embeddings_of(config)
        self.layers = nn.ModuleList(
            BertLayer(*sizes, cross=True, **rates(config)) for _ in range(config.num_decoder_layers)
        )
        self.head = LMHead(config.dim, config.vocab_size, config.eps)

    def cross_keys(self, states: Tensor) -> list[KeysValues]:
        """Keys and values of the encoder states for the cross-attention of every layer, made once per item.

        Args:
            states: (items, seq, dim).

        Returns:
            One pair per layer, each (items, heads, seq, head_dim).
        """
        attentions = [cast("BertAttention", cast("BertLayer", layer).cross_attn) for layer in self.layers]
        return [attention.project(states) for attention in attentions]

    def hidden(
        self,
        input_ids: Tensor,
        cross: list[KeysValues] | Tensor,
        attend: AttentionFunction,
        *,
        attention_mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states, before the language head.

        Args:
            input_ids: (rows, seq), those behind what `cache` holds.
            cross: encoder states (items, states, dim), or their keys for every layer; of as many
                items as rows, or of fewer that neighbouring rows share, such as the beams of an
                item.
            attend: the attention implementation.
            attention_mask: (rows, seq) bool, True = attend, without cache only.
            cross_mask: (items, states) bool, True = attend.
            cache: keys and values of earlier positions, extended in place.

        Returns:
            (rows, seq, dim).

        Raises:
            ValueError: for more positions than the table or the cache has.
        """
        # Read before any layer runs: the last layer moves the length.
        start = 0 if cache is None else cache.length
        x = self.embeddings(input_ids, start=start)
        # One new token behind a cache sees everything before it, and gets no bias at all.
        bias = causal_bias(input_ids.shape[1], start + input_ids.shape[1], x)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, BertLayer)
            own = None if cache is None else cache.append(i, layer.attn.project(x))
            other = cross if isinstance(cross, Tensor) else cross[i]
            x = layer(x, attend, bias=bias, key_mask=attention_mask, own=own, other=other, other_mask=cross_mask)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary, over the table that embeds the ids.

        Args:
            hidden: (..., dim).

        Returns:
            (..., vocab).
        """
        return self.head(hidden, self.embeddings.token_embedding.weight)

    def forward(
        self,
        input_ids: Tensor,
        states: Tensor,
        attend: AttentionFunction,
        *,
        attention_mask: Tensor | None = None,
        states_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of whole texts, all positions at once.

        Args:
            input_ids: (rows, seq) with start token.
            states: (items, states, dim) that the texts are about.
            attend: the attention implementation.
            attention_mask: (rows, seq) bool, True = attend; None means all.
            states_mask: (items, states) bool, True = attend; None means all.

        Returns:
            (rows, seq, vocab); position t predicts the token at t + 1.
        """
        hidden = self.hidden(input_ids, states, attend, attention_mask=attention_mask, cross_mask=states_mask)
        return self.logits(hidden)


def embeddings_of(config: MPlug2Config) -> BertEmbeddings:
    """A token table, its positions and types, with norm and dropout.

    Text encoder and decoder have one each, which are not tied (specification 6).
    """
    sizes = (config.vocab_size, config.dim, config.max_positions, config.num_types)
    return BertEmbeddings(*sizes, eps=config.eps, dropout=config.dropout)


def rates(config: MPlug2Config) -> dict[str, Any]:
    """What every BERT-like layer of a configuration has in common: norm epsilon and both dropout rates."""
    return {"eps": config.eps, "dropout": config.dropout, "attention_dropout": config.attention_dropout}


class CachedStep:
    """A decoder as `plait.generation.beam_search` sees it: every token is computed once.

    Args:
        decoder: whose layers are run.
        cross: of `decoder.cross_keys`, one per item and not per beam.
        attend: the attention implementation.
        max_length: positions in all, start token and prompt included; memory is taken for as many.
        cross_mask: (items, states) bool, True = attend.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        cross: list[KeysValues],
        attend: AttentionFunction,
        max_length: int,
        cross_mask: Tensor | None = None,
    ) -> None:
        self.decoder, self.cross, self.attend, self.cross_mask = decoder, cross, attend, cross_mask
        self.cache = Cache(len(decoder.layers), max_length)

    def __call__(self, ids: Tensor, beam_indices: Tensor | None) -> Tensor:
        """Logits of the next token; see `plait.generation.StepFunction`.

        Args:
            ids: (rows, length) so far; only those that the cache does not hold are computed.
            beam_indices: (rows,) the row that each row continues, None where none moved.

        Returns:
            (rows, vocab).
        """
        if beam_indices is not None:
            # Own keys move with their beams; those of the encoder states belong to the item and stay.
            self.cache.reorder(beam_indices)
        new = ids[:, self.cache.length :]
        hidden = self.decoder.hidden(new, self.cross, self.attend, cross_mask=self.cross_mask, cache=self.cache)
        return self.decoder.logits(hidden[:, -1])


class Teacher(MPlug2Model):
    """A slow copy of the network: teacher <- m teacher + (1 - m) student.

    It is part of the model, so that checkpoints hold it, and never trains: the model that holds it
    switches its gradients off.

    Source: ALBEF (arXiv 2107.07651), section 3.3; specification mPLUG-2, section 9.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever is asked.

        The released teacher runs in training mode, drops units, and so blurs its targets
        (specification 9).
        """
        return super().train(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float, *, leave: tuple[str, ...] = ()) -> None:
    """Move every parameter of `teacher` towards the one of `student` of that name, in place.

    Args:
        teacher, student: networks; the student may have parts that the teacher lacks.
        momentum: the share that stays; 0 copies.
        leave: children of the teacher that stay as they are.

    Raises:
        ValueError: where the student lacks a parameter of the teacher.
    """
    # Paired by name, not by order: a student with more parts would shift every pair behind them.
    fast = dict(student.named_parameters())
    slow = [(n, p) for n, p in teacher.named_parameters() if n.partition(".")[0] not in leave]
    missing = [name for name, _ in slow if name not in fast]
    if missing:
        raise ValueError(f"expected a student with every tensor of its teacher, got none of {', '.join(missing[:5])}")
    update_teacher((p for _, p in slow), (fast[name] for name, _ in slow), momentum)


def for_task(config: MPlug2Config, task: Task) -> MPlug2Config:
    """`config` with the only task of a class where it names none.

    So whoever reads a saved configuration builds no other parts. The original is not changed.

    Args:
        config: of the model.
        task: what the class does.
    """
    if config.task is not None:
        return config
    config = copy.deepcopy(config)
    config.task = task
    return config
