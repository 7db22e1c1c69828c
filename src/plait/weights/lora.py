"""LoRA as files: a directory as PEFT writes it -> what it adds to which weight -> merged weights.

adapter_config.json + weights -> Adapter (names known, tensors unread) -> W + scale * B A

No model and no PEFT are needed, so a whole checkpoint can be merged tensor by tensor. Names with
"adapter" are PEFT's. Source: arXiv 2106.09685, section 4.1; scale alpha / r, with `use_rslora`
alpha / sqrt(r) (arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.reading import read_json, shape_of
from plait.weights.files import LazyState, StateError, check_finite, listed, read_checkpoint

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
_NAME = re.compile(r"[\w.\-]+")
_WHOLE = re.compile(r"\.modules_to_save(\.default)?\.")
_SHIFTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: name.removeprefix("model."),
    lambda name: f"model.{name}",
)
"""How the names of an adapter may differ from those of a checkpoint: trained on a model with or without heads."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA directory, its tensors unread.

    path: of the directory. base: name of the model it was trained on, None where it is not said.
    change: weight name -> function (weight before) -> weight after, in its dtype.
    is_tied: whether what it changes of a tied table, it changed of the whole table (PEFT's
    `ensure_weight_tying`).
    """

    path: Path
    base: str | None
    change: Mapping[str, Callable[[Tensor], Tensor]]
    is_tied: bool = False

    def fitted(
        self, known: Collection[str], tied: Iterable[Collection[str]] = ()
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """`change` by the names of a checkpoint.

        Args:
            known: names of the checkpoint's weights.
            tied: groups of names that are one weight in the model.

        Raises:
            StateError: where a weight is not among them, or a tied one was pulled apart.
        """
        # the spelling that fits most names; what it leaves over is then an error
        shift = max(_SHIFTS, key=lambda one: sum(one(name) in known for name in self.change))
        fitted = {shift(name): change for name, change in self.change.items()}
        for group in tied:
            held = sorted(name for name in fitted if name in group)
            if held and not self.is_tied:
                # the table and the head it is tied to would be two, and one of them is lost
                raise StateError(
                    f"expected an adapter that leaves tied weights tied in {self.path}, got {listed(held)} trained "
                    f"apart from {listed(sorted(set(group) - set(held[:1])))}; train it with ensure_weight_tying=True, "
                    "or on a base with tie_word_embeddings=False",
                    held,
                )
            if held:  # once, under a name that the checkpoint has
                change = fitted[held[0]]
                fitted = {name: one for name, one in fitted.items() if name not in held}
                fitted[next((name for name in sorted(group) if name in known), held[0])] = change
        strangers = sorted(name for name in fitted if name not in known)
        if strangers:
            raise StateError(
                f"expected an adapter of this base in {self.path}, got {len(strangers)} of {len(fitted)} weights that "
                f"it does not have: {listed(strangers)}; pass the base it was trained on",
                strangers,
            )
        return fitted

    def merged(self, state: Mapping[str, Tensor], tied: Iterable[Collection[str]] = ()) -> LazyState:
        """`state` with the LoRA added, tensor by tensor when read.

        Args:
            state: of the base.
            tied: as `fitted`.

        Raises:
            StateError: as `fitted`.
        """
        readers: dict[str, Callable[[], Tensor]] = {name: partial(state.__getitem__, name) for name in state}
        for name, change in self.fitted(state.keys(), tied).items():
            readers[name] = partial(_changed, readers[name], change)
        return LazyState(readers)


def is_adapter(path: str | Path) -> bool:
    """Whether this is a directory with a LoRA as PEFT writes it.

    Told by its configuration file; the weights are looked for when it is read.
    """
    return (Path(path) / CONFIG).is_file()


def read_adapter(directory: str | Path) -> Adapter:
    """Read a LoRA directory of PEFT; tensors are read when they are used.

    Args:
        directory: with adapter_config.json and the weights.

    Returns:
        An `Adapter`.

    Raises:
        ValueError: for what is no LoRA, or a kind that merges otherwise (DoRA, convolutions,
            biases of its own).
    """
    directory = Path(directory)
    file = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if file is None or not is_adapter(directory):
        raise ValueError(f"expected {CONFIG} and {' or '.join(FILES)} in {directory}, got others")
    settings = read_json(directory / CONFIG)
    kind = str(settings.get("peft_type", "LORA")).upper()
    if kind != "LORA" or settings.get("use_dora") or settings.get("lora_bias"):
        what = kind if kind != "LORA" else "DoRA" if settings.get("use_dora") else "LoRA with biases"
        raise ValueError(f"expected a plain LoRA adapter in {directory}, got {what}; merge it with PEFT itself")
    found = read_checkpoint(file).state
    change: dict[str, Callable[[Tensor], Tensor]] = {}
    for key in found:
        module, dot, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        if kind.startswith(("B", "embedding_B")):
            continue  # read with its partner
        # no LoRA matrix but a whole module that was trained beside it
        if not dot:
            change[_WHOLE.sub(".", key.removeprefix(PREFIX))] = partial(_replaced, found, key)
        elif kind in ("A.weight", "embedding_A"):
            scale = _scale(settings, module, directory)
            change[f"{module}.weight"] = partial(
                _added, found, key, scale, kind == "embedding_A", bool(settings.get("fan_in_fan_out"))
            )
        else:
            raise ValueError(f"expected a plain LoRA adapter in {directory}, got {key}; merge it with PEFT itself")
    is_tied = bool(settings.get("ensure_weight_tying"))
    return Adapter(directory, settings.get("base_model_name_or_path"), change, is_tied)


def _scale(settings: Mapping[str, Any], module: str, directory: Path) -> float:
    """Factor of B A for a module: alpha / r or alpha / sqrt(r), by PEFT's patterns.

    Raises ValueError for a rank below 1.
    """
    rank, alpha = (
        _number(settings, field, module, directory)
        for field in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if rank < 1:
        raise ValueError(f"expected a rank of at least 1 for {module:.80} in {directory / CONFIG}, got {rank}")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _number(settings: Mapping[str, Any], field: tuple[str, str], module: str, directory: Path) -> float:
    """The first value of a pattern field that names the end of a module's name, else that of the plain field.

    PEFT runs the names as regular expressions, of which a short one can run for ever. They are matched as text here,
    with the `^` and `\\.` that are written around names; anything else is refused, since without it the scale is wrong.
    """
    patterns, value = settings.get(field[0]) or {}, settings.get(field[1])
    if not isinstance(patterns, dict):
        raise ValueError(f"expected names and numbers as {field[0]} in {directory / CONFIG}, got {shape_of(patterns)}")
    for pattern, number in patterns.items():
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"expected names of modules in {field[0]} of {directory / CONFIG}, got the regular expression "
                f"{pattern[:80]!r}, which is never run; write the names out"
            )
        if module == name or (module.endswith(f".{name}") and not pattern.startswith("^")):
            value = number
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        # NaN is not below
        raise ValueError(f"expected a number as {field[1]} in {directory / CONFIG}, got {shape_of(value)}")
    return value


def _changed(read: Callable[[], Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
    """A weight read, then changed."""
    return change(read())


def _added(
    found: Mapping[str, Tensor], key: str, scale: float, is_embedding: bool, is_transposed: bool, weight: Tensor
) -> Tensor:
    """A weight with scale * B A added, in its own dtype.

    is_embedding: PEFT keeps those transposed; is_transposed: so are Conv1D weights of GPT-2's kind.
    """
    down, up = (
        found[key].float(),
        found[key.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")],
    )
    # in fp32: products of half precision would lose what a small LoRA adds
    added = (up.float() @ down) * scale
    added = (added.T if is_embedding or is_transposed else added).to(weight.device)
    if added.shape != weight.shape:
        raise ValueError(
            f"expected {key} to fit a weight of shape {tuple(weight.shape)}, got {tuple(added.shape)}; "
            "pass the base the adapter was trained on"
        )
    return check_finite((weight.float() + added).to(weight.dtype), f"the weight that {key} was added to")


def _replaced(found: Mapping[str, Tensor], key: str, weight: Tensor) -> Tensor:
    """The weight that was trained whole (`modules_to_save`) in place of the base's."""
    value = found[key]
    if value.shape != weight.shape:
        raise ValueError(f"expected {key} of shape {tuple(weight.shape)}, got {tuple(value.shape)}; pass its own base")
    return check_finite(value.to(weight.device, weight.dtype), key)
