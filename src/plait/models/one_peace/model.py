"""ONE-PEACE: one transformer for text, image and audio (arXiv 2305.11172).

text | image | audio | what a user adds -> adapter -> routed trunk (shared attention, a feed-forward network each)
    -> features -> CLS -> projection -> unit vector                                                  (section 3.1)

The model knows its modalities by the names in its configuration alone; what each takes is its adapter's business.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from plait.errors import UsageError
from plait.modalities import is_registered, own, registered
from plait.models.one_peace.config import BUILT_IN, OnePeaceConfig
from plait.nn.adapters import (
    Adapted,
    AudioAdapter,
    Entrance,
    FrameConv,
    ImageAdapter,
    RelativeBias,
    TextAdapter,
    conv_output_lengths,
)
from plait.nn.attention import attention_function, block_diagonal, lengths_to_mask
from plait.nn.contract import outputs_for_transformers
from plait.nn.encoder import RoutedEncoder, RoutedEncoderLayer
from plait.nn.layers import LayerScale
from plait.processing.waveforms import conv_output_length
from plait.routing import PerModality, Route
from plait.weights.files import ADDED, DIRECTORY_FILES, add_file


@dataclass
class Embeddings(ModelOutput):
    """Unit vectors (batch, dim) by modality; those of what a user added stand beside them, as `NAME_embeds`.

    logits_per_image, logits_per_audio: (images or clips, texts) similarities times the temperature, where texts are
    given too; logits_per_text: the transpose of the first of them; loss: where asked, the mean of both directions.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_audio: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    audio_embeds: Tensor | None = None


