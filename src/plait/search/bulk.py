"""Many processes, one index: blocks of files are embedded anywhere, and one process commits what they made.

source -> blocks of files -> Ray's workers | ranks of torchrun: hashed, embedded, each INDEX/bulk/.../<block>.arrow
       -> one committer: ledger, upsert by id -> rows

A block is named by what it is made of (paths, sizes, times), so whoever makes it again makes the same file. A worker
that is killed leaves no file, and its block is made by another, or when the same command is run again; a block that was
made twice is one file. Committing goes by id, so a committer that is killed goes on where it was: no row is lost or
doubled.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from plait.embedder import Embedder
from plait.errors import UsageError, import_extra
from plait.places import atomic_write
from plait.search.index import Index, one_line, to_arrow, writing
from plait.search.ledger import AddReport, Ledger
from plait.search.rows import vectors_of
from plait.search.sources import Candidate, Entry, Problem, entry_of, expand
from plait.terminal import progress_bar
from plait.types import Sample

if TYPE_CHECKING:
    import pyarrow as pa

Engine = Literal["ray", "torchrun"]
ENGINES: tuple[Engine, ...] = ("ray", "torchrun")

BLOCK = 64
"""Files of a block: most that a killed worker loses."""
_STAGING = "bulk"
_PATIENCE = 0.2
"""Seconds between two looks for blocks of other ranks."""
_COMMITTED = 16
"""Blocks of one commit: a commit is a file, and a search opens every one of them."""


def add_with(
    index: Path, source: Any, engine: Engine, *, workers: int = 2, deduplicate: bool = True, model: Path | None = None
) -> AddReport:
    """Add to an index with several processes, on one machine or many that see the same paths.

    Args:
        index: directory of an index that is there, on a disk that all workers see.
        source: as in `Index.add`; paths that all workers see.
        engine: "ray" (Ray Data; a cluster that is connected, else one on this machine), or "torchrun" (this process is
            one rank, and only the first commits and reports).
        workers: of Ray.
        deduplicate: as in `Index.add`.
        model: of the index, where it is not at its recorded place.

    Returns:
        What became of everything; of ranks but the first, an empty report.

    Raises:
        UsageError: for another engine, and for no rank in "torchrun".
        ValueError: as `Index.add`. MissingExtraError: without Ray.
    """
    if engine not in ENGINES:
        raise UsageError(f"expected an engine of {', '.join(ENGINES)}, got {engine!r}; choose one of them")
    report = AddReport()
    blocks = list(_blocks(source, report))
    opened = Index.open(index)
    staging = index.resolve() / _STAGING / opened.description["fingerprint"]
    worker = Worker(str(model or opened.model_path), opened.description.get("adapter"), str(staging))
    if engine == "ray":
        for _ in _by_ray(worker, blocks, workers):
            pass
    else:
        rank, world = _rank()
        for block in blocks[rank::world]:
            worker(block)
        if rank:
            return AddReport()
        _await(staging, blocks)
    commit(opened, [staging / f"{name_of(block)}.arrow" for block in blocks], report, deduplicate=deduplicate)
    if report.added or report.replaced:
        opened.optimize()
    return report


def _blocks(source: Any, report: AddReport) -> Iterator[list[dict[str, Any]]]:
    """Candidates as plain values, some at a time; what is left out goes into the report."""
    found = expand(source, lambda path, reason: report.skipped.append(Problem(path, reason)))
    rows = ({**_stamped(one.path), "sample": _row_of(one), "modality": one.modality} for one in found)
    while block := list(itertools.islice(rows, BLOCK)):
        yield block


def _stamped(path: Path | None) -> dict[str, Any]:
    """A path with size and time, by which a file that changed is another."""
    if path is None:
        return {"path": None, "stamp": None}
    try:
        status = path.stat()
    except OSError:  # the worker says what is wrong with it
        return {"path": str(path.absolute()), "stamp": None}
    return {"path": str(path.absolute()), "stamp": [status.st_size, status.st_mtime_ns]}


def _row_of(candidate: Candidate) -> dict[str, Any] | None:
    """A sample as plain values. Raises UsageError for media in memory, which no other process sees."""
    if candidate.remote is not None:
        raise UsageError(f"expected files of this machine for workers, got {candidate.name}; add it without an engine")
    if candidate.sample is None:
        return None
    row = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(candidate.sample).items()}
    try:
        json.dumps(row)
    except TypeError as error:
        raise UsageError(f"expected files or texts for workers, got media in memory of {candidate.name}") from error
    return row


def name_of(block: Sequence[dict[str, Any]]) -> str:
    """What a block is called: equal for equal files."""
    return hashlib.sha256(json.dumps(block, sort_keys=True).encode()).hexdigest()[:32]


class Worker:
    """What embeds blocks: plain values inside, so that it travels to another process; the model is opened there.

    Args:
        model, adapter: of the index.
        staging: directory of finished blocks.
    """

    def __init__(self, model: str, adapter: str | None, staging: str) -> None:
        self.model, self.adapter, self.staging = model, adapter, Path(staging)
        self._embedder: Embedder | None = None

    def __call__(self, block: Sequence[dict[str, Any]]) -> str:
        """Make one block where it is not there; the path of its file."""
        place = self.staging / f"{name_of(block)}.arrow"
        if place.exists():
            return str(place)
        if self._embedder is None:
            self._embedder = Embedder(self.model, adapter=self.adapter)
        entries, skipped = [], []
        for row in block:
            sample = None if row["sample"] is None else Sample(**row["sample"])
            candidate = Candidate(None if row["path"] is None else Path(row["path"]), sample, row["modality"])
            try:
                entries.append(entry_of(candidate))
            except (ValueError, OSError) as error:
                skipped.append(Problem.of(candidate.name, error))
        found = self._embedder.embed_readable([entry.item for entry in entries], show_progress=False)
        skipped += [Problem.of(entries[s.index].path or entries[s.index].id, s.reason) for s in found.skipped]
        vectors = found.vectors if found.kept else np.zeros((0, self._embedder.dim), np.float32)
        write_block(place, to_arrow([entries[kept] for kept in found.kept], vectors), skipped)
        return str(place)


def write_block(place: Path, rows: pa.Table, skipped: Sequence[Problem] = ()) -> None:
    """Rows of a block as a file that is there whole or not at all.

    Args:
        place: its name ends in `.arrow`.
        rows: as `plait.search.index.to_arrow` makes them.
        skipped: what was left out of it.
    """
    pa = import_extra("pyarrow")
    told = {"skipped": json.dumps([problem._asdict() for problem in skipped])}

    def fill(aside: Path) -> None:
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, rows.schema.with_metadata(told)) as writer:
            writer.write_table(rows)

    place.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place, fill)


def commit(index: Index, places: Sequence[Path], report: AddReport, *, deduplicate: bool = True) -> None:
    """Take blocks into the rows, in order, and delete them.

    Args:
        index: gains rows; held for writing meanwhile.
        places: files of `write_block`.
        report: counts, as of `Index.add`.
        deduplicate: as in `Index.add`.

    Raises:
        ValueError: while another process is writing, and for a block that is missing or of another width.
    """
    pa = import_extra("pyarrow")
    with writing(index.path):
        with one_line():
            held = index.table.search().select(["id", "modality", "checksum", "path"]).to_arrow().to_pylist()
        ledger = Ledger(held, deduplicate=deduplicate)
        waiting = iter(progress_bar("committing", places, unit="block"))
        while some := list(itertools.islice(waiting, _COMMITTED)):
            fresh: list[Any] = []
            moved: list[tuple[Entry, str]] = []
            for place in some:
                if not place.is_file():
                    raise ValueError(f"expected the block {place.name}, got none; run the same command again")
                with pa.memory_map(str(place)) as file:
                    rows = pa.ipc.open_file(file).read_all()
                    report.skipped += [Problem(**one) for one in json.loads(rows.schema.metadata[b"skipped"])]
                    fresh.append(rows.filter(pa.array(_judged(rows, ledger, report, moved), pa.bool_())))
            if moved:
                index.follow(moved)
            _upsert(index, [rows for rows in fresh if len(rows)])
            for place in some:
                place.unlink(missing_ok=True)


def _judged(rows: Any, ledger: Ledger, report: AddReport, moved: list[tuple[Entry, str]]) -> list[bool]:
    """Which rows of a block are taken; counts go into the report, files that were moved into `moved`."""
    taken = []
    columns = ("id", "modality", "path", "checksum", "caption", "label", "words", "meta")
    for row in rows.select(columns).to_pylist():
        entry = Entry(item={}, **row | {"meta": json.loads(row["meta"] or "{}")})
        verdict, reason = ledger.judge(entry)
        taken.append(verdict in ("new", "changed"))
        if verdict == "new":
            report.added += 1
        elif verdict in ("changed", "moved"):
            report.replaced += 1
        elif verdict == "unchanged":
            report.unchanged += 1
        else:
            left_out = report.duplicates if verdict == "duplicate" else report.skipped
            left_out.append(Problem(entry.path or entry.id, reason))
        if verdict == "moved":
            moved.append((entry, reason))
    return taken


def _upsert(index: Index, blocks: Sequence[Any]) -> None:
    """One commit, by id: a row that a killed committer wrote already is replaced by itself."""
    if not blocks:
        return
    rows = import_extra("pyarrow").concat_tables([block.replace_schema_metadata(None) for block in blocks])
    if (width := vectors_of(rows.combine_chunks().to_batches()[0]).shape[1]) != index.description["dim"]:
        raise ValueError(f"expected vectors of {index.description['dim']}, got {width}; delete {index.path / _STAGING}")
    with one_line():
        upsert = index.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        upsert.execute(index.fitting(rows))


def _by_ray(worker: Worker, blocks: Sequence[list[dict[str, Any]]], workers: int) -> Iterator[str]:
    """Blocks through Ray Data: actors hold the model, and those that die are started anew with their blocks."""
    ray = import_extra("ray")
    data = import_extra("ray.data")

    class Embeds:
        """An actor; its model is opened once."""

        def __init__(self) -> None:
            self.worker = Worker(worker.model, worker.adapter, str(worker.staging))

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"place": [self.worker(json.loads(block)) for block in batch["block"]]}

    if not ray.is_initialized():
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    rows = data.from_items([{"block": json.dumps(block)} for block in blocks], override_num_blocks=max(1, len(blocks)))
    made = rows.map_batches(Embeds, batch_size=1, num_cpus=1, compute=data.ActorPoolStrategy(size=workers))
    for row in made.iter_rows():
        yield row["place"]


def _rank() -> tuple[int, int]:
    """Number of this process and of all, as torchrun tells them. Raises UsageError without."""
    if "RANK" not in os.environ:
        raise UsageError("expected ranks for --engine torchrun, got none; start it by torchrun --nproc-per-node 2")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _await(staging: Path, blocks: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Wait for the blocks of the other ranks; where one dies, torchrun ends this one too."""
    missing = {staging / f"{name_of(block)}.arrow" for block in blocks}
    while missing := {place for place in missing if not place.exists()}:
        time.sleep(_PATIENCE)
