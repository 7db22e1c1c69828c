"""Golden cases of text metrics: tokens, captions, answers and letters read out of replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plait.metrics import answers, captions, choices, java, replies, vqa
from plait.metrics.captions import DocumentFrequency
from plait.metrics.ptb import DROPPED_NAMES, ptb_tokens
from plait.parity.cases import Case
from plait.parity.runners import NotRun, runner

from .metrics import INPUTS, Inputs, Outputs, metric

Words = list[str]


def tokenized(given: Mapping[str, Any]) -> tuple[list[str], list[Words], list[list[Words]]]:
    """Ids, words of the predictions and of the references, from text with spaces between its tokens."""
    ids = given["ids"]
    said = [given["predictions"][key].split() for key in ids]
    return ids, said, [[text.split() for text in given["references"][key]] for key in ids]


@metric("bleu")
def bleu(given: Inputs) -> Outputs:
    ids, said, right = tokenized(given["tokenized"])
    corpus = {f"bleu_{n}": value for n, value in enumerate(captions.bleu(said, right), 1)}
    items = {key: captions.bleu([a], [b]) for key, a, b in zip(ids, said, right, strict=True)}
    return {**corpus, "per_item": items}


@metric("rouge_l")
def rouge_l(given: Inputs) -> Outputs:
    ids, said, right = tokenized(given["tokenized"])
    items = [captions.rouge_l(a, b) for a, b in zip(said, right, strict=True)]
    return {"rouge_l": float(np.mean(items)), "per_item": dict(zip(ids, items, strict=True))}


@metric("cider")
def cider(given: Inputs) -> Outputs:
    ids, said, right = tokenized(given["tokenized"])
    items = captions.cider(said, right)
    return {"cider": float(np.mean(items)), "per_item": dict(zip(ids, items, strict=True))}


@metric("cider_d")
def cider_d(given: Inputs) -> Outputs:
    table = given["document_frequency"]
    if "candidates" in given:
        counts = {tuple(gram.split()): count for gram, count in table["ngrams"]}
        frequency = DocumentFrequency(counts, table["num_documents"])
        said = [text.split() for _, text in given["candidates"]]
        right = [[text.split() for text in given["references"][key]] for key, _ in given["candidates"]]
        items = captions.cider(said, right, frequency=frequency)
        return {"cider_d": float(np.mean(items)), "per_candidate": items}
    ids, said, right = tokenized(given)
    found: Outputs = {}
    for name, per_item, plain in (("cider_d", "per_item", False), ("cider_plain", "cider_plain_per_item", True)):
        items = captions.cider(said, right, plain=plain)
        found |= {name: float(np.mean(items)), per_item: dict(zip(ids, items, strict=True))}
    return found


def meteor_of(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[Any, Any]:
    """METEOR of a set and of its items, or why it cannot be had."""
    if java.missing() is not None:
        absent = NotRun("unavailable", "needs Java")
        return absent, absent
    return java.meteor(said, right)


@metric("meteor")
def meteor(given: Inputs) -> Any:
    ids, said, right = tokenized(given["tokenized"])
    corpus, items = meteor_of(said, right)
    return corpus if isinstance(items, NotRun) else {"meteor": corpus, "per_item": dict(zip(ids, items, strict=True))}


@metric("caption_suite")
def caption_suite(given: Inputs) -> Outputs:
    said = [given["predictions"][key] for key in given["ids"]]
    right = [given["references"][key] for key in given["ids"]]
    corpus, _ = meteor_of(*captions.tokenized(said, right))
    return {**captions.caption_scores(said, right).corpus, "meteor": corpus}


@runner("metrics", "ptb_tokenizer", json_inputs=INPUTS)
def ptb_tokenizer(case: Case) -> Outputs:
    rows = case.document["cases"]
    return {
        "dropped_tokens": list(DROPPED_NAMES),
        "cases": [{**row, "expected": " ".join(ptb_tokens(row["input"]))} for row in rows],
    }


@runner("metrics", "vqa_normalize", json_inputs=INPUTS)
def vqa_normalize(case: Case) -> Outputs:
    return {
        "contractions": vqa.contractions(),
        "number_words": vqa.NUMBERS,
        "cases": [{**row, "expected": normalised(row["input"])} for row in case.document["cases"]],
    }


def normalised(text: str) -> Outputs:
    """One answer in its three normal forms."""
    line = text.replace("\n", " ").replace("\t", " ").strip()
    return {
        "vqa": vqa.plain_words(vqa.without_punctuation(line)),
        "punctuation_only": vqa.without_punctuation(text),
        "evalai": vqa.evalai(text),
    }


@runner("metrics", "letter_extraction", json_inputs=(*INPUTS, "options"))
def letter_extraction(case: Case) -> Outputs:
    document = case.document
    options = list(document["options"].values())
    found = [
        {rule: replies.letter(row["input"], options, rule) for rule in row["expected"]} for row in document["cases"]
    ]
    return {"cases": [{**row, "expected": letters} for row, letters in zip(document["cases"], found, strict=True)]}


@runner("metrics", "mmmu", json_inputs=INPUTS)
def mmmu(case: Case) -> Outputs:
    rows = case.document["cases"]
    given = (row["input"]["options"] for row in rows if isinstance(row["input"], dict))
    options = list(next(given, dict.fromkeys("ABCD", "")).values())  # those of the letters are those of the suites
    return {"cases": [{**row, "expected": mmmu_entry(row["input"], row["name"], options)} for row in rows]}


def mmmu_entry(given: Inputs, name: str, options: Sequence[str]) -> Any:
    """Letters, free answers, or a suite under the rule that the entry's name tells."""
    if isinstance(given, dict):
        return [replies.letter(reply, options, "mmmu_official") for reply in given["responses"]]
    if "response" in given[0]:
        return [
            {
                "parsed": sorted(replies.open_candidates(row["response"]), key=_numbers_first),
                "correct": replies.open_answer_hit(row["response"], row["answers"]),
            }
            for row in given
        ]
    return choices.mmmu_scores(given, options=options, rule="release" if "release" in name else "official")


def _numbers_first(candidate: str | float) -> tuple[bool, str]:
    return isinstance(candidate, str), str(candidate)


@metric("text_benchmarks")
def text_benchmarks(given: Inputs) -> Outputs:
    if isinstance(given, dict):
        return choices.mmlu_scores(given)
    if "choice_logprobs" in given[0]:
        return choices.arc_scores(given)
    said = [answers.answer_after_key(row["reply"]) for row in given]
    accuracy = 100 * answers.exact_match(said, [row["target"] for row in given])
    return {"extracted": said, "accuracy": accuracy}
