"""Every row of `plait models` as a file: it loads by its path, gives the golden answer and does what its line names.

golden weights -> the layout of the published file or directory -> plait.load (logits, vectors) | the verbs of its line
"""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import plait
from plait.cli import main
from plait.models import official_rows
from plait.models.mplug_owl.model import from_runs
from plait.parity.run import runner_module
from plait.weights.files import read_checkpoint

from .mplug_owl2.tiny import byte_tokenizer
from .one_peace.test_files_and_verbs import FILES as HEADS
from .one_peace.test_files_and_verbs import INPUTS, media, write_file

__all__ = ["media"]  # the fixture

GOLDENS = Path(__file__).parents[1] / "goldens"
PIECES = GOLDENS / "mplug_owl2" / "prompts_tokenize" / "tokenizer.model"
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
expand_placeholders = runner_module("mplug_owl2_model").expand_placeholders


@dataclass(frozen=True)
class Row:
    """How one row of `plait models` is proved.

    write: (golden case, folder) -> the file or directory as it is published.
    case: whose weights it holds.
    agrees: (path, golden tensors) asserts that the loaded model gives the stored outputs.
    verbs: commands of its line; MODEL stands for the path, MEDIA for the folder of pictures, film and sound, OUT for
        an empty one, ROWS for a manifest, DIR for what `plait convert` makes of the file.
    """

    write: Callable[[str, Path], Path]
    case: str
    agrees: Callable[[Path, dict[str, Tensor]], None]
    verbs: tuple[str, ...]


