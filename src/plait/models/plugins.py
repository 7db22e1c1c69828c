"""`plait.use("my_file.py")`: code of the user's own, brought in by their own hand and never by a model's files.

file -> module -> what it registers (modalities) and what it holds: `CONFIG`, a family (`models.registry.add_family`);
`RECIPES`, name -> function, which `plait train` runs
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from plait.errors import UsageError
from plait.modalities import is_registered, modality, registered


def use(path: str | Path) -> ModuleType:
    """Run a Python file once, and take in the modalities, the family and the recipes that it adds.

    Args:
        path: of the user's own file. The same file again is the same module.

    Returns:
        The module it became.

    Raises:
        UsageError: for what is no Python file, and for a name that is taken; what goes wrong inside the file is the
            file's own error.

    Example:
        >>> plait.use("examples/midi_modality.py").Midi.__name__
        'Midi'
    """
    place = Path(path).resolve()
    if place.suffix != ".py" or not place.is_file():
        raise UsageError(f"expected a Python file, got {path}; pass a file that adds a modality, family or recipe")
    if (known := next((one for one in used() if one.__dict__["__plait_plugin__"] == place), None)) is not None:
        return known
    # Two files of one name from different folders are two modules, and neither hides a module that is installed.
    name = f"plait_plugin_{sum(key.startswith('plait_plugin_') for key in sys.modules)}_{place.stem}"
    spec = spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    module.__dict__["__plait_plugin__"] = place
    # classes defined in it are found by pickle and dataclasses while it runs
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        if hasattr(module, "CONFIG"):
            from plait.models.registry import add_family

            add_family(module)
    # half a module must not pass for the whole one when the file is used again
    except BaseException:
        del sys.modules[name]
        raise
    return module


def add_modality(model: Any, name: str, adapter: Any = None, *, like: str | None = None) -> Any:
    """Give a trained model a modality of the user's own, in place; what it had stays bit for bit.

    The new adapter, feed-forward networks, norm and projection are all that is new. Saved, they lie in the model's
    directory with the name; the file that has the adapter class is used again (`plait.use`) before it is loaded.

    Args:
        model: whose modalities are open, such as ONE-PEACE's.
        name: of the modality, a new word.
        adapter: a class as `plait.modality` describes it, registered here where its file did not; one that is built,
            which keeps its weights; None where the class was registered under this name.
        like: a modality of the model whose networks, norm and projection the new one begins as a copy of; fresh ones
            without.

    Returns:
        The model.

    Raises:
        UsageError: for a model that takes none, a name that is taken or that nobody registered, and an adapter of
            another width.

    Example:
        >>> model, processor = plait.load("nano")
        >>> plait.use("examples/midi_modality.py")
        >>> plait.add_modality(model, "midi", like="audio")
    """
    if not hasattr(model, "add_modality"):
        remedy = "pass the first of the two" if isinstance(model, tuple) else "load one that embeds, such as nano"
        raise UsageError(f"expected a model whose modalities are open, got {type(model).__name__}; {remedy}")
    kind = adapter if isinstance(adapter, type) or adapter is None else type(adapter)
    if kind is not None and not (is_registered(name) and registered(name).adapter is kind):
        modality(name)(kind)
    if adapter is None or adapter is kind:
        adapter = registered(name).adapter(model.config)
    model.add_modality(name, adapter, like=like)
    return model


def used() -> list[ModuleType]:
    """The modules of all files that were used, in their order."""
    return [one for name, one in list(sys.modules.items()) if name.startswith("plait_plugin_")]
