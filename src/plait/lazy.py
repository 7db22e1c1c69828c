"""Packages whose names import their modules on first use, so that importing a package loads no torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def importing() -> Generator[None]:
    """While this lasts, cyclic garbage waits: imports make little, and looking for it is a tenth of their time."""
    if not gc.isenabled():  # inside another, or switched off by the user
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def lazily(
    package: str,
    shown: Sequence[str],
    homes: Mapping[str, Sequence[str]],
    roles: Mapping[str, str] | None = None,
    heads: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        shown: its `__all__`; roles are for `plait.models.auto`, not for completion.
        homes: module of the package -> the names of it that users import from the package.
        roles: what `plait.models.auto` asks every family for, such as `CONFIG` -> the name, or the module, that it
            is here.
        heads: what the family's `HEADS` hold: Auto class of transformers -> the class that it loads.

    Example:
        >>> find, names = lazily("plait.search", ["Index"], {"index": ("Index",)})
        >>> find("Index").__module__
        'plait.search.index'
    """
    where = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name == "HEADS" and heads is not None:
            return {auto: find(head) for auto, head in heads.items()}
        wanted = name if roles is None else roles.get(name, name)
        if wanted in where:
            with importing():
                return getattr(import_module(f"{package}.{where[wanted]}"), wanted)
        if wanted != name:
            with importing():
                return import_module(f"{package}.{wanted}")
        # modules of the package come here too, before they are imported
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted(shown)
