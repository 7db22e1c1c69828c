"""Token ids as they are generated -> text that will not change any more.

ids so far -> decode -> hold back unfinished characters and what may become the end -> put(new text)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

UNFINISHED = "\ufffd"
"""What the first bytes of a character decode to."""


class Pieces:
    """A streamer for transformers' `generate` whose pieces, joined, are exactly the text of the whole answer.

    decode: ids -> text without special tokens; stops: texts that end an answer and are no part of it; put: takes the
    pieces; stop: set when a stop was found.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stops: Sequence[str], put: Callable[[str], Any], stop: Event
    ) -> None:
        self.decode, self.stops, self._put, self.stop = decode, tuple(stops), put, stop
        self.ids: list[int] = []
        self.said = ""
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """value: the prompt (1, seq), then every new id (1,)."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self.ids += value.flatten().tolist()
        text, is_over = self._cut(self.decode(self.ids))
        if is_over:
            self.stop.set()
        else:
            text = text[: len(text) - self._held(text)]
        self._say(text)

    def end(self) -> None:
        """The rest: nothing can follow that would change it."""
        self._say(self._cut(self.decode(self.ids))[0])

    def _say(self, text: str) -> None:
        if len(text) > len(self.said) and text.startswith(self.said):
            piece, self.said = text[len(self.said) :], text
            self._put(piece)

    def _cut(self, text: str) -> tuple[str, bool]:
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return (text[: min(places)].rstrip(), True) if places else (text, False)

    def _held(self, text: str) -> int:
        """Characters at the end that may still change: half a character, or the beginning of a stop and blanks."""
        kept = len(text.rstrip(UNFINISHED))
        for stop in self.stops:
            for size in range(min(len(stop) - 1, kept), 0, -1):
                if text.endswith(stop[:size], 0, kept):
                    return len(text) - len(text[: kept - size].rstrip())
        return len(text) - kept
