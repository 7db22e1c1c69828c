"""Faults put into the code by hand, to see whether the tests notice.

    *.toml -> one fault at a time in a linked copy of src -> the tests that should fail -> killed, survived or broken

`python tests/mutations/run.py [WORDS]` runs every fault, or those whose file or reason holds one of the words. A fault
is `file` (below src), `old` (stands there exactly once), `new`, `why` (what goes wrong) and `tests` (what must fail).
Every fault runs in a process forked from one that has imported torch and transformers, so it costs its tests alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).parent
# A fault that makes a test hang is noticed too, but should not hold up the others.
SECONDS = 240
# pytest's exit codes: tests failed, and a file of tests could not even be imported.
FAILED, INTERRUPTED = 1, 2


@dataclass(frozen=True)
class Fault:
    """One fault: `old` becomes `new` in `file`, and one of `tests` must fail."""

    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    def text(self) -> str:
        """The file's text with the fault in it; ValueError where the fault does not fit the code of today."""
        text = (ROOT / "src" / self.file).read_text()
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.file}: expected {self.old!r} once, found {text.count(self.old)} times; {self.why}")
        return text.replace(self.old, self.new)


def read_faults(words: list[str] | None = None) -> list[Fault]:
    """All faults of the lists beside this file, or those that hold one of `words`."""
    faults = []
    for path in sorted(FAULTS.glob("*.toml")):
        for row in tomllib.loads(path.read_text())["fault"]:
            faults.append(Fault(row["file"], row["old"], row["new"], row["why"], tuple(row["tests"])))
    return [fault for fault in faults if not words or any(word in fault.file + fault.why for word in words)]


def copied(fault: Fault | None, place: Path) -> Path:
    """A tree that looks like the project, `src` made of hard links, with the fault in it."""
    place.mkdir()
    for path in ROOT.iterdir():
        if path.name not in {"src", ".git", ".venv", "tests", "runs"}:
            (place / path.name).symlink_to(path)
    for room in ("src", "tests"):
        try:
            shutil.copytree(ROOT / room, place / room, copy_function=os.link)
        except (OSError, shutil.Error):  # another file system: links do not reach across
            shutil.rmtree(place / room, ignore_errors=True)
            shutil.copytree(ROOT / room, place / room)
    if fault is not None:
        path = place / "src" / fault.file
        path.unlink()  # first, or the link would change the project's own file
        path.write_text(fault.text())
    return place


def start(tests: tuple[str, ...], place: Path, log: Path) -> int:
    """Begin `tests` in `place` in a forked process; its number."""
    number = os.fork()
    if number:
        return number
    code = 3
    try:
        os.setsid()
        signal.alarm(SECONDS)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.chdir(place)
        os.environ["PYTHONPATH"] = str(place / "src")
        sys.path[:] = [str(place / "src"), *(p for p in sys.path if Path(p) not in {ROOT / "src", FAULTS})]
        import pytest

        # what is imported already cannot be rewritten, and warnings are errors
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider", "-p", "no:xdist"]
        options = ["-x", "-q", *quiet, f"--basetemp={place}.tests", "-m", ""]
        code = int(pytest.main([*options, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the parent's loop


def verdict(status: int) -> str:
    """What the end of a process says about a fault."""
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGALRM else "broken"
    return {0: "survived", FAILED: "killed"}.get(os.WEXITSTATUS(status), "broken")


def run(faults: list[Fault | tuple[str, ...]], jobs: int, show: bool = True) -> list[str]:
    """A verdict per fault; a tuple of tests instead of a fault runs them on the code as it is."""
    verdicts = [""] * len(faults)
    running: dict[int, int] = {}
    with tempfile.TemporaryDirectory(dir=ROOT.parent if os.access(ROOT.parent, os.W_OK) else None) as scratch:
        waiting = list(range(len(faults)))
        while waiting or running:
            while waiting and len(running) < jobs:
                spot = waiting.pop(0)
                item = faults[spot]
                fault, tests = (item, item.tests) if isinstance(item, Fault) else (None, item)
                place = copied(fault, Path(scratch, str(spot)))
                running[start(tests, place, Path(scratch, f"{spot}.log"))] = spot
            number, status = os.wait()
            spot = running.pop(number)
            verdicts[spot] = verdict(status)
            item = faults[spot]
            if show and (verdicts[spot] != "killed" or not isinstance(item, Fault)):
                print(
                    f"{verdicts[spot]:9} {item.file + ': ' + item.why if isinstance(item, Fault) else item}", flush=True
                )
                if verdicts[spot] == "broken":
                    print(Path(scratch, f"{spot}.log").read_text()[-1500:], flush=True)
            for left in (Path(scratch, str(spot)), Path(scratch, f"{spot}.tests")):
                shutil.rmtree(left, ignore_errors=True)
    return verdicts


def preload() -> None:
    """Import once what every forked process needs. Nothing of Plait: that is what changes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers.modeling_utils
    import transformers.processing_utils

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    assert transformers and not any(name.split(".")[0] == "plait" for name in sys.modules)


def main() -> None:
    """Run the faults, print those that survive, and say how many died."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    faults = read_faults(asked.words)
    preload()
    began = time.monotonic()
    verdicts = run(list(faults), asked.jobs)
    counts = Counter(verdicts)
    print(f"{len(faults)} faults: {dict(counts)} in {time.monotonic() - began:.0f} s")
    if asked.out:
        rows = [{"file": f.file, "why": f.why, "verdict": v} for f, v in zip(faults, verdicts, strict=True)]
        asked.out.write_text(json.dumps({"counts": counts, "faults": rows}, indent=1) + "\n")
    raise SystemExit(counts["killed"] < len(faults))


if __name__ == "__main__":
    main()
