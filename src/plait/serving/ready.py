"""Are the vectors right? One known item per modality is embedded and compared with what this model gave before.

    known items -> vectors -> those stored for this fingerprint (the first start stores them) -> cosine near 1?

Wrong vectors raise no error anywhere: another version of a package, a damaged file or a broken accelerator show here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.places import atomic_write, cache_directory
from plait.serving.parts import Medium
from plait.serving.service import Service

NEAR = 0.99
"""Cosine that counts as the same: bfloat16 against float32 gives 0.999, another padding or template 0.55 to 0.97."""
SECONDS, TONE = 1, 440


def known_items() -> dict[str, Medium]:
    """One item per modality, the same bytes everywhere."""
    import io
    import wave

    from PIL import Image

    picture = io.BytesIO()
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 90, np.uint8)], -1)
    Image.fromarray(pixels).save(picture, "PNG")
    sound, rate = io.BytesIO(), 16000
    samples = (np.sin(2 * np.pi * TONE * np.arange(rate * SECONDS) / rate) * 12000).astype("<i2")
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    return {
        "text": Medium("text", "a red square on a white table"),
        "image": Medium("image", picture.getvalue()),
        "audio": Medium("audio", sound.getvalue()),
    }


class Readiness:
    """What `/ready` says.

    Args:
        service: with or without an embedder.
        place: file of the stored vectors; None for the one of this user's cache.
    """

    def __init__(self, service: Service, place: Path | None = None) -> None:
        self.service = service
        embedder = service.models.embedder
        self.items: dict[str, Medium] = {
            m: item for m, item in known_items().items() if embedder and m in embedder.modalities
        }
        self.place = place
        if embedder is not None and place is None:
            self.place = cache_directory() / "known-vectors" / f"{embedder.fingerprint}.json"
        self.stored: dict[str, np.ndarray] = {}
        self.origin = "nothing to compare"

    async def start(self) -> None:
        """Read what is stored, or store what this first start gives."""
        if not self.items or self.place is None:
            return
        if self.place.is_file():
            found = json.loads(self.place.read_text(encoding="utf-8"))
            self.stored = {m: np.asarray(vector, np.float32) for m, vector in found.items()}
            self.origin = "an earlier start"
        # a model may have gained a modality since its vectors were stored
        if missing := [m for m in self.items if m not in self.stored]:
            vectors = await self._vectors(missing)
            self.stored |= vectors
            atomic_write(self.place, json.dumps({m: vector.tolist() for m, vector in self.stored.items()}))
            self.origin = self.origin if len(missing) < len(self.items) else "this start"

    async def _vectors(self, modalities: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors of known items, computed anew: kept ones would tell nothing."""
        found, _ = await self.service.embed(lambda: [[self.items[m]] for m in modalities], anew=True)
        return dict(zip(modalities, found, strict=True))

    async def check(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether all is well, and what was seen."""
        # load balancers take the server out before its last answers are written
        if self.service.is_closing:
            return False, {"status": "stopping"}
        seen: dict[str, Any] = {}
        if self.items:
            vectors = await self._vectors(list(self.items))
            cosines = {m: float(vector @ self.stored[m]) for m, vector in vectors.items()}
            seen = {
                m: {"cosine": round(cosine, 6), "status": "ok" if cosine >= NEAR else "differs"}
                for m, cosine in cosines.items()
            }
        is_well = all(one["status"] == "ok" for one in seen.values())
        status = "ready" if is_well else "vectors differ from those stored for this model"
        return is_well, {"status": status, "compared_with": self.origin, "vectors": seen}
