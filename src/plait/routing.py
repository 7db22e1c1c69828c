"""Ways: which sub-modules a modality shares with others, and which it keeps for itself.

    tokens of several modalities -> Route (who owns which token) -> PerModality (whose weights it passes)

`Route` owns tokens and is built once per batch on the host; `PerModality` owns weights, one copy of a sub-module per
way. A way is a named cell of a partition of the modalities: `{"text": ("text",), "visual": ("image", "video")}`.
At a call site `f(x)` is shared and `f(x, route)` is per modality (DESIGN section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from plait.types import MODALITIES

Ways = Mapping[str, Sequence[str]]
"""Way name -> the modalities that share its weights."""

Span = tuple[str, int, int]
"""Way, first token, one past the last token, in the order in which the route lays tokens out."""


@dataclass(frozen=True, eq=False)
class Route:
    """The modality of every token of a batch: built once on the host, read by every layer.

    modalities, lengths: the segments in layout order. A modality of length 0 still calls its way in
        training, on an empty slice, so that its gradients are 0 rather than None and every rank
        issues the same collectives.
    order, inverse: `(batch * seq,)` int64, present only where modalities interleave: `order` lays the
        flattened tokens out segment by segment, `inverse` puts them back. Without them segments lie
        along the sequence.

    Example:
        >>> route = Route.segments({"text": 33, "image": 197})
        >>> route.present
        ('text', 'image')
    """

    modalities: tuple[str, ...]
    lengths: tuple[int, ...]
    order: Tensor | None = None
    inverse: Tensor | None = None

    @classmethod
    def segments(cls, lengths: Mapping[str, int], listed: Sequence[str] = ()) -> Route:
        """Contiguous segments along the sequence, the same in every row (ONE-PEACE).

        Args:
            lengths: modality -> tokens, in layout order: `{"text": 33, "image": 197}`.
            listed: modalities to append with length 0 where `lengths` does not have them.
        """
        absent = tuple(m for m in listed if m not in lengths)
        return cls((*lengths, *absent), (*lengths.values(), *(0 for _ in absent)))

    @classmethod
    def interleaved(cls, modality_ids: Tensor, modalities: Sequence[str] = MODALITIES) -> Route:
        """Tokens of any order (mPLUG-Owl2: images spliced into text).

        Args:
            modality_ids: (batch, seq) integers, indices into `modalities`. Counting happens where
                the ids live: pass a host tensor, then move the route with `to`, so that no device is
                synchronised.
            modalities: the names, every one of them a segment, empty ones included.

        Raises:
            ValueError: for another shape or type, and for an id that no modality has.
        """
        if modality_ids.dim() != 2 or modality_ids.is_floating_point():
            raise ValueError(
                "expected integer modality ids (batch, seq), "
                f"got {modality_ids.dtype} of shape {tuple(modality_ids.shape)}"
            )
        flat = modality_ids.reshape(-1).long()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < len(modalities):
            raise ValueError(
                f"expected modality ids in [0, {len(modalities)}), got up to {int(flat.max())}; list every modality"
            )
        # stable: tokens of a modality keep their order, so the same batch always has the same layout
        order = torch.argsort(flat, stable=True)
        lengths = torch.bincount(flat, minlength=len(modalities)).tolist()
        return cls(tuple(modalities), tuple(lengths), order, torch.argsort(order))

    @classmethod
    def only(cls, modality: str) -> Route:
        """Every token belongs to `modality`, however many there are.

        One way is called and nothing is counted or moved: a decoding step, or a batch of text.
        """
        return cls((modality,), (0,))

    def grouped(self) -> Route:
        """The route of tokens that `order` laid out already, as `(1, batch * seq, dim)`: segments only.

        A decoder groups its tokens once and gives this route to its layers.
        """
        return Route(self.modalities, self.lengths)

    def to(self, device: torch.device | str) -> Route:
        """The same route with its index tensors on `device`; without any it is the route itself.

        Copied without waiting: nothing else of a route lives on a device.
        """
        if self.order is None or self.inverse is None:
            return self
        return Route(
            self.modalities,
            self.lengths,
            self.order.to(device, non_blocking=True),
            self.inverse.to(device, non_blocking=True),
        )

    @cached_property
    def present(self) -> tuple[str, ...]:
        """Modalities that own at least one token, in layout order.

        Read on the host: which ways a step calls never waits for a device.
        """
        return tuple(m for m, n in zip(self.modalities, self.lengths) if n)

    def spans(self, way_of: Mapping[str, str]) -> list[Span]:
        """Segments by way, neighbours of one way merged.

        Args:
            way_of: modality -> way.

        Returns:
            Spans in layout order. A way whose modalities are all empty has one empty span.

        Raises:
            ValueError: for a modality with tokens that has no way.
        """
        spans: list[Span] = []
        start = 0
        for modality, length in zip(self.modalities, self.lengths):
            way = way_of.get(modality)
            if way is None:
                if length:
                    raise _no_way(way_of, modality)
                continue
            if spans and spans[-1][0] == way:
                spans[-1] = (way, spans[-1][1], start + length)
            # one empty span is enough for a way to be called; a second would only cost a kernel
            elif length or all(way != span[0] for span in spans):
                spans.append((way, start, start + length))
            start += length
        return spans


class PerModality(nn.ModuleDict):
    """One copy of a sub-module per way; `module(x, route)` sends each token through its way's copy.

    State-dict keys carry the way: `k_proj.visual.weight`.

    Args:
        build: makes one copy; called once per way, so copies are drawn independently.
        ways: the partition. A modality may stand in one way only.

    Raises:
        ValueError: for a modality in two ways.

    Example:
        >>> ways = {"text": ("text",), "visual": ("image", "video")}
        >>> k_proj = PerModality(lambda: nn.Linear(8, 8), ways)
        >>> k_proj(torch.zeros(1, 5, 8), Route.segments({"text": 3, "image": 2})).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, build: Callable[[], nn.Module], ways: Ways) -> None:
        super().__init__({way: build() for way in ways})
        self.way_of = {modality: way for way, cell in ways.items() for modality in cell}
        if len(self.way_of) != sum(len(cell) for cell in ways.values()):
            raise ValueError(f"expected every modality in one way, got {dict(ways)}")

    def forward(self, x: Tensor, route: Route) -> Tensor:
        """Every token through the copy of its modality.

        Args:
            x: (batch, seq, dim); the sub-module must act on tokens independently.
            route: of these tokens.

        Returns:
            (batch, seq, any dim), tokens where they were.

        Raises:
            ValueError: for tokens of a modality that has no way.
        """
        if len(route.modalities) == 1:
            return self.of(route.modalities[0])(x)
        spans = route.spans(self.way_of)
        # in training empty spans stay: their weights then have a gradient of 0 on every rank
        if not self.training:
            spans = [span for span in spans if span[2] > span[1]]
        if len(spans) == 1:
            return self[spans[0][0]](x)
        if route.order is None or route.inverse is None:
            # A linear layer on a non-contiguous slice takes a slow path (5-6x in bf16 on CPU), so copy the segment.
            return torch.cat([self[way](x[:, start:stop].contiguous()) for way, start, stop in spans], dim=1)
        # one gather, one product per way, one write back: cheaper than every way on all tokens
        flat = x.reshape(-1, x.shape[-1]).index_select(0, route.order)
        return self.scattered(flat, route, route.order).unflatten(0, x.shape[:2])

    def scattered(self, grouped: Tensor, route: Route, order: Tensor) -> Tensor:
        """Grouped tokens, each through the copy of its modality and then to its place in the sequence.

        Args:
            grouped: (tokens, dim), segment by segment.
            route: of these tokens.
            order: (tokens,) the place of each, as `Route.order`.

        Returns:
            (tokens, any dim) in the order of the sequence.
        """
        spans = [span for span in route.spans(self.way_of) if self.training or span[2] > span[1]]
        parts = [(self[way](grouped[start:stop]), order[start:stop]) for way, start, stop in spans]
        # written once: joining the parts and gathering them would copy every token twice
        out = parts[0][0].new_empty(len(grouped), parts[0][0].shape[-1])
        for part, places in parts:
            out.index_copy_(0, places, part)
        return out

    def add_way(self, modality: str, module: nn.Module) -> None:
        """Give a modality that has none a way of its own; the other copies stay as they are.

        Raises:
            ValueError: for a modality that has one.
        """
        if modality in self.way_of or modality in self:
            raise ValueError(f"expected a modality without a way, got {modality!r}")
        self[modality] = module
        self.way_of[modality] = modality

    def of(self, modality: str) -> nn.Module:
        """The copy that `modality` passes: what a decoding step calls directly.

        Raises:
            ValueError: for a modality that has no way.
        """
        if modality not in self.way_of:
            raise _no_way(self.way_of, modality)
        return self[self.way_of[modality]]


def _no_way(way_of: Mapping[str, str], modality: str) -> ValueError:
    """The error for tokens that no way takes."""
    return ValueError(f"expected tokens of {sorted(way_of)}, got {modality!r}; give that modality a way")


def partition(modalities: Sequence[str], shared: bool = False) -> dict[str, tuple[str, ...]]:
    """The two common partitions: a way per modality, or one way for all of them.

    Args:
        modalities: their names.
        shared: whether all share one way, called `shared`.

    Example:
        >>> partition(("text", "image"))
        {'text': ('text',), 'image': ('image',)}
    """
    return {"shared": tuple(modalities)} if shared else {m: (m,) for m in modalities}
