"""Candidates one by one: every answer behind its own prompt, every pair with its own keys.

That is how ALBEF's and mPLUG's released evaluations score pairs (specification mPLUG-2, 7.3 and 10.1), and how answers
are ranked with a causal model that has no prefix cache. Pictures are encoded once here too, which the comparison
leaves out on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def answer_losses(skills: Any, rows: Any) -> Tensor:
    """Every answer a row of one batch behind its own copy of prompt and picture, logits at every position.

    Args:
        skills: of a model that talks.
        rows: of `skills.answered`.

    Returns:
        (answers,) negative log likelihoods.
    """
    model, count = skills.model, len(rows["input_ids"])
    ids, mask, labels = rows["input_ids"], rows["attention_mask"], rows["labels"]
    if "image_features" in rows:  # mPLUG-Owl takes what its abstractor made
        features = rows["image_features"].repeat(count, 1, 1)
        logits = model(ids, mask, image_features=features, use_cache=False).logits
    else:
        is_image = ids == model.config.image_token
        embeds = model.model.token_embedding(ids.masked_fill(is_image, 0))
        features = model.model.encode_images(rows["pixel_values"]).flatten(0, 1).repeat(count, 1)
        embeds = embeds.masked_scatter(is_image[..., None], features)
        ways = is_image.long()  # 0 is text, 1 an image
        logits = model(inputs_embeds=embeds, attention_mask=mask, modality_ids=ways, use_cache=False).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
    return losses.sum(1)


def match_scores(model: Any, vision: Tensor, text: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Match logits of the k nearest, each direction by itself, the states of a picture repeated for every text.

    Args:
        model: an `MPlug2ForRetrieval`.
        vision, text, mask: of `Pairs.encode`.
        k: candidates of a query.

    Returns:
        (visions, texts) and (texts, visions), -100 where nothing was scored.
    """
    similarity = model.alignment.embed(vision, "vision") @ model.alignment.embed(text, "text").T
    to_text = torch.full_like(similarity, -100.0)
    for i, near in enumerate(similarity.topk(k, dim=1).indices):
        to_text[i, near] = model.match(text[near], mask[near], vision[i].repeat(k, 1, 1))[:, 1]
    to_vision = torch.full_like(similarity.T, -100.0)
    for j, near in enumerate(similarity.T.topk(k, dim=1).indices):
        to_vision[j, near] = model.match(text[j].repeat(k, 1, 1), mask[j].repeat(k, 1), vision[near])[:, 1]
    return to_text, to_vision
