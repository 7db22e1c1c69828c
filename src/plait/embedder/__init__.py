"""Media in, unit vectors out: `Embedder` wraps any model that maps modalities into one space.

items -> parts -> grouped by modality, batched by size -> tower -> unit vectors -> weighted sum -> (n, dim)
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from plait.embedder.items import Part, load, parts_of
from plait.errors import UsageError
from plait.types import MODALITIES, Modality

if TYPE_CHECKING:
    import torch

    from plait.embedder.towers import Tower

__all__ = ["Embedded", "Embedder", "Skipped"]

OnBad = Literal["raise", "skip"]
_LOADERS = 4
_AUDIO_SECONDS_PER_ITEM = 15


class Skipped(NamedTuple):
    """An item that could not be embedded: its place in the list, its path or short form, why."""

    index: int
    name: str
    reason: str


class Embedded(NamedTuple):
    """`vectors` (len(kept), dim), the places of the embedded items in the list, and what was left out."""

    vectors: np.ndarray
    kept: list[int]
    skipped: list[Skipped]


class Embedder:
    """Turn texts, images, videos and audio, or mixtures of them, into unit vectors of one space.

    Args:
        model: a model directory or hub id (Plait, CLIP / SigLIP / CLAP-like, sentence-transformers), `"nano"` (it ships
            with Plait), an official checkpoint, or a pair `(model, processor)`.
        device: where the model runs; the first GPU when there is one, else the CPU.
        dtype: for example `"bfloat16"` or `torch.bfloat16`; as stored when None, but float32 on a CPU.
        batch_size: items per forward pass.
        adapter: directory of a LoRA trained on the model, merged into it in memory.

    A model without video takes the mean of the image vectors of 8 frames spread over the video.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 32,
        adapter: str | Path | None = None,
    ) -> None:
        import torch

        from plait.embedder.towers import PairTower, load_tower, locate
        from plait.models.auto import resolve_device

        self.batch_size = _positive(batch_size, "batch_size")
        self.skipped: list[Skipped] = []
        self.source: Path | None = None
        self.adapter = None if adapter is None else Path(adapter).resolve()
        self._dim: int | None = None
        self._fingerprint: str | None = None
        dtype = _torch_dtype(dtype)
        self._tower: Tower
        if isinstance(model, tuple):
            self._tower = PairTower(*model)
            if device is not None or dtype is not None:
                self._tower.model.to(device=device and resolve_device(device), dtype=dtype)
            self._tower.model.eval()
        else:
            self.source = locate(model)
            place = resolve_device(device)
            if dtype is None and place.type == "cpu":
                dtype = torch.float32
            self._tower = load_tower(self.source, dtype, place, self.adapter)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the model embeds by itself, in the shared order."""
        return self._tower.modalities

    @property
    def accepts(self) -> tuple[Modality, ...]:
        """`modalities`, and video when frames can stand in for it."""
        frames: tuple[Modality, ...] = ("video",) if "image" in self.modalities else ()
        return tuple(m for m in MODALITIES if m in (*self.modalities, *frames))

    @property
    def sampling_rate(self) -> int | None:
        """Samples per second that the model expects of audio; None without audio."""
        return self._tower.sampling_rate

    @property
    def dim(self) -> int:
        """Width of a vector (found with one tiny forward pass the first time)."""
        if self._dim is None:
            self.embed([_tiny_item(self.modalities[0], self.sampling_rate)])
        assert self._dim is not None
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Hash of configuration and weights: equal for equal models, so that an index knows its own."""
        if self._fingerprint is None:
            from plait.embedder.towers import fingerprint

            self._fingerprint = fingerprint(self._tower.model)
        return self._fingerprint

    def embed(
        self,
        items: Sequence[Any],
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        weights: Mapping[str, float] | None = None,
        on_bad: OnBad = "raise",
    ) -> np.ndarray:
        """Unit vectors (n, dim) float32, one row per item.

        Args:
            items: texts (str), media files (`pathlib.Path`), PIL images, `Sample`s, or mappings such as
                `{"audio": "bird.wav", "text": "snow", "not": {"text": "night"}, "weights": {"text": 0.5}}`: the
                weighted sum of the parts' unit vectors, brought back to unit length. Audio arrays (samples,) are at
                the model's rate, or `(array, rate)`.
            weights: default weight per modality (1.0) and of what stands under `not` (0.5) for all items.
            on_bad: with `"skip"`, rows of items that cannot be read are left out and listed in `self.skipped`.
            show_progress: None shows a bar on stderr when the work takes longer than about two seconds.

        Raises ValueError (one line) for an unknown modality and, unless skipping, for missing or broken media.
        """
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"expected on_bad 'raise' or 'skip', got {on_bad!r}")
        found = self.embed_readable(
            items, batch_size=batch_size, show_progress=show_progress, weights=weights, strict=on_bad == "raise"
        )
        self.skipped = found.skipped
        return found.vectors

    def embed_readable(
        self,
        items: Sequence[Any],
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        weights: Mapping[str, float] | None = None,
        strict: bool = False,
    ) -> Embedded:
        """Like `embed`, and says which items were kept and which were left out and why (`strict` raises instead)."""
        if isinstance(items, str | bytes | Path | Mapping):
            raise ValueError(f"expected a list of items, got one {type(items).__name__}; wrap it in a list")
        size = self.batch_size if batch_size is None else _positive(batch_size, "batch_size")
        work = _Work(self._tower, self.accepts, size, strict)
        queries = [work.read(item, weights) for item in items]
        vectors = work.run(queries, show_progress)
        rows, kept, skipped = [], [], []
        for place, query in enumerate(queries):
            fused = work.fuse(query, vectors)
            if isinstance(fused, str):
                skipped.append(Skipped(place, _name_of(items[place], query), fused))
            else:
                rows.append(fused)
                kept.append(place)
        if rows:
            self._dim = len(rows[0])
        width = self._dim if rows or self._dim else 0
        return Embedded(np.stack(rows) if rows else np.zeros((0, width or 0), np.float32), kept, skipped)

    def stream(self, items: Iterable[Any], *, chunk_size: int = 256, **options: Any) -> Iterator[np.ndarray]:
        """One vector (dim,) per item of an endless or long source, in bounded memory; options as for `embed`."""
        source = iter(items)
        while chunk := list(itertools.islice(source, _positive(chunk_size, "chunk_size"))):
            yield from self.embed(chunk, **options)


