"""Detectors and segmenters trained on exact boxes and masks, beside a peer of the same size and no model at all.

    python benchmarks/dense.py scenes OUT    composed scenes: cut-outs of Tux Paint (GPL-2) on aerial photographs
    python benchmarks/dense.py trees OUT     crowns of trees, boxes drawn by people (DeepForest, MIT)
    python benchmarks/dense.py regions OUT   the composed scenes, a group for every pixel of a cut-out

data -> plait train finetune --set task=detect|segment -> box AP, mask AP | mIoU
     -> the peer from fresh weights: same pictures, jitter and batches, as many seconds of the processor -> same scores

Peers are transformers' own: YOLOS as wide and deep as nano's image branch (scipy does its matching), and SegFormer.
`OUT/dense.json` holds the figures, `OUT/sheet.png` what is there, what was found, and what the peer found.
nano's image branch is pretrained on drawings; `--fresh` starts ours from fresh weights as well.

Objects and backgrounds of test scenes are in no training scene; test tiles of trees are of another site (OSBS) and of a
strip of the large photograph that no training tile touches.
"""

from __future__ import annotations

import argparse
import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import origin
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, YolosConfig, YolosForObjectDetection

from plait import Assistant
from plait.cli import main
from plait.data.annotations import scan_masks, scan_objects
from plait.data.packages import unpacked
from plait.media.image import load_image
from plait.models.one_peace import OnePeaceConfig, OnePeaceModel, OnePeaceProcessor
from plait.processing.regions import Fitted, Objects, detection_labels, drawn, fit, read_mask, read_objects
from plait.recipes.finetune import class_map, objects_in, score
from plait.recipes.one_peace_dense import jittered
from plait.training.stages import save_pair
from plait.types import Sample

GROUPS = ("animals", "food", "vehicles", "household")
PHOTOS = ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop", "SOAP_061", "OSBS_029")
STRIP = 0.7
"""Share of the large photograph's width that training tiles lie in."""
TILE = 200


def photograph(name: str) -> Image.Image:
    return load_image(unpacked("deepforest") / "deepforest" / "data" / f"{name}.png").convert("RGB")


def scenes(out: Path, counts: dict[str, int], seed: int) -> None:
    """Two to four cut-outs on a piece of a photograph, as a COCO file with masks."""
    rng = np.random.default_rng(seed)
    root = unpacked("tuxpaint-stamps-default") / "usr" / "share" / "tuxpaint" / "stamps"
    backs = {"train": [photograph(PHOTOS[0]), photograph(PHOTOS[1])], "test": [photograph(PHOTOS[3])]}
    cuts: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for group in GROUPS:
        found = [p for p in sorted((root / group).rglob("*.png")) if not p.stem.endswith(("_mirror", "_flip"))]
        # Every fifth object is for testing alone.
        cuts["train"][group] = [path for i, path in enumerate(found) if i % 5]
        cuts["test"][group] = found[::5]
    rows = [(split, *scene(backs[split], cuts[split], rng)) for split, count in counts.items() for _ in range(count)]
    write(out, rows, GROUPS)


def scene(
    backs: list[Image.Image], cuts: dict[str, list[Path]], rng: np.random.Generator, side: int = 256
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """One picture and its objects; boxes overlap by less than a fifth of the smaller one."""
    back = backs[rng.integers(len(backs))]
    x, y = rng.integers(0, back.width - side), rng.integers(0, back.height - side)
    page, objects = back.crop((x, y, x + side, y + side)), []
    for _ in range(rng.integers(2, 5)):
        group = GROUPS[rng.integers(len(GROUPS))]
        path = cuts[group][rng.integers(len(cuts[group]))]
        with Image.open(path) as stamp:
            cut = stamp.convert("RGBA")
        cut = cut.crop(cut.getchannel("A").getbbox())
        ratio = rng.uniform(0.25, 0.5) * side / max(cut.size)
        cut = cut.resize((max(8, round(cut.width * ratio)), max(8, round(cut.height * ratio))))
        for _ in range(20):  # a place that is free, or none
            left, top = rng.integers(0, side - cut.width + 1), rng.integers(0, side - cut.height + 1)
            box = (left, top, left + cut.width, top + cut.height)
            if all(overlap(box, one["box"]) < 0.2 for one in objects):
                break
        else:
            continue
        page.paste(cut, (int(left), int(top)), cut)
        inside = np.zeros((side, side), bool)
        inside[top : top + cut.height, left : left + cut.width] = np.asarray(cut.getchannel("A")) > 127
        for one in objects:
            one["mask"] &= ~inside
        objects.append({"box": box, "mask": inside, "label": group})
    return page, objects


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0, width) * max(0, height) / smaller


