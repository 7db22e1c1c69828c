"""A modality in fifty lines: symbolic music. A MIDI file becomes notes, notes become tokens of a trained ONE-PEACE.

Run it: plait train one_peace.add_modality --plugin examples/midi_modality.py --set name=midi --set data=DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import plait
from plait.nn.adapters import Adapted
from plait_studies.midi import read_notes

NOTES = 64


@plait.modality("midi", suffixes=(".mid", ".midi"))
class Midi(nn.Module):
    """Notes (batch, notes, 4) -> [cls ; notes]: pitch, distance to the note before, length, loudness; no instrument."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.pitch = nn.Embedding(129, config.dim, padding_idx=128)
        self.touch = nn.Sequential(nn.Linear(4, config.dim), nn.GELU(), nn.Linear(config.dim, config.dim))
        self.positions = nn.Parameter(torch.randn(1 + NOTES, config.dim) * 0.1)

    projector = ("positions", r"touch\.0")  # what trains of it under train=projector, beside the projection

    @staticmethod
    def load(value: Any) -> Tensor:
        """A path, or (notes, 4): pitch, seconds since the note before, seconds it lasts, velocity."""
        notes = read_notes(value) if isinstance(value, str | Path) else value
        return torch.as_tensor(notes, dtype=torch.float32)[:NOTES]

    @staticmethod
    def process(tunes: Any) -> dict[str, Tensor]:
        mask = torch.arange(NOTES) < torch.tensor([len(tune) for tune in tunes])[:, None]
        notes = torch.nn.utils.rnn.pad_sequence([*tunes, torch.zeros(NOTES, 4)], batch_first=True)[:-1]
        return {"notes": notes, "mask": mask}

    @staticmethod
    def augment(tune: Tensor, rng: Any) -> Tensor:
        """Played higher or lower by up to a fourth, faster or slower: the same music to learn from."""
        return tune * torch.tensor([1, *[rng.uniform(0.8, 1.25)] * 2, 1]) + torch.tensor([rng.integers(-5, 6), 0, 0, 0])

    @staticmethod
    def example() -> list[list[float]]:
        return [[60, 0, 0.5, 64]]

    def forward(self, notes: Tensor, mask: Tensor) -> Adapted:
        scale = notes.new_tensor([1 / 64, 2, 2, 1 / 64])  # numbers of about one
        pitch = self.pitch(notes[..., 0].round().long().clamp(0, 127).masked_fill(~mask, 128))
        x = nn.functional.pad(pitch + self.touch(notes * scale), (0, 0, 1, 0)) + self.positions
        return Adapted(x, nn.functional.pad(mask, (1, 0), value=True))
