"""Bulk embedding into a file, able to continue after a kill.

candidates -> entries -> embedder -> OUT.partial/{rows.jsonl, vectors.f32} -> OUT.npy | .parquet | .lance
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.embedder import Embedder
from plait.embedder.parts import NO_MEDIA
from plait.errors import UsageError, import_extra
from plait.places import at_work, atomic_write, check_local
from plait.search.ledger import AddReport
from plait.search.sources import Candidate, Problem, entry_of, expand
from plait.terminal import progress_bar
from plait.types import Sample

FORMATS = (".npy", ".parquet", ".lance")
LANCE_PARTS = {"data", "_versions", "_transactions", "_indices", "_deletions", "_latest.manifest"}
"""What a bare Lance table consists of; an index, or a folder of somebody's, holds something else."""

CHUNK = 64


def embed_to_file(
    embedder: Embedder,
    source: Any,
    out: str | Path,
    *,
    texts: Sequence[str] = (),
    overwrite: bool = False,
    strict: bool = False,
    show_progress: bool | None = None,
) -> AddReport:
    """Embed everything under `source` and `texts` into one file, able to continue after a kill.

    Args:
        embedder: makes the vectors.
        source: see `plait.search.sources.expand`.
        out: ends in `.npy` (the vectors (n, dim) alone, with the rows beside it in `.jsonl`), `.parquet` or
            `.lance`.
        texts: embedded as rows with the ids `text:...`, behind the source.
        overwrite: replace an `out` that is there.
        strict: what cannot be read is an error instead of skipped; files of a folder that are no media are
            skipped still.
        show_progress: None shows a bar on stderr when the work takes longer than about two seconds.

    Returns:
        `AddReport`. Rows are id, modality, path, caption, label, checksum, meta and vector. Work is committed
        every 64 items to `OUT.partial`; the same call goes on there.

    Raises:
        UsageError: for an unknown ending, an `out` that exists, and while another process writes it.
        ValueError: for partial work of another model, where nothing was taken, and where `strict` forbids a skip.

    Example:
        >>> embed_to_file(Embedder("nano"), "photos", "photos.npy").added  # 12
        >>> np.load("photos.npy").shape[0]  # 12
    """
    out = Path(out)
    report = AddReport()
    partial_folder = Path(f"{out}.partial")
    # what another process made of the same call is seen only once it is held
    with at_work(partial_folder, is_known=_Partial.is_known(partial_folder)):
        check_output(out, overwrite=overwrite)
        _embed(embedder, source, out, texts, strict, show_progress, report)
    return report


def _embed(
    embedder: Embedder,
    source: Any,
    out: Path,
    texts: Sequence[str],
    strict: bool,
    show_progress: bool | None,
    report: AddReport,
) -> None:
    """As `embed_to_file`, for who holds the partial work; what came of it goes into `report`."""
    found = [source, [Sample(id=f"text:{text}", text=text) for text in texts]]
    named = {str(part) for part in _listed(source)} if strict else None
    candidates = list(expand(found, lambda path, reason: report.skipped.append(Problem(path, reason))))
    with (
        _Partial(Path(f"{out}.partial"), embedder) as partial,
        progress_bar("adding", total=len(candidates), unit="file", show=show_progress) as bar,
    ):
        stream = iter(candidates)
        while chunk := list(itertools.islice(stream, CHUNK)):
            _embed_chunk(embedder, chunk, partial, report, named)
            bar.update(len(chunk))
        if not partial.rows:
            report.refuse_nothing([*_listed(source), *texts])
        partial.finish(out)


def _listed(source: Any) -> Sequence[Any]:
    """A list of sources, of one or of several."""
    return source if isinstance(source, list | tuple) else [source]


def check_output(out: Path, *, overwrite: bool) -> None:
    """Make sure that a file may be written as asked.

    Raises:
        UsageError: for an unknown ending, an address, or when `out` is there and is not to be replaced.
    """
    check_local(out)
    if out.suffix not in FORMATS:
        raise UsageError(f"expected an output ending in {', '.join(FORMATS)}, got {out.name}; choose one of them")
    beside = [out.with_suffix(".jsonl")] if out.suffix == ".npy" else []
    if not overwrite and (there := next((path for path in (out, *beside) if os.path.lexists(path)), None)):
        raise UsageError(f"expected no file at {there}, got one; choose another name, or --overwrite it")
    if out.is_dir() and (out.suffix != ".lance" or {path.name for path in out.iterdir()} - LANCE_PARTS):
        # an index, or a folder of somebody's: only a bare table can be one that was written here
        raise UsageError(f"expected a file or a table of vectors at {out}, got another directory; choose another name")


