"""Models of other libraries behind the same few methods as ours, opened through transformers' Auto classes.

    config.json -> kinds_of -> TextGenerator | Classifier | Detector | Segmenter

The methods are told in `plait.evaluation.models`. Nothing here runs code that a directory brings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.embedder.towers import fingerprint
from plait.errors import UsageError
from plait.generation.asking import Asking
from plait.generation.talking import lengths, likelihoods
from plait.generation.templates import write_chat
from plait.types import Ask, Asks, Capability, Decoding
from plait.weights.files import load_whole

_HEADS: tuple[tuple[str, Capability], ...] = (
    ("ForImageClassification", "classify"),
    ("ForSequenceClassification", "classify"),
    ("ForAudioClassification", "classify"),
    ("ForVideoClassification", "classify"),
    ("ForObjectDetection", "detect"),
    ("ForSemanticSegmentation", "segment"),
)
ONE_PICTURE = {"blip", "blip-2", "instructblip", "git", "pix2struct", "kosmos-2", "vision-encoder-decoder"}
"""Peers that take exactly one picture: several (frames of a video) are laid out in a grid."""
PLACES_ITSELF = ONE_PICTURE | {"paligemma", "florence2", "fuyu"}
"""Peers whose processor puts the picture in front of the words."""


def kinds_of(config: dict[str, Any], place: Path) -> tuple[Capability, ...]:
    """What a peer can do, from its configuration; every kind that applies.

    Args:
        config: its config.json.
        place: its directory; modules.json there says sentence-transformers.
    """
    if (place / "modules.json").is_file():
        return ("embed",)
    model_type = config.get("model_type", "")
    name = (config.get("architectures") or [""])[0]
    for ending, kind in _HEADS:
        if name.endswith(ending):
            return (kind,)
    # asked last: a model with a head of its own is that head
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return ("generate", "text")
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return ("text",)
    return ("embed",)


def home() -> str:
    """Where models run: the first GPU when there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Named:
    """Name, family and hash of a model that lies in a directory.

    Args:
        place: the directory, whose name the model gets.
        config: its config.json.
        model: moved to the first GPU where there is one.
    """

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
        """Where the model runs."""
        return next(self.model.parameters()).device

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors among the inputs, on the model's device, floating-point ones in its type; others are left out."""
        first = next(self.model.parameters())
        tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        return {k: v.to(first.device, first.dtype if v.is_floating_point() else None) for k, v in tensors.items()}


class PeerAsking(Asking):
    """The standard words in the chat template of a peer, where it has one.

    processor: of the peer; family: its model_type.
    """

    def __init__(self, processor: Any, family: str) -> None:
        self.processor, self.family = processor, family

    def layout(self, ask: Ask) -> str:
        """The text as it is fed, with the peer's own placeholders; frames of a video are so many images."""
        words, pictures = ask.words, len(ask.images) + len(ask.video)
        if pictures and self.family in PLACES_ITSELF:
            return words
        if not pictures and not hasattr(self.processor, "image_processor"):
            return words  # a language model: few-shot prompts are text to be continued
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}] * pictures + [{"type": "text", "text": words}]
            return write_chat(self.processor, [{"role": "user", "content": content}])
        return f"{getattr(self.processor, 'image_token', '<image>')}\n" * pictures + words


class TextGenerator(Named):
    """Any image-text-to-text model, and language models alone.

    Args:
        place, config: the directory and its config.json.
    """

    capabilities: tuple[Capability, ...] = ("generate", "text")

    asking: Asks

    def __init__(self, place: str, config: Mapping[str, Any]) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VISUAL

        is_visual = config.get("model_type") in VISUAL
        kind: Any = AutoModelForImageTextToText if is_visual else AutoModelForCausalLM
        reader: Any = AutoProcessor if is_visual else AutoTokenizer
        model = load_whole(kind, place)
        self.processor = reader.from_pretrained(place, trust_remote_code=False)
        super().__init__(place, config, model.eval())
        self.asking = PeerAsking(self.processor, self.family)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if not getattr(model.config, "is_encoder_decoder", False):
            # replies begin behind the last column of the batch
            self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None and self.tokenizer.eos_token is not None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def prompt(self, ask: Ask) -> str:
        """The exact text that the model reads, placeholders included."""
        return self.asking.layout(ask)

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """One reply per question; questions with equally many images go through the model together.

        Args:
            asks: in any mixture.
            decoding: greedy or beams, lengths in tokens; nothing is sampled.

        Returns:
            Replies without special tokens, in the order of the questions.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for i, ask in enumerate(asks):
            groups[len(ask.images) + len(ask.video)].append(i)
        replies = [""] * len(asks)
        pad = self.tokenizer.pad_token_id
        for members in groups.values():
            inputs = self.placed(self._inputs([asks[i] for i in members]))
            with torch.inference_mode():
                made = self.model.generate(**inputs, do_sample=False, pad_token_id=pad, **lengths(decoding))
            read = inputs.get("input_ids")
            # decoder-only models repeat what they read, encoder-decoders and some others do not
            if read is not None and made.shape[1] > read.shape[1] and torch.equal(made[:, : read.shape[1]], read):
                made = made[:, read.shape[1] :]
            for i, reply in zip(members, self.tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
                replies[i] = reply
        return replies

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Summed log-probability of every continuation after its text."""
        return likelihoods(self.model, self.tokenizer, pairs)

    def _inputs(self, asks: Sequence[Ask]) -> Mapping[str, Any]:
        """Questions with equally many pictures as the model takes them."""
        texts = [self.prompt(ask) for ask in asks]
        pictures = [[*ask.images, *ask.video] for ask in asks]
        if not pictures[0]:
            return self.tokenizer(texts, return_tensors="pt", padding=True)
        # more pictures than the model can take become one, rather than being dropped
        if self.family in ONE_PICTURE:
            pictures = [[grid(row)] for row in pictures]
        nested = pictures if len(pictures[0]) > 1 else [row[0] for row in pictures]
        return self.processor(images=nested, text=texts, return_tensors="pt", padding=True)


