"""How the cost of a job grows with its size: batch 1 to 8, text of 64 to 512 tokens, clips of 4 to 32 frames, labels.

Labels of one picture are 8 to 1,000, as in candidates.py. The exponent is log(cost ratio) / log(size ratio), 1 for
linear. Random weights of dim 512, two layers, fp32, one thread, medians of CPU time. Writes growth.json and a page.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import candidates
import torch
from measure import RESULTS, interleaved, milliseconds, write

from plait.generation.candidates import answer_losses
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.config import MPlug2Config, VisionConfig
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel
from plait.report.charts import line_chart, panel
from plait.report.page import write_page

ROUNDS, BAR = 2, 1.1
"""Bar of the exponent over the whole range: linear, and a tenth for what is measured beside it."""


def grown(sizes: list[int], job: Callable[[int], Callable[[], Any]]) -> dict[str, Any]:
    """Milliseconds per size, the exponents between neighbours and over the whole range."""
    found = milliseconds(interleaved({str(size): job(size) for size in sizes}, ROUNDS, warmup=1))
    times = [found[str(size)] for size in sizes]
    steps = [log(b / a) / log(n / m) for a, b, m, n in zip(times, times[1:], sizes, sizes[1:])]
    whole = log(times[-1] / times[0]) / log(sizes[-1] / sizes[0])
    return {"milliseconds": found, "steepest": round(max(steps), 3), "whole": round(whole, 3), "holds": whole <= BAR}


def jobs() -> dict[str, dict[str, Any]]:
    """Every axis, measured."""
    sizes: dict[str, Any] = {"dim": 512, "num_heads": 8, "mlp_dim": 2048, "num_layers": 2, "layer_scale": 1.0}
    peace = OnePeaceModel(OnePeaceConfig(modalities=["text", "image"], joint=(), **sizes)).eval()
    tower = VisionConfig(dim=512, num_heads=8, num_layers=2, patch_size=16, image_size=112)
    clip = MPlug2ForRetrieval(MPlug2Config.preset("tiny", vision=tower, dim=512, num_heads=8, mlp_dim=2048)).eval()
    owl2 = candidates.owls()["mplug_owl2"]
    pixels, ids = torch.rand(8, 3, 256, 256), torch.randint(4, 5000, (1, 512))

    def frames(count: int) -> Callable[[], Any]:
        video = torch.rand(1, 3, count, 112, 112)
        return lambda: clip.get_video_features(video)

    def labels(count: int) -> Callable[[], Any]:
        rows = candidates.labels(owl2, count)
        return lambda: answer_losses(owl2.model, rows)

    return {
        "batch of pictures": grown([1, 2, 4, 8], lambda n: lambda: peace.get_image_features(pixels[:n])),
        "tokens of a text": grown([64, 128, 256, 512], lambda n: lambda: peace.get_text_features(ids[:, :n])),
        "frames of a clip": grown([4, 8, 16, 32], frames),
        "labels of a picture": grown([8, 64, 250, 1000], labels),
    }


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = jobs()
    write("growth", {"bar": BAR, **found})
    drawn = []
    for name, one in found.items():
        points = [(float(size), ms) for size, ms in one["milliseconds"].items()]
        linear = [(points[0][0], points[0][1]), (points[-1][0], points[0][1] * points[-1][0] / points[0][0])]
        note = f"exponent {one['whole']} over the range, {one['steepest']} between neighbours"
        drawn.append(panel(name, [note], line_chart({"measured, ms": [points], "linear": [linear]}, name)))
    write_page(RESULTS / "growth.html", "How cost grows", drawn)


if __name__ == "__main__":
    main()
