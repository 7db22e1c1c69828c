"""One door to every family: a path or hub id in, a model and its processor out.

    official file | model directory | hub id -> family -> (model, processor)

Families are found, not listed (`registry`), and only the one that is asked for is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar, Unpack

import torch
import transformers
from transformers import PreTrainedConfig

from plait.errors import UsageError, import_extra, no_code_of
from plait.models import directory_of, locate
from plait.models.registry import FAMILIES, attach, family_named
from plait.nn.contract import tied_names
from plait.nn.quantized import to_int8
from plait.presets import changed
from plait.reading import read_json
from plait.weights.dtypes import resolve_dtype
from plait.weights.files import (
    Checkpoint,
    LazyState,
    StateError,
    check_finite_weights,
    load_whole,
    read_checkpoint,
    refuse_branch,
)
from plait.weights.lora import is_adapter, read_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

Config = TypeVar("Config", bound=PreTrainedConfig)

attach()


class Fields(TypedDict, total=False):
    """What people set when they load: fields of configurations, which not every family has, and a file's settings.

    Every other field of a family's configuration works as well; a checker of types asks for `**{"field": value}` then.
    """

    official: bool
    task: str | None
    model_class: type[Any] | None
    modalities: Sequence[str]
    joint: Sequence[Sequence[str]]
    image_size: int
    num_frames: int
    num_classes: int
    num_labels: int
    id2label: Mapping[int, str]
    drop_path_rate: float
    dropout: float
    attention_dropout: float
    use_cache: bool
    official_config: Mapping[str, Any] | None
    lora: str | Path | None
    lora_alpha: float | None


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    branch: Sequence[str] | None = None,
    adapter: str | Path | None = None,
    device_map: str | int | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    **options: Unpack[Fields],
) -> tuple[Any, Any]:
    """Load a model and its processor; also `plait.load`.

    Args:
        path: an official checkpoint file, a model directory, `"nano"` (it ships with Plait), or the id of one
            on the hub.
        dtype: of the parameters, by default the file's, as with `"auto"`.
        device: where they go; `"auto"` is the first GPU where there is one.
        branch: modalities to read and keep, such as `("image",)`.
        adapter: directory of a LoRA trained on this model, which is merged into its weights in memory.
        device_map: instead of `device`: one device, `"auto"` and its kin, which spread layers over the GPUs, or names
            of modules -> devices, as in transformers.
        attn_implementation: `sdpa`, `eager`, `flex_attention` or what else transformers has and the model can.
        options: `official=True` for the official quirks, and other fields of the family's configuration.

    Returns:
        (model, processor).

    Raises:
        ValueError: where there is nothing at `path`, it is of no known family, or its weights do not fit.

    Example:
        >>> model, processor = plait.load("nano")
        >>> model.get_text_features(**processor(text=["a dog"]))  # (1, dim)
    """
    if device_map is not None and str(device) != "cpu":
        raise UsageError(f"expected device or device_map, got both: {device} and {device_map}; leave one out")
    kind, target = resolve_dtype(None if dtype == "auto" else dtype), resolve_device(device)
    model, processor = _read(locate(path), adapter, dtype=kind, device=target, branch=branch, **options)
    return settled(model, attn_implementation, device_map), processor


def _read(place: Path, adapter: str | Path | None, **options: Any) -> tuple[Any, Any]:
    """Model and processor of a file or directory, with a LoRA merged in. options: dtype, device, branch and fields."""
    if is_adapter(place) and not (place / "config.json").is_file():
        raise UsageError(
            f"expected a model, got the adapter {place}; load its base and pass this as adapter=, or plait merge them"
        )
    if not is_model_directory(place):
        options = options if adapter is None else {**options, "adapter": adapter}
        return from_official(read_checkpoint(place), **options)
    config = _config_of(place)
    family = family_named(config.model_type, place)
    read = getattr(family, "from_directory", None)
    if read is None or getattr(config, "quantization_config", None):
        # transformers alone knows packed weights
        read = partial(_from_directory, family)
    with no_code_of(place):  # a tokenizer may bring code too
        model, processor = read(place, **options)
    if adapter is not None:
        apply_adapter(model, adapter, read_checkpoint(place).state)
    return model, processor


SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Words for `device_map` that leave the places to accelerate."""


