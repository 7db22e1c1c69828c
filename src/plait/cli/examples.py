"""The `Examples:` that end the help of every verb; a test reads each as the command line would."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, tuple[str, ...]] = {
    "search": (
        "plait search photos.lance --text 'a dog in the snow' -k 5",
        "plait search photos.lance --audio bark.wav --not 'a puppy' --weights audio=0.7,not=0.3 --html hits.html",
    ),
    "caption": ("plait caption captioner clip.mp4", "plait caption captioner clips/ --num-beams 4 --json"),
    "answer": (
        "plait answer vqa clip.mp4 'what is he doing?'",
        "plait answer vqa photos/ 'is it day?' --answers yes,no",
    ),
    "chat": ("plait chat owl2 --image cat.jpg", "echo 'What is this?' | plait chat owl2 --image cat.jpg --json"),
    "train": (
        "plait train finetune --set model=nano --set data=my-data --set task=retrieval --out runs/mine",
        "plait train one_peace.stage1 --set steps=2400 --set lr=1e-3 --dtype bfloat16",
    ),
    "eval": (
        "plait eval --list",
        "plait eval flickr30k_retrieval one-peace --data data/flickr30k --out runs/flickr",
        "plait eval compare runs/a/result.json runs/b/result.json",
    ),
    "serve": ("plait serve --embed nano --index photos.lance", "plait serve --chat owl2 --port 9000 --timeout 60"),
    "ui": ("plait ui --index photos.lance", "plait ui --chat owl2 --assist captioner --port 0"),
    "get": ("plait get one-peace", "plait get smollm2"),
    "embed": (
        "plait embed nano photos/ --out vectors.parquet",
        "plait embed nano --text 'a dog' --text 'a cat' --out words.npy",
    ),
    "index": (
        "plait index create photos.lance --model nano",
        "plait index add photos.lance photos/ --model nano",
        "plait index add photos.lance clips/ --every 5s",
        "plait index delete photos.lance photos/old",
        "plait index check photos.lance --contents",
        "plait index prune photos.lance",
        "plait index move photos.lance photos/old pictures/",
        "plait index update photos.lance --where \"path LIKE '%beach%'\" --label beach",
        "plait index list photos.lance --limit 20",
        "plait index dedup photos.lance",
        "plait index stats photos.lance --json",
        "plait index optimize photos.lance",
        "plait index similar photos.lance photos/rex.jpg -k 5",
        "plait index duplicates photos.lance --within 0.1",
        "plait index watch photos.lance photos/ --poll 10",
    ),
    "ground": ("plait ground grounder street.jpg 'the red car'", "plait ground grounder rows.jsonl --json"),
    "detect": ("plait detect detector photos/ --threshold 0.6 --draw drawn --coco results.json",),
    "segment": ("plait segment segmenter photos/ --masks maps --draw drawn",),
    "classify": (
        "plait classify classifier photos/ --top 3",
        "plait classify nano photos/ --labels drum,guitar,bell",
    ),
    "data": (
        "plait data from-folder photos/ my-data",
        "plait data from-folder coco.json my-data --media train2014",
        "plait data from-benchmark vqav2 data/vqav2 my-vqa",
        "plait data check my-data",
        "plait data pack my-data my-shards --outside",
        "plait data build mini --shipped --out data/mini",
    ),
    "plan": (
        "plait plan one_peace.stage1 --set preset=4b --set batch_size=32",
        "plait plan mplug2 caption",
        "plait plan mplug2 --all",
    ),
    "info": ("plait info one-peace",),
    "models": ("plait models --family mplug2", "plait models --remove one-peace"),
    "doctor": ("plait doctor", "plait doctor --no-parity --json", "plait doctor nano"),
    "convert": (
        "plait convert one-peace.pt one-peace",
        "plait convert mPLUG2_MSRVTT_Caption.pth captioner --task caption --branch video",
    ),
    "merge": ("plait merge owl runs/mine/adapter owl-mine",),
    "upcycle": ("plait upcycle SmolLM2-135M-Instruct owl2-small --image-size 224",),
    "export": ("plait export one-peace --part image --out tower.onnx",),
    "parity": ("plait parity tests/goldens --system mplug2 --attn sdpa",),
}
"""Verb -> lines; those of a verb with sub-verbs say which."""


def with_examples(name: str, command: Any, lines: tuple[str, ...]) -> Any:
    """A command, or a group and each of its commands, whose help ends with the lines that are about it."""
    for sub, one in {"": command, **(getattr(command, "commands", None) or {})}.items():
        own = [line for line in lines if f"plait {name} {sub}".rstrip() in line]
        # An empty line between any two: typer joins the others into a paragraph.
        one.epilog = "\n\n".join(["Examples:", *(f"  {line}" for line in own)]) if own else None
    return command
