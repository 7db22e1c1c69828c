"""The repeated layers of a model, found from outside: to compute them again instead of keeping them, compile or shard.

model -> blocks_of (name -> layer) -> recomputed | compiled, both undone when the run is over; groups_of for sharding
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, outermost only.

    Layers are what a transformers model lists in `_no_split_modules`; a model without such a list gives the elements
    of its lists of modules of one class, two or more of them.
    """
    listed = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    found: dict[str, nn.Module] = {}
    repeated = {f"{name}.{i}".lstrip(".") for name, m in model.named_modules() if _repeats(m) for i in range(len(m))}
    for name, module in model.named_modules():
        is_layer = type(module).__name__ in listed if listed else name in repeated
        if is_layer and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def groups_of(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> the module whose list holds layers: a vision tower, an abstractor, a trunk."""
    names = dict.fromkeys(name.rpartition(".")[0].rpartition(".")[0] for name in blocks_of(model))
    return {name: model.get_submodule(name) for name in names if name}


def _repeats(module: nn.Module) -> Any:
    return isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(one) for one in module}) == 1


def is_quantised(module: nn.Module) -> bool:
    """Whether the weight of this layer is held in few bits, by torchao or bitsandbytes."""
    weight = module._parameters.get("weight")
    if weight is None or isinstance(weight, DTensor):
        return False
    return type(weight) is not nn.Parameter or type(weight.data) is not Tensor


def size_of(parameter: Tensor) -> tuple[int, int]:
    """Numbers that a parameter stands for, and the bytes in which it is held: fewer than it says where quantised."""
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes, whose four bits lie two in a byte
    if state is not None:
        return int(torch.Size(state.shape).numel()), parameter.nbytes + state.absmax.nbytes
    flatten = getattr(parameter, "__tensor_flatten__", None)  # of torchao
    if flatten is None or isinstance(parameter, DTensor):
        return parameter.numel(), parameter.nbytes
    parts = [getattr(parameter, name) for name in flatten()[0]]
    return parameter.numel(), sum(part.nbytes for part in parts if isinstance(part, Tensor))


@contextmanager
def in_full_precision(model: nn.Module) -> Generator[None]:
    """Plain linear layers without values in the place of quantised ones, for as long as the context lasts."""
    changed = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent._modules.items())
        if isinstance(child, nn.Linear) and is_quantised(child)
    ]
    for parent, name, child in changed:
        plain = nn.Linear(child.in_features, child.out_features, child.bias is not None, device="meta")
        parent._modules[name] = plain.requires_grad_(False)
    try:
        yield
    finally:
        for parent, name, child in changed:
            parent._modules[name] = child


@contextmanager
def recomputed(model: nn.Module, every: int) -> Generator[None]:
    """Keep only the inputs of every `every`-th layer and compute its inside again in the backward pass; 0 for none.

    Gradients stay what they are: random draws inside a layer are repeated. 1 saves most memory and costs about a third
    more computation, 2 half of both.
    """
    chosen = list(blocks_of(model).values())[:: every or 1] if every else []
    for block in chosen:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # names of parameters stay
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


@contextmanager
def compiled(model: nn.Module, backend: str | None) -> Generator[None]:
    """Compile every layer by itself, so that equal layers share the work; None for none, else a torch backend.

    Raises ValueError for a backend torch does not know.
    """
    import torch._dynamo as dynamo

    known = dynamo.list_backends(exclude_tags=()) if backend else []
    if backend and backend not in known:
        raise ValueError(f"expected a compile backend of {', '.join(known)}, got {backend!r}; try inductor")
    chosen = list(blocks_of(model).values()) if backend else []
    for block in chosen:
        block.compile(backend=backend)
    try:
        yield
    finally:
        for block in chosen:
            block._compiled_call_impl = None


@contextmanager
def plain(model: nn.Module) -> Generator[None]:
    """Every layer as it was before `recomputed` and `compiled`, for as long as the context lasts."""
    changed = [(b, b.__dict__.pop("forward", None), b._compiled_call_impl) for b in blocks_of(model).values()]
    for block, _, _ in changed:
        block._compiled_call_impl = None
    try:
        yield
    finally:
        for block, forward, call in changed:
            block._compiled_call_impl = call
            if forward is not None:
                block.forward = forward
