"""The table and page of `plait study owl2`: the arms, where both decoders look, how they learnt, what this is not.

results.json of every arm and seed -> summary -> report.html
held-out questions -> eager attention weights -> shares per layer and maps -> a picture (mPLUG-Owl2, section 4.4)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.report.charts import line_chart, panel
from plait.report.page import data_uri, hero, section, write_page
from plait.report.tables import Measured, meters
from plait.training.logging import read_metrics
from plait_studies.drawings import Example
from plait_studies.measures import combined, gained, guessing, in_points
from plait_studies.owl2.training import batch_of, drawings, load

REFERENCE = "adaptive"
TASK, COUNT = "is_there", 24
SHOWN = 4
INK, PALE, BARS = "#22252b", "#d9dce2", "#0b7a75"
CELL = 5
TITLE = "Own norms, keys and values for pictures, or shared ones"
COMPARED = ("adaptive", "adaptive all ways", "shared", "abstractor only")
LEAD = (
    "A small language model became an mPLUG-Owl2. Every arm began with the same weights and the same tower and saw the "
    "same batches: questions about drawings and about sentences. Accuracy is on drawings of a style that was never "
    "trained on; whiskers are 95 % bootstrap intervals over questions, the red tick is the most frequent answer."
)
HONEST = (
    "The language model has 135 M weights in 4-bit precision, the tower a few million that never saw photographs, and "
    "tuning is minutes, not days. The base stays frozen unless an arm says otherwise, so that the shared arm can move "
    "its text only through the norms, keys and values that the adaptive arm copies. This tests the mechanism, not the "
    "published model."
)


def summarise(out: Path, order: Sequence[str], examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Figures of every measured arm, means over seeds, and each arm's accuracy minus that of `adaptive`.

    Args:
        out: of the study, with results.json of every seed and arm.
        order: names of arms that come first; arms of other names follow by the alphabet.
        examples: task -> the questions that were asked.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("seed-*/*/results.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(one["arm"], []).append(one)
    rows = []
    for name in [name for name in order if name in found] + sorted(found.keys() - set(order)):
        own, reference = found[name], found.get(REFERENCE, ())
        seconds = float(np.mean([one["train_seconds"] for one in own]))
        rows.append({"arm": name, **combined(own), "train_seconds": seconds})
        # A difference question by question needs as many seeds of both.
        if name != REFERENCE and len(own) == len(reference):
            rows[-1]["minus_adaptive"] = gained(own, reference)
    guesses = guessing(examples)
    likeliest = [guesses["majority"][task] for task, some in examples.items() if some[0].choices is not None]
    guesses["majority"]["likeliest"] = float(np.mean(likeliest))
    return {"rows": rows, **guesses}


def report(out: Path, summary: Mapping[str, Any], curves: Mapping[str, Path]) -> Path:
    """Write `out`/report.html. curves: arm -> its run directory of the first seed."""
    guess, seeing, reading = summary["majority"]["all"], [], []
    for row in summary["rows"]:
        without, other = (f"{100 * row['vqa'][name]['value']:.1f} %" for name in ("removed", "shuffled"))
        likeliest = f"{100 * row['likeliest']['value']:.1f} %"
        note = f"no picture {without}, another picture {other}; right choice likeliest {likeliest}"
        if "minus_adaptive" in row:
            note += f"; minus {REFERENCE} {in_points(row['minus_adaptive'])}"
        seeing.append(Measured(row["arm"], row["vqa"]["shown"] | {"chance": guess}, note=note))
        snippets, news = (f"{row['perplexity'][kind]:.2f}" for kind in ("snippets", "news"))
        note = f"perplexity {snippets} on snippets, {news} on news"
        reading.append(Measured(row["arm"], row["feeling"] | {"chance": 0.5}, note=note))
    seconds = f"{summary['seconds'] // 60} min {summary['seconds'] % 60} s for this command"
    looks, lines = "<p>None of the compared arms is trained.</p>", {}
    if (out / "attention.png").exists():
        source = data_uri((out / "attention.png").read_bytes(), "image/png")
        shares = {arm: [list(enumerate(one["visual"], 1))] for arm, one in summary["attention"].items()}
        looks = panel("share of the answer's attention on the picture", (), line_chart(shares, "layers"))
        looks += f'<figure class="panel"><img alt="attention maps" style="max-width:100%" src="{source}"></figure>'
    for arm, place in curves.items():
        lines[arm] = [[(row["step"], row["loss"]) for row in read_metrics(place / "metrics.jsonl")]]
    sections = [
        hero(TITLE, LEAD),
        section("Questions about drawings of an unseen style", seconds, meters({"": seeing}), "numbers"),
        section("Text", "perplexity, and whether a movie snippet is positive", meters({"": reading}), "text"),
        section("Where the answer looks", f"{COUNT} questions, mean over heads", looks, "attention"),
        section("How they learnt", "", panel("loss", (), line_chart(lines, "steps")), "curves"),
        section("What this is, and what not", "", f"<p>{HONEST}</p>", "honest"),
    ]
    return write_page(out / "report.html", TITLE, sections)


def attention(out: Path, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Shares per layer of the compared arms that are trained; writes attention.json and attention.png under `out`."""
    found = {}
    for arm in (name for name in COMPARED if name in folders):
        model, processor = load(folders[arm] / "model")
        found[arm] = attention_of(model, processor, drawings(model.config.image_size, 1).examples(TASK, "test", COUNT))
    if not found:
        return {}
    draw_attention(found, out / "attention.png")
    shares = {arm: {name: one[name] for name in ("visual", "text", "first")} for arm, one in found.items()}
    (out / "attention.json").write_text(json.dumps(shares) + "\n", encoding="utf-8")
    return shares