@dataclass(slots=True)
class Encoded:
    """What `OnePeaceModel.encode` returns, by modality.

    Attributes:
        features: (batch, 1 + units, dim) after the final norm, CLS first.
        masks: (batch, 1 + units) bool, True = real, or None where all are.
        adapted: what each adapter handed to the trunk.
        hidden: the joint sequence after every layer, before the final norm, where asked for.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    adapted: dict[str, Adapted]
    hidden: list[Tensor] = field(default_factory=list)


class OnePeacePreTrainedModel(PreTrainedModel):
    """Initialisation and loading shared by the ONE-PEACE models.

    Source: specification ONE-PEACE, section 2.9.
    """

    config: OnePeaceConfig
    config_class = OnePeaceConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # means over samples, in which Trainer's count of labels has no place
    accepts_loss_kwargs = False
    # For `device_map`: residual streams must not cross devices inside a layer.
    _no_split_modules = ["RoutedEncoderLayer"]  # noqa: RUF012

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers would read the source for it; ours asks the configuration at every call."""
        return True  # looked up in the config at every forward pass

    def _init_weights(self, module: nn.Module) -> None:
        """Published initialisation: normal of std `init_std` cut at one sigma; tables, types and biases 0.

        The functions of `transformers.initialization` leave loaded tensors alone, which torch's own
        in-place calls would overwrite.
        """
        if (std := getattr(module, "fresh_std", None)) is not None:
            # a layer that says how it begins
            init.normal_(cast("Tensor", module.weight), std=std)
            init.zeros_(cast("Tensor", module.bias))
        elif isinstance(module, nn.Linear | nn.Embedding):
            self._draw(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                # Padding embeds as zeros (specification 2.9).
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        # Before Conv1d, whose subclass it is: waveform convolutions begin Kaiming normal,
        # positional ones as torch does.
        elif isinstance(module, FrameConv):
            init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            # torch's default for convolutions, spelled out for modules that come from the meta device.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            init.constant_(module.weight, module.init)
        elif isinstance(module, RelativeBias):
            for table in module.tables:
                init.zeros_(table)
        else:
            # Bare vectors and tables: CLS, mask tokens, positions, queries. Their modules are of
            # many classes, so names tell.
            for name, parameter in module.named_parameters(recurse=False):
                if "type_embedding" in name or name == "time_embedding":
                    init.zeros_(parameter)
                elif name == "logit_scale":
                    init.constant_(parameter, math.log(self.config.logit_scale_init))
                else:
                    self._draw(parameter)

    def _draw(self, parameter: Tensor) -> None:
        """A normal of std `init_std`, cut at one sigma on both sides, into `parameter`."""
        # cut at one sigma, as released: the drawn deviation is about half of it
        std = self.config.init_std
        init.trunc_normal_(parameter, std=std, a=-std, b=std)


class OnePeaceModel(OnePeacePreTrainedModel):
    """Encoder, projections and temperature: embeds every modality into one space, and encodes pairs of them jointly.

    Build it from a config, or load it with `plait.load` / `from_pretrained`; its branches are
    `config.modalities`, text, image and audio or what a user registered.

    Args:
        config: sizes and branches.
        adapters: built ones by modality, by default those that the configuration describes; they
            keep their weights.

    Example:
        >>> import torch
        >>> model = OnePeaceModel(OnePeaceConfig.preset("nano")).eval()
        >>> images = model.get_image_features(torch.rand(2, 3, 64, 64))
        >>> texts = model.get_text_features(torch.tensor([[5, 6, 2], [7, 2, 1]]))
        >>> (images @ texts.T).shape
        torch.Size([2, 2])

    Source: ONE-PEACE (arXiv 2305.11172), section 3.1; specification ONE-PEACE, sections 2.1 to 2.6.
    """

    def __init__(self, config: OnePeaceConfig, adapters: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(config)
        given = dict(adapters or {})
        self.adapters = nn.ModuleDict({m: given.get(m) or build_adapter(config, m) for m in config.modalities})
        for modality, adapter in self.adapters.items():
            if modality in given or modality not in ADAPTERS:
                for module in adapter.modules():
                    # so post_init draws it no second time
                    cast("Any", module)._is_hf_initialized = True
        self.trunk = RoutedEncoder(
            config.dim,
            config.num_heads,
            config.mlp_dim,
            config.num_layers,
            mlp_ways=config.ways("mlp_ways"),
            norm_ways=config.ways("norm_ways"),
            inner_norms=config.inner_norms,
            layer_scale=config.layer_scale,
            drop_path_rate=config.drop_path_rate,
        )
        if config.use_projections:
            self.projections = nn.ModuleDict({m: nn.Linear(config.dim, config.dim) for m in config.modalities})
            self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init)))
        self.post_init()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The branches this model has, in the shared order."""
        return tuple(self.config.modalities)

    @staticmethod
    def modality_of(key: str) -> str | None:
        """The modality that a parameter belongs to alone; see the function of this name."""
        return modality_of(key)

    def add_modality(self, name: str, adapter: nn.Module, *, like: str | None = None) -> None:
        """A branch more, in place; see `plait.add_modality`.

        Args:
            name: of a modality that was registered.
            adapter: built for this model.
            like: a branch whose way, norm and projection are copied; without, they are drawn.

        Raises:
            UsageError: for a name that the model has, a `like` that it lacks, and an adapter of another width.
        """
        if name in self.adapters:
            raise UsageError(
                f"expected a modality that the model lacks, got {name}; it has {', '.join(self.modalities)}"
            )
        if like is not None and like not in self.adapters:
            raise UsageError(f"expected like among {', '.join(self.modalities)}, got {like!r}")
        if callable(begin_from := getattr(adapter, "begin_from", None)):
            # it may start from what the model has
            begin_from(self)
        adapter.to(device=self.device, dtype=self.dtype)
        check_width(name, adapter, self.config.dim)

        def another(copies: PerModality | nn.ModuleDict) -> nn.Module:
            model_of = like or self.modalities[0]  # without `like` its shape alone counts
            source = copies.of(model_of) if isinstance(copies, PerModality) else copies[model_of]
            made = copy.deepcopy(source).requires_grad_(True)
            if like is None:
                for module in made.modules():
                    self._init_weights(module)
            return made

        with torch.no_grad():
            for layer in cast("list[RoutedEncoderLayer]", list(self.trunk.layers)):
                layer.mlp.add_way(name, another(layer.mlp))
            if self.trunk.norm is not None:
                self.trunk.norm.add_way(name, another(self.trunk.norm))
            if self.config.use_projections:
                self.projections[name] = another(self.projections)
        self.adapters[name] = adapter
        self.config.modalities = [*self.config.modalities, name]
        for field_name in ("mlp_ways", "norm_ways"):
            if ways := getattr(self.config, field_name):
                setattr(self.config, field_name, {**ways, name: [name]})

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As in transformers; weights of modalities that a user added lie in a file of their own behind the others.

        A model with projections says to sentence-transformers how it embeds, too.

        Args:
            save_directory, is_main_process, state_dict, args, kwargs: of transformers.
        """
        place, added = Path(save_directory), own(self.modalities)
        apart: dict[str, Tensor] = {}
        if added and not getattr(self, "_hf_peft_config_loaded", False):
            state = self.state_dict() if state_dict is None else state_dict
            apart = {key: value for key, value in state.items() if modality_of(key) in added}
            state_dict = {key: value for key, value in state.items() if key not in apart}
        if is_main_process and (place / ADDED).is_file():
            # of an earlier save, whose index would go on naming it
            (place / DIRECTORY_FILES[0]).unlink(missing_ok=True)
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
        if apart and is_main_process:
            add_file(place, apart)
        if self.config.use_projections and is_main_process:
            write_sentence_files(place, self.config)

    def temperature(self) -> Tensor:
        """Factor on cosine similarities: exp of logit_scale clamped to [0, ln 100]; the clamp passes gradients.

        The released code clamps the parameter in place whenever it reads it; the value and its
        gradient are the same (specification 2.6).

        Returns:
            A scalar between 1 and 100.
        """
        # Straight through: outside the bounds the clamp alone would have no gradient, and never come back.
        clamped = self.logit_scale + (self.logit_scale.clamp(0.0, math.log(100.0)) - self.logit_scale).detach()
        return clamped.exp()

    def encode(
        self,
        inputs: Mapping[str, Tensor | Mapping[str, Any]],
        *,
        keep: Mapping[str, Tensor] | None = None,
        output_hidden_states: bool = False,
    ) -> Encoded:
        """Encode one modality alone, or a pair of `config.joint` as one sequence.

        Args:
            inputs: modality -> what its adapter takes, its first argument or all by name: `{"text":
                input_ids}`, `{"audio": {"input_values": waves, "frame_mask": mask}}`.
            keep: visible units per modality, (batch, kept), see `plait.nn.adapters`; all are
                without it.
            output_hidden_states: whether the sequence after every layer is kept.

        Returns:
            Features and masks by modality; CLS first.

        Raises:
            ValueError: for a branch the model lacks, a pair that no stage ever trained, and inputs
                that an adapter refuses.
        """
        self._check(inputs)
        adapted: dict[str, Adapted] = {}
        # In the shared order, whatever order the caller wrote: [text ; image], as the joint passes were trained.
        for m in (m for m in self.modalities if m in inputs):
            adapter, given = self.adapters[m], inputs[m]
            visible = {"keep": keep[m]} if keep and m in keep else {}
            part = adapter(**given, **visible) if isinstance(given, Mapping) else adapter(given, **visible)
            adapted[m] = part if m in ADAPTERS else checked_part(m, part, self.config.dim)
        parts = list(adapted.values())
        x = torch.cat([part.x for part in parts], dim=1)
        if self.training and torch.is_grad_enabled():
            x = x + self._absent(inputs)
        mask = join_masks(parts)
        if mask is not None:
            x = x * mask[..., None]  # once, before the first layer, as released
        # Block by block: between two modalities the bias is 0, as published; so it is where an adapter has no biases.
        count = max(len(part.biases) for part in parts)
        blocks = [part.biases or (self._no_bias(part),) * count for part in parts]
        biases = tuple(block_diagonal(of_layer) for of_layer in zip(*blocks, strict=True))
        # Every modality is listed, absent ones with no tokens, so that all processes issue the same collectives.
        route = Route.segments({m: part.x.shape[1] for m, part in adapted.items()}, listed=self.modalities)
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        attend = attention_function(self.config._attn_implementation)
        out = self.trunk(x, route, biases, mask, attend, hidden=hidden)
        features = dict(zip(adapted, out.split([part.x.shape[1] for part in parts], dim=1)))
        return Encoded(features, {m: part.mask for m, part in adapted.items()}, adapted, hidden or [])

    def _absent(self, inputs: Mapping[str, Any]) -> Tensor | float:
        """0, through the adapters of modalities that inputs lack: their gradients are 0 rather than None.

        Which parameters take part in training then depends on no row, as DDP and FSDP2 need it.
        """
        total: Tensor | float = 0.0
        for m in (m for m in self.modalities if m not in inputs):
            nothing = nothing_of(m, self.adapters[m])
            if nothing is not None:
                part = self.adapters[m](**nothing)
                # a bias has a row, whatever the batch is
                total = total + part.x.sum() + sum(bias.sum() * 0 for bias in part.biases)
        return total

    def _no_bias(self, part: Adapted) -> Tensor:
        """(1, heads, seq, seq) of zeros, for an adapter without biases beside one that has them."""
        return part.x.new_zeros(1, self.config.num_heads, part.x.shape[1], part.x.shape[1])

    def _check(self, inputs: Mapping[str, Any]) -> None:
        """Refuse inputs of absent branches and of untrained pairs.

        Raises:
            ValueError: naming what is there, and what to do instead.
        """
        missing = [m for m in inputs if m not in self.modalities]
        if missing or not inputs:
            got = f"{', '.join(missing)}; load that branch too" if missing else "none"
            raise ValueError(f"expected inputs of {', '.join(self.modalities)}, got {got}")
        if len(inputs) > 1 and not any(set(pair) == set(inputs) for pair in self.config.joint):
            pairs = " or ".join(" with ".join(pair) for pair in self.config.joint)
            raise ValueError(
                f"expected one modality, or {pairs}, got {' with '.join(inputs)}; "
                "embed them apart and add their unit vectors"
            )

    def project(self, features: Tensor, modality: str) -> Tensor:
        """The CLS of one modality in the shared space.

        Args:
            features: (batch, seq, dim) of `encode`.
            modality: whose projection is used.

        Returns:
            (batch, dim), of length 1.

        Raises:
            ValueError: for a model without projections, which classification models and the vision
                branch are.
        """
        if not self.config.use_projections:
            raise ValueError("expected a retrieval model, got one without projections; embed with the pretrained model")
        return F.normalize(self.projections[modality](features[:, 0]), dim=-1)

    def embed(self, inputs: Mapping[str, Tensor | Mapping[str, Any]]) -> dict[str, Tensor]:
        """Unit vectors of every modality given, each encoded alone.

        Args:
            inputs: as in `encode`; any number of modalities.

        Returns:
            Modality -> (batch, dim), of length 1.

        Raises:
            ValueError: for no input, a branch the model lacks, and a model without projections.
        """
        # One name, only to refuse an empty mapping: each modality is checked again when it is encoded.
        self._check(dict.fromkeys(list(inputs)[:1]))
        return {m: self.project(self.encode({m: given}).features[m], m) for m, given in inputs.items()}

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit vectors of texts.

        Args:
            input_ids: (batch, tokens), each ending in EOS; no token stands for CLS, a learned
                vector does.
            attention_mask: (batch, tokens), 1 = real; by default ids other than padding.

        Returns:
            (batch, dim), of length 1.
        """
        return self.embed({"text": {"input_ids": input_ids, "attention_mask": attention_mask}})["text"]

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors of images.

        Args:
            pixel_values: (batch, 3, side, side) with side = `config.image_size`.

        Returns:
            (batch, dim), of length 1.
        """
        return self.embed({"image": pixel_values})["image"]

    def get_audio_features(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit vectors of audio.

        Args:
            input_values: (batch, samples), normalised, right-padded with zeros.
            attention_mask: (batch, samples), 1 = real; by default all are.

        Returns:
            (batch, dim), of length 1. With `config.official` a clip's vector depends on its batch
                mates.
        """
        mask = None if attention_mask is None else self.frame_mask(attention_mask)
        return self.embed({"audio": {"input_values": input_values, "frame_mask": mask}})["audio"]

    def get_mixed_features(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Unit vectors of items of several modalities: the sum of their vectors, as `plait.Embedder` mixes them.

        Args:
            input_ids, pixel_values, input_values, attention_mask, audio_attention_mask: as in `forward`, of one
                batch size.

        Returns:
            (batch, dim), of length 1.
        """
        if input_ids is None and audio_attention_mask is None:
            audio_attention_mask = attention_mask
        frames = None if audio_attention_mask is None else self.frame_mask(audio_attention_mask)
        vectors = self.embed(by_modality(input_ids, pixel_values, input_values, attention_mask, frames))
        return F.normalize(torch.stack(list(vectors.values())).sum(dim=0), dim=-1)

    def frame_mask(self, attention_mask: Tensor) -> Tensor:
        """Which audio units come from real samples only.

        Args:
            attention_mask: (batch, samples), 1 = real, padding on the right.

        Returns:
            (batch, frames) bool, True = real; CLS is not among them.
        """
        # A frame is real where all samples of its window are.
        lengths = conv_output_lengths(attention_mask.sum(dim=1), self.config.conv_spec)
        return lengths_to_mask(lengths, self.num_frames(attention_mask.shape[1]))

    def num_frames(self, num_samples: int) -> int:
        """Audio units that a clip gives, one per 320 samples but for the rim: 49 for a second at 16 kHz.

        Args:
            num_samples: of the clip, or of the longest one in a batch.
        """
        return conv_output_length(num_samples, self.config.conv_spec)

    @outputs_for_transformers
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        **others: Any,
    ) -> Embeddings:
        """Unit vectors of every modality given, each encoded alone, and how alike texts and the others are.

        Args:
            input_ids: (batch, tokens).
            pixel_values: (batch, 3, side, side).
            input_values: (batch, samples).
            attention_mask: (batch, tokens) of the texts, 1 = real; without texts that of the audio.
            audio_attention_mask: (batch, samples), 1 = real.
            return_loss: whether to compute the contrastive loss of a batch of pairs, the i-th text of the i-th
                image or clip.
            others: modalities that the user added, by name.

        Returns:
            `Embeddings`, with what was given.

        Raises:
            ValueError: as `embed`, for names that are no modality, and for a loss without pairs.
        """
        if unknown := [name for name in others if name not in self.modalities]:
            raise ValueError(f"expected inputs of {', '.join(self.modalities)}, got {', '.join(unknown)}")
        if input_ids is None and audio_attention_mask is None:
            # alone, sounds have the mask by its usual name
            audio_attention_mask = attention_mask
        frames = None if audio_attention_mask is None else self.frame_mask(audio_attention_mask)
        inputs = by_modality(input_ids, pixel_values, input_values, attention_mask, frames)
        given = inputs | others
        vectors = self.embed(given)
        output = Embeddings(**{f"{m}_embeds": found for m, found in vectors.items() if m in ADAPTERS})
        for m in others:
            output[f"{m}_embeds"] = vectors[m]
        self._compare(output, vectors, asked=bool(return_loss))
        if return_loss and self.training and torch.is_grad_enabled():
            # Processes whose rows have other modalities enter the trunk equally often: FSDP2 gathers its layers then.
            for m in (m for m in self.modalities if m not in given):
                if nothing := nothing_of(m, self.adapters[m]):
                    output["loss"] = output["loss"] + self.embed({m: nothing})[m].sum()
        return output

    def _compare(self, output: Embeddings, vectors: Mapping[str, Tensor], *, asked: bool) -> None:
        """Fill in the similarities of texts to pictures and clips, and the loss where it is asked for."""
        # a user's own has no logits unless it learns: `Embeddings` names those of the published modalities
        seen = [m for m in vectors if m != "text" and "text" in vectors and (m in ADAPTERS or asked)]
        if asked and not seen:
            raise ValueError(f"expected texts with images or audio for a loss, got {', '.join(vectors)}; give both")
        losses = []
        for m in seen:
            logits = vectors[m] @ vectors["text"].T * self.temperature()
            output[f"logits_per_{m}"] = logits
            if asked and logits.shape[0] != logits.shape[1]:
                raise ValueError(f"expected a text per {m} for a loss, got {tuple(logits.shape)}; pair them")
            if asked:
                pairs = torch.arange(len(logits), device=logits.device)
                losses += [F.cross_entropy(logits.float(), pairs), F.cross_entropy(logits.float().T, pairs)]
        if seen:
            output["logits_per_text"] = output[f"logits_per_{seen[0]}"].T
        if losses:
            output["loss"] = torch.stack(losses).mean()


