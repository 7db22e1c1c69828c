"""Captions: token lists + references -> BLEU-1..4, ROUGE-L, CIDEr as the caption kit of COCO computes them.

    words (n captions) + references (n x several) -> n-gram counts -> per item and corpus figures

Everything is a fraction (CIDEr: times 10); papers print 100 times that. Tokens come from `plait.metrics.ptb`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from plait.metrics.ptb import ptb_tokens_of

Words = Sequence[str]
Gram = tuple[str, ...]
Grams = Counter[Gram]
ORDERS = range(1, 5)
TINY, SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class CaptionScores:
    """Corpus figures by name (bleu_1 to bleu_4, rouge_l, cider) and CIDEr per item, in the order of the items."""

    corpus: dict[str, float]
    cider: list[float]


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many items an n-gram occurs among the references; what CIDEr's idf is made of.

    counts: n-gram -> items; unlisted ones occur in none. num_documents: items counted.
    """

    counts: Mapping[Gram, int]
    num_documents: float

    @classmethod
    def of(cls, references: Iterable[Sequence[Words]]) -> DocumentFrequency:
        """Counted over the references of a set, one document per item.

        Args:
            references: per item its reference token lists; an n-gram in several of them counts once.
        """
        items = list(references)
        counts: Counter[Gram] = Counter()
        for several in items:
            counts.update({gram for words in several for n in ORDERS for gram in _grams_of(words, n)})
        return cls(counts, len(items))


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """All caption figures that need no Java: BLEU-1..4, ROUGE-L, CIDEr.

    Document frequencies of CIDEr come from these references: a part of a set has another scale
    than the whole.

    Args:
        predictions: n captions as they were written.
        references: per caption its references, at least one.

    Returns:
        A `CaptionScores`.

    Raises:
        ValueError: for no captions, another number of references, or a caption without any.

    Example:
        >>> scores = caption_scores(["a dog runs"], [["a dog runs", "the dog is running"]])
        >>> sorted(scores.corpus)
        ['bleu_1', 'bleu_2', 'bleu_3', 'bleu_4', 'cider', 'rouge_l']
    """
    return token_scores(*tokenized(predictions, references))


