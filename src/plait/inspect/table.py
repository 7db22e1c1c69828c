"""Plain tables and sizes for people to read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence


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
