"""Text alone."""

from __future__ import annotations

from plait.evaluation.tasks import Decoding, Task, numbers

_GLUE = {
    "sst2": (872, "accuracy"),
    "cola": (1043, "matthews"),
    "mrpc": (408, "accuracy"),
    "qqp": (40430, "accuracy"),
    "mnli": (9815, "accuracy"),
    "qnli": (5463, "accuracy"),
    "rte": (277, "accuracy"),
    "stsb": (1500, "spearman"),
}

TASKS = (
    Task(
        "mmlu",
        "57 subjects, five examples before every question",
        ("mmlu",),
        "test",
        ("text",),
        {"text": "rank_choices"},
        "choices",
        "accuracy",
        prompt="few_shot_letters",
        size=14042,
        published=numbers("readme", owl2="53.4"),
    ),
    Task(
        "bbh",
        "BIG-bench hard, no examples",
        ("bbh",),
        "test",
        ("text",),
        {"text": "prompt"},
        "bbh",
        "accuracy",
        prompt="plain",
        decoding=Decoding(max_new_tokens=128),
        size=6511,
        published=numbers("readme", owl2="45.0"),
    ),
    Task(
        "agieval",
        "exams, no examples",
        ("agieval",),
        "test",
        ("text",),
        {"text": "prompt"},
        "agieval",
        "accuracy",
        prompt="text_letters",
        decoding=Decoding(max_new_tokens=20),
        published=numbers("readme", owl2="32.7"),
    ),
    *(
        Task(
            name,
            about,
            (name,),
            "test",
            ("text",),
            {"text": "rank_choices"},
            "choices",
            "accuracy",
            prompt="plain",
            size=size,
            published=numbers("readme", owl2=value),
        )
        for name, about, size, value in (
            ("arc_challenge", "ARC, the hard questions", 1172, "65.8"),
            ("arc_easy", "ARC, the easy questions", 2376, "79.9"),
        )
    ),
    *(
        Task(
            f"glue_{name}",
            f"GLUE {name.upper()}, a trained head" + (", or cosine of vectors" if name == "stsb" else ""),
            (f"glue_{name}",),
            "dev",
            ("text",),
            {"classify": "class_scores", "embed": "similarity"} if name == "stsb" else {"classify": "class_scores"},
            "glue",
            primary,
            size=size,
        )
        for name, (size, primary) in _GLUE.items()
    ),
)
