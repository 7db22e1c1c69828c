"""One door to every family: a path or hub id in, a model and its processor out.

    official file | model directory | hub id -> family -> (model, processor)

Importing this module also registers every family with transformers' Auto classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from plait.errors import UsageError, no_code_of
from plait.models import shipped
from plait.models.merge import apply_adapter, with_official_adapter
from plait.weights.files import Checkpoint, StateError, read_checkpoint

Config = TypeVar("Config", bound=PreTrainedConfig)

FAMILIES = {
    "one_peace": "plait.models.one_peace",
    "mplug2": "plait.models.mplug2",
    "mplug_owl": "plait.models.mplug_owl",
    "mplug_owl2": "plait.models.mplug_owl2",
}
"""model_type -> the package of the family: `is_official`, `from_official`, `from_directory`, `CONFIG`, `HEADS` ..."""

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    branch: Sequence[str] | None = None,
    adapter: str | Path | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a model and its processor.

    path: an official checkpoint file, a model directory, `"nano"` (it ships with Plait), or the id of one on the hub;
    dtype: of the parameters, by default the file's; branch: modalities to read and keep, such as `("image",)`;
    adapter: directory of a LoRA trained on this model, which is merged into its weights in memory;
    options: `official=True` for the official quirks, and other fields of the family's configuration.
    Raises ValueError where the file is of no known family or its weights do not fit.
    """
    dtype = resolve_dtype(dtype)
    place = Path(path)
    if not place.exists():
        place = shipped(path) or _from_hub(str(path))
    if not is_model_directory(place):
        options = options if adapter is None else {**options, "adapter": adapter}
        return from_official(read_checkpoint(place), dtype=dtype, device=device, branch=branch, **options)
    family = _family(_config_of(place).model_type, place)
    with no_code_of(place):  # a tokenizer may bring code too
        model, processor = family.from_directory(place, dtype=dtype, device=device, branch=branch, **options)
    if adapter is not None:
        apply_adapter(model, adapter, read_checkpoint(place).state)
    return model, processor


def is_model_directory(place: Path) -> bool:
    """Whether this is a directory that `save_pretrained` wrote, not an official one."""
    return place.is_dir() and (place / "config.json").exists() and not _is_official_directory(place)


def load_config(path: str | Path, family: type[Config]) -> Config:
    """The configuration in a model directory of one family. Raises UsageError where it is of another, or none."""
    place = Path(path)
    if not (place / "config.json").is_file():
        raise UsageError(f"expected a model directory with config.json, got {place}; check the path")
    config = _config_of(place)
    if not isinstance(config, family):
        found = f"{place} of {config.model_type}"
        raise UsageError(f"expected a model directory of {family.model_type}, got {found}; pass one of that family")
    return config


def load_processor(path: str | Path) -> Any:
    """The processor of a model directory, without its model."""
    place = Path(path) if Path(path).exists() else shipped(path) or Path(path)
    if not (place / "config.json").exists():
        raise ValueError(f"expected a model directory with config.json, got {place}")
    family = _family(_config_of(place).model_type, place)
    with no_code_of(place):
        return family.PROCESSOR.from_pretrained(place, trust_remote_code=False)


def _config_of(place: Path) -> Any:
    with no_code_of(place):
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


def from_official(checkpoint: Checkpoint, *, adapter: str | Path | None = None, **options: Any) -> tuple[Any, Any]:
    """A model and its processor from an official checkpoint; options as `load`. Raises ValueError for no family.

    adapter: a LoRA trained on the official model, whose names are official, or on the model that loads from it.
    """
    keys = list(checkpoint.state)
    for name in FAMILIES:
        family = _family(name)
        if not family.is_official(keys):
            continue
        if adapter is None:
            return family.from_official(checkpoint, **options)
        try:  # names alone are compared here, no weight is read
            merged = replace(checkpoint, state=with_official_adapter(family, checkpoint.state, Path(adapter)))
        except StateError:
            model, processor = family.from_official(checkpoint, **options)
            apply_adapter(model, adapter)
            return model, processor
        return family.from_official(merged, **options)
    raise ValueError(
        f"expected an official checkpoint of {', '.join(FAMILIES)}, got keys such as "
        f"{', '.join(keys[:3]) or 'none'}; pass one of these families, whole and as published"
    )


