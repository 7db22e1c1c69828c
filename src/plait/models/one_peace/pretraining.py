"""ONE-PEACE pretraining: cross-modal contrast and denoising contrast (arXiv 2305.11172, section 3.2).

full inputs   -> encoder -> contrast of CLS vectors, and teacher features
visible units -> encoder -> decoder (full length, mask tokens) -> head -> contrast with teacher features
batch -> full passes -> masked passes -> weighted sum of losses              (stage 1: image-text, stage 2: audio-text)

What decays, at which learning-rate scale, and what a stage trains closes the file (specification 6.4, 6.5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from plait.models.one_peace.config import DecoderConfig, OnePeaceConfig
from plait.models.one_peace.model import Encoded, OnePeaceModel, OnePeacePreTrainedModel, join_masks
from plait.nn.adapters import Adapted, resolve_keep
from plait.nn.attention import AttentionFunction, attention_function
from plait.nn.encoder import RoutedEncoder
from plait.nn.positions import resize_absolute
from plait.objectives.contrastive import ContrastiveOutput, contrastive_loss
from plait.objectives.denoising import denoising_contrast, denoising_l2, denoising_smooth_l1
from plait.processing.masking import preserve_ids
from plait.routing import Route


@dataclass(slots=True)
class Denoised:
    """Student side of a denoising pass, by modality: encoder features of visible units, decoder output, head output."""

    encoded: Encoded
    decoded: dict[str, Tensor] = field(default_factory=dict)
    student: dict[str, Tensor] = field(default_factory=dict)


class DecoderBranch(nn.Module):
    """One modality into the decoder and out of it: embed visible units among mask tokens, add positions; head.

    grid: side of the patch grid, to which square position tables are resized; None for positions along a line.
    """

    def __init__(
        self, encoder_dim: int, dim: int, num_positions: int, grid: int | None = None, *, mask_embedding: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.head = nn.Linear(dim, encoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.position_embedding = nn.Parameter(torch.zeros(num_positions, dim))
        # Published files carry these vectors; nothing reads them.
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_embedding = nn.Parameter(torch.zeros(1, dim)) if mask_embedding else None
        self.grid = grid

    def forward(self, features: Tensor, keep: Tensor, length: int) -> Tensor:
        """features: (batch, kept, encoder_dim); keep: (batch, kept), -1 = padding -> (batch, length, dim)."""
        index, real = resolve_keep(keep)
        visible = self.embed(features)
        # A padding entry would overwrite the real unit whose index it borrows: send it to a place behind the sequence.
        index = index.masked_fill(~real, length)[..., None].expand_as(visible)
        base = self.mask_token.to(visible.dtype).expand(len(visible), length + 1, -1)
        full = base.scatter(1, index, visible)[:, :length]
        positions = self.position_embedding
        return full + (positions[:length] if self.grid is None else resize_absolute(positions, self.grid))


class OnePeaceDecoder(nn.Module):
    """The light decoder of the denoising tasks: branches around a routed trunk without attention biases."""

    def __init__(self, config: OnePeaceConfig, sizes: DecoderConfig) -> None:
        super().__init__()
        self.attend_to_padding = config.official
        make, squares = partial(DecoderBranch, config.dim, sizes.dim), sizes.image_bucket_size**2 + 1
        known = {
            "text": partial(make, config.max_text_positions),
            "image": partial(make, squares, config.image_rel_bucket_size),
            "audio": partial(make, sizes.max_audio_positions, mask_embedding=True),
        }
        # What a user adds has no branch here: it is trained by contrast, with everything else frozen.
        self.branches = nn.ModuleDict({m: known[m]() for m in config.modalities if m in known})
        self.trunk = RoutedEncoder(
            sizes.dim,
            sizes.num_heads,
            sizes.mlp_dim,
            sizes.num_layers,
            mlp_ways=config.ways("mlp_ways"),
            norm_ways=config.ways("norm_ways"),
            layer_scale=sizes.layer_scale,
        )

    def branch(self, modality: str) -> DecoderBranch:
        """What leads one modality in and out. Raises ValueError for one that the decoder does not denoise."""
        if modality not in self.branches:
            raise ValueError(f"expected a modality among {', '.join(self.branches)} to denoise, got {modality}")
        return cast("DecoderBranch", self.branches[modality])

    def forward(
        self,
        features: Mapping[str, Tensor],
        keep: Mapping[str, Tensor],
        masks: Mapping[str, Tensor | None],
        lengths: Mapping[str, int],
        attend: AttentionFunction,
    ) -> dict[str, Tensor]:
        """features, keep, masks (full length, True = real), lengths by modality -> (batch, length, dim) by modality."""
        parts = [Adapted(self.branch(m)(x, keep[m], lengths[m]), masks[m]) for m, x in features.items()]
        x = torch.cat([part.x for part in parts], dim=1)
        mask = join_masks(parts)
        if mask is not None:
            x = x * mask[..., None]
        route = Route.segments({m: lengths[m] for m in features}, listed=tuple(self.branches))
        # The official decoder attends to padded positions; with `official` off they are masked.
        out = self.trunk(x, route, (), None if self.attend_to_padding else mask, attend)
        return dict(zip(features, out.split([lengths[m] for m in features], dim=1)))


class OnePeaceForPreTraining(OnePeacePreTrainedModel):
    """The encoder with its denoising decoder. `model` is the `OnePeaceModel` to keep after training."""

    def __init__(self, config: OnePeaceConfig) -> None:
        super().__init__(config)
        sizes = config.decoder_sizes
        if sizes is None:
            raise ValueError("expected config.decoder for pretraining, got None; give it DecoderConfig sizes")
        self.model = OnePeaceModel(config)
        self.decoder = OnePeaceDecoder(config, sizes)
        self.post_init()

    def denoise(
        self,
        inputs: Inputs,
        keep: Mapping[str, Tensor],
        teacher: Encoded,
    ) -> Denoised:
        """Encode the visible units `keep` names, decode them at full length, map them back to the encoder's width.

        inputs: as in `OnePeaceModel.encode`; keep: (batch, kept) per modality; teacher: the full pass of the same
        inputs, for its lengths and masks.
        """
        encoded = self.model.encode(inputs, keep=keep)
        lengths = {m: teacher.features[m].shape[1] for m in encoded.features}
        masks = {m: teacher.masks[m] for m in encoded.features}
        attend = attention_function(self.config._attn_implementation)
        decoded = self.decoder(encoded.features, keep, masks, lengths, attend)
        student = {m: self.decoder.branch(m).head(x) for m, x in decoded.items()}
        return Denoised(encoded, decoded, student)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The embeddings of `OnePeaceModel`; training passes are composed by the losses below."""
        return self.model(**inputs)