def _embed_chunk(
    embedder: Embedder, chunk: Sequence[Candidate], partial: _Partial, report: AddReport, named: set[str] | None
) -> None:
    """Embed, then commit. named: what was asked for by name, where nothing may be skipped; None skips and reports."""
    entries = []
    for candidate in chunk:
        try:
            entry = entry_of(candidate)
        except (ValueError, OSError) as error:
            report.skipped.append(Problem.of(candidate.name, error))
            continue
        if (entry.id, entry.checksum) in partial.done:
            report.unchanged += 1
        else:
            entries.append(entry)
    found = embedder.embed_readable([entry.item for entry in entries], show_progress=False)
    report.skipped += [Problem.of(entries[s.index].path or entries[s.index].id, s.reason) for s in found.skipped]
    if named is not None and (
        bad := next((p for p in report.skipped if p.reason != NO_MEDIA or p.path in named), None)
    ):
        reason = bad.reason.partition(";")[0]
        raise ValueError(f"expected a file that can be read, got {bad.shown}: {reason}; --on-bad skip leaves it out")
    names = ("id", "modality", "path", "caption", "label", "checksum", "meta")
    partial.append([{n: getattr(entries[place], n) for n in names} for place in found.kept], found.vectors)
    report.added += len(found.kept)


class _Partial:
    """Work so far: vectors are on disk before the rows that name them, so a kill leaves at most a tail to cut off.

    folder holds header.json (fingerprint and width), vectors.f32 and rows.jsonl. Raises ValueError when the
    header is another model's.
    """

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self.folder, self.dim = folder, embedder.dim
        header = {"fingerprint": embedder.fingerprint, "dim": self.dim}
        if (folder / "header.json").exists():
            if json.loads((folder / "header.json").read_text()) != header:
                raise ValueError(
                    f"expected partial work of this model in {folder}, got another's; delete it to restart"
                )
        else:
            atomic_write(folder / "header.json", json.dumps(header))
        self._vectors = (folder / "vectors.f32").open("ab+")
        self._rows = (folder / "rows.jsonl").open("ab+")
        self.rows = self._recover()
        self.done = {(row["id"], row["checksum"]) for row in self.rows}

    @staticmethod
    def is_known(folder: Path) -> bool:
        """Whether unfinished vectors lie there that are older than markers."""
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return "header.json" in names and names <= {"header.json", "rows.jsonl", "vectors.f32"}

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._vectors.close()
        self._rows.close()
        # nothing was done: leave no trace of the attempt
        if not self.rows:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _recover(self) -> list[dict[str, Any]]:
        """Whole rows that have their vector; whatever is longer in either file is cut off."""
        self._rows.seek(0)
        lines = [line for line in self._rows if line.endswith(b"\n")]
        # a vector takes 4 bytes (float32) a number
        whole = min(len(lines), os.fstat(self._vectors.fileno()).st_size // (4 * self.dim))
        self._rows.truncate(sum(map(len, lines[:whole])))
        self._vectors.truncate(whole * 4 * self.dim)
        return [json.loads(line) for line in lines[:whole]]

    def append(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
        """Commit rows and their vectors (len(rows), dim), vectors first."""
        # little-endian whatever the machine: the file may be read on another
        self._vectors.write(vectors.astype("<f4").tobytes())
        _sync(self._vectors)
        self._rows.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        _sync(self._rows)
        self.rows += [dict(row) for row in rows]

    def finish(self, out: Path) -> None:
        """Write `out` in its format and remove the partial work."""
        # mapped, so that memory does not grow with the rows
        vectors = np.memmap(self.folder / "vectors.f32", "<f4", "r", shape=(len(self.rows), self.dim))
        temporary = self.folder / f"finished{out.suffix}"
        if out.suffix == ".npy":
            np.save(temporary, vectors)
            atomic_write(out.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in self.rows))
        else:
            _write_table(temporary, self.rows, vectors)
        # a Lance table is a directory, and os.replace does not replace one that is not empty
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(temporary, out)
        shutil.rmtree(self.folder)


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
    """Rows with their vectors as a Parquet file or a Lance table, by the ending of `path`."""
    pa = import_extra("pyarrow")
    names = ("id", "modality", "path", "caption", "label", "checksum")
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in names}
    columns["meta"] = pa.array([json.dumps(row["meta"]) for row in rows], pa.string())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(np.asarray(vectors).ravel(), vectors.shape[1])
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(pa.table(columns), path)
    else:
        import_extra("lancedb").connect(path.parent).create_table(path.stem, pa.table(columns), mode="overwrite")


def _sync(stream: Any) -> None:
    """On the disk, not only handed to the system."""
    stream.flush()
    os.fsync(stream.fileno())