def skills(model: Any, processor: Any) -> Any:
    """What the model's family lets a `plait.Assistant` do (its `SKILLS`). Raises ValueError for a family without."""
    name = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    build = getattr(import_module(name), "SKILLS", None) if name else None
    if build is None:
        raise ValueError(
            f"expected a model that can caption, answer, ground or classify, got {type(model).__name__}; "
            "pass a model of another family"
        )
    return build(model, processor)


def upcycle(src: str | Path, dst: str | Path, **options: Any) -> int:
    """Write a model directory around the language model in `src`; its number of parameters. See `write_upcycled`."""
    family = next(one for one in map(_family, FAMILIES) if hasattr(one, "write_upcycled"))
    return family.write_upcycled(src, dst, **options)


def _is_official_directory(place: Path) -> bool:
    """Whether a family knows this config.json as one of its official ones, whose fields are not ours."""
    written = json.loads((place / "config.json").read_text(encoding="utf-8"))
    checks = (getattr(_family(name), "is_official_config", None) for name in FAMILIES)
    return any(check is not None and check(written) for check in checks)


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype from its name; every common spelling is known and any other is an error."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"expected dtype {', '.join(DTYPES)}, got {dtype!r}; choose one of them")
    return DTYPES[dtype]


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device that was named, else the first GPU, else the CPU. Raises UsageError for one that is not here."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:  # torch says AssertionError where it was built without a device
        raise UsageError(f"expected a device of this machine, got {str(device)!r}; pass --device cpu") from error
    return place


def placement(
    device: torch.device | str | None, dtype: torch.dtype | str | None
) -> tuple[torch.dtype | None, torch.device]:
    """Dtype and device of what is only run: as asked, else the first GPU and the file's dtype, float32 on a CPU.

    Float32 since most processors compute bfloat16 slower than that.
    """
    place, kind = resolve_device(device), resolve_dtype(dtype)
    return torch.float32 if kind is None and place.type == "cpu" else kind, place


def opened(
    model: str | Path | tuple[Any, Any],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    adapter: str | Path | None = None,
) -> tuple[Any, Any]:
    """Model and processor, ready to run: a pair as it is, moved only where that is asked for, or what `load` reads."""
    if isinstance(model, tuple):
        found, processor = model
        if device is not None or dtype is not None:
            found.to(device=device and resolve_device(device), dtype=resolve_dtype(dtype))
    else:
        kind, place = placement(device, dtype)
        found, processor = load(model, dtype=kind, device=place, adapter=adapter)
    return found.eval(), processor


def _family(model_type: str, place: Path | None = None) -> ModuleType:
    """The package of a family, whose names resolve on first use. place: the directory that names it, for the error."""
    if model_type not in FAMILIES:
        raise ValueError(f"expected a model of {', '.join(FAMILIES)} in {place}, got {model_type!r}")
    return import_module(FAMILIES[model_type])


def _from_hub(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"expected a file, a model directory or a hub id, got {repo_id!r}; no such path, and not on the hub"
        ) from error


def _register() -> None:
    for model_type, name in FAMILIES.items():
        family = import_module(name)
        AutoConfig.register(model_type, family.CONFIG, exist_ok=True)
        AutoModel.register(family.CONFIG, family.BASE_MODEL, exist_ok=True)
        AutoProcessor.register(family.CONFIG, family.PROCESSOR, exist_ok=True)
        if hasattr(family, "FEATURE_EXTRACTOR"):
            AutoFeatureExtractor.register(family.CONFIG, family.FEATURE_EXTRACTOR, exist_ok=True)
        if hasattr(family, "GENERATIVE_MODEL"):
            AutoModelForImageTextToText.register(family.CONFIG, family.GENERATIVE_MODEL, exist_ok=True)
        for auto, head in getattr(family, "HEADS", {}).items():
            getattr(transformers, auto).register(family.CONFIG, head, exist_ok=True)
        AutoImageProcessor.register(
            family.CONFIG, image_processor_classes={"pil": family.IMAGE_PROCESSOR}, exist_ok=True
        )


def auto_class_of(model_class: type) -> str | None:
    """The Auto class of transformers that loads a directory of this class of a family, None where none does."""
    for name in FAMILIES.values():
        family = import_module(name)
        found = {"AutoModel": family.BASE_MODEL, **getattr(family, "HEADS", {})}
        if hasattr(family, "GENERATIVE_MODEL"):
            found["AutoModelForImageTextToText"] = family.GENERATIVE_MODEL
        if model_class in found.values():
            return next(auto for auto, one in found.items() if one is model_class)
    return None


_register()
