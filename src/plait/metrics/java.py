"""METEOR, SPICE and the original tokeniser: Java programs of `pycocoevalcap`, called where both are installed.

None of them is imitated: without Java a report leaves them out and says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from plait.errors import import_extra

Words = Sequence[str]
PACKAGE = "pycocoevalcap"


def missing() -> str | None:
    """What is missing to run the Java programs, as one line; None where nothing is."""
    if shutil.which("java") is None:
        return "needs Java: expected the program java on the path, found none; install a Java runtime"
    if find_spec(PACKAGE) is None:
        return f"needs Java: expected the package {PACKAGE}, found none; install it with: pip install {PACKAGE}"
    return None


def meteor(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
    """METEOR 1.5 (Denkowski and Lavie 2014, options -l en -norm): corpus aggregate and value per caption.

    said: n token lists, right: n lists of reference token lists. Raises RuntimeError where `missing()` says something.
    """
    _require()
    with _quiet_close(import_extra(f"{PACKAGE}.meteor.meteor").Meteor()) as tool:
        score, items = tool.compute_score(*_tables(said, right))
    return float(score), [float(item) for item in items]


def spice(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
    """SPICE (Anderson et al. 2016): mean and F per caption. Its parser models are a download of the package's own.

    Arguments and errors as in `meteor`.
    """
    _require()
    score, items = import_extra(f"{PACKAGE}.spice.spice").Spice().compute_score(*_tables(said, right))
    return float(score), [float(item["All"]["f"]) for item in items]


def stanford_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Tokens of captions by the original program, all in one call. Errors as in `meteor`."""
    _require()
    tool = import_extra(f"{PACKAGE}.tokenizer.ptbtokenizer").PTBTokenizer()
    found = tool.tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    return [found[i][0].split() for i in range(len(captions))]


def _require() -> None:
    if (reason := missing()) is not None:
        raise RuntimeError(reason)


def _tables(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[dict[int, Any], dict[int, Any]]:
    """References and results as the package wants them: item -> list of tokenised captions."""
    references = {i: [" ".join(words) for words in several] for i, several in enumerate(right)}
    return references, {i: [" ".join(words)] for i, words in enumerate(said)}


@contextmanager
def _quiet_close(tool: Any) -> Generator[Any]:
    """End the program of a METEOR object with its pipes, whatever happens."""
    try:
        yield tool
    finally:
        for pipe in (tool.meteor_p.stdin, tool.meteor_p.stdout, tool.meteor_p.stderr):
            pipe.close()
        tool.meteor_p.kill()
        tool.meteor_p.wait()