def golden(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(GOLDENS / case / "weights.safetensors"), json.loads((GOLDENS / case / "config.json").read_text())


def widen(state: dict[str, Tensor], rows: int, *names: str) -> None:
    """Tables of words with room for a whole vocabulary; golden rows come first, and no bias lets others be written."""
    for name in names:
        table = torch.randn(rows, *state[name].shape[1:], generator=torch.Generator().manual_seed(0)) * 0.1
        if table.dim() == 1:
            table.fill_(-1e4)
        table[: len(state[name])] = state[name]
        state[name] = table


# ONE-PEACE: one file; heads are wrapped as in one_peace/test_files_and_verbs.py


def one_peace(name: str, *modalities: str) -> Callable[[str, Path], Path]:
    """A retrieval file: the branches of its modalities and what they share."""

    def write(case: str, place: Path) -> Path:
        state, config = golden(case)
        words = "encoder_wrapper.text_adapter.embed_tokens.weight"
        widen(state, 50264, words)
        others = {"text", "image", "audio"} - set(modalities)
        state = {key: value for key, value in state.items() if not any(other in key for other in others)}
        kind = {("text", "image"): "vl", ("text", "audio"): "al"}.get(modalities, "val")
        encoder = config["encoder"] | {f"use_{other}_moe": False for other in others}
        config |= {"vocab_size": 50264, "head_type": kind, "encoder": encoder}
        torch.save({"args": None, "cfg": {"model": config}, "model": state, "extra_state": {}}, place / name)
        return place / name

    return write


def vision_branch(case: str, place: Path) -> Path:
    """The pickle of the image branch: no final norm, no projection."""
    state, _ = golden(case)
    unused = ("text", "audio", "image_layer_norm", "version")
    keep = {
        key.removeprefix("encoder_wrapper.").replace("fusion_model.", "encoder.", 1): value
        for key, value in state.items()
        if key.startswith("encoder_wrapper.") and not any(word in key for word in unused)
    }
    path = place / "one-peace-vision.pkl"
    path.write_bytes(pickle.dumps({"model": keep, "__author__": "OFA-Sys", "matching_heuristics": True}))
    return path


def vectors_agree(path: Path, tensors: dict[str, Tensor]) -> None:
    model, _ = plait.load(path, official=True)
    ids, padding = tensors["in.src_tokens"], tensors["in.audio_padding_masks"].bool()
    given = {
        "text": {"input_ids": ids, "attention_mask": ids != 1},
        "image": {"pixel_values": tensors["in.src_images"]},
        "audio": {"input_values": tensors["in.src_audios"], "frame_mask": ~padding[:, 1:]},  # CLS stands first
    }
    for modality in model.modalities:
        with torch.no_grad():
            found = model.embed({modality: given[modality]})[modality]
        torch.testing.assert_close(found, tensors[f"out.{modality}_embedding"], **TOLERANCE)


def features_agree(path: Path, tensors: dict[str, Tensor]) -> None:
    model, _ = plait.load(path, official=True)
    with torch.no_grad():
        found = model.encode({"image": tensors["in.src_images"]}).features["image"]
    torch.testing.assert_close(found, tensors["out.hidden.2"], **TOLERANCE)


def head(name: str, *verbs: str) -> Row:
    """A file with a head; the logits of golden inputs have their test beside its other ones."""
    case = next(case for case, file in HEADS.items() if file == name)

    def agrees(path: Path, tensors: dict[str, Tensor]) -> None:
        model, _ = plait.load(path, official=True)
        assert model.config.num_classes == tensors["out.cls_score" if "video" in case else "out.logits"].shape[-1]
        assert {INPUTS.get(key[3:]) for key in tensors if key.startswith("in.")} - {None}

    return Row(lambda _, place: write_file(case, place), f"one_peace/{case}", agrees, verbs)


# mPLUG-2: a pickle of weights and settings


def mplug2(name: str) -> Callable[[str, Path], Path]:
    def write(case: str, place: Path) -> Path:
        state, config = golden(case)
        tables = [key for key in state if key.endswith(("word_embeddings.weight", "cls.predictions.decoder.weight"))]
        biases = [key for key in state if key.endswith(("cls.predictions.bias", "cls.predictions.decoder.bias"))]
        widen(state, 30522, *tables, *biases)
        config["bert_config"]["vocab_size"] = 30522
        torch.save({"model": state, "config": config, "epoch": 3}, place / name)
        return place / name

    return write


def texts_agree(path: Path, tensors: dict[str, Tensor]) -> None:
    """What five beams write about each clip, word for word."""
    model, _ = plait.load(path, official=True)
    given = {"pixel_values_videos": tensors["in.video"]}
    if "in.question_ids" in tensors:
        given |= {"input_ids": tensors["in.question_ids"], "attention_mask": tensors["in.question_mask"]}
    settings = read_checkpoint(path).config
    lengths = {name: settings[name] for name in ("min_length", "max_length")}
    found = model.generate(**given, num_beams=settings["beam_size"], **lengths)
    wanted = tensors["out.generate.ids"]
    for ours, theirs in zip(found.tolist(), wanted.tolist(), strict=True):
        theirs = [token for token in theirs if token >= 0]
        assert ours[: len(theirs)] == theirs


# mPLUG-Owl and Owl2: directories of sharded pickles, config.json and a tokenizer


def sharded(place: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    names, index = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, place / file)
        index |= dict.fromkeys(part, file)
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (place / "config.json").write_text(json.dumps(config))


def owl(name: str) -> Callable[[str, Path], Path]:
    def write(case: str, place: Path) -> Path:
        (place := place / name).mkdir()
        state, config = golden(case)
        is_bloom = config["text_config"]["model_type"] == "bloom"
        table = "transformer.word_embeddings" if is_bloom else "model.embed_tokens"
        widen(state, 512, f"language_model.{table}.weight", "language_model.lm_head.weight")
        config["text_config"]["vocab_size"] = 512
        sharded(place, state, config)
        if is_bloom:
            byte_tokenizer().save_pretrained(place)
        else:
            (place / "tokenizer.model").write_bytes(PIECES.read_bytes())
        return place

    return write


def owl_agrees(path: Path, tensors: dict[str, Tensor]) -> None:
    model, _ = plait.load(path, official=True)
    names = {"in.pixel_values": "pixel_values", "in.video_pixel_values": "pixel_values_videos"}
    seen = {ours: tensors[theirs] for theirs, ours in names.items() if theirs in tensors}
    wanted = tensors["out.prefill_logits"]
    with torch.no_grad():
        found = model(from_runs(tensors["in.input_ids"], model.config.media_ids), **seen).logits
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, **TOLERANCE)


def owl2(name: str) -> Callable[[str, Path], Path]:
    def write(case: str, place: Path) -> Path:
        (place := place / name).mkdir()
        state, config = golden(case)
        is_qwen = "kv_channels" in config
        widen(state, 512, "transformer.wte.weight" if is_qwen else "model.embed_tokens.weight", "lm_head.weight")
        if is_qwen:  # room for the words of a prompt; below either length nothing depends on it
            config |= {"seq_length": 512, "max_position_embeddings": 512}
        config |= {"vocab_size": 512, "model_type": "mplug_owl2_1" if is_qwen else "mplug_owl2"}
        sharded(place, state, config)
        if is_qwen:
            ranks = "\n".join(f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256))
            (place / "qwen.tiktoken").write_text(ranks)
        else:
            (place / "tokenizer.model").write_bytes(PIECES.read_bytes())
        return place

    return write


def owl2_agrees(path: Path, tensors: dict[str, Tensor]) -> None:
    model, _ = plait.load(path, official=True)
    made = expand_placeholders(
        tensors["in.input_ids"], tensors["in.images"], tokens_per_image=model.config.tokens_per_image,
        image_token_id=model.config.image_token,
    )  # fmt: skip
    wanted = tensors["out.logits"]
    with torch.no_grad():
        found = model(made.input_ids, pixel_values=made.pixel_values).logits
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, **TOLERANCE)


