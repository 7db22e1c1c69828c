"""What a step costs before it is taken: FLOPs, and the bytes that it keeps and holds, counted on shapes.

stage -> one micro batch -> model with weights of shapes alone -> objective, backward -> FLOPs, saved and live bytes

The batch's whole numbers and masks stay real, so an objective that looks at them (lengths, masks, identities) runs as
it does in training; everything of floating point has a shape and no values.
"""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

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
        peak: bytes that are in use at once at most while it goes forward and backward: what it keeps, what passes,
            and the gradients; not the weights. What kernels use inside is not seen.
    """

    flops: int
    activations: int
    peak: int


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
    with in_full_precision(model):
        # a quantised weight has no shape that a product could be counted by
        return _counted(model, stage, batch, step, dtype, recompute)


def _counted(model: nn.Module, stage: Stage, batch: Batch, step: int, dtype: torch.dtype, recompute: int) -> StepCost:
    """One forward and backward pass on shapes; `flops` grow with accumulation, bytes do not."""
    whole, ledger = ObjectiveModule(model, stage.objective), _Ledger()
    # parameters and buffers go in by name, so the model itself is never changed
    state: dict[str, Any] = {
        name: ledger.shape_of(x) for name, x in [*whole.named_parameters(), *whole.named_buffers()]
    }
    ledger.leave_out(state.values())
    with ExitStack() as stack:
        stack.enter_context(alone())  # no process waits for another's shapes
        stack.enter_context(plain(model))
        stack.enter_context(recomputed(model, recompute))
        # a recomputed layer saves nothing inside, so its inputs are counted where it is entered
        for block in list(blocks_of(model).values())[:: recompute or 1] if recompute else []:
            stack.callback(block.register_forward_pre_hook(ledger.keep_inputs, with_kwargs=True).remove)
        stack.enter_context(saved_tensors_hooks(ledger.keep, lambda x: x))
        batch = tree_map_only(Tensor, lambda x: ledger.shape_of(x) if x.is_floating_point() else x, batch)
        # autocast goes by the device of the tensors, and shapes say that they are on the CPU
        stack.enter_context(torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext())
        try:
            loss, _ = functional_call(whole, state, (batch, step, torch.Generator()))
            # recomputed layers save their inside for a moment of the backward pass, which is not kept here
            ledger.is_open = False
            loss.backward()
        # a shape that is asked for its value raises one or the other, by the operator
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"expected the objective of stage {stage.name!r} to run without values, got: "
                f"{' '.join(str(error).split())[:200]}; read no floating-point value inside it"
            ) from error
    return StepCost(ledger.flops * stage.accumulation, ledger.kept, ledger.peak)


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


class _Ledger:
    """What the operators of one pass over shapes add up to.

    Attributes:
        flops: of all operators that torch knows to count.
        kept: bytes of storages that were saved for the backward pass, each once, without weights.
        live, peak: bytes in use now, and the most there were.
        is_open: whether what is saved is still counted.
    """

    def __init__(self) -> None:
        self.flops = self.kept = self.live = self.peak = 0
        self.is_open = True
        # views share a storage, so storages are counted; one is known by its address for as long as it lives
        self._known: set[int] = set()
        # of `_known`, those that were saved for the backward pass, and the weights
        self._kept: set[int] = set()
        # real tensors that were saved, held so that no address is given to another
        self._values: list[Any] = []
        # what was asked -> layouts of what came, and FLOPs
        self._answers: dict[str, tuple[Any, int]] = {}

    def shape_of(self, x: Tensor) -> _Shape:
        """Shape, strides and dtype of `x` without values; a leaf that trains where `x` does."""
        shape = self._wrap(_layout(x).empty())
        shape.requires_grad_(x.requires_grad)
        return shape

    def leave_out(self, weights: Iterable[_Shape]) -> None:
        """Begin at nothing: weights have an account of their own, and are not what is kept."""
        self._kept |= {x.bare.untyped_storage()._cdata for x in weights}
        self.live = self.peak = 0

    def keep(self, x: Tensor) -> Tensor:
        """Hook of autograd: count the storage of a saved tensor once, and hand the tensor back."""
        storage = (x.bare if isinstance(x, _Shape) else x).untyped_storage()
        if self.is_open and storage._cdata not in self._kept:
            self._kept.add(storage._cdata)
            self.kept += storage.nbytes()
            self._values += [] if isinstance(x, _Shape) else [storage]
        return x

    def keep_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-forward hook of a recomputed layer: count its inputs, which are all that it keeps."""
        tree_map_only(Tensor, self.keep, (args, kwargs))

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one torch operator on shapes alone, and enter it."""
        # an operator that writes in place gives back what it was given
        owners: dict[int, _Shape] = {}

        def given(x: Tensor) -> Tensor:
            if not isinstance(x, _Shape):
                return _layout(x).empty()
            owners[id(x.bare)] = x
            return x.bare

        if func in _INDEXING:  # a real mask says how many it picks, a shape could not
            args = _each(list, _masks_to_numbers, args)
        args, kwargs = _each(Tensor, given, args), {name: _each(Tensor, given, x) for name, x in kwargs.items()}
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        # layers repeat each other, and torch's rules for shapes are slower than looking up what they said before
        is_fresh = not func._schema.is_mutable and all(x.alias_info is None for x in func._schema.returns)
        asked = str((func, _each(Tensor, _layout, [args, [*kwargs.items()]]))) if is_fresh else ""
        if asked in self._answers:
            made, flops = self._answers[asked]
            out = _each(_Layout, _Layout.empty, made)
        else:
            out = func(*args, **kwargs)
            count = flop_registry.get(func.overloadpacket)
            flops = 0 if count is None else count(*args, **kwargs, out_val=out)
            took, gave = ({x.untyped_storage()._cdata for x in _tensors(y)} for y in ([args, [*kwargs.values()]], out))
            if asked and not took & gave:  # `_unsafe_view` shares what its schema says is new
                self._answers[asked] = _each(Tensor, _layout, out), flops
        self.flops += flops
        return _each(Tensor, lambda x: owners[id(x)] if id(x) in owners else self._wrap(x), out)

    def _wrap(self, bare: Tensor) -> _Shape:
        """A tensor of the meta device as one of the CPU; its storage lives until nobody holds it."""
        storage = bare.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return _Shape(bare, self)

    def _forget(self, address: int, nbytes: int) -> None:
        self._known.discard(address)
        self._kept.discard(address)
        self.live -= nbytes


class _Shape(Tensor):
    """A tensor that says it is on the CPU and has no values: `bare`, on the meta device, has its storage.

    Torch's own FakeTensor does the same and more (symbolic sizes, every device), at twenty times the cost a call.
    """

    bare: Tensor
    ledger: _Ledger

    @staticmethod
    def __new__(cls, bare: Tensor, ledger: _Ledger) -> _Shape:
        make: Any = Tensor._make_wrapper_subclass
        made = make(cls, bare.shape, bare.stride(), bare.storage_offset(), dtype=bare.dtype, device="cpu")
        made.bare, made.ledger = bare, ledger
        return made

    def __repr__(self) -> str:  # ty: ignore[incompatible-method-override]
        return f"shape {tuple(self.shape)} of {self.dtype}"

    @classmethod
    def __torch_dispatch__(  # ty: ignore[incompatible-method-override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Called for every operator that has a shape among its arguments, all others run on values."""
        kwargs = kwargs or {}
        ledger = next(x.ledger for x in _tensors([args, [*kwargs.values()]]) if isinstance(x, _Shape))
        return ledger.run(func, args, kwargs)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a tensor is without its values."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> Tensor:
        """A tensor of this layout without values."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


def _layout(x: Tensor) -> _Layout:
    return _Layout(x.shape, x.stride(), x.dtype)


def _each(kind: type, change: Callable[[Any], Any], values: Any) -> Any:
    """`change` of every value of a kind in nested lists and tuples."""
    if isinstance(values, kind):
        return change(values)
    return type(values)(_each(kind, change, x) for x in values) if isinstance(values, list | tuple) else values


def _tensors(values: Any) -> list[Tensor]:
    """All tensors in nested lists and tuples."""
    found: list[Tensor] = []
    _each(Tensor, found.append, values)
    return found


_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


def _masks_to_numbers(indices: list[Any]) -> list[Any]:
    """Boolean masks among the indices as the numbers of what they pick, as torch itself would expand them."""
    expanded: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, _Shape)
        expanded += index.nonzero().unbind(1) if is_mask else [index]
    return expanded
