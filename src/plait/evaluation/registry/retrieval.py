"""Media and texts that find each other."""

from __future__ import annotations

from plait.evaluation.tasks import Task, numbers
from plait.types import Modality


def _retrieval(name: str, about: str, layouts: tuple[str, ...], split: str, size: int, media: Modality, **more) -> Task:
    return Task(
        name, about, layouts, split, (media,), {"embed": "retrieve"}, "retrieval", "mean_recall", size=size, **more
    )


TASKS = (
    _retrieval(
        "coco_retrieval",
        "COCO 5k, R@1 of text then image retrieval",
        ("coco_karpathy_official", "retrieval_json_list", "one_peace_image_text_retrieval"),
        "test",
        5000,
        "image",
        published=numbers("readme", one_peace="84.1 / 65.4", mplug="82.8 / 65.8")
        + numbers("recalled", one_peace="64.7 / 48.0 (zero-shot)"),
    ),
    _retrieval(
        "flickr30k_retrieval",
        "Flickr30k 1k, R@1 of text then image retrieval",
        ("flickr30k_karpathy_official", "retrieval_json_list", "one_peace_image_text_retrieval"),
        "test",
        1000,
        "image",
        published=numbers("readme", one_peace="97.6 / 89.6", mplug="97.6 / 88.4")
        + numbers("recalled", one_peace="90.9 / 77.2 (zero-shot)"),
    ),
    _retrieval(
        "msrvtt_retrieval",
        "MSRVTT 1k-A, one text per video",
        ("msrvtt_retrieval_1ka",),
        "test",
        1000,
        "video",
        published=numbers("web", mplug2="53.1/77.6/84.7; zero-shot 47.1")
        + numbers("readme", mplug="R@1 38.1 (zero-shot)"),
    ),
    _retrieval(
        "didemo_retrieval",
        "DiDeMo, a paragraph per video",
        ("didemo",),
        "test",
        1003,
        "video",
        published=numbers("web", mplug2="56.4/79.1/85.2; zero-shot 45.7"),
    ),
    _retrieval(
        "lsmdc_retrieval",
        "LSMDC, public test",
        ("lsmdc",),
        "test",
        1000,
        "video",
        published=numbers("recalled", mplug2="34.4/55.2/65.1; zero-shot 24.1"),
    ),
    _retrieval(
        "audiocaps_retrieval",
        "AudioCaps, R@1 of text-to-audio, audio-to-text",
        ("audiocaps", "one_peace_audio"),
        "test",
        960,
        "audio",
        published=numbers("readme", one_peace="42.5 / 51.0"),
    ),
    _retrieval(
        "clotho_retrieval",
        "Clotho, R@1 of text-to-audio, audio-to-text",
        ("clotho", "one_peace_audio"),
        "test",
        1045,
        "audio",
        published=numbers("readme", one_peace="22.4 / 27.1"),
    ),
)
