"""Tables as data sets: parquet files, and directories that `datasets` saved, read through the same `Sample`.

file or directory -> light columns, mapped from disk -> Table[i] -> Sample, media read when they are decoded

Columns are the fields of a manifest. Media are paths beside the file, bytes, or the `{bytes, path}` of `datasets`;
class labels become their names; rows without an `id` are numbered. `datasets` itself is not needed to read.
"""

from __future__ import annotations

import json
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from plait.data.manifest import MAX_UNPACKED, MEDIA, address, checked_row, media_names, put_file
from plait.errors import import_extra
from plait.media.limits import Packed
from plait.modalities import in_files
from plait.reading import check_regular, inside, read_json
from plait.types import Sample, plain

SPLITS = ("train", "test", "validation", "val", "dev")
MAX_DICTIONARY = 1 << 30
"""Bytes of a column chunk whose equal values are kept once; arrow counts the bytes of a dictionary in 31 bits."""
CACHED_GROUPS = 4
"""Row groups whose media are kept; a shuffled read of large parquet files is better packed into shards first."""


@dataclass(frozen=True)
class _Part:
    """Some rows: light columns, and a function that gives a media column of the same rows.

    Args:
        name: of the file, for messages. light: a pyarrow table without bytes of media.
        media: name of a medium -> its column. split: of all these rows, None where columns say it.
    """

    name: str
    light: Any
    media: Callable[[str], Any]
    split: str | None


@dataclass(frozen=True)
class Cell(Packed):
    """A file in a cell of a table.

    Args:
        column: gives the column when the bytes are asked for. row: its place there.
        where: file, row and medium, for messages.
    """

    column: Callable[[], Any]
    row: int
    where: str

    @property
    def name(self) -> str:
        """File, row and medium."""
        return self.where

    def size(self) -> None:
        """Not known before it is read."""

    def read(self) -> bytes:
        """The bytes of the cell."""
        value = self.column()[self.row].as_py()
        return value["bytes"] if isinstance(value, dict) else value