def write_sentence_files(place: Path, config: OnePeaceConfig) -> None:
    """What sentence-transformers 6 opens a directory by: its own two modules, and the method of each modality.

    Mixtures of modalities stand beside single ones. The classes are found once Plait is imported. A directory that has
    a modules.json of another making, such as one with layers of a user's own, keeps all its files.
    """
    known = [m for m in config.modalities if m in ADAPTERS]
    how = {m: {"method": f"get_{m}_features", "method_output_name": None} for m in known}
    # sentence-transformers names a mixture by its modalities in alphabetical order
    for count in range(2, len(known) + 1):
        for several in itertools.combinations(sorted(known), count):
            how["+".join(several)] = {"method": "get_mixed_features", "method_output_name": None}
    kinds = ("base.modules.transformer.Transformer", ""), ("base.modules.normalize.Normalize", "1_Normalize")
    settings = {"transformer_task": "feature-extraction", "module_output_name": "sentence_embedding"}
    about = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (kind, path) in enumerate(kinds)
        ],
        "sentence_bert_config.json": {**settings, "modality_config": how},
        "config_sentence_transformers.json": {**about, "requirements": {"plait": ">=0.1"}},
        "1_Normalize/config.json": {},
    }
    with suppress(FileNotFoundError):
        try:
            found = json.loads((place / "modules.json").read_bytes())
        except ValueError:  # damaged, and still somebody's
            return
        if found != files["modules.json"]:
            return
    for name, value in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(json.dumps(value, indent=2) + "\n")


