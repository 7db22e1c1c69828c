"""METEOR, SPICE and the original tokeniser: Java programs of `pycocoevalcap`, called where both are installed.

None of them is imitated: without Java a report leaves them out and says so.
"""

from __future__ import annotations

import atexit
import contextlib
import re
import shutil
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plait.errors import import_extra

Words = Sequence[str]
PACKAGE = "pycocoevalcap"
SPICE_MODELS = "spice/lib/stanford-corenlp-3.6.0-models.jar"
"""Where the package keeps what the parser of SPICE has learned; it is a download of its own."""


_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def missing() -> str | None:
    """What is missing to run METEOR and the tokeniser, as one line with its remedy.

    None where nothing is missing; asked before a report leaves a figure out.
    """
    if shutil.which("java") is None:
        return "needs Java: expected the program java on the path, found none; install a Java runtime"
    if find_spec(PACKAGE) is None:
        return f"needs Java: expected the package {PACKAGE}, found none; install it with: pip install {PACKAGE}"
    return None


def spice_missing() -> str | None:
    """What is missing to run SPICE, as one line with its remedy; None where nothing is.

    Its parser models are a download of their own, which the package does not bring.
    """
    if (reason := missing()) is not None:
        return reason
    spec = find_spec(PACKAGE)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if any((place / SPICE_MODELS).is_file() for place in places):
        return None
    return f"needs the parser models of SPICE: expected {SPICE_MODELS} in {PACKAGE}; run its get_stanford_models"


def meteor(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
    """METEOR 1.5: corpus aggregate and value per caption.

    Args:
        said: n token lists.
        right: n lists of reference token lists.

    Returns:
        A fraction over the corpus, and one per caption. The program is started once and kept,
        because it reads a large table of paraphrases first.

    Raises:
        RuntimeError: where `missing()` says something.

    Source:
        Denkowski and Lavie 2014, options -l en -norm.
    """
    _require(missing())
    try:
        score, items = _meteor_tool().compute_score(*_tables(said, right))
    except BaseException:
        _meteor_tool.cache_clear()  # its pipes hold half an answer
        raise
    return float(score), [float(item) for item in items]


def spice(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
    """SPICE: mean and F per caption.

    Args:
        said, right: as in `meteor`.

    Raises:
        RuntimeError: where `spice_missing()` says something.

    Source:
        Anderson et al. 2016.
    """
    _require(spice_missing())
    score, items = import_extra(f"{PACKAGE}.spice.spice").Spice().compute_score(*_tables(said, right))
    return float(score), [float(item["All"]["f"]) for item in items]


def stanford_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Tokens of captions by the original program, all in one call.

    Args:
        captions: as they were written.

    Returns:
        A token list each.

    Raises:
        RuntimeError: where `missing()` says something.
    """
    _require(missing())
    tool = import_extra(f"{PACKAGE}.tokenizer.ptbtokenizer").PTBTokenizer()
    # a line per caption goes in and out: a caption with a line end would shift all that follow
    found = tool.tokenize({i: [{"caption": _LINE_ENDS.sub(" ", caption)}] for i, caption in enumerate(captions)})
    return [found[i][0].split() for i in range(len(captions))]


def tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """`plait.metrics.captions.tokenized` by the original program. Errors as in `meteor`."""
    lines = iter(stanford_tokens([text for several in references for text in several]))
    return stanford_tokens(predictions), [[next(lines) for _ in several] for several in references]


def _require(reason: str | None) -> None:
    """Raise RuntimeError with the reason where there is one."""
    if reason is not None:
        raise RuntimeError(reason)


def _tables(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[dict[int, Any], dict[int, Any]]:
    """References and results as the package wants them: item -> list of tokenised captions."""
    references = {i: [" ".join(words) for words in several] for i, several in enumerate(right)}
    return references, {i: [" ".join(words)] for i, words in enumerate(said)}


@cache
def _meteor_tool() -> Any:
    """The running program; it ends, with its pipes, when Python does."""
    tool = import_extra(f"{PACKAGE}.meteor.meteor").Meteor()
    atexit.register(_end, tool)
    return tool


def _end(tool: Any) -> None:
    """Stop the program and close its pipes, so that Python ends without warnings."""
    tool.meteor_p.kill()
    tool.meteor_p.wait()
    for pipe in (tool.meteor_p.stdin, tool.meteor_p.stdout, tool.meteor_p.stderr):
        with contextlib.suppress(OSError):  # what was not flushed
            pipe.close()
