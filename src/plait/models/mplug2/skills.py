"""What mPLUG-2 does for a `plait.Assistant` and `plait eval`: captions, answers, boxes, classes, matches.

decoded items -> processor -> instruction -> model of the task -> texts, boxes, labels

Source: the released evaluation of mPLUG-2 and mPLUG (specification mPLUG-2, sections 2, 7 and 8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from plait.generation.asking import Asking
from plait.generation.deciding import DecidingSkills, best_first, named_labels
from plait.models.mplug2.composition import instruct, path_of
from plait.models.mplug2.processor import MPlug2Processor
from plait.nn.attention import watching
from plait.objectives.grounding import corners
from plait.types import Ask, Capability, Decoding, Modality, Question, QuestionKind


class Offer(NamedTuple):
    """The tasks of a class, what it looks at, and what it can be measured at."""

    tasks: frozenset[str]
    kinds: frozenset[str]
    capabilities: tuple[Capability, ...] = ()


_WRITES, _SEES = frozenset({"caption", "answer", "rank", "classify"}), frozenset({"image", "video"})
OFFERS = {
    "MPlug2ForConditionalGeneration": Offer(_WRITES, _SEES, ("generate",)),
    "MPlug2ForRetrieval": Offer(frozenset({"classify", "match"}), _SEES, ("embed",)),
    "MPlug2ForImageClassification": Offer(frozenset({"classify"}), frozenset({"image"}), ("classify",)),
    "MPlug2ForVideoClassification": Offer(frozenset({"classify"}), frozenset({"video"}), ("classify",)),
    "MPlug2ForSequenceClassification": Offer(frozenset({"classify"}), frozenset({"text"}), ("classify",)),
    "MPlug2ForGrounding": Offer(frozenset({"ground"}), frozenset({"image"}), ("ground",)),
    "MPlug2ForPreTraining": Offer(_WRITES, _SEES, ("generate", "embed")),
}
"""Class of the model -> its offer."""
_JUDGES = Offer(frozenset({"answer", "rank"}), frozenset({"image"}), ("decide",))

COMPARING = ("MPlug2ForRetrieval", "MPlug2ForPreTraining")
"""Classes that choose among labels by similarity."""

_SENT = {(task, medium) for task in ("caption", "answer", "classify") for medium in ("image", "video")}

_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


MAX_QUESTION_WORDS = 50
_MARKS = re.compile(r"([,.'!?\"()*#:;~])")


class MPlug2Skills(Asking):
    """See `plait.types.Skills`; a model is told what its configuration says it was trained to be told.

    Raises ValueError for a class without an offer.
    """

    labels: tuple[str, ...] = ()
    frames = "middle"
    ranked = 128
    """Answers of a list that are scored in full, the first token choosing them: k_test of the released settings."""

    def __init__(self, model: Any, processor: MPlug2Processor) -> None:
        self.name = type(model).__name__
        if self.name not in OFFERS:
            raise ValueError(
                f"expected one of {', '.join(OFFERS)}, got {self.name}; load the directory as one of these classes"
            )
        self.model, self.processor = model, processor
        self.writer = model.writer() if self.name == "MPlug2ForPreTraining" else model
        task = getattr(model.config, "task", None)
        self.tasks, kinds, self.capabilities = _JUDGES if task in ("entail", "compare") else OFFERS[self.name]
        if task == "caption":
            # A captioner has neither text encoder nor fusion, so no question can be read.
            self.tasks -= {"answer", "rank"}
        self.grounder, self.kinds_of = model, {}
        if self.name == "MPlug2ForConditionalGeneration" and task is None:
            # Tasks of one decoder that is told them apart.
            if self._is_told("match", "image") or self._is_told("match", "video"):
                self.tasks |= {"match"}
            if self._is_told("ground", "image"):
                self.tasks, self.capabilities = self.tasks | {"ground"}, (*self.capabilities, "ground")
                self.grounder = model.grounder()
            if self._is_told("classify", "text"):
                self.kinds_of = {"classify": kinds | {"text"}}
        media = ("text", *getattr(model.config, "modalities", kinds))  # a branch may have been left in the file
        self.kinds = frozenset(kind for kind in kinds if kind in media)
        self.num_frames = processor.num_frames
        # k_test: the best of a retrieval that the match head scores anew (specification 7.3).
        self.rerank = 128 if self.name in COMPARING else 0

    def prompt(self, kind: QuestionKind, item: Question) -> str:
        """As released: nothing for a caption; a question in lower case, without punctuation, of at most 50 words.

        Raises ValueError for an unknown kind of question.
        """
        if kind == "caption":
            return ""
        if kind not in ("short", "open"):
            return super().prompt(kind, item)
        # The order of the release: marks go, then - and / become spaces, then words are counted.
        words = _MARKS.sub("", (item.question or "").lower()).replace("-", " ").replace("/", " ")
        return " ".join(words.split()[:MAX_QUESTION_WORDS])

    def decoding(self, kind: QuestionKind, medium: Modality) -> Decoding:
        """Five beams; captions of images have mPLUG's lengths, those of videos mPLUG-2's."""
        if kind == "caption":
            # Command-line defaults of mPLUG-2's video captions and of mPLUG's image captions (specification 2, 7.3).
            fewest, most = (4, 20) if medium == "video" else (8, 25)
            return Decoding(max_new_tokens=most, min_new_tokens=fewest, num_beams=5)
        return Decoding(num_beams=5) if kind == "short" else super().decoding(kind, medium)

    def prepare(self, kind: str, value: Image | Sequence[Image] | str) -> Tensor | str:
        """An image -> (3, side, side), frames -> (3, time, side, side); a text stays."""
        if isinstance(value, str):
            return value
        return self.processor.pixels(value) if isinstance(value, Image) else self.processor.clip(value)

    def check_text(self, text: str) -> None:
        """Raise ValueError for a text over the processor's limit."""
        self.processor.tokenize(self._asked("video", [text]) if text.strip() else [text])

    def caption(self, kind: str, prepared: Sequence[Tensor], options: Mapping[str, Any]) -> list[str]:
        """Beam search from the media alone, or from them and the instruction to describe them."""
        asked = self._told("caption", kind, len(prepared))
        ids = self.writer.generate(**self._pixels(kind, prepared), **asked, **options)
        return [self.processor.decode_text(row) for row in ids]

    def answer(
        self, kind: str, prepared: Sequence[Tensor], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """Beam search from media and question; a text per item. options: of `generate`."""
        asked = self._tokens(self._asked(kind, questions))
        ids = self.writer.generate(**self._pixels(kind, prepared), **asked, **options)
        return [self.processor.decode_text(row) for row in ids]

    def attention(self, kind: str, prepared: Tensor, question: str, text: str) -> tuple[list[str], Tensor]:
        """Where the pieces of a text looked: the decoder's attention on patches, see `plait.types.Skills`.

        Args:
            kind: image or video.
            prepared: (3, side, side) or (3, time, side, side).
            question: empty for a caption.
            text: what the model said.

        Returns:
            Pieces, and (pieces, frames, rows, columns).

        Raises:
            ValueError: for a model without a decoder, and a text without pieces.
        """
        if getattr(self.writer.model, "decoder", None) is None:
            raise ValueError(f"expected a model that writes, got {self.name}; pass another model")
        words = self._tokens(self._asked(kind, [question])) if question else self._told("caption", kind, 1)
        # the end tokens are not asked where they looked; what is left of each row is fed to predict the next piece
        ids = self.processor.answers([text])["input_ids"]
        ids = ids[:, : int((ids != self.model.config.eos_token_id).sum())].to(self.model.device)
        if ids.shape[1] < 2:
            raise ValueError(f"expected a text with words, got {text!r}; pass what the model said")
        pixels = self._pixels(kind, [prepared])
        with watching([layer.cross_attn for layer in self.writer.model.decoder.layers]) as seen:
            self.writer(**pixels, **words, decoder_input_ids=ids[:, :-1])
        grid, weights = self.model.config.vision_sizes.grid, torch.stack(seen).mean(0)[0]
        # class token, patches frame by frame, then the words of the question
        patches = weights[:, 1 : weights.shape[1] - (words["input_ids"].shape[1] if words else 0)]
        pieces = self.processor.tokenizer.convert_ids_to_tokens(ids[0, 1:].tolist())
        return pieces, patches.unflatten(1, (-1, grid, grid))

    def reply(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """Answers, or captions where there are no words; several images are one clip."""
        options = dict(zip(("max_length", "min_length", "num_beams"), astuple(decoding)))
        told: list[str] = []
        for (is_clip, asks_in_words), group in groupby(asks, lambda ask: (len(_seen(ask)) > 1, bool(ask.words))):
            batch, kind = list(group), "video" if is_clip else "image"
            seen: list[Any] = [self.prepare(kind, _seen(ask) if is_clip else _seen(ask)[0]) for ask in batch]
            words = [ask.words for ask in batch]
            told += self.answer(kind, seen, words, options) if asks_in_words else self.caption(kind, seen, options)
        return told

    def rank(
        self, kind: str, prepared: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str]
    ) -> list[list[tuple[str, float]]]:
        """Every answer by its likelihood, best first; the probabilities of an item sum to 1 over all answers."""
        return self._ranked(answers, **self._pixels(kind, prepared), **self._tokens(self._asked(kind, questions)))

    def choose(self, asks: Sequence[Ask], answers: Sequence[str]) -> list[str]:
        """The likeliest answer of a list to each question, ranked as released."""
        options, told = {"k": min(self.ranked, len(answers))}, []
        for ask in asks:
            seen = _seen(ask)
            kind = "video" if len(seen) > 1 else "image"
            shown: Any = self.prepare(kind, seen if kind == "video" else seen[0])
            inputs = {**self._pixels(kind, [shown]), **self._tokens(self._asked(kind, [ask.words]))}
            told.append(self._ranked(answers, options, **inputs)[0][0][0])
        return told

    def fits(self, kind: str, prepared: Sequence[Tensor], texts: Sequence[str]) -> list[float]:
        """How probable a match is by the head behind the fusion module, or by yes against no, row by row."""
        pixels = self._pixels(kind, prepared)
        if self.name not in COMPARING:  # a decoder that was told to say whether they fit
            asked = self._tokens([instruct("match", kind, text) for text in texts])
            return [dict(ranked)["yes"] for ranked in self._ranked(("yes", "no"), **pixels, **asked)]
        return self.model.fit(**pixels, **self._tokens(texts)).tolist()

    def match(self, ask: Ask, texts: Sequence[str]) -> Tensor:
        """How well each text fits the medium of `ask` as the match head sees both: logits (texts,) in float32."""
        kind = "video" if ask.video else "image"
        path, network = path_of("retrieve", kind), self.model.model
        shown: Any = self.prepare(kind, list(ask.video) if ask.video else ask.images[0])
        pixels = self._pixels(kind, [shown])
        vision = network.see(pixels.get("pixel_values"), pixels.get("pixel_values_videos"), path)
        # benchmarks hold texts beyond the limit; they are cut here as where they are embedded
        words = self._tokens(texts, truncation=True)
        read, mask = network.read(words["input_ids"], words["attention_mask"], path=path)
        return self.model.match(read, mask, vision)[:, 1].float()

    def ground(self, prepared: Sequence[Tensor], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """A box for each phrase: x0, y0, x1, y1 as shares of width and height, cut at the rim."""
        told = self._is_told("ground", "image")
        asked = self._tokens([instruct("ground", "image", phrase, enabled=told) for phrase in phrases])
        boxes = self.grounder.ground(**self._pixels("image", prepared), **asked)
        return [(x0, y0, x1, y1) for x0, y0, x1, y1 in corners(boxes).clamp(0, 1).tolist()]

    def classify(
        self, kind: str, prepared: Sequence[Any], labels: Sequence[str] | None
    ) -> list[list[tuple[str, float]]]:
        """Labels by similarity, or by their likelihood as what is written, best first. Raises ValueError for none.

        A model that was never told to classify is asked for a caption.
        """
        if labels is None:
            raise ValueError(f"expected labels to choose from for {self.name}, got none; give some")
        if kind == "text":
            return self._ranked(labels, **self._tokens([instruct("classify", kind, text) for text in prepared]))
        if self.name not in COMPARING:
            asked = self._told("classify", kind, len(prepared)) or self._told("caption", kind, len(prepared))
            return self._ranked(labels, **self._pixels(kind, prepared), **asked)
        features = getattr(self.model, f"get_{kind}_features")(**self._pixels(kind, prepared))
        texts = self.model.get_text_features(**self._tokens(labels))
        return best_first((features @ texts.T / self.model.temperature()).float().softmax(-1), labels)

    def _ranked(
        self, answers: Sequence[str], options: Mapping[str, Any] | None = None, /, **inputs: Tensor
    ) -> list[list[tuple[str, float]]]:
        """Every answer with its probability, best first, for each item of `inputs`; options: of `rank_answers`."""
        targets = self.processor.answers(answers)
        ids, mask = (targets[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        found = self.writer.rank_answers(answer_ids=ids, answer_mask=mask, **inputs, **(options or {}))
        rows = zip(found.indices.tolist(), found.probabilities.tolist(), strict=True)
        return [[(answers[i], share) for i, share in zip(*row, strict=True)] for row in rows]

    def _asked(self, kind: str, questions: Sequence[str]) -> list[str]:
        """Questions as the model was trained to be asked them."""
        told = self._is_told("answer", kind)
        return [instruct("answer", kind, question, enabled=told) for question in questions]

    def _is_told(self, task: str, kind: str) -> bool:
        """Whether training told the model what to do in this cell of `composition.TEMPLATES`."""
        told = getattr(self.model.config, "instructions", False)
        if isinstance(told, bool):  # as written before configurations listed them: what was sent then
            return told and (task, kind) in _SENT
        return f"{task} {kind}" in told

    def _told(self, task: str, kind: str, count: int) -> dict[str, Tensor]:
        """The instruction of a task without a text as inputs of `count` items; nothing where training never gave it."""
        return self._tokens([instruct(task, kind)] * count) if self._is_told(task, kind) else {}

    def _pixels(self, kind: str, prepared: Sequence[Tensor]) -> dict[str, Tensor]:
        """Prepared items as one batch under the name of their kind, on the device and in the type of the model."""
        return {_PIXELS[kind]: torch.stack(list(prepared)).to(self.model.device, self.model.dtype)}

    def _tokens(self, texts: Sequence[str], pairs: Sequence[str] | None = None, **cut: bool) -> dict[str, Tensor]:
        """Texts as tensors on the device. Raises ValueError for ids beyond the vocabulary of the model."""
        tokens = self.processor.tokenize(texts, pairs, **cut)
        known = getattr(self.model.config, "vocab_size", None)
        if known is not None and int(tokens["input_ids"].max()) >= known:
            raise ValueError(
                f"expected ids below {known}, got a vocabulary of {len(self.processor.tokenizer)}; save the processor "
                "with the vocabulary of the model"
            )
        return {name: value.to(self.model.device) for name, value in tokens.items()}


def _seen(ask: Ask) -> list[Any]:
    """Pictures or frames of a question."""
    return [*ask.images, *ask.video]


class MPlug2HeadSkills(DecidingSkills, MPlug2Skills):
    """Classes of images, clips or texts, and of texts beside images (NLVR2, SNLI-VE)."""

    released: Mapping[QuestionKind, tuple[str, ...]] = MappingProxyType(
        {"statement": ("False", "True"), "entailment": ("contradiction", "neutral", "entailment")}
    )
    """mPLUG's classes (specification evaluation, section 2)."""

    def __init__(self, model: Any, processor: MPlug2Processor) -> None:
        super().__init__(model, processor)
        self.labels = named_labels(model.config)
        self.num_images = model.config.num_images if getattr(model.config, "task", None) == "compare" else 1

    def prepare(self, kind: str, value: Any) -> Any:
        """As `MPlug2Skills`; several images of one item -> (images, 3, side, side), a pair of texts stays."""
        if kind == "image" and self.num_images > 1:
            return torch.stack([self.processor.pixels(one) for one in value])
        return value if kind == "text" else MPlug2Skills.prepare(self, kind, value)

    def outputs(self, kind: str, prepared: Sequence[Any], words: Sequence[str] | None) -> Tensor:
        """Logits (n, classes) in float32."""
        pixels = {} if kind == "text" else self._pixels(kind, prepared)
        if kind == "text" and not isinstance(prepared[0], str):
            words, pairs = (list(texts) for texts in zip(*prepared))
        else:
            words, pairs = prepared if kind == "text" else words, None
        # benchmarks hold texts beyond the limit; an assistant has refused them before
        text = {} if words is None else self._tokens(words, pairs, truncation=True)
        return self.model(**text, **pixels).logits.float()


def skills(model: Any, processor: MPlug2Processor) -> MPlug2Skills:
    """The skills of a model: those of a head, or those of what writes, compares or grounds."""
    return (MPlug2HeadSkills if type(model).__name__.endswith("Classification") else MPlug2Skills)(model, processor)
