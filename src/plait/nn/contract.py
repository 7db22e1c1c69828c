"""What other libraries ask of a model: arguments of every `forward`, and names of layers.

Trainer, PEFT, pipelines -> forward(its own arguments, return_dict, output_attentions ...) -> a ModelOutput or a tuple

A `forward` of ours names its arguments and swallows nothing: an argument that was taken and not used looks like one
that worked. What callers pass to all models alike, mostly as None, is dealt with here once for all of them.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from plait.errors import one_kind
from plait.routing import PerModality

Model = TypeVar("Model", bound="type[Any]")
Forward = TypeVar("Forward", bound="Callable[..., Any]")

_PASSED_TO_ALL = ("inputs_embeds", "output_attentions", "output_hidden_states", "return_loss")
"""PEFT's wrappers and pipelines write these out for models that have no use for them."""


def outputs_for_transformers(forward: Forward) -> Forward:
    """A `forward` that takes what transformers passes to every model.

    `return_dict=False` gives a tuple; others that this model does not have may be None or False, and any other value is
    an error, as is a name that nobody knows.
    """
    own = inspect.signature(forward).parameters

    @functools.wraps(forward)
    def whole(self: Any, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        for name in _PASSED_TO_ALL:
            if name not in own and name in kwargs:
                value = kwargs.pop(name)
                if value is not None and value is not False:
                    model = type(self).__name__
                    raise ValueError(f"expected no {name} for {model}, got one; it takes {', '.join(list(own)[1:])}")
        output = forward(self, *args, **kwargs)
        wants = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if wants else output.to_tuple()

    return whole  # ty: ignore[invalid-explicit-return]


MAX_LABELS = 1 << 20
"""Classes of a head."""
MAX_NUMBER = 1 << 48
"""Above every size, id and count of a model; larger ones are digits of a stranger that only cost time."""


def checked(cls: Model) -> Model:
    """A configuration or processor whose odd values are one line: fields by their annotations, all else as it comes.

    A class of fields is built first, which gives them their final form; then every field that the class declares has to
    be of its type. A processor answers whatever its `__call__` trips over with a ValueError.
    """
    build, name = cls.__init__, cls.__name__
    if hasattr(cls, "__dataclass_fields__"):  # transformers reads the code of a processor's own `__init__`
        # those that it inherits too, but for transformers' own
        homes = [one for one in reversed(cls.__mro__) if "__dataclass_fields__" in vars(one)]
        homes = [one for one in homes if not one.__module__.startswith("transformers.")]

        @functools.wraps(build)
        def built(self: Any, *args: Any, **kwargs: Any) -> None:
            for field in ("num_labels", "num_classes"):
                # transformers writes a name for every one of them
                count = kwargs.get(field)
                if isinstance(count, int | float) and not count <= MAX_LABELS:
                    raise ValueError(f"expected at most {MAX_LABELS} as {field} of {name}, got {count!s:.40}")
            with one_kind(f"fields that {name} has, each of its type"):
                build(self, *args, **kwargs)
            for field, adapter in (pair for home in homes for pair in _adapters(home).items()):
                _check_field(name, field, getattr(self, field, None), adapter)

        cls.__init__ = built
    else:
        call = cls.__call__

        @functools.wraps(call)
        def called(self: Any, *args: Any, **kwargs: Any) -> Any:
            with one_kind(f"what {name} reads", "see its docstring for what it takes"):
                return call(self, *args, **_flat(kwargs))

        cls.__call__ = called
    return cls


NESTED = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")
"""How transformers lets callers say which part of a processor an option is for."""


def _flat(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Options of a processor without the mappings of `NESTED`, whose contents each processor checks as its own.

    Raises ValueError where two of them differ: no option of ours has one value for texts and another for media.
    """
    found = {name: value for name, value in kwargs.items() if name not in NESTED}
    if "audios" in found:  # as older releases of transformers call it
        found.setdefault("audio", found.pop("audios"))
    for nested in NESTED:
        for name, value in (kwargs.get(nested) or {}).items():
            if name in found and found[name] != value:
                raise ValueError(f"expected one {name} for all inputs, got {found[name]!r} and {value!r}; pass it once")
            found[name] = value
    return found


@functools.cache
def _adapters(cls: type) -> dict[str, Any]:
    """Field that a class declares itself -> pydantic's check of its annotation."""
    from pydantic import ConfigDict, TypeAdapter

    # of its own: those of transformers do not resolve from here
    hints = inspect.get_annotations(cls, eval_str=True)
    free = ConfigDict(arbitrary_types_allowed=True)
    found = {}
    for name, hint in hints.items():
        is_class = isinstance(hint, type) and hasattr(hint, "__dataclass_fields__")
        adapter = TypeAdapter(hint, config=None if is_class else free)
        if adapter.pydantic_complete:  # a configuration of transformers is not: it checks itself
            found[name] = adapter
    return found


def _check_field(owner: str, field: str, value: Any, adapter: Any) -> None:
    """Raise ValueError where a value is not of the annotated type, or a number that no model has."""
    from pydantic import ValidationError

    try:
        read = adapter.validate_python(value)
        # a text of digits is no number here
        is_right = isinstance(read, str) or not isinstance(value, str)
    except ValidationError:
        is_right = False
    if not is_right:
        raise ValueError(f"expected {field} of {owner} of another type, got {value!r:.60}; check the configuration")
    values = [value]
    while values:
        one = values.pop()
        if isinstance(one, dict):
            values += one.values()
        elif isinstance(one, list | tuple):
            values += one
        elif type(one) in (int, float) and not (math.isfinite(one) and abs(one) < MAX_NUMBER):
            raise ValueError(f"expected a number of a usual size as {field} of {owner}, got {one!s:.40}")


def labels_shifted(cls: Model) -> Model:
    """A class whose labels are shifted by one against its logits, made known to Trainer's label smoothing.

    Trainer smooths by logits and labels alone, and shifts them for the classes of one table; of all others it would
    teach every position its own token.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(cls.config_class.model_type, cls.__name__)
    return cls


LOADER = "plait_model"
"""Stem of the one file of code in a directory that we save."""

_LOADER_TEXT = '''"""How transformers opens this directory: its classes come with Plait (pip install plait)."""

import plait.models.registry


def __getattr__(name):
    return getattr(plait.models.registry.family_named("{model_type}"), name)
'''


class _LoaderNames:
    """`auto_map` of a configuration that came from a directory with our loader, which TRL asks for; it stores none."""

    def __get__(self, one: Any, owner: type) -> Any:
        place = getattr(one, "_name_or_path", "")
        if not place or not Path(place, f"{LOADER}.py").is_file():
            raise AttributeError(f"{owner.__name__} has no auto_map: it came from no directory that names a loader")
        return one._roles()


class OpensAlone:
    """A configuration or processor whose directory transformers opens where nobody imported Plait.

    What is saved names `plait_model.py`, which is written beside it and imports Plait: as `auto_map` means it, with
    `trust_remote_code=True`, and transformers says `pip install plait` where that is missing. Mixed in first.
    """

    auto_map: Any = _LoaderNames()  # not a data descriptor: saving puts a value in front of it for a while

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with that file and its names beside it.

        Args:
            save_directory: of the model.
            args, kwargs: of transformers.
        """
        family = self._family()
        place = Path(save_directory)
        if not place.is_file():  # which transformers refuses in its own words
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{LOADER}.py").write_text(_LOADER_TEXT.format(model_type=family.CONFIG.model_type))
        self.auto_map = self._roles()
        try:
            return cast("Any", super()).save_pretrained(save_directory, *args, **kwargs)
        finally:
            del self.auto_map  # no field of ours: two equal models have equal configurations, saved or not

    def _family(self) -> Any:
        """The package that the class belongs to."""
        return sys.modules[type(self).__module__.rpartition(".")[0]]

    def _roles(self) -> dict[str, str]:
        """Auto class of transformers -> the name that the loader gives what it opens."""
        family = self._family()
        roles = {
            "AutoConfig": family.CONFIG, "AutoProcessor": family.PROCESSOR, **self._chosen(family),
            "AutoImageProcessor": getattr(family, "IMAGE_PROCESSOR", None),
            "AutoFeatureExtractor": getattr(family, "FEATURE_EXTRACTOR", None),
        }  # fmt: skip
        return {auto: f"{LOADER}.{one.__name__}" for auto, one in roles.items() if one is not None}

    def _chosen(self, family: Any) -> dict[str, type]:
        """The class behind each Auto class for this configuration."""
        named = getattr(self, "architectures", None) or ()
        chosen = models_of(family)
        for auto, several in choices_of(family).items():
            if isinstance(several, tuple):
                chosen[auto] = next((one for one in several if one.__name__ in named), several[0])
        return chosen

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, without the names of the loader."""
        fields = {name: value for name, value in config_dict.items() if name != "auto_map"}
        return cast("Any", super()).from_dict(fields, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing: transformers would copy the file of the class into every directory that is saved after this."""


def models_of(family: Any) -> dict[str, type]:
    """Auto class of transformers -> the class of a family's package that it loads."""
    found = {"AutoModel": family.BASE_MODEL, **getattr(family, "HEADS", {})}
    if hasattr(family, "GENERATIVE_MODEL"):
        found["AutoModelForImageTextToText"] = family.GENERATIVE_MODEL
    return found


def choices_of(family: Any) -> dict[str, Any]:
    """`models_of`, with a tuple where an Auto class chooses by `architectures`: the first where none is named."""
    also = getattr(family, "ALSO", {})
    return {
        auto: (one, *(getattr(family, name) for name in also[auto])) if auto in also else one
        for auto, one in models_of(family).items()
    }


class NamedForPeft(nn.Module):
    """A model whose projections PEFT finds by their usual names, though some exist once per way."""

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch. It is what PEFT asks first of a model, and so where PEFT learns what ways are."""
        if "peft.tuners.lora.model" in sys.modules:
            _teach_peft()
        return super().named_modules(*args, **kwargs)


@functools.cache
def _teach_peft() -> None:
    """Let a LoRA on `q_proj` go to the linear layers inside it, `q_proj.text` and `q_proj.image`.

    PEFT knows targets by the end of their name and has no hook for a container of them, so the one method that puts an
    adapter on a target is wrapped; and the table of tokens is an embedding to PEFT by its name alone.
    """
    from peft.tuners.lora.model import LoraModel
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    EMBEDDING_LAYER_NAMES.append("token_embedding")
    create: Callable[..., None] = LoraModel._create_and_replace

    @functools.wraps(create)
    def inside_ways(
        self: Any, config: Any, adapter: str, target: Any, name: str, parent: Any, current_key: str, **rest: Any
    ) -> None:
        if not isinstance(target, PerModality):
            create(self, config, adapter, target, name, parent, current_key=current_key, **rest)
            return
        for way in list(target):
            create(self, config, adapter, target[way], way, target, current_key=f"{current_key}.{way}", **rest)

    LoraModel._create_and_replace = inside_ways  # ty: ignore[invalid-assignment]


def tied_names(model: nn.Module) -> list[set[str]]:
    """Groups of names that are one parameter."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return [names for names in groups.values() if len(names) > 1]