def settled(model: Any, attn_implementation: str | None, device_map: str | int | Mapping[str, Any] | None) -> Any:
    """A loaded model with the attention, and on the devices, that its caller asked for.

    Args:
        model: of transformers or of ours.
        attn_implementation, device_map: as in `load`; None leaves things as they are.

    Raises:
        UsageError: for attention that the model cannot have, and devices that are not here.
    """
    if attn_implementation is not None:
        try:
            model.set_attn_implementation(attn_implementation)
        except (ValueError, ImportError) as error:
            name, said = type(model).__name__, " ".join(str(error).split())[:300]
            raise UsageError(
                f"expected attention that {name} has, such as sdpa or eager, got {attn_implementation!r}: {said}"
            ) from error
    if device_map is None:
        return model
    if not isinstance(device_map, Mapping) and device_map not in SPREAD:
        return model.to(resolve_device(f"cuda:{device_map}" if isinstance(device_map, int) else device_map))
    if isinstance(device_map, str) and not torch.cuda.is_available():
        return model.to("cpu")
    accelerate = import_extra("accelerate")
    if isinstance(device_map, str):
        whole = getattr(model, "_no_split_modules", None)
        how = {"no_split_module_classes": whole and list(whole), "dtype": model.dtype}
        memory = None  # of `sequential`: each device is filled before the next
        if device_map != "sequential":
            low = device_map == "balanced_low_0"
            memory = import_extra("accelerate.utils").get_balanced_memory(model, low_zero=low, **how)
        device_map = accelerate.infer_auto_device_map(model, max_memory=memory, **how)
    try:
        return accelerate.dispatch_model(model, dict(device_map))
    except ValueError as error:
        said = " ".join(str(error).split())[:300]
        raise UsageError(f"expected a device_map that names every part, got another: {said}") from error


def _from_directory(
    family: ModuleType, place: Path, *, dtype: Any, device: Any, branch: Sequence[str] | None, **options: Any
) -> tuple[Any, Any]:
    """Model and processor as transformers saves them, for a family that brings no reader of its own.

    options: fields of the configuration. Raises ValueError for a field that it has not, and for branches.
    """
    refuse_branch(branch, family.CONFIG.model_type)
    config = changed(family.CONFIG.from_pretrained(place, trust_remote_code=False), options)
    kind = getattr(family, (config.architectures or [""])[0], family.BASE_MODEL)
    model = load_whole(kind, place, config=config, dtype=dtype or "auto").to(device).eval()
    return model, family.PROCESSOR.from_pretrained(place, trust_remote_code=False)


def is_model_directory(place: Path) -> bool:
    """Whether this is a directory that `save_pretrained` wrote, not an official one, whose fields are not ours.

    Args:
        place: any path.
    """
    if not place.is_dir() or not (place / "config.json").exists():
        return False
    written = read_json(place / "config.json")
    named = str(written.get("model_type"))
    # official files of a family may carry its model_type too, but never another family's
    # so the family that is named is imported alone, where one is
    asked = (import_module(FAMILIES[name]) for name in ([named] if named in FAMILIES else FAMILIES))
    return not any(hasattr(one, "is_official_config") and one.is_official_config(written) for one in asked)


def load_config(path: str | Path, family: type[Config]) -> Config:
    """The configuration in a model directory of one family.

    Args:
        path: of the directory.
        family: its configuration class.

    Raises:
        UsageError: where it is of another family, or no model directory.
    """
    place = directory_of(path)
    if not (place / "config.json").is_file():
        raise UsageError(f"expected a model directory with config.json, got {place}; check the path")
    config = _config_of(place)
    if not isinstance(config, family):
        found = f"{place} of {config.model_type}"
        raise UsageError(f"expected a model directory of {family.model_type}, got {found}; pass one of that family")
    return config


