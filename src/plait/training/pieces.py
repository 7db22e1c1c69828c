"""Tensors of several processes in safetensors files, read back whole or in parts by any number of processes.

local rows of every process -> NAME-00000-of-00002.safetensors + where they belong -> `Pieces` -> rows of a reader

Every tensor is cut along its first dimension at most, as FSDP2 does. Nothing is pickled: torch's own distributed
checkpoints (DCP) keep a pickle beside the data, which Plait never reads.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` .. `start + len(rows)` of a tensor of `shape`, on the CPU; a 0-dim tensor is one piece."""

    rows: Tensor
    start: int
    shape: tuple[int, ...]


def piece_of(tensor: Tensor, is_main: bool) -> Piece | None:
    """A copy of what this process has to store of `tensor`: its shard, or all of it in the main process, or nothing."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return Piece(tensor.to("cpu", copy=True).contiguous(), 0, tuple(tensor.shape)) if is_main else None
    rows = tensor.to_local()
    start = first_row(tensor)
    is_stored = rows.numel() > 0 or (is_main and tensor.numel() == 0)
    return Piece(rows.to("cpu", copy=True).contiguous(), start, tuple(tensor.shape)) if is_stored else None


def first_row(tensor: DTensor) -> int:
    """Where this process's rows start. Raises ValueError for a tensor that is not cut along its first dimension."""
    if len(tensor.placements) != 1 or tensor.placements[0] != Shard(0):
        raise ValueError(f"expected tensors cut along the first dimension, got {tensor.placements}")
    size, count = -(-tensor.shape[0] // tensor.device_mesh.size()), tensor.shape[0]
    return min(count, tensor.device_mesh.get_local_rank() * size)


def write_pieces(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write one process's pieces into one file; empty files are fine."""
    places = {name: [piece.start, *piece.shape] for name, piece in pieces.items()}
    save_file({name: piece.rows for name, piece in pieces.items()}, str(path), {"places": json.dumps(places)})


class Pieces:
    """Files of one name, opened together; use as a context. Reading maps the files, nothing is loaded before asked."""

    def __init__(self, directory: Path, name: str) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        self._stack = ExitStack()
        for path in sorted(directory.glob(f"{name}-*-of-*.safetensors")):
            file = self._stack.enter_context(safe_open(str(path), "pt"))
            for key, (start, *shape) in json.loads((file.metadata() or {})["places"]).items():
                self.shapes[key] = tuple(shape)
                self._where[key].append((start, file))

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """All of a tensor, or, where `like` is spread over processes, this process's part spread the same way."""
        if not isinstance(like, DTensor) or self.shapes[name] != tuple(like.shape):
            return self._rows(name, 0, None)
        rows, start = like.to_local(), first_row(like)
        mine = self._rows(name, start, start + len(rows)).to(rows.device)
        return DTensor.from_local(
            mine, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def _rows(self, name: str, start: int, stop: int | None) -> Tensor:
        shape, pieces = self.shapes[name], sorted(self._where[name], key=lambda one: one[0])
        if not shape:
            return pieces[0][1].get_tensor(name)
        stop = shape[0] if stop is None else stop
        parts = []
        for first, file in pieces:
            rows = file.get_slice(name)
            low, high = max(start, first), min(stop, first + rows.get_shape()[0])
            if low < high or len(pieces) == 1:
                parts.append(rows[low - first : max(low, high) - first])
        return torch.cat(parts) if parts else pieces[0][1].get_slice(name)[:0]