def by_modality(
    input_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    input_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
) -> dict[str, Tensor | Mapping[str, Any]]:
    """The tensors that transformers calls by these names, as inputs of `OnePeaceModel.encode`.

    Args:
        input_ids, attention_mask: (batch, tokens).
        pixel_values: (batch, 3, side, side).
        input_values: (batch, samples).
        frame_mask: (batch, frames) bool, True = real.

    Returns:
        Inputs of those that are given.
    """
    inputs: dict[str, Tensor | Mapping[str, Any]] = {}
    if input_ids is not None:
        inputs["text"] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if pixel_values is not None:
        inputs["image"] = pixel_values
    if input_values is not None:
        inputs["audio"] = {"input_values": input_values, "frame_mask": frame_mask}
    return inputs


def checked_part(modality: str, part: Any, dim: int) -> Adapted:
    """What a user's adapter gave, checked. Raises UsageError for no `Adapted`, and for another width."""
    if not isinstance(part, Adapted) or part.x.ndim != 3:
        raise UsageError(f"expected an Adapted with x (batch, seq, dim) of the adapter of {modality}, got {part!r:.80}")
    if part.x.shape[-1] != dim:
        raise UsageError(
            f"expected tokens of width {dim} from the adapter of {modality}, got {part.x.shape[-1]}; build it with "
            "config.dim"
        )
    return part


