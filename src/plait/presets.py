"""What the configurations of all families share: sizes by name, fields that exist, and parts that JSON gives back.

preset name + changes -> fields, checked -> configuration      configuration + changes -> another one of the same family
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self, TypeVar

from plait.errors import UsageError

Sizes = TypeVar("Sizes")


class Presets:
    """Mixed into a family's configuration, in front of `PreTrainedConfig`.

    `presets`: name -> fields of a published or small size.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A published or small size by name.

        Args:
            name: a key of `presets`; `nano` is a small one for tests and trials.
            changes: fields to set otherwise.

        Raises:
            UsageError: for a name that does not exist.
            ValueError: for a field that does not exist.
        """
        if name not in cls.presets:
            raise UsageError(f"expected a preset among {', '.join(cls.presets)}, got {name!r}; choose one of them")
        return cls(**{**cls.presets[name], **cls.known(changes)})

    @classmethod
    def known(cls, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """`changes`, checked; see `known`."""
        return known(cls, changes)

    def changed(self, changes: Mapping[str, Any]) -> Any:
        """Another configuration; see `changed`."""
        return changed(self, changes)

    def keep_plain(self, **kinds: Any) -> None:
        """Turn parts that came as dataclasses, mappings or not at all into what JSON gives back.

        Raises:
            ValueError: for a field that a part does not have.
        """
        for name, kind in kinds.items():
            given = getattr(self, name) or {}
            if not isinstance(given, kind) and (unknown := sorted(set(given) - {one.name for one in fields(kind)})):
                raise ValueError(f"expected fields of {kind.__name__}, got {', '.join(unknown)}; leave them out")
            typed: Any = self.sizes(name, kind)
            # lists, also inside of lists, are what JSON knows of tuples
            setattr(self, name, json.loads(json.dumps(asdict(typed))))

    def sizes(self, name: str, kind: type[Sizes]) -> Sizes:
        """A part, typed; a new object at every access, so changes to it are lost."""
        given = getattr(self, name)
        return given if isinstance(given, kind) else kind(**(given or {}))


def known(kind: Any, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """`changes`, checked: transformers would keep an unknown field of a configuration and ignore it.

    Raises:
        ValueError: naming what is no field.
    """
    plain = kind()
    # what is worked out of other fields has a name and nothing to set
    fixed = {name for name in changes if getattr(getattr(kind, name, None), "fset", ...) is None}
    if unknown := [name for name in changes if name in fixed or not hasattr(plain, name)]:
        raise ValueError(f"expected fields of {kind.__name__}, got {', '.join(unknown)}; leave them out")
    return changes


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A new configuration with other fields, checked as a new one is.

    Raises:
        ValueError: for a field that does not exist.
    """
    kept = config.to_dict()
    if {"num_labels", "id2label"} & set(changes):
        # stored names would contradict a new number: all are told anew
        kept = {name: value for name, value in kept.items() if name not in ("id2label", "label2id")}
    return type(config).from_dict({**kept, **known(type(config), changes)})


def choose(modalities: Iterable[str], branch: Iterable[str] | None) -> list[str]:
    """The modalities that a caller keeps, in the order of the model.

    Raises:
        ValueError: for a branch that the model does not have, and for none at all.
    """
    held = list(modalities)
    wanted = held if branch is None else list(branch)
    missing = [m for m in wanted if m not in held]
    if missing or not wanted:
        raise ValueError(f"expected branches among {', '.join(held)}, got {', '.join(missing) or 'none'}")
    return [m for m in held if m in wanted]
