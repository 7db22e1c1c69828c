"""What `plait study mplug2` trains: a small mPLUG-2 on drawings and sentences that packages carry, each run a `Recipe`.

pretraining (pictures with names) -> answering | text, image, video classification; arms and controls by options

mPLUG-2, sections 3.2 and 3.3 (arXiv 2302.00402).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data.pairs import PicturesWithWords, augment
from plait.data.reader import Reader, as_it_is
from plait.models.auto import load_processor
from plait.models.mplug2.composition import TEMPLATES, instruct
from plait.models.mplug2.config import MPlug2Config, VisionConfig
from plait.models.mplug2.model import MPlug2PreTrainedModel
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import Collator, MPlug2Processor
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.models.mplug2.weights import from_directory
from plait.processing import wordpiece
from plait.processing.images import CLIP_MEAN, CLIP_STD
from plait.recipes.mplug2 import PreTraining, asked_together, supervised
from plait.training.stages import Recipe, Source, save_pair
from plait.types import Sample
from plait.weights.files import load_strict
from plait_studies import training as shared
from plait_studies.build.emoji import HELD_OUT_STYLE
from plait_studies.drawings import KINDS, MOTIONS, Drawings, Example
from plait_studies.training import Questions, as_pixels, normalised

SCENES = ("is_there", "count", "beside", "order", "motion")
"""Tasks whose pictures bear only small changes: nothing may leave the page or change sides."""

SCENE_STRENGTH = 0.3
SPECIAL = (wordpiece.PAD, wordpiece.UNK, wordpiece.CLS, wordpiece.SEP, wordpiece.MASK)


def vocabulary(texts: Iterable[str], min_count: int = 1) -> list[str]:
    """Pieces of uncased BERT's vocabulary that the texts use at least `min_count` times, and all single characters."""
    backend = wordpiece.build_backend()
    counts: dict[str, int] = {}
    for text in texts:
        for piece in backend.encode(wordpiece.clean_question(text, max_words=10**6), add_special_tokens=False).tokens:
            counts[piece] = counts.get(piece, 0) + 1
    used = {piece for piece, count in counts.items() if count >= min_count}
    kept = [p for p in wordpiece.pieces() if p in used or len(p.removeprefix("##")) == 1]
    return [*SPECIAL, *(piece for piece in kept if piece not in SPECIAL)]


class QuestionsTogether:
    """Pictures, scenes and clips drawn anew at every step, several questions about each.

    Args:
        drawings: that they are about.
        shares: group of `Drawings.together` -> its share of the pictures and clips of a step, at least one each: a step
            without a group would unlearn how its questions are answered.
        collate: examples of a group, generator -> batch.
        split: whose drawings are shown.
    """

    def __init__(
        self,
        drawings: Drawings,
        shares: Mapping[str, int],
        collate: Callable[[list[Example], np.random.Generator], Any],
        split: str = "train",
    ) -> None:
        self.drawings, self.collate, self.split = drawings, collate, split
        self.cycle = [group for group, share in shares.items() for _ in range(share)]

    def __len__(self) -> int:
        return len(self.drawings.numbers(self.split))

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Numbers that name the group; the examples themselves come from the generator of the step."""
        return [number * len(self.cycle) // batch_size for number in range(batch_size)]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> list[Any]:
        """A batch of every group."""
        groups = [self.cycle[row] for row in rows]
        return [
            self.collate(
                [e for _ in range(groups.count(group)) for e in self.drawings.together(group, self.split, rng)], rng
            )
            for group in dict.fromkeys(groups)
        ]

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was asked, for messages."""
        return [self.cycle[row] for row in rows]


def pixels_of(
    examples: Sequence[Example],
    processor: MPlug2Processor,
    rng: np.random.Generator | None = None,
    strength: float = 0.0,
    *,
    single_frame: bool = False,
) -> dict[str, Tensor]:
    """Pixels of examples of one length.

    Args:
        examples: all pictures, or all clips of as many frames.
        processor: of the model.
        rng, strength: of augmentation, the same for all frames of a clip.
        single_frame: a frame of an unknown time instead of the clip, the control that cannot know about time.

    Returns:
        pixel_values (batch, 3, side, side) or pixel_values_videos (batch, 3, frames, side, side).
    """
    frames = np.stack([example.frames for example in examples])  # (batch, time, side, side, 3)
    if single_frame and frames.shape[1] > 1:
        chosen = np.random.default_rng(len(examples)) if rng is None else rng
        frames = frames[np.arange(len(frames)), chosen.integers(frames.shape[1], size=len(frames))][:, None]
    time = frames.shape[1]
    pixels = as_pixels(frames.reshape(-1, *frames.shape[2:]))
    if rng is not None and strength:
        is_scene = any(example.task in SCENES for example in examples)
        strength *= SCENE_STRENGTH if is_scene else 1
        pixels = augment(pixels, strength, rng, frames=time, mirrors=not is_scene)
    pixels = normalised(pixels, processor.image_processor)
    if time == 1:
        return {"pixel_values": pixels}
    return {"pixel_values_videos": pixels.unflatten(0, (-1, time)).transpose(1, 2).contiguous()}