def check_width(modality: str, adapter: nn.Module, dim: int) -> None:
    """Try a fresh adapter on its modality's example, where it has one. Raises as `checked_part`."""
    inputs = example_of(modality, adapter)
    if inputs is not None:
        with torch.no_grad():
            checked_part(modality, adapter(**inputs), dim)


def example_of(modality: str, adapter: nn.Module) -> dict[str, Tensor] | None:
    """What a user's modality makes of its example, for its adapter, one row; None where it has no example."""
    one = registered(modality)
    if one.example is None:
        return None
    own = next(adapter.parameters(), torch.empty(0))
    return {
        name: value.to(own.device, own.dtype if value.is_floating_point() else None)
        for name, value in one.process([one.load(one.example())]).items()
    }


def nothing_of(modality: str, adapter: nn.Module) -> dict[str, Tensor] | None:
    """Inputs of no rows for an adapter, by name; None for one of a user's own without an example."""
    if isinstance(adapter, Entrance):
        return adapter.nothing()
    inputs = example_of(modality, adapter)
    return None if inputs is None else {name: value[:0] for name, value in inputs.items()}


def modality_of(key: str) -> str | None:
    """The modality a Plait key belongs to alone.

    Args:
        key: in Plait's layout, with or without `model.` in front.

    Returns:
        Its name; None for shared parameters, a way that several modalities share among them.
    """
    for part in ("adapters.", "projections.", ".mlp.", "trunk.norm.", "decoder.branches."):
        _, found, rest = key.partition(part)
        name = rest.split(".")[0]
        if found and (name in BUILT_IN or is_registered(name)):
            # else a cell that several modalities share
            return name
    return None


