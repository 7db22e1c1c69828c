"""How far apart a model keeps its modalities (the modality gap) on the files of a data set.

Run it: python examples/gap.py MODEL DATA
"""

from __future__ import annotations

import sys

import plait
from plait.data.manifest import read_manifest
from plait_studies.gap import modality_gap


def main(model: str, data: str, limit: int = 200) -> None:
    embedder = plait.Embedder(model)
    samples = read_manifest(data)
    items = {
        name: [{name: value} for sample in samples if (value := getattr(sample, name)) is not None][:limit]
        for name in embedder.modalities
    }
    result = modality_gap({name: embedder.embed(rows) for name, rows in items.items() if rows})
    for pair, distance in result["gap"].items():
        print(f"{pair}: centroids {distance:.3f} apart")
    for name, spread in result["spread"].items():
        print(f"{name}: on average {spread:.3f} from its centroid")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/gap.py MODEL DATA")
    main(*sys.argv[1:])
