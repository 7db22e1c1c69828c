"""What a person sees on a terminal: a bar while long work runs, and text from files made safe to print."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

PATIENCE = 1.0
"""Seconds of work before a bar shows by itself."""


def progress_bar(
    what: str,
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    done: int = 0,
    unit: str = "item",
    show: bool | None = None,
) -> Any:
    """A tqdm bar on stderr: over `items` in a `for`, or without them in a `with`.

    Args:
        what: the words before the bar.
        items: what is worked on; None: the bar is moved by `update(n)`.
        total: number of items; None for a stream.
        done: where the work continues.
        unit: what one item is called.
        show: None shows the bar once the work has taken a second, only where stderr is a
            terminal, so that logs stay clean, and wipes it at the end; True and False are obeyed.

    Returns:
        A `tqdm.tqdm`.
    """
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() if show is None else not show
    return tqdm(
        items,
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        delay=0.0 if show else PATIENCE,
        disable=hidden,
        leave=bool(show),
    )


def printable(text: str) -> str:
    """`text` on one line, control characters spelled out.

    A name in a file or a model must not move the cursor, colour the screen or hide what follows.

    Example:
        >>> print(printable("two" + chr(10) + "lines"))
        two\\nlines
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
