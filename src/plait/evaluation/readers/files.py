"""Annotation files as rows that know where they stand, so that every error names file, row and field.

JSON list | JSON lines | table with or without header -> [Row] -> row.text("question")
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_LARGEST_CELL = 1 << 28
"""Characters of one cell; tables hold whole pictures as base64."""


class Row(Mapping[str, Any]):
    """One record and its place, such as "val.json, row 3". Fields are read with the type they must have."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self._fields, self.place = values, place

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields:
            have = " ".join(", ".join(map(str, list(self._fields)[:12])).split()) or "none"
            raise ValueError(f"{self.place}: expected field {name!r}, got the fields {have}; is this the right file?")
        return self._fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def get(self, name: object, default: Any = None, /) -> Any:
        """A field as it is, or `default` where it is absent."""
        return self._fields.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def text(self, name: str) -> str:
        """A field that holds text; a number is read as its digits."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.wrong(name, "text", value)
        return str(value)

    def optional(self, name: str) -> str | None:
        """Text, or None where the field is absent, null or empty."""
        return self.text(name) if self.get(name) not in (None, "") else None

    def integer(self, name: str) -> int:
        """A whole number, written as one or as its digits."""
        value = self[name]
        try:
            if isinstance(value, int | str) and not isinstance(value, bool):
                return int(value)
        except ValueError:
            pass
        raise self.wrong(name, "a whole number", value)

    def number(self, name: str) -> float:
        """A number, int where it is whole in the file."""
        value = self[name]
        try:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return value
            return int(value) if str(value).strip().lstrip("-").isdigit() else float(value)
        except (TypeError, ValueError):
            raise self.wrong(name, "a number", value) from None

    def items_of(self, name: str) -> list[Any]:
        """A list."""
        value = self[name]
        if not isinstance(value, list):
            raise self.wrong(name, "a list", value)
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        value = self.items_of(name)
        if any(not isinstance(one, str) for one in value):
            raise self.wrong(name, "a list of texts", value)
        return value

    def record(self, name: str) -> Row:
        """A nested record."""
        value = self[name]
        if not isinstance(value, dict):
            raise self.wrong(name, "a record", value)
        return Row(value, f"{self.place}, field {name!r}")

    def records(self, name: str) -> list[Row]:
        """A list of nested records, whose places count from 1."""
        return rows_of(self.items_of(name), f"{self.place}, {name}")

    def one_of(self, name: str, allowed: Iterable[Any]) -> Any:
        """A value that must be among `allowed`."""
        value, allowed = self[name], list(allowed)
        if value not in allowed:
            raise self.wrong(name, f"one of {', '.join(map(str, allowed[:12])) or 'nothing'}", value)
        return value

    def wrong(self, name: str, expected: str, value: Any) -> ValueError:
        """The error for a field with the wrong content, to be raised."""
        return ValueError(f"{self.place}: expected {expected} in field {name!r}, got {str(value)!r:.80}")


def rows_of(values: Any, place: str) -> list[Row]:
    """Rows of a decoded list of records, counted from 1."""
    if not isinstance(values, list):
        raise ValueError(f"{place}: expected a list of records, got {_kind(values)}")
    rows = []
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(f"{place}, row {number}: expected a record with named fields, got {_kind(value)}")
        rows.append(Row(value, f"{place}, row {number}"))
    return rows


def read_record(path: Path) -> Row:
    """A JSON file that holds one record."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: expected one record with named fields, got {_kind(value)}")
    return Row(value, path.name)


def read_rows(path: Path) -> list[Row]:
    """Records of a JSON list, of JSON lines (whatever the file is called), or of a parquet file."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    content = read_text(path)
    if content.lstrip().startswith("["):
        return rows_of(_decode(content, path.name), path.name)
    return [
        _line_row(line, f"{path.name}, line {number}")
        for number, line in enumerate(content.split("\n"), 1)
        if line.strip()
    ]


def _line_row(line: str, place: str) -> Row:
    value = _decode(line, place)
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a record with named fields, got {_kind(value)}")
    return Row(value, place)


def read_table(
    path: Path,
    *,
    columns: Iterable[str] | None = None,
    delimiter: str = ",",
    quoting: bool = True,
    last_takes_rest: bool = False,
) -> list[Row]:
    """Rows of a delimited file. columns: names where the file has no header (a file may then have fewer rows, never
    other widths). quoting: False where quotes are text. last_takes_rest: the last column may hold the delimiter.
    """
    content = read_text(path)
    names = None if columns is None else list(columns)
    rows = []
    for number, cells in _cells(content, path, delimiter, quoting, last_takes_rest, names):
        if names is None:
            names = cells
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"{path.name}, line {number}: expected {len(names)} columns ({', '.join(names)[:90]}), got {len(cells)}"
            )
        rows.append(Row(dict(zip(names, cells)), f"{path.name}, line {number}"))
    if names is None:
        raise ValueError(f"{path.name}: expected a header line, got an empty file")
    return rows


def _cells(
    content: str, path: Path, delimiter: str, quoting: bool, last_takes_rest: bool, names: list[str] | None
) -> Iterator[tuple[int, list[str]]]:
    if not quoting:
        width = None if names is None else len(names)
        for number, line in enumerate(content.split("\n"), 1):
            line = line.removesuffix("\r")
            if line:
                cells = line.split(delimiter, width - 1) if last_takes_rest and width else line.split(delimiter)
                width = width or len(cells)
                yield number, cells
        return
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(content), delimiter=delimiter, strict=True)
        yield from ((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise ValueError(f"{path.name}: expected a table separated by {delimiter!r}, got {error}") from error
    finally:
        csv.field_size_limit(before)


def read_lines(path: Path) -> list[str]:
    """The lines of a list file, without empty ones."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte-order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: expected UTF-8 text, got byte {error.object[error.start]:#x}") from error


def read_json(path: Path) -> Any:
    """A decoded JSON file."""
    return _decode(read_text(path), path.name)


def _decode(content: str, place: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        where = f" at line {error.lineno}" if "line" not in place else ""
        raise ValueError(f"{place}: expected JSON, got {error.msg}{where}, column {error.colno}") from error


def _read_parquet(path: Path) -> list[Row]:
    from plait.errors import import_extra

    table = import_extra("pyarrow.parquet").read_table(path)
    return rows_of(table.to_pylist(), path.name)


def _kind(value: Any) -> str:
    names = {dict: "a record", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def unique(place: str, ids: Iterable[str]) -> None:
    """Raise ValueError for the first id that comes twice."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise ValueError(f"{place}: expected every id once, got {one!r} twice")
        seen.add(one)
