"""How the reference reads our docstrings: `a, b: of both. c: of it.` under Args becomes an entry each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Extension

SECTION = re.compile(r"^(Args|Attributes):$")
ENTRY = re.compile(r"(?:^|(?<=[.;] ))((?:\w+, )*\w+): ")


class Entries(Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Every function, class and module that is read."""
        if obj.docstring is None or obj.is_alias:
            return
        names = {one.name.lstrip("*") for one in getattr(obj, "parameters", ())} | set(obj.members)
        lines = ["Examples:" if line == "Example:" else line for line in obj.docstring.value.split("\n")]
        obj.docstring.value = "\n".join(_rewritten(lines, names))


def _rewritten(lines: list[str], names: set[str]) -> Iterator[str]:
    """The lines with one entry per name in the sections of names."""
    place = 0
    while place < len(lines):
        yield lines[place]
        is_section = SECTION.match(lines[place]) is not None
        place += 1
        if not is_section:
            continue
        end = place
        while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
            end += 1
        text = " ".join(" ".join(lines[place:end]).split())
        starts = [one for one in ENTRY.finditer(text) if one.start() == 0 or set(one[1].split(", ")) & names]
        for one, after in zip(starts, [*starts[1:], None], strict=True):
            meaning = text[one.end() : after.start() if after else None].strip().rstrip(";")
            yield from (f"    {name}: {meaning}" for name in one[1].split(", "))
        yield ""
        place = end