EMBED = "embed MODEL MEDIA/{} --out OUT/v.npy"
WORDS = "--max-length 4"
FINETUNE, SHORT = (
    "train finetune --set model=DIR --set data",
    "--set steps=1 --set batch_size=2 --out OUT/run --device cpu",
)
IMAGE_CHAT, VIDEO_CHAT = "chat MODEL --image MEDIA/0.png", "chat MODEL --video MEDIA/film.mp4"
TWO_IMAGES = "chat MODEL --image MEDIA/0.png --image MEDIA/1.png"
FILM_WORDS, FILM_ANSWER = f"caption MODEL MEDIA/film.mp4 {WORDS}", f"answer MODEL MEDIA/film.mp4 what? {WORDS}"
IMAGE_WORDS, IMAGE_ANSWER = f"caption MODEL MEDIA/0.png {WORDS}", f"answer MODEL MEDIA/0.png what? {WORDS}"
LLAMA, LLAMA_VIDEO, BLOOM = "mplug_owl/generate_greedy", "mplug_owl/video_generate", "mplug_owl/bloom_generate"
ROWS: dict[str, Row] = {
    "one-peace": Row(
        one_peace("one-peace.pt", "text", "image", "audio"), "one_peace/embeddings_val", vectors_agree,
        (EMBED.format("0.png"), EMBED.format("sound.wav"), "embed MODEL ROWS --out OUT/v.npy"),
    ),
    "one-peace-vision": Row(
        vision_branch, "one_peace/forward_image", features_agree,
        (f"{FINETUNE}=CLASSES --set task=classify {SHORT}", f"{FINETUNE}=OBJECTS --set task=detect {SHORT}"),
    ),
    "finetune_coco": Row(
        one_peace("finetune_coco.pt", "text", "image"), "one_peace/embeddings_val", vectors_agree,
        (EMBED.format("0.png"),),
    ),
    "finetune_al_retrieval": Row(
        one_peace("finetune_al_retrieval.pt", "text", "audio"), "one_peace/embeddings_val", vectors_agree,
        (EMBED.format("sound.wav"),),
    ),
    "finetune_refcoco": head("finetune_refcoco.pt", "ground MODEL MEDIA/0.png dog"),
    "finetune_vqa": head("finetune_vqa.pt", "answer MODEL MEDIA/0.png what?"),
    "finetune_nlvr2": head("finetune_nlvr2.pt", "answer MODEL PAIRS"),
    "finetune_aqa": head("finetune_aqa.pt", "answer MODEL MEDIA/sound.wav what? --answers dog,bell"),
    "finetune_fsd50k": head("finetune_fsd50k.pt", "classify MODEL MEDIA/sound.wav"),
    "finetune_vggsound": head("finetune_vggsound.pt", "classify MODEL MEDIA/sound.wav"),
    "onepeace_ft_21kto1k_384": head("onepeace_ft_21kto1k_384.pth", "classify MODEL MEDIA/0.png"),
    "onepeace_video_k400": head("onepeace_video_k400.pth", "classify MODEL MEDIA/film.mp4"),
    "mplug2_msrvtt_caption": Row(
        mplug2("mPLUG2_MSRVTT_Caption.pth"), "mplug2/videocaption_a", texts_agree, (FILM_WORDS,)
    ),
    "mplug2_msvd_caption": Row(
        mplug2("mPLUG2_MSVD_Caption.pth"), "mplug2/videocaption_b_projected", texts_agree, (FILM_WORDS,)
    ),
    "mplug2_msrvtt_qa": Row(mplug2("mPLUG2_MSRVTT_QA.pth"), "mplug2/videoqa_a", texts_agree, (FILM_ANSWER,)),
    "mplug2_msvd_qa": Row(
        mplug2("mPLUG2_MSVD_QA.pth"), "mplug2/videoqa_b_projected_stride2", texts_agree, (FILM_ANSWER,)
    ),
    "mplug2_pretrain": Row(
        mplug2("mPLUG2_Pretrain.pth"), "mplug2/videoqa_a", texts_agree,
        (FILM_WORDS, IMAGE_WORDS, f"train mplug2.captioning --set init=DIR --set data=FILMS {SHORT}"),
    ),
    "mplug-owl-llama-7b-pt": Row(
        owl("mplug-owl-llama-7b-pt"), LLAMA, owl_agrees,
        (f"train mplug_owl.stage2 --set init=DIR --set data=TALK {SHORT}",),
    ),
    "mplug-owl-llama-7b": Row(owl("mplug-owl-llama-7b"), LLAMA, owl_agrees, (IMAGE_CHAT,)),
    "mplug-owl-llama-7b-ft": Row(owl("mplug-owl-llama-7b-ft"), LLAMA, owl_agrees, (IMAGE_CHAT, TWO_IMAGES)),
    "mplug-owl-bloomz-7b-multilingual": Row(
        owl("mplug-owl-bloomz-7b-multilingual"), BLOOM, owl_agrees, (IMAGE_CHAT,)
    ),
    "mplug-owl-llama-7b-video": Row(
        owl("mplug-owl-llama-7b-video"), LLAMA_VIDEO, owl_agrees, (IMAGE_CHAT, VIDEO_CHAT)
    ),
    "mplug-owl2-llama2-7b": Row(
        owl2("mplug-owl2-llama2-7b"), "mplug_owl2/owl2_mm_prefill_decode", owl2_agrees,
        (IMAGE_CHAT, TWO_IMAGES, VIDEO_CHAT, IMAGE_WORDS, IMAGE_ANSWER),
    ),
    "mplug_owl_2_1": Row(
        owl2("mplug_owl_2_1"), "mplug_owl2/owl21_mm_prefill_decode", owl2_agrees,
        (IMAGE_CHAT, TWO_IMAGES, IMAGE_WORDS, IMAGE_ANSWER),
    ),
}  # fmt: skip


