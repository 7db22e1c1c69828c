"""What a model with a classification head offers: classes of media and texts, and of words beside media.

asks -> medium prepared by the family -> `outputs` of its head -> scores | words of the classes, best first

A family writes `prepare` and `outputs`; everything else is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from plait.generation.asking import Asking
from plait.types import Ask, QuestionKind

Ranked = list[list[tuple[str, float]]]


class DecidingSkills(Asking):
    """What a `plait.Assistant` and an evaluation may ask a head; see `plait.types.Skills`.

    released: what the classes of published heads mean, whose checkpoints hold numbers alone. num_images: images of
    one item. is_multi_label: several classes may hold at once, so that each has a probability of its own.
    """

    released: Mapping[QuestionKind, tuple[str, ...]] = MappingProxyType({})
    labels: tuple[str, ...] = ()
    num_images = 1
    is_multi_label = False

    def prepare(self, kind: str, value: Any) -> Any:
        """One decoded item on the host. A family writes it."""
        raise NotImplementedError

    def outputs(self, kind: str, prepared: Sequence[Any], words: Sequence[str] | None) -> Tensor:
        """Outputs of the head (n, classes), float32, before any softmax. A family writes it.

        Args:
            kind: of the items: text, image, video or audio.
            prepared: items as `prepare` gave them.
            words: beside each, None for items alone.
        """
        raise NotImplementedError

    def class_words(self, kind: QuestionKind) -> tuple[str, ...]:
        """What the classes mean: as the configuration names them, else as the release orders them.

        Raises:
            ValueError: where neither tells.
        """
        if not self.labels and kind not in self.released:
            raise ValueError(
                f"expected names of the classes in id2label for {kind} questions, got none; "
                "write the answers into config.json"
            )
        return self.labels or self.released[kind]

    def scores(self, asks: Sequence[Ask]) -> Tensor:
        """Outputs of the head (n, classes) for questions about media of one kind, media alone, texts or pairs of texts.

        Raises:
            ValueError: for another number of images than the model compares.
        """
        first = asks[0]
        kind = "audio" if first.audio is not None else "video" if first.video else "image" if first.images else "text"
        values: list[Any] = []
        for ask in asks:
            if kind == "image":
                if len(ask.images) != self.num_images:
                    raise ValueError(f"expected {self.num_images} pictures per item, got {len(ask.images)}")
                values.append(list(ask.images) if self.num_images > 1 else ask.images[0])
            elif kind == "text":
                values.append(ask.words if ask.second is None else (ask.words, ask.second))
            else:
                values.append(list(ask.video) if kind == "video" else ask.audio)
        words = [ask.words for ask in asks] if kind != "text" and first.words else None
        return self.outputs(kind, [self.prepare(kind, value) for value in values], words)

    def answer(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """The word of the best class for each question about its item. options: none is read, nothing is written."""
        return [row[0][0] for row in self.rank(kind, prepared, questions, None)]

    def rank(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], answers: Sequence[str] | None
    ) -> Ranked:
        """Classes for each question, best first. answers: their words, where the configuration names none."""
        outputs = self.outputs(kind, prepared, questions)
        known = next((words for words in self.released.values() if len(words) == outputs.shape[1]), None)
        return self._named(outputs, answers or (None if self.labels else known))

    def classify(self, kind: str, prepared: Sequence[Any], labels: Sequence[str] | None) -> Ranked:
        """Classes of items alone, best first. labels: their words, where the configuration names none."""
        return self._named(self.outputs(kind, prepared, None), labels)

    def _named(self, outputs: Tensor, given: Sequence[str] | None) -> Ranked:
        """Shares of all classes with their words, best first.

        given: by whoever asks, or None. Raises ValueError for another number of words than classes, and for words
        beside those of the configuration.
        """
        count = outputs.shape[1]
        words = self.labels or tuple(given or (f"LABEL_{i}" for i in range(count)))
        if len(words) != count or (given is not None and tuple(given) != words):
            own = f"the words of the head ({', '.join(self.labels)[:60]})" if self.labels else f"{count} words"
            raise ValueError(
                f"expected {own}, got {len(given or ())}; leave them out, or name every class in its order"
            )
        return best_first(outputs.sigmoid() if self.is_multi_label else outputs.softmax(-1), words)


def named_labels(config: Any) -> tuple[str, ...]:
    """The names in `id2label` of a configuration, in the order of the classes; none where nobody named them."""
    names = tuple(str(config.id2label[i]) for i in sorted(config.id2label or {}))
    # LABEL_0 and so on is what transformers fills in
    return () if all(name.startswith("LABEL_") for name in names) else names


def best_first(shares: Tensor, words: Sequence[str]) -> Ranked:
    """Words of each item with their shares (items, words), best first; equals keep their order."""
    found, places = shares.sort(dim=-1, descending=True, stable=True)
    rows = zip(places.tolist(), found.tolist(), strict=True)
    return [[(words[i], share) for i, share in zip(*row, strict=True)] for row in rows]
