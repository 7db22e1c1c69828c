"""Plait: modular multimodal foundation models. Importing this package loads no torch; names resolve on first use."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from plait.lazy import lazily

if TYPE_CHECKING:
    from plait.assistant import Assistant
    from plait.chat import Chat
    from plait.embedder import Embedder
    from plait.modalities import modality
    from plait.models.auto import load
    from plait.models.plugins import add_modality, use
    from plait.search import Index
    from plait.types import Sample

__version__ = "0.1.0"

_HOMES = {
    "assistant": ("Assistant",),
    "chat": ("Chat",),
    "embedder": ("Embedder",),
    "models.auto": ("load",),
    "modalities": ("modality",),
    "models.plugins": ("add_modality", "use"),
    "search": ("Index",),
    "types": ("Sample",),
}

__all__ = [
    "Assistant",
    "Chat",
    "Embedder",
    "Index",
    "Sample",
    "__version__",
    "add_modality",
    "load",
    "modality",
    "use",
]

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)

_AUTO = "transformers.models.auto."
_MTEB = "mteb.models.get_model_meta"


class _Families(MetaPathFinder):
    """Finds nothing itself; when a table of Auto classes, or of mteb's models, is loaded, ours are put behind it."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        is_known = fullname.startswith(_AUTO) or fullname == _MTEB
        spec = PathFinder.find_spec(fullname, path) if is_known else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_attach(module: Any) -> None:
            run(module)
            import_module("plait.evaluation.mteb" if fullname == _MTEB else "plait.models.registry").attach()

        spec.loader.exec_module = run_and_attach
        return spec


# so that `from_pretrained` knows our directories after `import plait`, whichever of the two is imported first
sys.meta_path.insert(0, _Families())
if any(name.startswith(_AUTO) for name in sys.modules):
    import_module("plait.models.registry").attach()
if _MTEB in sys.modules:
    import_module("plait.evaluation.mteb").attach()