def build_adapter(config: OnePeaceConfig, modality: str) -> nn.Module:
    """The adapter of one modality: a published one as the configuration describes it, or what a user registered.

    Args:
        config: of the model.
        modality: its name.

    Raises:
        ValueError: for a text branch without a padding id.
    """
    if modality not in ADAPTERS:
        return registered(modality).adapter(config)
    common = {
        "num_bias_tables": config.num_bias_tables,
        "embedding_norm": modality in config.embedding_norms,
        "type_embedding": modality in config.type_embeddings,
        "gradient_scale": config.gradient_scale,
    }
    return ADAPTERS[modality](config, **common)


def text_adapter(config: OnePeaceConfig, **common: Any) -> TextAdapter:
    """Token ids through a table; see `TextAdapter`.

    common: of all published adapters. Raises ValueError for a configuration without a padding id.
    """
    if config.pad_token_id is None:
        raise ValueError("expected config.pad_token_id for a text branch, got None; the published one is 1")
    return TextAdapter(
        config.dim,
        config.num_heads,
        config.vocab_size,
        bucket_size=config.text_bucket_size,
        max_positions=config.max_text_positions,
        pad_token_id=config.pad_token_id,
        **common,
    )


def image_adapter(config: OnePeaceConfig, **common: Any) -> ImageAdapter:
    """Pixels through a convolutional stem; see `ImageAdapter`. common: of all published adapters."""
    return ImageAdapter(
        config.dim,
        config.num_heads,
        bucket_size=config.image_bucket_size,
        rel_bucket_size=config.image_rel_bucket_size,
        stem=config.image_stem,
        **common,
    )