def token_scores(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> CaptionScores:
    """`caption_scores` of tokens that are there already.

    Args:
        said: n token lists.
        right: n lists of reference token lists.
    """
    _check(said, right)
    corpus = {"rouge_l": sum(map(rouge_l, said, right)) / len(said)}
    # the kit joins tokens and cuts them anew: for ROUGE at spaces, else at all white space, also within a number
    said, right = [_apart(words) for words in said], [[_apart(words) for words in several] for several in right]
    corpus |= {f"bleu_{n}": value for n, value in zip(ORDERS, bleu(said, right), strict=True)}
    items = cider(said, right)
    corpus["cider"] = sum(items) / len(items)
    return CaptionScores(corpus, items)


def _apart(words: Words) -> list[str]:
    """Tokens with those that hold white space cut at it."""
    return [part for word in words for part in word.split()]


def tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Tokens of captions and of their references, as the caption kit makes them.

    The kit tokenises one text for all captions and one for all references, a line per caption; a
    last line ends otherwise than the others (see `plait.metrics.ptb`).

    Args:
        predictions: n captions.
        references: per caption its references.

    Returns:
        n token lists, and n lists of reference token lists.
    """
    lines = iter(ptb_tokens_of([text for several in references for text in several]))
    return ptb_tokens_of(predictions), [[next(lines) for _ in several] for several in references]


def bleu(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4: clipped counts summed over items, closest reference length.

        precision_n = (matches + 1e-15) / (guesses + 1e-9)
        penalty = exp(1 - r/c) where the captions are shorter than the references, c < r

    Args:
        said: n token lists.
        right: n lists of reference token lists.

    Returns:
        Four fractions, for n-grams up to 1, 2, 3 and 4.

    Source:
        Papineni et al. 2002, in the form of COCO's caption kit.
    """
    _check(said, right)
    matches, guesses, length, wanted = [0] * 4, [0] * 4, 0, 0
    for words, several in zip(said, right, strict=True):
        length += len(words)
        # of references equally far away the shorter one counts, as in the kit
        wanted += min((abs(len(reference) - len(words)), len(reference)) for reference in several)[1]
        for n in ORDERS:
            grams = _grams(words, n)
            most: Grams = Counter()
            for reference in several:
                # the union keeps the largest count: a word may come as often as in one reference
                most |= _grams(reference, n)
            guesses[n - 1] += max(0, len(words) - n + 1)
            matches[n - 1] += (grams & most).total()
    # the kit's two constants: without a match a score is tiny and not 0, and nothing divides by 0
    ratio = (length + TINY) / (wanted + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in ORDERS:
        product *= (matches[n - 1] + TINY) / (guesses[n - 1] + SMALL)
        scores.append(product ** (1 / n) * penalty)
    return scores


def rouge_l(words: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """ROUGE-L of one caption: best precision and best recall of the longest common subsequence.

        F = (1 + beta^2) P R / (R + beta^2 P), 0 if P or R is 0

    Args:
        words: tokens of the caption; an empty one is one empty token, as in the kit.
        references: token lists; P and R may come from different ones.
        beta: weight of recall, 1.2 in the kit.

    Returns:
        A fraction.

    Raises:
        ValueError: without references.

    Source:
        Lin 2004.
    """
    if not references:
        raise ValueError("expected at least one reference, got none")
    said = list(words) or [""]
    common = [(_common(said, list(reference) or [""]), len(reference) or 1) for reference in references]
    precision = max(found / len(said) for found, _ in common)
    recall = max(found / length for found, length in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def cider(
    said: Sequence[Words],
    right: Sequence[Sequence[Words]],
    *,
    frequency: DocumentFrequency | None = None,
    plain: bool = False,
    sigma: float = 6.0,
) -> list[float]:
    """CIDEr-D per item, which caption papers call CIDEr, on the scale 0 to 10.

    tf-idf vectors of 1- to 4-grams, idf = ln(documents) - ln(max(1, frequency)); mean over n and
    over references of the clipped cosine min(h, r) r / (|h| |r|), times
    exp(-(bigrams of h - of r)^2 / (2 sigma^2)).

    Args:
        said: n token lists.
        right: n lists of reference token lists.
        frequency: stored counts, as a reward in training needs; by default of these references.
        plain: CIDEr without clipping and without the length penalty.
        sigma: width of the length penalty.

    Returns:
        n numbers; papers print 100 times their mean.

    Source:
        Vedantam et al. 2015.
    """
    _check(said, right)
    table = DocumentFrequency.of(right) if frequency is None else frequency
    # an n-gram of no reference weighs as much as one of a single reference: max(1, frequency)
    unseen = math.log(table.num_documents)
    idf = {gram: unseen - math.log(max(1, count)) for gram, count in table.counts.items()}
    cosine = _cosine if plain else _clipped_cosine
    scores = []
    for words, several in zip(said, right, strict=True):
        mine = [_weighted(_grams(words, n), idf, unseen) for n in ORDERS]
        total = 0.0
        for reference in several:
            pairs = zip(mine, (_grams(reference, n) for n in ORDERS), strict=True)
            likeness = sum(
                cosine(own, _weighted(grams, idf, unseen))
                for own, grams in pairs
                if not own[0].keys().isdisjoint(grams)
            )
            # the kit takes the number of bigrams for the length
            gap = max(0, len(words) - 1) - max(0, len(reference) - 1)
            # mean over the four orders
            total += likeness / 4 * (1.0 if plain else math.exp(-(gap**2) / (2 * sigma**2)))
        scores.append(10 * total / len(several))
    return scores


Weighted = tuple[dict[Gram, float], float]


def _weighted(grams: Grams, idf: Mapping[Gram, float], unseen: float) -> Weighted:
    # counts, not shares: the cosine divides by the length of the vector anyway
    """tf-idf of every n-gram of one order, and the length of that vector."""
    vector = {gram: count * idf.get(gram, unseen) for gram, count in grams.items()}
    return vector, math.hypot(*vector.values())


def _clipped_cosine(mine: Weighted, theirs: Weighted) -> float:
    """CIDEr-D's cosine: n-grams said more often than in the reference gain nothing."""
    (own, own_norm), (other, other_norm) = mine, theirs
    # clipped before the product: CIDEr-D's answer to captions that repeat a good word
    dot = sum(min(value, other[gram]) * other[gram] for gram, value in own.items() if gram in other)
    return dot / (own_norm * other_norm) if own_norm and other_norm else dot


def _cosine(mine: Weighted, theirs: Weighted) -> float:
    """The plain cosine; 0 / 0 is 0, as the kit leaves it."""
    (own, own_norm), (other, other_norm) = mine, theirs
    dot = sum(value * other[gram] for gram, value in own.items() if gram in other)
    return dot / (own_norm * other_norm) if own_norm and other_norm else dot


def _grams_of(words: Words, n: int) -> Iterable[Gram]:
    """All n-grams of a token list in order."""
    return zip(*(words[i:] for i in range(n)), strict=False)


def _grams(words: Words, n: int) -> Grams:
    """How often each n-gram of one order occurs."""
    return Counter(_grams_of(words, n))


def _common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, a bit per word of `second` (Crochemore et al. 2001)."""
    places: dict[str, int] = {}
    for i, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(second)) - 1
    open_ = every  # a bit is cleared where the subsequence grows by a word
    for word in first:
        met = open_ & places.get(word, 0)
        open_ = ((open_ + met) | (open_ - met)) & every
    return len(second) - open_.bit_count()


def _check(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> None:
    """Raise ValueError unless there are captions and each has references."""
    if not said or len(said) != len(right):
        raise ValueError(f"expected references for each of {len(said)} captions, and some captions, got {len(right)}")
    if (empty := next((i for i, several in enumerate(right) if not several), None)) is not None:
        raise ValueError(f"expected at least one reference per caption, got none for caption {empty}")
