"""How tasks were finetuned for their publications: one `Setting` each, listed by a family as `PUBLISHED`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a task was trained for a publication; a family's `PUBLISHED` is (task, medium) -> benchmark -> one of these.

    lr, floor, epochs, warmup, batch_size, betas, eps, weight_decay, layer_decay: of its stage; drop_path_rate: of the
    last layer; changes: fields of the configuration; size: side of its images as a factor of the model's;
    label_smoothing: of classes; backbone: rate of the backbone as a share of the head's.
    """

    lr: float
    epochs: float
    batch_size: int
    layer_decay: float = 1.0
    drop_path_rate: float | None = 0.0
    floor: float = 1e-6
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    changes: Mapping[str, Any] = field(default_factory=dict)
    size: float = 1.0
    label_smoothing: float = 0.0
    backbone: float = 1.0


UNPUBLISHED = Setting(lr=0.0, epochs=10, batch_size=16, drop_path_rate=None)
"""What rows of one's own are trained with where nothing is said; its rate is the family's."""


def setting_of(
    known: Mapping[tuple[str, str], Mapping[str, Setting]], family: str, task: str, medium: str, benchmark: str | None
) -> Setting:
    """The published setting of a task; of several the first, unless one is named.

    Raises:
        UsageError: listing what there is, where the family has published no such task, or not of this benchmark.
    """
    found = known.get((task, medium))
    if found is None:
        told = ", ".join(f"{one} of {of}" for one, of in known) or "none"
        raise UsageError(f"expected a task that {family} has a published setting of ({told}), got {task} of {medium}")
    if benchmark is not None and benchmark not in found:
        raise UsageError(f"expected a benchmark among {', '.join(found)} for {task} of {medium}, got {benchmark!r}")
    return found[benchmark or next(iter(found))]