def load_processor(path: str | Path) -> Any:
    """The processor of a model directory, without its model.

    Args:
        path: of the directory, or the name of a shipped model.

    Raises:
        ValueError: where it is no model directory of a known family.
    """
    place = directory_of(path)
    if not (place / "config.json").exists():
        raise ValueError(f"expected a model directory with config.json, got {place}")
    family = family_named(_config_of(place).model_type, place)
    with no_code_of(place):
        return family.PROCESSOR.from_pretrained(place, trust_remote_code=False)


def _config_of(place: Path) -> Any:
    """The configuration in a directory, as the class of its family. No code of the directory is run."""
    with no_code_of(place):
        return transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)


def from_official(checkpoint: Checkpoint, *, adapter: str | Path | None = None, **options: Any) -> tuple[Any, Any]:
    """A model and its processor from an official checkpoint.

    Args:
        checkpoint: names and tensors, which are read when they are needed.
        adapter: a LoRA trained on the official model, whose names are official, or on the model that loads from
            it.
        options: as in `load`.

    Returns:
        (model, processor).

    Raises:
        ValueError: where its keys are of no known family.
    """
    keys = list(checkpoint.state)
    for family in map(import_module, FAMILIES.values()):
        if not getattr(family, "is_official", lambda _: False)(keys):
            continue
        if adapter is None:
            return family.from_official(checkpoint, **options)
        own: Callable[..., LazyState] | None = getattr(family, "with_adapter", None)
        try:  # names alone are compared here, no weight is read
            if own is not None:  # knows other spellings, and files beside the adapter
                state = own(checkpoint.state, Path(adapter))
            else:
                state = read_adapter(adapter).merged(checkpoint.state)
        except StateError:  # names are not official ones, so they have to be the model's
            model, processor = family.from_official(checkpoint, **options)
            apply_adapter(model, adapter)
            return model, processor
        return family.from_official(replace(checkpoint, state=state), **options)
    raise ValueError(
        f"expected an official checkpoint of {', '.join(FAMILIES)}, got keys such as "
        f"{', '.join(keys[:3]) or 'none'}; pass one of these families, whole and as published"
    )


def apply_adapter(model: torch.nn.Module, directory: str | Path, stored: Iterable[str] = ()) -> None:
    """Merge a LoRA into a model in memory. A call then costs what it did without it.

    Args:
        model: changed in place.
        directory: of the LoRA.
        stored: names in the file the model came from, which may hold more.

    Raises:
        StateError: where the LoRA is another model's.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    prefix = "model." if hasattr(model, "model") else ""
    with torch.no_grad():
        known = set(stored) | own.keys()
        for name, change in read_adapter(directory).fitted(known, tied_names(model)).items():
            # as it is stored, and as a model without or with a head around it has it
            spellings = (name, name.removeprefix("model."), f"{prefix}{name}")
            target = next((one for one in spellings if one in own), None)
            if target is not None:
                # else of a part that this class, or this branch of it, leaves in the file
                own[target].copy_(change(own[target]))


def skills(model: Any, processor: Any) -> Any:
    """What the model's family lets a `plait.Assistant` do (its `SKILLS`).

    Args:
        model, processor: open ones of the same family.

    Raises:
        ValueError: for a family without skills.
    """
    if (build := skills_class(model)) is None:
        raise ValueError(
            f"expected a model that can caption, answer, ground, classify or detect, got {type(model).__name__}; "
            "pass a model of another family"
        )
    return build(model, processor)


def skills_class(model: Any) -> Callable[[Any, Any], Any] | None:
    """What builds the skills of the model's family; None for one that embeds and does nothing else."""
    name = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return getattr(import_module(name), "SKILLS", None) if name else None


