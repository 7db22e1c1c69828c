"""Detectors and segmenters trained on exact boxes and masks, beside a peer of the same size and no model at all.

    python benchmarks/dense.py scenes OUT    composed scenes: cut-outs of Tux Paint (GPL-2) on aerial photographs
    python benchmarks/dense.py trees OUT     crowns of trees, boxes drawn by people (DeepForest, MIT)
    python benchmarks/dense.py regions OUT   the composed scenes, a group for every pixel of a cut-out

data -> plait train finetune --set task=detect -> box AP, mask AP; the peer (YOLOS: a plain transformer with detection
tokens, as wide and deep as nano's image branch) trains from fresh weights for as many seconds of the processor. What
was found is drawn; all files lie in OUT, `dense.json` holds the figures. The peer needs scipy (its matching).

Objects and backgrounds of test scenes are in no training scene; test tiles of trees are of another site (OSBS) and of a
strip of the large photograph that no training tile touches.
"""

from __future__ import annotations

import argparse
import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, YolosConfig, YolosForObjectDetection

from plait.cli import main
from plait.data.annotations import scan_masks, scan_objects
from plait.data.packages import unpacked
from plait.media.image import load_image
from plait.models.one_peace.processor import padded
from plait.processing.regions import detection_labels, fit, read_mask, read_objects
from plait.recipes.finetune import class_map, objects_in, score

