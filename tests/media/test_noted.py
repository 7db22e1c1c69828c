"""What a camera notes in a picture is read; a damaged note is no note, and never an error."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from plait.media.noted import Noted, noted


def jpeg(tags: dict[int, Any], details: dict[int, Any], place: dict[int, Any]) -> bytes:
    """A JPEG with EXIF tags of the file, of its details and of GPS."""
    image, stream = Image.new("RGB", (8, 8)), io.BytesIO()
    exif = image.getexif()
    exif.update(tags)
    exif.get_ifd(0x8769).update(details)
    exif.get_ifd(0x8825).update(place)
    image.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def test_date_place_camera_and_words_are_read() -> None:
    gps = {1: "S", 2: (10.0, 30.0, 0.0), 3: "E", 4: (20.0, 0.0, 36.0)}
    tags = {0x010F: "Canon", 0x0110: "Canon EOS", 0x010E: "Rex\n at  the sea"}
    found = noted(jpeg(tags, {0x9003: "2024:07:14 18:03:00"}, gps))
    assert found == Noted("2024-07-14T18:03:00", -10.5, 20.01, "Canon Canon EOS", None, "Rex at the sea")
    assert found.text().startswith("14 July 2024 Sunday 2024-07-14 Rex at the sea")
    assert "place" not in found.fields()


def test_places_of_iptc_are_read() -> None:
    records = b"".join(
        b"\x1c\x02" + bytes([number]) + len(text).to_bytes(2, "big") + text
        for number, text in ((25, b"dog"), (25, b"beach"), (90, "Évora".encode()), (101, b"Portugal"))
    )
    block = b"8BIM\x04\x04\x00\x00" + len(records).to_bytes(4, "big") + records + b"\x00" * (len(records) % 2)
    segment = b"Photoshop 3.0\x00" + block
    plain = jpeg({}, {}, {})
    found = noted(plain[:2] + b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment + plain[2:])
    assert (found.place, found.words) == ("Évora Portugal", "dog beach")


@pytest.mark.parametrize(
    ("details", "place"),
    [
        ({0x9003: "0000:00:00 00:00:00"}, {}),
        ({0x9003: "    :  :     :  :  "}, {1: "N", 2: (91.0, 0.0, 0.0), 3: "E", 4: (1.0, 0.0, 0.0)}),
        ({0x9003: "soon"}, {1: "N", 2: (1.0, 2.0, 3.0)}),
    ],
)
def test_clocks_that_are_not_set_and_halves_of_places_are_nothing(details: Any, place: Any) -> None:
    assert noted(jpeg({}, details, place)) == Noted()


def test_damaged_files_and_other_files_note_nothing_and_raise_nothing(tmp_path: Path) -> None:
    whole = jpeg({0x010E: "x" * 5000}, {0x9003: "2024:07:14 18:03:00"}, {1: "N", 2: (1.0, 2.0, 3.0)})
    assert len(noted(whole).words or "") == 500
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole[: rng.randrange(4, len(whole))])
        for _ in range(8):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        assert isinstance(noted(bytes(damaged)), Noted)
    assert noted(b"no picture") == Noted() and noted(tmp_path / "gone.jpg") == Noted()
