"""Inline SVG: curves of a run and the map of a vector space. Colours are CSS variables, so that both themes work.

rows of metrics -> `thin` -> `line_chart` -> `panel`;  vectors in a plane -> `space_map`;  `braid`, the ornament
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10, pi
from typing import Any

import numpy as np

STRANDS = {"text": "var(--text)", "image": "var(--image)", "audio": "var(--audio)"}
"""One colour per modality, everywhere on the page."""

_LINE_COLOURS = ("var(--ink)", "var(--image)", "var(--text)", "var(--audio)", "var(--soft)", "var(--good)")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 270, 44, 168, 12, 28
_MAX_POINTS = 160

Series = Sequence[tuple[float, float]]


def line_chart(lines: Mapping[str, Sequence[Series]], x_name: str) -> str:
    """Curves over steps as SVG. The first seed is drawn strong, the others thin.

    Args:
        lines: name -> one series of (x, y) per seed; values that are not finite are left out.
        x_name: what x counts, in words.

    Returns:
        An empty text where there is nothing to draw.
    """
    lines = {name: [thin(one) for one in seeds if one] for name, seeds in lines.items()}
    lines = {name: seeds for name, seeds in lines.items() if seeds}
    points = [point for seeds in lines.values() for one in seeds for point in one]
    if not points:
        return ""
    # 1 where all is at step 0: no division by zero
    x_max = max(x for x, _ in points) or 1
    # losses are read from zero: a curve cut off below looks steeper than it is
    y_min, y_max = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    y_max = y_max if y_max > y_min else y_min + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / x_max
        return across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (y - y_min) / (y_max - y_min)

    parts = [_axes(x_max, y_min, y_max, x_name, at)]
    labels = []
    for number, (name, seeds) in enumerate(lines.items()):
        colour = _LINE_COLOURS[number % len(_LINE_COLOURS)]
        for seed, one in enumerate(seeds):
            path = "M" + "L".join("{:.1f} {:.1f}".format(*at(x, y)) for x, y in one)
            style = f'stroke="{colour}" stroke-width="{2 if seed == 0 else 1}" opacity="{1 if seed == 0 else 0.35}"'
            parts.append(f'<path d="{path}" fill="none" {style} stroke-linejoin="round"/>')
        labels.append((at(*seeds[0][-1])[1], name, seeds[0][-1][1], colour))
    parts += _end_labels(labels)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="curves">{"".join(parts)}</svg>'


def panel(title: str, notes: Sequence[str], chart: str) -> str:
    """A chart in a frame, as HTML.

    Args:
        title, notes: plain text.
        chart: HTML.
    """
    words = f"<b>{escape(title)}</b> {escape(' · '.join(notes))}"
    return f'<figure class="panel"><figcaption>{words}</figcaption>{chart}</figure>'


def thin(series: Series) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points, so that a noisy curve stays readable: means over equal stretches.

    Args:
        series: (x, y) in order; values that are not finite are left out.

    Returns:
        Pairs whose x is the end of a stretch and whose y is its mean.
    """
    finite = np.array([(x, y) for x, y in series if np.isfinite(y)], dtype=np.float64)
    if len(finite) <= _MAX_POINTS:
        return [(float(x), float(y)) for x, y in finite]
    return [(float(x[-1]), float(y.mean())) for x, y in (part.T for part in np.array_split(finite, _MAX_POINTS))]


