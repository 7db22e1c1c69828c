"""Captions, questions about pictures and videos, statements, referring expressions."""

from __future__ import annotations

from collections.abc import Mapping

from plait.evaluation.readers.pairs import ENTAILMENT
from plait.evaluation.tasks import Capability, Decoding, Task, Way, numbers

CAPTION = Decoding(max_new_tokens=60, min_new_tokens=8)
VIDEO_CAPTION = Decoding(max_new_tokens=60, min_new_tokens=8)
MPLUG2_CAPTION = {"mplug2": Decoding(max_new_tokens=25, min_new_tokens=8, num_beams=5)}
MPLUG2_VIDEO_CAPTION = {"mplug2": Decoding(max_new_tokens=20, min_new_tokens=4, num_beams=5)}
ANSWER = Decoding(max_new_tokens=10)
MPLUG2_ANSWER = {"mplug2": Decoding(max_new_tokens=10, num_beams=5)}
DECIDED: Mapping[Capability, Way] = {"decide": "decide", "generate": "prompt"}
VQA_RULES = ("official", "release", "evalai")


def _caption(name: str, about: str, layouts: tuple[str, ...], split: str, size: int, media: str, **more) -> Task:
    is_video = media == "video"
    return Task(
        name,
        about,
        layouts,
        split,
        ("video",) if is_video else ("image",),
        {"generate": "prompt"},
        "captions",
        "CIDEr",
        prompt="caption",
        decoding=VIDEO_CAPTION if is_video else CAPTION,
        family_decoding=MPLUG2_VIDEO_CAPTION if is_video else MPLUG2_CAPTION,
        size=size,
        **more,
    )


def _question(name: str, about: str, layouts: tuple[str, ...], split: str, size: int, scorer: str, **more) -> Task:
    primary, media = more.pop("primary", "accuracy"), more.pop("media", ("image",))
    ways: Mapping[Capability, Way] = more.pop("ways", {"generate": "prompt"})
    return Task(
        name,
        about,
        layouts,
        split,
        media,
        ways,
        scorer,
        primary,
        prompt="short",
        decoding=ANSWER,
        family_decoding=MPLUG2_ANSWER,
        size=size,
        **more,
    )


