"""Contact sheets: a sound to play, the pictures it found, the right ones marked. Media become data URIs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
}
_BARS = 40


def data_uri(path: Path) -> str:
    """A media file as a data URI. ValueError for a type that browsers do not show."""
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"expected a picture or sound of {', '.join(_TYPES)}, got {path}; convert it for the report")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def player(path: Path, name: str, heading: str) -> str:
    """A round play button beside `heading` (HTML) and the clip's waveform; a plain <audio> where scripts are off."""
    return (
        f'<header class="player"><button type="button" aria-label="play {escape(name)}" hidden>'
        '<svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M8 5.5v13l11-6.5z"/>'
        '<path class="stop" d="M7.5 6h3.4v12H7.5zm5.6 0h3.4v12h-3.4z"/></svg></button>'
        f"<h3>{heading}</h3>{waveform(path)}"
        f'<audio controls preload="none" src="{data_uri(path)}"></audio></header>'
    )


def waveform(path: Path) -> str:
    """Peaks of a clip as an SVG of `_BARS` rounded bars."""
    from plait.media.audio import load_audio

    clip = np.abs(load_audio(path))
    peaks = np.array([part.max() if len(part) else 0.0 for part in np.array_split(clip, _BARS)])
    heights = 3 + 29 * (peaks / max(float(peaks.max()), 1e-9)) ** 0.7
    bars = "".join(f"M{4 * i + 2} {18 - h / 2:.1f}v{h:.1f}" for i, h in enumerate(heights))
    box = f'viewBox="0 0 {4 * _BARS} 36" preserveAspectRatio="none"'
    return f'<svg class="wave" {box} aria-hidden="true"><path d="{bars}"/></svg>'


def sound_card(example: Mapping[str, Any], root: Path) -> str:
    """One sound, its five nearest drawings among sounding things, and (smaller) among all drawings."""
    name = escape(example["name"])
    wide = "".join(picture(hit, root) for hit in example["hits_in_all"])
    return (
        f'<article class="card">{player(root / example["audio"], example["name"], name)}'
        f'<div class="row five">{"".join(picture(hit, root) for hit in example["hits"])}</div>'
        f'<p class="among">among all drawings</p><div class="row five small">{wide}</div></article>'
    )


def fused_card(example: Mapping[str, Any], root: Path, pictures: Path) -> str:
    """A sound plus a word, and the five nearest composed pictures."""
    heading = f'{escape(example["name"])} <span class="plus">+</span> <q>{escape(example["text"])}</q>'
    return (
        f'<article class="card">{player(root / example["audio"], example["name"], heading)}'
        f'<div class="row five">{"".join(picture(hit, pictures) for hit in example["hits"])}</div></article>'
    )


def picture(hit: Mapping[str, Any], root: Path) -> str:
    """One found picture with its name; the right one carries a mark, half right a faint one."""
    state = "right" if hit["right"] else "half" if hit.get("half_right") else ""
    says = {"right": "right: ", "half": "half right: ", "": ""}[state]
    words = escape(f"{says}{hit['name']} ({hit['score']:.2f})")
    source = data_uri(root / hit["image"])
    return (
        f'<figure class="{state}"><img loading="lazy" alt="{words}" title="{words}" src="{source}">'
        f"<figcaption>{escape(hit['name'])}</figcaption></figure>"
    )


def legend(kinds: Sequence[str]) -> str:
    """What the marks mean."""
    words = {"right": "the right picture", "half": "one of the two things is right"}
    return "".join(f'<span class="key {kind}">{words[kind]}</span>' for kind in kinds)