GROUPS = ("animals", "food", "vehicles", "household")
PHOTOS = ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop", "SOAP_061", "OSBS_029")
STRIP = 0.7
"""Share of the large photograph's width that training tiles lie in."""
TILE = 400


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
    from pycocotools import mask as tools

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
                runs = tools.encode(np.asfortranarray(one["mask"].astype(np.uint8)))
                row["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
            annotations.append(row)
    categories = [{"id": i, "name": label} for i, label in enumerate(labels, 1)]
    written = {"images": images, "annotations": annotations, "categories": categories}
    (out / "instances.json").write_text(json.dumps(written))


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


def segmenting_peer(data: Path, side: int, seconds: float, batch: int, seed: int) -> dict[str, Any]:
    """SegFormer of about as many parameters, trained for so many seconds of the processor; mirrored pictures."""
    torch.manual_seed(seed)
    rng, samples = np.random.default_rng(seed), scan_masks(data)
    train, test = ([s for s in samples if s.split == split] for split in ("train", "test"))
    config = SegformerConfig(
        hidden_sizes=[32, 64, 128, 192], depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 4, 6], decoder_hidden_size=128,
        num_labels=len(GROUPS) + 1,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    started, steps = time.process_time(), 0
    while (spent := time.process_time() - started) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (steps + 1) / 50, 0.02 + 2 * (1 - spent / seconds))
        pixels, targets = [], []
        for sample in (train[i] for i in rng.integers(0, len(train), batch)):
            flip = bool(rng.uniform() < 0.5)
            pixels.append(fit(load_image(sample.image).convert("RGB"), side, flip=flip).pixels)
            mask = Image.fromarray(class_map(sample)).resize((side, side), Image.Resampling.NEAREST)
            targets.append(torch.from_numpy(np.asarray(mask)[:, :: -1 if flip else 1].astype(np.int64)) - 1)
        loss = model(pixel_values=torch.stack(pixels), labels=torch.stack(targets)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    found = []
    for sample in test:
        picture = load_image(sample.image).convert("RGB")
        with torch.inference_mode():
            logits = model.eval()(pixel_values=fit(picture, side).pixels[None]).logits
        size = (picture.height, picture.width)
        found.append(torch.nn.functional.interpolate(logits, size=size, mode="bilinear")[0].argmax(0).numpy())
    parameters = sum(p.numel() for p in model.parameters())
    return {"steps": steps, "parameters": parameters, "seconds": spent, **score("segment", found, test)}


def peer(data: Path, side: int, seconds: float, batch: int, seed: int) -> dict[str, Any]:
    """YOLOS of nano's width and depth, trained for so many seconds of the processor, with the same augmentation."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    samples = scan_objects(data / "instances.json")
    labels = sorted({row["label"] for sample in samples for row in objects_in(sample)})
    numbers = {label: i for i, label in enumerate(labels)}
    train, test = ([s for s in samples if s.split == split] for split in ("train", "test"))
    config = YolosConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, image_size=[side, side],
        num_detection_tokens=60, use_mid_position_embeddings=False, id2label=dict(enumerate(labels)),
        label2id=numbers,
    )  # fmt: skip
    model = YolosForObjectDetection(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    started, steps = time.process_time(), 0
    while (spent := time.process_time() - started) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 5e-4 * min(1.0, (steps + 1) / 50, 0.02 + 2 * (1 - spent / seconds))
        fitted = []
        for sample in (train[i] for i in rng.integers(0, len(train), batch)):
            picture = load_image(sample.image).convert("RGB")
            rows = [{**row, "category_id": row["label"], "segmentation": None} for row in objects_in(sample)]
            objects = read_objects(rows, numbers, picture.size, sample.id)
            scale = float(np.exp(rng.uniform(np.log(0.73), np.log(1.3))))
            place, flip = (rng.uniform(), rng.uniform()), bool(rng.uniform() < 0.5)
            fitted.append(fit(picture, side, objects, scale=scale, place=place, flip=flip))
        targets = [detection_labels(one) for one in fitted]
        for one, target in zip(fitted, targets):  # it knows no padding: shares of the whole square
            target["boxes"] = target["boxes"] * torch.tensor(one.size * 2) / side
        loss = model(pixel_values=padded(fitted)["pixel_values"], labels=targets).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        steps += 1
    found = []
    for sample in test:
        picture = load_image(sample.image).convert("RGB")
        with torch.inference_mode():
            out = model.eval()(pixel_values=fit(picture, side).pixels[None])
        shares, classes = out.logits[0].softmax(-1)[:, :-1].max(-1)
        corner = out.pred_boxes[0] * torch.tensor(picture.size * 2)
        found.append(
            [
                {"label": labels[label], "score": share, "bbox": [x - w / 2, y - h / 2, w, h]}
                for label, share, (x, y, w, h) in zip(classes.tolist(), shares.tolist(), corner.tolist())
            ]
        )
    parameters = sum(p.numel() for p in model.parameters())
    return {"steps": steps, "parameters": parameters, "seconds": spent, **score("detect", found, test)}


def run(
    kind: str, out: Path, side: int, steps: int, batch: int, counts: dict[str, int], seed: int, has_peer: bool
) -> None:
    out.mkdir(parents=True)
    {"scenes": scenes, "trees": trees, "regions": regions}[kind](out / "data", counts, seed)
    task = "segment" if kind == "regions" else "detect"
    data = out / "data" if task == "segment" else out / "data" / "instances.json"
    settings = {"model": "nano", "data": data, "task": task, "image_size": side, "steps": steps, "batch_size": batch,
                "lr": 1e-3}  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    started = time.process_time()
    assert main(["train", "finetune", *words, "--out", str(out / "run"), "--seed", str(seed), "--device", "cpu"]) == 0
    spent = time.process_time() - started
    found = json.loads((out / "run" / "finetune.json").read_text())
    found |= {"kind": kind, "image_size": side, "steps": steps, "batch_size": batch, "seed": seed, "seconds": spent}
    if has_peer:
        found["peer"] = (segmenting_peer if task == "segment" else peer)(out / "data", side, spent, batch, seed)
    (out / "dense.json").write_text(json.dumps(found, indent=1))
    shown = out / "shown"
    shown.mkdir()
    for path in sorted((out / "data" / "images").rglob("test-*.png"))[:6]:
        (shown / path.name).write_bytes(path.read_bytes())
    options = ["--threshold", "0.3"] if task == "detect" else []
    main([task, str(out / "run" / "model"), str(shown), "--draw", str(out / "drawn"), *options])
    for name in ("trivial", "after", "peer"):
        if one := found.get(name):
            print(f"{name:<8} {one['metric']} {one['value']:.3f}  mask AP {one.get('mask AP', float('nan')):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("scenes", "trees", "regions"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--train", type=int, default=600, help="scenes to train on")
    parser.add_argument("--test", type=int, default=100, help="scenes to test on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    given = parser.parse_args()
    counts = {"train": given.train, "test": given.test}
    run(given.kind, given.out, given.side, given.steps, given.batch, counts, given.seed, given.peer)
