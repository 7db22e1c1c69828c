"""`plait.use("my_file.py")`: code of the user's own, brought in by their own hand and never by a model's files.

file -> module -> what it registers (modalities) and what it holds: `CONFIG`, a family (`models.registry.add_family`);
`RECIPES`, name -> function, which `plait train` runs
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from plait.errors import UsageError


def use(path: str | Path) -> ModuleType:
    """Run a Python file once, and take in the modalities, the family and the recipes that it adds.

    Args:
        path: of the user's own file. The same file again is the same module.

    Returns:
        The module it became.

    Raises:
        UsageError: for what is no Python file, and for a name that is taken; what goes wrong inside the file is the
            file's own error.
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
    sys.modules[name] = module  # classes defined in it are found by pickle and dataclasses while it runs
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


def used() -> list[ModuleType]:
    """The modules of all files that were used, in their order."""
    return [one for name, one in list(sys.modules.items()) if name.startswith("plait_plugin_")]