@torch.no_grad()
def attention_of(
    model: MPlugOwl2ForConditionalGeneration, processor: MPlugOwl2Processor, examples: Sequence[Example]
) -> dict[str, Any]:
    """Mean attention over heads and questions.

    Args:
        model, processor: of an arm; the model keeps its attention implementation, eager is only borrowed.
        examples: questions about a picture.

    Returns:
        {"visual", "text", "first"}: per layer the share of its attention that the position which predicts the answer
        gives to the picture's positions, to words, and to the sequence's first position (where attention rests that
        needs nothing); {"maps"}: (layers, seq, seq) of the first question, {"is_image"}: (seq,) its picture.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    shares, first_maps, first_image = [], None, None
    try:
        for example in examples:
            batch = {name: value.to(model.device) for name, value in batch_of(processor, [example]).items()}
            asked = int((batch["labels"][0] != -100).long().argmax())  # ids before the answer
            ids = batch["input_ids"][:, :asked]
            found = model(ids, pixel_values=batch["pixel_values"], use_cache=False, output_attentions=True).attentions
            assert found is not None
            maps = torch.stack([layer[0].float().mean(0) for layer in found]).cpu()  # (layers, seq, seq)
            is_image = torch.eq(ids[0], model.config.image_token).cpu()
            shares.append(shares_of(maps[:, -1], is_image))
            if first_maps is None:
                first_maps, first_image = maps, is_image
    finally:
        model.set_attn_implementation(before)
    assert first_maps is not None and first_image is not None
    mean = torch.stack(shares).mean(0)
    names = ("visual", "text", "first")
    return {name: mean[i].tolist() for i, name in enumerate(names)} | {
        "maps": first_maps.numpy(),
        "is_image": first_image.tolist(),
    }


def shares_of(weights: Tensor, is_image: Tensor) -> Tensor:
    """weights: (layers, keys) of one query; is_image: (keys,) -> (3, layers): on the picture, on words, on key 0."""
    first = torch.zeros_like(is_image)
    first[0] = True
    kinds = (is_image & ~first, ~is_image & ~first, first)
    return torch.stack([weights[:, kind].sum(1) for kind in kinds])


def draw_attention(found: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Arm -> `attention_of`: maps of some layers, a row each, into a PNG."""
    arms = list(found)
    layers, length = np.asarray(found[arms[0]]["maps"]).shape[:2]
    chosen = [round(i * (layers - 1) / (SHOWN - 1)) for i in range(SHOWN)] if layers > SHOWN else list(range(layers))
    side, gap, top = max(CELL * length, 150), 16, 30
    page = Image.new("RGB", (gap + len(chosen) * (side + gap), top + len(arms) * (side + 44) + 30), "white")
    pen = ImageDraw.Draw(page)
    for row, arm in enumerate(arms):
        for column, layer in enumerate(chosen):
            corner = (gap + column * (side + gap), top + row * (side + 44))
            pen.text((corner[0], corner[1] - 20), f"{arm}: layer {layer + 1}", INK, ImageFont.load_default(13))
            _map(page, corner, side, found[arm]["maps"][layer], found[arm]["is_image"])
    note = "rows ask, columns answer; bars: the picture's positions; the darker, the more attention (square root)"
    pen.text((gap, page.height - 26), note, INK, ImageFont.load_default(12))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)
    return path


def _map(page: Image.Image, corner: tuple[int, int], side: int, weights: np.ndarray, is_image: Sequence[bool]) -> None:
    """(seq, seq) weights, white for 0, the square root darker; bars beside it mark the picture's positions."""
    strength = np.sqrt(np.asarray(weights, dtype=np.float32).clip(0, 1))[..., None]
    dark, white = np.array([13, 59, 102], np.float32), np.float32(255)
    pixels = (white * (1 - strength) + dark * strength).astype(np.uint8)
    page.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), corner)
    (x, y), cell, pen = corner, side / len(is_image), ImageDraw.Draw(page)
    pen.rectangle((x, y, x + side, y + side), outline=PALE)
    places = [i for i, held in enumerate(is_image) if held]
    start, end = cell * places[0], cell * (places[-1] + 1)
    pen.rectangle((x + start, y - 4, x + end, y - 1), BARS)
    pen.rectangle((x - 4, y + start, x - 1, y + end), BARS)
