"""`generate` on prompts that hold media: placed once, with the prompt, and repeated for beams with their rows.

prompt with media -> rows repeated per beam, media as blocks -> first pass places them -> later passes are text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationMixin


class Places(NamedTuple):
    """Where a kind of media stands in a prompt.

    media_id: on its positions, as the configuration has it; per_medium: how many positions one medium fills; apart: the
    other id of its positions, which no table reaches; rows: of the table. A table that has grown over `media_id` holds
    a word there, as soon as the other id is used.
    """

    media_id: int
    per_medium: int
    apart: int
    rows: int

    def of(self, ids: Tensor, *, has_media: bool = True) -> Tensor:
        """ids: (batch, seq) -> bool, True on positions of media. has_media: whether any were given with these ids."""
        apart = ids == self.apart
        if self.media_id < self.rows and (not has_media or bool(apart.any())):
            return apart
        return apart | (ids == self.media_id)


class MediaPrompts(GenerationMixin):
    """What models share that put media over positions of a prompt; mixed into a model class.

    prompt_only: arguments of `forward` that belong to the prompt alone.
    media_places: argument -> where the media in it stand, one entry of it per medium, in reading order
    over the batch.
    """

    prompt_only: tuple[str, ...] = ()

    def media_places(self) -> Mapping[str, Places]:
        """Argument of `forward` -> where its media stand in the prompt. A model says it."""
        raise NotImplementedError

    def prepare_inputs_for_generation(
        self: Any, input_ids: Any, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Arguments of one forward pass: media come with the prompt, later steps are text.

        transformers' signature. Without a cache every pass reads the whole prompt, so media stay.
        """
        inputs = GenerationMixin.prepare_inputs_for_generation(
            self, input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.update(dict.fromkeys(self.prompt_only))
        return inputs

    def _expand_inputs_for_generation(
        self: Any, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows for beams, media with the rows they stand in.

        transformers' signature and result.
        """
        held = {}
        for name, places in self.media_places().items():
            media = kwargs.pop(name, None)
            if media is None:
                continue
            if expand_size > 1 and input_ids is not None:
                per_row = places.of(input_ids).sum(dim=1) // places.per_medium
                # all media of a row, then all again: repeated one by one they would pass to other rows
                media = torch.cat([torch.cat([row] * expand_size) for row in media.split(per_row.tolist())])
            held[name] = media
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | held
