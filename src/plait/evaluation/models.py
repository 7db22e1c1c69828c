"""Models behind a few methods, so that ours and peers stand in the same table.

    plait DIR | official file | hf:DIR -> open_model -> an object with the methods of its capabilities

Every model has `name`, `family`, `fingerprint` (equal for equal weights), `capabilities`, and, by capability:

    embed               modalities, embed(items) -> unit vectors (n, dim)
    generate, text      asking (`plait.types.Asks`), prompt(ask) -> the text that is read, generate(asks, decoding) ->
                        replies; log_likelihood(pairs of text and continuation) where it has one
    classify            class_scores(media | texts | pairs) -> scores (n, classes)
    decide              class_words(kind of question), decide(asks) -> scores (n, classes), the highest first choice
    ground              ground(asks) -> boxes (n, 4): x1, y1, x2, y2 as fractions of width and height
    detect, segment     lists of {"label", "score", "box" in pixels}; classes (height, width) uint8
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.assistant import Assistant
from plait.embedder import Embedder, parts_of
from plait.errors import no_code_of
from plait.evaluation.base import Capability
from plait.evaluation.peers import (
    Ask,
    Classifier,
    Detector,
    Named,
    Segmenter,
    TextGenerator,
    home,
    kinds_of,
)  # fmt: skip
from plait.generation.talking import TalkingSkills
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.models import auto, locate
from plait.reading import read_json
from plait.types import Decoding, QuestionKind, Sample

COMPARING = ("MPlug2ForRetrieval", "MPlug2ForPreTraining")
"""Classes of mPLUG-2 that map media and texts into one space."""


def open_model(spec: str | Path, wanted: Iterable[Capability], adapter: str | Path | None = None) -> Any:
    """Open a model as what a task can use.

    Args:
        spec: a model directory, a hub id (`hf:` in front of either is accepted) or an official checkpoint of
            ours.
        wanted: capabilities that the task can use, best first.
        adapter: directory of a LoRA trained on a model of ours.

    Returns:
        An object with the methods of its capabilities, see above.

    Raises:
        ValueError: where the model has none of them, and for a LoRA beside a peer.
    """
    place, wanted = locate(spec), list(wanted)
    path = place / "config.json"
    config = read_json(path) if path.is_file() else {}
    if place.is_file() or config.get("model_type") in auto.FAMILIES:
        model = open_ours(place, config, wanted, adapter)
        kinds = model.capabilities
    else:
        model, kinds = None, kinds_of(config, place)
    chosen = next((kind for kind in wanted if kind in kinds), None)
    if chosen is None:
        can = " or ".join(kinds) or "nothing"
        raise ValueError(f"expected a model that can {' or '.join(wanted)}, got {place}, which can {can}")
    if model is not None:
        return model
    if adapter is not None:
        raise ValueError(f"expected a model of Plait for the adapter {adapter}, got {place}; merge it with PEFT first")
    with no_code_of(place):
        return PEERS[chosen](str(place), config)


def open_ours(
    place: Path, config: Mapping[str, Any], wanted: Sequence[Capability], adapter: str | Path | None = None
) -> Any:
    """A model of our families as what its class can do.

    Args:
        place: its directory or an official checkpoint.
        config: its config.json, empty for an official checkpoint.
        wanted: decides for a class that can embed and talk.
        adapter: a LoRA to be merged in memory.
    """
    # float32 on a CPU, where bfloat16 is slower
    pair = auto.load(place, adapter=adapter, device=home(), dtype=torch.float32 if home() == "cpu" else None)
    name, kind, family = str(place), type(pair[0]).__name__, pair[0].config.model_type
    config = {**config, "model_type": family}
    if kind == "OnePeaceForClassification":
        return OnePeaceHead(name, config, pair)
    if kind == "MPlug2ForSequenceClassification":
        return MPlug2Head(name, config, pair)
    if auto.skills_class(pair[0]) is None or (kind in COMPARING and "embed" in wanted):
        return EmbedderModel(name, config, Embedder(pair))
    if isinstance(auto.skills(*pair), TalkingSkills):
        return Talker(name, config, pair)
    return AssistantModel(name, config, Assistant(pair))


class EmbedderModel:
    """`plait.Embedder` under the name of its directory.

    Args:
        place, config: the directory and its config.json.
        embedder: an open one; without it the directory is opened.
    """

    capabilities: tuple[Capability, ...] = ("embed",)

    def __init__(self, place: str, config: Mapping[str, Any], embedder: Embedder | None = None) -> None:
        self.embedder = embedder or Embedder(place)
        self.name, self.family = Path(place).name, str(config.get("model_type", "embedder"))
        self.modalities = self.embedder.accepts

    @property
    def fingerprint(self) -> str:
        """Hash of configuration and weights."""
        return self.embedder.fingerprint

    def embed(self, items: Sequence[Any]) -> np.ndarray:
        """Unit vectors (n, dim)."""
        return self.embedder.embed(items, show_progress=False)


class Talker(TextGenerator):
    """A model of ours that talks: asked as its family's skills say.

    Args:
        place, config: the directory and its config.json.
        pair: model and processor, already open.
    """

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        model, self.processor = pair
        # not TextGenerator's own, which would open the directory through transformers
        Named.__init__(self, place, config, model.eval())
        self.asking = auto.skills(model, self.processor)
        self.tokenizer = self.processor.tokenizer
        if self.tokenizer.pad_token is None and self.tokenizer.eos_token is not None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def inputs(self, asks: Sequence[Ask]) -> Mapping[str, Any]:
        """Our processors take nested pictures and pad by themselves."""
        pictures = [[load_image(image) for image in ask.images] for ask in asks]
        return self.processor(images=pictures, text=[self.prompt(ask) for ask in asks], return_tensors="pt")


class AssistantModel(Named):
    """A model of ours with skills (`plait.Assistant`): captions, answers, boxes and classes of its head.

    Several pictures are one clip.

    Args:
        place, config: the directory and its config.json.
        assistant: an open one; without it the directory is opened.
    """

    def __init__(self, place: str, config: Mapping[str, Any], assistant: Assistant | None = None) -> None:
        self.assistant = assistant or Assistant(place)
        self.asking = self.assistant.skills
        super().__init__(place, config, self.assistant.model)
        tasks = set(self.assistant.tasks)
        known: dict[Capability, bool] = {
            "generate": bool({"caption", "answer"} & tasks),
            "ground": "ground" in tasks,
            "classify": "classify" in tasks and bool(self.assistant.skills.labels),
        }
        self.capabilities = tuple(name for name, can in known.items() if can)

    def prompt(self, ask: Ask) -> str:
        """The question as the family lays it out; nothing for a caption."""
        return self.asking.layout(ask.words, len(ask.images))

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """Answers, or captions where there are no words."""
        options: dict[str, Any] = {
            "num_beams": decoding.num_beams,
            "min_length": decoding.min_new_tokens,
            "max_length": decoding.max_new_tokens,
        }
        # a tuple of pictures is one clip to `plait.Assistant`, a list would be several items
        clips = (tuple(load_image(image) for image in ask.images) for ask in asks)
        items = [clip if len(clip) > 1 else ask.images[0] for clip, ask in zip(clips, asks, strict=True)]
        if not any(ask.words for ask in asks):
            return self.assistant.caption(items, **options)
        return self.assistant.answer(items, [ask.words for ask in asks], **options)

    def ground(self, asks: Sequence[Ask]) -> np.ndarray:
        """Boxes (n, 4) as fractions of width and height."""
        pictures = [load_image(ask.images[0]) for ask in asks]
        boxes = self.assistant.ground(pictures, [ask.words for ask in asks])
        # width and height twice: x and y of both corners
        return np.array([np.array(box) / (2 * picture.size) for box, picture in zip(boxes, pictures)])

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Probabilities (n, classes) in the order of the head's labels."""
        order = {label: i for i, label in enumerate(self.assistant.skills.labels)}
        scores = np.zeros((len(inputs), len(order)))
        items = [Sample("text", text=one) if isinstance(one, str) else one for one in inputs]
        for row, found in enumerate(self.assistant.classify(items)):
            for label, share in found:
                scores[row, order[label]] = share
        return scores