def upcycle(src: str | Path, dst: str | Path, **options: Any) -> int:
    """Write a model directory around the language model in a directory.

    Args:
        src, dst, options: see `write_upcycled` of mPLUG-Owl2, the one family that has it.

    Returns:
        Its number of parameters.
    """
    family = next(one for one in map(import_module, FAMILIES.values()) if hasattr(one, "write_upcycled"))
    return family.write_upcycled(src, dst, **options)


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device that was named, else the first GPU, else the CPU.

    Args:
        device: "cpu", "cuda", "cuda:1" or a torch device; None and "auto" choose.

    Raises:
        UsageError: for one that is not here.
    """
    try:
        chosen = None if device == "auto" else device
        place = torch.device(chosen or ("cuda" if torch.cuda.is_available() else "cpu"))
        # asked by doing: torch.device("cuda:7") is no error until something goes there
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        # torch says AssertionError where it was built without a device
        raise UsageError(f"expected a device of this machine, got {str(device)!r}; pass --device cpu") from error
    return place


class Placement(NamedTuple):
    """Where a model that is only run goes, and in which type.

    dtype: of its weights as they are read, None for the file's; is_int8: whether its linear layers are then rounded.
    """

    dtype: torch.dtype | None
    device: torch.device
    is_int8: bool = False

    def ready(self, model: Any) -> Any:
        """The model there, in eval mode."""
        return to_int8(model) if self.is_int8 else model.to(device=self.device).eval()


def placement(
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    device_map: str | int | Mapping[str, Any] | None = None,
) -> Placement:
    """Type and device of what is only run: as asked, else the first GPU and the file's dtype, float32 on a CPU.

    Float32 since most processors compute bfloat16 slower than that.

    Args:
        device: as in `load`; None chooses.
        dtype: as in `load`, or "int8" on a CPU; None chooses.
        device_map: as in `load`: the model is read on the CPU first, and goes from there (`settled`).

    Raises:
        UsageError: for types that the device is slow with, or that it cannot compute, and for a device and a
            device_map.
    """
    if device_map is not None and device is not None:
        raise UsageError(f"expected device or device_map, got both: {device} and {device_map}; leave one out")
    place = torch.device("cpu") if device_map is not None else resolve_device(device)
    if dtype == "auto" or (dtype is None and device_map is not None and torch.cuda.is_available()):
        return Placement(None, place)  # as stored: where it goes from here is not known
    is_int8 = dtype in ("int8", torch.int8)
    if dtype == "int4":
        raise UsageError(
            "expected float32, bfloat16 or int8, got int4; on a GPU open the model with transformers and "
            "BitsAndBytesConfig(load_in_4bit=True), and pass it with its processor as (model, processor)"
        )
    if is_int8 and place.type != "cpu":
        raise UsageError(f"expected bfloat16 or float16 on {place}, got int8, which is for CPUs; choose one of these")
    kind = None if is_int8 else resolve_dtype(dtype)
    if kind == torch.float16 and place.type == "cpu":
        raise UsageError(
            "expected float32, bfloat16 or int8 on a CPU, got float16, which takes about four times as long there; "
            "leave dtype out, or use int8 to save memory"
        )
    # int8 is made of what is stored, layer by layer: float32 of the whole would be four times its size
    return Placement(torch.float32 if dtype is None and place.type == "cpu" else kind, place, is_int8)


def opened(
    model: str | Path | tuple[Any, Any],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    adapter: str | Path | None = None,
    device_map: str | int | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """Model and processor, ready to run, in eval mode.

    Args:
        model: a pair as it is, moved only where that is asked for, or what `load` reads.
        device, dtype: see `placement`.
        adapter: directory of a LoRA, for what is loaded.
        device_map, attn_implementation: as in `load`.

    Returns:
        (model, processor).

    Raises:
        ValueError: for weights in the file that are not finite.
    """
    if isinstance(model, tuple):
        found, processor = model
        if device is not None or dtype is not None:
            placed = placement(found.device if device is None else device, dtype)
            found = placed.ready(found if dtype in (None, "auto") or placed.is_int8 else found.to(placed.dtype))
    else:
        placed = placement(device, dtype, device_map)
        found, processor = load(model, dtype=placed.dtype, device=placed.device, adapter=adapter)
        # words chosen among scores that are NaN would look like any others
        check_finite_weights(found, model)
        found = placed.ready(found)
    return settled(found.eval(), attn_implementation, device_map), processor
