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
from plait.nn.encoder import Reader, UniversalLayers
from plait.nn.temporal import DualVisionEncoder, ZeroLinear
from plait.objectives.distillation import update_teacher


@dataclass
class Encoded(ModelOutput):
    """What the network makes of its inputs, None where a path does without.

    vision: (batch, patches, dim) behind the universal layers; text: (batch, tokens, dim) likewise; text_mask:
    (batch, tokens) bool; fused_vision, fused_text: behind the fusion module.
    """

    vision: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    fused_vision: Tensor | None = None
    fused_text: Tensor | None = None

    def states(self) -> tuple[Tensor, Tensor | None]:
        """What a decoder attends to, (batch, seq, dim), and which of it is real, (batch, seq) bool or None for all."""
        vision = self.vision if self.fused_vision is None else self.fused_vision
        text = self.text if self.fused_text is None else self.fused_text
        assert vision is not None
        if text is None:
            return vision, None
        seen = vision.new_ones(vision.shape[:2], dtype=torch.bool)
        mask = None if self.text_mask is None else torch.cat([seen, self.text_mask], dim=1)
        return torch.cat([vision, text], dim=1), mask


class MPlug2PreTrainedModel(PreTrainedModel):
    """Initialisation and loading shared by the mPLUG-2 models."""

    config: MPlug2Config
    config_class = MPlug2Config
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ClipBlock", "BertLayer"]  # noqa: RUF012

    TASKS: tuple[Task, ...] = ()
    """What the class can do; `config.task` picks one."""
    MEDIA: tuple[str, ...] = ("text", "image", "video")
    """What the class can look at or read."""

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # looked up in the config at every forward pass

    @classmethod
    def parts(cls, config: MPlug2Config) -> frozenset[Part]:
        """The parts that a model of this class and configuration has. Raises ValueError for another class's task."""
        tasks = cls.TASKS if config.task is None else tuple(t for t in cls.TASKS if t == config.task)
        if not tasks:
            raise ValueError(f"expected a task of {cls.__name__}, {', '.join(cls.TASKS)}, got {config.task!r}")
        media = tuple(m for m in cls.MEDIA if m == "text" or m in config.modalities)
        return parts_of(tasks, media)

    def post_init(self) -> None:
        """Fresh weights, and a teacher that does not train."""
        super().post_init()
        self.freeze_teacher()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it, which makes every parameter trainable, except that the teacher stays frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_teacher()
        return loaded

    def freeze_teacher(self) -> None:
        """Take the parameters of momentum copies, called `teacher` or `teacher_*`, out of training."""
        for name, parameter in self.named_parameters():
            if any(part == "teacher" or part.startswith("teacher_") for part in name.split(".")):
                parameter.requires_grad_(False)

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """Fresh modules behind the network, by the name of their attribute: where a file lacks them, training begins
        with these."""
        return {}

    def medium(self, pixel_values: Tensor | None, pixel_values_videos: Tensor | None) -> str:
        """image or video. Raises ValueError unless exactly one is given."""
        if (pixel_values is None) == (pixel_values_videos is None):
            raise ValueError("expected either pixel_values or pixel_values_videos, got both or neither")
        return "video" if pixel_values is None else "image"

    @property
    def attend(self) -> AttentionFunction:
        """The attention implementation that the configuration names."""
        return attention_function(self.config._attn_implementation or "sdpa")

    def _init_weights(self, module: nn.Module) -> None:
        """BERT's normal initialisation; fresh temporal modules add nothing; latents N(0, 1) as published."""
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
            init.normal_(module.latents, std=1.0)
        elif isinstance(module, DualVisionEncoder):
            init.normal_(module.class_embedding, std=self.config.init_std)
            init.normal_(module.position_embedding, std=self.config.init_std)
        elif hasattr(module, "temperature_parameter"):  # the heads of `alignment`
            init.constant_(cast("Tensor", module.temperature_parameter), self.config.temperature_init)
            for queue in (getattr(module, name, None) for name in ("vision_queue", "text_queue")):
                if isinstance(queue, Tensor):
                    init.copy_(queue, nn.functional.normalize(torch.randn_like(queue), dim=0))