def asked(examples: Sequence[Example], *, instructions: bool = True) -> list[str]:
    """What the text encoder reads for each example: its question, or that a caption is wanted."""
    medium: Any = "video" if len(examples[0].frames) > 1 else "image"
    return [
        instruct("answer", medium, example.question, enabled=instructions)
        if example.question
        else instruct("caption", medium)
        for example in examples
    ]


def collate_answers(
    processor: MPlug2Processor,
    strength: float,
    instructions: bool,
    single_frame: bool,
    shuffle_answers: bool,
    examples: list[Example],
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Examples -> pixels, questions, answers to be written, and the number of each question's picture.

    Args:
        processor: of the model.
        strength: of augmentation.
        instructions: whether a question says what is wanted.
        single_frame: as in `pixels_of`.
        shuffle_answers: each the answer to a question of its task about another picture, the control that learns priors
            alone.
        examples: neighbours of the same frames share a picture.
        rng: of augmentation and shuffling.
    """
    starts = [i for i in range(len(examples)) if not i or examples[i].frames is not examples[i - 1].frames]
    picture = np.repeat(np.arange(len(starts)), np.diff([*starts, len(examples)]))
    answers = [example.answer for example in examples]
    if shuffle_answers:
        for own, other in _of_other_pictures([example.task for example in examples], picture, rng):
            answers[own] = examples[other].answer
    return {
        **pixels_of([examples[i] for i in starts], processor, rng, strength, single_frame=single_frame),
        **processor.tokenize(asked(examples, instructions=instructions)),
        **Collator(processor).written(answers),
        "picture": torch.from_numpy(picture),
    }


def _of_other_pictures(tasks: Sequence[str], picture: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Each place, and one of the same task and another picture, as long as there are enough of them.

    Places are sorted by picture and shifted by the largest number of one picture, so none keeps its own.
    """
    found = []
    turn = rng.permutation(len(tasks))  # of pictures, and of the questions about each
    for task in sorted(set(tasks)):
        places = sorted((i for i, one in enumerate(tasks) if one == task), key=lambda i: (turn[picture[i]], turn[i]))
        most = int(np.bincount(picture[places]).max())
        found += [(own, places[(n + most) % len(places)]) for n, own in enumerate(places)]
    return found


def numbered(answers: Sequence[str], labels: Sequence[str], shuffle: bool, rng: np.random.Generator) -> Tensor:
    """The number of each answer among `labels`; shuffle: those of other examples, the control that learns nothing."""
    numbers = torch.tensor([labels.index(answer) for answer in answers])
    return numbers[torch.from_numpy(rng.permutation(len(numbers)))] if shuffle else numbers


def collate_classes(
    processor: MPlug2Processor,
    labels: Sequence[str],
    strength: float,
    single_frame: bool,
    shuffle_labels: bool,
    examples: list[Example],
    sentences: Sequence[Sample],
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Examples -> pixels and the number of their answer among `labels`; arguments as `collate_answers`.

    Args:
        labels: what the head tells apart.
        shuffle_labels: as in `numbered`.
        sentences: always empty; `Questions` passes them.
    """
    numbers = numbered([example.answer for example in examples], labels, shuffle_labels, rng)
    return {**pixels_of(examples, processor, rng, strength, single_frame=single_frame), "labels": numbers}


def source_of(
    drawings: Drawings, processor: MPlug2Processor, shares: Mapping[str, int], **options: Any
) -> Callable[[], Source]:
    """A builder of fresh questions; options as the named parameters of `collate_answers`."""
    given = {"strength": 0.5, "instructions": True, "single_frame": False, "shuffle_answers": False} | options
    return partial(QuestionsTogether, drawings, shares, partial(collate_answers, processor, *given.values()))


SIDE, FRAMES = 64, 4
THINGS_PER_KIND = 12
STILL_TASKS = ("name", "kind", "is_kind", "is_there", "count", "beside")
CLIP_TASKS = ("order", "motion")
SHARES = {"drawing": 1, "scene": 1, "clip": 1}
RARE = 0.1
"""Times that a word counts as written which never is."""


@cache
def drawings() -> Drawings:
    """The shipped drawings of twelve things of each kind: the first by name that are drawn in the held-out style."""
    samples = shared.drawings(SIDE, FRAMES).rows
    of_kind: dict[str, list[str]] = {}
    for sample in sorted(samples, key=lambda s: s.label or ""):
        if sample.split == "test" and sample.meta["style"] == HELD_OUT_STYLE:
            of_kind.setdefault(sample.meta["group"], []).append(sample.label or "")
    chosen = {label for labels in of_kind.values() for label in labels[:THINGS_PER_KIND]}
    return Drawings([sample for sample in samples if sample.label in chosen], SIDE, FRAMES)


def written() -> list[str]:
    """What the decoder learns to write: names, keywords and answers."""
    named = [text for number in drawings().numbers("train") for text in _words(drawings().rows[number])]
    return [*named, *(e.answer for task in drawings().tasks for e in drawings().examples(task, "train", 60))]


def texts() -> list[str]:
    """Everything that is read or written in the study but the snippets."""
    named = [text for row in drawings().rows for text in _words(row)]
    asked = [e.question for t in drawings().tasks for e in drawings().examples(t, "train", 60)]
    return [*named, *asked, *TEMPLATES.values(), *KINDS.values(), *MOTIONS, "one two three four yes no or"]


def _words(row: Sample) -> tuple[str, ...]:
    return (row.text or "", *(row.captions or ()))


def processor(size: int = SIDE) -> MPlug2Processor:
    """Reads the pieces that the study's texts need."""
    kept = vocabulary(texts())
    common = vocabulary((s.text or "" for s in shared.snippets("train")), min_count=8)
    pieces = [*kept, *(piece for piece in common if piece not in set(kept))]
    return MPlug2Processor.build(size, pieces, num_frames=FRAMES, max_text_tokens=48)


def without_snippets(trained: Path, out: Path) -> None:
    """Save the model that answers in half precision, without the pieces that only snippets of text need.

    Half of its weights are tables of pieces. All others stay, and with them the answers, but for words that drawings
    never taught it to write.

    Args:
        trained: directory of `answering`.
        out: a new directory.
    """
    whole, pieces = load_processor(trained), vocabulary(texts())
    known = whole.tokenizer.get_vocab()
    kept = torch.tensor([known[piece] for piece in pieces])
    small = MPlug2Processor.build(SIDE, pieces, num_frames=FRAMES, max_text_tokens=48)
    model = load(trained, "answer")
    state = {
        name: value[kept] if value.shape[:1] == (len(known),) else value for name, value in model.state_dict().items()
    }
    shape = copy.deepcopy(model.config)
    shape.vocab_size = len(pieces)  # special pieces come first in both, so their ids stay
    cut = type(model)(shape)
    load_strict(cut, state)
    save_pair(small, cut.half(), out)


def config(made: MPlug2Processor, **changes: Any) -> MPlug2Config:
    """Sizes of the small model: 2 layers of vision, 2 of text, 2 universal, 2 of fusion, 2 of the decoder, width 128.

    Patches of 16 pixels: sixteen tokens per picture learn more in the same time than 36.
    """
    tokenizer = made.tokenizer
    ids = {"pad": tokenizer.pad_token_id, "bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id}
    sizes: dict[str, Any] = {
        "vision": VisionConfig(dim=128, num_heads=4, num_layers=2, patch_size=16, image_size=made.image_size),
        "dim": 128, "num_heads": 4, "mlp_dim": 512, "num_text_layers": 2, "num_universal_layers": 2,
        "num_latents": 16, "num_fusion_layers": 2, "stored_fusion_layers": 2, "num_decoder_layers": 2,
        "max_positions": 64, "projection_dim": 64, "num_frames": FRAMES, "dropout": 0.0, "attention_dropout": 0.0,
        "vocab_size": len(tokenizer), "init_std": 0.06, "grounding_bins": 1,
        "instructions": ["caption image", "answer image", "answer video"],  # what `asked` sends
        "grounding_start_id": 5,
    }  # fmt: skip
    return MPlug2Config(**sizes | {f"{name}_token_id": value for name, value in ids.items()} | changes)


def pretraining(
    steps: int,
    *,
    batch_size: int = 64,
    lr: float = 1e-3,
    universal_sharing: str = "shared",
    augmentation: float = 0.5,
    every: int = 5,
    **sizes: Any,
) -> Recipe:
    """Pictures with names: contrast and writing the name at every step; matching and masked language modelling too at
    every `every`-th.

    Args:
        steps, batch_size, lr: of the stage.
        universal_sharing: `shared` or `apart`, as in `MPlug2Config`.
        augmentation: strength of it.
        every: steps between two with all four losses.
        sizes: other fields of the configuration.
    """
    made = processor()
    shape = config(made, universal_sharing=universal_sharing, **sizes)
    objective = PreTraining(
        mask_id=made.tokenizer.mask_token_id,
        vocab_size=len(made.tokenizer),
        special_ids=frozenset(made.tokenizer.convert_tokens_to_ids(list(SPECIAL))),
        probability=0.3,
        every=every,
        often=("contrast", "generate"),
    )
    source = partial(
        PicturesWithWords,
        [drawings().rows[number] for number in drawings().numbers("train")],
        lambda texts: {**made.tokenize(texts), **Collator(made).written(texts)},
        SIDE,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        augmentation=augmentation,
        composed=0.1,
        bare_names=0.8,
    )
    first = stage("pretraining", objective, source, steps, batch_size, lr, period=every)
    return Recipe(partial(fresh, shape, made), [first], partial(save_pair, made))


def fresh(shape: MPlug2Config, made: MPlug2Processor) -> MPlug2ForPreTraining:
    """A model that expects words as often as they are written: most of the vocabulary is there to be read alone, and
    a hundred steps would go by before the decoder had learnt not to write it."""
    model = MPlug2ForPreTraining(shape)
    ids = made.answers(written())["labels"][:, 1:]
    counts = torch.bincount(ids[ids >= 0], minlength=shape.vocab_size).float()
    with torch.no_grad():
        for head in (model.model.decoder.head, model.model.masked_lm):
            head.bias.copy_(((counts + RARE) / (counts + RARE).sum()).log())
    return model


def answering(
    init: Path,
    steps: int,
    *,
    batch_size: int = 24,
    lr: float = 5e-4,
    shares: Mapping[str, int] = SHARES,
    **options: Any,
) -> Recipe:
    """Captions, and several questions about each picture or clip, by one decoder.

    Args:
        init: model directory of the pretraining.
        steps, batch_size, lr: of the stage.
        shares: of the batch, for groups of `plait_studies.drawings.GROUPS`.
        options: of `source_of`.
    """
    made = load_processor(init)
    source = source_of(drawings(), made, shares, **options)
    answered = stage("answering", asked_together, source, steps, batch_size, lr)
    return Recipe(lambda: load(init, "answer"), [answered], partial(save_pair, made))


def seeing(
    init: Path,
    task: str,
    steps: int,
    *,
    batch_size: int = 48,
    lr: float = 7e-4,
    single_frame: bool = False,
    shuffle: bool = False,
) -> Recipe:
    """Classification of pictures (`kind`) or clips (`motion`) with a head.

    Args:
        init: model directory of the pretraining.
        task: which of the two.
        steps, batch_size, lr: of the stage.
        single_frame: the control that sees a frame of an unknown time, an image to the model.
        shuffle: the control that learns from labels of other examples.
    """
    made = load_processor(init)
    labels = tuple(KINDS.values()) if task == "kind" else tuple(MOTIONS)
    source = Questions(drawings(), (task,), partial(collate_classes, made, labels, 0.7, single_frame, shuffle))
    medium = "video" if task == "motion" and not single_frame else "image"
    return _classification(init, made, labels, medium, lambda: source, steps, batch_size, lr)


def reading(init: Path, steps: int, *, batch_size: int = 64, lr: float = 7e-4, shuffle: bool = False) -> Recipe:
    """Whether a movie snippet is positive, read by the text layers and universal layers."""
    made = load_processor(init)

    def collate(samples: list[Any], rng: np.random.Generator) -> dict[str, Tensor]:
        labels = numbered([sample.label for sample in samples], shared.FEELINGS, shuffle, rng)
        return {**made.tokenize([sample.text for sample in samples], truncation=True), "labels": labels}

    source = partial(Reader, shared.snippets("train"), collate, as_it_is)
    return _classification(init, made, shared.FEELINGS, "text", source, steps, batch_size, lr)


def _classification(
    init: Path,
    made: MPlug2Processor,
    labels: Sequence[str],
    medium: str,
    source: Callable[[], Any],
    steps: int,
    batch_size: int,
    lr: float,
) -> Recipe:
    """A head on one branch of the pretrained model."""
    classified = stage("classification", supervised, source, steps, batch_size, lr)
    build = partial(load, init, "classify", branch=(medium,), id2label=dict(enumerate(labels)))
    return Recipe(build, [classified], partial(save_pair, made))


def load(init: Path, task: str, **changes: Any) -> MPlug2PreTrainedModel:
    """A model for a task out of a directory."""
    if task == "answer":
        return from_directory(init, model_class=MPlug2ForConditionalGeneration, **changes)
    return from_directory(init, task=task, **changes)


stage = partial(shared.stage, betas=(0.9, 0.98), weight_decay=0.02)