TASKS = (
    _caption(
        "coco_caption",
        "COCO captions, Karpathy's test split",
        ("coco_karpathy_official", "coco_captions", "owl2_captions", "retrieval_json_list"),
        "test",
        5000,
        "image",
        published=numbers("readme", owl2="137.3", owl21="135.3", mplug="141.0 (CE), 155.1 (SCST)")
        + numbers("recalled", mplug2="137.7 (CE)"),
    ),
    _caption(
        "flickr30k_caption",
        "Flickr30k captions, zero-shot",
        ("flickr30k_karpathy_official", "owl2_captions"),
        "test",
        1000,
        "image",
        published=numbers("readme", owl2="85.1", owl21="78.5"),
    ),
    _caption("nocaps", "captions of novel objects", ("nocaps",), "val", 4500, "image", submission="captions"),
    _caption(
        "msrvtt_caption",
        "MSRVTT captions, official test split (the release does not name its split)",
        ("msrvtt_captions", "mplug2_video_caption"),
        "test",
        2990,
        "video",
        published=numbers("readme", mplug2="80.3"),
    ),
    _caption(
        "msvd_caption",
        "MSVD captions",
        ("msvd_captions", "mplug2_video_caption"),
        "test",
        670,
        "video",
        published=numbers("readme", mplug2="165.8"),
    ),
    _caption(
        "vatex_caption",
        "VATEX captions, public test",
        ("vatex",),
        "test",
        6000,
        "video",
        published=numbers("readme", mplug="42.0 (zero-shot)"),
    ),
    _question(
        "vqav2",
        "VQA v2",
        ("vqav2", "qwen_style_vqa_list", "one_peace_vqa"),
        "val",
        214354,
        "vqa",
        ways=DECIDED,
        rules=VQA_RULES,
        submission="vqa",
        published=numbers("readme", one_peace="82.6/82.5", owl2="79.4", owl21="79.9", mplug="81.27/81.26")
        + numbers("recalled", mplug2="81.11/81.13"),
    ),
    _question(
        "ok_vqa",
        "questions that need outside knowledge",
        ("ok_vqa",),
        "val",
        5046,
        "vqa",
        rules=VQA_RULES,
        published=numbers("readme", owl2="57.7", owl21="58.1"),
    ),
    _question(
        "gqa",
        "compositional questions",
        ("gqa",),
        "testdev",
        12578,
        "gqa",
        published=numbers("readme", owl2="56.1", owl21="60.3"),
    ),
    _question(
        "vizwiz",
        "questions of blind people, zero-shot",
        ("vizwiz",),
        "val",
        4319,
        "vqa",
        rules=("evalai", "official", "release"),
        submission="vizwiz",
        published=numbers("readme", owl2="54.5", owl21="61.82"),
    ),
    _question(
        "textvqa",
        "questions about written text, zero-shot",
        ("textvqa",),
        "val",
        5000,
        "vqa",
        rules=("evalai", "release", "official"),
        published=numbers("readme", owl2="54.3", owl21="57.4"),
    ),
    Task(
        "scienceqa",
        "school questions with a picture, zero-shot",
        ("scienceqa",),
        "test",
        ("image",),
        {"generate": "prompt"},
        "scienceqa",
        "image_accuracy",
        prompt="letters",
        size=2017,
        published=numbers("readme", owl2="68.7", owl21="72.3"),
    ),
    Task(
        "nlvr2",
        "is a statement true of two pictures",
        ("nlvr2_official", "one_peace_nlvr2"),
        "test-P",
        ("image",),
        DECIDED,
        "statements",
        "accuracy",
        prompt="statement",
        class_words={"one_peace": ("True", "False"), "mplug2": ("False", "True")},
        size=6967,
        published=numbers("readme", one_peace="87.8/88.3", mplug="84.58/84.95"),
    ),
    Task(
        "snli_ve",
        "does a picture entail a statement",
        ("snli_ve",),
        "test",
        ("image",),
        DECIDED,
        "entailment",
        "accuracy",
        prompt="entailment",
        class_words={"mplug2": ENTAILMENT},
        size=17901,
        published=numbers("readme", mplug="89.45/89.29"),
    ),
    *(
        Task(
            name,
            about,
            ("refcoco", "one_peace_grounding"),
            split,
            ("image",),
            {"ground": "locate", "generate": "locate"},
            "grounding",
            "acc@0.5",
            prompt="locate",
            decoding=Decoding(max_new_tokens=40),
            rules=("fraction", "thousandth", "pixel"),
            size=size,
            published=published,
        )
        for name, about, split, size, published in (
            (
                "refcoco",
                "RefCOCO: find what a phrase means (val, testA, testB)",
                "testA",
                5657,
                numbers("readme", one_peace="92.58/94.18/89.26", mplug="92.40/94.51/88.42")
                + numbers("web", mplug2="90.3/92.8/86.1"),
            ),
            (
                "refcoco_plus",
                "RefCOCO+: without words of place (val, testA, testB)",
                "testA",
                5726,
                numbers("readme", one_peace="88.77/92.21/83.23", mplug="86.02/90.17/78.17"),
            ),
            (
                "refcocog",
                "RefCOCOg: longer phrases (val, test)",
                "test",
                9602,
                numbers("readme", one_peace="89.22/89.27", mplug="85.88/86.42") + numbers("web", mplug2="84.7/85.1"),
            ),
        )
    ),
    *(
        _question(
            name,
            about,
            layouts,
            "test",
            size,
            "video_qa",
            media=("video",),
            rules=("exact", "judge"),
            published=published,
        )
        for name, about, layouts, size, published in (
            (
                "msrvtt_qa",
                "MSRVTT-QA",
                ("msrvtt_qa", "mplug2_video_qa"),
                72821,
                numbers("readme", mplug2="48.0", mplug="21.1 (zero-shot)")
                + numbers("paper", owl2="23.6 exact, 46.7 judged"),
            ),
            (
                "msvd_qa",
                "MSVD-QA",
                ("msvd_qa", "mplug2_video_qa"),
                13157,
                numbers("readme", mplug2="58.1", mplug="37.2 (zero-shot)")
                + numbers("paper", owl2="42.4 exact, 65.4 judged"),
            ),
            (
                "tgif_frameqa",
                "TGIF-FrameQA",
                ("tgif_frameqa", "mplug2_video_qa"),
                13691,
                numbers("recalled", mplug2="75.4") + numbers("paper", owl2="61.6 exact, 67.1 judged"),
            ),
        )
    ),
)