def trees(out: Path, counts: dict[str, int], seed: int) -> None:
    """Tiles of the four photographs; a crown belongs to a tile that holds two fifths of it."""
    rows = []
    for name in PHOTOS:
        photo = photograph(name)
        boxes = [
            tuple(float(one.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            for one in ET.parse(unpacked("deepforest") / "deepforest" / "data" / f"{name}.xml").iter("object")
        ]
        for split, left, top in tiles(name, photo.size):
            objects = []
            for x0, y0, x1, y1 in boxes:
                box = (max(x0 - left, 0), max(y0 - top, 0), min(x1 - left, TILE), min(y1 - top, TILE))
                area = max(0, box[2] - box[0]) * max(0, box[3] - box[1])
                if area > 0.4 * (x1 - x0) * (y1 - y0):
                    objects.append({"box": box, "label": "tree"})
            if objects:
                rows.append((split, photo.crop((left, top, left + TILE, top + TILE)), objects))
    write(out, rows, ("tree",))


def tiles(name: str, size: tuple[int, int]) -> Iterator[tuple[str, int, int]]:
    """Split, left and top of the tiles of a photograph; training tiles overlap by half."""
    width, height = size
    edge = int(STRIP * width) if name == PHOTOS[0] else width
    if name == PHOTOS[3]:
        yield "test", 0, 0
        return
    for left in range(0, edge - TILE + 1, TILE // 2):
        for top in range(0, height - TILE + 1, TILE // 2):
            yield "train", left, top
    for left in range(edge, width - TILE + 1, TILE):
        for top in range(0, height - TILE + 1, TILE):
            yield "test", left, top


def write(out: Path, rows: list[tuple[str, Image.Image, list[dict[str, Any]]]], labels: tuple[str, ...]) -> None:
    """A COCO instances file, with the split of every picture, and the pictures beside it."""
    (out / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, (split, picture, objects) in enumerate(rows):
        name = f"{split}-{number}.png"
        picture.save(out / "images" / name)
        images.append(
            {"id": number, "file_name": name, "width": picture.width, "height": picture.height, "split": split}
        )
        for one in objects:
            x0, y0, x1, y1 = map(float, one["box"])
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": labels.index(one["label"]) + 1}
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            if "mask" in one:
                row["segmentation"] = runs_of(one["mask"])
            annotations.append(row)
    categories = [{"id": i, "name": label} for i, label in enumerate(labels, 1)]
    written = {"images": images, "annotations": annotations, "categories": categories}
    (out / "instances.json").write_text(json.dumps(written))


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO files hold it: runs in text."""
    from pycocotools import mask as tools

    runs = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def regions(out: Path, counts: dict[str, int], seed: int) -> None:
    """The composed scenes in ADE20K's layout: the background is a class as well."""
    scenes(out / "objects", counts, seed)
    written = json.loads((out / "objects" / "instances.json").read_text())
    by_image: dict[int, list[dict[str, Any]]] = {}
    for one in written["annotations"]:
        by_image.setdefault(one["image_id"], []).append(one)
    for image in written["images"]:
        mask = np.ones((image["height"], image["width"]), np.uint8)
        for one in by_image.get(image["id"], []):
            mask[read_mask(one["segmentation"], mask.shape[::-1], image["file_name"])] = one["category_id"] + 1
        for folder in ("images", "masks"):
            (out / folder / image["split"]).mkdir(parents=True, exist_ok=True)
        (out / "objects" / "images" / image["file_name"]).rename(out / "images" / image["split"] / image["file_name"])
        Image.fromarray(mask).save(out / "masks" / image["split"] / image["file_name"])
    (out / "classes.txt").write_text("\n".join(("background", *GROUPS)) + "\n")


@dataclass
class Peer:
    """A model of transformers: fitted pictures -> inputs with labels; one picture -> what `score` takes.

    lr, clip: peak rate and bound of gradients as its paper has them.
    """

    model: Any
    inputs: Callable[[list[Fitted]], dict[str, Any]]
    find: Callable[[Image.Image], Any]
    lr: float
    clip: float


def yolos(labels: Sequence[str], side: int) -> Peer:
    """A plain transformer with detection tokens, as wide and deep as nano's image branch."""
    config = YolosConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, image_size=[side, side],
        num_detection_tokens=60, use_mid_position_embeddings=False, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    model = YolosForObjectDetection(config)

    def inputs(fitted: list[Fitted]) -> dict[str, Any]:
        targets = [detection_labels(one) for one in fitted]
        for one, target in zip(fitted, targets):  # it knows no padding: shares of the whole square
            target["boxes"] = target["boxes"] * torch.tensor(one.size * 2) / side
            target.pop("masks", None)
        return {"pixel_values": torch.stack([one.pixels for one in fitted]), "labels": targets}

    def find(picture: Image.Image) -> list[dict[str, Any]]:
        out = model(pixel_values=fit(picture, side).pixels[None])
        shares, classes = out.logits[0].softmax(-1)[:, :-1].max(-1)
        # Test pictures are squares, so shares of the padded one are theirs.
        corner = out.pred_boxes[0] * torch.tensor(picture.size * 2)
        return [
            {"label": labels[label], "score": share, "bbox": [x - w / 2, y - h / 2, w, h]}
            for label, share, (x, y, w, h) in zip(classes.tolist(), shares.tolist(), corner.tolist())
        ]

    return Peer(model, inputs, find, 5e-4, 0.1)


def segformer(labels: Sequence[str], side: int) -> Peer:
    """SegFormer of about as many parameters as nano's segmenter."""
    config = SegformerConfig(
        hidden_sizes=[32, 64, 128, 192], depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 4, 6], decoder_hidden_size=128,
        num_labels=len(labels),
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)

    def inputs(fitted: list[Fitted]) -> dict[str, Any]:
        targets = torch.full((len(fitted), side, side), 255)
        for target, one in zip(targets, fitted):
            assert one.objects is not None and one.objects.masks is not None
            for mask, label in zip(one.objects.masks, one.objects.classes.tolist()):
                target[torch.from_numpy(mask)] = label
        return {"pixel_values": torch.stack([one.pixels for one in fitted]), "labels": targets}

    def find(picture: Image.Image) -> np.ndarray:
        logits = model(pixel_values=fit(picture, side).pixels[None]).logits
        size = (picture.height, picture.width)
        return torch.nn.functional.interpolate(logits, size=size, mode="bilinear")[0].argmax(0).numpy()

    return Peer(model, inputs, find, 1e-3, 1.0)


def objects_of(sample: Sample, labels: Sequence[str], size: tuple[int, int]) -> Objects:
    """What a row holds: its objects, or the regions of its class map."""
    if "mask" not in sample.meta:
        rows = [{**row, "category_id": row["label"]} for row in objects_in(sample)]
        return read_objects(rows, {label: i for i, label in enumerate(labels)}, size, sample.id)
    mask = class_map(sample)
    classes = np.setdiff1d(np.unique(mask), [0])
    boxes = np.tile(np.array([0, 0, *size], np.float32), (len(classes), 1))
    return Objects(boxes, classes.astype(np.int64) - 1, mask == classes[:, None, None])


def taught(peer: Peer, rows: Sequence[Sample], labels: Sequence[str], side: int, seconds: float, batch: int,
           seed: int) -> dict[str, Any]:  # fmt: skip
    """Train a peer for so many seconds of the processor, with the jitter of ours; how long and how far it went."""
    rng, model = np.random.default_rng(seed), peer.model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peer.lr, weight_decay=0.05)
    started, steps, spent = time.process_time(), 0, 0.0
    while spent < seconds:
        for group in optimiser.param_groups:  # up, then down to a hundredth, as ours
            group["lr"] = peer.lr * min(1.0, (steps + 1) / 50, 0.01 + 2 * (1 - spent / seconds))
        fitted = []
        for sample in (rows[i] for i in rng.integers(0, len(rows), batch)):
            picture = load_image(sample.image).convert("RGB")
            fitted.append(jittered(picture, objects_of(sample, labels, picture.size), side, 0.3, rng))
        loss = model(**peer.inputs(fitted)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), peer.clip)
        optimiser.step()
        steps, spent = steps + 1, time.process_time() - started
    return {"name": type(model).__name__, "steps": steps, "parameters": size_of(model), "seconds": round(spent, 1)}


def size_of(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shown(picture: Image.Image, found: Any, labels: Sequence[str]) -> Image.Image:
    """A picture with rows of boxes (and masks) or a class map on it, without the first class, the background."""
    numbers = {label: i for i, label in enumerate(labels)}
    if isinstance(found, np.ndarray):
        masks = [found == i for i in range(1, len(labels)) if (found == i).any()]
        places = [(int(np.where(m.any(0))[0][0]), int(np.where(m.any(1))[0][0])) for m in masks]
        table: dict[str, Any] = {
            "scores": [mask.mean() for mask in masks], "labels": [int(found[m][0]) for m in masks], "masks": masks,
            "boxes": [(x, y, x + m.any(0).sum(), y + m.any(1).sum()) for m, (x, y) in zip(masks, places)],
        }  # fmt: skip
    else:
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in found)]
        table = {"scores": [row.get("score", 1.0) for row in found], "boxes": boxes,
                 "labels": [numbers[row["label"]] for row in found]}  # fmt: skip
        if found and all(isinstance(row.get("segmentation"), dict) for row in found):
            table["masks"] = [read_mask(row["segmentation"], picture.size, "shown") for row in found]
    return drawn(picture, table, dict(enumerate(labels)))


def ours(assistant: Assistant, task: str, rows: Sequence[Sample], threshold: float) -> list[Any]:
    """What the trained model says by the door that users have: rows of boxes and masks, or class maps."""
    if task == "segment":
        return [assistant.segment(sample.image) for sample in rows]
    found = []
    for sample in rows:
        found.append([])
        for one in assistant.detect(sample.image, threshold):
            x0, y0, x1, y1 = one.box
            row = {"label": one.label, "score": one.score, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            found[-1].append(row if one.mask is None else row | {"segmentation": runs_of(one.mask)})
    return found


def sheet(rows: Sequence[Sample], columns: Sequence[Sequence[Any]], labels: Sequence[str]) -> Image.Image:
    """Test pictures one below the other; in every column one answer. The first is what is there."""
    side = 256
    page = Image.new("RGB", (side * len(columns), side * len(rows)))
    for i, sample in enumerate(rows):
        picture = load_image(sample.image).convert("RGB")
        for j, column in enumerate(columns):
            page.paste(shown(picture, column[i], labels).resize((side, side)), (side * j, side * i))
    return page


def fresh_nano(place: Path, seed: int) -> Path:
    """nano's image branch without what it learnt."""
    torch.manual_seed(seed)
    model = OnePeaceModel(OnePeaceConfig.preset("nano"))
    save_pair(OnePeaceProcessor.from_config(model.config), model, place)
    return place


def run(kind: str, out: Path, given: argparse.Namespace) -> None:
    out.mkdir(parents=True)
    {"scenes": scenes, "trees": trees, "regions": regions}[kind](
        out / "data", {"train": given.train, "test": given.test}, given.seed
    )
    task = "segment" if kind == "regions" else "detect"
    data = out / "data" if task == "segment" else out / "data" / "instances.json"
    settings = {
        "model": fresh_nano(out / "fresh", given.seed) if given.fresh else "nano", "data": data, "task": task,
        "image_size": given.side, "steps": given.steps, "batch_size": given.batch, "lr": 1e-3, "augmentation": 0.3,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    started = time.process_time()
    assert (
        main(["train", "finetune", *words, "--out", str(out / "run"), "--seed", str(given.seed), "--device", "cpu"])
        == 0
    )
    spent = time.process_time() - started
    found = json.loads((out / "run" / "finetune.json").read_text())
    samples = scan_masks(data) if task == "segment" else scan_objects(data)
    train, test = ([s for s in samples if s.split == split] for split in ("train", "test"))
    labels = (
        train[0].meta["classes"] if task == "segment" else sorted({r["label"] for s in train for r in objects_in(s)})
    )
    assistant = Assistant(out / "run" / "model", device="cpu")
    found |= {"kind": kind, "start": "fresh" if given.fresh else "nano", "image_size": given.side, "steps": given.steps,
              "batch_size": given.batch, "seed": given.seed, "seconds": round(spent, 1),
              "parameters": size_of(assistant.model), **origin()}  # fmt: skip
    looked_at = test[:6]
    truth = [class_map(s).astype(int) - 1 if task == "segment" else objects_in(s) for s in looked_at]
    columns = [truth, ours(assistant, task, looked_at, 0.3)]
    if given.peer:
        torch.manual_seed(given.seed)
        peer = (segformer if task == "segment" else yolos)(labels, given.side)
        about = taught(peer, train, labels, given.side, spent, given.batch, given.seed)
        peer.model.eval()
        with torch.inference_mode():
            said = [peer.find(load_image(sample.image).convert("RGB")) for sample in test]
        found["peer"] = {**about, **score(task, said, test)}
        best = said[:6] if task == "segment" else [[row for row in one if row["score"] > 0.3] for one in said[:6]]
        columns.append(best)
    (out / "dense.json").write_text(json.dumps(found, indent=1))
    sheet(looked_at, columns, labels).save(out / "sheet.png")
    for name in ("trivial", "after", "peer"):
        if one := found.get(name):
            print(f"{name:<8} {one['metric']} {one['value']:.3f}  mask AP {one.get('mask AP', float('nan')):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("scenes", "trees", "regions"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--train", type=int, default=400, help="scenes to train on")
    parser.add_argument("--test", type=int, default=60, help="scenes to test on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="start ours from fresh weights")
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    given = parser.parse_args()
    run(given.kind, given.out, given)
