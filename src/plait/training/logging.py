"""What a run says while it trains: metrics.jsonl for machines and curves, lists of what was skipped.

tensors of the steps since the last look -> `to_floats` (one transfer) -> `MetricsLog`
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.data.mixture import bad_of
from plait.errors import import_extra
from plait.places import atomic_write, sync


class NonFiniteLossError(ValueError):
    """The loss or the gradient became nan or infinite; the message names the step, its samples and what is left.

    Args:
        loss, norm: of that step.
        number: of the step in the run, from 1.
        stage: its name.
        names: ids of the samples of the step, the first 16 shown.
        saved: steps of the checkpoints that are there, ascending.
    """

    def __init__(
        self, loss: float, norm: float, number: int, stage: str, names: Sequence[str], saved: Sequence[int]
    ) -> None:
        shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
        kept = f"the checkpoint of step {saved[-1]} is intact" if saved else "no checkpoint was written yet"
        super().__init__(
            f"expected a finite loss and gradient, got loss {loss} and gradient norm {norm} at step {number} of stage "
            f"{stage!r} with samples {shown}; check them or lower the rate; {kept}"
        )


class MetricsLog:
    """Appends one JSON object per logged step to `path`.

    Opening at `step` drops every later line and a line torn by a kill, so the file of a resumed run reads like
    that of a run that was never stopped.

    Args:
        path: of metrics.jsonl, made where there is none.
        step: steps done before; 0 keeps nothing.
        tensorboard: write event files beside it as well; needs that package.

    Raises:
        ValueError: for a broken line before the last.
    """

    def __init__(self, path: Path, step: int = 0, tensorboard: bool = False) -> None:
        self.path = path
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        atomic_write(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board: Any = None
        if tensorboard:
            import_extra("tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides in the board what came after the checkpoint, as the lines above are dropped
            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append `row`, which has "step" and "stage" beside numbers."""
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "stage"):
                    self._board.add_scalar(f"{row['stage']}/{name}", value, row["step"])

    def flush(self) -> None:
        """Hand every line to the operating system: a killed process loses none of them."""
        # what the system holds survives the process, not the machine: for that there is `sync`
        self._file.flush()

    def sync(self) -> None:
        """Make every line survive a power cut."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files, everything on the disk."""
        self.sync()
        self._file.close()
        sync(self.path.parent)
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl, oldest first; a torn last line is left out.

    Returns:
        A dict per line; an empty list where there is no file.

    Raises:
        ValueError: for a broken line before the last, which no kill leaves.
    """
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline and hold one JSON object. Raises ValueError for a broken line before the last."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").split("\n")
    whole = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) - 1:
                break
            raise ValueError(f"expected JSON in line {number} of {path}, got {line[:40]!r}; remove the line") from error
        whole.append(line)
    return whole


def note_bad(run_dir: Path, rank: int, source: Any) -> None:
    """Keep what the source had to skip in `run_dir`/bad_samples.txt, one line each.

    Args:
        run_dir: of the run.
        rank: of this process; every process but the first has a file of its own, bad_samples-RANK.txt.
        source: one that skips what cannot be read; others have nothing to note.
    """
    lines = bad_of(source)
    path = run_dir / ("bad_samples.txt" if rank == 0 else f"bad_samples-{rank}.txt")
    if lines and len(lines) != (path.read_text(encoding="utf-8").count("\n") if path.exists() else 0):
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def to_floats(rows: list[dict[str, Any]], device: torch.device) -> list[dict[str, float]]:
    """The scalars of all rows, tensors or numbers, as numbers: one transfer from the device.

    Args:
        rows: names -> scalars, tensors of one number or Python numbers.
        device: where they are stacked; on a GPU this is the one place that waits for it.

    Returns:
        The same names with floats.
    """
    tensors = [v.to(device, torch.float32) for row in rows for v in row.values() if isinstance(v, Tensor)]
    numbers = iter(torch.stack(tensors).tolist())
    return [{n: next(numbers) if isinstance(v, Tensor) else float(v) for n, v in row.items()} for row in rows]
