"""Peak memory of loading an mPLUG-Owl: sharded dummy weights of the published shapes, fewer layers.

    python benchmarks/owl_load_memory.py [--layers 4] [--vision-layers 4]

Writes fp16 shards as on the hub (pickles with an index) into a temporary directory, loads them in a fresh process and
stores peak resident memory over what imports took, as a multiple of the weights' size. The bound is 1.2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

BOUND = 1.2
SHARDS = 4


def official_config(layers: int, vision_layers: int) -> dict:
    """The published configuration with fewer layers."""
    return {
        "model_type": "mplug-owl",
        "num_query_tokens": 64,
        "vision_config": {"hidden_size": 1024, "num_hidden_layers": vision_layers, "num_attention_heads": 16,
                          "intermediate_size": 4096, "image_size": 224, "patch_size": 14},
        "visual_abstractor_config": {"hidden_size": 1024, "encoder_hidden_size": 1024, "num_hidden_layers": 6,
                                     "num_attention_heads": 16, "intermediate_size": 2816},
        "text_config": {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
                        "num_hidden_layers": layers, "num_attention_heads": 32, "rms_norm_eps": 1e-6},
    }  # fmt: skip


def write(place: Path, layers: int, vision_layers: int) -> int:
    """Shards of random weights under official names; returns their bytes."""
    import torch

    from plait.models.mplug_owl.config import MPlugOwlConfig
    from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
    from plait.models.mplug_owl.weights import key_map

    written = official_config(layers, vision_layers)
    with torch.device("meta"):
        model = MPlugOwlForConditionalGeneration(MPlugOwlConfig.from_official(written))
    shapes = {key: value.shape for key, value in key_map().backward(model.state_dict()).items()}
    (place / "config.json").write_text(json.dumps(written))
    names, weight_map, total = sorted(shapes), {}, 0
    for i in range(SHARDS):
        file = f"pytorch_model-{i + 1:05d}-of-{SHARDS:05d}.bin"
        shard = {key: torch.full(shapes[key], 0.01, dtype=torch.float16) for key in names[i::SHARDS]}
        total += sum(tensor.nbytes for tensor in shard.values())
        torch.save(shard, place / file)
        weight_map |= dict.fromkeys(shard, file)
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def load(place: Path) -> None:
    """Load in this process and print bytes before and at the peak."""
    import torch

    from plait.models.mplug_owl.weights import from_official
    from plait.weights.files import read_checkpoint

    before = memory("VmRSS")
    model = from_official(read_checkpoint(place))
    with torch.no_grad():  # every page of every weight is touched
        total = sum(float(parameter.flatten()[::512].float().sum()) for parameter in model.parameters())
    peak = memory("VmHWM")
    print(json.dumps({"before": before, "peak": peak, "sum": total}))


def main() -> int:
    """Write, load in a child, print the ratio; 1 where it is over the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vision-layers", type=int, default=4)
    parser.add_argument("--load", type=Path)
    given = parser.parse_args()
    if given.load is not None:
        load(given.load)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        size = write(Path(directory), given.layers, given.vision_layers)
        command = [sys.executable, __file__, "--load", directory]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    from measure import write as store

    ratio = (found["peak"] - found["before"]) / size
    sizes = {"layers": given.layers, "vision_layers": given.vision_layers, "shards": SHARDS}
    found = {"weights_gib": round(size / 2**30, 3), "peak_over_weights": round(ratio, 3), "bound": BOUND}
    store("owl_load_memory", {"sizes": sizes, **found})
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
