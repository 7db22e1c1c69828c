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
from torch.nn import functional

from plait.models.one_peace.config import DecoderConfig, OnePeaceConfig
from plait.models.one_peace.model import Embeddings, Encoded, OnePeaceModel, OnePeacePreTrainedModel, join_masks
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
    """Student side of a denoising pass, by modality.

    Attributes:
        encoded: encoder features of the visible units, (batch, kept, dim) each.
        decoded: decoder output at full length, (batch, 1 + units, decoder dim) each.
        student: the same mapped back, (batch, 1 + units, dim) each, to meet the teacher's features.
    """

    encoded: Encoded
    decoded: dict[str, Tensor] = field(default_factory=dict)
    student: dict[str, Tensor] = field(default_factory=dict)


class DecoderBranch(nn.Module):
    """One modality into the decoder and out of it: embed visible units among mask tokens, add positions; head.

    Args:
        encoder_dim, dim: widths of encoder and decoder.
        num_positions: rows of its position table, CLS included.
        grid: side of the patch grid, to which square tables are resized; None for positions along a
            line.
        mask_embedding: whether the unread vector exists that published audio branches carry.

    Source: specification ONE-PEACE, sections 2.4 and 2.7.
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
        """The full-length sequence that the decoder reads.

        Args:
            features: (batch, kept, encoder_dim), CLS first.
            keep: (batch, kept) places of the visible units, -1 = padding.
            length: of the full sequence, CLS included.

        Returns:
            (batch, length, dim): visible units at their places, mask tokens elsewhere, positions
                added.
        """
        index, real = resolve_keep(keep)
        visible = self.embed(features)
        # A padding entry would overwrite the real unit whose index it borrows: send it to a place behind the sequence.
        index = index.masked_fill(~real, length)[..., None].expand_as(visible)
        # One place more than the sequence has, for padding entries, cut off behind the scatter.
        base = self.mask_token.to(visible.dtype).expand(len(visible), length + 1, -1)
        full = base.scatter(1, index, visible)[:, :length]
        positions = self.position_embedding
        if self.grid is not None:
            positions = resize_absolute(positions, self.grid)
        elif length > len(positions):
            # A sound may be longer than a small table (published ones hold 20 s): its units lie closer together on the
            # line, as the patches of a larger picture do on the grid. The row of CLS stays.
            line = functional.interpolate(positions[1:].T[None], length - 1, mode="linear", align_corners=True)
            positions = torch.cat([positions[:1], line[0].T])
        return full + positions[:length]


class OnePeaceDecoder(nn.Module):
    """The light decoder of the denoising tasks: branches around a routed trunk without attention biases.

    Args:
        config: of the encoder; its partitions hold here too.
        sizes: of the decoder.

    Source: ONE-PEACE (arXiv 2305.11172), section 3.2; specification ONE-PEACE, sections 1 and 2.4.
    """

    def __init__(self, config: OnePeaceConfig, sizes: DecoderConfig) -> None:
        super().__init__()
        # Quirk 1 of the release (specification 10): the decoder gets neither biases nor a mask.
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
        """What leads one modality in and out.

        Args:
            modality: its name.

        Raises:
            ValueError: for one that the decoder does not denoise, such as a user's own.
        """
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
        """Decode one modality, or a pair as one sequence.

        Args:
            features: encoder features of the visible units, (batch, kept, encoder_dim), by
                modality.
            keep: their places, (batch, kept), -1 = padding.
            masks: (batch, length) bool of the full input, True = real, or None.
            lengths: of the full sequences, CLS included.
            attend: the attention implementation.

        Returns:
            (batch, length, decoder dim) by modality, behind the final norm.
        """
        # The mask is that of the full input: what was masked is to be filled in, and so is attended to.
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
    """The encoder with its denoising decoder. `model` is the `OnePeaceModel` to keep after training.

    Args:
        config: with `decoder` sizes.

    Raises:
        ValueError: without them.

    Example:
        >>> import torch
        >>> model = OnePeaceForPreTraining(OnePeaceConfig.preset("nano"))
        >>> losses = image_text_losses(model, torch.tensor([[5, 6, 2], [7, 8, 2]]), torch.rand(2, 3, 64, 64))
        >>> losses.total.shape, losses.denoising
        (torch.Size([]), {})

    Source: ONE-PEACE (arXiv 2305.11172), section 3.2; specification ONE-PEACE, section 6.
    """

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
        """Encode the visible units, decode them at full length, map them back to the encoder's width.

        Args:
            inputs: as in `OnePeaceModel.encode`.
            keep: (batch, kept) visible units per modality, as `preserve_ids` gives them.
            teacher: the full pass of the same inputs, for its lengths and masks.

        Returns:
            The student at every stage.

        Raises:
            ValueError: for a modality that the decoder does not denoise, and as
                `OnePeaceModel.encode`.
        """
        encoded = self.model.encode(inputs, keep=keep)
        lengths = {m: teacher.features[m].shape[1] for m in encoded.features}
        masks = {m: teacher.masks[m] for m in encoded.features}
        attend = attention_function(self.config._attn_implementation)
        decoded = self.decoder(encoded.features, keep, masks, lengths, attend)
        student = {m: self.decoder.branch(m).head(x) for m, x in decoded.items()}
        return Denoised(encoded, decoded, student)

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
        """As `OnePeaceModel.forward`, arguments too; training passes are composed by the losses below."""
        seen = (input_ids, pixel_values, input_values, attention_mask, audio_attention_mask)
        return self.model(*seen, return_loss=return_loss, **others)


Inputs = Mapping[str, Tensor | Mapping[str, Any]]
"""As in `OnePeaceModel.encode`."""

Masks = Mapping[str, Tensor]
"""Masked units per pass and modality, (batch, units) bool without CLS: keys such as `text`, `image`, `vl_text`."""

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""(batch, ...) -> (world * batch, ...) without gradient, and the place of the local rows in it."""