BOX = 4
"""Outputs of a grounding head."""


class _Head(Named):
    """A model of ours with a classification head.

    released: what the classes of a published head mean, whose checkpoints hold numbers alone.
    """

    released: Mapping[QuestionKind, tuple[str, ...]]

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        model, self.processor = pair
        super().__init__(place, config, model.eval())
        names = model.config.id2label or {}
        self._names = tuple(str(names[key]) for key in sorted(names))

    def class_words(self, kind: QuestionKind) -> tuple[str, ...]:
        """What the classes mean: as the configuration names them, else as the family's release orders them.

        Raises:
            ValueError: where neither tells.
        """
        # LABEL_0 and so on is what transformers fills in where nobody named the classes
        if self._names and not all(word.startswith("LABEL_") for word in self._names):
            return self._names
        if (known := self.released.get(kind)) is None:
            raise ValueError(
                f"expected names of the classes in id2label of {self.name}, got none; "
                "write the answers into config.json"
            )
        return known

    def _scores(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Logits (n, classes) of prepared inputs, float32 on the host."""
        with torch.inference_mode():
            found = self.model(**self.placed(inputs))
        return found["logits"].float().cpu().numpy()


class OnePeaceHead(_Head):
    """ONE-PEACE with a head: answers, statements about two pictures, sounds and their tags, choices, boxes."""

    released = {"statement": ("True", "False")}  # noqa: RUF012

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        super().__init__(place, config, pair)
        self.capabilities: tuple[Capability, ...] = ("decide",)
        if not self.model.config.use_two_images:
            self.capabilities = ("classify", "decide")
        # nothing else tells a grounding head apart: a head of four classes is offered both
        if self.model.config.num_classes == BOX:
            self.capabilities = ("ground", *self.capabilities)

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """One medium or text each, all of one kind -> scores (n, classes), before any softmax or sigmoid."""
        parts = [parts_of(one)[0] for one in inputs]
        kind = parts[0].modality
        if kind == "text":
            return self._scores(self.processor(text=[part.value for part in parts]))
        if kind == "image":
            return self._scores(self.processor(images=[load_image(part.value) for part in parts]))
        if kind == "audio":
            read = self._heard([part.value for part in parts])
            return self._scores({"input_values": read["input_values"], "audio_attention_mask": read["attention_mask"]})
        raise ValueError(f"expected pictures, sounds or texts for {self.name}, got {kind}: {parts[0].name}")

    def decide(self, asks: Sequence[Ask]) -> np.ndarray:
        """Words beside one picture, two, or a sound -> scores (n, classes). Words start with a space, as released."""
        words = [f" {ask.words.strip()}" for ask in asks]
        if asks[0].audio is not None:
            read = self._heard([ask.audio for ask in asks])
            text = self.processor(text=words)
            heard = {"input_values": read["input_values"], "audio_attention_mask": read["attention_mask"]}
            return self._scores({**text, **heard})
        count = 2 if self.model.config.use_two_images else 1
        if wrong := next((ask for ask in asks if len(ask.images) != count), None):
            raise ValueError(f"expected {count} pictures per item for {self.name}, got {len(wrong.images)}")
        inputs = dict(self.processor(images=[load_image(ask.images[0]) for ask in asks], text=words))
        if count == 2:
            second = self.processor(images=[load_image(ask.images[1]) for ask in asks])
            inputs["second_pixel_values"] = second["pixel_values"]
        return self._scores(inputs)

    def ground(self, asks: Sequence[Ask]) -> np.ndarray:
        """Boxes (n, 4) as fractions of width and height: the sigmoid of the four outputs."""
        return 1 / (1 + np.exp(-self.decide(asks)))

    def _heard(self, sounds: Sequence[Any]) -> Mapping[str, Any]:
        """Sounds as the model takes them: input_values and their mask, at its sampling rate."""
        rate = self.processor.sampling_rate
        return self.processor(audio=[load_audio(one, sampling_rate=rate) for one in sounds], sampling_rate=rate)


class MPlug2Head(_Head):
    """mPLUG-2 for texts and pairs of texts (GLUE), and for statements about pictures (NLVR2, SNLI-VE)."""

    released = {  # noqa: RUF012
        "statement": ("False", "True"),
        "entailment": ("contradiction", "neutral", "entailment"),
    }

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        super().__init__(place, config, pair)
        reads_text = self.model.config.task in (None, "classify")
        self.capabilities: tuple[Capability, ...] = ("classify",) if reads_text else ("decide",)

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Scores of texts or pairs of texts.

        Returns probabilities (n, classes), or one score (n, 1) of a head for numbers.
        """
        first, second = zip(*((one, None) if isinstance(one, str) else one for one in inputs))
        pairs = None if second[0] is None else list(second)
        return _shares(self._scores(self.processor.tokenize(list(first), pairs, truncation=True)))

    def decide(self, asks: Sequence[Ask]) -> np.ndarray:
        """Statements, each about as many pictures as the model compares -> probabilities (n, classes)."""
        count = self.model.config.num_images if self.model.config.task == "compare" else 1
        if wrong := next((ask for ask in asks if len(ask.images) != count), None):
            raise ValueError(f"expected {count} pictures per item for {self.name}, got {len(wrong.images)}")
        pictures = [torch.stack([self.processor.pixels(load_image(image)) for image in ask.images]) for ask in asks]
        pixels = torch.stack(pictures)  # (n, count, 3, side, side)
        inputs = self.processor.tokenize([ask.words for ask in asks], truncation=True)
        return _shares(self._scores({**inputs, "pixel_values": pixels if count > 1 else pixels[:, 0]}))


def _shares(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes; a single output stays the number it is."""
    if logits.shape[1] == 1:
        return logits
    # less the largest, so that exp never overflows
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


PEERS: dict[Capability, Any] = {
    "embed": EmbedderModel, "generate": TextGenerator, "text": TextGenerator, "classify": Classifier,
    "detect": Detector, "segment": Segmenter,
}  # fmt: skip
"""Capability -> what opens the directory of a peer."""
