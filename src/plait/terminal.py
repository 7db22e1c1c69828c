"""What a person sees on a terminal: a bar while long work runs, and text from files made safe to print."""

from __future__ import annotations

import sys
from typing import Any


def progress(
    total: int | None, what: str, unit: str = "item", *, show: bool | None = None, done: int = 0, patience: float = 2.0
) -> Any:
    """A tqdm bar on stderr, to be used in a `with` and moved by `update(n)`.

    total: None for a stream; done: where the work continues. show: None shows the bar once the work has taken
    `patience` seconds, and only where stderr is a terminal, so that logs stay clean; True and False are obeyed.
    """
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() if show is None else not show
    delay = 0.0 if show else patience
    return tqdm(total=total, initial=done, desc=what, unit=unit, delay=delay, disable=hidden)


def printable(text: str) -> str:
    """`text` on one line, control characters spelled out: a file's name must not move the cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
