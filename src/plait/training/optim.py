"""The published optimiser and its parameter groups: named parameters -> groups with decay and rate -> AdamW.

per step: `set_learning_rate` -> loss x `LossScale.factor` -> gradients -> `clip_gradients` -> `AdamW.step`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.training.stages import Stage


class AdamW(torch.optim.Optimizer):
    """AdamW as ONE-PEACE was trained with: weights decay before the step and `eps` meets the uncorrected variance.

        p <- p * (1 - lr * wd)
        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

    `torch.optim.AdamW` adds eps to the corrected square root instead.

    Args:
        params: parameters or groups, as torch takes them. A group's `lr_scale` is kept for schedules, which set
            its `lr`.
        lr: rate of the groups that have none of their own.
        betas: (b1, b2), each in [0, 1).
        eps: 1e-8 or the like, at least 0.
        weight_decay: wd, at least 0.

    Raises:
        ValueError: for numbers out of these ranges.

    Source:
        fairseq's Adam; ONE-PEACE, section 6.5 of its released layout.

    Example:
        >>> optimizer = AdamW(parameter_groups(model.named_parameters(), weight_decay=0.05), lr=1e-4)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
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
        """One step of the parameters of a group that have a gradient, by fused operations over lists."""
        if not params:
            return
        for p in params:
            if not self.state[p]:
                # on the CPU, where reading it waits for no device
                self.state[p]["step"] = torch.zeros(())
                self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        states = [self.state[p] for p in params]
        means, squares = [local(s["exp_avg"]) for s in states], [local(s["exp_avg_sq"]) for s in states]
        grads = [local(p.grad).to(m.dtype) for p, m in zip(params, means, strict=True) if p.grad is not None]
        # every number is updated by itself: shards need no neighbours
        params = [local(p) for p in params]
        (beta1, beta2), lr = group["betas"], group["lr"]
        torch._foreach_add_([s["step"] for s in states], 1)
        torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1.0 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        steps = [s["step"].item() for s in states]
        # both corrections go into the step size, so eps meets the plain sqrt(v) as in fairseq
        sizes = [-lr * math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t) for t in steps]
        torch._foreach_addcdiv_(params, means, roots, sizes)


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

        lr_scale = layer_decay ** (num_layers + 1 - layer_id(name))

    Args:
        named_parameters: (name, parameter); frozen ones are left out.
        weight_decay: of every parameter that is not exempt.
        no_decay: `(name, parameter)` -> True where weight decay is off; None: parameters of at most one
            dimension.
        layer_id: name -> depth from 0 (inputs) to num_layers + 1 (heads); None: everything at the depth of
            heads.
        num_layers: of the trunk.
        layer_decay: 1.0 gives all layers the same rate.

    Returns:
        Dicts with `params`, `names`, `weight_decay` and `lr_scale`, in the order in which they are first met.

    Source:
        Layer-wise decay of BEiT; ONE-PEACE, section 6.5 of its released layout.

    Example:
        >>> [group["weight_decay"] for group in parameter_groups(nn.Linear(2, 2).named_parameters(), weight_decay=0.1)]
        [0.1, 0.0]
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


def adamw(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """The published AdamW over what the stage trains, grouped by decay and layer.

    Args:
        model: its parameters with `requires_grad` are taken.
        stage: gives rate, betas, eps, decay and the rules of groups.
    """
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=stage.weight_decay,
        no_decay=stage.no_decay,
        layer_id=stage.layer_id,
        num_layers=stage.num_layers,
        layer_decay=stage.layer_decay,
    )
    return AdamW(groups, stage.peak_lr, betas=stage.betas, eps=stage.eps, weight_decay=stage.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int, total: int) -> float:
    """Give every group the rate of a step, times its "lr_scale".

    Args:
        optimizer: its groups' `lr` is written.
        stage: gives schedule, peak, floor and warm-up.
        step, total: number within the stage from 0, and steps of the stage.

    Returns:
        The rate before the scales of groups.
    """
    lr = stage.schedule(step, total, peak=stage.peak_lr, floor=stage.floor, warmup=stage.warmup_steps(total))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


@dataclass(slots=True)
class LossScale:
    """The factor on a float16 loss that keeps small gradients above zero, by the rule of `torch.amp.GradScaler`.

    An overflow (a gradient that is not finite) halves it and skips the step; `interval` good steps in a row
    double it. The norm of the gradient is computed anyway and is the same in every process, sharded or not, so
    it decides.

    Attributes:
        is_on: False gives factor 1 and skips nothing.
        value, good_steps: the state, two numbers of the checkpoint.
        interval: good steps before it doubles, torch's 2000.
        smallest: 2 ** -14, the smallest normal number of float16.

    Source:
        arXiv 1710.03740, section 3.2.
    """

    is_on: bool
    value: float = 65536.0
    good_steps: int = 0
    interval: int = 2000
    smallest: float = 2.0**-14

    @property
    def factor(self) -> float:
        """What to multiply the loss with."""
        return self.value if self.is_on else 1.0

    def takes(self, gradient_norm: Tensor) -> bool:
        """Whether the step with this norm may be taken; moves the scale on. Waits for the device when on.

        When the scale has fallen to `smallest`, overflows are no longer forgiven: the step is taken and found
        out.
        gradient_norm: (), over all parameters and processes.
        """
        if not self.is_on or self.value <= self.smallest:
            return True
        if not math.isfinite(float(gradient_norm)):
            self.value, self.good_steps = self.value / 2, 0
            return False
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.value, self.good_steps = self.value * 2, 0
        return True


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, factor: float = 1.0) -> Tensor:
    """Divide gradients by `factor` and scale them down to norm `largest`, in place.

        g <- g / factor * min(1, largest / (|g| / factor + 1e-6))

    Args:
        parameters: those without a gradient are passed over.
        largest: Euclidean norm over all of them; 0 for no limit.
        factor: by which the loss was multiplied, see `LossScale`.

    Returns:
        The norm () before clipping, after the division. It runs over all shards where they are spread over
        processes.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    sharded = [g.to_local() for g in grads if isinstance(g, DTensor)]
    whole = [g for g in grads if not isinstance(g, DTensor)]
    norm = nn.utils.get_total_norm(whole) if whole or not sharded else torch.zeros((), device=sharded[0].device)
    if sharded:
        # squares add up over processes, norms do not; whole gradients are equal everywhere and count once
        squares = nn.utils.get_total_norm(sharded).square()
        dist.all_reduce(squares)
        norm = (norm.square() + squares).sqrt()
    norm = norm / factor
    # 1e-6 as in torch's `clip_grad_norm_`
    scale = torch.clamp(largest / (norm + 1e-6), max=1.0) / factor if largest else 1.0 / factor
    if grads and (largest or factor != 1.0):
        torch._foreach_mul_([*sharded, *whole], scale)
    return norm


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be spread over processes; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
