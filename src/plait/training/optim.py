"""The published optimiser and its parameter groups: named parameters -> groups with decay and rate -> AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn


class AdamW(torch.optim.Optimizer):
    """AdamW as ONE-PEACE was trained with: weights decay before the step and `eps` meets the uncorrected variance.

        p <- p * (1 - lr * wd)
        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

    `torch.optim.AdamW` adds eps to the corrected square root instead. A group's `lr_scale` is kept for schedules,
    which set its `lr`. Source: fairseq's Adam; ONE-PEACE, section 6.5 of its released layout.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"expected lr, eps, weight_decay >= 0 and betas in [0, 1), got {lr}, {eps}, {weight_decay}, {betas}"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; `closure` computes the loss again where given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group, [p for p in group["params"] if p.grad is not None])
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if not params:
            return
        states = [self._state(p) for p in params]
        grads = [p.grad.to(s["exp_avg"].dtype) for p, s in zip(params, states, strict=True) if p.grad is not None]
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        (beta1, beta2), lr = group["betas"], group["lr"]
        torch._foreach_add_([s["step"] for s in states], 1)
        torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1.0 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        steps = [s["step"].item() for s in states]  # on the CPU: no synchronisation
        sizes = [-lr * math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t) for t in steps]
        torch._foreach_addcdiv_(params, means, roots, sizes)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    no_decay: Callable[[str, Tensor], bool] | None = None,
    layer_id: Callable[[str], int] | None = None,
    num_layers: int = 0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of trainable parameters with one weight decay and one learning-rate scale each.

    no_decay: `(name, parameter)` -> True where weight decay is off; None: parameters of at most one dimension.
    layer_id: name -> depth from 0 (inputs) to num_layers + 1 (heads); scale = layer_decay ** (num_layers + 1 - id).

    Returns dicts with `params`, `names`, `weight_decay` and `lr_scale`, in the order in which they are first met.
    Source: layer-wise decay of BEiT; ONE-PEACE, section 6.5 of its released layout.
    """
    exempt = no_decay or (lambda name, parameter: parameter.ndim <= 1)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decay = 0.0 if exempt(name, parameter) else weight_decay
        depth = num_layers + 1 if layer_id is None else layer_id(name)
        scale = layer_decay ** (num_layers + 1 - depth)
        empty = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        group = groups.setdefault((decay, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
