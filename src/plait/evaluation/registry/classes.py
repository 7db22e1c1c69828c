"""Classes of pictures, videos and sounds; objects and masks."""

from __future__ import annotations

from collections.abc import Mapping

from plait.evaluation.tasks import Capability, Task, Way, numbers
from plait.types import Modality

EITHER: Mapping[Capability, Way] = {"classify": "class_scores", "embed": "zero_shot"}


def _classes(name: str, about: str, layouts: tuple[str, ...], split: str, media: Modality, labels: str, **more) -> Task:
    scorer, primary = more.pop("scorer", "top_k"), more.pop("primary", "top1")
    return Task(name, about, layouts, split, (media,), EITHER, scorer, primary, labels=labels, **more)


TASKS = (
    _classes(
        "imagenet",
        "ImageNet-1K",
        ("imagenet", "imagenet_folder"),
        "val",
        "image",
        "a photo of a {label}.",
        size=50000,
        published=numbers("readme", one_peace="89.6 (384 px), 89.8 (512 px)") + numbers("recalled", mplug2="87.7"),
    ),
    _classes(
        "image_folder",
        "any folder of classes (Flowers102, Food101, Pets, DTD ...)",
        ("imagenet_folder",),
        "test",
        "image",
        "a photo of a {label}.",
        published=numbers("web", mplug2="97.1 (Flowers102)"),
    ),
    *(
        _classes(
            name,
            about,
            ("kinetics",),
            "val",
            "video",
            "a video of {label}.",
            published=published,
        )
        for name, about, published in (
            (
                "kinetics400",
                "Kinetics-400",
                numbers("readme", one_peace="88.0/97.8 and 88.1/97.8") + numbers("web", mplug2="87.1/97.7"),
            ),
            ("kinetics600", "Kinetics-600", numbers("recalled", mplug2="89.8/98.3")),
            ("kinetics700", "Kinetics-700", numbers("recalled", mplug2="80.4/94.9")),
        )
    ),
    _classes(
        "something_something_v2",
        "Something-Something v2",
        ("something_something_v2",),
        "val",
        "video",
        "a video of {label}.",
        size=24777,
    ),
    _classes(
        "esc50",
        "ESC-50, zero-shot over all folds",
        ("esc50",),
        "all",
        "audio",
        "This is a sound of {label}",
        size=2000,
        published=numbers("readme", one_peace="91.8"),
    ),
    _classes(
        "vggsound",
        "VGGSound, sound alone",
        ("vggsound", "one_peace_vggsound"),
        "test",
        "audio",
        "This is a sound of {label}",
        size=15400,
        published=numbers("readme", one_peace="68.2"),
    ),
    _classes(
        "fsd50k",
        "FSD50K, several classes per clip",
        ("fsd50k", "one_peace_fsd50k"),
        "eval",
        "audio",
        "This is a sound of {label}",
        scorer="tagging",
        primary="mAP",
        size=10231,
        published=numbers("readme", one_peace="69.7"),
    ),
    Task(
        "avqa",
        "questions about sounds with four choices, sound alone",
        ("avqa", "one_peace_aqa"),
        "val",
        ("audio",),
        {"decide": "choose_text", "embed": "choose_text"},
        "choices",
        "accuracy",
        size=16910,
        published=numbers("readme", one_peace="92.2"),
    ),
    Task(
        "coco_detection",
        "COCO objects, box AP",
        ("coco_instances",),
        "val",
        ("image",),
        {"detect": "detect"},
        "detection",
        "AP",
        size=5000,
        published=numbers("readme", one_peace="60.4 box, 52.9 mask") + numbers("web", mplug2="46.9 (test-dev)"),
    ),
    Task(
        "ade20k",
        "ADE20K, 150 classes",
        ("ade20k",),
        "val",
        ("image",),
        {"segment": "segment"},
        "segmentation_150",
        "mIoU",
        size=2000,
        published=numbers("readme", one_peace="62.0 single scale, 63.0 multi-scale"),
    ),
    Task(
        "coco_stuff",
        "COCO-Stuff 164k as grey PNG like ADE20K's, 171 classes",
        ("ade20k",),
        "val",
        ("image",),
        {"segment": "segment"},
        "segmentation_171",
        "mIoU",
        size=5000,
        published=numbers("readme", one_peace="52.9"),
    ),
)