# Published: the image alone counts in full, everything beside it half (specification 6.3).
IMAGE_TEXT_WEIGHTS = {"text": 0.5, "image": 1.0, "vl_text": 0.5, "vl_image": 0.5}
# Likewise with audio; text alone is not denoised: its branch is frozen.
AUDIO_TEXT_WEIGHTS = {"audio": 1.0, "al_text": 0.5, "al_audio": 0.5}

DENOISING: dict[str, Callable[..., Tensor]] = {
    "contrast": denoising_contrast,
    "l2": denoising_l2,
    "smooth_l1": denoising_smooth_l1,
}
"""The published objective and the two regressions it is compared with."""


@dataclass(slots=True)
class PretrainingLosses:
    """Losses of one batch; the rest for inspection and parity.

    Attributes:
        total: contrast plus the weighted denoising losses, a scalar.
        contrast: loss and hits of the cross-modal contrast.
        denoising: unweighted losses by pass and modality, such as `image` or `vl_text`.
        teachers: full passes by name, without gradient where they only teach.
        students: masked passes by name.
    """

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

    Args:
        model: with text and image branches.
        input_ids: (batch, tokens), each ending in EOS.
        pixel_values: (batch, 3, side, side).
        masks: (batch, units) bool, True = masked, without CLS, for `text`, `image`, `vl_text` and
            `vl_image`; None for contrast alone.
        ids: (batch,) identities, equal where several rows describe one thing.
        weights: of the denoising losses, by the same names.
        denoising: `contrast` as published, or `l2` or `smooth_l1`.
        chunk_size: rows of the contrast whose logits exist at one time; None keeps all.
        gather: collects rows of all processes.

    Returns:
        The total, and what it was made of.

    Raises:
        ValueError: for an unknown denoising objective, and as `OnePeaceModel.encode`.

    Source: specification ONE-PEACE, sections 6.2 and 6.3.
    """
    inputs = {"text": input_ids, "image": pixel_values}
    text, image = (model.model.encode({m: given}) for m, given in inputs.items())
    contrast = _contrast(model, {"text": text, "image": image}, ids=ids, chunk_size=chunk_size, gather=gather)
    losses = PretrainingLosses(contrast.loss, contrast)
    if masks is None:
        return losses
    with torch.no_grad():
        # The teacher is the same network on the whole input: no slow copy, only no gradient (specification 6.3).
        joint = model.model.encode(inputs)
    # Passes of the contrast teach too; denoising detaches their features, so they are run once.
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

    Args:
        model: with text and audio branches.
        input_ids: (batch, tokens), each ending in EOS.
        input_values: (batch, samples).
        masks: (batch, units) bool, True = masked, without CLS, for `audio`, `al_text` and
            `al_audio`; None for contrast alone.
        frame_mask: (batch, frames) bool, True = real; None means all.
        ids, weights, denoising, chunk_size, gather: as in `image_text_losses`.

    Returns:
        The total, and what it was made of; the audio-alone pass is the teacher `audio_full`.

    Raises:
        ValueError: for an unknown denoising objective, and as `OnePeaceModel.encode`.

    Source: specification ONE-PEACE, section 6.3 and quirk 7 of section 10.
    """
    inputs = {"text": input_ids, "audio": {"input_values": input_values, "frame_mask": frame_mask}}
    with torch.no_grad():
        # Stage 2 leaves the branch of text as stage 1 made it, so nothing is kept for its gradient.
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
    """Contrast of the CLS vectors of two passes.

    passes: by the modality to read, in the order a, b. Returns loss and hits of both directions.
    """
    x, y = (model.model.project(encoded.features[m], m) for m, encoded in passes.items())
    x_all, y_all, ids_all, offset = None, None, None, 0
    if gather is not None:
        # Gathered rows carry no gradient, local ones included: each side learns as rows only (specification 6.2).
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
    """Run a masked pass against every teacher and add its losses to the total.

    Args:
        model, losses: what is trained, and what is added to.
        inputs: of the full batch, by modality.
        teachers: full passes by name: a modality, `vl` or `al`.
        masks, weights: by pass and modality.
        objective: a key of `DENOISING`.

    Returns:
        `losses`, extended in place.

    Raises:
        ValueError: for an unknown objective.
    """
    if objective not in DENOISING:
        raise ValueError(f"expected a denoising objective among {sorted(DENOISING)}, got {objective!r}")
    for name, teacher in teachers.items():
        # A pass is called after its modality, or `vl` / `al` for text with image / audio.
        names = {m: m if name == m else f"{name}_{m}" for m in inputs if name in (m, "vl", "al")}
        # CLS is neither masked nor contrasted, so it is cut from masks and features alike.
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


