"""Several processes train one model, and what is done to a model's layers from outside.

    torchrun's environment -> `process_group` -> World -> `distributed` (DDP) | `shard` (FSDP2)
    model -> `blocks_of` (name -> layer) -> recomputed | compiled | sharded, each undone when the run is over

DDP: the objective is wrapped together with the model, so an objective may call any method of the model and DDP still
sees one forward pass. Parameters that a rank's batch does not touch are found in the graph, so ranks with different
modalities never wait for one another's gradients.

FSDP2: every process keeps a part of each parameter, gradient and optimiser state. Process 0 holds the model whole, the
others on the meta device; each layer, each group of layers and the rest become units, get memory for their parts, and
process 0's values are spread. A layer is gathered when it is entered and dropped when it is left, so all processes must
enter the same layers in the same order: a batch of other modalities is fine where the layer is shared
(`plait.routing`: absent modalities get zero gradients), a tower with nothing to read is given an empty batch, and a
step has one task in all processes.
"""

from __future__ import annotations

import copy
import inspect
import os
import random
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from plait.errors import UsageError
from plait.training.stages import Batch, Metrics, Objective

_is_alone = False
_ALL_GATHER: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""By its name of torch 2.13, which warns about the older one."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among all that train together.

    Attributes:
        rank: 0 .. size - 1.
        size: number of processes.
        local_rank: its number on this machine, which chooses its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def mean(self, values: list[float], device: torch.device) -> list[float]:
        """Mean of each number over all processes, the same in all; every process calls it with equally many.

        Args:
            values: plain numbers.
            device: where they travel: the GPU for nccl, the CPU for gloo.
        """
        if self.size == 1:
            return values
        # float64 carries a count or a flag exactly
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return (total / self.size).tolist()

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def wait(self) -> None:
        """As `barrier`, but up to a day: for the process that measures or writes alone, longer than a hang may last."""
        if self.size > 1:
            dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(days=1)))


