"""Index a folder of pictures and search it with a sound and a text at once.

Run it: python examples/fused_search.py MODEL PICTURES SOUND "a text"
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import plait


def main(model: str, pictures: str, sound: str, text: str) -> None:
    embedder = plait.Embedder(model)
    with tempfile.TemporaryDirectory() as folder:
        index = plait.Index.create(Path(folder) / "pictures.lance", embedder)
        report = index.add([pictures])
        print(f"{report.added} pictures indexed")
        for query in ({"audio": sound}, {"text": text}, {"audio": sound, "text": text}):
            hits = index.search(query, 3, modality="image")
            print(" + ".join(query), "->", ", ".join(f"{Path(hit.path or '').name} {hit.score:.2f}" for hit in hits))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit('usage: python examples/fused_search.py MODEL PICTURES SOUND "a text"')
    main(*sys.argv[1:])
