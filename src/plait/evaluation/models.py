"""Models behind small protocols, so that ours and peers stand in the same table.

plait DIR | hf:DIR -> open_model -> Embeds | Generates | Classifies | Detects | Segments

Adapters of models to the protocols of `plait.evaluation.models`: ours through `plait.models.auto`, peers through
transformers' Auto classes.

Trained heads of our families that read words beside a picture, several pictures or a sound.

Ask(words, pictures | sound) | one medium | a text | a pair of texts -> inputs of the family -> scores of classes
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch

from plait.assistant import Assistant
from plait.embedder import Embedder, parts_of
from plait.embedder.towers import fingerprint
from plait.errors import no_code_of
from plait.evaluation.tasks import Capability, Decoding
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.types import Modality, Sample


@dataclass(frozen=True)
class Ask:
    """One question: its words, and pictures (files, bytes or PIL images) in their order, or a sound (a file)."""

    words: str
    images: tuple[Any, ...] = ()
    audio: Any = None


class Model(Protocol):
    """What every model tells: a name for reports, its family, a hash of its weights, what it can do."""

    name: str
    family: str
    capabilities: tuple[Capability, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights."""
        ...


@runtime_checkable
class Embeds(Model, Protocol):
    """Maps media and texts into one space."""

    modalities: tuple[Modality, ...]

    def embed(self, items: Sequence[Any]) -> np.ndarray:
        """Items as `plait.Embedder` takes them -> unit vectors (n, dim)."""
        ...


@runtime_checkable
class Generates(Model, Protocol):
    """Answers in words."""

    def prompt(self, ask: Ask) -> str:
        """The exact text that the model reads, placeholders included."""
        ...

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """One reply per question, without special tokens."""
        ...


@runtime_checkable
class Ranks(Model, Protocol):
    """Tells how likely it finds continuations of a text."""

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """(text, continuation) -> summed log-probability of the continuation's tokens."""
        ...


