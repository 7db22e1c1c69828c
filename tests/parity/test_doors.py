"""Both doors: the table of quirks is true, and what users get instead of a quirk is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from plait.models.mplug_owl.config import VisionConfig
from plait.models.mplug_owl.conversation import IMAGE
from plait.models.mplug_owl.model import OwlVisionTower
from plait.models.mplug_owl.processor import pixels
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.pretraining import OnePeaceForPreTraining, decays
from plait.nn.attention import attention_function
from plait.parity.cases import Case, Settings
from plait.parity.compare import judge
from plait.parity.run import quirks_of, run_case, runner_module, select
from plait.parity.runners import Quirk, Runner

QUIRKS = runner_module("doors").QUIRKS
demo_prompt, official_sample = (getattr(runner_module("released"), name) for name in ("demo_prompt", "official_sample"))
DEFAULT = Settings(official=False)


@pytest.mark.parametrize("judged_by", sorted({quirk.judged_by for quirk in QUIRKS.values()}))
def test_the_test_that_judges_ours_exists(judged_by: str) -> None:
    file, _, name = judged_by.partition("::")
    source = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, re.MULTILINE)


def test_every_row_of_the_table_is_about_a_case(copies: Path) -> None:
    assert all(select(copies, system, f"{kind}*") for system, kind in QUIRKS)


@pytest.mark.parametrize("name", ["losses", "forward_text", "forward_vl", "position_interpolation"])
def test_what_the_table_leaves_out_holds_without_quirks(copies: Path, name: str) -> None:
    (place,) = select(copies, "one_peace", name)
    assert not quirks_of(place)
    assert run_case(place, DEFAULT).verdict == "ok"


@pytest.mark.parametrize(("system", "kind"), [("one_peace", "forward_audio"), ("mplug2", "scst_loss")])
def test_what_the_table_names_differs_and_the_rest_holds(copies: Path, system: str, kind: str, monkeypatch) -> None:
    (place,) = select(copies, system, kind)
    assert run_case(place, DEFAULT).verdict in ("ok", "quirk")
    monkeypatch.setattr("plait.parity.run.quirks_of", lambda place: ())
    assert run_case(place, DEFAULT).verdict == "FAIL"


def test_an_output_with_a_quirk_must_be_made_and_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"a": 1, "b": 2}')
    case, runner = Case("s", "k", tmp_path, DEFAULT), Runner("s", "k", dict)
    quirks = [Quirk(("json.a",), "a is odd", "tests/x.py::test_a")]
    told = judge(case, runner, {"a": 9, "b": 2}, quirks)
    assert (told.verdict, told.compared, told.stored) == ("ok", 1, 2)
    assert told.notes == ["quirk: json.a: a is odd; tests/x.py::test_a"]
    assert judge(case, runner, {"b": 2}, quirks).verdict == "UNCOVERED"
    assert judge(case, runner, {"a": 1, "b": 3}, quirks).verdict == "FAIL"


def test_every_image_of_a_line_stays_in_the_prompt() -> None:
    messages = [("Human", f"{IMAGE}{IMAGE}"), ("Human", "Which is older?"), ("AI", None)]
    assert demo_prompt(messages)[1].count(IMAGE) == 2
    assert demo_prompt(messages, official=True)[1].count(IMAGE) == 1


def test_a_transparent_picture_is_the_picture_without_transparency() -> None:
    colours = torch.randint(0, 256, (9, 9, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(colours.numpy(), "RGBA")
    assert torch.equal(pixels(image, 6), pixels(image.convert("RGB"), 6))
    assert not torch.equal(pixels(image, 6, official=True), pixels(image.convert("RGB"), 6, official=True))


def test_a_placeholder_at_the_very_start_is_an_image() -> None:
    options = {"bos": 1, "eos": 2, "pad": 0}
    made = official_sample(f"{IMAGE}Human: what? AI: that.", lambda text: list(text.encode()), 90, **options)
    assert made.has_image and made.input_ids[1] == -1


def test_a_smaller_image_gets_a_resized_position_table() -> None:
    sizes = VisionConfig(dim=4, num_heads=2, num_layers=1, mlp_dim=4, image_size=16, patch_size=4)
    tower = OwlVisionTower(sizes, temporal=False)
    with torch.no_grad():  # rows of the table say where they are: a column of the grid each
        tower.position_embedding[0, 1:] = (torch.arange(16) % 4).float()[:, None]
    columns = tower.positions(2, 2)[0, 1:, 0].view(2, 2)
    assert torch.equal(columns[0], columns[1]) and columns[0, 0] < 1.5 < columns[0, 1]
    assert not torch.equal(columns, tower.position_embedding[0, 1:5, 0].view(2, 2))


def test_the_decoder_does_not_read_padding() -> None:
    sizes = {"dim": 12, "num_heads": 2, "num_layers": 1, "mlp_dim": 16, "image_bucket_size": 4}
    config = OnePeaceConfig(dim=16, num_heads=2, num_layers=1, mlp_dim=24, modalities=["text"], vocab_size=40,
                            text_bucket_size=8, max_text_positions=20, decoder=sizes)  # fmt: skip
    torch.manual_seed(0)
    decoder = OnePeaceForPreTraining(config).eval().decoder
    features, attend = torch.randn(1, 5, 16), attention_function("eager")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        alone, padded = (
            decoder({"text": features}, {"text": torch.arange(5)[None]}, {"text": torch.arange(n)[None] < 5},
                    {"text": n}, attend)["text"][:, :5]
            for n in (5, 9)
        )  # fmt: skip
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-5)


def test_tables_of_the_decoder_do_not_decay() -> None:
    for name in ("decoder.branches.text.cls_embedding", "decoder.branches.image.position_embedding"):
        assert not decays(name, 2) and decays(name, 2, official=True)
