"""Tasks that the paper reports (36 could be listed): which path each takes, and what measures and trains it here.

paper's task -> cell of `composition.TABLE` + name in `plait eval` + recipe of `plait train`

Sources: the paper's tables of downstream tasks, the released tasks, mPLUG's tasks on pictures (specification mPLUG-2,
section 15). Published figures stand beside the evaluation tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.models.mplug2.composition import Medium, Task


@dataclass(frozen=True)
class PaperTask:
    """A task of the paper.

    Attributes:
        name: as the paper writes it.
        task, medium: cell of `composition.TABLE`; None where Plait's mPLUG-2 cannot do the task.
        evaluation: name in `plait eval`, "" for none.
        recipe: name in `plait train`, "" for none.
        about: where there is no cell, what is missing.
    """

    name: str
    task: Task | None = None
    medium: Medium | None = None
    evaluation: str = ""
    recipe: str = ""
    about: str = ""


def _alike(task: Task, medium: Medium, recipe: str, evaluations: dict[str, str], note: str = "") -> list[PaperTask]:
    """Tasks of one path and one recipe. evaluations: name in the paper -> name in `plait eval`."""
    return [PaperTask(name + note, task, medium, evaluation, recipe) for name, evaluation in evaluations.items()]


_ANSWERED = {"MSRVTT-QA": "msrvtt_qa", "MSVD-QA": "msvd_qa"}
_FOUND = {
    "MSRVTT retrieval": "msrvtt_retrieval",
    "DiDeMo retrieval": "didemo_retrieval",
    "LSMDC retrieval": "lsmdc_retrieval",
}
_ZERO = ", zero-shot"

PAPER_TASKS: tuple[PaperTask, ...] = (
    *_alike("answer", "video", "mplug2.answering", {**_ANSWERED, "TGIF-FrameQA": "tgif_frameqa"}),
    *_alike(
        "caption",
        "video",
        "mplug2.captioning",
        {"MSRVTT captions": "msrvtt_caption", "MSVD captions": "msvd_caption", "VATEX captions": "vatex_caption"},
    ),
    *_alike("retrieve", "video", "mplug2.retrieval", _FOUND),
    # Without finetuning it is the pretrained model, with all that it was pretrained with, that is asked.
    *_alike("pretrain", "video", "mplug2.pretraining", _FOUND, _ZERO),
    *_alike("classify", "video", "mplug2.classification", {f"Kinetics-{n}00": f"kinetics{n}00" for n in (4, 6, 7)}),
    *_alike("answer", "image", "mplug2.answering", {"VQA v2": "vqav2"}),
    *_alike("caption", "image", "mplug2.captioning", {"COCO captions": "coco_caption", "NoCaps": "nocaps"}),
    *_alike(
        "retrieve",
        "image",
        "mplug2.retrieval",
        {"COCO retrieval": "coco_retrieval", "Flickr30k retrieval": "flickr30k_retrieval"},
    ),
    *_alike(
        "ground",
        "image",
        "mplug2.grounding",
        {"RefCOCO": "refcoco", "RefCOCO+": "refcoco_plus", "RefCOCOg": "refcocog"},
    ),
    *_alike(
        "classify",
        "text",
        "mplug2.classification",
        {name: f"glue_{name.lower().replace('-', '')}" for name in ("SST-2", "RTE", "MRPC", "QQP", "MNLI", "QNLI")},
    ),
    *_alike(
        "classify",
        "image",
        "mplug2.classification",
        {"ImageNet-1K": "imagenet", "transfer sets of pictures": "image_folder"},
    ),
    *_alike("pretrain", "video", "mplug2.pretraining", _ANSWERED, _ZERO),
    *_alike("compare", "image", "mplug2.comparison", {"NLVR2": "nlvr2"}),
    *_alike("entail", "image", "mplug2.classification", {"SNLI-VE": "snli_ve"}),
    PaperTask("COCO detection", about="mPLUG-2 is no backbone of a detector here"),
)
"""In the order in which docs/claims.md numbers them."""
