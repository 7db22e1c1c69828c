"""State that an objective keeps between steps: a momentum twin, queues of its outputs, averaged weights.

`MomentumObjective` is a module, so that the loop finds what it holds and stores it in every checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from plait.training.stages import Batch, Metrics


class MomentumObjective(nn.Module):
    """An objective with state. The loop calls `begin` once a stage, `forward` at every micro batch, then `after`.

    What `begin` builds is stored with the checkpoint (parameters and buffers) and restored after `begin` on resume.
    Runs in one process and under DDP, where every process keeps the same copy; not under FSDP.
    """

    def begin(self, model: nn.Module) -> None:
        """Build the state for `model`, on its device; called when a stage begins and before a resumed one goes on."""

    def forward(self, model: nn.Module, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """(loss, metrics) as of any objective."""
        raise NotImplementedError

    def after(self, model: nn.Module, step: int) -> None:
        """Move the state on, after the optimiser's step."""


class Twin(nn.Module):
    """A slowly following copy: twin <- m twin + (1 - m) model, without gradients. `twin.module` is the copy.

    Floating-point buffers follow the same way, others are copied. Source: MoCo (arXiv 1911.05722), equation 2; mPLUG-2
    uses m = 0.995. The same object holds averaged weights (EMA) for evaluation.
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"expected a momentum in [0, 1), got {momentum}")
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One step towards `module`, which has the names of the copy."""
        mine, theirs = self.module.state_dict(), module.state_dict()
        for name, value in theirs.items():
            if value.is_floating_point():
                mine[name].lerp_(value.to(mine[name].dtype), 1 - self.momentum)
            else:
                mine[name].copy_(value)


class Queues(nn.Module):
    """Ring buffers of the last `size` rows of several features, all moved on together.

    dims: name -> width, 0 for a vector of integer identities, which starts at `empty_id` (no partner of anybody).
    Feature rows start as random unit vectors, as in ALBEF and mPLUG-2. `rows(name)`: (size, dim).
    """

    def __init__(self, size: int, dims: Mapping[str, int], empty_id: int = -100) -> None:
        super().__init__()
        self.size = size
        self.names = tuple(dims)
        for name, dim in dims.items():
            rows = torch.full((size,), empty_id) if dim == 0 else nn.functional.normalize(torch.randn(size, dim), dim=1)
            self.register_buffer(name, rows)
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def rows(self, name: str) -> Tensor:
        """All rows of one feature, (size, dim) or (size,)."""
        return self.get_buffer(name)

    @torch.no_grad()
    def push(self, **rows: Tensor) -> None:
        """Put the rows of all processes over the oldest ones; every feature gives as many, at most `size`.

        Gather them first (`plait.training.parallel.gather_rows`), so that all processes hold the same queue.
        """
        counts = {name: len(value) for name, value in rows.items()}
        if set(rows) != set(self.names) or len(set(counts.values())) != 1 or max(counts.values()) > self.size:
            raise ValueError(
                f"expected as many rows of each of {', '.join(self.names)}, up to {self.size}, got {counts}"
            )
        count = next(iter(counts.values()))
        place = self.get_buffer("place")
        where = (place + torch.arange(count, device=place.device)) % self.size
        for name, value in rows.items():
            kept = self.get_buffer(name)
            kept[where] = value.detach().to(kept.dtype)
        place.copy_((place + count) % self.size)


def twins(model: nn.Module, names: Sequence[str], momentum: float) -> nn.ModuleDict:
    """A `Twin` of each named submodule of `model`; keys are the names with dots as dashes."""
    return nn.ModuleDict({name.replace(".", "-"): Twin(model.get_submodule(name), momentum) for name in names})