class MPlug2Model(MPlug2PreTrainedModel):
    """The parts of the network and the paths through them.

    parts: which to build, by default those of `config.task`, or all.
    """

    TASKS = ("caption", "answer", "retrieve", "ground", "entail", "compare", "classify")

    def __init__(self, config: MPlug2Config, parts: frozenset[Part] | None = None) -> None:
        super().__init__(config)
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
        if "masked_lm" in self.has:
            self.masked_lm = LMHead(config.dim, config.vocab_size, config.eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token table of the text encoder, or of the decoder in a model without one."""
        owner = self.text if "text" in self.has else self.decoder
        return owner.embeddings.token_embedding

    def see(
        self, pixel_values: Tensor | None = None, pixel_values_videos: Tensor | None = None, path: Path | None = None
    ) -> Tensor:
        """Vision tokens behind the universal layers (batch, 1 + patches, dim), class token first.

        pixel_values: (batch, 3, side, side), which pass no temporal module; pixel_values_videos: (batch, 3, frames,
        side, side). `config.official` sends pictures through the temporal modules as clips of one frame. path: by
        default that of classification.
        """
        self._require("vision")
        medium = self.medium(pixel_values, pixel_values_videos)
        path = path_of("classify", medium) if path is None else path
        if medium not in self.config.modalities:
            raise ValueError(f"expected {' or '.join(self.config.modalities)}, got {medium}; load the model with it")
        clips = cast("Tensor", pixel_values_videos) if pixel_values is None else pixel_values[:, :, None]
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
            x = x.unflatten(0, (len(clips), -1))
            return torch.cat([x[:, :, :1].mean(1), x[:, :, 1:].flatten(1, 2)], dim=1)
        return self.universal.see(x, self.attend) if self._is_universal(path) else x

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        path: Path | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text states behind the universal layers (batch, tokens, dim), and which are real, (batch, tokens) bool.

        attention_mask: (batch, tokens), by default ids other than padding; path: by default that of classification.
        """
        self._require("text")
        path = path_of("classify", "text") if path is None else path
        mask = input_ids.ne(self.config.pad_token_id or 0) if attention_mask is None else attention_mask.bool()
        x = self.text(input_ids, mask, self.attend, token_type_ids)
        # No residual around the layers here: the figure draws one on both sides, the released code has vision's only.
        return (self.universal.read(x, mask, self.attend) if self._is_universal(path) else x), mask

    def _is_universal(self, path: Path) -> bool:
        return path.uses("universal") and self.config.num_universal_layers > 0

    def fuse(self, text: Tensor, text_mask: Tensor | None, vision: Tensor) -> tuple[Tensor, Tensor]:
        """Vision and text after reading each other; shapes as given."""
        self._require("fusion")
        return self.fusion(text, text_mask, vision, self.attend)

    def run(
        self,
        path: Path,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Encoded:
        """The encoding part of a path. Raises ValueError for inputs that it lacks or has no use for."""
        if path.uses("text") != (input_ids is not None):
            raise ValueError(f"expected {'input_ids' if path.uses('text') else 'no input_ids'} where {path.about}")
        out = Encoded()
        if path.uses("vision"):
            out.vision = self.see(pixel_values, pixel_values_videos, path)
        if input_ids is not None:
            out.text, out.text_mask = self.read(input_ids, attention_mask, token_type_ids, path)
        if path.uses("fusion") and out.vision is not None and out.text is not None:
            out.fused_vision, out.fused_text = self.fuse(out.text, out.text_mask, out.vision)
        return out

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: object,
    ) -> Encoded:
        """Encode what is given: text alone, a picture or clip alone, or both, fused. Shapes as in `see` and `read`."""
        if pixel_values is None and pixel_values_videos is None:
            path = path_of("classify", "text")
        else:
            medium = self.medium(pixel_values, pixel_values_videos)
            path = path_of("entail" if input_ids is not None else "classify", medium)
        return self.run(path, pixel_values, pixel_values_videos, input_ids, attention_mask, token_type_ids)

    def _require(self, part: Part) -> None:
        if part not in self.has:
            raise ValueError(
                f"expected a model with its {part} part, got one with {', '.join(p for p in PARTS if p in self.has)}; "
                "load it with another task="
            )


class VisionAdapter(nn.Module):
    """Vision tokens to the width of the rest: linear, norm, dropout."""

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
        """input_ids, token_type_ids: (batch, tokens); key_mask: (batch, tokens) bool -> (batch, tokens, dim).

        hidden: a list to which the embeddings and the output of every layer are appended.
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
    """Text reads vision by cross-attention; in every `fusion_stride`-th layer but the first both meet in one
    self-attention instead. Large has a stride of 1000, so none of those."""

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
        self, text: Tensor, text_mask: Tensor | None, vision: Tensor, attend: AttentionFunction
    ) -> tuple[Tensor, Tensor]:
        """text: (batch, tokens, dim), text_mask: (batch, tokens) bool, vision: (batch, patches, dim), unpadded.

        Returns vision and text, like what was given.
        """
        patches = vision.shape[1]
        for layer in self.layers:
            assert isinstance(layer, BertLayer)
            if layer.cross_attn is not None:
                text = layer(text, attend, key_mask=text_mask, other=vision)
                continue
            joint = torch.cat([vision, text], dim=1)
            seen = None if text_mask is None else nn.functional.pad(text_mask, (patches, 0), value=True)
            joint = layer(joint, attend, key_mask=seen)
            # mPLUG's skip connection: what the layer makes of vision is added, what it makes of text replaces.
            vision, text = vision + joint[:, :patches], joint[:, patches:]
        return vision, text


def is_connected(index: int, stride: int) -> bool:
    """Whether layer `index`, counted from the first that runs, joins both streams."""
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
        """Keys of the encoder states for every layer. states: (batch, seq, dim)."""
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
        """Last hidden states (rows, seq, dim).

        input_ids: (rows, seq), those behind what `cache` holds; cross: encoder states (items, states, dim), or their
        keys for every layer, of as many items as rows, or of fewer that neighbours share; attention_mask: (rows, seq)
        bool, without cache only; cross_mask: (items, states) bool.
        """
        start = 0 if cache is None else cache.length
        x = self.embeddings(input_ids, start=start)
        bias = causal_bias(input_ids.shape[1], start + input_ids.shape[1], x)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, BertLayer)
            own = None if cache is None else cache.append(i, layer.attn.project(x))
            other = cross if isinstance(cross, Tensor) else cross[i]
            x = layer(x, attend, bias=bias, key_mask=attention_mask, own=own, other=other, other_mask=cross_mask)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., dim) -> (..., vocab), over the table that embeds the ids."""
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
        """Logits (rows, seq, vocab) of whole texts. states: (items, seq, dim), states_mask: (items, seq) bool."""
        hidden = self.hidden(input_ids, states, attend, attention_mask=attention_mask, cross_mask=states_mask)
        return self.logits(hidden)


def embeddings_of(config: MPlug2Config) -> BertEmbeddings:
    """A token table and its positions. Text encoder and decoder have one each, which are not tied."""
    sizes = (config.vocab_size, config.dim, config.max_positions, config.num_types)
    return BertEmbeddings(*sizes, eps=config.eps, dropout=config.dropout)


def rates(config: MPlug2Config) -> dict[str, Any]:
    """What every BERT-like layer of a configuration has in common."""
    return {"eps": config.eps, "dropout": config.dropout, "attention_dropout": config.attention_dropout}


class CachedStep:
    """A decoder as `plait.generation.beam_search` sees it: every token is computed once.

    cross: of `decoder.cross_keys`, one per item and not per beam; cross_mask: (items, states) bool.
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
        """Logits of the next token (rows, vocab); see `plait.generation.StepFunction`."""
        if beam_indices is not None:
            self.cache.reorder(beam_indices)
        new = ids[:, self.cache.length :]
        hidden = self.decoder.hidden(new, self.cross, self.attend, cross_mask=self.cross_mask, cache=self.cache)
        return self.decoder.logits(hidden[:, -1])


class Teacher(MPlug2Model):
    """A slow copy of the network, part of the model so that checkpoints hold it: teacher <- m teacher + (1 - m) student
    (ALBEF, arXiv 2107.07651, section 3.3). It never trains: gradients are switched off by the model that holds it."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever is asked; the released teacher drops units, and so blurs its targets."""
        return super().train(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float, *, leave: tuple[str, ...] = ()) -> None:
    """Move every tensor of `teacher` towards the one of `student` of that name, children called `leave` excepted.

    Momentum 0 copies. Raises ValueError where the student lacks a tensor of the teacher.
    """
    fast = dict(student.named_parameters())
    slow = [(n, p) for n, p in teacher.named_parameters() if n.partition(".")[0] not in leave]
    missing = [name for name, _ in slow if name not in fast]
    if missing:
        raise ValueError(f"expected a student with every tensor of its teacher, got none of {', '.join(missing[:5])}")
    update_teacher((p for _, p in slow), (fast[name] for name, _ in slow), momentum)


def for_task(config: MPlug2Config, task: Task) -> MPlug2Config:
    """`config` with the only task of a class where it names none, so that whoever reads it builds no other parts."""
    if config.task is not None:
        return config
    config = copy.deepcopy(config)
    config.task = task
    return config