def _axes(x_max: float, y_min: float, y_max: float, x_name: str, at: Any) -> str:
    """Grid lines and numbers; at: (x, y) of the data -> place in the drawing."""
    parts = []
    for y in ticks(y_min, y_max):
        left, height = at(0, y)
        right = at(x_max, y)[0]
        parts.append(f'<path d="M{left:.1f} {height:.1f}H{right:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(0, x_max):
        across, base = at(x, y_min)
        words = f"{x:g} {x_name}" if x == 0 else f"{x:,.0f}"
        anchor = "start" if x == 0 else "middle"
        parts.append(f'<text x="{across:.1f}" y="{base + 20:.1f}" text-anchor="{anchor}">{words}</text>')
    return "".join(parts)


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between low and high.

    Args:
        low, high: low is smaller.

    Example:
        >>> ticks(0, 1000)
        [0, 200, 400, 600, 800, 1000]
    """
    step = 10 ** floor(log10((high - low) / 2))
    while (high - low) / step > 5:
        # 1, 2, 5, 10, 20, 50 ...: from a 2 to the next 5 it is 2.5
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    first = -floor(-low / step)
    # 1e-10: 0.1 + 0.2 is written as 0.3
    return [round(i * step, 10) for i in range(first, floor(high / step) + 1)]


def _end_labels(labels: list[tuple[float, str, float, str]]) -> list[str]:
    """Names at the right end of their curves, pushed apart where they would touch.

    labels: (height, name, last value, colour).
    """
    parts, below = [], -100.0
    for height, name, value, colour in sorted(labels):
        # 15 units of height take a line of text
        below = max(height + 4, below + 15)
        words = f'{escape(name)} <tspan class="dim">{value:.3g}</tspan>'
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{below:.1f}" class="end" style="fill:{colour}">{words}</text>'
        )
    return parts


def space_map(
    points: Mapping[str, Sequence[Sequence[float]]], labels: Mapping[str, Sequence[str]], names: Mapping[str, str]
) -> str:
    """Vectors in the plane of their two leading principal axes, one colour per modality, as SVG.

    A thin line ties each audio's mean to its image.

    Args:
        points: modality -> n pairs (x, y).
        labels: modality -> n concepts.
        names: concept -> words for the tooltip.
    """
    size, margin = 640, 16
    everything = np.concatenate([np.asarray(points[m], dtype=np.float64) for m in points])
    low, span = everything.min(axis=0), np.maximum(np.ptp(everything, axis=0), 1e-9)
    # as tall as the cloud of points is, but never a stripe or a tower
    height = int(min(430, max(300, size * span[1] / span[0])))
    place = margin + (everything - low) / span * (np.array([size, height]) - 2 * margin)
    starts = np.cumsum([0, *(len(points[m]) for m in points)])
    spots = {m: place[a:b] for m, a, b in zip(points, starts, starts[1:])}
    groups = []
    for modality, where in spots.items():
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3">'
            f"<title>{modality}: {escape(names.get(label, label))}</title></circle>"
            for (x, y), label in zip(where, labels[modality])
        )
        groups.append(f'<g fill="{STRANDS[modality]}" fill-opacity=".6">{dots}</g>')
    return (
        f'<svg class="map" viewBox="0 0 {size} {height}" role="img" aria-label="vectors of all modalities in a plane">'
        f"{_ties(spots, labels)}{''.join(groups)}</svg>"
    )


def _ties(spots: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]]) -> str:
    """Lines from the mean of each sound's clips to the first drawing of the same concept."""
    if "audio" not in spots or "image" not in spots:
        return ""
    sounds = np.asarray(labels["audio"])
    lines = []
    for label in sorted(set(labels["audio"]) & set(labels["image"])):
        (x, y), (u, v) = (
            spots["audio"][sounds == label].mean(axis=0),
            spots["image"][list(labels["image"]).index(label)],
        )
        lines.append(f"M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}")
    return f'<path d="{"".join(lines)}" stroke="var(--soft)" stroke-opacity=".45" fill="none"/>'


def gap_numbers(
    vectors: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]]
) -> list[tuple[str, float, float]]:
    """How far modalities lie apart: mean cosines of matching concepts and of others.

    Args:
        vectors: modality -> (n, dim) of unit length.
        labels: modality -> n concepts.

    Returns:
        (pair of modalities, matching, others) for every pair that has both.
    """
    names = list(vectors)
    rows = []
    for i, left in enumerate(names):
        for right in names[i + 1 :]:
            cosine = vectors[left].astype(np.float32) @ vectors[right].astype(np.float32).T
            same = np.asarray(labels[left], str)[:, None] == np.asarray(labels[right], str)[None, :]
            if same.any() and not same.all():
                rows.append((f"{left} and {right}", float(cosine[same].mean()), float(cosine[~same].mean())))
    return rows


def braid(width: int = 1200, height: int = 96, turns: int = 5) -> str:
    """Three strands, one per modality, that weave and stay distinct: the page's ornament and the library's name.

    Strand s follows sin(a + 2 pi s / 3) and lies above where sin of twice that angle is positive: where two
    strands cross, their signs differ, so one pass of lower and one of upper arcs draws the weave.

    Args:
        width, height: of the drawing.
        turns: periods over its width.
    """
    layers: dict[bool, list[str]] = {False: [], True: []}
    for number, colour in enumerate(STRANDS.values()):
        for quarter in range(-2, 4 * turns + 4):
            # each arc reaches 0.06 beyond its ends, so that no hairline shows between two of them
            angles = np.linspace(quarter, quarter + 1, 13) * pi / 2 + (-0.06 + 0.12 * np.linspace(0, 1, 13))
            x = width * (angles - 2 * pi * number / 3) / (2 * pi * turns)
            y = height / 2 + 0.32 * height * np.sin(angles)
            path = "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in zip(x, y))
            outline = f'<path d="{path}" stroke="var(--page)" stroke-width="18"/>' if quarter % 2 == 0 else ""
            layers[quarter % 2 == 0].append(f'{outline}<path d="{path}" stroke="{colour}" stroke-width="11"/>')
    return (
        f'<svg class="braid" viewBox="0 0 {width} {height}" preserveAspectRatio="xMidYMid slice" fill="none" '
        f'aria-hidden="true">{"".join(layers[False] + layers[True])}</svg>'
    )
