"""What a model that talks offers a `plait.Assistant`: descriptions, answers, and answers of a list by their likelihood.

decoded items -> questions with a placeholder -> the family's prompt -> model.generate | likelihoods -> texts

A family writes `written` (questions to prompts) and `answered`; everything else is the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.generation.asking import Asking
from plait.generation.candidates import IGNORED, Tail, answer_losses, tail_losses
from plait.nn.attention import watching
from plait.types import Ask, Capability, Decoding, as_words

MAX_NEW_TOKENS = 128


class TalkingSkills(Asking):
    """What a `plait.Assistant` may ask a model that talks; see `plait.types.Skills`.

    family: its name in messages. describe, name: what is asked for a caption and for labels, with
    `{kind}`. placeholders: kind -> what stands for a medium in a question. A family writes `written`
    and `answered`.
    """

    tasks = frozenset({"caption", "answer", "rank", "classify"})
    kinds = frozenset({"image", "video", "text"})
    labels: tuple[str, ...] = ()
    capabilities: tuple[Capability, ...] = ("generate", "text")
    has_clips = False
    """Whether a film keeps its time; else its frames are so many pictures."""
    family: str
    describe: str
    name: str
    placeholders: Mapping[str, str]
    abstractor: str = "abstractor"
    """Where the model has it."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        # a processor that was saved with another number of frames knows better than the family
        self.num_frames = getattr(processor, "num_frames", self.num_frames)

    def written(self, asked: Sequence[str]) -> list[str]:
        """Questions with placeholders to prompts that end where the answer begins. A family writes it.

        asked: of `asked`, one per item.
        """
        raise NotImplementedError

    def answered(self, kind: str, item: Any, asked: str, answers: Sequence[str]) -> Any:
        """One question about one item with every answer behind it, as the model reads it. A family writes it.

        Args:
            kind: of the item: image, video or text.
            item: as `prepare` gave it.
            asked: the question with its placeholder.
            answers: the texts to weigh.

        Returns:
            A `BatchFeature`: input_ids, attention_mask, labels (answers, seq), padded on the right, the end of an
            answer labelled; pixels of the one item, once.
        """
        raise NotImplementedError

    def prepare(self, kind: str, value: Any) -> Any:
        """An item as it is: pixels are made when the prompt is, by the processor.

        kind: of the item; value: decoded.
        """
        return value

    def check_text(self, text: str) -> None:
        """Check a text before anything is computed with it.

        Raises:
            ValueError: where it leaves no room in the context.
        """
        context, length = self._context(), len(self.processor.encode(as_words(text)))
        if context is not None and length >= context:
            raise ValueError(f"expected a text of less than {context} pieces, got {length}; shorten it")

    def check_prompt(self, length: int) -> None:
        """Check the length of a prompt, positions of its media included.

        Raises:
            ValueError: where it leaves no room for an answer.
        """
        context = self._context()
        if context is not None and length >= context:
            raise ValueError(
                f"expected a prompt of less than {context} positions, got {length}; show less or shorten the text"
            )

    def _context(self) -> int | None:
        """Positions that the model was made for, None where its configuration names no number.

        `context` is ours; `max_position_embeddings` is what language models of others say.
        """
        config = self.model.config
        return getattr(config, "context", None) or getattr(config, "max_position_embeddings", None)

    def caption(self, kind: str, prepared: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
        """What the model says when it is asked to describe.

        Args:
            kind: of the items: image or video.
            prepared: items as `prepare` gave them.
            options: as in `answer`.
        """
        return self.answer(kind, prepared, [self.describe.format(kind=kind)] * len(prepared), options)

    def answer(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """What the model says to each question, greedily or with beams.

        Args:
            kind: of the items: image, video or text.
            prepared: items as `prepare` gave them.
            questions: one per item.
            options: `num_beams`, and lengths, which count the answer alone by either of their names.

        Returns:
            Texts without special tokens, cut at the family's stop strings.

        Raises:
            ValueError: where a prompt leaves no room for an answer.
        """
        asked = [self.asked(kind, item, question) for item, question in zip(prepared, questions, strict=True)]
        names = {"min_length": "min_new_tokens", "max_length": "max_new_tokens"}
        wished = {names.get(name, name): value for name, value in options.items()}
        given = {"num_beams": 1, "max_new_tokens": MAX_NEW_TOKENS, **wished}
        return self._written(self.written(asked), self.media(kind, prepared), given)

    def reply(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """What the model says to questions laid out as in the released evaluation; as `answer` else.

        Args:
            asks: in any mixture of images and clips.
            decoding: greedy or beams; nothing is sampled.
        """
        seen = [[*ask.images, *(() if self.has_clips else ask.video)] for ask in asks]
        media: dict[str, Any] = {"images": [picture for one in seen for picture in one]}
        if self.has_clips:
            media["videos"] = [list(ask.video) for ask in asks if ask.video]
        return self._written([self.layout(ask) for ask in asks], media, lengths(decoding))

    def _written(self, prompts: Sequence[str], media: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
        """What the model writes behind prompts. given: lengths and beams of `generate`."""
        media = {name: values for name, values in media.items() if values}
        batch = self.processor(text=list(prompts), **media).to(self.model.device)
        self.check_prompt(batch["input_ids"].shape[1])
        found = self.model.generate(**batch, do_sample=False, **given)
        texts = self.processor.batch_decode(found[:, batch["input_ids"].shape[1] :])
        # a tuned model may write the next turn's role instead of an end token
        for stop in self.processor.stop_strings:
            texts = [text.partition(stop)[0].rstrip() for text in texts]
        return texts

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Summed log-probability of every continuation after its text; a text that several share runs once.

        pairs: (text, continuation). Returns natural logarithms, float32.
        """
        tokenizer, place = self.processor.tokenizer, self.model.device
        heads = {text: torch.tensor(tokenizer(text)["input_ids"], device=place) for text, _ in pairs}
        if not all(map(len, heads.values())):  # nothing predicts the first id of a continuation
            return likelihoods(self.model, tokenizer, pairs)
        tails: dict[str, list[Tail]] = {text: [] for text in heads}
        for text, continuation in pairs:
            ids = torch.tensor(tokenizer(continuation, add_special_tokens=False)["input_ids"], device=place)
            tails[text].append(Tail(ids.long(), ids.long()))
        with torch.inference_mode():
            losses = {text: iter(tail_losses(self.model, heads[text], own).tolist()) for text, own in tails.items()}
        return [-next(losses[text]) for text, _ in pairs]

    def rank(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], answers: Sequence[str]
    ) -> list[list[tuple[str, float]]]:
        """Every answer of a list by its likelihood, its end included.

        Returns:
            Per question (answer, share), best first; shares sum to 1. Equals keep the list's order.
        """
        ranked = []
        for item, question in zip(prepared, questions, strict=True):
            with torch.no_grad():
                rows = self.answered(kind, item, self.asked(kind, item, question), answers).to(self.model.device)
                self.check_prompt(rows["input_ids"].shape[1])
                losses = answer_losses(self.model, rows)
            # summed, not averaged: the likelihood of the whole answer
            shares, order = (-losses).softmax(0).sort(descending=True, stable=True)
            ranked.append([(answers[i], share) for i, share in zip(order.tolist(), shares.tolist(), strict=True)])
        return ranked

    def attention(self, kind: str, prepared: Any, question: str, text: str) -> tuple[list[str], Tensor]:
        """Where the pieces of a text looked, see `plait.types.Skills`.

        The language model's attention to the vectors of a medium, times what each of these read of its patches.

        Raises:
            ValueError: for a text without pieces, and where the prompt leaves it no room.
        """
        asked = self.asked(kind, prepared, question or self.describe.format(kind=kind))
        rows = self.answered(kind, prepared, asked, [text]).to(self.model.device)
        self.check_prompt(rows["input_ids"].shape[1])
        labels = rows.pop("labels")[0]
        written = (labels != IGNORED).nonzero()[:-1, 0]  # the end of the answer looks nowhere that anybody asks for
        if not len(written):
            raise ValueError(f"expected a text with words, got {text!r}; pass what the model said")
        abstractor = self.model.get_submodule(self.abstractor)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # the others keep no weights
        try:
            with watching(abstractor.layers) as seen:
                weights = self.model(**rows, output_attentions=True).attentions
        finally:
            self.model.set_attn_implementation(before)
        # a piece is written at the position before it
        said = torch.stack([layer[0].float().mean(0) for layer in weights]).mean(0)[written - 1]
        places = [one.of(rows["input_ids"])[0] for one in self.model.media_places().values()]
        count = abstractor.sizes.num_queries
        # positions of a medium are its queries and an end vector, which read nothing
        said = said[:, torch.stack(places).any(0)].unflatten(1, (-1, count + 1))[..., :count]
        read = torch.stack(seen).mean(0)  # (media, queries, queries + positions)
        queries = read.shape[1]
        # clips have queries of their own, whose results are added to those of the first: half of each
        read = read[..., queries:].unflatten(1, (-1, count)).mean(1)
        clips = rows.get("pixel_values_videos")
        frames = 1 if clips is None else clips.shape[2]
        found = torch.einsum("pmq,mqk->pmk", said, read).unflatten(2, (frames, -1)).flatten(1, 2)
        grid = math.isqrt(found.shape[2])
        found = found[..., found.shape[2] - grid**2 :]  # without the class position, where the tower has one
        pieces = self.processor.tokenizer.convert_ids_to_tokens(rows["input_ids"][0, written].tolist())
        return pieces, found.unflatten(2, (grid, grid))

    def classify(
        self, kind: str, prepared: Sequence[Any], labels: Sequence[str] | None
    ) -> list[list[tuple[str, float]]]:
        """Labels by their likelihood as the answer to what is there.

        Raises:
            ValueError: without labels.
        """
        if labels is None:
            raise ValueError(f"expected labels to choose from for {self.family}, got none; give some")
        return self.rank(kind, prepared, [self.name.format(kind=kind)] * len(prepared), labels)

    def ground(self, prepared: Sequence[Any], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """These models draw no boxes.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"expected a model that grounds phrases, got {self.family}; use an mPLUG-2 or ONE-PEACE one")

    def asked(self, kind: str, item: Any, question: str) -> str:
        """A question with the placeholder of its item; a text stands in the question itself.

        kind: of the item; item: as `prepare` gave it; question: the words.
        """
        words = as_words(question)
        return f"{as_words(item)}\n{words}" if kind == "text" else self.placeholders[kind] + words

    def media(self, kind: str, prepared: Sequence[Any]) -> dict[str, Any]:
        """Items as arguments of the processor.

        kind: of the items; prepared: as `prepare` gave them. Texts are part of the question already.
        """
        return {} if kind == "text" else {f"{kind}s": list(prepared)}


def lengths(decoding: Decoding) -> dict[str, Any]:
    """How an answer is written, as `generate` of transformers takes it."""
    given = {
        "num_beams": decoding.num_beams,
        "max_new_tokens": decoding.max_new_tokens,
        "min_new_tokens": decoding.min_new_tokens,
    }
    # transformers warns about a length penalty where there are no beams
    return given | ({"length_penalty": decoding.length_penalty} if decoding.num_beams > 1 else {})


def likelihoods(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Summed log-probability of every continuation after its text, from one forward pass of the batch.

    Args:
        model, tokenizer: of a causal language model.
        pairs: (text, continuation).

    Returns:
        Natural logarithms, float32.
    """
    heads = [tokenizer(text)["input_ids"] for text, _ in pairs]
    # text and continuation are tokenised apart, so that the border between them is known
    tails = [tokenizer(tail, add_special_tokens=False)["input_ids"] for _, tail in pairs]
    longest = max(len(head) + len(tail) for head, tail in zip(heads, tails))
    ids = torch.full((len(pairs), longest), tokenizer.pad_token_id or 0)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (head, tail) in enumerate(zip(heads, tails)):
        end = len(head) + len(tail)
        ids[row, :end] = torch.tensor(head + tail)  # padded on the right: nothing attends to it
        mask[row, :end] = 1
        labels[row, len(head) : end] = torch.tensor(tail)
    place = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(input_ids=ids.to(place), attention_mask=mask.to(place)).logits
    return (-summed_losses(logits, labels.to(place))).tolist()


def summed_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of each row's labels.

    Args:
        logits: (batch, seq, vocab) of every position.
        labels: (batch, seq), not yet shifted; -100 where nothing counts.

    Returns:
        float32 (batch,).
    """
    shifted = logits[:, :-1].float().transpose(1, 2)
    return F.cross_entropy(shifted, labels[:, 1:], reduction="none", ignore_index=-100).sum(1)