@contextmanager
def process_group(device: str | torch.device | None = None) -> Generator[tuple[World, torch.device]]:
    """The world torchrun describes (one process without it) and the device of this process, as a context.

    Leaves a process group that exists already as it is; one that it began ends with the context.

    Args:
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU where there is one, the one of the local rank.

    Returns:
        (world, device). Backend: nccl on GPUs beside gloo, gloo on the CPU.

    Raises:
        ValueError: for a device that is not there; its subclass UsageError for a name that is none.

    Example:
        >>> with process_group("cpu") as (world, device):
        ...     print(world.size, device)
        1 cpu
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f"expected a device such as cuda or cpu, got {str(device)!r}; pass one of them") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"expected a device of this machine, got {str(kind)!r} without a GPU; pass --device cpu")
    if kind.type == "cuda":
        kind = torch.device("cuda", local_rank if kind.index is None else kind.index)
        torch.cuda.set_device(kind)
    starts = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if starts:
        # gloo as well: checkpoints and barriers on the host must not wait for work on the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind.type == "cuda" else "gloo")
    try:
        yield current_world(), kind
    finally:
        if starts:
            dist.destroy_process_group()


def current_world() -> World:
    """The world of the running process group, a world of one without a group or `alone`."""
    if _is_alone or not dist.is_initialized():
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def alone() -> Generator[None]:
    """Inside, this process is a world of its own: what it does alone (a plan, a measurement) waits for no other."""
    global _is_alone  # noqa: PLW0603 (a process group is global as well)
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def check_shared(directory: Path, world: World) -> None:
    """Make sure that all processes see one directory: nodes have to share a file system.

    Args:
        directory: made by the main process where there is none.
        world: every process of it calls this.

    Raises:
        ValueError: in every process, unless all see it.
    """
    if world.size == 1:
        return
    mark = directory / f".seen-by-{world.size}"
    if world.is_main:
        directory.mkdir(parents=True, exist_ok=True)
        mark.touch()
    # nobody looks before the mark is there
    world.barrier()
    seeing = round(world.size * world.mean([float(mark.exists())], torch.device("cpu"))[0])
    if world.is_main:
        mark.unlink()
    if seeing < world.size:
        raise ValueError(
            f"expected {directory} on a file system that all nodes share, got {seeing} of {world.size} processes that "
            "see it; choose another --out"
        )


class ObjectiveModule(nn.Module):
    """A model and its objective as one module, whose forward is `objective(model, batch, step, generator)`.

    Args:
        model: its parameters are this module's, under "model.".
        objective: exchanged from stage to stage, see `plait.training.stages.Objective`.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = [objective]  # in a list: its own state (a momentum twin) is none of DDP's business

    def forward(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The objective's (loss, metrics)."""
        return self.objective[0](self.model, batch, step, generator)


def distributed(module: ObjectiveModule, world: World) -> nn.Module:
    """`module` under DDP, where gradients are means over processes.

    Args:
        module: the model with its objective.
        world: of one: nothing is wrapped.

    Returns:
        `module` itself in a world of one or when it is sharded, else DDP around it.
    """
    if world.size == 1 or isinstance(module, FSDPModule):
        return module
    accepted = inspect.signature(DistributedDataParallel.__init__).parameters
    # name by version
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
    # ranks with other modalities leave other parameters without a gradient
    how: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
    return DistributedDataParallel(module, **how)


@contextmanager
def without_gradient_sync(module: nn.Module, active: bool) -> Generator[None]:
    """Keep gradients local while active (all but the last micro batch of an accumulated step).

    Args:
        module: from `distributed`; one process alone has nothing to keep back.
        active: False lets the backward pass exchange gradients.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not active)
        yield
    elif active and isinstance(module, DistributedDataParallel):
        with cast("Any", module).no_sync():
            yield
    else:
        yield


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """All processes' rows, without gradient, and where this process's rows start among them.

    As in ONE-PEACE, every process learns from its own rows alone; the mean of the gradients over processes,
    which DDP
    and FSDP take, is then the gradient of one large batch: no further factor.

    Args:
        x: (batch, ...), the same shape everywhere.

    Returns:
        (world * batch, ...) and rank * batch.

    Source:
        ONE-PEACE (arXiv 2305.11172); specification one_peace.

    Example:
        >>> rows, start = gather_rows(torch.ones(3, 8))
        >>> rows.shape, start  # in one process
        (torch.Size([3, 8]), 0)
    """
    world, x = current_world(), x.detach().contiguous()
    if world.size == 1:
        return x, 0
    gathered = torch.empty(world.size * len(x), *x.shape[1:], dtype=x.dtype, device=x.device)
    _ALL_GATHER(gathered, x)
    return gathered, world.rank * len(x)


def chunk_of(batch: int) -> int:
    """Rows of contrastive logits to hold at a time, so that their memory does not grow with the number of processes.

    A chunk of batch / world rows against world * batch columns has batch ** 2 numbers.

    Args:
        batch: rows of this process.

    Returns:
        At least 1.
    """
    return max(1, batch // current_world().size)


def shard(module: ObjectiveModule, world: World, device: torch.device, dtype: torch.dtype) -> None:
    """Spread the model inside `module` over all processes, in place; its names stay (FSDP2).

    Args:
        module: holds values in process 0; may be on the meta device in all others.
        world: every process of it calls this.
        device: where the parts go.
        dtype: of the gathered weights of layers and of matrix products; parts, gradients and reductions stay in
            float32.

    Raises:
        ValueError: for torch older than 2.13, and for a model with tied parameters, which two units cannot share.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ValueError(f"expected torch 2.13 or newer for --parallel fsdp, got {torch.__version__}; use ddp")
    model = module.model
    if len(dict(model.named_parameters())) != len(dict(model.named_parameters(remove_duplicate=False))):
        raise ValueError("expected a model without tied parameters for --parallel fsdp; use ddp")

    def tensors() -> dict[str, Tensor]:
        """Parameters and all buffers, also those that no checkpoint holds."""
        return dict(model.named_parameters()) | dict(model.named_buffers())

    values = {name: tensor.detach().clone() for name, tensor in tensors().items()} if world.is_main else {}
    mesh = init_device_mesh(device.type, (world.size,))
    # single numbers (a temperature) cannot be cut and stay whole, see `sync_whole_gradients`
    whole = {p for p in model.parameters() if p.ndim == 0}
    policy = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, cast_forward_inputs=False)
    for block in blocks_of(model).values():
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
    # inner modules first: a unit takes all parameters below it that are in no unit yet
    for group in reversed(groups_of(model).values()):
        fully_shard(group, mesh=mesh, ignored_params=whole)
    root = fully_shard(module, mesh=mesh, ignored_params=whole)
    root.set_reduce_scatter_unused_params(True)  # else processes with other modalities wait for one another
    # fully_shard leaves the parts without memory where the model was on the meta device
    model.to_empty(device=device)
    with torch.no_grad():  # one tensor at a time: no process ever holds the whole model
        for name, tensor in tensors().items():
            if values:
                full = values.pop(name).to(device)
            else:
                full = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, DTensor):
                part = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=0)
                tensor.to_local().copy_(part.to_local())
            else:
                full = full.contiguous()
                dist.broadcast(full, src=0)
                tensor.copy_(full)


