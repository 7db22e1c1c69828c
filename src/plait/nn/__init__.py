"""Leaves: torch only, plain numbers in, never a config object.

One modality in, (batch, seq, dim) out.

Where modalities meet.
"""

from __future__ import annotations
