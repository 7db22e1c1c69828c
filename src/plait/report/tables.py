"""Plain tables and sizes for people to read in a terminal.

The tables of a report: what was measured, beside chance and bars; what ran; what the data is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def format_count(number: int) -> str:
    """`1.5 B`, `3.2 M`, `12.0 k`, `7`: at most four digits and the unit of thousands."""
    value = float(number)
    for unit in ("", "k", "M"):
        if value < 999.95:
            return f"{value:.1f} {unit}" if unit else str(number)
        value /= 1000
    return f"{value:.1f} B"


def format_bytes(number: float) -> str:
    """`512 B`, `1.5 KiB`, `3.0 GiB`."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB"):
        number /= 1024
        if number < 1023.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} GiB"


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under `head`, the first to the left and the rest to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = (
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in (head, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)


GROUPS: dict[str, dict[str, str]] = {
    "A sound finds a picture, though no picture was ever trained with a sound": {
        "audio_to_image_r1": "first answer right, one drawing of each sounding thing",
        "audio_to_image_r5": "right within five",
        "audio_to_all_images_r1": "first answer right, among all drawings",
        "audio_to_all_images_r5": "right within five, among all drawings",
        "image_to_audio_r1": "the other way: a drawing finds a note of its thing",
        "unseen_font_audio_to_image_r1": "notes from a soundfont that was never trained on",
    },
    "What training was about": {
        "image_to_text_r1": "a drawing in an unseen style finds its name",
        "text_to_image_r1": "a name finds the drawing in an unseen style",
        "audio_to_text_r1": "an unseen note finds the name of its thing",
        "unseen_font_audio_to_text_r1": "the same for a soundfont that was never trained on",
    },
    "Two things in one query find the picture that shows both": {
        "fused_to_image_r5": "sound + word, right within five",
        "audio_only_to_image_r5": "the sound alone",
        "text_only_to_image_r5": "the word alone",
        "full_caption_to_image_r5": "both things in words, for comparison",
        "image_audio_to_image_r5": "sound + another drawing of the second thing",
        "image_only_to_image_r5": "that drawing alone",
    },
    "Control: trained equally long with shuffled names for the sounds": {
        "shuffled_audio_to_text_r1": "an unseen note finds the name of its thing",
        "shuffled_audio_to_image_r1": "a sound finds its picture, first answer",
        "shuffled_audio_to_image_r5": "right within five",
    },
}
"""Heading -> metric -> what it asks, in words."""


def percent(share: float) -> str:
    """0.4271 -> 42.7 %, with a narrow space that does not break."""
    return f"{100 * share:.1f}&#8239;%"


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], bars: Mapping[str, Mapping[str, Any]]) -> str:
    """Every measured score with its interval as a bar, chance as a tick, and the bar it is held to."""
    blocks = []
    for heading, rows in GROUPS.items():
        body = "".join(
            _row(name, words, metrics[name], bars.get(name))
            for name, words in rows.items()
            if metrics.get(name, {}).get("value") is not None
        )
        if body:
            blocks.append(
                f'<tbody><tr class="group"><th colspan="5" scope="rowgroup">{heading}</th></tr>{body}</tbody>'
            )
    head = "".join(
        f'<th scope="col">{word}</th>' for word in ("query and answer", "found", "", "by chance", "asked of it")
    )
    return f'<table class="metrics"><thead><tr>{head}</tr></thead>{"".join(blocks)}</table>'


def _row(name: str, words: str, found: Mapping[str, Any], bar: Mapping[str, Any] | None) -> str:
    size = f"{found['queries']:,} queries, gallery of {found['gallery']:,}"
    seeds = found["per_seed"]
    spread = f"; seeds {percent(min(seeds))} to {percent(max(seeds))}" if len(seeds) > 1 else ""
    asked = ""
    if bar is not None:
        asked = f'<span class="{"met" if bar["met"] else "missed"}">{_plain(bar["bar"])}</span>'
    return (
        f'<tr><td class="what">{words}<small><code>{name}</code> · {size}{spread}</small></td>'
        f'<td class="value">{percent(found["value"])}</td><td class="meter">{meter(found)}</td>'
        f'<td class="chance"><span>chance </span>{percent(found["chance"])}</td><td class="asked">{asked}</td></tr>'
    )


def _plain(words: str) -> str:
    return escape(words).replace("_r5", "").replace("_r1", "").replace("_to_image", "").replace("_", " ")


def meter(found: Mapping[str, Any]) -> str:
    """A track from 0 to 100 %: the value filled, its interval as a whisker, chance as a tick."""
    low, high = (100 * bound for bound in found["interval"])
    return (
        '<svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="3" width="100" height="6"/>'
        f'<rect class="fill" x="0" y="3" width="{100 * found["value"]:.2f}" height="6"/>'
        f'<rect class="whisker" x="{low:.2f}" y="5" width="{max(high - low, 0.3):.2f}" height="2"/>'
        f'<rect class="tick" x="{100 * found["chance"] - 0.25:.2f}" y="0" width="0.8" height="12"/></svg>'
    )


def class_bars(rates: Mapping[str, float], names: Mapping[str, str], chance: float) -> str:
    """One thin bar per class, best first."""
    rows = "".join(
        f"<li><span>{escape(names.get(label, label))}</span>"
        f'<i style="--share:{100 * rate:.1f}%"></i><b>{100 * rate:.0f}</b></li>'
        for label, rate in sorted(rates.items(), key=lambda item: -item[1])
    )
    return f'<ol class="classes" style="--chance:{100 * chance:.1f}%">{rows}</ol>'


def commands_list(commands: Sequence[Mapping[str, Any]]) -> str:
    """The commands that made this run, each with the seconds it took."""
    rows = "".join(
        f"<li><code>{escape(one['command'])}</code><span>{clock(one['seconds'])}</span></li>" for one in commands
    )
    return f'<ol class="commands">{rows}</ol>'


def clock(seconds: float) -> str:
    """312.4 -> 5 min 12 s, 8.31 -> 8.3 s."""
    if seconds < 60:
        return f"{seconds:.1f}&#8239;s" if seconds < 10 else f"{seconds:.0f}&#8239;s"
    return f"{int(seconds) // 60}&#8239;min {int(seconds) % 60}&#8239;s"


def card(rows: Sequence[tuple[str, str]]) -> str:
    """A definition list: pairs of words and HTML."""
    return '<dl class="card-list">' + "".join(f"<div><dt>{a}</dt><dd>{b}</dd></div>" for a, b in rows) + "</dl>"
