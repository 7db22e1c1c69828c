"""What searches for absent things score: from which score on a hit counts as found.

query -> its parts -> queries made alike, for things that nobody asked for -> best score of each, by kind of row
      -> the score that only a stated share of them reaches (`floors`)

A nearest row always exists, and its raw score says little: scales differ by model and by kind of query and row. So the
index is asked for what it was not made for. Texts are the everyday words below; pictures, films and sounds are rows of
the index itself, each compared with all others. Some of those words will be in an index: that makes the floor higher,
so the stated share is rather kept than exceeded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from plait.embedder.parts import Part
from plait.errors import UsageError
from plait.media.values import medium
from plait.places import atomic_write
from plait.search.index import one_line
from plait.search.rows import batches, by_id, vectors_of

if TYPE_CHECKING:
    from plait.search.index import Index

FALSE_ALARMS = 0.1
"""Of ten searches for what is not there, one finds something."""

_FEWEST = 20
"""Queries of background at least: from fewer the share of a tenth cannot be read."""
_MOST = 240
_FILE = "background.json"
_ARTICLE = re.compile(r"(?:an?|the) ", re.IGNORECASE)
THINGS = """
an apple; a banana; a bowl of soup; a birthday cake; a slice of pizza; a loaf of bread; a cup of coffee;
a glass of wine; a plate of pasta; a fried egg; a carrot; a head of lettuce; a bag of crisps; an ice cream;
a jar of honey; a lemon; a dog; a cat; a horse; a cow; a sheep; a pig; a rabbit; a mouse; an elephant; a lion;
a bear; a wolf; a monkey; a snake; a lizard; a frog; a shark; a dolphin; an octopus; a crab; a butterfly; a bee;
a spider; an ant; an eagle; an owl; a penguin; a duck; a rooster; a parrot; a rose; a sunflower; a cactus;
an oak tree; a palm tree; mushrooms; a forest; a mountain; a river; a waterfall; a lake; a beach; a desert;
an island; a volcano; a cave; a field of wheat; a garden; the moon; the sun; stars at night; a rainbow;
lightning; snow; fog; rain; clouds; a sunset; fire; smoke; ice; waves; a car; a bus; a truck; a bicycle;
a motorcycle; a train; a tram; an aeroplane; a helicopter; a boat; a sailing ship; a submarine; a rocket;
a tractor; a taxi; an ambulance; a skateboard; a wheelchair; a traffic light; a road sign; a bridge; a tunnel;
a street at night; a crossroads; a car park; an airport; a harbour; a railway station; a lighthouse; a house;
a castle; a church; a mosque; a skyscraper; a factory; a farm; a barn; a tent; a school; a hospital; a museum;
a library; a stadium; a theatre; a swimming pool; a playground; a kitchen; a bathroom; a bedroom; an office;
a staircase; a door; a window; a roof; a fence; a chair; a table; a sofa; a bed; a lamp; a candle; a mirror;
a clock; a carpet; a bookshelf; a fridge; an oven; a washing machine; a toilet; a bathtub; a pillow; a blanket;
a curtain; a vase; a plant pot; a hammer; a screwdriver; a saw; a ladder; a rope; a bucket; a shovel;
a paintbrush; a needle and thread; scissors; a key; a lock; a knife; a fork; a spoon; a bottle; a box; a basket;
a backpack; a suitcase; an umbrella; a wallet; a coin; a banknote; a letter; a stamp; a newspaper; a book;
a map; a calendar; a pencil; a ruler; a calculator; a computer; a keyboard; a phone; a camera; a television;
a radio; headphones; a microphone; a loudspeaker; a guitar; a piano; a violin; a trumpet; a drum; a flute;
a football; a tennis racket; a basketball; a chess board; dice; a playing card; a doll; a kite; a balloon;
a gift; a trophy; a medal; a flag; a crown; a ring; a necklace; a wristwatch; glasses; a hat; a shirt; a coat;
a dress; trousers; a shoe; a boot; a glove; a scarf; a sock; a tie; a uniform; a mask; a baby; a child;
an old man; a woman; a crowd; a wedding; a doctor; a police officer; a firefighter; a cook; a soldier; a dancer;
a hand; a foot; an eye; a skeleton; a tattoo; a statue; a painting; graffiti; a fountain; fireworks;
a Christmas tree; a pumpkin
"""
"""Everyday things, so many that the few which an index holds do not move a tenth."""


@dataclass(frozen=True)
class Floors:
    """From which score on a row counts as found.

    Attributes:
        by_kind: modality of a row -> score.
        false_alarms: share of searches for absent things that find something nevertheless.
        queries: how many searches the share is read from.
    """

    by_kind: Mapping[str, float]
    false_alarms: float
    queries: int


def floors(index: Index, parts: Sequence[Part], false_alarms: float = FALSE_ALARMS) -> Floors:
    """From which score on a hit of such a query counts as found.

    The first call for an index and a kind of query compares the background with every row; what comes of it is kept
    beside the rows until they change.

    Args:
        index: which is searched; its model makes vectors of words where the query holds words.
        parts: of the query, see `plait.embedder.parts_of`: kinds and weights count, not values.
        false_alarms: the share of absent things for which a search may find something, over all kinds of rows
            together; between 0 and 1, not more exact than one in the number of queries.

    Raises:
        UsageError: for another share, and for a query with media of which the index holds too few to know.

    Example:
        >>> from plait.embedder.parts import parts_of
        >>> floors(index, parts_of("a dog")).by_kind  # {'audio': 0.41, 'image': 0.38}
    """
    if not 0 < false_alarms < 1:
        raise UsageError(f"expected a share of false alarms between 0 and 1, got {false_alarms}; 0.1 is one in ten")
    pattern = "+".join(f"{part.modality}{'~' * _is_phrased(part)}*{part.weight:g}" for part in parts)
    best = _known(index, pattern)
    if best is None:
        queries, own = _alike(index, parts)
        best = _best(index, queries, own)
        _keep(index, pattern, best)
    count = len(next(iter(best.values()), ()))
    if not count:
        return Floors({}, false_alarms, 0)
    scores = np.array(list(best.values()))  # (kinds, queries)
    # how rare each score is among those of its kind, then the rarest of each query: one share holds for all kinds
    ranks = (scores[:, None, :] >= scores[:, :, None]).mean(2)
    rare = np.sort(ranks.min(0))[max(0, int(np.floor(false_alarms * count)) - 1)]
    by_kind = {}
    for kind, row, rank in zip(best, scores, ranks, strict=True):
        reaching = row[rank <= rare]
        by_kind[kind] = float(reaching.min() if len(reaching) else np.nextafter(row.max(), np.inf))
    return Floors(by_kind, false_alarms, count)


def things(*, phrased: bool = False) -> list[str]:
    """The words of `THINGS`, one search each; phrased: with their articles."""
    found: list[str] = [str(one.strip()) for one in THINGS.replace("\n", " ").split(";")]
    return found if phrased else [_ARTICLE.sub("", one) for one in found]


def _is_phrased(part: Part) -> bool:
    """Whether somebody asks with an article. A model may know `a dog` from `dog` so well that their scores differ by
    more than those of present and absent things (benchmarks/finding.py): the background has to be asked alike."""
    return medium(part.modality).is_words and bool(_ARTICLE.match(part.value))


def _alike(index: Index, parts: Sequence[Part]) -> tuple[np.ndarray, list[set[str]]]:
    """Queries made like the one asked, of other things: unit vectors (queries, dim), and the contents of each."""
    pools: dict[str, tuple[np.ndarray, list[str]]] = {}
    for kind in {part.modality for part in parts}:
        if medium(kind).is_words:
            words = things(phrased=any(map(_is_phrased, parts)))[:_MOST]
            pools[kind] = index.embedder.embed(words), [""] * len(words)
        else:
            pools[kind] = _rows_of(index, kind)
        if (count := len(pools[kind][0])) < _FEWEST:
            raise UsageError(
                f"expected an index with at least {_FEWEST} rows of {kind}, from which the score of absent things is "
                f"read for such a query, got {count}; pass a number as the lowest score"
            )
    count = min(len(vectors) for vectors, _ in pools.values())
    rng = np.random.default_rng(0)  # the same floor for the same index
    total, own = np.zeros((count, index.description["dim"])), [set() for _ in range(count)]
    for part in parts:
        vectors, contents = pools[part.modality]
        chosen = rng.permutation(len(vectors))[:count]
        total += part.weight * vectors[chosen]
        for place, row in enumerate(chosen):
            own[place].add(contents[row])
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    kept = lengths[:, 0] > 1e-6  # a thing minus itself has no direction
    return (total[kept] / lengths[kept]).astype(np.float32), [one for one, keep in zip(own, kept) if keep]


def _rows_of(index: Index, kind: str) -> tuple[np.ndarray, list[str]]:
    """Vectors of at most `_MOST` rows of a kind, spread over the index, with their checksums."""
    condition = f"modality = '{kind}'"
    with one_line():
        held = index.table.count_rows(condition)
        places = np.unique(np.linspace(0, max(0, held - 1), min(held, _MOST)).astype(int))
        ids = index.table.search().where(condition).select(["id"]).to_arrow()["id"].to_pylist()
    rows = by_id(index, [ids[place] for place in places] if ids else [], ["checksum", "vector"])
    return np.array([row["vector"] for row in rows], np.float32), [row["checksum"] for row in rows]


def _best(index: Index, queries: np.ndarray, own: Sequence[set[str]]) -> dict[str, list[float]]:
    """The best score of every query among the rows of each kind, rows that it was made of left out.

    queries: (queries, dim). own: checksums that belong to each.
    """
    best: dict[str, np.ndarray] = {}
    owners: dict[str, list[int]] = {}
    for place, contents in enumerate(own):
        for content in contents - {""}:
            owners.setdefault(content, []).append(place)
    for batch in batches(index, ["modality", "checksum"]):
        kinds, contents = np.array(batch["modality"].to_pylist()), batch["checksum"].to_pylist()
        scores = queries @ vectors_of(batch).T  # (queries, rows)
        for row, content in enumerate(contents):
            if content in owners:
                scores[owners[content], row] = -np.inf
        for kind in np.unique(kinds):
            found = scores[:, kinds == kind].max(1)
            best[str(kind)] = np.maximum(best.get(str(kind), found), found)
    # a kind with one row, which a query was made of, says nothing of that query
    return {kind: [float(max(one, -1.0)) for one in found] for kind, found in sorted(best.items())}


def _known(index: Index, pattern: str) -> dict[str, list[float]] | None:
    """Best scores that were found before, where the rows are still the same."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # none, or damaged: they are made anew
        kept = json.loads((index.path / _FILE).read_text())
        if kept["version"] == index.table.version and (best := kept["best"].get(pattern)):
            scores = np.array(list(best.values()), float)  # ragged rows or words raise ValueError
            return best if scores.ndim == 2 and np.isfinite(scores).all() else None
    return None


def _keep(index: Index, pattern: str, best: dict[str, list[float]]) -> None:
    """Keep best scores beside the rows; an index that may only be read is asked anew each time."""
    version, kept = index.table.version, {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads((index.path / _FILE).read_text())
        kept = before["best"] if before["version"] == version else {}
    with suppress(OSError):
        atomic_write(index.path / _FILE, json.dumps({"version": version, "best": kept | {pattern: best}}))
