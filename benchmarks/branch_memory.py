"""Peak memory of loading only the image branch of a ONE-PEACE model against loading all of it (Linux).

A model directory with random weights is written once. Every load runs in a process of its own, which reports how far
its peak resident memory rose above what imports alone took: after loading (files are mapped, so little is read by then)
and after every weight was read once.

`branch_memory.py published` loads the image branch of the published layout: 3.9 billion weights by name, shape and
place in bf16, in a file without contents (sparse, so every weight is 0). Of the whole model only opening is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from statistics import median

LOADS = {"full": None, "image_only": ("image",), "text_and_image": ("text", "image")}
SIZES = {"dim": 768, "num_heads": 12, "num_layers": 8, "mlp_dim": 3072}
REPEATS = 5


def build(directory: Path) -> None:
    """Write the model directory that the loads read."""
    import torch

    from plait.models.one_peace.config import OnePeaceConfig
    from plait.models.one_peace.model import OnePeaceModel

    torch.manual_seed(0)
    config = OnePeaceConfig(**SIZES)
    OnePeaceModel(config).save_pretrained(directory)


def build_published(directory: Path) -> None:
    """A model directory of the published size in bf16, whose weights take no room on the disk."""
    import torch

    from plait.models.one_peace.config import OnePeaceConfig
    from plait.models.one_peace.model import OnePeaceModel

    config = OnePeaceConfig(dtype="bfloat16")
    with torch.device("meta"):
        model = OnePeaceModel(config)
    header, end = {}, 0
    for name, tensor in sorted(model.state_dict().items()):
        size = 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + end)
    config.architectures = ["OnePeaceModel"]
    config.save_pretrained(directory)


def published() -> None:
    """Measure both loads, a process each."""
    from measure import write

    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, __file__]
        subprocess.run([*call, "build-published", folder], check=True)
        done = subprocess.run([*call, "load", folder, "image_only"], check=True, capture_output=True, text=True)
        image = json.loads(done.stdout.splitlines()[-1])
        opened = subprocess.run([*call, "open", folder, "full"], check=True, capture_output=True, text=True)
        whole = json.loads(opened.stdout.splitlines()[-1])
    mib = {"image_only": image, "full": whole}
    mib = {name: {key: round(value / 2**20, 1) for key, value in row.items()} for name, row in mib.items()}
    over = {"parameters_over_full": round(image["parameters"] / whole["parameters"], 3),
            "peak_over_its_parameters": round(image["peak_read"] / image["parameters"], 3)}  # fmt: skip
    write("branch_memory_published", {"dtype": "bfloat16", "mebibytes": mib, **over})


def load_once(directory: Path, branch: tuple[str, ...] | None, *, reads: bool = True) -> dict[str, int]:
    """Load in this process. Returns bytes: of the parameters kept, and rises of the peak; reads: every weight too."""
    from plait.models.auto import load

    before = peak_bytes()
    model, _ = load(directory, branch=branch)
    loaded = peak_bytes() - before
    parameters = list(model.parameters())
    kept = sum(prod(p.shape) * p.element_size() for p in parameters)
    if not reads:
        return {"parameters": kept, "peak_loaded": loaded}
    for parameter in parameters:
        parameter.detach().sum()
    return {"parameters": kept, "peak_loaded": loaded, "peak_read": peak_bytes() - before}


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    from measure import write

    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, __file__]
        subprocess.run([*call, "build", folder], check=True)
        found: dict[str, list[dict[str, int]]] = {name: [] for name in LOADS}
        for _ in range(REPEATS):
            for name in LOADS:
                done = subprocess.run([*call, "load", folder, name], check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    mib = {n: {key: round(median(run[key] for run in runs) / 2**20, 1) for key in runs[0]} for n, runs in found.items()}
    ratios = {name: round(row["peak_read"] / mib["full"]["peak_read"], 3) for name, row in mib.items()}
    write("branch_memory", {"repeats": REPEATS, "sizes": SIZES, "mebibytes": mib, "peak_read_over_full": ratios})


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        build(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["build-published"]:
        build_published(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["published"]:
        published()
    elif sys.argv[1:2] == ["open"]:
        print(json.dumps(load_once(Path(sys.argv[2]), LOADS[sys.argv[3]], reads=False)))
    elif sys.argv[1:2] == ["load"]:
        print(json.dumps(load_once(Path(sys.argv[2]), LOADS[sys.argv[3]])))
    else:
        main()