def sync_whole_gradients(parameters: list[nn.Parameter], world: World) -> None:
    """Mean over processes of the gradients of parameters that FSDP leaves whole, in place.

    Args:
        parameters: those that train; spread ones are passed over, as FSDP reduces them.
        world: every process of it calls this.
    """
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            continue
        if parameter.grad is None:
            # a process whose batch did not touch it takes part with zeros, or the others would wait for ever
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world.size


def gathered_state(model: nn.Module, world: World) -> dict[str, Tensor]:
    """All parameters and persistent buffers, whole and on the CPU, in process 0; empty elsewhere. All must call it.

    Args:
        model: spread by `shard`.
        world: the processes that hold it.

    Returns:
        Name -> tensor, in process 0.
    """
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if world.is_main:
            state[name] = full.detach().cpu()
    return state


def hollow(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters have shapes alone; buffers, which no state dict may hold, are copied.

    Args:
        model: stays as it is.

    Returns:
        A copy with parameters on the meta device, which takes values by `load_state_dict(assign=True)`.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def shapes_of(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes on the meta device: names and shapes, no memory for weights.

    Args:
        build: () -> model. One that makes fresh heads beside what it reads needs values and is run as it is.

    Returns:
        The model, on the meta device where that was possible.
    """
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:
        return build()


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by name, outermost only: what is recomputed, compiled, sharded and given LoRA.

    Args:
        model: one of transformers lists its layer classes in `_no_split_modules`. A model without such a list
            gives the elements of its lists of modules of one class, two or more of them.

    Returns:
        Name -> layer, in the order of the model.

    Example:
        >>> model = nn.ModuleDict({"trunk": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
        >>> list(blocks_of(model))
        ['trunk.0', 'trunk.1']
    """

    def repeats(module: nn.Module) -> Any:
        return isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(one) for one in module}) == 1

    listed = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    found: dict[str, nn.Module] = {}
    repeated = {f"{name}.{i}".lstrip(".") for name, m in model.named_modules() if repeats(m) for i in range(len(m))}
    for name, module in model.named_modules():
        is_layer = type(module).__name__ in listed if listed else name in repeated
        if is_layer and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def groups_of(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> the module whose list holds layers: a vision tower, an abstractor, a trunk."""
    # two names up: "vision.layers.3" is in the list "vision.layers", which belongs to "vision"
    names = dict.fromkeys(name.rpartition(".")[0].rpartition(".")[0] for name in blocks_of(model))
    return {name: model.get_submodule(name) for name in names if name}


@contextmanager
def recomputed(model: nn.Module, every: int) -> Generator[None]:
    """Keep only the inputs of every `every`-th layer and compute its inside again in the backward pass, as a context.

    Gradients stay what they are: random draws inside a layer are repeated. 1 saves most memory and costs about
    a third more computation, 2 half of both.

    Args:
        model: its layers are changed while the context lasts.
        every: 1 for all layers, n for every n-th, 0 for none.

    Source:
        arXiv 1604.06174.
    """
    # `every or 1`: a step of 0 in a slice is an error, even where the slice is not used
    chosen = list(blocks_of(model).values())[:: every or 1] if every else []
    for block in chosen:
        # names of parameters stay
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in chosen:
            # the instance attribute goes, and the method of the class shows again
            del block.forward


@contextmanager
def compiled(model: nn.Module, backend: str | None) -> Generator[None]:
    """Compile every layer by itself, so that equal layers share the work, as a context.

    Args:
        model: its layers are changed while the context lasts.
        backend: a torch backend such as inductor; None for none.

    Raises:
        ValueError: for a backend torch does not know.
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
            # torch has no public way to undo `Module.compile`
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


def is_quantised(module: nn.Module) -> bool:
    """Whether the weight of this layer is held in few bits, by torchao or bitsandbytes."""
    weight = module._parameters.get("weight")
    if weight is None or isinstance(weight, DTensor):
        return False
    # bitsandbytes makes a subclass of Parameter, torchao a Parameter around a subclass of Tensor
    return type(weight) is not nn.Parameter or type(weight.data) is not Tensor


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


def size_of(parameter: Tensor) -> tuple[int, int]:
    """Numbers that a parameter stands for, and the bytes in which it is held: fewer than it says where quantised.

    Args:
        parameter: plain, of bitsandbytes or of torchao.

    Returns:
        (numbers, bytes), the scales of quantised blocks counted among the bytes.
    """
    # of bitsandbytes, whose four bits lie two in a byte
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return int(torch.Size(state.shape).numel()), parameter.nbytes + state.absmax.nbytes
    flatten = getattr(parameter, "__tensor_flatten__", None)  # of torchao
    if flatten is None or isinstance(parameter, DTensor):
        return parameter.numel(), parameter.nbytes
    parts = [getattr(parameter, name) for name in flatten()[0]]
    return parameter.numel(), sum(part.nbytes for part in parts if isinstance(part, Tensor))


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """`batch` with `function` applied to every tensor in its dicts, lists and tuples.

    Args:
        batch: any nest of them; everything else, named tuples included, stays as it is.
        function: tensor -> tensor.

    Example:
        >>> map_tensors({"x": torch.ones(2), "names": ["a"]}, lambda x: 2 * x)
        {'x': tensor([2., 2.]), 'names': ['a']}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def seed_everything(*key: int) -> int:
    """Seed the global generators of Python, numpy and torch from whole numbers.

    Args:
        key: any number of them, such as seed, stage and step; each combination is a stream of its own.

    Returns:
        A further seed, for a `torch.Generator`.
    """
    first, second, third, fourth = (int(word) for word in np.random.SeedSequence(key).generate_state(4))
    random.seed(first)
    np.random.seed(second)
    # torch.manual_seed also formats a stack trace per absent device type
    torch.default_generator.manual_seed(third)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(third)
    return fourth


@contextmanager
def stop_signals() -> Generator[list[signal.Signals]]:
    """Collect SIGTERM and Ctrl-C instead of dying of them, as a context; the second Ctrl-C raises KeyboardInterrupt.

    Returns:
        The list of signals seen so far, which grows. Outside of the main thread it stays empty.
    """
    seen: list[signal.Signals] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield seen  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
