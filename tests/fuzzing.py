"""What every fuzz test promises: an input is done within five seconds, runs nothing, and memory stays bounded."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 5.0
MEGABYTES = 1024
M_ARENA_MAX = -8
"""glibc's name for the number of heaps."""
RUNNING = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"}
"""Audit events of Python that tell of code in a file being looked up or run."""

_watched: set[str] = set()


class BrokenPromise(BaseException):
    """What an input must not do; no `except Exception` between it and the test hides it."""


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in _watched:
        raise BrokenPromise(f"expected nothing to run, got {event}{arguments!r:.200}")


sys.addaudithook(_watch)


@contextmanager
def within(seconds: float = SECONDS) -> Generator[None]:
    """Fail when the block takes longer than `seconds` of wall time (a call into C fails when it returns), or runs code
    that an input holds.
    """

    def too_long(number: int, frame: FrameType | None) -> None:
        raise BrokenPromise(f"expected an answer within {seconds} s, got none")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _watched.update(RUNNING)
    try:
        yield
    finally:
        _watched.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory(megabytes: int = MEGABYTES) -> Generator[None]:
    """Fail when the process peaks more than `megabytes` above what it holds before the block (Linux; elsewhere above
    its peak before).
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)  # heaps that short-lived threads leave are no leak
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes, f"expected at most {megabytes} MB more, got {grown:.0f}"
