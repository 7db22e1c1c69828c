"""A layout: which files a data set consists of, and the function that reads them.

DIR -> Layout.find -> Source (role -> file) -> Layout.read -> [Item]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plait.evaluation.readers.files import unique
from plait.evaluation.readers.item import Item


@dataclass(frozen=True)
class Source:
    """The files of a layout by role, the directory they were found in, and the split asked for."""

    root: Path
    files: Mapping[str, Path]
    split: str

    def __getitem__(self, role: str) -> Path:
        if role not in self.files:
            raise ValueError(f"expected a file for {role!r} in {self.root}, got {', '.join(self.files) or 'none'}")
        return self.files[role]

    def get(self, role: str) -> Path | None:
        """The file of an optional role."""
        return self.files.get(role)


ReadFunction = Callable[[Source], list[Item]]


@dataclass(frozen=True)
class Layout:
    """A named layout. roles: role -> patterns of file names, the first that matches counts; `{split}` is filled in, in
    capitals as `{SPLIT}`.

    Roles in `optional` may be absent; roles in `many` take every match (role = the file's stem, or its path where two
    have one stem). aliases: a split's
    name -> how this data set's files call it.
    """

    name: str
    function: ReadFunction
    roles: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()
    many: tuple[str, ...] = ()
    aliases: Mapping[str, str] | None = None

    def find(self, root: Path, split: str) -> Source | str:
        """The files of this layout under `root`, or what is missing in words."""
        files: dict[str, Path] = {}
        word = (self.aliases or {}).get(split, split)
        for role, patterns in self.roles.items():
            named = [pattern.replace("{split}", word).replace("{SPLIT}", word.upper()) for pattern in patterns]
            found = next((matches for pattern in named if (matches := sorted(_matches(root, pattern)))), [])
            if role in self.many:
                for path in found:
                    files[path.relative_to(root).as_posix() if path.stem in files else path.stem] = path
            elif len(found) > 1:
                names = ", ".join(path.relative_to(root).as_posix() for path in found[:4])
                return f"one file {named[0]}, got {len(found)}: {names}"
            elif found:
                files[role] = found[0]
            if not found and role not in self.optional:
                return f"a file {' or '.join(named)}"
        return Source(root, files, split)

    def read(self, source: Source) -> list[Item]:
        """The items, in the order of the files. ValueError, one line naming file and row, for anything malformed."""
        items = self.function(source)
        unique(f"{self.name}, split {source.split}", (item.id for item in items))
        return items


LAYOUTS: dict[str, Layout] = {}
"""Every layout by name."""


def layout(
    name: str,
    roles: Mapping[str, str | tuple[str, ...]],
    *,
    optional: tuple[str, ...] = (),
    many: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
) -> Callable[[ReadFunction], ReadFunction]:
    """Register the decorated function as the reader of a layout; arguments as the fields of `Layout`."""

    def register(function: ReadFunction) -> ReadFunction:
        patterns = {role: (names,) if isinstance(names, str) else names for role, names in roles.items()}
        LAYOUTS[name] = Layout(name, function, patterns, optional, many, aliases)
        return function

    return register


def read(root: str | Path, names: tuple[str, ...], split: str) -> tuple[list[Item], Source, str]:
    """Items of the first of the layouts `names` whose files lie in `root`, their source and the layout's name.

    Raises ValueError that says which files were looked for.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"expected a data set directory, got {root}; pass the one that holds the annotation files")
    wanted = []
    for name in names:
        source = LAYOUTS[name].find(root, split)
        if isinstance(source, Source):
            return LAYOUTS[name].read(source), source, name
        wanted.append(f"{source} ({name})")
    raise ValueError(f"expected in {root}: {'; or '.join(wanted)}; found none for split {split!r}")


def _matches(root: Path, pattern: str) -> Iterator[Path]:
    """Files at `pattern` in `root`, or else one directory further down."""
    here = [path for path in root.glob(pattern) if path.is_file()]
    yield from here or (path for path in root.glob(f"*/{pattern}") if path.is_file())
