"""Dynamic batching: what callers ask for one by one is done together, as much as waits, in one thread.

    job -> waiting (bounded) -> all that wait, up to a batch -> work(jobs) -> a result or an error each

While one batch runs the next one gathers. A crowd whose answers went out a moment ago is waited for a few milliseconds,
since it comes back one by one; a lone job waits for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Condition, Thread
from typing import Any

GATHER = 0.004
"""Seconds for which a batch waits to become as large as the last one: less than most batches take."""


class BusyError(Exception):
    """Too much is waiting already: come back later."""


class ClosedError(Exception):
    """Nothing is taken any more: the server is going down."""


class Watch:
    """What is told to whoever counts; `plait.serving.metrics` counts for Prometheus, this one for nobody."""

    def load(self, running: int, waiting: int) -> None:
        """How much is being worked on, and how much waits."""

    def prefilled(self, tokens: int, queued: float) -> None:
        """A prompt of so many tokens was read after so many seconds of waiting."""

    def first_token(self, seconds: float) -> None:
        """An answer began, so long after it was asked for."""

    def step(self, rows: int, seconds: float) -> None:
        """So many answers have one more token, which took so long."""

    def finished(self, reason: str, tokens: int, seconds: float) -> None:
        """Something is over: why, how many tokens were drawn, how long after it was asked for."""


class Batcher:
    """One thread that works on whatever waits.

    Args:
        work: jobs -> as many results, an exception in the place of one that failed.
        max_batch: jobs of one call.
        max_waiting: jobs that may wait; more are refused.
        name: of the thread.
        watch: is told what waits and runs.

    Example:
        >>> batcher = Batcher(lambda jobs: [job * 2 for job in jobs])
        >>> batcher.submit([1, 2])[1].result()
        4
    """

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        max_batch: int = 32,
        max_waiting: int = 256,
        name: str = "plait-batcher",
        watch: Watch | None = None,
    ) -> None:
        self._work, self.max_batch, self.max_waiting = work, max_batch, max_waiting
        self.watch = watch or Watch()
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._running = 0
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Any]) -> list[Future[Any]]:
        """Queue all of them, or none; a future each, which can be cancelled until its batch begins.

        Raises BusyError where too much waits, ClosedError where nothing is taken any more.
        """
        futures: list[Future[Any]] = [Future() for _ in jobs]
        with self._changed:
            if self._closing:
                raise ClosedError
            # all or none: half a request in the queue would be work whose answer nobody gets
            if len(self._waiting) + len(jobs) > self.max_waiting:
                raise BusyError
            self._waiting.extend(zip(jobs, futures, strict=True))
            self._changed.notify()
        self.watch.load(self._running, len(self._waiting))
        return futures

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing more, finish what waits for at most so many seconds, end the thread with its batch."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            # out of time: whoever still waits is told so, instead of hanging on a future for ever
            while self._waiting:
                self._waiting.popleft()[1].cancel()
            self._changed.notify()
        self._thread.join()

    def _is_crowd(self, size: int) -> bool:
        return len(self._waiting) >= size or self._closing

    def _run(self) -> None:
        """What the thread does until it is closed and nothing waits."""
        crowd = 0  # jobs of the last batch
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                if crowd > 1 and not self._closing:
                    self._changed.wait_for(partial(self._is_crowd, crowd), GATHER)
                # counted again: jobs may have come, or been cancelled, while the lock was given away
                crowd = min(self.max_batch, len(self._waiting))
                taken = [self._waiting.popleft() for _ in range(crowd)]
            # from here on a future cannot be cancelled: its work is part of a batch with others
            batch = [(job, future) for job, future in taken if future.set_running_or_notify_cancel()]
            if not batch:
                continue
            self._running = len(batch)
            self.watch.load(self._running, len(self._waiting))
            try:
                results = self._work([job for job, _ in batch])
            # a whole batch that failed fails for each, and the thread lives on for the next
            except Exception as error:
                results = [error] * len(batch)
            self._running = 0
            self.watch.load(0, len(self._waiting))
            for (_, future), result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
