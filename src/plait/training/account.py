"""What a step costs before it is taken: FLOPs and the bytes the backward pass keeps, counted on fake tensors.

stage -> one micro batch -> model with fake weights (shapes without memory) -> objective -> FlopCounter, saved tensors

The batch's whole numbers and masks stay real, so an objective that looks at them (lengths, masks, identities) runs as
it does in training; everything of floating point has a shape and no values.
"""

from __future__ import annotations

import resource
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from plait.training.parallel import ObjectiveModule, alone, blocks_of, in_full_precision, plain, recomputed
from plait.training.stages import Batch, Source, Stage, freeze

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "V100": 125.0,
}
"""Dense half-precision tensor-core throughput by a part of the device's name (vendor data sheets; H100: SXM)."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step asks of one process.

    Attributes:
        flops: floating-point operations of all micro batches, forward and backward.
        activations: bytes that one micro batch keeps for the backward pass, weights aside.
    """

    flops: int
    activations: int


def step_cost(
    model: nn.Module,
    stage: Stage,
    source: Source,
    step: int,
    *,
    dtype: torch.dtype = torch.float32,
    processes: int = 1,
    recompute: int = 0,
) -> StepCost:
    """The cost of one step of a stage, counted on shapes: no weight is read and nothing is computed with.

    Args:
        model: may be on the meta device. It keeps its values; `requires_grad` is set as the stage asks.
        stage, source: what is trained, and the source that `stage.batches()` gives.
        step: number within the stage, from 0; objectives of several kinds cost differently from step to step.
        dtype: of matrix products under autocast, which decides how many bytes an activation takes.
        processes: how many share the global batch.
        recompute: as `Options.recompute`: 0 keeps all activations, n drops those inside every n-th layer.

    Returns:
        `StepCost` of one process.

    Raises:
        ValueError: when the objective looks at values of floating point, which do not exist here.

    Example:
        >>> cost = step_cost(model, stage, stage.batches(), 0)
        >>> cost.flops, cost.activations
    """
    size = stage.batch_size // (processes * stage.accumulation)
    batch = source.load([int(row) for row in source.rows(0, step, stage.batch_size)][:size], np.random.default_rng(0))
    freeze(model, stage.trainable)
    with in_full_precision(model):  # a quantised weight has no shape that a product could be counted by
        return _counted(model, stage, batch, step, dtype, recompute)


def _counted(model: nn.Module, stage: Stage, batch: Batch, step: int, dtype: torch.dtype, recompute: int) -> StepCost:
    """One forward and backward pass on fake weights; `flops` grow with accumulation, `activations` do not."""
    whole, fake = ObjectiveModule(model, stage.objective), FakeTensorMode(allow_non_fake_inputs=True)
    # parameters and buffers go in by name, so the model itself is never changed
    state = {name: _fake(value, fake) for name, value in [*whole.named_parameters(), *whole.named_buffers()]}
    kept, counter = _Kept(state.values()), FlopCounterMode(display=False)
    with ExitStack() as stack:
        stack.enter_context(alone())  # no process waits for another's shapes
        stack.enter_context(plain(model))
        stack.enter_context(recomputed(model, recompute))
        # a recomputed layer saves nothing inside, so its inputs are counted where it is entered
        for block in list(blocks_of(model).values())[:: recompute or 1] if recompute else []:
            stack.callback(block.register_forward_pre_hook(kept.inputs, with_kwargs=True).remove)
        for context in (_Mixed(fake), counter, saved_tensors_hooks(kept.pack, lambda x: x)):
            stack.enter_context(context)
        batch = tree_map_only(Tensor, lambda x: _fake(x, fake) if x.is_floating_point() else x, batch)
        # autocast goes by the device of the tensors, and fake ones say that they are on the CPU
        stack.enter_context(torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext())
        try:
            loss, _ = functional_call(whole, state, (batch, step, torch.Generator()))
            # recomputed layers save their inside for a moment of the backward pass, which is not kept here
            kept.is_open = False
            loss.backward()
        # a fake tensor that is asked for its value raises one or the other, by the operator
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"expected the objective of stage {stage.name!r} to run without values, got: "
                f"{' '.join(str(error).split())[:200]}; read no floating-point value inside it"
            ) from error
    return StepCost(counter.get_total_flops() * stage.accumulation, kept.bytes)


