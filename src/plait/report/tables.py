"""Tables: columns and sizes for a terminal; for a page what was measured beside chance, what ran, what the data is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from plait.terminal import printable


def format_count(number: int) -> str:
    """A number of parameters in words: at most four digits and the unit of thousands.

    Example:
        >>> format_count(1_500_000_000), format_count(12_000), format_count(7)
        ('1.5 B', '12.0 k', '7')
    """
    value = float(number)
    for unit in ("", "k", "M"):
        # what would round to 1000.0 goes to the next unit
        if value < 999.95:
            return f"{value:.1f} {unit}" if unit else str(number)
        value /= 1000
    return f"{value:.1f} B"


def format_bytes(number: float) -> str:
    """A size in words, in units of 1024.

    Example:
        >>> format_bytes(512), format_bytes(1536)
        ('512 B', '1.5 KiB')
    """
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB"):
        number /= 1024
        if number < 1023.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} GiB"


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text under `head`, the first to the left and the rest to the right.

    Args:
        head: names of the columns.
        rows: as many cells each.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = (
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in (head, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown(text: Any) -> str:
    r"""Anything as one line of plain Markdown: no cell ends early, no link, image or HTML of a stranger's is made.

    Example:
        >>> print(markdown("a | b <img>"))
        a \| b &lt;img&gt;
    """
    return re.sub(r"[\\`\[\]|]", r"\\\g<0>", escape(printable(str(text)), quote=False))


def markdown_code(text: str) -> str:
    """A name as code in Markdown, which nothing in it ends."""
    return f"`{printable(text).replace('`', chr(39))}`"


def markdown_row(cells: Sequence[Any]) -> str:
    """A line of a table in Markdown, every cell escaped."""
    return f"| {' | '.join(map(markdown, cells))} |"


def percent(share: float) -> str:
    """0.4271 -> 42.7 %, with a narrow space that does not break."""
    return f"{100 * share:.1f}&#8239;%"


class Measured(NamedTuple):
    """A line of `meters`: what was measured, in words, and how it came out.

    Attributes:
        what: in words.
        found: {"value", "interval": (low, high), "chance": or None}, shares of 1.
        name, note: smaller, below.
        bar: what is asked of it, {"bar": words, "met": bool}.
    """

    what: str
    found: Mapping[str, Any]
    name: str = ""
    note: str = ""
    bar: Mapping[str, Any] | None = None


def meters(groups: Mapping[str, Sequence[Measured]]) -> str:
    """Every score with its interval as a bar, chance as a tick, and the bar it is held to, as HTML.

    Args:
        groups: heading -> lines.
    """
    blocks = []
    for heading, rows in groups.items():
        title = f'<tr class="group"><th colspan="5" scope="rowgroup">{escape(heading)}</th></tr>' if heading else ""
        lines = []
        for row in rows:
            name = f"<code>{escape(row.name)}</code> · " if row.name else ""
            small = f"<small>{name}{escape(row.note)}</small>" if row.name or row.note else ""
            chance, asked = row.found.get("chance"), ""
            guess = "" if chance is None else f"<span>chance </span>{percent(chance)}"
            if row.bar is not None:
                asked = f'<span class="{"met" if row.bar["met"] else "missed"}">{escape(row.bar["bar"])}</span>'
            lines.append(
                f'<tr><td class="what">{escape(row.what)}{small}</td><td class="value">{percent(row.found["value"])}'
                f'</td><td class="meter">{meter(row.found)}</td><td class="chance">{guess}</td>'
                f'<td class="asked">{asked}</td></tr>'
            )
        if lines:
            blocks.append(f"<tbody>{title}{''.join(lines)}</tbody>")
    words = ("what was asked", "found", "", "by chance", "asked of it")
    head = "".join(f'<th scope="col">{word}</th>' for word in words)
    return f'<table class="metrics"><thead><tr>{head}</tr></thead>{"".join(blocks)}</table>'


def plain_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table of values as text, everything escaped, as HTML.

    Args:
        head: names of the columns; without it the first cell of a row is its name.
        rows: as many cells each.
    """
    columns = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in head)
    top = f"<thead><tr>{columns}</tr></thead>" if head else ""
    lines = []
    for row in rows:
        # header cells name a row for screen readers, where no head names the columns
        first, *rest = (escape(str(cell)) for cell in row)
        named = f"<td>{first}</td>" if head else f'<th scope="row">{first}</th>'
        lines.append(f"<tr>{named}{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>")
    return f'<table class="plain">{top}<tbody>{"".join(lines)}</tbody></table>'


def meter(found: Mapping[str, Any]) -> str:
    """A track from 0 to 100 % as SVG: the value filled, its interval as a whisker, chance as a tick.

    Args:
        found: as in `Measured`.
    """
    low, high = (100 * bound for bound in found["interval"])
    tick = ""
    if found.get("chance") is not None:
        tick = f'<rect class="tick" x="{100 * found["chance"] - 0.25:.2f}" y="0" width="0.8" height="12"/>'
    return (
        '<svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="3" width="100" height="6"/>'
        f'<rect class="fill" x="0" y="3" width="{100 * found["value"]:.2f}" height="6"/>'
        f'<rect class="whisker" x="{low:.2f}" y="5" width="{max(high - low, 0.3):.2f}" height="2"/>'
        f"{tick}</svg>"
    )


def class_bars(rates: Mapping[str, float], names: Mapping[str, str], chance: float) -> str:
    """One thin bar per class, best first, as HTML.

    Args:
        rates: class -> share of 1.
        names: class -> words.
        chance: share of 1, drawn through all bars.
    """
    rows = "".join(
        f"<li><span>{escape(names.get(label, label))}</span>"
        f'<i style="--share:{100 * rate:.1f}%"></i><b>{100 * rate:.0f}</b></li>'
        for label, rate in sorted(rates.items(), key=lambda item: -item[1])
    )
    return f'<ol class="classes" style="--chance:{100 * chance:.1f}%">{rows}</ol>'


def commands_list(commands: Sequence[Mapping[str, Any]]) -> str:
    """The commands that made this run, each with the seconds it took, as HTML.

    Args:
        commands: {"command", "seconds"} each.
    """
    rows = "".join(
        f"<li><code>{escape(one['command'])}</code><span>{clock(one['seconds'])}</span></li>" for one in commands
    )
    return f'<ol class="commands">{rows}</ol>'


def clock(seconds: float) -> str:
    """Seconds in words, with a narrow space that does not break: 312.4 -> 5 min 12 s, 8.31 -> 8.3 s."""
    if seconds < 60:
        return f"{seconds:.1f}&#8239;s" if seconds < 10 else f"{seconds:.0f}&#8239;s"
    return f"{int(seconds) // 60}&#8239;min {int(seconds) % 60}&#8239;s"


def card(rows: Sequence[tuple[str, str]]) -> str:
    """A list of names and what they are, as HTML; both are escaped."""
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(words)}</dd></div>" for name, words in rows)
    return f'<dl class="card-list">{listed}</dl>'
