"""Plait's embedding models in mteb (pip install 'plait[mteb]'): any `plait.Embedder` as an encoder of that benchmark.

```python
import mteb, plait

mteb.evaluate(mteb.get_model("one-peace-dir"), tasks=mteb.get_tasks(tasks=["Flickr30kT2IRetrieval"]))
```

directory -> `attach` -> mteb.get_model -> MtebEncoder: batches of lists by modality -> items -> Embedder -> (n, dim)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plait.embedder import Embedder
from plait.errors import import_extra
from plait.media.values import FRAMES
from plait.modalities import names
from plait.models.registry import FAMILIES
from plait.reading import read_json
from plait.types import MODALITIES

Array = np.ndarray[Any, Any]


class MtebEncoder:
    """An encoder as mteb's `EncoderProtocol` describes it.

    Args:
        model_name: a model directory, hub id or an open `Embedder`.
        revision: for mteb's records; without it the hash of the weights.
        device: as in `plait.Embedder`.
        options: further arguments of `plait.Embedder`.
    """

    def __init__(
        self,
        model_name: str | Path | Embedder,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ) -> None:
        is_open = isinstance(model_name, Embedder)
        for name, value in (("long_sounds", "cut"), ("shrink", False)):  # as published
            options.setdefault(name, value)
        self.embedder = model_name if is_open else Embedder(model_name, device=device, **options)
        self._name = "plait/embedder" if is_open else f"plait/{Path(str(model_name)).name}"
        self._revision = revision

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        **_: Any,
    ) -> Array:
        """Unit vectors of batches of lists.

        What else mteb passes (task, split, prompt type) changes nothing: these models have no instructions.

        Args:
            inputs: `{"text": [...], "image": [...], "audio": [...]}`; several keys are fused.
            batch_size: items per forward pass; None as the embedder has it.
            show_progress_bar: whether to show one.

        Returns:
            (n, dim) float32.

        Raises:
            ValueError: for a batch without any modality, and media that cannot be read.
        """
        items = [item for batch in inputs for item in items_of(batch)]
        return self.embedder.embed(items, batch_size=batch_size, show_progress=bool(show_progress_bar))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of all pairs: (n, dim), (m, dim) -> tensor (n, m)."""
        first, second = _rows(embeddings1), _rows(embeddings2)
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of pairs in order: (n, dim), (n, dim) -> tensor (n,)."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """Name, revision (hash of the weights unless given) and modalities, as mteb writes them beside results."""
        meta = import_extra("mteb.models.model_meta").ModelMeta
        modalities = [modality for modality in self.embedder.accepts if modality in MODALITIES]
        known = {"name": self._name, "revision": self._revision or self.embedder.fingerprint, "modalities": modalities}
        return meta.create_empty(known)

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: Any) -> None:
        """mteb puts there what it loaded by; what stands beside results is read from the model itself."""


def items_of(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One mapping per item of a batch of lists.

    Raises:
        ValueError: where a batch holds no modality that we know.
    """
    present = [modality for modality in names() if batch.get(modality) is not None]
    if not present:
        raise ValueError(f"expected a batch with one of {', '.join(names())}, got {', '.join(batch)}")
    rows = ({modality: batch[modality][i] for modality in present} for i in range(len(batch[present[0]])))
    # rows of a mixed data set may lack a modality that others have
    return [{m: _value(m, value) for m, value in row.items() if value is not None} for row in rows]


def _value(modality: str, value: Any) -> Any:
    """Sounds come as {"array", "sampling_rate"}, or as a decoder that gives both; films as frames or as a decoder."""
    if modality == "video" and hasattr(value, "get_frames_at"):
        length = value.metadata.num_frames
        return value.get_frames_at([int(length * (i + 0.5) / FRAMES) for i in range(FRAMES)]).data
    if modality == "audio" and not isinstance(value, str | Path | bytes | np.ndarray):
        clip = np.asarray(value["array"], np.float32)
        # decoders give (channels, samples); models hear one channel
        return clip.mean(axis=0) if clip.ndim == 2 else clip, int(value["sampling_rate"])
    return value


class _Directories(dict[str, Any]):
    """mteb's models by name, and every directory of a model of ours by its path."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or _is_ours(name)

    def __missing__(self, name: str) -> Any:
        if not _is_ours(name):
            raise KeyError(name)
        # mteb wants an owner and a name; the directory itself goes with the loader
        known = {"name": f"plait/{Path(name).resolve().name}", "loader": partial(_opened, name)}
        return import_extra("mteb.models.model_meta").ModelMeta.create_empty(known)


def _opened(place: str, name: str, revision: str | None = None, device: str | None = None, **options: Any) -> Any:
    """What mteb calls to load a directory; name: as mteb knows it."""
    return MtebEncoder(place, None if revision == "no_revision_available" else revision, device=device, **options)


def _is_ours(name: object) -> bool:
    """Whether this is a directory of one of Plait's families."""
    config = Path(name) / "config.json" if isinstance(name, str) and name else None
    return config is not None and config.is_file() and read_json(config).get("model_type") in FAMILIES


def attach() -> None:
    """Let `mteb.get_model` know our directories, where mteb is imported. Doing it again changes nothing."""
    module: Any = sys.modules.get("mteb.models.get_model_meta")
    if module is not None and not isinstance(module.MODEL_REGISTRY, _Directories):
        module.MODEL_REGISTRY = _Directories(module.MODEL_REGISTRY)


def _rows(values: Any) -> Any:
    """Unit rows (n, dim) as a float32 tensor, of an array, a tensor, or a list of arrays."""
    import torch

    if isinstance(values, Sequence) and values and isinstance(values[0], np.ndarray):
        values = np.stack(values)
    rows = torch.atleast_2d(torch.as_tensor(values, dtype=torch.float32))
    return torch.nn.functional.normalize(rows, dim=-1)
