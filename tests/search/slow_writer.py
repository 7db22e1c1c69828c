"""A process that adds to an index, slowly and in many commits. Its server has imported torch already, so it starts at
once; lancedb starts a thread when it is imported and is left to the process itself.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess

import torch  # noqa: F401 (what takes long to import)
from tiny_embedders import HueModel, HueProcessor

from plait import Embedder

COMMIT_ROWS = 2


def start(index: str, folder: str) -> BaseProcess:
    """Begin to add `folder` to the index; `kill()` what is returned."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=add, args=(index, folder), daemon=True)
    process.start()
    return process


def add(index: str, folder: str) -> None:
    """Commit two rows at a time, some milliseconds apart."""
    from plait import Index

    embedder = Embedder((HueModel(delay=0.004), HueProcessor()), batch_size=1)
    Index.open(index, embedder).add(folder, commit_rows=COMMIT_ROWS, show_progress=False)
