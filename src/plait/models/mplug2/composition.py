"""Which modules a task uses: the one table that the forward pass, partial loading and `plait plan mplug2 TASK` read.

(task, medium) -> Path: parts, in the order of the data -> modules built, weights read, steps taken

Sources: figures 1 and 2 of mPLUG-2 (arXiv 2302.00402), the released video tasks, mPLUG's released image tasks
(specification mPLUG-2, section 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Part = Literal["vision", "temporal", "universal", "text", "fusion", "decoder", "masked_lm"]
Head = Literal["projections", "matching", "classifier"]
Task = Literal["caption", "answer", "retrieve", "ground", "entail", "compare", "classify", "pretrain"]
Medium = Literal["text", "image", "video"]

PARTS: tuple[Part, ...] = get_args(Part)
TASKS: tuple[Task, ...] = get_args(Task)

_SEE: tuple[Part, ...] = ("vision", "universal")
_ALL: tuple[Part, ...] = ("vision", "universal", "text", "fusion", "decoder")


@dataclass(frozen=True)
class Path:
    """What one task does with one medium.

    Attributes:
        parts: modules in the order of the data.
        heads: behind them, by kind.
        about: what happens, as `plait plan` prints it and as error texts quote it.
    """

    parts: tuple[Part, ...]
    heads: tuple[Head, ...] = ()
    about: str = ""

    def uses(self, part: Part) -> bool:
        """Whether the data pass this part."""
        return part in self.parts


def _both(parts: tuple[Part, ...], heads: tuple[Head, ...], about: str) -> dict[Medium, Path]:
    """The same for images and videos, except that videos pass the temporal modules too (figure 1).

    parts begin with `vision`, behind which the temporal modules are named.
    """
    return {"image": Path(parts, heads, about), "video": Path(("vision", "temporal", *parts[1:]), heads, about)}


TABLE: dict[Task, dict[Medium, Path]] = {
    # As released: captions use neither text encoder nor fusion, though an official file holds both.
    "caption": _both((*_SEE, "decoder"), (), "the decoder writes, looking at the vision tokens"),
    "answer": {
        **_both(_ALL, (), "the decoder writes or ranks answers, looking at fused vision and question"),
        # Instructions about a text alone: there is nothing to fuse it with.
        "text": Path(("text", "universal", "decoder"), (), "the decoder writes, looking at the text alone"),
    },
    "retrieve": _both(
        (*_SEE, "text", "fusion"), ("projections", "matching"), "class tokens are compared; the best pairs are fused"
    ),
    # mPLUG grounds phrases in images only (specification 7.3).
    "ground": {"image": Path(_ALL, (), "the decoder writes four coordinate tokens")},
    "entail": _both((*_SEE, "text", "fusion"), ("classifier",), "the fused class token of the text is classified"),
    # NLVR2 as in ALBEF (arXiv 2107.07651), section 4: one text, two images, no video form published.
    "compare": {
        "image": Path((*_SEE, "text", "fusion"), ("classifier",), "the text is fused with each of two pictures")
    },
    # Figure 1: a picture's label is read behind the universal layers, without fusion.
    "classify": {
        "text": Path(("text", "universal"), ("classifier",), "the class token of the text is classified"),
        **_both(_SEE, ("classifier",), "the class token of the vision tokens is classified"),
    },
    "pretrain": {
        **_both((*_ALL, "masked_lm"), ("projections", "matching"), "contrast, matching, masked and instruction LM"),
        # Text alone has nothing to be contrasted with or fused with, so masked tokens are all it teaches.
        "text": Path(("text", "universal", "masked_lm"), (), "masked language modelling on text alone"),
    },
}
"""Task -> medium -> path. A task without a medium cannot be done with it."""


def path_of(task: str, medium: str) -> Path:
    """The cell of the table for a task and a medium.

    Args:
        task: of `TASKS`.
        medium: text, image or video.

    Returns:
        The path: parts, heads and a description.

    Raises:
        ValueError: for a cell that is not in the table; the message lists those that are.
    """
    # Compared, not indexed: both arguments may be any string, and the error below names all cells.
    cell = next((p for t, row in TABLE.items() if t == task for m, p in row.items() if m == medium), None)
    if cell is None:
        cells = ", ".join(f"{t} {m}" for t, row in TABLE.items() for m in row)
        raise ValueError(f"expected a task and medium among {cells}, got {task} {medium}")
    return cell


def parts_of(tasks: tuple[Task, ...], modalities: tuple[str, ...]) -> frozenset[Part]:
    """The parts that a model for all of `tasks` with these modalities needs.

    Args:
        tasks: what the model does.
        modalities: of text, image, video; a part that none of their paths passes is not needed.

    Returns:
        The union of the parts of all paths; `temporal` among them only where videos are.

    Raises:
        ValueError: where no task can be done with any of the modalities.
    """
    paths = [one for task in tasks for medium, one in TABLE[task].items() if medium in modalities]
    if not paths:
        raise ValueError(f"expected a modality for {', '.join(tasks)}, got {', '.join(modalities) or 'none'}")
    return frozenset(part for one in paths for part in one.parts)


TEMPLATES: dict[tuple[str, Medium], str] = {
    ("caption", "image"): "describe the image",
    ("caption", "video"): "describe the video",
    ("answer", "image"): "answer the question about the image : {text}",
    ("answer", "video"): "answer the question about the video : {text}",
    ("match", "image"): "does the text fit the image : {text}",
    ("match", "video"): "does the text fit the video : {text}",
    ("classify", "text"): "classify the text : {text}",
    ("classify", "image"): "name what the image shows",
    ("classify", "video"): "name what happens in the video",
    ("ground", "image"): "find in the image : {text}",
    ("complete", "text"): "continue the text : {text}",
    ("complete", "image"): "continue the description of the image : {text}",
    ("complete", "video"): "continue the description of the video : {text}",
}
"""(task, medium) -> what a joint model is told to do, one line for its text encoder, so that one set of weights serves
many tasks (mPLUG-2, section 3.4). The paper's templates were never released; these are Plait's, and part of what a
trained model expects. Lower case, as the vocabulary has it; `clean_question` deletes the colon, which is for readers.
"""


def instruct(task: str, medium: str, text: str = "", *, enabled: bool = True) -> str:
    """The instruction of a task for a medium.

    Args:
        task, medium: a cell of `TEMPLATES`.
        text: a question or phrase that takes its place in the template.
        enabled: switched off it is `text` alone: what the released finetuned models were trained
            on.

    Returns:
        One line for the text encoder.

    Raises:
        ValueError: for a cell without a template, and for a task that needs a text and gets none.

    Example:
        >>> instruct("answer", "image", "what is this")
        'answer the question about the image : what is this'
    """
    template = next((words for cell, words in TEMPLATES.items() if cell == (task, medium)), None)
    if template is None:
        cells = ", ".join(f"{t} {m}" for t, m in TEMPLATES)
        raise ValueError(f"expected a task and modality among {cells}, got {task} {medium}")
    # Asked also where instructions are switched off: an empty question is a mistake either time.
    if "{text}" in template and not text.strip():
        raise ValueError(f"expected a text for the task {task}, got none; pass what to {task}")
    return template.format(text=text) if enabled else text
