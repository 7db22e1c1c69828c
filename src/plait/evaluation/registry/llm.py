"""Benchmarks of multimodal language models."""

from __future__ import annotations

from plait.evaluation.tasks import Decoding, Task, numbers
from plait.types import Modality

LONG = Decoding(max_new_tokens=256)
SINGLE: tuple[Modality, ...] = ("image",)


def _asked(name: str, about: str, split: str, size: int, scorer: str, primary: str, prompt: str, **more) -> Task:
    layouts, media = more.pop("layouts", (name,)), more.pop("media", SINGLE)
    return Task(
        name, about, layouts, split, media, {"generate": "prompt"}, scorer, primary, prompt=prompt, size=size, **more
    )


TASKS = (
    _asked(
        "mme",
        "yes/no questions in 14 categories; perception is the headline",
        "all",
        2374,
        "mme",
        "perception",
        "mme",
        published=numbers("readme", owl2="1450.19", owl21="1545") + numbers("recalled", owl="967.3"),
    ),
    _asked(
        "mmbench",
        "options in every rotation, all must be right",
        "dev",
        4377,
        "mmbench",
        "circular",
        "letters",
        rules=("mmbench_2023", "mmbench_toolkit"),
        submission="mmbench",
        published=numbers("readme", owl2="64.5", owl21="73.7") + numbers("paper", owl2="65.4 (448 px)"),
    ),
    _asked(
        "mm_vet",
        "open questions, graded by a judge",
        "test",
        218,
        "mm_vet",
        "score",
        "question",
        decoding=LONG,
        needs="judge",
        published=numbers("readme", owl2="36.2", owl21="39.0"),
    ),
    _asked(
        "seed_bench",
        "SEED-Bench v1, pictures and videos",
        "v1",
        19242,
        "seed_bench",
        "accuracy",
        "letters_without_hint",
        media=("image", "video"),
        submission="seed",
        published=numbers("readme", owl2="57.8", owl21="60.8"),
    ),
    _asked(
        "q_bench",
        "Q-Bench A1: low-level vision",
        "dev",
        1495,
        "q_bench",
        "accuracy",
        "letters_without_hint",
        published=numbers("readme", owl2="62.9 (test)", owl21="64.7 (test)") + numbers("paper", owl="58.93"),
    ),
    _asked(
        "mmmu",
        "college questions with several pictures",
        "val",
        900,
        "mmmu",
        "accuracy",
        "mmmu",
        decoding=Decoding(max_new_tokens=20),
        rules=("official", "release"),
        submission="mmmu",
        published=numbers("recalled", owl2="32.7 val / 32.1 test"),
    ),
    _asked(
        "pope",
        "does the model see what is not there (random, popular, adversarial)",
        "random",
        3000,
        "pope",
        "accuracy",
        "question",
        decoding=LONG,
        published=numbers("paper", owl2="88.28/86.20/84.12", owl="53.97/50.90/50.67"),
    ),
    _asked(
        "mmhal_bench",
        "does the model make things up, rated 0 to 6 by a judge; share of replies that do",
        "test",
        96,
        "mmhal_bench",
        "score",
        "question",
        decoding=LONG,
        needs="judge",
        published=numbers("paper", owl2="2.17 / 0.56"),
    ),
    _asked(
        "owl_eval",
        "OwlEval: replies graded A to D by people",
        "all",
        82,
        "owl_eval",
        "A+B",
        "question",
        decoding=LONG,
        needs="people's grades",
        submission="owl_eval",
        published=numbers("recalled", owl="66 of 82 replies A or B"),
    ),
)
