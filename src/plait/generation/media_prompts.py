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

    def generate(self: Any, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`; what cannot be done with media is refused by name.

        Args:
            inputs: (batch, seq) ids, as `forward` takes them.
            args, kwargs: of transformers, and the media of `forward`.

        Raises:
            ValueError: beside media, for an `assistant_model`, `guidance_scale` and `prefill_chunk_size`.
        """
        given = args[0] if args else kwargs.get("generation_config")
        if any(kwargs.get(name) is not None for name in self.prompt_only):
            # each runs passes of its own over ids whose media it does not have
            for name in ("assistant_model", "guidance_scale", "prefill_chunk_size"):
                if kwargs.get(name, getattr(given, name, None)) not in (None, 1, 0):
                    raise ValueError(f"expected no {name} for a prompt with media, got one; leave it out")
        return GenerationMixin.generate(self, inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self: Any,
        input_ids: Any,
        *args: Any,
        is_first_iteration: bool | None = False,
        inputs_embeds: Tensor | None = None,  # by name in the signature: there `generate` looks for it
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of one forward pass: media come with the prompt, later steps are text.

        transformers' signature. Without a cache every pass reads the whole prompt, so media stay.
        """
        # that of stop_strings: transformers hands it on to `forward`, which takes no names that it does not know
        kwargs.pop("tokenizer", None)
        inputs = GenerationMixin.prepare_inputs_for_generation(
            self, input_ids, *args, is_first_iteration=is_first_iteration, inputs_embeds=inputs_embeds, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.update(dict.fromkeys(self.prompt_only))
        return inputs

    def _get_candidate_generator(self: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' guesser of ids for prompt lookup, which sees no media: their ids are behind its table.

        Word 0 stands in their place; as a guess it is checked like any other, and the answer stays the same.
        """
        guesser: Any = GenerationMixin._get_candidate_generator(self, *args, **kwargs)
        guess = guesser.get_candidates

        def without_media(input_ids: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Any]:
            words = input_ids
            for places in self.media_places().values():
                words = words.masked_fill(places.of(words), 0)
            found, scores = guess(words, *rest, **named)
            return torch.cat([input_ids, found[:, input_ids.shape[1] :]], dim=1), scores

        guesser.get_candidates = without_media
        return guesser

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
