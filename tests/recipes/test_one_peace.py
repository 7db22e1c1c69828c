"""The two stages from manifest to model directory, on a handful of drawn pictures and sine waves."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import plait
from plait.cli import main
from plait.recipes.one_peace import stage1, stage2, vocabulary
from plait.training.logging import read_metrics
from plait.training.run import run_recipe
from plait.types import Sample


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    import soundfile

    root = tmp_path_factory.mktemp("data")
    rows = []
    for c, name in enumerate(["bell", "drum", "cat", "tree"]):
        for style in range(3):
            picture = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(picture).ellipse((8 + 5 * c, 8, 40 + 5 * c, 40 + 4 * style), fill=(60 * c, 80 * style, 90))
            path = root / f"{name}-{style}.png"
            picture.save(path)
            split = "test" if style == 2 else "train"
            rows.append({"id": path.stem, "image": path.name, "text": name, "label": name, "split": split})
            if c < 2:
                wave = np.sin(np.arange(16000) * (0.02 + 0.03 * c) * (1 + style)).astype(np.float32)
                soundfile.write(root / f"{name}-{style}.wav", 0.5 * wave, 16000)
                rows.append(
                    {
                        "id": f"a-{path.stem}",
                        "audio": f"{name}-{style}.wav",
                        "text": name,
                        "label": name,
                        "split": split,
                    }
                )
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def train(recipe, run_dir):
    return run_recipe(lambda: recipe, run_dir, device="cpu")


def test_both_stages_run_and_stage_two_leaves_text_and_images_alone(data, tmp_path):
    train(stage1(str(data), steps=3, batch_size=4, denoise_every=2), tmp_path / "one")
    train(stage2(str(tmp_path / "one" / "model"), str(data), steps=3, batch_size=4, denoise_every=2), tmp_path / "two")
    before, processor = plait.load(tmp_path / "one" / "model")
    after, _ = plait.load(tmp_path / "two" / "model")
    with torch.no_grad():
        text, image = processor(text=["bell", "a cat"]), processor(images=[Image.open(data / "cat-0.png")])
        audio = processor(audio=[np.sin(np.arange(9000) * 0.1)])
        assert torch.equal(before.get_text_features(**text), after.get_text_features(**text))
        assert torch.equal(before.get_image_features(**image), after.get_image_features(**image))
        assert not torch.equal(before.get_audio_features(**audio), after.get_audio_features(**audio))
    metrics = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert ["denoise_vl_image" in row for row in metrics] == [True, False, True]
    assert {"audio", "al_text", "al_audio"} <= {
        key.removeprefix("denoise_")
        for key in json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[0])
    }


@pytest.mark.parametrize("objective", ["l2", "smooth_l1"])
def test_denoising_may_be_a_regression(data, tmp_path, objective):
    recipe = stage1(str(data), steps=1, batch_size=4, denoise_every=1, denoising=objective)
    train(recipe, tmp_path)
    assert np.isfinite(json.loads((tmp_path / "metrics.jsonl").read_text())["loss"])


def test_the_vocabulary_writes_any_text(data):
    kept = vocabulary([Sample(id="1", text="violin", captions=["string", "music"])])
    assert len(kept) < 400
    from plait.processing.tokenizers import build_tokenizer

    tokenizer = build_tokenizer(kept)
    ids = tokenizer("a zebra plays violin ☃").input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a zebra plays violin ☃"


def test_a_directory_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.jsonl"):
        stage1(str(tmp_path))


def test_a_killed_recipe_goes_on_is_evaluated_and_exported_from_the_command_line(data, tmp_path, capsys):
    """Killed by the system while it trains; the same command then ends with the losses of a run left alone."""
    losses = {}
    for name in ("whole", "killed"):
        out = tmp_path / name
        words = [f"data={data}", "steps=30", "batch_size=4", "denoise_every=0", "augmentation=0"]
        argv = ["train", "one_peace.stage1", "--out", str(out), "--device", "cpu", "--checkpoint-seconds", "0"]
        argv += [part for word in words for part in ("--set", word)]
        if name == "killed":
            code = f"import sys, torch; torch.set_num_threads(1); from plait.cli import main; sys.exit(main({argv!r}))"
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while len(read_metrics(out / "metrics.jsonl")) < 4 and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            assert process.wait() == -signal.SIGKILL and not (out / "model").exists()
        assert main(argv) == 0
        losses[name] = [row["loss"] for row in read_metrics(out / "metrics.jsonl")]
    assert losses["whole"] == pytest.approx(losses["killed"], rel=1e-6) and len(losses["whole"]) == 30
    model = str(tmp_path / "killed" / "model")
    capsys.readouterr()
    assert main(["eval", "emergent", model, "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["embed", model, "--text", "bell", "--out", str(tmp_path / "bell.npy")]) == 0
    assert np.load(tmp_path / "bell.npy").shape[0] == 1