class Table(Sequence[Sample]):
    """The rows of parquet or arrow files, each made when asked for. A bad row is a ValueError with file and row.

    Args:
        parts: in their order. names: column of classes -> their names, by number.
        root: folder that media paths are relative to, and stay inside of.
        unread: columns of files that no field of a row is called by; they are never read.
    """

    def __init__(
        self,
        parts: Sequence[_Part],
        names: Mapping[str, Sequence[str]],
        root: Path,
        unread: Sequence[str] = (),
    ) -> None:
        self.parts, self.names, self.root = list(parts), names, root
        self.unread = tuple(dict.fromkeys(unread))
        self.ends = list(accumulate(part.light.num_rows for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        place = next(i for i, end in enumerate(self.ends) if number < end)
        part, row = self.parts[place], number - (self.ends[place - 1] if place else 0)
        where = f"{part.name}, row {row}"
        light = part.light.slice(row, 1).to_pylist()[0]
        packed = {name for name in media_names() if name in MEDIA or _is_packed(light.get(name))}
        values = {key: value for key, value in light.items() if value is not None and key not in packed}
        try:
            values = {key: plain(self._named(key, value), key) for key, value in values.items()}
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        values.setdefault("id", f"{Path(part.name).stem}-{row}")
        if part.split is not None:
            values.setdefault("split", part.split)
        for modality in packed:
            if (found := self._medium(part, row, modality, light, where)) is not None:
                values[modality] = found
        values |= {name: self._inside(values[name], where) for name in in_files(values) if name not in packed}
        # The check of rows knows paths alone: cells go around it.
        kept = {name: values.pop(name) for name in packed if isinstance(values.get(name), Cell)}
        sample = checked_row(values, None, where)
        for name, cell in kept.items():
            put_file(sample, name, cell)
        return sample

    def _named(self, column: str, value: Any) -> Any:
        """A value as manifests have it: a class by its name, any other label as text."""
        if column in self.names and isinstance(value, int):
            if not -1 <= value < len(self.names[column]):
                raise ValueError(f"expected a class of {column} below {len(self.names[column])}, got {value}")
            return None if value == -1 else self.names[column][value]  # -1 stands for a label that is not told
        return str(value) if column == "label" and isinstance(value, int) else value

    def _medium(self, part: _Part, row: int, modality: str, light: Mapping[str, Any], where: str) -> Any:
        """A path, a cell that holds the file, or None where the row has no such medium."""
        value = light.get(modality)
        if isinstance(value, str):
            return self._inside(value, where)
        if isinstance(value, dict):
            path, is_held = value.get("path"), value.get("_held")
            if path is not None and not is_held:
                return self._inside(path, where)
            # the bytes in the table, whatever file of this machine the path beside them names
            value = is_held
        return Cell(partial(part.media, modality), row, f"{where}, {modality}") if value else None

    def _inside(self, name: str, where: str) -> str:
        """A path below `root`. Raises ValueError with the row where it leads out of it, or is none."""
        try:
            if what := address(name):
                raise ValueError(f"expected the name of a file, got {what} {name[:80]!r}")
            return str(inside(self.root, name))
        except ValueError as error:
            raise ValueError(f"{where}: {error}; put the file there") from error

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def _is_packed(value: Any) -> bool:
    """Whether a light column stands for files in cells: `True`, or `{_held, path}`; others are values by themselves."""
    return value is True or (isinstance(value, dict) and "_held" in value)


def is_saved_data_set(path: str | Path) -> bool:
    """Whether this is a directory that `datasets` saved: one split, or several."""
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(directory: str | Path) -> Table:
    """A directory of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`; rows get the split they lie in.

    Raises:
        ValueError: for a set with indices (a selection that was not written out), a missing arrow file, and names
            that lead outside.
    """
    root = Path(directory)
    if not (root / "dataset_dict.json").is_file():
        parts, names, unread = _saved_split(root, None)
        return Table(parts, names, root, unread)
    splits = read_json(root / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise ValueError(f"expected names of splits in {root / 'dataset_dict.json'}, got others; save the set again")
    found = [_saved_split(inside(root, split), split) for split in splits]
    names = {column: several for _, named, _ in found for column, several in named.items()}
    unread = [column for _, _, columns in found for column in columns]
    return Table([part for parts, _, _ in found for part in parts], names, root, unread)


def _saved_split(root: Path, split: str | None) -> tuple[list[_Part], dict[str, list[str]], list[str]]:
    """The parts of one saved split, the names of its classes, and columns of files that no field is called by."""
    pyarrow, ipc = import_extra("pyarrow"), import_extra("pyarrow.ipc")
    state = read_json(root / "state.json")
    if state.get("_indices_data_files"):
        raise ValueError(f"expected a data set without indices in {root}, got one; save it again with datasets 2.15+")
    features = read_json(root / "dataset_info.json").get("features")
    files = state.get("_data_files")
    if not isinstance(files, list) or not all(
        isinstance(e, dict) and isinstance(e.get("filename"), str) for e in files
    ):
        raise ValueError(f"expected the names of arrow files in {root / 'state.json'}, got others; save the set again")
    parts, unread = [], []
    for file in (inside(root, entry["filename"]) for entry in files):
        if not file.is_file():
            raise ValueError(f"expected the arrow file {file}, got no such file; copy the data set again")
        with pyarrow.memory_map(str(file)) as mapped:
            table = ipc.open_stream(mapped).read_all()
        others = [field.name for field in table.schema if holds_files(field)]
        unread += others
        parts.append(_Part(str(file), _light(table.drop_columns(others)), partial(_column, table), split))
    return parts, _class_names(features), unread


def _column(table: Any, name: str) -> Any:
    """A column of a table; bound with `partial`, since a lambda in a loop would see the last table."""
    return table.column(name)


def read_parquet(path: str | Path) -> Table:
    """A parquet file, or all below a directory; a file called train-..., test-... gives its rows that split.

    Args:
        path: of a file or a directory; media paths are relative to the directory.

    Raises:
        ValueError: without parquet files, and for a file that is none.
    """
    root = Path(path)
    files = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
    if not files:
        raise ValueError(f"expected parquet files below {root}, got none")
    parquet, pyarrow, ipc = map(import_extra, ("pyarrow.parquet", "pyarrow", "pyarrow.ipc"))
    parts: list[_Part] = []
    names: dict[str, list[str]] = {}
    unread: list[str] = []
    for file in files:
        try:
            opened = _opened(parquet, file)
        except (OSError, ValueError) as error:
            raise ValueError(f"expected a parquet file, got {file}: {' '.join(str(error).split())}") from error
        written = (opened.schema_arrow.metadata or {}).get(b"huggingface")
        try:
            names |= _class_names(json.loads(written)["info"].get("features")) if written else {}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"expected features as datasets writes them in {file}, got others; write it anew"
            ) from error
        split = file.stem.partition("-")[0]
        groups = _Groups(opened, file)
        unread += [field.name for field in _written(opened) if holds_files(field)]
        if not opened.num_row_groups:
            continue
        # Words of a large set do not fit into memory: unpacked into a file without a name, they are mapped.
        with TemporaryFile() as unpacked:
            first = groups.light(0)
            with ipc.new_stream(pyarrow.PythonFile(unpacked, "w"), first.schema) as writer:
                sizes = []
                for number in range(opened.num_row_groups):
                    light = groups.light(number) if number else first
                    writer.write_table(light)
                    sizes.append(light.num_rows)
            unpacked.flush()
            table = ipc.open_stream(pyarrow.memory_map(f"/dev/fd/{unpacked.fileno()}")).read_all()
        for number, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
            light = table.slice(end - size, size)
            parts.append(_Part(str(file), light, partial(groups.media, number), split if split in SPLITS else None))
    return Table(parts, names, root if root.is_dir() else root.parent, unread)


def holds_files(field: Any) -> bool:
    """Whether an Arrow field holds bytes, `{bytes, path}` or lists of them under a name that is no medium's.

    Such columns may be most of a file: they are not read, and `plait data check` names them.
    """
    types, kind = import_extra("pyarrow").types, field.type
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if field.name in MEDIA:  # several pictures of one row: a row has one
            return True
        kind = kind.value_type
    is_several = kind is not field.type
    if types.is_struct(kind):
        inner = [kind.field(number) for number in range(kind.num_fields)]
        is_bytes = any(types.is_binary(one.type) or types.is_large_binary(one.type) for one in inner)
    else:
        is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return is_bytes and (is_several or field.name not in media_names())


def _is_medium(field: Any) -> bool:
    """Whether an Arrow field holds media: of a user's own modality where it holds bytes or `{bytes, path}`."""
    types, kind = import_extra("pyarrow").types, field.type
    if field.name in MEDIA or field.name not in media_names():
        return field.name in MEDIA
    if types.is_struct(kind):
        return {kind.field(number).name for number in range(kind.num_fields)} <= {"bytes", "path"}
    return types.is_binary(kind) or types.is_large_binary(kind)


def _opened(parquet: Any, file: Path) -> Any:
    """A parquet file whose equal texts and bytes are read once. Raises ValueError where little would become much.

    Four thousand equal texts of a megabyte are ten kilobytes of parquet, and four gigabytes when each is unpacked.
    """
    check_regular(file)
    facts = parquet.read_metadata(str(file), memory_map=True)
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    size = sum(max(chunk.total_uncompressed_size, 8 * chunk.num_values) for chunk in chunks)
    if size > (limit := max(MAX_UNPACKED, 100 * file.stat().st_size)):
        raise ValueError(f"{size} bytes unpacked, more than {limit}, a hundred times the file")
    packed: dict[str, int] = {}
    for chunk in chunks:
        if chunk.physical_type == "BYTE_ARRAY":
            name = chunk.path_in_schema
            packed[name] = max(packed.get(name, 0), chunk.total_uncompressed_size)
    once = [name for name, largest in packed.items() if largest <= MAX_DICTIONARY]
    return parquet.ParquetFile(str(file), memory_map=True, metadata=facts, read_dictionary=once)


def _written(file: Any) -> Any:
    """The columns of a parquet file as they are written, whatever they are read as."""
    return file.metadata.schema.to_arrow_schema()


class _Groups:
    """Row groups of one parquet file; the media of the last few that were read are kept."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        self._kept: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def _read(self, number: int, columns: Sequence[str]) -> Any:
        """Columns of a row group. Raises ValueError where their pages unpack to more than the file's directory says."""
        group = self.file.metadata.row_group(number)
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for chunk in map(group.column, range(group.num_columns)):
                if not any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns):
                    continue
                size = sum(_page_sizes(data, chunk, str(self.path)))
                # writers count a little differently, but none by half
                if size > 2 * max(chunk.total_uncompressed_size, 8 * chunk.num_values) + (1 << 16):
                    raise ValueError(
                        f"expected a parquet file, got {self.path}: {chunk.path_in_schema} has pages of {size} bytes "
                        f"unpacked where the file's directory says {chunk.total_uncompressed_size}; write it anew"
                    )
        return self.file.read_row_group(number, columns=columns)

    def light(self, number: int) -> Any:
        """All columns without the bytes of media: of `{bytes, path}` the path, of plain bytes whether there are any."""
        pyarrow = import_extra("pyarrow")
        names, packed, paired = [], [], []
        for field in _written(self.file):
            if holds_files(field):
                continue
            if _is_medium(field) and pyarrow.types.is_struct(field.type):
                paired.append(field.name)
                names.append(f"{field.name}.path")
            elif _is_medium(field) and not pyarrow.types.is_string(field.type):
                packed.append(field.name)
            else:
                names.append(field.name)
        table = self._read(number, names)
        for name in packed:
            table = table.append_column(name, self._held(number, name))
        for name in paired:
            path = _field(table.column(name), "path")
            both = pyarrow.StructArray.from_arrays([self._held(number, name, "bytes"), path], names=["_held", "path"])
            table = table.set_column(table.column_names.index(name), name, both)
        return table

    def _held(self, number: int, column: str, inner: str | None = None) -> Any:
        """Which rows of a column of bytes hold some; the bytes are read only where the file says that some are null.

        inner: the field of the bytes where the column holds structures.
        """
        pyarrow, compute = import_extra("pyarrow"), import_extra("pyarrow.compute")
        group = self.file.metadata.row_group(number)
        name = column if inner is None else f"{column}.{inner}"
        facts = next((c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == name), None)
        if facts is None:  # structures of paths alone
            return pyarrow.array([False] * group.num_rows)
        if facts.statistics is not None and facts.statistics.null_count == 0:
            return pyarrow.array([True] * group.num_rows)
        cells = self.media(number, column)
        return _joined(compute.is_valid(cells if inner is None else _field(cells, inner)))

    def media(self, number: int, column: str) -> Any:
        """A media column of one row group."""
        with self._lock:  # a ParquetFile is for one thread
            key = (number, column)
            if key not in self._kept:
                self._kept[key] = self._read(number, [column]).column(0)
                if len(self._kept) > CACHED_GROUPS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


def _page_sizes(data: Any, chunk: Any, name: str) -> Iterator[int]:
    """Bytes that each page of a column chunk unpacks to, as its header says, which arrow allocates before it looks.

    data: the file, by byte. Raises ValueError for headers that are none; name: of the file, for it.
    """
    offsets = (chunk.dictionary_page_offset, chunk.data_page_offset)
    at = min((start for start in offsets if start), default=0)
    end = at + chunk.total_compressed_size
    while at < end:
        try:
            header, at = _thrift(data, at)
            unpacked, packed = header[2], header[3]
        except (IndexError, KeyError) as error:
            raise ValueError(f"expected a parquet file, got {name} with a damaged page; copy it again") from error
        if unpacked < 0 or packed < 0:
            raise ValueError(f"expected a parquet file, got {name} with a page of negative length; copy it again")
        yield unpacked
        at += packed


def _thrift(data: Any, at: int) -> tuple[dict[int, int], int]:
    """The numbers of a structure in Thrift's compact protocol by field, and where it ends; inner ones are passed over.

    Raises KeyError for kinds that no page header has (doubles, lists, maps), IndexError behind the end of the file.
    """
    fields: dict[int, int] = {}
    last, depth = [0], 1
    while depth:
        head, at = data[at], at + 1
        if not head:
            depth -= 1
            last.pop()
            continue
        if head >> 4:  # how much larger the field's number is than the last one's
            last[-1] += head >> 4
        else:
            number, at = _varint(data, at)
            last[-1] = number >> 1 ^ -(number & 1)
        kind = head & 15
        if kind in (4, 5, 6, 8):
            number, at = _varint(data, at)
            if kind == 8:  # bytes, of this length
                at += number
            elif depth == 1:
                fields[last[-1]] = number >> 1 ^ -(number & 1)
        elif kind == 12 and depth < 8:  # headers have three at most
            depth += 1
            last.append(0)
        elif kind == 3:
            at += 1
        elif kind not in (1, 2):  # truths, which lie in the kind
            raise KeyError(kind)
    return fields, at


def _varint(data: Any, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = shift = 0
    while data[at] & 128 and shift < 63:
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
    return number | data[at] << shift, at + 1


def _joined(column: Any) -> Any:
    """A column in one piece."""
    while hasattr(column, "combine_chunks"):  # one of structures gives chunks of chunks
        column = column.combine_chunks()
    return column


def _field(column: Any, name: str) -> Any:
    """A field of a column of structures in one piece; nulls where the structures have no such field."""
    pyarrow, compute = import_extra("pyarrow"), import_extra("pyarrow.compute")
    if name not in [column.type.field(number).name for number in range(column.type.num_fields)]:
        return pyarrow.nulls(len(column), pyarrow.string() if name == "path" else pyarrow.binary())
    return _joined(compute.struct_field(column, name))


def _light(table: Any) -> Any:
    """`table` with media bytes replaced by whether they are there: `{_held, path}`, or True."""
    pyarrow, compute = import_extra("pyarrow"), import_extra("pyarrow.compute")
    for name in [field.name for field in table.schema if _is_medium(field)]:
        column, place = table.column(name), table.column_names.index(name)
        kind = column.type
        if pyarrow.types.is_struct(kind):
            arrays = [_joined(compute.is_valid(_field(column, "bytes"))), _field(column, "path")]
            table = table.set_column(place, name, pyarrow.StructArray.from_arrays(arrays, names=["_held", "path"]))
        elif pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
            table = table.set_column(place, name, compute.is_valid(column))
    return table


def _class_names(features: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, from the features that `datasets` writes beside the data."""
    return {
        name: [str(one) for one in kind["names"]]
        for name, kind in (features.items() if isinstance(features, dict) else ())
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }
