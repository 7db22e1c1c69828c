"""Media in, unit vectors out: `Embedder` wraps any model that maps modalities into one space.

    items -> parts (modality, value, weight) -> grouped by modality, decoded in threads, batched by size
          -> tower -> unit vectors -> weighted sum per item -> (n, dim)

An item is a string (text), a `pathlib.Path` (a media file, its kind sniffed), a PIL image, an array or tensor of a
sound (samples,), a picture (height, width, 3) or frames, a `Sample` (its media, or its text when it has none) or a
mapping. A mapping fuses: each of `text image video audio`, and what a user registered, holds one value or a list of
them, `not` holds an item (or a list of items) to move away from, `weights` overrides the weights of the call.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack, overload

import numpy as np

from plait.embedder.parts import Item, Limits, Part, Ready, load, parts_of
from plait.media.values import RATE, is_array, medium
from plait.modalities import in_order, names, own
from plait.terminal import progress_bar
from plait.types import Several

if TYPE_CHECKING:
    import torch

    from plait.embedder.towers import Tower

__all__ = ["Embedded", "Embedder", "Skipped"]

OnBad = Literal["raise", "skip"]
_LOADERS = 4

DeviceMap = str | int | Mapping[str, Any] | None


class Options(TypedDict, total=False):
    """What `Embedder.embed` takes besides items."""

    batch_size: int | None
    show_progress: bool | None
    weights: Mapping[str, float] | None
    on_bad: OnBad


class Skipped(NamedTuple):
    """An item that could not be embedded.

    Attributes:
        index: its place in the list.
        name: its path or a short form of it.
        reason: one line.
    """

    index: int
    name: str
    reason: str


class Embedded(NamedTuple):
    """What came of a list of items.

    Attributes:
        vectors: (len(kept), dim) float32, of unit length.
        kept: places of the embedded items in the list.
        skipped: what was left out, and why.
    """

    vectors: np.ndarray
    kept: list[int]
    skipped: list[Skipped]


class Embedder:
    """Turn texts, images, videos and audio, or mixtures of them, into unit vectors of one space.

    A model without video takes the mean of the image vectors of 8 frames spread over the video.

    Args:
        model: a model directory or hub id (Plait, CLIP / SigLIP / CLAP-like, sentence-transformers), `"nano"`
            (it ships with Plait), an official checkpoint, or a pair `(model, processor)`.
        device: where the model runs; the first GPU when there is one, else the CPU.
        dtype: for example `"bfloat16"` or `torch.bfloat16`; as stored when None, but float32 on a CPU. `"int8"` on
            a CPU: linear layers in 8 bits, whose vectors differ a little and have a fingerprint of their own.
        batch_size: items per forward pass.
        adapter: directory of a LoRA trained on the model, merged into it in memory.
        long_sounds: of audio longer than the model takes, `windows` that cover them, whose mean is the vector and
            which `windowed` lists, or `cut` for their beginning alone, as published results have it.
        shrink: decode large JPEG files at a half, a quarter or an eighth of their size, no smaller than twice what the
            model takes: several times faster, cosine to the vector of the whole image at least 0.99. False decodes
            them whole, as published results have it.
        device_map, attn_implementation: as in `plait.load`.

    Raises:
        ValueError: for no such model, one that maps nothing into a space, or a LoRA of another model.

    Example:
        >>> embedder = Embedder("nano")
        >>> vectors = embedder.embed(["a dog", Path("dog.jpg"), {"audio": "bark.wav", "text": "snow"}])
        >>> vectors @ vectors.T  # cosine similarities (3, 3)
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 32,
        adapter: str | Path | None = None,
        long_sounds: Literal["windows", "cut"] = "windows",
        *,
        shrink: bool = True,
        device_map: DeviceMap = None,
        attn_implementation: str | None = None,
    ) -> None:
        from plait.embedder.towers import PairTower, load_tower
        from plait.models import locate
        from plait.models.auto import opened, placement, settled

        self.batch_size = _positive(batch_size, "batch_size")
        if long_sounds not in ("windows", "cut"):
            raise ValueError(f"expected long_sounds windows or cut, got {long_sounds!r}")
        self.skipped: list[Skipped] = []
        self.windowed: dict[str, int] | None = {} if long_sounds == "windows" else None
        self.source: Path | None = None
        self.adapter = None if adapter is None else Path(adapter).resolve()
        self._dim: int | None = None
        self._fingerprint: str | None = None
        self._fingerprints: dict[str, str] | None = None
        self._tower: Tower
        if isinstance(model, tuple):
            self._tower = PairTower(*opened(model, device, dtype))
        else:
            self.source = locate(model)
            self._tower = load_tower(self.source, placement(device, dtype, device_map), self.adapter)
        self._tower.model = settled(self._tower.model, attn_implementation, device_map)
        if not shrink:
            self._tower.loading = {kind: how for kind, how in self._tower.loading.items() if kind != "image"}

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model embeds by itself, in the shared order: text, image, video, audio, a user's own.

        Returns:
            A tuple of names; `accepts` also has what frames stand in for.
        """
        return self._tower.modalities

    @property
    def accepts(self) -> tuple[str, ...]:
        """`modalities`, and video when frames can stand in for it.

        Returns:
            A tuple of names in the shared order: what items may hold.
        """
        return tuple(in_order([*self.modalities, *(m for m in names() if medium(m).frames_of in self.modalities)]))

    @property
    def sampling_rate(self) -> int | None:
        """Samples per second that the model expects of audio.

        Returns:
            None without audio. Files are resampled to it, and arrays too where they tell their own rate.
        """
        return self._tower.sampling_rate

    @property
    def similarity_scale(self) -> float:
        """By which cosines are multiplied before a softmax, as the model learned it; 20 where it has no factor."""
        return self._tower.similarity_scale

    @property
    def dim(self) -> int:
        """Width of a vector.

        The first question costs one tiny forward pass where nothing was embedded before.
        """
        if self._dim is None:
            tiny = {m: make(self.sampling_rate or RATE) for m in self.modalities[:1] if (make := medium(m).tiny)}
            if not tiny:
                raise ValueError(f"expected an item of {', '.join(self.modalities)} first, got none; embed one")
            self.embed([tiny])  # which notes the width
        assert self._dim is not None
        return self._dim

    @property
    def number_type(self) -> str | None:
        """`"int8"` where linear layers are rounded to it, else None: floating types share a fingerprint."""
        from plait.nn.quantized import is_int8

        return "int8" if is_int8(self._tower.model) else None

    @property
    def fingerprint(self) -> str:
        """Hash of configuration and weights: equal for equal models, so that an index knows its own.

        Returns:
            16 hexadecimal digits, see `plait.embedder.towers.fingerprint`; computed once.
        """
        if self._fingerprint is None:
            from plait.embedder.towers import fingerprint

            self._fingerprint = fingerprint(self._tower.model)
        return self._fingerprint

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the model as it was before a user added modalities under "", and of each of these by its name.

        Returns:
            As `fingerprint`; `{"": fingerprint}` where nobody added any. Computed once.
        """
        if self._fingerprints is None:
            from plait.embedder.towers import fingerprints

            self._fingerprints = fingerprints(self._tower.model) if own(self.modalities) else {"": self.fingerprint}
        return self._fingerprints

    @overload
    def embed(
        self,
        items: Several[Item],
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        weights: Mapping[str, float] | None = None,
        on_bad: OnBad = "raise",
        convert_to_tensor: Literal[False] = False,
    ) -> np.ndarray: ...

    @overload
    def embed(
        self,
        items: Several[Item],
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        weights: Mapping[str, float] | None = None,
        on_bad: OnBad = "raise",
        convert_to_tensor: Literal[True],
    ) -> torch.Tensor: ...

    def embed(
        self,
        items: Several[Item],
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        weights: Mapping[str, float] | None = None,
        on_bad: OnBad = "raise",
        convert_to_tensor: bool = False,
    ) -> np.ndarray | torch.Tensor:
        """Unit vectors (n, dim) float32, one row per item.

        Args:
            items: texts (str), media files (`pathlib.Path`), PIL images, `Sample`s, or mappings such as
                `{"audio": "bird.wav", "text": "snow", "not": {"text": "night"}, "weights": {"text": 0.5}}`: the
                weighted sum of the parts' unit vectors, brought back to unit length. Audio arrays (samples,)
                are at the model's rate, or `(array, rate)`.
            batch_size: of this call, instead of the embedder's own.
            show_progress: None shows a bar on stderr when the work takes longer than about two seconds.
            weights: default weight per modality (1.0) and of what stands under `not` (0.5) for all items.
            on_bad: with `"skip"`, rows of items that cannot be read are left out and listed in `self.skipped`.
            convert_to_tensor: a torch tensor on the model's device instead of an array.

        Returns:
            (n, dim), in the order of the items; fewer rows where items were skipped.

        Raises:
            ValueError: one line, for another `on_bad` or `batch_size`, and a single item instead of a list; unless
                skipping, also for an unknown modality, for missing or broken media, and for a text that is the name of
                a file (a text by intent is `{"text": ...}`).

        Example:
            >>> embedder.embed([{"image": "beach.jpg", "not": {"text": "people"}}], weights={"not": 0.3})  # (1, dim)
        """
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"expected on_bad 'raise' or 'skip', got {on_bad!r}")
        found = self.embed_readable(
            items, batch_size=batch_size, show_progress=show_progress, weights=weights, strict=on_bad == "raise"
        )
        self.skipped = found.skipped
        if convert_to_tensor:
            import torch

            return torch.from_numpy(found.vectors).to(next(self._tower.model.parameters()).device)
        return found.vectors

    def embed_one(self, item: Item, *, weights: Mapping[str, float] | None = None) -> np.ndarray:
        """The unit vector (dim,) of one item.

        Args:
            item, weights: as in `embed`.

        Raises:
            ValueError: as `embed`.

        Example:
            >>> embedder.embed_one({"audio": "bird.wav", "text": "snow"})  # (dim,)
        """
        return self.embed([item], weights=weights, show_progress=False)[0]

    def similarity(
        self,
        first: np.ndarray | torch.Tensor | Several[Item],
        second: np.ndarray | torch.Tensor | Several[Item] | None = None,
    ) -> np.ndarray:
        """Cosine similarities of all pairs.

        Args:
            first: n items as in `embed`, or vectors (n, dim) of it.
            second: m of them; None compares the first with themselves.

        Returns:
            (n, m) float32, from -1 to 1.

        Raises:
            ValueError: as `embed`, and for vectors of another width.

        Example:
            >>> embedder.similarity(["a dog", "a cat"], [Path("dog.jpg")])  # (2, 1)
        """
        rows = self._vectors(first)
        columns = rows if second is None else self._vectors(second)
        if rows.shape[1] != columns.shape[1]:
            raise ValueError(f"expected vectors of one width, got {rows.shape[1]} and {columns.shape[1]}")
        return rows @ columns.T

    def _vectors(self, given: Any) -> np.ndarray:
        """Unit rows (n, dim) of vectors that were made before, or of items."""
        if not (is_array(given) and len(given.shape) == 2):
            return self.embed(given, show_progress=False)
        rows = given if isinstance(given, np.ndarray) else given.detach().float().cpu().numpy()
        return np.stack([_unit(row) for row in rows.astype(np.float32)])

    def __repr__(self) -> str:
        return f"Embedder({str(self.source or type(self._tower.model).__name__)!r}, {', '.join(self.accepts)})"

    def ready(self, part: Part, content: str, limits: Limits | None = None) -> Part:
        """A part decoded and prepared, small enough to wait in a queue; for `embed_queries`.

        Args:
            part: of `parts_of`; a text stays as it is.
            content: what tells its bytes from others, such as a checksum: parts of equal content are embedded once.
            limits: keyword arguments of the loader by modality, such as `{"image": {"max_pixels": 10**7}}`.

        Returns:
            The part with a `Ready` value.

        Raises:
            ValueError: for a modality that the model does not take, and media that cannot be read.
        """
        work = _Work(self._tower, self.accepts, self.batch_size, True, self.windowed)
        work.check((part,))
        if medium(part.modality).is_words:
            return part
        return replace(part, value=Ready(work.decode(part, limits), content))

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many pieces of text the model reads, what is cut off not counted; 0 where it has no tokens."""
        if not texts:
            return 0
        inputs = self._tower.prepare("text", texts)
        found = inputs.get("attention_mask", inputs.get("input_ids"))
        return 0 if found is None else int((found > 0).sum())

    def embed_queries(
        self, queries: Sequence[Sequence[Part]], known: Mapping[object, np.ndarray] | None = None
    ) -> tuple[list[np.ndarray | str], dict[object, np.ndarray]]:
        """One vector per query out of parts that wait, those of many callers in one batch.

        Args:
            queries: the parts of each, see `ready`.
            known: vectors (dim,) by part key, which are not computed again.

        Returns:
            Per query its unit vector (dim,), or why it has none; and the vectors of all parts by key.
        """
        work = _Work(self._tower, self.accepts, self.batch_size, False, self.windowed)
        vectors = work.run(queries, show_progress=False, known=known or {})
        return [work.fuse(query, vectors) for query in queries], vectors

    def embed_readable(
        self,
        items: Several[Item],
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        weights: Mapping[str, float] | None = None,
        strict: bool = False,
    ) -> Embedded:
        """Like `embed`, and says which items were kept, and which were left out and why.

        Args:
            items, batch_size, show_progress, weights: as in `embed`.
            strict: raise for the first item that cannot be read instead of leaving it out.

        Returns:
            `Embedded`; without a single readable item (0, dim).

        Raises:
            ValueError: as `embed`.
        """
        # a text is a sequence too: each letter would become an item
        if isinstance(items, str | bytes | Path | Mapping):
            raise ValueError(f"expected a list of items, got one {type(items).__name__}; wrap it in a list")
        size = self.batch_size if batch_size is None else _positive(batch_size, "batch_size")
        work = _Work(self._tower, self.accepts, size, strict, self.windowed)
        queries = [work.read(item, weights) for item in items]
        vectors = work.run(queries, show_progress)
        rows, kept, skipped = [], [], []
        for place, query in enumerate(queries):
            fused = work.fuse(query, vectors)
            if isinstance(fused, str):
                skipped.append(Skipped(place, _shown(items[place], query), fused))
            else:
                rows.append(fused)
                kept.append(place)
        if rows:
            self._dim = len(rows[0])
        # 0 where no vector was ever made, so that a list of bad items alone costs no forward pass
        width = self._dim if rows or self._dim else 0
        return Embedded(np.stack(rows) if rows else np.zeros((0, width or 0), np.float32), kept, skipped)

    def classify(
        self, items: Several[Item], labels: Several[str], *, on_bad: OnBad = "raise"
    ) -> list[list[tuple[str, float]]]:
        """The label whose sentence is nearest to each item: zero-shot, with any model that has text beside the medium.

        Args:
            items: as in `embed`, each of one medium.
            labels: to choose from.
            on_bad: as in `embed`.

        Returns:
            For each item that is not skipped (label, probability), best first: the softmax of cosine similarities
            times the model's own factor (20 where it has none).

        Raises:
            ValueError: for no labels, a model without text, and as `embed`.

        Example:
            >>> Embedder("nano").classify([Path("dog.jpg")], ["dog", "cat"])[0][0]  # ('dog', 0.98)
        """
        if not labels:
            raise ValueError("expected at least one label to choose from, got an empty list")
        found = self.embed_readable(items, strict=on_bad == "raise")
        kinds = [parts_of(items[place])[0].modality for place in found.kept]
        # sentences as CLIP and ONE-PEACE (ESC-50) publish them; a text is compared with the bare label
        phrases = {"audio": "This is a sound of {}", "text": "{}"}
        sentences = {kind: [phrases.get(kind, "a photo of a {}.").format(one) for one in labels] for kind in set(kinds)}
        named = {kind: self.embed(texts, show_progress=False) for kind, texts in sentences.items()}
        self.skipped = found.skipped
        rows = []
        for kind, vector in zip(kinds, found.vectors, strict=True):
            weights = np.exp((named[kind] @ vector - 1) * self._tower.similarity_scale)  # -1: no overflow
            order = np.argsort(-weights, kind="stable")
            rows.append([(labels[place], float(weights[place] / weights.sum())) for place in order])
        return rows

    def stream(
        self, items: Iterable[Item], *, chunk_size: int = 256, **options: Unpack[Options]
    ) -> Iterator[np.ndarray]:
        """Vectors of an endless or long source, in bounded memory.

        Args:
            items: as in `embed`, any iterable.
            chunk_size: items that are read and embedded at a time.
            options: of `embed`; skipped items are listed in `self.skipped` of their chunk alone.

        Returns:
            One vector (dim,) per item that is not skipped, in order.

        Raises:
            ValueError: as `embed`, and for a `chunk_size` below 1.
        """
        source = iter(items)
        while chunk := list(itertools.islice(source, _positive(chunk_size, "chunk_size"))):
            yield from self.embed(chunk, **options)


class _Work:
    """One call of `embed`: unique parts by modality -> batches -> unit vectors by part.

    bad: part key -> why it has no vector. strict: raise at the first such part. windowed: name of a sound longer than
    the model takes -> its windows, which is noted here; None cuts such sounds.
    """

    def __init__(
        self, tower: Tower, accepts: Sequence[str], batch_size: int, strict: bool, windowed: dict[str, int] | None
    ) -> None:
        self.tower, self.accepts, self.batch_size, self.strict = tower, accepts, batch_size, strict
        self.windowed = windowed
        self.bad: dict[object, str] = {}

    def read(self, item: Any, weights: Mapping[str, float] | None) -> list[Part] | str:
        """The parts of an item, or why it has none.

        Raises ValueError where nothing may be skipped.
        """
        try:
            parts = parts_of(item, weights)
            self.check(parts)
            return parts
        except (ValueError, OSError) as error:
            return self._fail(error)

    def check(self, parts: Iterable[Part]) -> None:
        """Raise ValueError for a part of a modality that the model does not take."""
        if missing := next((p for p in parts if p.modality not in self.accepts), None):
            raise ValueError(
                f"expected {', '.join(self.accepts)} for this model, got {missing.modality}: {missing.name}"
            )

    def run(
        self,
        queries: Sequence[Sequence[Part] | str],
        show_progress: bool | None,
        known: Mapping[object, np.ndarray] | None = None,
    ) -> dict[object, np.ndarray]:
        """Unit vectors (dim,) by part key; parts that failed are in `self.bad` instead.

        known: vectors of earlier calls by part key, taken as they are.
        """
        unique = {part.key: part for query in queries if not isinstance(query, str) for part in query}
        vectors = {key: known[key] for key in unique if key in known} if known else {}
        groups: dict[str, list[Part]] = defaultdict(list)
        for key, part in unique.items():
            if key not in vectors:
                groups[part.modality].append(part)
        with progress_bar("embedding", total=len(unique), show=show_progress) as bar:
            # one modality after the other: a batch goes through one tower
            for modality in in_order(groups):
                for parts, values in self._batches(modality, groups[modality]):
                    # not strict: a batch of one bad part gives an empty vector, which is left out below
                    vectors |= zip((p.key for p in parts), self._encode(modality, parts, values), strict=False)
                    bar.update(len(parts))
        return {key: vector for key, vector in vectors.items() if key not in self.bad}

    def _batches(self, modality: str, parts: list[Part]) -> Iterator[tuple[list[Part], list[Any]]]:
        """Batches of `batch_size` items, fewer where clips are long, as all are padded to the longest.

        Texts, and clips within a window, go in order of their length: neighbours then need little padding. Clips only
        within a window because they are decoded by then, and all of them at once would not fit into memory.
        """
        kind = medium(modality)
        if kind.is_words:
            parts = sorted(parts, key=lambda part: len(part.value))
        loaded = self._loaded(modality, parts)
        # in samples, as clips are counted: seconds x rate
        budget = self.batch_size * (kind.seconds or 0) * (self.tower.sampling_rate or 1)
        while window := list(itertools.islice(loaded, self.batch_size * (2 if budget else 1))):
            if budget:
                window.sort(key=lambda pair: len(pair[1]))
            batch: list[tuple[Part, Any]] = []
            for number, (part, value) in enumerate(window, start=1):
                batch.append((part, value))
                is_full = len(batch) == self.batch_size or number == len(window)
                # the next clip is the longest so far, and all of a batch are padded to the longest
                if not is_full and budget:
                    is_full = (len(batch) + 1) * len(window[number][1]) > budget
                if is_full:
                    yield [part for part, _ in batch], [value for _, value in batch]
                    batch = []

    def _loaded(self, modality: str, parts: Iterable[Part]) -> Iterator[tuple[Part, Any]]:
        """Decoded parts in order, read a batch ahead by a few threads; what cannot be read is noted and left out.

        Texts pass as they are. Where nothing may be skipped, the first fault is raised here.
        """
        if medium(modality).is_words:
            yield from ((part, part.value) for part in parts)
            return
        waiting: deque[tuple[Part, Future[Any]]] = deque()
        source = iter(parts)
        with ThreadPoolExecutor(_LOADERS) as pool:
            while True:
                for part in itertools.islice(source, max(0, self.batch_size - len(waiting))):
                    waiting.append((part, pool.submit(self.decode, part)))
                if not waiting:
                    return
                part, future = waiting.popleft()
                try:
                    yield part, future.result()
                except (ValueError, OSError) as error:
                    self.bad[part.key] = self._fail(error)

    def decode(self, part: Part, limits: Limits | None = None) -> Any:
        """A part as the tower takes it: prepared pictures and frames, arrays of sound. Runs in the loader's threads."""
        if isinstance(part.value, Ready):
            return part.value.value
        usual, given = self.tower.loading.get(part.modality, {}), (limits or {}).get(part.modality, {})
        value = load(part, self.tower.sampling_rate, {part.modality: {**usual, **given}})
        if medium(part.modality).is_drawn:
            return self.tower.prepare(part.modality, [value])
        frames = self._frames_of(part.modality)
        return value if frames is None else self.tower.prepare(frames, value)

    def _frames_of(self, modality: str) -> str | None:
        """The modality whose pictures stand in for one that the tower lacks."""
        return None if modality in self.tower.modalities else medium(modality).frames_of

    def _encode(self, modality: str, parts: list[Part], values: list[Any]) -> list[np.ndarray]:
        """Unit vectors (dim,) of one batch.

        When the batch fails, its items go one by one, so that only the bad one does.
        values: as `decode` left them. A bad item gives an empty vector and a reason in `self.bad`.
        """
        import torch

        try:
            if (frames := self._frames_of(modality)) is not None:
                return [_unit(self._forward(frames, value).mean(0)) for value in values]
            if medium(modality).is_drawn:  # prepared one by one when they were decoded
                inputs = {name: torch.cat([one[name] for one in values]) for name in values[0]}
            elif (limit := self._limit(modality)) is not None and any(len(value) > limit for value in values):
                return [self._in_windows(modality, part, value, limit) for part, value in zip(parts, values)]
            else:
                inputs = self.tower.prepare(modality, values)
            return list(self._forward(modality, inputs))
        # a tower may refuse one item of a batch (a clip too short for it): the others must not pay for it
        except (ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise  # no fault of an item: a smaller batch_size is the remedy, not one less item
            if len(parts) > 1:
                return [v for part, value in zip(parts, values) for v in self._encode(modality, [part], [value])]
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.bad[parts[0].key] = self._fail(ValueError(f"the model cannot embed {parts[0].name}: {reason}"))
            return [np.zeros(0, np.float32)]

    def _limit(self, modality: str) -> int | None:
        """Samples from which on a sound comes in windows; None where it is cut or nothing cuts it."""
        return None if self.windowed is None or medium(modality).seconds is None else self.tower.max_samples

    def _in_windows(self, modality: str, part: Part, value: Any, limit: int) -> np.ndarray:
        """The unit vector (dim,) of a sound (samples,): the mean of those of as many equal windows as cover it."""
        count = -(-len(value) // limit)
        if count > 1 and self.windowed is not None:
            self.windowed[part.name] = count
        # the last one ends where the sound does, so that all are of one length
        starts = [round(i * (len(value) - limit) / (count - 1)) for i in range(count)] if count > 1 else [0]
        found = []
        for first in range(0, count, self.batch_size):
            pieces = [value[start : start + limit] for start in starts[first : first + self.batch_size]]
            found.append(self._forward(modality, self.tower.prepare(modality, pieces)))
        return _unit(np.concatenate(found).mean(0))

    def _forward(self, modality: str, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Unit vectors (batch, dim) of prepared inputs, on the host.

        Raises ValueError for numbers that are not finite.
        """
        import torch

        first = next(self.tower.model.parameters())
        placed = {
            name: value.to(first.device, first.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        with torch.inference_mode():
            # in float32: a norm in half precision would be off in the third digit
            features = self.tower.encode(modality, placed).float()
            vectors = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
        if not np.isfinite(vectors).all():  # NaN is never a vector: it would be nearest to nothing and everything
            from plait.weights.files import check_finite_weights

            check_finite_weights(self.tower.model, "the model")
            raise ValueError("the model returned numbers that are not finite")
        if not vectors.any(axis=-1).all():  # of a dead layer: it would be equally near to everything
            raise ValueError("the model returned zeros, which have no direction")
        return vectors

    def fuse(self, query: Sequence[Part] | str, vectors: Mapping[object, np.ndarray]) -> np.ndarray | str:
        """The unit vector (dim,) of an item, or why it has none.

        query: parts of the item, or the reason that `read` gave; vectors: by part key, from `run`.
        """
        if isinstance(query, str):
            return query
        if reason := next((self.bad[part.key] for part in query if part.key in self.bad), None):
            return reason
        # a single part is of unit length already, whatever its weight
        if len(query) == 1 and query[0].weight > 0:
            return vectors[query[0].key]
        try:
            return _unit(np.sum([part.weight * vectors[part.key] for part in query], axis=0))
        except ValueError as error:
            return self._fail(error)

    def _fail(self, error: Exception) -> str:
        """Raise the error where nothing may be skipped, else its first line."""
        if self.strict:
            raise error if isinstance(error, ValueError) else ValueError(str(error)) from error
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unit(vector: np.ndarray) -> np.ndarray:
    """A vector (dim,) brought to length 1. Raises ValueError for one without a direction."""
    length = float(np.linalg.norm(vector))
    if length < 1e-6:  # a difference of equal vectors is rounding noise, not a direction
        raise ValueError("expected weights that leave a direction, got parts that cancel out; change the weights")
    return (vector / length).astype(np.float32)


def _shown(item: Any, parts: Sequence[Part] | str) -> str:
    """What a list of skipped items calls this one: names of its parts, or its first 200 characters."""
    if not isinstance(parts, str):
        return " + ".join(part.name for part in parts)
    if isinstance(item, Mapping):
        return " + ".join(f"{key}: {value}"[:200] for key, value in item.items())
    return str(getattr(item, "id", item))[:200]


def _positive(value: int, name: str) -> int:
    # True is an int in Python, and no size
    """The value itself. Raises ValueError for what is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected {name} of at least 1, got {value!r}")
    return value
