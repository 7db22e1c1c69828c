"""Golden cases of what surrounds mPLUG-Owl2: images, prompts, tokens, labels, sampling."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import decoders

from plait.data.order import even_chunks, length_grouped, modality_grouped
from plait.models.mplug_owl2.conversation import TEMPLATES, Encode, image_first, official_labels, tokenize, turns_of
from plait.models.mplug_owl2.processor import padded_square, pixels, stretched_square
from plait.parity.cases import Case
from plait.parity.runners import NotRun, runner
from plait.processing.talking import IGNORED
from plait.processing.tokenizers import llama_tokenizer

Outputs = dict[str, Any]
NO_TOKENIZER = NotRun("absent", "tokenizer.model is not in the directory")


@runner("mplug_owl2", "preprocess_images")
def preprocess_images(case: Case) -> Outputs:
    size = case.config["crop_size"]
    side = size if isinstance(size, int) else size["height"]
    statistics = case.config["image_mean"], case.config["image_std"]
    images = {name.removeprefix("image."): x.numpy() for name, x in case.stored_inputs.items()}
    outputs: Outputs = {}
    for name, spec in case.outputs.items():
        found = re.fullmatch(r"out\.([a-z_]+?)(8|\d{2,})?\.(\w+)", name)
        assert found is not None
        kind, large, index = found[1], found[2], found[3]
        image = Image.fromarray(images[index])
        if kind in ("square_uint", "padded_uint"):
            square = stretched_square(image) if kind == "square_uint" else padded_square(image, statistics[0])
            outputs[name] = torch.from_numpy(np.array(square))
            continue
        made = pixels(image, int(large or side), {"plain": "crop"}.get(kind, kind), *statistics)
        step = int(large or side) // spec.shape[-1]
        outputs[name] = made[:, ::step, ::step]
    return outputs


def llama_encode(case: Case) -> tuple[Encode, Any] | None:
    """The case's SentencePiece model as a function, None where this copy of the goldens leaves it out."""
    if case.file("tokenizer.model") is None:
        return None
    tokenizer = llama_tokenizer(case.path)
    return lambda text: tokenizer(text)["input_ids"], tokenizer


@runner("mplug_owl2", "prompts_tokenize", json_inputs=("template", "turns", "text"))
def prompts_tokenize(case: Case) -> Outputs:
    document, llama = case.document, llama_encode(case)
    conversations = []
    for item in document["conversation"]:
        template = TEMPLATES[item["template"]]
        prompt = template.prompt([(question, answer) for question, answer in item["turns"]])
        conversations.append({**item, "prompt": prompt, "stop": template.stop})
    tokens: Any = NO_TOKENIZER
    if llama is not None:
        tokens = [
            {
                "text": item["text"],
                "llama_ids": tokenize(item["text"], llama[0], llama[1].bos_token_id),
                "byte_ids": tokenize(item["text"], lambda text: list(text.encode()), None),
            }
            for item in document["tokenize"]
        ]
    templates = {}
    for name in document["templates"]:
        t = TEMPLATES[name]
        templates[name] = {
            "system": t.system,
            "roles": list(t.roles),
            "sep_style": t.style,
            "sep": t.sep,
            "sep2": t.sep2,
        }
        templates[name]["version"] = t.version
    return {"conversation": conversations, "tokenize": tokens, "templates": templates}


LABEL_INPUTS = ("template", "conversations", "has_image", "sep", "from_examples", "model_max_length", "pad_token_id")


@runner("mplug_owl2", "label_masking", json_inputs=LABEL_INPUTS)
def label_masking(case: Case) -> Outputs:
    document, llama = case.document, llama_encode(case)
    if llama is None:
        return dict.fromkeys(("examples", "plain", "collate"), NO_TOKENIZER)
    encode, tokenizer = llama
    examples = [{**item, **supervised(item, encode, tokenizer)} for item in document["examples"]]
    plain = []
    for item in document["plain"]:
        _, answer = item["conversations"]
        ids = tokenize("<|image|>" + answer["value"] + item["sep"], encode, tokenizer.bos_token_id)
        plain.append({**item, "input_ids": ids, "labels": [IGNORED, *ids[1:]]})
    return {"examples": examples, "plain": plain, "collate": collated(document["collate"], examples)}


def supervised(item: Mapping[str, Any], encode: Encode, tokenizer: Any) -> Outputs:
    """One training sample by the official rules."""
    messages = image_first(item["conversations"]) if item["has_image"] else list(item["conversations"])
    template = TEMPLATES[item["template"]]
    turns = turns_of(messages)
    text = template.prompt(turns)
    if turns and turns[-1][1] is None:  # the release writes messages, so nobody is asked to answer the last
        text = text.removesuffix(f"{template.roles[1]}:")
    ids = tokenize(text, encode, tokenizer.bos_token_id)
    labels = official_labels(ids, text, template, encode, tokenizer.bos_token_id)
    pieces = tokenizer.convert_ids_to_tokens([i for i in labels if i != IGNORED])
    plain = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    learned = plain.decode(pieces)  # the old tokenizer kept the first space
    return {"after_multimodal": messages, "input_ids": ids, "labels": labels, "supervised_text": learned}


def collated(request: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> Outputs:
    """A right-padded batch as the official collator makes it: padding is wherever the id is the padding id."""
    chosen = [examples[i] for i in request["from_examples"]]
    limit, pad = request["model_max_length"], request["pad_token_id"]
    width = min(limit, max(len(example["input_ids"]) for example in chosen))

    def rows(name: str, fill: int) -> list[list[int]]:
        cut = [list(example[name])[:width] for example in chosen]
        return [row + [fill] * (width - len(row)) for row in cut]

    ids = rows("input_ids", pad)
    mask = [[int(i != pad) for i in row] for row in ids]
    return {**request, "input_ids": ids, "labels": rows("labels", IGNORED), "attention_mask": mask}


@runner(
    "mplug_owl2",
    "length_sampler",
    json_inputs=("lengths", "batch_size", "world_size", "torch_seed", "num_chunks", "indices"),
)
def length_sampler(case: Case) -> Outputs:
    cases = []
    for item in case.document["cases"]:
        sizes = item["batch_size"], item["world_size"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(item["torch_seed"])
            # Where all is text the release sorts the negative lengths, the shortest first.
            grouped = length_grouped if max(item["lengths"]) < 0 else modality_grouped
            by_modality = grouped(item["lengths"], *sizes)
            torch.manual_seed(item["torch_seed"])
            by_length = length_grouped([abs(n) for n in item["lengths"]], *sizes)
        cases.append({**item, "modality_grouped": by_modality, "length_grouped": by_length})
    chunks = [
        {**item, "out": even_chunks(item["indices"], item["lengths"], item["num_chunks"])}
        for item in case.document["chunks"]
    ]
    return {"cases": cases, "chunks": chunks}
