"""Standard MIDI files: bytes -> the notes of each instrument's part, and notes -> bytes.

file -> chunks -> events (delta time, status, data) -> seconds by the tempo map -> parts by (channel, program)

Of the format only what plays notes is read: note on and off, program changes and tempo. Source: the Standard MIDI File
1.0 specification (RP-001).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

DRUMS = -1
"""The program of channel 10, on which every key is another drum."""
MAX_EVENTS = 1 << 20
_LENGTHS = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
"""Kind of event -> bytes behind its status."""


class Event(NamedTuple):
    """One event: ticks since the beginning, kind (status without channel), channel, its two numbers."""

    ticks: int
    kind: int
    channel: int
    first: int
    second: int


def read_parts(data: bytes) -> dict[tuple[int, int], np.ndarray]:
    """The notes of each part of a MIDI file.

    Args:
        data: the file.

    Returns:
        (channel, program) -> (notes, 4) float32, by their beginning: pitch, onset in seconds, length in seconds,
        velocity. Drums have the program `DRUMS`.

    Raises:
        ValueError: for what is no MIDI file or is cut.
    """
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("expected a MIDI file, got no MThd header")
    (division,) = struct.unpack(">H", data[12:14])
    if division & 0x8000 or not division:
        raise ValueError(f"expected ticks per quarter note, got a division of {division:#x}; export it anew")
    try:
        events = sorted(_events(data), key=lambda event: event.ticks)  # stable: the order of a track stays
    except IndexError as error:
        raise ValueError("expected a whole MIDI file, got one that is cut; fetch it again") from error
    notes: dict[tuple[int, int], list[list[float]]] = defaultdict(list)
    sounding: dict[tuple[int, int], list[float]] = {}
    programs, seconds, before, per_tick = [0] * 16, 0.0, 0, 0.5 / division  # 120 beats a minute without a tempo
    for event in events:
        seconds += (event.ticks - before) * per_tick
        before = event.ticks
        key = (event.channel, event.first)
        if event.kind == 0xFF:
            per_tick = event.first / 1e6 / division
        elif event.kind == 0xC0:
            programs[event.channel] = event.first
        elif event.kind in (0x80, 0x90):
            if (begun := sounding.pop(key, None)) is not None:
                begun[2] = seconds - begun[1]
            if event.kind == 0x90 and event.second:  # a velocity of 0 ends the note
                sounding[key] = [event.first, seconds, 0.0, event.second]
                program = DRUMS if event.channel == 9 else programs[event.channel]
                notes[event.channel, program].append(sounding[key])
    return {part: np.array(rows, np.float32) for part, rows in notes.items()}


def read_notes(path: str | Path) -> np.ndarray:
    """All notes of a file together, as a player of one instrument would read them.

    Args:
        path: of a MIDI file.

    Returns:
        (notes, 4) float32: pitch, seconds since the note before, seconds it lasts, velocity.

    Raises:
        ValueError: as `read_parts`, and for a file without notes.
    """
    parts = list(read_parts(Path(path).read_bytes()).values())
    if not parts:
        raise ValueError(f"expected a MIDI file with notes, got {path}: none in it")
    notes = np.concatenate(parts)
    notes = notes[np.argsort(notes[:, 1], kind="stable")]
    notes[:, 1] = np.diff(notes[:, 1], prepend=notes[0, 1])
    return notes


def write_notes(path: str | Path, notes: Sequence[Sequence[float]] | np.ndarray) -> None:
    """A MIDI file of one part, without a program: 480 ticks a quarter note at 120 beats a minute.

    Args:
        path: to be written.
        notes: (notes, 4): pitch, onset in seconds, length in seconds, velocity.
    """
    moves = [(onset, 0x90, pitch, velocity) for pitch, onset, _, velocity in notes]
    moves += [(onset + length, 0x80, pitch, 0) for pitch, onset, length, _ in notes]
    track, before = b"", 0
    for seconds, status, pitch, velocity in sorted(moves):  # 0x80 before 0x90: a repeated key ends first
        ticks = round(seconds * 960)
        track += _number(max(0, ticks - before)) + bytes([status, int(pitch), int(velocity)])
        before = max(before, ticks)
    track += b"\0\xff\x2f\0"
    Path(path).write_bytes(
        b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + track
    )


def _events(data: bytes) -> Iterator[Event]:
    """Notes, programs and tempi of all tracks. Raises IndexError where the file ends too early."""
    place, count = 14, 0
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "big")
        place, end = place + 8, place + 8 + size
        ticks = status = 0
        while name == b"MTrk" and place < end:
            if (count := count + 1) > MAX_EVENTS:
                raise ValueError(f"expected at most {MAX_EVENTS} events, got more; cut the file")
            delta, place = _variable(data, place)
            ticks += delta
            if data[place] & 0x80:
                status, place = data[place], place + 1
            if status in (0xFF, 0xF0, 0xF7):
                meta = data[place] if status == 0xFF else -1
                length, place = _variable(data, place + (status == 0xFF))
                if meta == 0x51 and length == 3:
                    yield Event(ticks, 0xFF, 0, int.from_bytes(data[place : place + 3], "big"), 0)
                place += length
                continue
            kind = status & 0xF0
            if kind not in _LENGTHS:
                raise ValueError(f"expected an event of MIDI 1.0, got the byte {status:#x}")
            first, second = data[place], data[place + 1] if _LENGTHS[kind] == 2 else 0
            place += _LENGTHS[kind]
            yield Event(ticks, kind, status & 0x0F, first & 0x7F, second & 0x7F)
        place = end


def _variable(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it."""
    value = 0
    while True:
        value = value << 7 | data[place] & 0x7F
        place += 1
        if not data[place - 1] & 0x80:
            return value, place


def _number(value: int) -> bytes:
    """A number as `_variable` reads it."""
    out = bytes([value & 0x7F])
    while value := value >> 7:
        out = bytes([value & 0x7F | 0x80]) + out
    return out