def mean_flops(model: nn.Module, stage: Stage, source: Source, **how: Any) -> float:
    """FLOPs of a step in one process, the mean over the stage's `period`.

    Args:
        model, stage, source: as in `step_cost`.
        how: the other options of `step_cost`.

    Returns:
        The first kind of step and `period - 1` of the other kind, averaged.

    Raises:
        ValueError: as `step_cost`.
    """
    first, other = (step_cost(model, stage, source, step, **how).flops for step in (0, min(1, stage.period - 1)))
    return (first + (stage.period - 1) * other) / stage.period


def mean_seconds(
    model: nn.Module, stage: Stage, device: torch.device, dtype: torch.dtype, processes: int
) -> float | None:
    """Seconds a step would take at the device's peak: what model FLOPs utilisation (MFU) is measured against.

    Args:
        model, stage: as in `step_cost`.
        device: where the run computes; only GPUs of `PEAK_TFLOPS` have a known peak.
        dtype: of matrix products; float32 has no known peak: the table is of half precision.
        processes: how many share a step.

    Returns:
        Seconds, or None where the peak is unknown or the step cannot be counted (which is said on stderr).
    """
    peak = peak_flops(device, dtype)
    if peak is None:
        return None
    try:
        return mean_flops(model, stage, stage.batches(), dtype=dtype, processes=processes) / peak
    # a figure that is nice to have must not end a run
    except ValueError as error:
        print(f"plait: MFU is not shown: {error}", file=sys.stderr)
        return None


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Matrix-product FLOPs per second of a device by its data sheet.

    Returns:
        None for a CPU, for float32, and for a GPU that `PEAK_TFLOPS` does not name.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    # the first part that fits wins: "L40S" has to stand before "L4"
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    """Most memory in use so far, in GiB: of the GPU by torch's allocator, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # getrusage counts bytes on macOS and KiB on Linux
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class _Kept:
    """Sums the bytes of storages saved for the backward pass, each once, without weights."""

    def __init__(self, weights: Any) -> None:
        self.bytes = 0
        self.is_open = True
        # views share a storage, so storages are counted, and weights count as seen from the start
        self._seen = {x.untyped_storage()._cdata: x.untyped_storage() for x in weights}

    def pack(self, x: Tensor) -> Tensor:
        """Hook of autograd: count the storage of a saved tensor once, and hand the tensor back."""
        storage = x.untyped_storage()
        if self.is_open and storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # kept, so that its number is not given to another
            self.bytes += storage.nbytes()
        return x

    def inputs(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-forward hook of a recomputed layer: count its inputs, which are all that it keeps."""
        tree_map_only(Tensor, self.pack, (args, kwargs))


class _Mixed(TorchDispatchMode):
    """Calls with a fake tensor among the arguments run on shapes, all others on values."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one torch operator: on values where no argument is fake, else on shapes."""
        kwargs = kwargs or {}
        if not any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in _INDEXING:  # a real mask says how many it picks, a fake one could not
            args = tree_map_only(list, _masks_to_numbers, args, is_leaf=lambda x: isinstance(x, list))
        args, kwargs = tree_map_only(
            Tensor, lambda x: x if isinstance(x, FakeTensor) else _fake(x, self.fake), (args, kwargs)
        )
        with self.fake:
            return func(*args, **kwargs)


_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


def _masks_to_numbers(indices: list[Any]) -> list[Any]:
    """Boolean masks among the indices as the numbers of what they pick, as torch itself would expand them."""
    expanded: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        expanded += index.nonzero().unbind(1) if is_mask else [index]
    return expanded


def _fake(x: Tensor, mode: FakeTensorMode) -> Tensor:
    """Shape, strides and dtype of `x` as a tensor of the CPU without values; a leaf that trains where `x` does."""
    empty = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return FakeTensor(mode, empty, torch.device("cpu")).requires_grad_(x.requires_grad)
