"""A family of one's own in one file: BLIP-2's first stage (arXiv 2301.12597, section 3), on the parts of Plait.

    picture -> frozen tower -> patches -.
    queries -> [attention -> cross-attention to the patches -> MLP of queries] x layers -> mean -> image vector
    words   -> [attention (the same weights)                -> MLP of words  ] x layers -> mean -> text vector
    queries and words in one sequence                                        -> mean of queries -> match or not

    plait train blip2.stage1 --plugin examples/blip2_stage1.py --set tower=nano --set data=mini --out runs/blip2

Each part of a family has a name that Plait looks for at the end of this file. The paper's third loss, captioning, is
left out, and a picture has one vector, the mean over its queries (the paper takes the nearest), so that an index can
hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from plait.data.order import Spread
from plait.data.pairs import concept_of
from plait.data.reader import Reader, Reading, select
from plait.media.image import load_image
from plait.models.auto import load, load_processor
from plait.models.one_peace import OnePeaceConfig, OnePeaceModel, OnePeaceProcessor
from plait.nn.attention import sdpa_attention
from plait.nn.bert import BertAttention, BertEmbeddings
from plait.objectives.contrastive import contrastive_loss
from plait.objectives.matching import hard_negatives, matching_loss
from plait.routing import PerModality, Route, partition
from plait.training.parallel import gather_rows
from plait.training.stages import Recipe, Stage, save_pair
from plait.types import Sample

# ----------------------------------------------------------------- configuration


class Blip2Config(PreTrainedConfig):
    """Sizes of the querying transformer, and the whole configuration of the tower that it reads.

    tower: of a `OnePeaceModel` with an image branch; read_every: every so many layers the queries look at the picture.
    """

    model_type = "blip2_stage1"

    tower: dict[str, Any] | None = None
    vocab_size: int = 50264
    max_positions: int = 80
    dim: int = 128
    num_heads: int = 4
    num_layers: int = 4
    mlp_dim: int = 512
    read_every: int = 2
    num_queries: int = 16
    pad_token_id: int | None = 1


# ------------------------------------------------------------------------- model


class FeedForward(nn.Module):
    """Linear, GELU, linear; residual and norm behind, as in BERT. (batch, seq, dim) -> the same."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))


class QueryLayer(nn.Module):
    """Shared attention, the queries' look at the picture (where the layer has one), a feed-forward network per way."""

    def __init__(self, config: Blip2Config, reads: bool, patch_dim: int) -> None:
        super().__init__()
        self.attn = BertAttention(config.dim, config.num_heads)
        self.cross = BertAttention(config.dim, config.num_heads) if reads else None
        self.bridge = nn.Linear(patch_dim, config.dim) if reads else None
        # The partition of the modalities: attention is shared, feed-forward networks are not.
        self.mlp = PerModality(lambda: FeedForward(config.dim, config.mlp_dim), partition(("text", "image")))

    def forward(self, x: Tensor, patches: Tensor | None, mask: Tensor, route: Route) -> Tensor:
        """x: (batch, queries + tokens, dim), patches: (batch, positions, tower's dim), mask: of the keys -> like x."""
        x = self.attn(x, self.attn.project(x), None, mask, sdpa_attention)
        if self.cross is not None and self.bridge is not None and patches is not None:
            count = route.lengths[0]
            seen = self.cross.project(self.bridge(patches))
            x = torch.cat([self.cross(x[:, :count], seen, None, None, sdpa_attention), x[:, count:]], dim=1)
        return self.mlp(x, route)


@dataclass
class Blip2Output(ModelOutput):
    """Unit vectors (batch, dim) of what was given, and logits (batch, 2) of whether both belong together."""

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    match_logits: Tensor | None = None


