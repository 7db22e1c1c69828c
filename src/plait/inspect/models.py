"""The verb `models`: checkpoints that the authors published, and model directories on this machine.

official.json + folders + the hub's cache -> rows of (family, name, size, memory, licence, what it does)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.errors import UsageError
from plait.inspect.info import model_info
from plait.inspect.table import format_bytes, format_count, format_table
from plait.models import SHIPPED, shipped

DEPTH = 5
"""Folders below a given one that are searched for model directories: runs/NAME/seed-0/stage2/model."""
BYTES = {"bfloat16": 2, "float32": 4}
UNKNOWN = "not stated: ask its authors"


@dataclass(frozen=True)
class Listed:
    """A checkpoint. `memory`: bytes of its weights by dtype, activations come on top; `where` to get or find it."""

    family: str
    name: str
    parameters: int
    memory: dict[str, int]
    license: str
    does: str
    where: str


def official() -> list[Listed]:
    """What the authors published. Parameters come from key lists and configurations, without momentum copies; licences
    from the authors' repositories (read 2026-11-30), those of base models from memory.
    """
    rows: list[dict[str, Any]] = json.loads(Path(__file__).with_name("official.json").read_text(encoding="utf-8"))
    return [_listed(**row) for row in rows]


def local(folders: Sequence[Path] = ()) -> list[Listed]:
    """Model directories: the shipped ones, those in the hub's cache, and those in `folders` (five levels deep).

    Directories of other libraries (CLIP, sentence-transformers, ...) are listed too; what cannot be read is left out.
    """
    found = [(name, place) for name in SHIPPED if (place := shipped(name))]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"expected a folder to look for models in, got {folder}; pass one that exists")
        found += [(str(place), place) for place in _directories(folder)]
    found += [(_hub_name(place), place) for place in _in_hub_cache()]
    return [row for name, place in found if (row := _local(name, place))]


def _listed(family: str, name: str, parameters: int, license: str | None, does: str, where: str) -> Listed:
    memory = {dtype: parameters * size for dtype, size in BYTES.items()}
    return Listed(family, name, parameters, memory, license or UNKNOWN, does, where)


def _local(name: str, place: Path) -> Listed | None:
    try:
        facts = model_info(place)
    except (ValueError, OSError):
        return None
    takes = ", ".join(facts.modalities)
    return _listed(facts.family, name, facts.parameters, facts.license, f"takes {takes}" if takes else "-", str(place))


def _directories(folder: Path) -> Iterator[Path]:
    """Directories with config.json and weights, in order of their names; nothing below one of them is looked at."""
    for place, names, files in os.walk(folder):
        here = Path(place)
        if "config.json" in files and any(name.endswith(".safetensors") for name in files):
            names.clear()
            yield here
        elif len(here.relative_to(folder).parts) >= DEPTH:
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))


def _in_hub_cache() -> Iterator[Path]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        yield from sorted(path.parent for path in repository.glob("snapshots/*/config.json"))[-1:]


def _hub_name(snapshot: Path) -> str:
    return snapshot.parents[1].name.removeprefix("models--").replace("--", "/")


def models(
    folders: Annotated[list[Path] | None, typer.Argument(help="folders to look for model directories in")] = None,
    *,
    family: Annotated[str | None, typer.Option(help="only this family")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List official checkpoints and local model directories: family, size, memory, licence, what they do.

    Without FOLDERS the folder runs/ is looked at when it is there. Nothing is fetched.
    """
    runs = [Path("runs")] if Path("runs").is_dir() else []
    groups = {"official": official(), "local": local(runs if folders is None else folders)}
    known = sorted({row.family for rows in groups.values() for row in rows})
    if family is not None and family not in known:
        raise UsageError(f"expected one of the families {', '.join(known)}, got {family!r}")
    groups = {name: [row for row in rows if family in (None, row.family)] for name, rows in groups.items()}
    if as_json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in groups.items()}, indent=2))
        return
    for name, rows in groups.items():
        print(f"{name}\n{_table(rows) if rows else '(none)'}\n")
    print("Memory is that of the weights in bfloat16 (float32: twice that); activations come on top: plait plan.")
    print("Licences of official files are those of the authors' repositories; those of base models were not checked.")


def _table(rows: Sequence[Listed]) -> str:
    head = ("family", "parameters", "memory", "name")
    cells = [(row.family, format_count(row.parameters), format_bytes(row.memory["bfloat16"]), "") for row in rows]
    lines = format_table(head[:3], [cell[:3] for cell in cells]).splitlines()
    width = max(len(row.name) for row in rows)
    body = [
        f"{line.ljust(len(lines[0]))}  {row.name:<{width}}  {row.does}; licence {row.license}"
        for line, row in zip(lines[1:], rows)
    ]
    return "\n".join([f"{lines[0]}  name", *body, *_places(rows)])


def _places(rows: Sequence[Listed]) -> list[str]:
    """Where to get them, once per place, when they are not on this machine."""
    return [f"  {place}" for place in dict.fromkeys(row.where for row in rows) if not Path(place).exists()]
