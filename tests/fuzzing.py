"""What every fuzz test promises: each input is done within five seconds, and memory does not grow without bound."""

from __future__ import annotations

import resource
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SECONDS = 5.0
MEGABYTES = 1024


@contextmanager
def within(seconds: float = SECONDS) -> Generator[None]:
    """Fail when the block takes longer than `seconds` of wall time (a call into C fails when it returns)."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"expected an answer within {seconds} s, got none")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory(megabytes: int = MEGABYTES) -> Generator[None]:
    """Fail when the process peaks more than `megabytes` above its peak before the block."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes, f"expected at most {megabytes} MB more, got {grown:.0f}"
