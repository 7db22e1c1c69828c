"""Every verb that writes, as a real process: one that may be paused while it holds its output, or killed at any moment.

One process imports everything once and forks for each command, so that a hundred of them cost seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NOT_THE_SAME_TWICE = {".plait", "report.html", "metrics.jsonl", "state.json", "COMPLETE", "training.json"}
"""Files that hold seconds, dates or paths."""


class Workshop:
    """Starts commands as processes of their own; use as a context."""

    def __enter__(self) -> Self:
        arguments = [sys.executable, "-W", "ignore", __file__]
        self.parent = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.close()
        self.parent.wait(60)
        self.parent.stdout.close()

    def _ask(self, **request: Any) -> int:
        assert self.parent.stdin is not None and self.parent.stdout is not None
        print(json.dumps(request), file=self.parent.stdin, flush=True)
        return int(self.parent.stdout.readline())

    def start(self, argv: Sequence[str], log: Path, gate: Path | None = None) -> int:
        """Begin a command; its process. gate: where it waits once it holds its output, until a file lies there."""
        return self._ask(argv=[str(one) for one in argv], log=str(log), gate=None if gate is None else str(gate))

    def wait(self, process: int) -> int:
        """Its exit code; below 0 the signal that ended it."""
        return os.waitstatus_to_exitcode(self._ask(wait=process))

    def run(self, argv: Sequence[str], log: Path) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        code = self.wait(self.start(argv, log))
        return code, log.read_text()

    def killed(self, argv: Sequence[str], log: Path, seconds: float) -> bool:
        """Begin a command and kill it after so long; whether it was still at work."""
        process = self.start(argv, log)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)  # a process that has ended waits for `wait`, so its number is its own
        return self.wait(process) == -signal.SIGKILL


def digest(place: Path) -> dict[str, str]:
    """Name -> SHA-256 of everything at a place that is the same whenever it is made."""
    found = {}
    for path in sorted([place, *place.rglob("*")] if place.is_dir() else [place]):
        if path.is_file() and not set(path.relative_to(place.parent).parts) & NOT_THE_SAME_TWICE:
            content = path.read_bytes().replace(str(place.parent).encode(), b"HERE")
            found[path.relative_to(place.parent).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def strays(folder: Path) -> list[str]:
    """Names in a folder that only an unfinished output has."""
    return [path.name for path in folder.iterdir() if path.name.startswith((".writing-", ".replaced-"))]


def _serve() -> None:
    """Import what verbs need, then fork for every line of standard input."""
    import torch
    import transformers  # noqa: F401

    import plait.assistant
    import plait.cli.assist
    import plait.cli.data
    import plait.cli.evaluate
    import plait.cli.models
    import plait.cli.search
    import plait.cli.train
    import plait.embedder
    import plait.models.one_peace.model
    import plait.recipes.one_peace  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitpid(request["wait"], 0)[1], flush=True)
        elif process := os.fork():
            print(process, flush=True)
        else:
            os._exit(_child(request))


def _child(request: dict[str, Any]) -> int:
    descriptor = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from plait import places
    from plait.cli import main

    if request["gate"] is not None:
        places._held = _gated(places._held, Path(request["gate"]))
        try:
            from plait.search import index
        except ImportError:
            pass
        else:
            index.writing = _gated(index.writing, Path(request["gate"]))
    code = main(request["argv"])
    sys.stderr.flush()
    sys.stdout.flush()
    return code


def _gated(held: Callable[..., Any], gate: Path) -> Callable[..., Any]:
    """As `held`, but the first time it is held a file is left beside `gate`, and nothing goes on until `gate` is."""

    @contextmanager
    def waiting(*args: Any, **named: Any) -> Generator[None]:
        with held(*args, **named):
            sign = gate.with_suffix(".held")
            if not sign.exists():
                sign.touch()
                while not gate.exists():
                    time.sleep(0.005)
            yield

    return waiting


if __name__ == "__main__":
    _serve()