Inputs = Mapping[str, Tensor | Mapping[str, Any]]
"""As in `OnePeaceModel.encode`."""

Masks = Mapping[str, Tensor]
"""Masked units per pass and modality, (batch, units) bool without CLS: keys such as `text`, `image`, `vl_text`."""

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""(batch, ...) -> (world * batch, ...) without gradient, and the place of the local rows in it."""

IMAGE_TEXT_WEIGHTS = {"text": 0.5, "image": 1.0, "vl_text": 0.5, "vl_image": 0.5}
AUDIO_TEXT_WEIGHTS = {"audio": 1.0, "al_text": 0.5, "al_audio": 0.5}

DENOISING: dict[str, Callable[..., Tensor]] = {
    "contrast": denoising_contrast,
    "l2": denoising_l2,
    "smooth_l1": denoising_smooth_l1,
}
"""The published objective and the two regressions it is compared with."""


@dataclass(slots=True)
class PretrainingLosses:
    """total: the weighted sum; contrast; denoising: unweighted losses by pass; the rest for inspection and parity."""

    total: Tensor
    contrast: ContrastiveOutput
    denoising: dict[str, Tensor] = field(default_factory=dict)
    teachers: dict[str, Encoded] = field(default_factory=dict)
    students: dict[str, Denoised] = field(default_factory=dict)


def image_text_losses(
    model: OnePeaceForPreTraining,
    input_ids: Tensor,
    pixel_values: Tensor,
    masks: Masks | None = None,
    *,
    ids: Tensor | None = None,
    weights: Mapping[str, float] = IMAGE_TEXT_WEIGHTS,
    denoising: str = "contrast",
    chunk_size: int | None = None,
    gather: Gather | None = None,
) -> PretrainingLosses:
    """Stage 1: itc + 0.5 text + 1.0 image + 0.5 joint text + 0.5 joint image denoising.

    input_ids: (batch, tokens); pixel_values: (batch, 3, side, side); masks: for `text`, `image`, `vl_text`, `vl_image`,
    None for contrast alone; ids: (batch,) identities, equal where several rows describe one thing;
    gather: collects rows of all processes.
    """
    inputs = {"text": input_ids, "image": pixel_values}
    text, image = (model.model.encode({m: given}) for m, given in inputs.items())
    contrast = _contrast(model, {"text": text, "image": image}, ids=ids, chunk_size=chunk_size, gather=gather)
    losses = PretrainingLosses(contrast.loss, contrast)
    if masks is None:
        return losses
    with torch.no_grad():
        joint = model.model.encode(inputs)
    passes = {"text": text, "image": image, "vl": joint}
    return _add_denoising(model, losses, inputs, passes, masks, weights, denoising)


def audio_text_losses(
    model: OnePeaceForPreTraining,
    input_ids: Tensor,
    input_values: Tensor,
    masks: Masks | None = None,
    *,
    frame_mask: Tensor | None = None,
    ids: Tensor | None = None,
    weights: Mapping[str, float] = AUDIO_TEXT_WEIGHTS,
    denoising: str = "contrast",
    chunk_size: int | None = None,
    gather: Gather | None = None,
) -> PretrainingLosses:
    """Stage 2: atc + 1.0 audio + 0.5 joint text + 0.5 joint audio denoising; the text side has no gradient.

    The audio-only student learns from the joint audio-text teacher, as published.
    input_values: (batch, samples); frame_mask: (batch, frames) bool; masks: for `audio`, `al_text`, `al_audio`.
    """
    inputs = {"text": input_ids, "audio": {"input_values": input_values, "frame_mask": frame_mask}}
    with torch.no_grad():
        text = model.model.encode({"text": inputs["text"]})
    audio = model.model.encode({"audio": inputs["audio"]})
    contrast = _contrast(model, {"text": text, "audio": audio}, ids=ids, chunk_size=chunk_size, gather=gather)
    losses = PretrainingLosses(contrast.loss, contrast)
    losses.teachers |= {"text": text, "audio_full": audio}
    if masks is None:
        return losses
    with torch.no_grad():
        joint = model.model.encode(inputs)
    return _add_denoising(model, losses, inputs, {"audio": joint, "al": joint}, masks, weights, denoising)


def _contrast(
    model: OnePeaceForPreTraining,
    passes: Mapping[str, Encoded],
    *,
    ids: Tensor | None,
    chunk_size: int | None,
    gather: Gather | None,
) -> ContrastiveOutput:
    """Contrast of the CLS vectors of two passes, by the modality to read."""
    x, y = (model.model.project(encoded.features[m], m) for m, encoded in passes.items())
    x_all, y_all, ids_all, offset = None, None, None, 0
    if gather is not None:
        (x_all, offset), (y_all, _) = gather(x), gather(y)
        ids_all = None if ids is None else gather(ids)[0]
    scale = model.model.temperature()
    return contrastive_loss(
        x, y, scale, a_all=x_all, b_all=y_all, offset=offset, ids=ids, ids_all=ids_all, chunk_size=chunk_size
    )


def _add_denoising(
    model: OnePeaceForPreTraining,
    losses: PretrainingLosses,
    inputs: Inputs,
    teachers: Mapping[str, Encoded],
    masks: Masks,
    weights: Mapping[str, float],
    objective: str,
) -> PretrainingLosses:
    """Run a masked pass against every teacher and add its losses to the total."""
    if objective not in DENOISING:
        raise ValueError(f"expected a denoising objective among {sorted(DENOISING)}, got {objective!r}")
    for name, teacher in teachers.items():
        # A pass is called after its modality, or `vl` / `al` for text with image / audio.
        names = {m: m if name == m else f"{name}_{m}" for m in inputs if name in (m, "vl", "al")}
        real = {m: None if (mask := teacher.masks[m]) is None else mask[:, 1:] for m in names}
        keep = {m: preserve_ids(masks[key], real[m]) for m, key in names.items()}
        student = model.denoise({m: inputs[m] for m in names}, keep, teacher)
        losses.teachers[name], losses.students[name] = teacher, student
        for m, key in names.items():
            target = teacher.features[m][:, 1:].detach()
            loss = DENOISING[objective](student.student[m][:, 1:], target, masks[key], real[m])
            losses.denoising[key] = loss
            losses.total = losses.total + weights[key] * loss
    return losses


_EMBEDDINGS = re.compile(
    r"(adapters\.(text|image|audio)\.cls_embedding|adapters\.(text|image)\.position_embedding"
    r"|decoder\.branches\.\w+\.(cls_embedding|position_embedding))$"
)
# A missing comma in the official list of names without decay joins two of them into none, so these decay.
_OFFICIAL_SLIP = re.compile(r"decoder\.branches\.(text\.cls_embedding|image\.position_embedding)$")

STAGE2_TRAINABLE = (
    r"(model\.)?adapters\.audio\..*",
    r"(model\.)?trunk\.layers\.\d+\.mlp\.audio\..*",
    r"(model\.)?trunk\.norm\.audio\..*",
    r"(model\.)?projections\.audio\..*",
    r"(model\.)?logit_scale",
    r"decoder\..*",
)
"""What stage 2 trains: everything of audio, the temperature and the decoder; the rest of the encoder is frozen."""


def decays(name: str, ndim: int, *, official: bool = False) -> bool:
    """Whether weight decay applies to the parameter called `name` (Plait's layout)."""
    if ndim <= 1 or name.endswith(".bias"):
        return False
    if official and _OFFICIAL_SLIP.search(name):
        return True
    return not _EMBEDDINGS.search(name)


def layer_id(name: str, num_layers: int) -> int:
    """Depth of a parameter for layer-wise decay: adapters 0, layer i and its table i + 1, the rest num_layers + 1."""
    if table := re.search(r"adapters\.\w+\.bias\.tables\.(\d+)$", name):
        return int(table[1]) + 1
    if "adapters." in name:
        return 0
    if layer := re.search(r"^(?:model\.)?trunk\.layers\.(\d+)\.", name):
        return int(layer[1]) + 1
    return num_layers + 1