def audio_adapter(config: OnePeaceConfig, **common: Any) -> AudioAdapter:
    """A waveform through strided convolutions; see `AudioAdapter`. common: of all published adapters."""
    return AudioAdapter(
        config.dim,
        config.num_heads,
        conv_spec=config.conv_spec,
        bucket_size=config.audio_bucket_size,
        position_depth=config.audio_position_depth,
        position_width=config.audio_position_width,
        position_groups=config.audio_position_groups,
        conv_bias=config.audio_conv_bias,
        # The released code lets zero padding into the convolutions, so a clip's vector depends on its batch mates.
        leaky_padding=config.official,
        **common,
    )


ADAPTERS: dict[str, Callable[..., nn.Module]] = {"text": text_adapter, "image": image_adapter, "audio": audio_adapter}
"""The published modalities -> what builds their adapters."""


def join_masks(parts: list[Adapted]) -> Tensor | None:
    """One mask of several adapted sequences.

    Args:
        parts: in the order of the joint sequence.

    Returns:
        (batch, total) bool, True = real, or None when nothing is padded.
    """
    if all(part.mask is None for part in parts):
        return None
    return torch.cat(
        [part.x.new_ones(part.x.shape[:2], dtype=torch.bool) if part.mask is None else part.mask for part in parts],
        dim=1,
    )
