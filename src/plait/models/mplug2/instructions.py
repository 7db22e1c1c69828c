"""Instructions: what a joint model is told to do, per task and modality, so that one set of weights serves many tasks.

task, modality, text -> one line of text for the text encoder (or, switched off, the text alone)

Source: mPLUG-2 (arXiv 2302.00402), section 3.4: language modelling with handcrafted instructions. The templates of the
paper were never released; these are Plait's, one per cell, and part of what a trained model expects.
"""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal["caption", "answer", "match", "classify", "ground", "complete"]
Medium = Literal["text", "image", "video"]

TASKS: tuple[Task, ...] = get_args(Task)

TEMPLATES: dict[tuple[Task, Medium], str] = {
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
"""Lower case and free of what `clean_question` deletes except the colon, as the vocabulary reads it."""


def instruct(task: Task, medium: Medium, text: str = "", *, enabled: bool = True) -> str:
    """The instruction of a task for a modality with `text` (a question, a phrase) in its place.

    Switched off it is `text` alone: what the released finetuned models were trained on. Raises ValueError for a cell
    without a template, and for a task that needs a text and gets none.
    """
    template = TEMPLATES.get((task, medium))
    if template is None:
        cells = ", ".join(f"{t} {m}" for t, m in TEMPLATES)
        raise ValueError(f"expected a task and modality among {cells}, got {task} {medium}")
    if "{text}" in template and not text.strip():
        raise ValueError(f"expected a text for the task {task}, got none; pass what to {task}")
    return template.format(text=text) if enabled else text