@runtime_checkable
class Classifies(Model, Protocol):
    """Scores the classes of a trained head."""

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Media, texts or pairs of texts -> probabilities (n, classes)."""
        ...


@runtime_checkable
class Decides(Model, Protocol):
    """Scores the classes of a trained head for words about media. class_words: what the classes are called."""

    class_words: tuple[str, ...]

    def decide(self, asks: Sequence[Ask]) -> np.ndarray:
        """Words with pictures or a sound -> scores (n, classes), the highest first choice."""
        ...


@runtime_checkable
class Grounds(Model, Protocol):
    """Boxes for words, from a grounding head."""

    def ground(self, asks: Sequence[Ask]) -> np.ndarray:
        """One picture and its words each -> boxes (n, 4): x1, y1, x2, y2 as fractions of width and height."""
        ...


@runtime_checkable
class Detects(Model, Protocol):
    """Boxes of known classes."""

    def detect(self, images: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """Per picture a list of {"label", "score", "box": [x1, y1, x2, y2] in pixels}."""
        ...


@runtime_checkable
class Segments(Model, Protocol):
    """A class for every pixel."""

    def segment(self, images: Sequence[Any]) -> list[np.ndarray]:
        """Per picture its classes (height, width) uint8."""
        ...


PROTOCOLS: dict[Capability, type] = {
    "embed": Embeds, "generate": Generates, "text": Generates, "classify": Classifies, "decide": Decides,
    "ground": Grounds, "detect": Detects, "segment": Segments,
}  # fmt: skip


def open_model(spec: str | Path, wanted: Iterable[Capability], adapter: str | Path | None = None) -> Any:
    """Open a model directory, a hub id (`hf:` in front of either is accepted) or an official checkpoint of ours.

    adapter: directory of a LoRA trained on a model of ours. wanted: capabilities that the task can use, best first.
    Raises ValueError where the model has none of them.
    """
    from plait.embedder.towers import locate

    pass

    place, wanted = locate(str(spec).removeprefix("hf:")), list(wanted)
    config = _config(place)
    if place.is_file() or config.get("model_type") in OURS:
        opened = open_ours(place, config, wanted, adapter)
        return _able(opened, opened.capabilities, wanted, place)
    kinds = kinds_of(config, place)
    chosen = next((kind for kind in wanted if kind in kinds), None)
    if chosen is None:
        return _able(None, kinds, wanted, place)
    if adapter is not None:
        raise ValueError(f"expected a model of Plait for the adapter {adapter}, got {place}; merge it with PEFT first")
    with no_code_of(place):
        return ADAPTERS[chosen](str(place), config)


def _able(model: Any, kinds: Sequence[Capability], wanted: Sequence[Capability], place: Path) -> Any:
    if not set(kinds) & set(wanted):
        raise ValueError(
            f"expected a model that can {' or '.join(wanted)}, got {place}, which can {' or '.join(kinds) or 'nothing'}"
        )
    return model


def _config(place: Path) -> dict[str, Any]:
    path = place / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


_HEADS: tuple[tuple[str, Capability], ...] = (
    ("ForImageClassification", "classify"),
    ("ForSequenceClassification", "classify"),
    ("ForAudioClassification", "classify"),
    ("ForVideoClassification", "classify"),
    ("ForObjectDetection", "detect"),
    ("ForSemanticSegmentation", "segment"),
)
OURS = ("one_peace", "mplug2", "mplug_owl", "mplug_owl2")
"""Families that `plait.models.auto` opens."""


def kinds_of(config: dict[str, Any], place: Path) -> tuple[Capability, ...]:
    """What a peer can do, from its configuration; every kind that applies."""
    if (place / "modules.json").is_file():
        return ("embed",)
    model_type = config.get("model_type", "")
    name = (config.get("architectures") or [""])[0]
    for ending, kind in _HEADS:
        if name.endswith(ending):
            return (kind,)
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return ("generate", "text")
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return ("text",)
    return ("embed",)


ONE_PICTURE = {"blip", "blip-2", "instructblip", "git", "pix2struct", "kosmos-2", "vision-encoder-decoder"}
"""Peers that take exactly one picture: several (frames of a video) are laid out in a grid."""
PLACES_ITSELF = ONE_PICTURE | {"paligemma", "florence2", "fuyu"}
"""Peers whose processor puts the picture in front of the words."""
COMPARING = ("MPlug2ForRetrieval", "MPlug2ForPreTraining")
"""Classes of mPLUG-2 that map media and texts into one space."""

Layout = Callable[[str, int], str]
LAYOUTS: dict[str, Layout] = {
    "mplug_owl": lambda words, pictures: "".join(["Human: <image>\n"] * pictures) + f"Human: {words}\nAI: ",
    "mplug_owl2": lambda words, pictures: f"USER: {'<|image|>' * pictures}{words} ASSISTANT: ",
}
"""Our families: (words, number of pictures) -> the text that the release feeds."""


def home() -> str:
    """Where models run: the first GPU when there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Named:
    """Name, family and hash of a model that lies in a directory."""

    capabilities: tuple[Capability, ...] = ()

    def __init__(self, place: str, config: Mapping[str, Any], model: Any) -> None:
        self.name = Path(place).name
        self.family = str(config.get("model_type") or getattr(getattr(model, "config", None), "model_type", "unknown"))
        self.model = model.to(home())
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of configuration and weights."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs on the model's device, floating-point ones in its type."""
        first = next(self.model.parameters())
        tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        return {k: v.to(first.device, first.dtype if v.is_floating_point() else None) for k, v in tensors.items()}


class EmbedderModel:
    """`plait.Embedder` under the name of its directory."""

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


