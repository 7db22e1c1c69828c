"""The full setting of `plait study owl2` on a GPU: everything trains, every arm, three seeds, longer, in bfloat16.

python benchmarks/gpu/owl2_study.py --llm DIR --out DIR    (--tiny checks the script itself, one step per arm, on a CPU)

--llm: a Llama, Mistral or Qwen2 directory; without it the packaged SmolLM2, which needs the `chat` extra and a package
client. The table is printed, and lies with report.html and attention.png in --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plait_studies.owl2 import study

FULL = {"seeds": 3, "warm_steps": 6000, "steps": 4000, "batch_size": 64, "count": 400, "lr": 1e-4}
TINY = {"seeds": 1, "warm_steps": 1, "steps": 1, "batch_size": 2, "count": 3, "lr": 1e-4}


def main() -> None:
    """Run it; the same command again goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/owl2-full"))
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    device, only = ("cpu", ("adaptive", "shared")) if asked.tiny else ("cuda", ("all",))
    settings = TINY if asked.tiny else FULL
    raise SystemExit(study(asked.out, llm=asked.llm, only=only, full=True, device=device, **settings))


if __name__ == "__main__":
    main()