# Exempt by name; relative tables, mask tokens, type vectors and pooling query do decay (specification 6.5).
_EMBEDDINGS = re.compile(
    r"(adapters\.(text|image|audio)\.cls_embedding|adapters\.(text|image)\.position_embedding"
    r"|decoder\.branches\.\w+\.(cls_embedding|position_embedding))$"
)
# A missing comma in the official list of names without decay joins two of them into none, so these decay.
_OFFICIAL_SLIP = re.compile(r"decoder\.branches\.(text\.cls_embedding|image\.position_embedding)$")

# "Only audio is trained" holds for the encoder: attention, LayerScale and shared norms are frozen,
# the decoder is not (specification 6.4).
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
    """Whether weight decay applies to a parameter.

    Not to vectors, biases, position tables and class tokens.

    Args:
        name: in Plait's layout.
        ndim: dimensions of the parameter.
        official: repeat the slip of the released list, by which two vectors of the decoder decay.

    Source: specification ONE-PEACE, sections 6.5 and 11.
    """
    if ndim <= 1 or name.endswith(".bias"):
        return False
    if official and _OFFICIAL_SLIP.search(name):
        return True
    return not _EMBEDDINGS.search(name)


def layer_id(name: str, num_layers: int) -> int:
    """Depth of a parameter for layer-wise decay: adapters 0, layer i and its table i + 1, the rest num_layers + 1.

    A learning rate is scaled by decay ** (num_layers + 1 - depth), so heads, norms and projections
    learn at full rate.

    Args:
        name: in Plait's layout, with or without `model.` in front.
        num_layers: of the trunk.

    Source: specification ONE-PEACE, section 6.5.
    """
    # Asked before the adapters, which hold the tables: each belongs to the layer that adds it.
    if table := re.search(r"adapters\.\w+\.bias\.tables\.(\d+)$", name):
        return int(table[1]) + 1
    if "adapters." in name:
        return 0
    if layer := re.search(r"^(?:model\.)?trunk\.layers\.(\d+)\.", name):
        return int(layer[1]) + 1
    return num_layers + 1
