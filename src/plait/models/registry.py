"""Which families there are, and how transformers learns of them.

    transformers is imported -> its tables of classes (`attach`) -> a model_type is asked for -> that family is imported

Families are found, not listed: a folder beside this file is one, by the name of its `model_type`, and so are what an
installed package names among the entry points `plait.families` (model_type = module) and a file with `CONFIG` that was
brought in by `plait.use`. This module loads neither torch nor transformers, so that `import plait` can call it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from plait.errors import UsageError, installed
from plait.reading import read_json

FAMILIES: dict[str, str] = {entry.name: entry.value for entry in entry_points(group="plait.families")} | {
    place.parent.name: f"plait.models.{place.parent.name}"
    for place in sorted(Path(__file__).parent.glob("*/__init__.py"))
}
"""model_type -> the module of the family, which has `CONFIG`, `PROCESSOR` and `BASE_MODEL`; of the rest what it can do:
`HEADS`, `ALSO`, `SKILLS`, `PLANNER`, `JOBS`, `is_official` and `from_official`, `from_directory`."""

TABLES = {
    "transformers.models.auto.configuration_auto": "CONFIG_MAPPING",
    "transformers.models.auto.processing_auto": "PROCESSOR_MAPPING",
    "transformers.models.auto.feature_extraction_auto": "FEATURE_EXTRACTOR_MAPPING",
    "transformers.models.auto.image_processing_auto": "IMAGE_PROCESSOR_MAPPING",
}
"""Module of transformers -> its table of classes by `model_type` or configuration."""


def attach() -> None:
    """Let those tables of transformers that are loaded find our families. Doing it again changes nothing."""
    for module, name in TABLES.items():
        table = getattr(sys.modules.get(module), name, None)
        # no public door leads here: `register` takes classes, which would have to be imported for it
        if table is not None and not isinstance(table._extra_content, _Found):
            table._extra_content = _Found(table._extra_content)
    backbones = getattr(sys.modules.get("transformers.models.auto.auto_factory"), "_BaseAutoBackboneClass", None)
    if backbones is not None and "opens_directories" not in vars(backbones):
        backbones.from_pretrained = classmethod(_backbone_opened(backbones))
        backbones.opens_directories = True


def _backbone_opened(backbones: Any) -> Any:
    """`AutoBackbone.from_pretrained` for directories of ours too.

    transformers asks the hub whether its argument is a repository before it looks at the disk or at any table of
    classes, and a path is no name of one: every local directory is refused, its own models' as well (5.24). Ours go the
    way of all other Auto classes; whatever else is opened goes the way it went.
    """
    theirs, opened = backbones.from_pretrained.__func__, super(backbones, backbones).from_pretrained.__func__

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        place = Path(pretrained_model_name_or_path) / "config.json"
        is_ours = place.is_file() and read_json(place).get("model_type") in FAMILIES
        return (opened if is_ours else theirs)(cls, pretrained_model_name_or_path, *args, **kwargs)

    return from_pretrained


def add_family(family: ModuleType) -> None:
    """Make a module of the user's own known as a family, by the `model_type` of its `CONFIG`.

    Raises:
        UsageError: where a part that every family has is missing, or another family has its name.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    missing = [name for name in ("CONFIG", "PROCESSOR", "BASE_MODEL") if not hasattr(family, name)]
    if missing:
        raise UsageError(f"expected a family with CONFIG, PROCESSOR and BASE_MODEL, got none of {', '.join(missing)}")
    name = family.CONFIG.model_type
    if not name or FAMILIES.get(name, family.__name__) != family.__name__ or name in CONFIG_MAPPING_NAMES:
        raise UsageError(f"expected a model_type that no other family has, got {name!r}; choose another name")
    FAMILIES[name] = family.__name__


_registered: set[str] = set()


def family_named(model_type: str, place: Path | None = None) -> ModuleType:
    """The package of a family, known to transformers. place: the directory that names it, for the error."""
    import transformers

    from plait.nn.contract import choices_of

    if model_type not in FAMILIES:
        raise ValueError(f"expected a model of {', '.join(FAMILIES)} in {place}, got {model_type!r}")
    family = import_module(FAMILIES[model_type])
    if model_type not in _registered:
        installed("plait.families", model_type)  # two packages may claim it
        # first: registering asks the mappings below, which would come back here
        _registered.add(model_type)
        config = family.CONFIG
        transformers.AutoConfig.register(model_type, config, exist_ok=True)
        transformers.AutoProcessor.register(config, family.PROCESSOR, exist_ok=True)
        if hasattr(family, "FEATURE_EXTRACTOR"):
            transformers.AutoFeatureExtractor.register(config, family.FEATURE_EXTRACTOR, exist_ok=True)
        if hasattr(family, "IMAGE_PROCESSOR"):
            # "pil": without torchvision there is no other backend
            transformers.AutoImageProcessor.register(
                config, image_processor_classes={"pil": family.IMAGE_PROCESSOR}, exist_ok=True
            )
        for auto, model in choices_of(family).items():
            getattr(transformers, auto).register(config, model, exist_ok=True)
    return family


def auto_class_of(model_class: Any, medium: str = "") -> str | None:
    """The Auto class of transformers that loads a directory of this class of a family.

    Args:
        model_class: any class.
        medium: what the model looks at, where one class stands under several names (images, audio, texts).

    Returns:
        Its name, or None where none does.
    """
    from plait.nn.contract import choices_of

    model_type = getattr(getattr(model_class, "config_class", None), "model_type", None)
    found = choices_of(family_named(model_type)) if model_type in FAMILIES else {}
    autos = [a for a, one in found.items() if model_class in (one if isinstance(one, tuple) else (one,))]
    word = {"text": "Sequence"}.get(medium, medium.capitalize())
    return next((auto for auto in autos if word in auto), next(iter(autos), None))


class _Found(dict[Any, Any]):
    """What a mapping of transformers holds besides its own classes, with our families found when they are asked for.

    By `model_type` one family is imported. Where transformers looks through all classes for a name, such as that of a
    processor, those that are known come first, and the other families only if none of these was the one.
    """

    def __contains__(self, key: object) -> bool:
        """Whether a class, or the `model_type` of one of our families, is known."""
        return super().__contains__(key) or (isinstance(key, str) and key in FAMILIES)

    def __missing__(self, key: Any) -> Any:
        """Bring in the family of a `model_type`. Raises KeyError for anything else."""
        if not isinstance(key, str) or key not in FAMILIES or key in _registered:
            raise KeyError(key)
        family_named(key)
        return self[key]

    def values(self) -> Any:
        """Classes that are known, then those of all other families."""
        return self._all()

    def _all(self) -> Iterator[Any]:
        # a copy: importing a family below adds to this very mapping
        """A generator, so that a search which ends early imports no further family."""
        known = list(super().values())
        yield from known
        for name in FAMILIES:
            family_named(name)
        yield from list(super().values())[len(known) :]
