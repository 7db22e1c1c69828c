"""The processor makes batches, refuses what it does not know, and survives saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.processor import MPlug2Processor

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "runs", "who", "is", "##s", "video", "of"]
RNG = np.random.default_rng(0)


def picture(width: int = 10, height: int = 8) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processor() -> MPlug2Processor:
    return MPlug2Processor.build(6, VOCABULARY, num_frames=3, max_text_tokens=8)


def test_every_modality_becomes_a_batch(processor: MPlug2Processor) -> None:
    batch = processor(images=[picture(), picture(5, 9)], text=["who runs?", "a man"], videos=[[picture()] * 3] * 2)
    assert batch["pixel_values"].shape == (2, 3, 6, 6)
    assert batch["pixel_values_videos"].shape == (2, 3, 3, 6, 6)
    assert batch["input_ids"].tolist() == [[2, 8, 7, 3], [2, 5, 6, 3]]
    assert processor(videos=[picture()] * 3)["pixel_values_videos"].shape == (1, 3, 3, 6, 6)
    assert processor(images=picture())["pixel_values"].shape == (1, 3, 6, 6)


def test_shorter_texts_are_padded_and_masked(processor: MPlug2Processor) -> None:
    batch = processor(text=["who", "who is a man"])
    assert batch["input_ids"].tolist() == [[2, 8, 3, 0, 0, 0], [2, 8, 9, 5, 6, 3]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]


def test_pairs_tell_their_halves_apart(processor: MPlug2Processor) -> None:
    batch = processor(text=["a man"], text_pair=["who"])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3, 8, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


def test_captions_supervise_what_follows_the_prompt(processor: MPlug2Processor) -> None:
    batch = processor.captions(["A man runs!", "a man"], prompt="a video of")
    assert batch["input_ids"][0].tolist() == [2, 5, 11, 12, 5, 6, 7, 3]
    assert batch["labels"].tolist() == [[-100] * 4 + [5, 6, 7, 3], [-100] * 4 + [5, 6, 3, -100]]
    assert batch["attention_mask"].dtype == torch.bool


def test_answers_end_once(processor: MPlug2Processor) -> None:
    assert processor.answers(["a man"])["input_ids"].tolist() == [[2, 5, 6, 3]]


def test_decoding_stops_at_the_end(processor: MPlug2Processor) -> None:
    grown = torch.tensor([2, 5, 6, 3, 7, -1])
    assert processor.decode_text(grown) == "a man"
    official = MPlug2Processor.build(6, VOCABULARY, official=True)
    assert official.decode_text(grown) == "a man runs"


def test_an_image_equals_a_clip_of_one_frame_when_both_are_bicubic() -> None:
    processor = MPlug2Processor.build(6, VOCABULARY, num_frames=1, video_resample="bicubic")
    one = picture()
    difference = processor.clip([one])[:, 0] - processor.pixels(one)
    assert difference.abs().max() < 0.02 / 0.26  # resizing differs by rounding alone


def test_texts_over_the_limit_are_one_clear_line(processor: MPlug2Processor) -> None:
    with pytest.raises(ValueError, match="at most 8 tokens, got 12") as caught:
        processor(text="a man " * 5)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; shorten it (from Python truncation=True cuts it)")
    assert processor(text="a man " * 5, truncation=True)["input_ids"].shape == (1, 8)


def test_what_it_does_not_know_is_refused(processor: MPlug2Processor) -> None:
    with pytest.raises(ValueError, match="got audio"):
        processor(text="a", audio=[0.0])
    with pytest.raises(ValueError, match="got none"):
        processor()
    with pytest.raises(ValueError, match="uint8"):
        processor(videos=torch.zeros(2, 4, 4, 3))


def test_save_and_load_round_trip(processor: MPlug2Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = MPlug2Processor.from_pretrained(tmp_path)
    assert (again.num_frames, again.video_resample, again.max_text_tokens, again.image_size) == (3, "nearest", 8, 6)
    one, text = picture(), ["who runs"]
    a, b = (p(images=one, text=text, videos=[one] * 2) for p in (processor, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_filled_labels_are_decoded_without_their_filling() -> None:
    processor = MPlug2Processor.from_config(MPlug2Config.preset("tiny", vocab_size=30522))
    ids = processor.tokenizer("a dog", add_special_tokens=False)["input_ids"]
    assert processor.batch_decode(torch.tensor([[*ids, -100]])) == processor.batch_decode([ids]) == ["a dog"]
