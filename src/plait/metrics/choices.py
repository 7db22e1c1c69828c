"""Multiple choice: replies or scores of options -> accuracy in percent, by each benchmark's published rule.

Letters are read by `plait.metrics.replies.letter`; an unreadable reply is wrong, nothing is drawn at random.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plait.metrics.checks import finite
from plait.metrics.replies import LETTERS, letter, open_answer_hit

Row = Mapping[str, Any]
ROTATION = 1_000_000
"""MMBench numbers the rotations of question q as q + 1,000,000, q + 2,000,000 and so on."""
SCIENCEQA_GROUPS = {
    "acc_natural": lambda problem: problem["subject"] == "natural science",
    "acc_social": lambda problem: problem["subject"] == "social science",
    "acc_language": lambda problem: problem["subject"] == "language science",
    "acc_has_text": lambda problem: bool(problem["hint"]),
    "acc_has_image": lambda problem: bool(problem["image"]),
    "acc_no_context": lambda problem: not problem["hint"] and not problem["image"],
    "acc_grade_1_6": lambda problem: problem["grade"] in {f"grade{n}" for n in range(1, 7)},
    "acc_grade_7_12": lambda problem: problem["grade"] in {f"grade{n}" for n in range(7, 13)},
    "acc_average": lambda problem: True,
}
"""The table of ScienceQA (Lu et al. 2022): column -> whether a problem counts in it."""


def percent(hits: Iterable[float]) -> float:
    """Mean of hits in percent.

    Raises:
        ValueError: for none.
    """
    values = finite(list(hits), "hits")
    if not values.size:
        raise ValueError("expected at least one question, got none")
    return 100.0 * float(values.mean())


def percent_by(kinds: Iterable[Any], hits: Iterable[float]) -> dict[str, float]:
    """Mean of hits in percent by kind, in order of first appearance.

    Args:
        kinds: one per hit; they become text.
        hits: numbers or booleans.
    """
    parts: dict[str, list[float]] = defaultdict(list)
    for kind, hit in zip(kinds, hits, strict=True):
        parts[str(kind)].append(hit)
    return {kind: percent(values) for kind, values in parts.items()}


def circular_hits(indices: Sequence[int], hits: Sequence[bool]) -> dict[int, bool]:
    """MMBench: whether all rotations of a question are right.

    Args:
        indices: one per row; rotations of question q have q + 1,000,000 and so on.
        hits: one per row.

    Returns:
        Main index -> boolean.
    """
    found: dict[int, bool] = {}
    for index, hit in zip(indices, hits, strict=True):
        # one wrong rotation is enough
        found[index % ROTATION] = found.get(index % ROTATION, True) and bool(hit)
    return found


def mmbench_scores(rows: Sequence[Row], rule: str = "mmbench_2023") -> dict[str, Any]:
    """Circular and vanilla accuracy of MMBench, by category and l2-category, in percent.

    Circular: a question is right when all its rotations are. Vanilla: the unrotated row alone.

    Args:
        rows: `index`, options `A` to `D` (empty cells where there are fewer), `answer`,
            `category`, `l2-category`, `prediction`.
        rule: how a letter is read out of a reply, a name of `plait.metrics.replies.LETTER_RULES`.

    Returns:
        Accuracies, hits per question by its index as text, and `letters`: what was read in every
        row, None where nothing.

    Raises:
        ValueError: where the unrotated row of a question is missing.

    Source:
        Liu et al. 2023.
    """
    said = [letter(str(row["prediction"]), _options(row), rule) for row in rows]
    indices = [int(row["index"]) for row in rows]
    hits = [found == row["answer"] for found, row in zip(said, rows, strict=True)]
    circular = circular_hits(indices, hits)
    vanilla = {index: hit for index, hit in zip(indices, hits, strict=True) if index < ROTATION}
    main = {int(row["index"]): row for row in rows if int(row["index"]) < ROTATION}
    if missing := circular.keys() - main.keys():
        raise ValueError(f"expected the unrotated row of every question, got none for index {min(missing)}")

    def by(column: str) -> dict[str, float]:
        return percent_by((main[index][column] for index in circular), circular.values())

    return {
        "letters": said,
        "hit_per_question": {str(index): int(hit) for index, hit in circular.items()},
        "circular_accuracy": percent(circular.values()),
        "by_category": by("category"),
        "by_l2_category": by("l2-category"),
        "vanilla_accuracy": percent(vanilla.values()),
        "vanilla_hit_per_question": {str(index): int(hit) for index, hit in vanilla.items()},
    }


def _options(row: Row) -> list[str]:
    """Texts of the options A to E of a row.

    "" for an empty cell between others, so that letters stay aligned; cut after the last text.
    """
    cells = [_cell(row.get(key)) for key in LETTERS[:5]]
    return cells[: max((i + 1 for i, cell in enumerate(cells) if cell), default=0)]


def _cell(value: Any) -> str:
    """Text of a table's cell; an empty one is "" and not pandas' NaN."""
    is_empty = value is None or (isinstance(value, float) and np.isnan(value))
    return "" if is_empty else str(value)


def mmmu_scores(rows: Sequence[Row], options: Sequence[str] | None = None, rule: str = "official") -> dict[str, float]:
    """MMMU in percent: `overall` (micro average) and by subject, which is the middle of the id.

    Args:
        rows: `id`, `question_type` (multiple-choice or open), `answer` (one or several),
            `prediction`, perhaps `options`.
        options: of rows that bring none.
        rule: official reads letters with its parser; release (Owl2's script) wants the letter
            alone.

    Returns:
        Name -> percent.

    Source:
        Yue et al. 2023; specification mPLUG-Owl2, 11.
    """
    hits = [hit for hit, _ in mmmu_hits(rows, options, rule)]
    subjects = (str(row["id"]).split("_", 1)[1].rsplit("_", 1)[0] for row in rows)
    return {"overall": percent(hits), **percent_by(subjects, hits)}


def mmmu_hits(
    rows: Sequence[Row], options: Sequence[str] | None = None, rule: str = "official"
) -> list[tuple[bool, bool]]:
    """Per row of `mmmu_scores`: whether it is right, and whether its reply could be read at all.

    Args:
        rows, options, rule: as there.

    Raises:
        ValueError: for another rule.
    """
    if rule not in ("official", "release"):
        raise ValueError(f"expected rule official or release, got {rule!r}")
    hits = []
    for row in rows:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        given = row.get("options") or options or []
        if row["question_type"] == "open":
            hits.append((open_answer_hit(row["prediction"], answers), True))
            continue
        # the release never calls its own parser: the whole reply must be the letter
        said = row["prediction"] if rule == "release" else letter(row["prediction"], given, "mmmu_official")
        # a tuple, not a text: "" and "AB" are in "ABCD"
        hits.append((said in answers, said is not None and said in tuple(LETTERS[: len(given)])))
    return hits


def scienceqa_scores(problems: Mapping[str, Row], replies: Mapping[str, str]) -> dict[str, Any]:
    """ScienceQA: accuracy over all problems and over those with an image, and the official table.

    Args:
        problems: problems.json by id.
        replies: id -> reply; only these problems count.

    Returns:
        `predicted_index` (-1 unreadable), `hits`, two accuracies in percent, and the table, one
        row per topic added; its strings have two decimals, -1 for a group without problems.

    Source:
        Lu et al. 2022.
    """
    said = {name: _index(letter(reply, problems[name]["choices"], "scienceqa")) for name, reply in replies.items()}
    hits = {name: said[name] == problems[name]["answer"] for name in replies}
    table = {name: _column(problems, hits, counts) for name, counts in SCIENCEQA_GROUPS.items()}
    for topic in dict.fromkeys(problems[name]["topic"] for name in replies):
        # topic bound as a default: a closure would see the last one
        table[f"acc_{topic}"] = _column(problems, hits, lambda problem, topic=topic: problem["topic"] == topic)
    with_image = [hit for name, hit in hits.items() if problems[name]["image"]]
    return {
        "hits": hits,
        "predicted_index": said,
        "accuracy": percent(hits.values()),
        "image_accuracy": percent(with_image) if with_image else float("nan"),
        "official_table": table,
    }


def _index(found: str | None) -> int:
    """Place of a letter among the choices, -1 for none."""
    return -1 if found is None else LETTERS.index(found)


def _column(problems: Mapping[str, Row], hits: Mapping[str, bool], counts: Any) -> str:
    """Percent of one group of problems as text, the way the tool prints it."""
    values = [hit for name, hit in hits.items() if counts(problems[name])]
    return f"{percent(values):.2f}" if values else "-1"


def seed_bench_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """SEED-Bench v1: accuracy by question type, over all (micro), over image and video types.

    Args:
        rows: `question_type_id`, `answer` (a letter), `prediction`: its first character counts,
            in either case.

    Returns:
        `hits` of the rows, `per_type`, `overall`, `image` (types 1-9), `video` (10-12); None
        where a part has no questions. Percent.
    """
    hits = [(letter(str(r["prediction"]), (), "first_character") or "").upper() == r["answer"].upper() for r in rows]
    kinds = [int(row["question_type_id"]) for row in rows]
    found = percent_by(kinds, hits)
    scores: dict[str, Any] = {"hits": hits, "per_type": {kind: found[kind] for kind in sorted(found, key=int)}}
    scores["overall"] = percent(hits)
    for name, is_part in (("image", lambda kind: kind <= 9), ("video", lambda kind: kind >= 10)):
        part = [hit for kind, hit in zip(kinds, hits, strict=True) if is_part(kind)]
        scores[name] = percent(part) if part else None
    return scores


def lowest_loss(losses: Sequence[Sequence[float]]) -> list[str]:
    """SEED-Bench's ranking: the letter of the option with the lowest language-model loss.

    Args:
        losses: per question one number per option; the first of equals is said.
    """
    return [LETTERS[int(finite(row, "losses").argmin())] for row in losses]


def q_bench_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Q-Bench A1: which are right, accuracy in percent, by question type and by concern.

    Args:
        rows: `candidates`, `correct_ans` (a text of these), `prediction`, `type`, `concern`.
            Letters are read by MMMU's parser.

    Source:
        Wu et al. 2023.
    """
    hits = []
    for row in rows:
        said = letter(row["prediction"], row["candidates"], "mmmu_official")
        hits.append(said is not None and row["candidates"][LETTERS.index(said)] == row["correct_ans"])
    by = {kind: percent_by((row[kind] for row in rows), hits) for kind in ("type", "concern")}
    return {"correct": hits, "accuracy": percent(hits), "by_type": by["type"], "by_concern": by["concern"]}


def q_bench_quality(good_logit: float, poor_logit: float) -> float:
    """Q-Bench A3: probability of the token good against poor.

    Args:
        good_logit, poor_logit: of the two next tokens.

    Returns:
        A fraction; the logits are divided by 100 first, as published.
    """
    good, poor = finite([good_logit, poor_logit], "logits")
    return 1.0 / (1.0 + float(np.exp((poor - good) / 100.0)))


def mmlu_scores(subjects: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """MMLU in percent: per subject, micro (over questions), macro (mean of subjects).

    Args:
        subjects: name -> rows with `choice_logprobs` of the letters as next token and `answer`
            (a letter). The first of equal ones is said.

    Source:
        Hendrycks et al. 2021.
    """
    hits = {
        subject: [LETTERS[int(finite(row["choice_logprobs"]).argmax())] == row["answer"] for row in rows]
        for subject, rows in subjects.items()
    }
    per_subject = {subject: percent(values) for subject, values in hits.items()}
    micro = percent(hit for values in hits.values() for hit in values)
    return {
        "hits": hits,
        "per_subject": per_subject,
        "micro": micro,
        "macro": float(np.mean(list(per_subject.values()))),
    }


def arc_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """ARC in percent: acc by summed log-probability, acc_norm by log-probability per character.

    Args:
        rows: `choice_logprobs` and `choice_texts` of the options, `answer_index`.

    Returns:
        Both accuracies and both lists of predictions.
    """
    scores = [finite(row["choice_logprobs"]) for row in rows]
    said = [int(one.argmax()) for one in scores]
    # per character: long options have low sums whatever they say
    norm = [int((one / [len(t) for t in row["choice_texts"]]).argmax()) for one, row in zip(scores, rows, strict=True)]
    right = [row["answer_index"] for row in rows]
    return {
        "acc": percent(a == b for a, b in zip(said, right, strict=True)),
        "acc_norm": percent(a == b for a, b in zip(norm, right, strict=True)),
        "predictions": said,
        "predictions_norm": norm,
    }
