"""Golden cases of metrics: input of every case -> the pure functions of `plait.metrics` -> its expected values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from plait.metrics import (
    answers,
    bootstrap,
    boxes,
    choices,
    classification,
    detection,
    glue,
    replies,
    segmentation,
    suites,
    tagging,
    two_way_retrieval,
    vqa,
)
from plait.parity.cases import Case
from plait.parity.runners import NotRun, runner

Inputs = Any
Outputs = dict[str, Any]
Score = Callable[[Inputs], Any]
INPUTS = ("metric", "input", "name", "note")


def metric(kind: str, *tables: str) -> Callable[[Score], Score]:
    """Register a function from the input of one entry to its expected value; `tables` are inputs of the whole case."""

    def register(score: Score) -> Score:
        def run(case: Case) -> Mapping[str, Any]:
            document = case.document
            found = [score(entry["input"]) for entry in document["cases"]]
            absent = next((value for value in found if isinstance(value, NotRun)), None)
            return {"cases": absent or [_answered(*pair) for pair in zip(document["cases"], found, strict=True)]}

        runner("metrics", kind, json_inputs=(*INPUTS, *tables))(run)
        return score

    return register


def _answered(entry: Mapping[str, Any], found: Any) -> Outputs:
    """The entry with our values of the expected fields; a function may know more."""
    wanted = entry["expected"]
    if isinstance(wanted, dict) and isinstance(found, dict):
        found = {name: found[name] for name in wanted if name in found}
    return {**entry, "expected": found}


@metric("anls")
def anls(rows: Inputs) -> Outputs:
    items = [answers.anls(row["prediction"], row["answers"]) for row in rows]
    return {"anls": float(np.mean(items)), "per_item": items}


@metric("audio_tagging")
def audio_tagging(given: Inputs) -> Outputs:
    scores = given["scores"] if "scores" in given else tagging.sigmoid(given["logits"])
    targets = given["targets"]
    per_class = tagging.average_precisions(scores, targets)
    return {
        "map_macro": tagging.mean_average_precision(scores, targets),
        "average_precision_per_class": [None if np.isnan(value) else float(value) for value in per_class],
        "map_micro": tagging.micro_average_precision(scores, targets),
        "lwlrap": tagging.label_weighted_ranking_precision(scores, targets),
        "lrap": tagging.label_ranking_average_precision(scores, targets),
    }


@metric("bootstrap")
def intervals(given: Inputs) -> Outputs:
    values, kind = given["values"], given["statistic"]
    options = {"resamples": given["resamples"], "seed": given["seed"], "level": given["level"], "generator": "lcg64"}
    count = len(set(given["groups"])) if kind == "clustered_mean" else len(values)
    drawn = bootstrap.lcg64_indices(count, given["resamples"], given["seed"])
    if kind == "clustered_mean":
        found = bootstrap.bootstrap_clustered_mean(values, given["groups"], **options)
    elif kind == "mean":
        found = bootstrap.bootstrap_mean(values, **options)
    else:
        two = bootstrap.paired_bootstrap if kind == "paired_difference" else bootstrap.bootstrap_ratio
        first, second = zip(*values, strict=True)
        found = two(first, second, **options)
    plain = asdict(found)
    p_value = plain.pop("p_value")
    return plain | {"first_indices": drawn[0, :12].tolist(), "p_value_two_sided": p_value}


@metric("classification")
def classes(given: Inputs) -> Outputs:
    labels = given["labels"]
    views = "view_logits" in given
    scores = classification.average_views(given["view_logits"]) if views else np.asarray(given["logits"])
    predicted = classification.predictions(scores)
    found = {f"top{k}": 100 * classification.top_k_accuracy(scores, labels, k) for k in (1, 5)}
    found["mean_per_class"] = 100 * classification.mean_per_class_accuracy(predicted, labels)
    return found | {"video_scores": scores.tolist(), "predictions": predicted.tolist()}


@metric("closed_vocabulary_accuracy")
def closed_vocabulary(given: Inputs) -> Outputs:
    targets = given["soft_targets"] if "soft_targets" in given else given["labels"]
    logits = given["logits"]
    accuracy = classification.closed_vocabulary_accuracy(logits, targets)
    return {"accuracy": accuracy, "predictions": classification.predictions(logits).tolist()}


@metric("coco_detection")
def coco(given: Inputs) -> Outputs:
    found: Outputs = {}
    for kind, key in (("bbox", "detections"), ("segm", "segmentations")):
        if key not in given:
            continue
        summary, per_category = detection.coco_ap(given["ground_truth"], given[key], kind)
        found |= {kind: summary, f"{kind}_ap_per_category": {str(k): v for k, v in per_category.items()}}
    return found


@metric("glue")
def glue_scores(given: Inputs) -> Outputs:
    said, right = given["predictions"], given["labels"]
    if isinstance(said, dict):
        return {f"accuracy_{part}": glue.accuracy(said[part], right[part]) for part in said}
    accuracy, f1 = glue.accuracy(said, right), glue.f1(said, right)
    pearson, spearman = glue.pearson(said, right), glue.spearman(said, right)
    return {
        "matthews": glue.matthews(said, right),
        "accuracy": accuracy,
        "f1": f1,
        "accuracy_and_f1": (accuracy + f1) / 2,
        "pearson": pearson,
        "spearman": spearman,
        "corr": (pearson + spearman) / 2,
    }


@metric("gqa")
def gqa(given: Inputs) -> Outputs:
    said = {row["questionId"]: row["prediction"] for row in given["predictions"]}
    return answers.gqa_scores(given["questions"], said, given.get("choices"))


@metric("grounding")
def grounding(given: Inputs) -> Outputs:
    predicted, target = np.asarray(given["predicted_xyxy"]), np.asarray(given["target_xyxy"])
    upright = np.flatnonzero(~boxes.is_inverted(predicted))
    pair = predicted[upright], target[upright]
    named = {"iou": boxes.box_iou(*pair), "giou": boxes.box_giou(*pair)}
    return {
        "acc@0.5": boxes.accuracy_at_iou(predicted, target),
        "correct": int(boxes.box_hits(predicted, target).sum()),
        **{name: dict(zip(map(str, upright), map(float, values), strict=True)) for name, values in named.items()},
    }


@metric("image_text_retrieval")
def image_text(given: Inputs) -> Outputs:
    return two_way_retrieval.image_text_scores(given["similarity"], given["image_ids"], given["text_image_ids"])


@metric("video_text_retrieval")
def video_text(given: Inputs) -> Outputs:
    if "text_video_index" in given:
        return two_way_retrieval.several_text_scores(given["similarity"], given["text_video_index"])
    return two_way_retrieval.video_text_scores(given["similarity"])


@metric("mm_vet")
def mm_vet(given: Inputs) -> Any:
    if isinstance(given, list):
        return [suites.judge_grade(reply) for reply in given]
    needs = {name: row["capability"] for name, row in given["metadata"].items()}
    return suites.mm_vet_scores(needs, given["grades"])


@metric("mmbench_circular")
def mmbench(given: Inputs) -> Outputs:
    return choices.mmbench_scores(given["rows"])


@metric("mme")
def mme(given: Inputs) -> Any:
    return (
        [replies.mme_label(reply) for reply in given] if isinstance(given, list) else suites.mme_scores(given["rows"])
    )


@metric("owl_eval")
def owl_eval(rows: Inputs) -> Outputs:
    return suites.owl_eval_table(rows)


@metric("pope")
def pope(rows: Inputs) -> Outputs:
    return suites.pope_scores([row["reply"] for row in rows], [row["label"] for row in rows])


@metric("q_bench")
def q_bench(rows: Inputs) -> Any:
    if "good_logit" in rows[0]:
        return [choices.q_bench_quality(row["good_logit"], row["poor_logit"]) for row in rows]
    return choices.q_bench_scores(rows)


@metric("scienceqa")
def scienceqa(given: Inputs) -> Outputs:
    return choices.scienceqa_scores(given["problems"], given["replies"])


@metric("seed_bench")
def seed_bench(rows: Inputs) -> Outputs:
    if "losses" not in rows[0]:
        return choices.seed_bench_scores(rows)
    said = choices.lowest_loss([row["losses"] for row in rows])
    hits = [letter == row["answer"] for letter, row in zip(said, rows, strict=True)]
    return {"accuracy": choices.percent(hits), "predictions": said}


@metric("semantic_segmentation")
def semantic_segmentation(given: Inputs) -> Outputs:
    found = segmentation.segmentation_scores(
        given["predictions"],
        given["targets"],
        given["num_classes"],
        ignore_index=given["ignore_index"],
        reduce_zero_label=given["reduce_zero_label"],
    )
    lists = {"IoU": found.class_iou, "Acc": found.class_accuracy}
    return {
        "aAcc": found.pixel_accuracy,
        "mIoU": found.mean_iou,
        "mAcc": found.mean_accuracy,
        **{name: [None if np.isnan(value) else float(value) for value in values] for name, values in lists.items()},
    }


@metric("video_qa")
def video_qa(rows: Inputs) -> Outputs:
    if isinstance(rows[0], str):
        return dict(answers.judge_scores(rows))
    return {"accuracy": answers.exact_match([row["prediction"] for row in rows], [row["answer"] for row in rows])}


@metric("vqa_accuracy")
def vqa_accuracy(given: Inputs) -> Outputs:
    rule, items = given["rule"], given["items"]
    scores = {key: 100 * vqa.vqa_accuracy(item["prediction"], item["answers"], rule) for key, item in items.items()}

    def rounded(value: float) -> float:
        return value if rule == "evalai" else round(value, 2)

    def by(field: str) -> dict[str, float]:
        kinds = dict.fromkeys(item[field] for item in items.values())
        return {
            kind: rounded(float(np.mean([scores[key] for key, item in items.items() if item[field] == kind])))
            for kind in kinds
        }

    return {
        "overall": rounded(float(np.mean(list(scores.values())))),
        "per_question_type": by("question_type"),
        "per_answer_type": by("answer_type"),
        "per_question": {key: rounded(value) for key, value in scores.items()},
    }
