"""A caption of 16 frames with mPLUG-2 large, random weights: CPU time of the decoder and peak memory, against the
released formulation (Linux, about 10 minutes, 10 GiB of memory, 6 GiB of disk).

whole: every tensor of the official file read; each step of the 5-beam search decodes the whole prefix again, with
    the vision tokens and their keys copied and made anew for every beam, as the released code does
task: `plait.load(..., task="caption")`, keys of the vision tokens made once, each token decoded once

The file is written with the names and shapes of the official one. Each arm runs in a process of its own; both search
the same texts from the same clip with the same attention, and the ids must agree. The peak of `whole` is taken before
its slow search, so that it stands for the loaded weights and not for the copies.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

LISTED = Path(__file__).parents[1] / "tests" / "goldens" / "mplug2" / "keys_large_videocaption.json.gz"
BEAMS, MIN_LENGTH, MAX_LENGTH, FRAMES = 5, 4, 20, 16
REPEATS = 3
SHARD = 2**27  # parameters


def write_file(folder: Path) -> None:
    """A sharded official file of random weights; tied tensors are equal."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    document = json.loads(gzip.decompress(LISTED.read_bytes()))
    second = {copy: source for source, copy in document["tied"]}
    made: dict[str, torch.Tensor] = {}
    shards: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(shards.values()))}.safetensors"
        save_file(made, folder / name)
        shards.update(dict.fromkeys(made, name))
        made.clear()

    keep: dict[str, torch.Tensor] = {}
    for key, shape in document["keys"].items():
        if key in document["integer_buffers"]:
            made[key] = torch.arange(shape[-1]).view(shape)
        elif key in second:
            continue
        else:
            is_scale = key.endswith((".weight",)) and len(shape) == 1
            made[key] = torch.randn(shape) * 0.02 + (1.0 if is_scale else 0.0)
        if key in second.values():
            keep[key] = made[key]
        if sum(tensor.numel() for tensor in made.values()) > SHARD:
            flush()
    made.update({copy: keep[source].clone() for copy, source in second.items()})
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def clip() -> Any:
    """(1, 3, frames, 224, 224) of noise."""
    import torch

    return torch.randn(1, 3, FRAMES, 224, 224, generator=torch.Generator().manual_seed(1))


def run(folder: Path, arm: str) -> dict[str, Any]:
    """One arm in this process: decoder CPU seconds, peaks above imports in bytes, parameters, ids and scores."""
    import torch

    import plait
    from plait.generation import beam_search
    from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
    from plait.models.mplug2.weights import from_official
    from plait.weights.files import LazyState, read_checkpoint

    torch.set_num_threads(1)
    before = peak_bytes()
    if arm == "task":
        model, _ = plait.load(folder, task="caption", branch=("video",), official=True)
        number = sum(p.numel() for p in model.parameters())
    else:
        checkpoint = read_checkpoint(folder)
        held = {key: checkpoint.state[key] for key in checkpoint.state}
        for tensor in held.values():
            tensor.sum()  # files are mapped: a weight takes memory once it is read
        tied = {copy for _, copy in json.loads(gzip.decompress(LISTED.read_bytes()))["tied"]}
        number = sum(v.numel() for k, v in held.items() if v.is_floating_point() and k not in tied)
        state = LazyState({key: (lambda key=key: held[key]) for key in held})
        model = from_official(
            replace(checkpoint, state=state), model_class=MPlug2ForConditionalGeneration, official=True
        )
    if not isinstance(model, MPlug2ForConditionalGeneration) or model.config.eos_token_id is None:
        raise ValueError(f"expected a model that generates, got a {type(model).__name__}")
    options: dict[str, Any] = {"num_beams": BEAMS, "min_length": MIN_LENGTH, "max_length": MAX_LENGTH}
    with torch.no_grad():
        encoded = model.encode(None, clip())
        start = time.process_time()
        (found,) = model.search(encoded, **options)
        seconds = time.process_time() - start
        peak = peak_bytes() - before
        if arm == "whole":
            first = torch.tensor([[model.config.bos_token_id]])
            states, decoder, attend = encoded.states()[0], model.model.decoder, model.attend

            def recomputed(ids: torch.Tensor, beam_indices: torch.Tensor | None) -> torch.Tensor:
                """The prefix and all its keys at every step, with the states copied for every beam."""
                return decoder(ids, states.repeat_interleave(len(ids), 0), attend)[:, -1]

            start = time.process_time()
            (found,) = beam_search(recomputed, first, end_id=model.config.eos_token_id, official=True, **options)
            seconds = time.process_time() - start
    return {
        "seconds": seconds, "peak": peak, "parameters": number, "ids": found[0].ids.tolist(), "score": found[0].score,
    }  # fmt: skip


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    import torch
    from measure import write

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, __file__]
        subprocess.run([*call, "write", folder], check=True)

        def measured(arm: str) -> dict[str, Any]:
            done = subprocess.run([*call, arm, folder], check=True, stdout=subprocess.PIPE, text=True)
            return json.loads(done.stdout.splitlines()[-1])

        tasks = [measured("task") for _ in range(REPEATS)]
        whole = measured("whole")
    if any(one["ids"] != whole["ids"] for one in tasks):
        raise SystemExit(f"expected the ids {whole['ids']}, got {[one['ids'] for one in tasks]}")
    seconds, peak = median(one["seconds"] for one in tasks), median(one["peak"] for one in tasks)
    write(
        "mplug2_caption",
        {
            "sizes": {"preset": "large", "frames": FRAMES, "beams": BEAMS, "tokens": len(whole["ids"]) - 1},
            "decoder_cpu_seconds": {"whole": round(whole["seconds"], 1), "task": round(seconds, 2)},
            "decoder_whole_over_task": round(whole["seconds"] / seconds, 1),
            "peak_mebibytes": {"whole": round(whole["peak"] / 2**20), "task": round(peak / 2**20)},
            "peak_task_over_whole": round(peak / whole["peak"], 3),
            "parameters": {"whole": whole["parameters"], "task": tasks[0]["parameters"]},
            "ids": whole["ids"],
        },
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write_file(Path(sys.argv[2]))
    elif len(sys.argv) > 1:
        print(json.dumps(run(Path(sys.argv[2]), sys.argv[1])))
    else:
        main()