def grid(pictures: Sequence[Any]) -> Any:
    """Images in reading order in one, as square as they can be laid out.

    Args:
        pictures: PIL images, each scaled to the size of the first.
    """
    from PIL import Image

    if len(pictures) == 1:
        return pictures[0]
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((width, height)), (i % columns * width, i // columns * height))
    return sheet


class Classifier(Named):
    """A transformers model with a classification head for images, audio, videos or texts.

    Args:
        place, config: the directory and its config.json, whose architecture tells the kind.
    """

    capabilities: tuple[Capability, ...] = ("classify",)

    def __init__(self, place: str, config: Mapping[str, Any]) -> None:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as HEARING

        head = (config.get("architectures") or [""])[0]
        # Wav2Vec2 and its kin call it ForSequenceClassification
        hears = HEARING.get(config.get("model_type")) == head
        self.kind = "Audio" if hears else head.rpartition("For")[2].removesuffix("Classification")
        auto = getattr(transformers, f"AutoModelFor{self.kind}Classification")
        model = load_whole(auto, place)
        super().__init__(place, config, model.eval())
        reader = {"Sequence": "AutoTokenizer", "Audio": "AutoFeatureExtractor"}.get(self.kind, "AutoImageProcessor")
        self.reader: Any = getattr(transformers, reader).from_pretrained(place, trust_remote_code=False)
        self.is_multi_label = getattr(model.config, "problem_type", None) == "multi_label_classification"
        self.asking = PeerAsking(self.reader, self.family)
        self.asking.num_frames = getattr(model.config, "num_frames", self.asking.num_frames)

    def scores(self, asks: Sequence[Ask]) -> np.ndarray:
        """Probabilities (n, classes) of media, texts or pairs of texts, all of one kind; one score (n, 1) of a head for
        numbers."""
        with torch.inference_mode():
            logits = self.model(**self.placed(self._read(asks))).logits.float()
        if logits.shape[1] == 1:
            return logits.cpu().numpy()
        # several classes may hold at once: each then has a probability of its own
        return (logits.sigmoid() if self.is_multi_label else logits.softmax(-1)).cpu().numpy()

    def _read(self, asks: Sequence[Ask]) -> Mapping[str, Any]:
        """Media or texts as the reader of this kind of model prepares them."""
        if self.kind == "Sequence":
            pairs = None if asks[0].second is None else [ask.second for ask in asks]
            words = [ask.words for ask in asks]
            return self.reader(words, pairs, padding=True, truncation=True, return_tensors="pt")
        if self.kind == "Audio":
            clips, rate = [ask.audio for ask in asks], self.reader.sampling_rate
            return self.reader(clips, sampling_rate=rate, padding=True, return_tensors="pt")
        if self.kind == "Video":
            return self.reader([list(ask.video) for ask in asks], return_tensors="pt")
        return self.reader([ask.images[0] for ask in asks], return_tensors="pt")


class _Sees(Named):
    """What detectors and segmenters share: an image processor, and outputs of pictures with their sizes."""

    auto = ""

    def __init__(self, place: str, config: Mapping[str, Any]) -> None:
        import transformers

        model = load_whole(getattr(transformers, self.auto), place)
        super().__init__(place, config, model.eval())
        self.reader: Any = transformers.AutoImageProcessor.from_pretrained(place, trust_remote_code=False)

    def seen(self, images: Sequence[Any]) -> tuple[Any, list[tuple[int, int]]]:
        """Outputs for pictures, and their heights and widths."""
        pictures = list(images)
        with torch.inference_mode():
            outputs = self.model(**self.placed(self.reader(pictures, return_tensors="pt")))
        return outputs, [(picture.height, picture.width) for picture in pictures]


class Detector(_Sees):
    """A transformers object detector; boxes of every confidence, as average precision needs them."""

    capabilities: tuple[Capability, ...] = ("detect",)
    auto = "AutoModelForObjectDetection"

    def detect(self, images: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """Boxes in pixels of every image: label, score and box (x1, y1, x2, y2), all that the model gives."""
        outputs, sizes = self.seen(images)
        # no threshold: average precision needs the weak boxes too
        found = self.reader.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        names = self.model.config.id2label
        return [
            [
                {"label": names[int(label)], "score": float(score), "box": [round(float(x), 2) for x in box]}
                for label, score, box in zip(one["labels"], one["scores"], one["boxes"])
            ]
            for one in found
        ]


class Segmenter(_Sees):
    """A transformers model for semantic segmentation."""

    capabilities: tuple[Capability, ...] = ("segment",)
    auto = "AutoModelForSemanticSegmentation"

    def segment(self, images: Sequence[Any], multi_scale: bool = False) -> list[np.ndarray]:
        """The class of every pixel (height, width) uint8, at the size of the image. UsageError for several scales."""
        if multi_scale:
            raise UsageError(f"expected a segmenter of Plait for --multi-scale, got {self.name}; leave it out")
        outputs, sizes = self.seen(images)
        masks = self.reader.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        # uint8 holds 256 classes, more than ADE20K's 150
        return [mask.cpu().numpy().astype(np.uint8) for mask in masks]
