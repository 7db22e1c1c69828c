"""LoRA on any model of Plait, through PEFT: a frozen base and small matrices beside its linear layers.

    y = W x + (alpha / rank) B A x,   A: (rank, in), B: (out, rank), B = 0 at first

    model -> add_lora (in place: class, methods and names stay) -> train -> save_adapter -> a directory of PEFT
    directory -> load_adapter | `plait merge` | `plait.load(adapter=)`;  merge_adapter <-> unmerge_adapter;
    folded

The base may be held in 8 or 4 bits (`quantise`), as in QLoRA (arXiv 2305.14314). LoRA: arXiv 2106.09685.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from plait.errors import import_extra
from plait.training.parallel import blocks_of, is_quantised
from plait.weights.lora import FILES, PREFIX, read_adapter

TRAINABLE = (r"re:\.(lora_|modules_to_save\.)",)
"""`Stage.trainable` of a model with adapters: these, and modules that train whole beside them."""

NAME = "default"


def add_lora(
    model: nn.Module,
    rank: int = 16,
    alpha: float | None = None,
    *,
    targets: Sequence[str] = (),
    whole: Sequence[str] = (),
    dropout: float = 0.0,
    rslora: bool = False,
) -> tuple[str, ...]:
    """Put a LoRA beside linear layers of `model`, in place. Outputs stay what they were, as B begins at zero.

    Args:
        model: any model with linear layers; its class and the names of its own modules stay.
        rank: of A and B, at least 1.
        alpha: of the scale alpha / rank; 2 rank without it.
        targets: shell patterns of module names (`*.attn.*`); without them every linear layer inside the model's
            repeated layers.
        whole: names of modules that train in full (a new head).
        dropout: on the input of A while training.
        rslora: scale by alpha / sqrt(rank) instead (arXiv 2312.03732).

    Returns:
        Patterns of what trains, for `Stage.trainable`.

    Raises:
        ValueError: where a pattern or name matches nothing, or a LoRA is there already.

    Example:
        >>> model, processor = plait.load("nano")
        >>> patterns = add_lora(model, rank=8)  # for Stage(trainable=patterns, ...)
        >>> save_adapter(model, "adapter", base="nano")
    """
    peft = import_extra("peft")
    if rank < 1:
        raise ValueError(f"expected a rank of at least 1, got {rank}")
    if has_adapter(model):
        raise ValueError("expected a model without adapter, got one that has; fold it first (folded)")
    chosen = _targets(model, targets)
    unknown = [name for name in whole if not any(n == name or n.endswith(f".{name}") for n, _ in model.named_modules())]
    if unknown:
        raise ValueError(f"expected names of modules to train whole, got {', '.join(unknown)}; print(model) lists them")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=chosen,
        modules_to_save=list(whole) or None,
        lora_dropout=dropout,
        use_rslora=rslora,
    )
    _inject(peft, model, config)
    return TRAINABLE


def has_adapter(model: nn.Module) -> bool:
    """Whether `add_lora` or `load_adapter` changed this model."""
    return bool(getattr(model, "peft_config", None))


def save_adapter(model: nn.Module, directory: str | Path, base: str | Path | None = None) -> Path:
    """Write the LoRA of `model` as PEFT does: adapter_model.safetensors and adapter_config.json.

    Args:
        model: one that has a LoRA.
        directory: made where there is none.
        base: the model directory it belongs to, noted in adapter_config.json.

    Returns:
        The directory.

    Raises:
        ValueError: for a model without a LoRA.
    """
    peft = import_extra("peft")
    _require(model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = peft.get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    save_file({f"{PREFIX}{key}": t.detach().cpu().contiguous() for key, t in state.items()}, str(directory / FILES[0]))
    config: Any = getattr(model, "peft_config")[NAME]  # noqa: B009 (a plain module has none)
    config.base_model_name_or_path = None if base is None else str(base)
    # a file that trains when it is loaded would surprise users of PEFT, which itself saves it so
    was, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(directory))
    config.inference_mode = was
    return directory


def load_adapter(model: nn.Module, directory: str | Path, trains: bool = False) -> tuple[str, ...]:
    """Put a saved LoRA beside the layers of `model`, to go on training or to compare.

    To use it alone, `plait.load(adapter=)` costs nothing per call.

    Args:
        model: the one it was trained on, without a LoRA.
        directory: as `save_adapter` or PEFT wrote it.
        trains: whether it may learn further.

    Returns:
        Patterns of what trains, as `add_lora`.

    Raises:
        ValueError: where it belongs to another model, or the model has a LoRA.
    """
    peft = import_extra("peft")
    if has_adapter(model):
        raise ValueError("expected a model without adapter, got one that has; fold it first (folded)")
    fitted = read_adapter(directory).fitted({name for name, _ in model.named_parameters(remove_duplicate=False)})
    config = peft.PeftConfig.from_pretrained(str(directory))
    if isinstance(config.target_modules, str):
        # a regular expression of the file: the weights name the layers too
        config.target_modules = {name.removesuffix(".weight") for name in fitted}
    if isinstance(config.exclude_modules, str):
        config.exclude_modules = None
    config.inference_mode = not trains
    _inject(peft, model, config)
    state = {k.removeprefix(PREFIX): v for k, v in peft.load_peft_weights(str(directory), device="cpu").items()}
    missing = peft.set_peft_model_state_dict(model, state, adapter_name=NAME)
    if missing.unexpected_keys:
        raise ValueError(f"expected the adapter {directory} to fit, got {missing.unexpected_keys[0]} beside its layers")
    return TRAINABLE


def merge_adapter(model: nn.Module) -> None:
    """Add the scaled B A to the weights in place: a call then costs what it did without. `unmerge_adapter` undoes it.

    Raises:
        ValueError: for a model without a LoRA, or with a quantised base.
    """
    _require(model)
    for _, layer in _lora_layers(model):
        if is_quantised(layer.get_base_layer()):
            raise ValueError("expected a base in full precision to merge into, got a quantised one; load it without")
        layer.merge(adapter_names=[NAME])


def unmerge_adapter(model: nn.Module) -> None:
    """Take B A out of the weights again, to rounding of the weights' dtype; nothing happens where it is not merged.

    Raises:
        ValueError: for a model without a LoRA.
    """
    _require(model)
    for _, layer in _lora_layers(model):
        if layer.merged:
            layer.unmerge()


def folded(model: nn.Module) -> nn.Module:
    """The model itself with the LoRA merged for good and no trace of PEFT: ready for `save_pretrained`.

    Args:
        model: changed in place; every parameter may train again.

    Returns:
        The same object.

    Raises:
        ValueError: as `merge_adapter`.
    """
    merge_adapter(model)
    for name, layer in _lora_layers(model):
        _put(model, name, layer.get_base_layer())
    for name, module in list(model.named_modules()):
        if hasattr(module, "modules_to_save") and NAME in getattr(module, "modules_to_save", ()):
            _put(model, name, module.modules_to_save[NAME])
    del model.peft_config
    return model.requires_grad_(True)


def quantise(model: nn.Module, bits: int) -> None:
    """Hold the linear layers inside the model's repeated layers in 8 or 4 bits, in place; do it before `add_lora`.

    Args:
        model: in full precision. Nothing of a quantised layer trains.
        bits: 8 (torchao or bitsandbytes) or 4 (NF4 of QLoRA, arXiv 2305.14314; bitsandbytes).

    Raises:
        ValueError: for other widths, where the package is missing, and for a model without repeated layers.
    """
    if bits not in (4, 8):
        raise ValueError(f"expected 4 or 8 bits, got {bits}")
    package = next((p for p in (("torchao", "bitsandbytes") if bits == 8 else ("bitsandbytes",)) if find_spec(p)), None)
    if package is None:
        needed = "torchao or bitsandbytes" if bits == 8 else "bitsandbytes"
        raise ValueError(
            f"expected {needed} for a base of {bits} bits, found none; pip install bitsandbytes, or train without"
        )
    chosen = _targets(model, ())
    if package == "torchao":
        torchao: Any = import_module("torchao.quantization")
        names = set(chosen)
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in names)
        return
    bnb: Any = import_module("bitsandbytes")
    for name in chosen:
        old = model.get_submodule(name)
        assert isinstance(old, nn.Linear)
        sizes, has_bias = (old.in_features, old.out_features), old.bias is not None
        new: Any
        if bits == 8:
            new = bnb.nn.Linear8bitLt(*sizes, bias=has_bias, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(old.weight.detach(), requires_grad=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(*sizes, bias=has_bias, compute_dtype=old.weight.dtype, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(old.weight.detach(), requires_grad=False, quant_type="nf4")
            new.support_avx512bf16_for_cpu = False  # its repacked weights cannot be trained through
        new.bias = old.bias
        _put(model, name, new.to(old.weight.device))


def _targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers that patterns choose; without patterns, of all inside the repeated layers."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if patterns:
        empty = [p for p in patterns if not any(fnmatchcase(name, p) for name in linear)]
        if empty:
            raise ValueError(f"expected target pattern {empty[0]!r} to match a linear layer, got none of {len(linear)}")
        return [name for name in linear if any(fnmatchcase(name, p) for p in patterns)]
    inside = tuple(f"{name}." for name in blocks_of(model))
    chosen = [name for name in linear if name.startswith(inside)]
    if not chosen:
        raise ValueError("expected a model with repeated layers for LoRA, got none; name linear layers with targets")
    return chosen


def _inject(peft: Any, model: nn.Module, config: Any) -> None:
    """Let PEFT put its layers in the place of linear ones, and hold A and B in float32."""
    with warnings.catch_warnings():
        # `merge_adapter` refuses instead
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass.*")
        peft.inject_adapter_in_model(config, model, adapter_name=NAME)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and parameter.is_floating_point():
            parameter.data = parameter.data.float()  # small updates vanish in bfloat16


def _lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """(name, layer) of every layer that PEFT put in."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _require(model: nn.Module) -> None:
    """Raise ValueError for a model without a LoRA."""
    if not has_adapter(model):
        raise ValueError("expected a model with an adapter, got none; add one with add_lora or load_adapter")


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    # their children have names such as "0" that are no attributes
    if isinstance(owner, nn.ModuleDict | nn.ModuleList | nn.Sequential):
        owner._modules[child] = module
    else:
        setattr(owner, child, module)
