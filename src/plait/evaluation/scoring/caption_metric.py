"""BLEU, ROUGE-L and CIDEr as the caption kit of COCO computes them, on its Penn Treebank tokens.

captions -> tokens -> n-gram counts -> scores (Papineni et al. 2002; Lin 2004; Vedantam et al. 2015, the D variant)
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Grams = Counter[tuple[str, ...]]
_DROPPED = set("'' ' `` ` . ? ! , : - -- ... ;".split())  # noqa: SIM905
_SPELLED = {
    "“": '"', "”": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "–": "--", "—": "--", "£": "# ", "€": "$",
    "¢": " cents ", "½": "1/2", "¼": "1/4", "¾": "3/4", "…": "...", "\n": " ",
}  # fmt: skip
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT_WORDS = {
    "cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me", "lemme": "lem me",
    "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip
_ABBREVIATIONS = {
    "mr.",
    "mrs.",
    "ms.",
    "dr.",
    "st.",
    "vs.",
    "etc.",
    "jr.",
    "sr.",
    "no.",
    "prof.",
    "inc.",
    "co.",
    "corp.",
}
_TOKEN = re.compile(
    r"""
    https?://\S+ | [\w.+-]+@[\w-]+\.[\w.-]*\w             # addresses
  | (?:[a-z]\.)+(?:[a-z]\.?)?(?![a-z])                   # a.m.  e.g.  u.s.
  | '(?:tis|twas)\b | (?<![^\s])'(?:s|re|ve|ll|d|m)\b     # clitics that stand alone
  | \d+(?:[.,:]\d+)*(?=(?:am|pm)\b)                      # 12:45pm
  | [a-z]+\.(?=\s|,|$)                                   # kept whole only where it is an abbreviation
  | [\#@]\w+ | <[a-z/]+> | [a-z]+(?:&[a-z]+)+            # tags, marks, at&t
  | \d+(?:[.,:/]\d+)+(?:-[^\W_]+)*                       # 10,000  3:30  1/2  3.5-inch
  | [a-z0-9]+(?:_[a-z0-9]+)+
  | [^\W_²³¹]+(?:[-/][^\W_]+)*(?:'[^\W_]+)*(?:-[^\W_]+)*  # words, hyphens, slashes, apostrophes
  | \.\.\. | --+ | [?!]+ | '' | `` | \S
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"^(.+?)('s|'re|'ve|'ll|'d|'m|n't)$")
_MONTHS = {f"{month}." for month in ("jan", "feb", "mar", "apr", "aug", "sept", "sep", "oct", "nov", "dec")}


def tokens(caption: str) -> list[str]:
    """Tokens of a caption in lower case, without punctuation, as Stanford's tokeniser gives for plain English.

    Exact on captions of letters, digits, hyphens, apostrophes and sentence punctuation; characters outside the basic
    plane disappear.
    """
    text = "".join(_SPELLED.get(c, c) for c in caption if ord(c) < 0x10000 and c != "\u200d").lower()
    found: list[str] = []
    for match in _TOKEN.finditer(text):
        found += _parts(match.group())
    return [token for token in found if token not in _DROPPED and token != '"']


def _parts(token: str) -> list[str]:
    if token in _BRACKETS:
        return [_BRACKETS[token]]
    if token in _SPLIT_WORDS:
        return _SPLIT_WORDS[token].split()
    if token.endswith(".") and token[:-1].isalpha() and token not in _ABBREVIATIONS | _MONTHS and len(token) > 2:
        return [*_parts(token[:-1]), "."]
    clitic = _CLITIC.match(token)
    return [*_parts(clitic.group(1)), clitic.group(2)] if clitic else [token]


@dataclass(frozen=True)
class CaptionScores:
    """cider: by item, in the order asked; corpus: BLEU-1 to 4 and ROUGE-L of all, as fractions."""

    cider: list[float]
    corpus: dict[str, float]


def caption_scores(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Scores of one caption per item against its references. Document frequencies come from these references."""
    said = {name: tokens(text) for name, text in predictions.items()}
    right = {name: [tokens(text) for text in references[name]] for name in predictions}
    corpus = {f"BLEU-{n}": value for n, value in enumerate(bleu(list(said.values()), list(right.values())), 1)}
    corpus["ROUGE-L"] = sum(rouge_l(said[name], right[name]) for name in said) / len(said)
    return CaptionScores(cider(list(said.values()), list(right.values())), corpus)


def _grams(words: Sequence[str], n: int) -> Grams:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(said: Sequence[Sequence[str]], right: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Corpus BLEU-1 to 4 with the closest reference length (ties: the shorter)."""
    matches, guesses, length, wanted = [0] * 4, [0] * 4, 0, 0
    for words, references in zip(said, right):
        length += len(words)
        wanted += min((abs(len(r) - len(words)), len(r)) for r in references)[1]
        for n in range(4):
            most: Grams = Counter()
            for reference in references:
                most |= _grams(reference, n + 1)
            grams = _grams(words, n + 1)
            guesses[n] += max(0, len(words) - n)
            matches[n] += sum((grams & most).values())
    penalty = math.exp(1 - (wanted + 1e-15) / (length + 1e-9)) if length < wanted else 1.0
    product, scores = 1.0, []
    for n in range(4):
        product *= (matches[n] + 1e-15) / (guesses[n] + 1e-9)
        scores.append(product ** (1 / (n + 1)) * penalty)
    return scores


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> float:
    """F measure of the longest common subsequence, best precision and best recall over the references."""
    words = words or [""]
    common = [(_common(words, reference or [""]), len(reference or [""])) for reference in references]
    precision = max(found / len(words) for found, _ in common)
    recall = max(found / length for found, length in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for a in first:
        before = 0
        for i, b in enumerate(second, 1):
            before, row[i] = row[i], before + 1 if a == b else max(row[i], row[i - 1])
    return row[-1]


def cider(said: Sequence[Sequence[str]], right: Sequence[Sequence[Sequence[str]]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of every item (times 10): tf-idf cosine of 1- to 4-grams with clipping and a penalty on length."""
    gram_sets = [[[_grams(r, n) for n in range(1, 5)] for r in references] for references in right]
    frequency: Counter[tuple[str, ...]] = Counter()
    for references in gram_sets:
        frequency.update({gram for reference in references for grams in reference for gram in grams})
    items = math.log(float(len(right)))
    weight = {gram: items - math.log(count) for gram, count in frequency.items()}
    scores = []
    for words, references in zip(said, gram_sets):
        mine = [_weighted(_grams(words, n), weight, items) for n in range(1, 5)]
        total = 0.0
        for reference in references:
            theirs = [_weighted(grams, weight, items) for grams in reference]
            gap = sum(_grams(words, 2).values()) - sum(reference[1].values())
            total += sum(map(_cosine, mine, theirs)) / 4 * math.exp(-(gap**2) / (2 * sigma**2))
        scores.append(10 * total / len(references))
    return scores


Weighted = tuple[dict[tuple[str, ...], float], float]


def _weighted(grams: Grams, weight: Mapping[tuple[str, ...], float], unseen: float) -> Weighted:
    values = {gram: count * weight.get(gram, unseen) for gram, count in grams.items()}
    return values, math.sqrt(sum(value * value for value in values.values()))


def _cosine(mine: Weighted, theirs: Weighted) -> float:
    (a, norm_a), (b, norm_b) = mine, theirs
    dot = sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b)
    return dot / (norm_a * norm_b) if norm_a and norm_b else dot
