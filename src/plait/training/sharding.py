"""FSDP2: every process keeps a part of each parameter, gradient and optimiser state.

model (whole in process 0, on the meta device elsewhere) -> fully_shard per layer, per group, for the rest
    -> memory for the parts -> process 0's values, spread

A layer is gathered when it is entered and dropped when it is left, so all processes must enter the same layers in the
same order: a batch of other modalities is fine where the layer is shared (`plait.routing`: absent modalities get zero
gradients), a tower with nothing to read is given an empty batch, and a step has one task in all processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from plait.training.layers import blocks_of, groups_of
from plait.training.momentum import MomentumObjective
from plait.training.parallel import ObjectiveModule, World
from plait.training.stages import Options, Stage


def shapes_of(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes on the meta device: names and shapes, no memory for weights.

    A loader that makes fresh heads beside what it reads needs values and is run as it is.
    """
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:
        return build()


def hollow(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters have shapes alone; buffers, which no state dict may hold, are copied."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def place_model(
    model: nn.Module, stages: Sequence[Stage], options: Options, world: World, device: torch.device, dtype: torch.dtype
) -> ObjectiveModule:
    """Move the model to its device, in parts where it is sharded; the module that holds it."""
    whole = ObjectiveModule(model, stages[0].objective)
    model.train()
    if options.parallel == "ddp" or world.size == 1:
        model.to(device)
    elif any(isinstance(stage.objective, MomentumObjective) for stage in stages):
        raise ValueError("expected --parallel ddp for a stage with a momentum twin or queues, got fsdp")
    else:
        shard(whole, world, device, dtype)
    return whole


def shard(module: ObjectiveModule, world: World, device: torch.device, dtype: torch.dtype) -> None:
    """Spread the model inside `module` over all processes, in place; its names stay.

    dtype: of the gathered weights of layers and of matrix products; parts, gradients and reductions stay in float32.
    Single numbers (a temperature) cannot be cut and stay whole, see `sync_whole_gradients`.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ValueError(f"expected torch 2.13 or newer for --parallel fsdp, got {torch.__version__}; use ddp")
    model = module.model
    if len(dict(model.named_parameters())) != len(dict(model.named_parameters(remove_duplicate=False))):
        raise ValueError("expected a model without tied parameters for --parallel fsdp; use ddp")
    values = {n: t.detach().clone() for n, t in _tensors(model).items()} if world.is_main else {}
    mesh = init_device_mesh(device.type, (world.size,))
    whole = {p for p in model.parameters() if p.ndim == 0}
    policy = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, cast_forward_inputs=False)
    for block in blocks_of(model).values():
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for group in reversed(groups_of(model).values()):
        fully_shard(group, mesh=mesh, ignored_params=whole)
    root = fully_shard(module, mesh=mesh, ignored_params=whole)
    root.set_reduce_scatter_unused_params(True)  # else processes with other modalities wait for one another
    _materialise(model, device, values)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, also those that no checkpoint holds."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@torch.no_grad()
def _materialise(model: nn.Module, device: torch.device, values: dict[str, Tensor]) -> None:
    """Give every part memory on `device` and process 0's values, one tensor at a time."""
    model.to_empty(device=device)
    for name, tensor in _tensors(model).items():
        full = values.pop(name).to(device) if values else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if isinstance(tensor, DTensor):
            part = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=0)
            tensor.to_local().copy_(part.to_local())
        else:
            full = full.contiguous()
            dist.broadcast(full, src=0)
            tensor.copy_(full)


def sync_whole_gradients(parameters: list[nn.Parameter], world: World) -> None:
    """Mean over processes of the gradients of parameters that FSDP leaves whole."""
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world.size


def gathered_state(model: nn.Module, world: World) -> dict[str, Tensor]:
    """All parameters and persistent buffers, whole and on the CPU, in process 0; empty elsewhere. All must call it."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if world.is_main:
            state[name] = full.detach().cpu()
    return state
