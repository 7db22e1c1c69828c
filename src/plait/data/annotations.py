"""Annotation files that many data sets come with -> samples: COCO (captions, boxes, masks), conversations (LLaVA, Owl).

annotations.json + folder of media -> rows -> split by file -> `Scan`, as of a folder
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.data.folder import Scan, decode_file, split_groups
from plait.data.manifest import address, decoded, no_such_file
from plait.data.packages import sha256
from plait.media.kinds import kind_of
from plait.reading import inside
from plait.types import Sample

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SPEAKERS = re.compile(r"(?:^|\n)(Human|AI): ?")
"""At the start of a line alone: "OpenAI: " inside of one opens no answer (specification mPLUG-Owl, 8.1)."""


def scan_annotations(file: str | Path, media: str | Path | None = None, test_share: float = 0.2) -> Scan:
    """Read a COCO or LLaVA JSON, or the JSON lines that mPLUG-Owl was trained on.

    Rows of one file (and of files with the same bytes) are on the same side of the split; conversations without a
    medium are kept. Files that are missing or damaged are left out.

    Args:
        file: the JSON, or JSON lines. media: the folder of its files, by default that of the JSON.
        test_share: of the files, 0 up to 1.

    Returns:
        Samples with their split, and a line per row that was left out.

    Raises:
        ValueError: where the JSON is neither, names a file outside the folder, or nothing is left.
    """
    path = Path(file)
    root = path.parent if media is None else Path(media)
    found = Scan()
    groups: dict[str, str] = {}
    # digest of a file -> that of the group it is in: files that a row shows together stay together
    joined: dict[str, str] = {}
    known: dict[Path, str | ValueError] = {}
    for row, names in _rows(decoded_json(path), path):
        digests, places = [], []
        for name in names:
            place = _place(root, name, path, row["id"])
            if place not in known:
                # Many rows are about one file: it is decoded and hashed once.
                known[place] = _digest(place)
            digests.append(known[place])
            places.append(place)
        if bad := [one for one in digests if isinstance(one, ValueError)]:
            found.left_out.append(f"{row['id']}: {bad[0]}")
            continue
        held = {"images": [str(place) for place in places]}
        if len(places) < 2:
            held = {str(kind_of(place)): str(place) for place in places}
        elif any(kind_of(place) != "image" for place in places):
            raise ValueError(f"{path}, {row['id']}: expected one medium or several images, got {', '.join(names)}")
        # a conversation about nothing: of one group with others of the same words
        group = [_root(joined, str(digest)) for digest in digests] or [json.dumps(row.get("messages"))]
        joined |= dict.fromkeys(group[1:], group[0])
        sample = Sample.from_row({**row, **held, "source": path.name})
        groups[sample.id] = group[0]
        found.samples.append(sample)
    if not found.samples:
        first = f", the first: {found.left_out[0]}" if found.left_out else ""
        raise ValueError(f"expected rows of {path} with media in {root}, got {len(found.left_out)} left out{first}")
    split_groups(found.samples, {name: _root(joined, group) for name, group in groups.items()}, test_share)
    return found


def _root(joined: Mapping[str, str], group: str) -> str:
    """The group that a group became part of, itself where it did not."""
    while joined.get(group, group) != group:
        group = joined[group]
    return group


def _place(root: Path, name: str, path: Path, row: str) -> Path:
    """The file of a name. Raises ValueError for addresses and names that lead outside `root`."""
    try:
        if what := address(name):
            raise ValueError(f"expected the name of a file, got {what} {name[:80]!r}")
        return inside(root, name).resolve()
    except ValueError as error:
        raise ValueError(f"{path}, {row}: {error}; pass the folder of the files as --media") from error


def scan_objects(file: str | Path, test_share: float = 0.2) -> list[Sample]:
    """The images of a COCO instances file, a sample each with all of its objects, split by file.

    Args:
        file: the JSON; images lie beside it or in `images` beside it.
        test_share: of the images, 0 up to 1, for rows whose image names no `split` itself.

    Returns:
        Samples with `boxes` (corners in pixels), and in `meta` as many `box_labels`, `segmentations` and `crowds`.

    Raises:
        ValueError: where the JSON is no instances file, names an image outside of the folder or one that is not
            there, or an annotation has no image, box or category of the file.
    """
    path = Path(file)
    written = decoded_json(path)
    if not isinstance(written, dict) or not all(isinstance(written.get(k), list) for k in ("images", "annotations")):
        raise ValueError(f"expected a COCO file with images and annotations, got {path}; pass an instances file")
    names = {one["id"]: str(one["name"]) for one in written.get("categories") or ()}
    samples: dict[Any, Sample] = {}
    for one in written["images"]:
        name = str(one["file_name"])
        places = [inside(root, name) for root in (path.parent, path.parent / "images")]
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            raise ValueError(f"{path}: expected the picture {name} beside it, got no such file; put it there")
        meta = {"box_labels": [], "segmentations": [], "crowds": []}
        samples[one["id"]] = Sample(
            f"image-{one['id']}", image=str(place), boxes=[], split=one.get("split"), source=path.name, meta=meta
        )
    for one in written["annotations"]:
        sample, label = samples.get(one.get("image_id")), names.get(one.get("category_id"))
        if sample is None or label is None or len(one.get("bbox") or ()) != 4:
            what = "a picture" if sample is None else "a category" if label is None else "a bbox of four numbers"
            raise ValueError(f"{path}, annotation {one.get('id')}: expected {what} of the file, got none; correct it")
        x, y, width, height = one["bbox"]
        assert sample.boxes is not None
        sample.boxes.append([x, y, x + width, y + height])
        sample.meta["box_labels"].append(label)
        sample.meta["segmentations"].append(one.get("segmentation"))
        sample.meta["crowds"].append(bool(one.get("iscrowd")))
    if not all(sample.split for sample in samples.values()):
        split_groups(list(samples.values()), {s.id: sha256(Path(s.image)) for s in samples.values()}, test_share)
    return list(samples.values())


MASKS = ("masks", "annotations")
SPLITS = {"training": "train", "validation": "test", "val": "test"}


def scan_masks(folder: str | Path, test_share: float = 0.2) -> list[Sample]:
    """Images with a class for every pixel, as ADE20K lays them out: `images/**/a.jpg` and `masks/**/a.png`.

    Args:
        folder: with `images`, and `masks` or `annotations`: grey PNG of the images' sizes, 0 = unlabelled, k = the
            class on line k of `classes.txt`, whose names are their numbers without that file. The first sub-folder is
            the split (training, validation, or as it is called).
        test_share: of the images, where no sub-folder tells their split.

    Returns:
        Samples with `mask`, the path of the PNG, and `classes`, the names, in `meta`.

    Raises:
        ValueError: without masks, and for a mask without an image, of another mode or size, or with a class that
            `classes.txt` does not name.
    """
    import numpy as np
    from PIL import Image

    root = Path(folder)
    home = next((root / name for name in MASKS if (root / name).is_dir()), None)
    places = sorted(home.rglob("*.png")) if home is not None else []
    if home is None or not places:
        raise ValueError(
            f"expected grey PNG under {' or '.join(MASKS)} in {root}, got none; put a mask per picture there"
        )
    listed = root / "classes.txt"
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else None
    samples, most = [], 0
    for place in places:
        inner = place.relative_to(home)
        found = sorted((root / "images" / inner.parent).glob(f"{inner.stem}.*"))
        if not found:
            raise ValueError(f"{place}: expected a picture {inner.stem} in {root / 'images' / inner.parent}, got none")
        with Image.open(place, formats=("PNG",)) as mask, Image.open(found[0]) as picture:
            if mask.mode not in ("L", "P") or mask.size != picture.size:
                raise ValueError(
                    f"{place}: expected a grey mask of {picture.size} pixels, got {mask.mode} of {mask.size}; make it "
                    "as large as its picture"
                )
            largest = int(np.asarray(mask).max())
        if names is not None and largest > len(names):
            raise ValueError(f"{place}: expected classes up to {len(names)}, got {largest}; name it in {listed}")
        most = max(most, largest)
        split = SPLITS.get(inner.parts[0], inner.parts[0]) if len(inner.parts) > 1 else None
        meta = {"mask": str(place)}
        samples.append(Sample(inner.with_suffix("").as_posix(), image=str(found[0]), split=split, meta=meta))
    classes = names or [str(number) for number in range(1, most + 1)]
    for sample in samples:
        sample.meta["classes"] = classes
    if not all(sample.split for sample in samples):
        split_groups(samples, {sample.id: sha256(Path(sample.image)) for sample in samples}, test_share)
    return samples


def decoded_json(path: Path) -> Any:
    """What a JSON file of annotations holds; of JSON lines a list. Raises ValueError where it cannot be read."""
    try:
        text = decoded(path.read_bytes(), path)
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON file of annotations, got {path}: {error}") from error


def _digest(place: Path) -> str | ValueError:
    """The SHA-256 of a file that decodes, or why it does not."""
    kind = kind_of(place) if place.is_file() else None
    if kind not in ("image", "video", "audio"):
        got = no_such_file(str(place)) if kind is None else kind
        return ValueError(f"expected a picture, sound or video {place}, got {got}")
    try:
        decode_file(place, kind)
    except ValueError as error:
        return error
    return sha256(place)


def _rows(written: Any, path: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Rows without media, each with the names of its files, where it has any."""
    if isinstance(written, dict) and isinstance(written.get("images"), list):
        return _coco(written, path)
    if isinstance(written, list) and written and all(isinstance(one, dict) for one in written):
        return _owl(written, path) if "task_type" in written[0] else _llava(written, path)
    raise ValueError(
        f"expected COCO (images, annotations), LLaVA (conversations) or mPLUG-Owl (text, task_type) in "
        f"{path}, got another {type(written).__name__}"
    )