class TextGenerator(Named):
    """Any image-text-to-text model, ours or a peer, and language models alone."""

    capabilities: tuple[Capability, ...] = ("generate", "text")

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any] | None = None) -> None:
        model, self.processor = pair or _load_generator(place, config)
        super().__init__(place, config, model.eval())
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if self.family not in OURS and not getattr(model.config, "is_encoder_decoder", False):
            self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None and self.tokenizer.eos_token is not None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def prompt(self, ask: Ask) -> str:
        """The text as it is fed: the release's layout for our families, the chat template of a peer that has one."""
        pictures = len(ask.images)
        if self.family in LAYOUTS:
            return LAYOUTS[self.family](ask.words, pictures)
        if pictures and self.family in PLACES_ITSELF:
            return ask.words
        if not pictures and not hasattr(self.processor, "image_processor"):
            return ask.words  # a language model: few-shot prompts are text to be continued
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}] * pictures + [{"type": "text", "text": ask.words}]
            chat = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return f"{getattr(self.processor, 'image_token', '<image>')}\n" * pictures + ask.words

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """One reply per question; questions with equally many pictures go through the model together."""
        groups: dict[int, list[int]] = defaultdict(list)
        for i, ask in enumerate(asks):
            groups[len(ask.images)].append(i)
        replies = [""] * len(asks)
        for members in groups.values():
            for i, reply in zip(members, self._generate([asks[i] for i in members], decoding)):
                replies[i] = reply
        return replies

    def _generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        inputs = self.placed(self._inputs(asks))
        options: dict[str, Any] = {"length_penalty": decoding.length_penalty} if decoding.num_beams > 1 else {}
        with torch.inference_mode():
            made = self.model.generate(
                **inputs,
                do_sample=False,
                num_beams=decoding.num_beams,
                max_new_tokens=decoding.max_new_tokens,
                min_new_tokens=decoding.min_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        read = inputs.get("input_ids")
        if read is not None and made.shape[1] > read.shape[1] and torch.equal(made[:, : read.shape[1]], read):
            made = made[:, read.shape[1] :]
        return self.tokenizer.batch_decode(made, skip_special_tokens=True)

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Summed log-probability (float32) of every continuation after its text, from one forward pass of the batch."""
        heads = [self.tokenizer(text)["input_ids"] for text, _ in pairs]
        tails = [self.tokenizer(tail, add_special_tokens=False)["input_ids"] for _, tail in pairs]
        longest = max(len(head) + len(tail) for head, tail in zip(heads, tails))
        ids = torch.full((len(pairs), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, (head, tail) in enumerate(zip(heads, tails)):
            ids[row, : len(head) + len(tail)] = torch.tensor(head + tail)  # padded on the right: nothing attends to it
            mask[row, : len(head) + len(tail)] = 1
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits.float()
        chances = logits.log_softmax(-1).cpu()
        return [
            float(chances[row, len(head) - 1 + torch.arange(len(tail)), torch.tensor(tail)].sum())
            for row, (head, tail) in enumerate(zip(heads, tails))
        ]

    def _inputs(self, asks: Sequence[Ask]) -> Mapping[str, Any]:
        texts = [self.prompt(ask) for ask in asks]
        pictures = [[load_image(image) for image in ask.images] for ask in asks]
        if self.family in OURS:
            return self.processor(images=pictures, text=texts, return_tensors="pt")
        if not pictures[0]:
            return self.tokenizer(texts, return_tensors="pt", padding=True)
        if self.family in ONE_PICTURE:
            pictures = [[grid(row)] for row in pictures]
        nested = pictures if len(pictures[0]) > 1 else [row[0] for row in pictures]
        return self.processor(images=nested, text=texts, return_tensors="pt", padding=True)


def _load_generator(place: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    model_type = config.get("model_type")
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VISUAL

    if model_type in VISUAL:
        model: Any = AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=False)
        return model, AutoProcessor.from_pretrained(place, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False)
    return model, AutoTokenizer.from_pretrained(place, trust_remote_code=False)


def grid(pictures: Sequence[Any]) -> Any:
    """Pictures in reading order in one, as square as they can be laid out, each scaled to the size of the first."""
    from PIL import Image

    if len(pictures) == 1:
        return pictures[0]
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((width, height)), (i % columns * width, i // columns * height))
    return sheet


class AssistantModel(Named):
    """A model of ours with skills (`plait.Assistant`): captions, answers, boxes and classes of its head.

    Several pictures are one clip. The assistant words nothing: what is asked is the question itself.
    """

    def __init__(self, place: str, config: Mapping[str, Any], assistant: Assistant | None = None) -> None:
        self.assistant = assistant or Assistant(place)
        super().__init__(place, config, self.assistant.model)
        tasks = set(self.assistant.tasks)
        known: dict[Capability, bool] = {
            "generate": bool({"caption", "answer"} & tasks),
            "ground": "ground" in tasks,
            "classify": "classify" in tasks and bool(self.assistant.skills.labels),
        }
        self.capabilities = tuple(name for name, can in known.items() if can)

    def prompt(self, ask: Ask) -> str:
        """The question itself; nothing for a caption."""
        return ask.words

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """Answers, or captions where there are no words."""
        options: dict[str, Any] = {
            "num_beams": decoding.num_beams,
            "min_length": decoding.min_new_tokens,
            "max_length": decoding.max_new_tokens,
        }
        items = [_seen(ask) for ask in asks]
        if not any(ask.words for ask in asks):
            return self.assistant.caption(items, **options)
        return self.assistant.answer(items, [ask.words for ask in asks], **options)

    def ground(self, asks: Sequence[Ask]) -> np.ndarray:
        """Boxes (n, 4) as fractions of width and height."""
        pictures = [load_image(ask.images[0]) for ask in asks]
        boxes = self.assistant.ground(pictures, [ask.words for ask in asks])
        return np.array([np.array(box) / (2 * picture.size) for box, picture in zip(boxes, pictures)])

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Probabilities (n, classes) in the order of the head's labels."""
        order = {label: i for i, label in enumerate(self.assistant.skills.labels)}
        scores = np.zeros((len(inputs), len(order)))
        for row, found in enumerate(self.assistant.classify([_item(one) for one in inputs])):
            for label, share in found:
                scores[row, order[label]] = share
        return scores


def _seen(ask: Ask) -> Any:
    return tuple(load_image(image) for image in ask.images) if len(ask.images) > 1 else ask.images[0]


def _item(value: Any) -> Any:
    return Sample("text", text=value) if isinstance(value, str) else value


class Classifier(Named):
    """A transformers model with a classification head for pictures, sounds, videos or texts."""

    capabilities: tuple[Capability, ...] = ("classify",)

    def __init__(self, place: str, config: Mapping[str, Any]) -> None:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as HEARING

        head = (config.get("architectures") or [""])[0]
        hears = HEARING.get(config.get("model_type")) == head  # Wav2Vec2 and its kin call it ForSequenceClassification
        self.kind = "Audio" if hears else head.rpartition("For")[2].removesuffix("Classification")
        auto = getattr(transformers, f"AutoModelFor{self.kind}Classification")
        model = auto.from_pretrained(place, trust_remote_code=False)
        super().__init__(place, config, model.eval())
        reader = {"Sequence": "AutoTokenizer", "Audio": "AutoFeatureExtractor"}.get(self.kind, "AutoImageProcessor")
        self.reader: Any = getattr(transformers, reader).from_pretrained(place, trust_remote_code=False)
        self.is_multi_label = getattr(model.config, "problem_type", None) == "multi_label_classification"

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Media, texts or pairs of texts -> probabilities (n, classes); one score (n, 1) of a head for numbers."""
        with torch.inference_mode():
            logits = self.model(**self.placed(self._read(inputs))).logits.float()
        if logits.shape[1] == 1:
            return logits.cpu().numpy()
        return (logits.sigmoid() if self.is_multi_label else logits.softmax(-1)).cpu().numpy()

    def _read(self, inputs: Sequence[Any]) -> Mapping[str, Any]:
        if self.kind == "Sequence":
            first, second = zip(*((one, None) if isinstance(one, str) else one for one in inputs))
            pairs = None if second[0] is None else list(second)
            return self.reader(list(first), pairs, padding=True, truncation=True, return_tensors="pt")
        if self.kind == "Audio":
            from plait.media.audio import load_audio

            clips = [load_audio(one, sampling_rate=self.reader.sampling_rate) for one in inputs]
            return self.reader(clips, sampling_rate=self.reader.sampling_rate, padding=True, return_tensors="pt")
        if self.kind == "Video":
            from plait.media.video import load_frames

            frames = [load_frames(one, self.model.config.num_frames) for one in inputs]
            return self.reader(frames, return_tensors="pt")
        return self.reader([load_image(one) for one in inputs], return_tensors="pt")


class Detector(Named):
    """A transformers object detector."""

    capabilities: tuple[Capability, ...] = ("detect",)

    def __init__(self, place: str, config: Mapping[str, Any]) -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        model = AutoModelForObjectDetection.from_pretrained(place, trust_remote_code=False)
        super().__init__(place, config, model.eval())
        self.reader: Any = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)

    def detect(self, images: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """Boxes in pixels of every picture with label and score, all that the model gives."""
        pictures = [load_image(image) for image in images]
        sizes = [(picture.height, picture.width) for picture in pictures]
        with torch.inference_mode():
            outputs = self.model(**self.placed(self.reader(pictures, return_tensors="pt")))
        found = self.reader.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        names = self.model.config.id2label
        return [
            [
                {"label": names[int(label)], "score": float(score), "box": [round(float(x), 2) for x in box]}
                for label, score, box in zip(one["labels"], one["scores"], one["boxes"])
            ]
            for one in found
        ]


class Segmenter(Named):
    """A transformers model for semantic segmentation."""

    capabilities: tuple[Capability, ...] = ("segment",)

    def __init__(self, place: str, config: Mapping[str, Any]) -> None:
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        model = AutoModelForSemanticSegmentation.from_pretrained(place, trust_remote_code=False)
        super().__init__(place, config, model.eval())
        self.reader: Any = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)

    def segment(self, images: Sequence[Any]) -> list[np.ndarray]:
        """The class of every pixel (height, width) uint8, at the size of the picture."""
        pictures = [load_image(image) for image in images]
        sizes = [(picture.height, picture.width) for picture in pictures]
        with torch.inference_mode():
            outputs = self.model(**self.placed(self.reader(pictures, return_tensors="pt")))
        masks = self.reader.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return [mask.cpu().numpy().astype(np.uint8) for mask in masks]


ADAPTERS = cast(
    "dict[Capability, Callable[[str, Mapping[str, Any]], Any]]",
    {
        "embed": EmbedderModel,
        "generate": TextGenerator,
        "text": TextGenerator,
        "classify": Classifier,
        "detect": Detector,
        "segment": Segmenter,
    },
)
"""Capability -> what opens a directory."""


def open_ours(
    place: Path, config: Mapping[str, Any], wanted: Sequence[Capability], adapter: str | Path | None = None
) -> Any:
    """A model of our families, from its directory or an official checkpoint, as what its class can do.

    adapter: a LoRA to be merged in memory.
    """
    from plait.models.auto import load

    name = str(place)
    pair = load(place, adapter=adapter, device=home(), dtype=torch.float32 if home() == "cpu" else None)
    kind, family = type(pair[0]).__name__, pair[0].config.model_type
    config = {**config, "model_type": family}
    if family in LAYOUTS:
        return TextGenerator(name, config, pair)
    pass

    if kind == "OnePeaceForClassification":
        return OnePeaceHead(name, config, pair)
    if kind == "MPlug2ForSequenceClassification":
        return MPlug2Head(name, config, pair)
    if family == "one_peace" or (kind in COMPARING and "embed" in wanted):
        return EmbedderModel(name, config, Embedder(pair))
    return AssistantModel(name, config, Assistant(pair))


BOX = 4
"""Outputs of a grounding head."""


class _Head(Named):
    """A model of ours with a classification head. pair: model and processor, already open."""

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        model, self.processor = pair
        super().__init__(place, config, model.eval())
        names = model.config.id2label or {}
        self.class_words = tuple(str(names[key]) for key in sorted(names))

    def _scores(self, inputs: Mapping[str, Any]) -> np.ndarray:
        with torch.inference_mode():
            found = self.model(**self.placed(inputs))
        return found["logits"].float().cpu().numpy()


class OnePeaceHead(_Head):
    """ONE-PEACE with a head: answers, statements about two pictures, sounds and their tags, choices, boxes."""

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        super().__init__(place, config, pair)
        self.capabilities: tuple[Capability, ...] = ("decide",)
        if not self.model.config.use_two_images:
            self.capabilities = ("classify", "decide")
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
        rate = self.processor.sampling_rate
        return self.processor(audio=[load_audio(one, sampling_rate=rate) for one in sounds], sampling_rate=rate)


class MPlug2Head(_Head):
    """mPLUG-2 for texts and pairs of texts (GLUE), and for statements about pictures (NLVR2, SNLI-VE)."""

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        super().__init__(place, config, pair)
        reads_text = self.model.config.task in (None, "classify")
        self.capabilities: tuple[Capability, ...] = ("classify",) if reads_text else ("decide",)

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Texts or pairs of texts -> probabilities (n, classes); one score (n, 1) of a head for numbers."""
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
    if logits.shape[1] == 1:
        return logits
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