class Blip2Model(PreTrainedModel):
    """Frozen tower, querying transformer, two projections, a matching head and a temperature.

    `modalities`, `get_image_features` and `get_text_features` are what `plait.Embedder` asks of a model.
    """

    config_class = Blip2Config
    main_input_name = "pixel_values"
    modalities = ("text", "image")

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        tower = OnePeaceConfig.from_dict(dict(config.tower or {}))
        self.tower = OnePeaceModel(tower)
        self.embeddings = BertEmbeddings(config.vocab_size, config.dim, config.max_positions)
        self.queries = nn.Parameter(torch.zeros(1, config.num_queries, config.dim))
        self.layers = nn.ModuleList(
            QueryLayer(config, number % config.read_every == 0, tower.dim) for number in range(config.num_layers)
        )
        self.projections = nn.ModuleDict({name: nn.Linear(config.dim, config.dim) for name in self.modalities})
        self.match_head = nn.Linear(config.dim, 2)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """BERT's fresh weights; the tower draws its own, and what is loaded replaces them anyway."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if module is self:
            nn.init.normal_(self.queries, std=0.02)
            nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def see(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, side, side) -> all positions of the frozen tower (batch, positions, tower's dim)."""
        with torch.no_grad():
            return self.tower.encode({"image": pixel_values}).features["image"]

    def read(self, patches: Tensor | None = None, input_ids: Tensor | None = None) -> tuple[Tensor, int]:
        """States (batch, queries + tokens, dim) of queries before patches, of words, or of both; how many are queries.

        input_ids: (batch, tokens), padded with `config.pad_token_id`.
        """
        parts, masks = [], []
        if patches is not None:
            parts.append(self.queries.expand(len(patches), -1, -1))
            masks.append(torch.ones(parts[0].shape[:2], dtype=torch.bool, device=patches.device))
        count = parts[0].shape[1] if parts else 0
        if input_ids is not None:
            parts.append(self.embeddings(input_ids))
            masks.append(input_ids != self.config.pad_token_id)
        x, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)
        route = Route.segments({"image": count, "text": x.shape[1] - count})
        for layer in self.layers:
            x = layer(x, patches, mask, route)
        return x, count

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Patches of `see` -> unit vectors (batch, dim)."""
        return F.normalize(self.projections["image"](self.read(patches)[0].mean(1)), dim=-1)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, side, side) -> unit vectors (batch, dim)."""
        return self.embed_patches(self.see(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(batch, tokens) -> unit vectors (batch, dim): the mean over words, padding left out."""
        states, _ = self.read(input_ids=input_ids)
        kept = (input_ids != self.config.pad_token_id)[..., None]
        return F.normalize(self.projections["text"]((states * kept).sum(1) / kept.sum(1)), dim=-1)

    def match(self, patches: Tensor, input_ids: Tensor) -> Tensor:
        """Patches and words in one sequence -> logits (batch, 2), class 1 = they belong together."""
        states, count = self.read(patches, input_ids)
        return self.match_head(states[:, :count]).mean(1)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> Blip2Output:
        """Vectors of what is given, and whether the pairs match where both are; masks follow from the ids."""
        patches = None if pixel_values is None else self.see(pixel_values)
        return Blip2Output(
            image_embeds=None if patches is None else self.embed_patches(patches),
            text_embeds=None if input_ids is None else self.get_text_features(input_ids),
            match_logits=None if patches is None or input_ids is None else self.match(patches, input_ids),
        )


# ---------------------------------------------------------------------- training


def objective(
    model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrast over the rows of all processes, and matching against the hardest of this one's.

    batch: pixel_values, input_ids, attention_mask, and ids (batch,), equal where rows are of one concept.
    """
    assert isinstance(model, Blip2Model)
    patches, words, ids = model.see(batch["pixel_values"]), batch["input_ids"], batch["ids"]
    image, text, scale = model.embed_patches(patches), model.get_text_features(words), model.logit_scale.exp()
    (image_all, offset), (text_all, _), (ids_all, _) = map(gather_rows, (image, text, ids))
    contrast = contrastive_loss(
        image, text, scale, a_all=image_all, b_all=text_all, offset=offset, ids=ids, ids_all=ids_all
    )
    near = scale.detach() * image.detach() @ text.detach().T
    other_text = hard_negatives(near, ids, generator=generator)
    other_image = hard_negatives(near.T, ids, generator=generator)
    logits = model.match(
        torch.cat([patches, patches, patches[other_image]]), torch.cat([words, words[other_text], words])
    )
    match = matching_loss(logits, len(words))
    return contrast.loss + match, {"contrast": contrast.loss.detach(), "match": match.detach()}


def decode(processor: OnePeaceProcessor, sample: Sample, rng: np.random.Generator) -> tuple[Sample, Tensor]:
    """A row and its picture (3, side, side); runs in the workers."""
    return sample, processor(images=load_image(sample.image))["pixel_values"][0]


def collate(
    processor: OnePeaceProcessor, parts: list[tuple[Sample, Tensor]], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Rows -> what `objective` reads."""
    samples, pictures = zip(*parts, strict=True)
    words = processor(text=[sample.text for sample in samples])
    ids = torch.tensor([concept_of(sample) for sample in samples])
    return {**words, "pixel_values": torch.stack(pictures), "ids": ids}


def build(tower: str, vocab_size: int, dim: int, num_queries: int, num_layers: int) -> Blip2Model:
    """A fresh querying transformer before the image branch of a trained model."""
    seen, _ = load(tower, branch=("image",))
    model = Blip2Model(
        Blip2Config(
            tower=seen.config.to_dict(), vocab_size=vocab_size, dim=dim, num_heads=max(1, dim // 32),
            num_layers=num_layers, mlp_dim=4 * dim, num_queries=num_queries,
        )
    )  # fmt: skip
    model.tower.load_state_dict(seen.float().state_dict(), assign=True)
    return model


def stage1(
    data: str = "mini",
    tower: str = "nano",
    dim: int = 128,
    num_queries: int = 16,
    num_layers: int = 4,
    steps: int = 600,
    batch_size: int = 64,
    lr: float = 1e-3,
    reading: Reading = Reading(),
) -> Recipe:
    """Contrast and matching with the tower frozen: rows with `image` and `text`, of split train or none.

    tower: a ONE-PEACE directory, or nano. Its tokenizer cuts the words. reading: workers, on_bad, most_bad.
    """
    processor = load_processor(tower)
    rows = select(
        data, "an image and text", lambda s: s.image is not None and bool(s.text), measure=concept_of, reading=reading
    )
    stage = Stage(
        name="stage1",
        objective=objective,
        batches=partial(
            Reader, rows, partial(collate, processor), partial(decode, processor), reading=reading,
            order=Spread(rows.measures),
        ),
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 100,
        trainable=(r"re:^(?!tower\.)",),
    )  # fmt: skip
    fresh = partial(build, tower, len(processor.tokenizer), dim, num_queries, num_layers)
    return Recipe(fresh, [stage], partial(save_pair, processor))


# ----------------------------------------- what Plait asks of a family and a recipe

CONFIG, BASE_MODEL, PROCESSOR = Blip2Config, Blip2Model, OnePeaceProcessor
RECIPES = {"blip2.stage1": stage1}
