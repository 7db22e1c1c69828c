"""Checkpoints that a kill at any moment cannot break.

write to a hidden directory -> fsync every file -> marker with their sizes -> rename -> fsync the parent -> prune

A checkpoint is `step-00000120/` with model.safetensors, optimizer.pt (read back with weights_only), state.json and the
marker COMPLETE. A directory without a marker was never finished and counts for nothing; one whose files do not have
the sizes the marker states was damaged later and is an error.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

_MARKER = "COMPLETE"


@dataclass(slots=True)
class Position:
    """How far a run is. stage: index of the current stage; step: steps done in it; total: steps done in the run.

    The order of samples and every random number follow from these and the seed, so nothing else has to be kept.
    """

    stage: int = 0
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    seed: int = 0


class CheckpointStore:
    """The checkpoints of one run, oldest removed beyond `keep_last`."""

    def __init__(self, directory: Path, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise ValueError(f"expected keep_last of at least 1, got {keep_last}; a run needs one checkpoint to resume")
        self.directory = directory
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, ascending."""
        return sorted(int(path.parent.name.removeprefix("step-")) for path in self.directory.glob(f"step-*/{_MARKER}"))

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lives."""
        return self.directory / f"step-{step:08d}"

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, position: Position) -> Path:
        """Write a checkpoint, unless this step has one. Raises OSError (disk full) and leaves older ones intact."""
        final = self.path(position.total)
        if (final / _MARKER).exists():
            return final
        self.directory.mkdir(parents=True, exist_ok=True)
        unfinished = self.directory / f".writing-{final.name}"
        self._clear_unfinished()
        unfinished.mkdir()
        try:
            save_model(model, str(unfinished / "model.safetensors"))
            if optimizer is not None:
                torch.save(optimizer.state_dict(), unfinished / "optimizer.pt")
            (unfinished / "state.json").write_text(json.dumps(asdict(position)))
            sizes = {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())}
            (unfinished / _MARKER).write_text(json.dumps(sizes))
            for path in (*unfinished.iterdir(), unfinished):
                sync(path)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(
                f"expected to write a checkpoint in {self.directory}, got: {' '.join(str(error).split())}; "
                "check the free space and run again, earlier checkpoints are intact"
            ) from error
        unfinished.rename(final)
        sync(self.directory)
        for step in self.steps()[: -self.keep_last]:
            shutil.rmtree(self.path(step))
        return final

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, None when there is none. Raises ValueError when it is damaged."""
        steps = self.steps()
        if not steps:
            return None
        path = self.path(steps[-1])
        for name, size in json.loads((path / _MARKER).read_text()).items():
            found = (path / name).stat().st_size if (path / name).exists() else None
            if found != size:
                got = "no file" if found is None else f"{found} bytes"
                raise ValueError(
                    f"expected {size} bytes in {path / name}, got {got}; remove {path} to continue from an older one"
                )
        return steps[-1]

    def position(self, step: int) -> Position:
        """The position stored with the checkpoint of `step`."""
        return Position(**json.loads((self.path(step) / "state.json").read_text()))

    def load_model(self, step: int, model: nn.Module) -> None:
        """Load weights and buffers in place. Raises ValueError when the model has other names or shapes."""
        try:
            load_model(model, str(self.path(step) / "model.safetensors"), strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"expected {self.path(step)} to hold this model, got other tensors: {' '.join(str(error).split())}; "
                "train another model in another run directory"
            ) from error

    def load_optimizer(self, step: int) -> dict[str, Any] | None:
        """The optimiser state, None at the border between two stages, where the next one starts a fresh optimiser."""
        path = self.path(step) / "optimizer.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def clear(self) -> None:
        """Remove every checkpoint."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _clear_unfinished(self) -> None:
        for path in self.directory.glob(".writing-*"):
            shutil.rmtree(path)


def write_directory(directory: Path, write: Any) -> None:
    """Let `write(path)` fill a hidden directory, sync it and put it in the place of `directory` in one step."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".writing-{directory.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    write(unfinished)
    for path in (*unfinished.rglob("*"), unfinished):
        sync(path)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    sync(directory.parent)


def sync(path: Path) -> None:
    """Make a file or a directory listing survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
