"""A folder of one's own -> data set: pictures, sounds and videos with names or captions, split.

    folder/dog/a.jpg, folder/dog/bark.wav     a sub-folder's name is the label and the words of what lies in it
    folder/captions.csv or .jsonl             columns `file` and `text` (or `caption`), `label` and `group` if wanted

Files stay where they are; `out/manifest.jsonl` points to them.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.data.manifest import MAX_LINE, MEDIA, checked_json, decoded, no_such_file, write_manifest
from plait.data.packages import sha256
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.media.kinds import kind_of
from plait.media.values import medium
from plait.terminal import progress_bar
from plait.types import Sample

CAPTION_SUFFIXES = (".csv", ".jsonl")
FILE_COLUMNS = ("file", "file_name", "image", "audio", "video", "path")
TEXT_COLUMNS = ("text", "caption")


@dataclass(frozen=True)
class Caption:
    """The words of one file, from one or several rows of captions files; rows of one `group` are never split."""

    texts: list[str]
    label: str | None
    group: str | None = None


@dataclass
class Scan:
    """What a folder holds: samples with their split, and one line for each file that was left out."""

    samples: list[Sample] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write_scan(found: Scan, out: str | Path) -> Path:
    """Write the manifest of a scan into directory `out`, which must not hold one."""
    out = Path(out)
    if (out / "manifest.jsonl").exists():
        raise ValueError(f"expected a directory without a manifest, got {out}; choose another or delete the old one")
    write_manifest(out / "manifest.jsonl", found.samples, replace=False)
    return out


def scan(folder: str | Path, test_share: float = 0.2, progress: bool = False, encoding: str | None = None) -> Scan:
    """Find, decode once and split every image, audio and video of a folder that has words.

    The split goes by content hash within each label and modality: `test_share` of the files (at least one where there
    are two), and equal files always on the same side. Files without words, of other kinds or damaged are left out.

    Args:
        folder: of media. test_share: 0 up to 1. progress: whether a bar is shown.
        encoding: of captions files without a mark, UTF-8 without it.

    Returns:
        Samples with their split, and a line per file that was left out.

    Raises:
        ValueError: when nothing is left, or a captions file is wrong (its file and line are named).
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"expected a folder, got {folder}; check the path")
    if not 0 <= test_share < 1:
        raise ValueError(f"expected a test share of 0 up to 1, got {test_share}")
    captions = _captions(root, encoding)
    result = Scan()
    digests: dict[str, str] = {}
    groups: dict[str, str] = {}
    for path in progress_bar("files", sorted(_files(root)), unit="file", show=None if progress else False):
        name = path.relative_to(root).as_posix()
        try:
            sample = _sample(path, name, captions.get(path.resolve()))
        except ValueError as error:
            result.left_out.append(f"{name}: {error}")
            continue
        digests[sample.id] = sha256(path)
        if (group := sample.meta.get("group")) is not None:
            groups[sample.id] = group
        result.samples.append(sample)
    if not result.samples:
        seen = (
            f"; {len(result.left_out)} files were left out, the first: {result.left_out[0]}" if result.left_out else ""
        )
        raise ValueError(
            f"expected pictures or sounds in named sub-folders of {folder}, or a captions.csv there, got none{seen}"
        )
    split_groups(result.samples, _joined(digests, groups), test_share)
    return result


def _files(root: Path) -> Iterator[Path]:
    """Files of a folder and below, without hidden ones and without captions files at its top."""
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden and not (path.parent == root and path.suffix.lower() in CAPTION_SUFFIXES):
            yield path


def _sample(path: Path, name: str, caption: Caption | None) -> Sample:
    """One file as a row; its words are its captions, else its top folder's name. ValueError with the reason."""
    kind = kind_of(path)
    if kind is None or kind == "text":
        raise ValueError("no picture, sound, video or file of a modality that was added")
    top = name.partition("/")[0] if "/" in name else None
    if caption is None and top is None:
        raise ValueError("no words for it; put it into a named sub-folder or into captions.csv")
    decode_file(path, kind)
    label = caption.label if caption and caption.label else top
    text = caption.texts[0] if caption else " ".join((top or "").replace("_", " ").replace("-", " ").split())
    row: dict[str, Any] = {"id": name, "text": text, kind: str(path.resolve()), "label": label, "source": "folder"}
    if caption and caption.group:
        row["group"] = caption.group
    if caption and len(caption.texts) > 1:
        row["captions"] = caption.texts
    return Sample.from_row(row)