class _Work:
    """One call of `embed`: unique parts by modality -> batches -> unit vectors by part."""

    def __init__(self, tower: Tower, accepts: Sequence[Modality], batch_size: int, strict: bool) -> None:
        self.tower, self.accepts, self.batch_size, self.strict = tower, accepts, batch_size, strict
        self.bad: dict[object, str] = {}

    def read(self, item: Any, weights: Mapping[str, float] | None) -> list[Part] | str:
        """The parts of an item, or why it has none."""
        try:
            parts = parts_of(item, weights)
            if missing := next((p for p in parts if p.modality not in self.accepts), None):
                raise ValueError(
                    f"expected {', '.join(self.accepts)} for this model, got {missing.modality}: {missing.name}"
                )
            return parts
        except (ValueError, OSError) as error:
            return self._fail(error)

    def run(self, queries: Sequence[list[Part] | str], show_progress: bool | None) -> dict[object, np.ndarray]:
        """Unit vectors (dim,) by part key; parts that failed are in `self.bad` instead."""
        unique = {part.key: part for query in queries if not isinstance(query, str) for part in query}
        groups: dict[Modality, list[Part]] = defaultdict(list)
        for part in unique.values():
            groups[part.modality].append(part)
        vectors: dict[object, np.ndarray] = {}
        with _progress(len(unique), show_progress) as bar:
            for modality in (m for m in MODALITIES if m in groups):
                for parts, values in self._batches(modality, groups[modality]):
                    vectors |= zip((p.key for p in parts), self._encode(modality, parts, values), strict=False)
                    bar.update(len(parts))
        return {key: vector for key, vector in vectors.items() if key not in self.bad}

    def _batches(self, modality: Modality, parts: list[Part]) -> Iterator[tuple[list[Part], list[Any]]]:
        if modality == "text":
            parts = sorted(parts, key=lambda part: len(part.value))
        loaded = self._loaded(modality, parts)
        while window := list(itertools.islice(loaded, self.batch_size * (2 if modality == "audio" else 1))):
            if modality == "audio":
                window.sort(key=lambda pair: len(pair[1]))
            for batch in self._by_size(modality, window):
                yield [part for part, _ in batch], [value for _, value in batch]

    def _by_size(self, modality: Modality, window: list[tuple[Part, Any]]) -> Iterator[list[tuple[Part, Any]]]:
        """Cut a window into batches: `batch_size` items, fewer when clips (sorted by length) are long."""
        budget = self.batch_size * _AUDIO_SECONDS_PER_ITEM * (self.tower.sampling_rate or 1)
        batch: list[tuple[Part, Any]] = []
        for pair in window:
            full = len(batch) == self.batch_size
            if batch and (full or (modality == "audio" and (len(batch) + 1) * len(pair[1]) > budget)):
                yield batch
                batch = []
            batch.append(pair)
        if batch:
            yield batch

    def _loaded(self, modality: Modality, parts: Iterable[Part]) -> Iterator[tuple[Part, Any]]:
        """Decoded parts in order, read a batch ahead by a few threads; what cannot be read is noted and left out."""
        if modality == "text":
            yield from ((part, part.value) for part in parts)
            return
        waiting: deque[tuple[Part, Future[Any]]] = deque()
        source = iter(parts)
        with ThreadPoolExecutor(_LOADERS) as pool:
            while True:
                for part in itertools.islice(source, max(0, self.batch_size - len(waiting))):
                    waiting.append((part, pool.submit(self._decode, part)))
                if not waiting:
                    return
                part, future = waiting.popleft()
                try:
                    yield part, future.result()
                except (ValueError, OSError) as error:
                    self.bad[part.key] = self._fail(error)

    def _decode(self, part: Part) -> Any:
        value = load(part, self.tower.sampling_rate)
        if part.modality == "image":  # keep the small tensors, not the pixels of a large photograph
            return self.tower.prepare("image", [value])
        if part.modality == "video" and "video" not in self.tower.modalities:
            return self.tower.prepare("image", value)
        return value

    def _encode(self, modality: Modality, parts: list[Part], values: list[Any]) -> list[np.ndarray]:
        """Unit vectors of one batch. When the batch fails, its items go one by one so that only the bad one does."""
        try:
            if modality == "video" and "video" not in self.tower.modalities:
                return [_unit(self._forward("image", value).mean(0)) for value in values]
            inputs = _stack(values) if modality == "image" else self.tower.prepare(modality, values)
            return list(self._forward(modality, inputs))
        except (ValueError, RuntimeError) as error:
            if _is_out_of_memory(error):
                raise
            if len(parts) > 1:
                return [v for part, value in zip(parts, values) for v in self._encode(modality, [part], [value])]
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.bad[parts[0].key] = self._fail(ValueError(f"the model cannot embed {parts[0].name}: {reason}"))
            return [np.zeros(0, np.float32)]

    def _forward(self, modality: Modality, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        import torch

        first = next(self.tower.model.parameters())
        placed = {
            name: value.to(first.device, first.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        with torch.inference_mode():
            features = self.tower.encode(modality, placed).float()
            vectors = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ValueError("the model returned numbers that are not finite")
        return vectors

    def fuse(self, query: list[Part] | str, vectors: Mapping[object, np.ndarray]) -> np.ndarray | str:
        """The unit vector of an item, or why it has none."""
        if isinstance(query, str):
            return query
        if reason := next((self.bad[part.key] for part in query if part.key in self.bad), None):
            return reason
        if len(query) == 1 and query[0].weight > 0:
            return vectors[query[0].key]
        try:
            return _unit(np.sum([part.weight * vectors[part.key] for part in query], axis=0))
        except ValueError as error:
            return self._fail(error)

    def _fail(self, error: Exception) -> str:
        if self.strict:
            raise error if isinstance(error, ValueError) else ValueError(str(error)) from error
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if length < 1e-6:
        raise ValueError("expected weights that leave a direction, got parts that cancel out; change the weights")
    return (vector / length).astype(np.float32)


def _stack(prepared: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}


def _name_of(item: Any, parts: Sequence[Part] | str) -> str:
    if not isinstance(parts, str):
        return " + ".join(part.name for part in parts)
    if isinstance(item, Mapping):
        return " + ".join(f"{key}: {value}"[:200] for key, value in item.items())
    return str(getattr(item, "id", item))[:200]


def _progress(total: int, show: bool | None) -> Any:
    from tqdm import tqdm

    patience = 0.0 if show else 0.5 if sys.stderr.isatty() else 2.0
    quiet = show is False
    return tqdm(total=total, desc="embedding", unit="item", delay=patience, disable=quiet, leave=bool(show))


def _positive(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected {name} of at least 1, got {value!r}")
    return value


def _torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    import torch

    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    names = ("float32", "bfloat16", "float16")
    if dtype not in names:
        raise UsageError(f"expected dtype {', '.join(names)}, got {dtype!r}; choose one of them")
    return getattr(torch, dtype)


def _tiny_item(modality: Modality, sampling_rate: int | None) -> dict[str, Any]:
    if modality == "text":
        return {"text": "a"}
    if modality == "audio":
        return {"audio": np.zeros(sampling_rate or 16000, np.float32)}
    from PIL import Image

    return {"image": Image.new("RGB", (64, 64))}


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