def _coco(written: Mapping[str, Any], path: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """A row per picture with its captions, and a row per box with the name of its category."""
    try:
        # Some writers quote ids in one list and not in the other: as text they are one.
        files = {str(image["id"]): image["file_name"] for image in written["images"]}
        names = {str(one["id"]): one["name"] for one in written.get("categories") or ()}
        captions: dict[Any, list[str]] = defaultdict(list)
        boxes = []
        for one in written.get("annotations") or ():
            if "caption" in one:
                captions[str(one["image_id"])].append(str(one["caption"]).strip())
            elif one.get("iscrowd"):
                # the outline of a crowd (run lengths), whose box is that of no one thing
                continue
            elif one.get("bbox") is not None:
                x, y, width, height = one["bbox"] or (0, 0, 0, 0)
                if not (width > 0 and height > 0):
                    raise ValueError(
                        f"{path}, annotation {one.get('id')}: expected a box, got an empty one {one['bbox']}"
                    )
                # COCO writes corner and size, `Sample.boxes` two corners.
                corners = [x, y, x + width, y + height]
                boxes.append((one["id"], files[str(one["image_id"])], names.get(str(one.get("category_id"))), corners))
        for number, several in captions.items():
            yield {"id": f"image-{number}", "text": several[0], "captions": several}, [files[number]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected COCO annotations in {path}, got one without {error}") from error
    for number, name, category, corners in boxes:
        yield {"id": f"box-{number}", "text": category, "label": category, "boxes": [corners]}, [name]


def _llava(written: list[dict[str, Any]], path: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """A row per conversation: all turns as messages, the first question and answer by themselves as well."""
    for number, one in enumerate(written):
        turns = one.get("conversations")
        if not isinstance(turns, list):
            raise ValueError(f"{path}, entry {number}: expected conversations, got none")
        messages = [
            {"role": ROLES.get(str(turn.get("from")), "user"), "content": str(turn.get("value", ""))} for turn in turns
        ]
        yield _talk(str(one.get("id", number)), messages), _named(one, f"{path}, entry {number}")


def _owl(written: list[dict[str, Any]], path: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """A row per line of mPLUG-Owl's training files: image (a list, or none), text (the whole conversation), task_type.

    Lines that people say one after another are one turn, its images first, as they are tokenized.
    """
    for number, one in enumerate(written):
        where, text = f"{path}, line {number + 1}", one.get("text")
        if not isinstance(text, str) or not isinstance(one.get("task_type"), str):
            raise ValueError(f"{where}: expected text and task_type (such as llava_sft), got {sorted(one)}")
        opening, *said = _SPEAKERS.split(text)
        messages = [{"role": "system", "content": opening.rstrip("\n")}] if opening.strip() else []
        for speaker, words in zip(said[::2], said[1::2], strict=True):
            role = "user" if speaker == "Human" else "assistant"
            if messages and messages[-1]["role"] == role == "user":
                is_image = messages[-1]["content"].endswith("<image>")
                messages[-1]["content"] += words if is_image else f"\n{words}"
            else:
                messages.append({"role": role, "content": words})
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError(f"{where}: expected lines that begin with 'Human: ' and 'AI: ', got {text[:60]!r}")
        yield {**_talk(str(one.get("id", number)), messages), "task_type": one["task_type"]}, _named(one, where)


def _talk(ident: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The row of a conversation."""
    asked = next((m["content"] for m in messages if m["role"] == "user"), "")
    said = next((m["content"] for m in messages if m["role"] == "assistant"), None)
    row: dict[str, Any] = {"id": ident, "messages": messages}
    row["question"] = " ".join(asked.replace("<image>", " ").replace("<video>", " ").split())
    return {**row, "answers": [said]} if said else row


def _named(one: Mapping[str, Any], where: str) -> list[str]:
    """The files of a conversation: `image` (a name, or a list of names) or `video`."""
    named = one.get("image") or one.get("video") or []
    several = named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) for name in several):
        raise ValueError(f"{where}: expected images or a video by name, got {named!r:.60}")
    return several