def decode_file(path: Path, kind: str) -> None:
    """Raise the loader's ValueError for a damaged file."""
    if kind not in MEDIA:
        medium(kind).load(path, 0)
    elif kind == "image":
        load_image(path)
    elif kind == "audio":
        load_audio(path)
    else:
        from plait.media.video import load_video

        load_video(path, num_frames=1)


def _captions(root: Path, encoding: str | None = None) -> dict[Path, Caption]:
    """File -> its words. A later row adds a caption to a file and takes nothing from an earlier one."""
    captions: dict[Path, Caption] = {}
    for file in sorted(path for path in root.iterdir() if path.suffix.lower() in CAPTION_SUFFIXES):
        for line, row in _rows(file, encoding):
            where = f"{file}, line {line}"
            name = next((row[column] for column in FILE_COLUMNS if row.get(column)), None)
            text = next((row[column] for column in TEXT_COLUMNS if row.get(column)), None)
            if not isinstance(name, str) or not isinstance(text, str):
                missing = "file" if not isinstance(name, str) else "text"
                raise ValueError(f"{where}: expected columns 'file' and 'text', got no {missing!r}; found {list(row)}")
            if not (root / name).is_file():
                got = no_such_file(name)
                got = got if ";" in got else f"{got}; correct the name"
                raise ValueError(f"{where}: expected the file {name} in {root}, got {got}")
            label, group = (None if row.get(c) in (None, "") else str(row[c]) for c in ("label", "group"))
            own = captions.setdefault((root / name).resolve(), Caption([], label, group))
            for column, value, earlier in (("label", label, own.label), ("group", group, own.group)):
                if value != earlier:
                    said = f"{earlier!r}, as in an earlier row of {name}, got {value!r}"
                    raise ValueError(f"{where}: expected the {column} {said}; give all rows of a file the same")
            if text.strip() not in own.texts:
                own.texts.append(text.strip())
    return captions


def _rows(file: Path, encoding: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and fields of every row of a captions file, CSV or JSONL by its name."""
    lines = io.StringIO(decoded(file.read_bytes(), file, encoding), newline="")
    if file.suffix.lower() == ".jsonl":
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, checked_json(line)
                except ValueError as error:
                    raise ValueError(f"{file}, line {number}: {error}") from error
        return
    # of the whole process: put back, also where the caller stops halfway
    before = csv.field_size_limit(MAX_LINE)
    try:
        reader = csv.DictReader(lines)
        for row in reader:
            # too many cells come under None, missing ones as None: words after a comma would be lost
            if None in row or None in row.values():
                count = len([*(row.pop(None, None) or ()), *(cell for cell in row.values() if cell is not None)])
                got = f"{len(reader.fieldnames or ())} cells, got {count}"
                raise ValueError(f"{file}, line {reader.line_num}: expected {got}; put text with commas into quotes")
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise ValueError(f"{file}: expected rows of CSV, got: {error}") from error
    finally:
        csv.field_size_limit(before)


def _joined(digests: dict[str, str], groups: dict[str, str]) -> dict[str, str]:
    """Sample -> what may not be split: its content, and everything of its group and of equal contents in others."""
    parent = {digest: digest for digest in digests.values()}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first: dict[str, str] = {}
    for name, group in groups.items():
        a, b = sorted((root(digests[name]), root(first.setdefault(group, digests[name]))))
        # The root of a group is its least hash (a < b), so the order of files does not matter.
        parent[b] = a
    return {name: root(digest) for name, digest in digests.items()}


def split_groups(samples: list[Sample], digests: dict[str, str], test_share: float) -> None:
    """Set `split` of every sample: per label and modality the first distinct groups in hash order are for testing.

    Hash order is as good as chance and the same tomorrow; a file that is added moves few others to the other side.
    Where every label has one group only, groups of all labels together are drawn from.

    Args:
        samples: changed in place. test_share: of the groups.
        digests: sample -> a hash that samples share which belong on one side.
    """
    groups: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    for sample in samples:
        groups[sample.label, "".join(sample.modalities[-1:])].add(digests[sample.id])
    held = {digest for contents in groups.values() for digest in _held_out(contents, test_share)}
    # Otherwise a set with one file per label, as named portraits, would have nothing to test on.
    held = held or _held_out(set(digests.values()), test_share)
    for sample in samples:
        sample.split = "test" if digests[sample.id] in held else "train"


def _held_out(contents: set[str], share: float) -> set[str]:
    """The first in hash order, at least one of two or more."""
    count = round(share * len(contents))
    return set(sorted(contents)[: max(count, 1) if share > 0 and len(contents) > 1 else count])
