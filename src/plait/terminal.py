"""What a person sees on a terminal: a bar while long work runs, and text from files made safe to print."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

PATIENCE = 1.0
"""Seconds of work before a bar shows by itself on a terminal."""
LOG_PATIENCE = 10.0
"""Seconds of work before a log is told, and between two lines that tell it: nobody should wait on a silent log."""


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
        show: None shows the bar once the work has taken a second, and wipes it at the end; where stderr is
            no terminal but a log, after ten seconds, and every ten; True and False are obeyed.

    Returns:
        A `tqdm.tqdm`.
    """
    from tqdm.auto import tqdm  # a notebook gets its own kind of bar, which is no log either

    is_log = show is None and not sys.stderr.isatty() and "ipykernel" not in sys.modules
    return tqdm(
        items,
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        delay=0.0 if show else LOG_PATIENCE if is_log else PATIENCE,
        mininterval=LOG_PATIENCE if is_log else 0.1,
        disable=show is False,
        leave=bool(show) or is_log,
    )


def printable(text: str) -> str:
    """`text` on one line, control characters spelled out.

    A name in a file or a model must not move the cursor, colour the screen or hide what follows.

    Example:
        >>> print(printable("two" + chr(10) + "lines"))
        two\\nlines
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor, colours, hides or turns text around, and halves of characters that no terminal can show.

Line ends and tabs stay, and so do the joiners that emoji and scripts need.
"""


class _Guard:
    """A text stream before another one: control characters are spelled out, all else is the other's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass `text` on, made safe; its length."""
        self._stream.write(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Pass `lines` on, made safe."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Generator[None]:
    """What is printed in the block has no control characters: captions, names and answers are a stranger's text.

    Characters that the terminal's encoding lacks are spelled out too (`LC_ALL=C`).
    """
    before = sys.stdout
    if isinstance(before, TextIOWrapper):
        before.reconfigure(errors="backslashreplace")
    sys.stdout = _Guard(before)
    try:
        yield
    finally:
        sys.stdout = before