def test_every_listed_row_is_walked() -> None:
    assert list(ROWS) == list(official_rows())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a row -> its file or directory, written once."""
    root, made = tmp_path_factory.mktemp("listed"), dict[str, Path]()

    def place(name: str) -> Path:
        if name not in made:
            made[name] = ROWS[name].write(ROWS[name].case, root)
        return made[name]

    return place


@pytest.mark.parametrize("name", ROWS)
def test_a_listed_file_gives_its_golden_answer(name: str, places: Callable[[str], Path]) -> None:
    row = ROWS[name]
    row.agrees(places(name), load_file(GOLDENS / row.case / "tensors.safetensors"))


@pytest.fixture(scope="module")
def rows(media: Path) -> dict[str, Path]:
    """Word of a command -> the file that stands there; all lie beside pictures, film and sound."""
    pictures, film = [f"{i}.png" for i in range(2)], {"video": "film.mp4", "captions": ["it grows brighter"]}
    split = [{"image": pictures[i % 2], "split": ("train", "test")[i // 4]} for i in range(8)]
    talk = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a fractal"}]
    manifests = {
        "ROWS": [{"image": pictures[0]}, {"audio": "sound.wav"}, {"text": "a bell"}],
        "PAIRS": [{"question": "both show a dog", "images": pictures}],
        "FILMS": [film, film, film, film],
        "CLASSES": [{**one, "label": "ab"[i % 2]} for i, one in enumerate(split)],
        "OBJECTS": [{**one, "boxes": [[4, 4, 30, 20]], "box_labels": ["ab"[i % 2]]} for i, one in enumerate(split)],
        "TALK": [{"image": pictures[i % 2], "messages": talk} for i in range(4)],
    }
    for name, lines in manifests.items():
        written = "".join(json.dumps({"id": str(i), **line}) + "\n" for i, line in enumerate(lines))
        (media / f"{name}.jsonl").write_text(written)
    return {"MEDIA": media, **{name: media / f"{name}.jsonl" for name in manifests}}


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name, row in ROWS.items() for verb in row.verbs])
def test_a_listed_file_does_what_its_line_names(
    name: str,
    verb: str,
    places: Callable[[str], Path],
    rows: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stands = {"MODEL": places(name), "OUT": tmp_path, "DIR": tmp_path / "model", **rows}
    if "DIR" in verb:
        assert main(["convert", str(places(name)), str(tmp_path / "model")]) == 0
        capsys.readouterr()
    command = []
    for word in verb.split():
        head, slash, rest = word.partition("/")
        key, equals, value = head.partition("=")
        head = f"{key}={stands[value]}" if equals and value in stands else str(stands.get(head, head))
        command.append(head + slash + rest)
    if command[0] == "chat":
        monkeypatch.setattr("sys.stdin", io.StringIO("what is this?\n"))
        command += ["--max-new-tokens", "4", "--json"]
    elif command[0] in ("caption", "answer", "ground", "classify"):
        command.append("--json")
    code = main(command)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    said = [json.loads(line) for line in shown.out.splitlines()] if "--json" in command else []
    if command[0] == "embed":
        vectors = np.load(tmp_path / "v.npy")
        assert len(vectors) == (3 if "ROWS" in verb else 1)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    elif command[0] in ("caption", "answer", "chat"):
        assert len(said) == 1 and {"caption", "answer", "answers", "text"} & said[0].keys()
    elif command[0] == "ground":
        assert len(said[0]["box"]) == 4
    elif command[0] == "classify":
        assert said[0]["labels"]
    else:
        assert (tmp_path / "run" / "model" / "config.json").is_file()
