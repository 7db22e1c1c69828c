"""What a camera and its owner noted in a picture: when, where, with what, in which words.

file -> header alone (EXIF, IPTC), no pixels -> Noted(taken, latitude, longitude, camera, words)

Nothing of it is needed to see the picture, so a damaged note is no note, never an error.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from plait.media.image import decoders
from plait.media.limits import MediaError, Source, open_media

_CAMERA, _DESCRIBED, _CHANGED = (0x010F, 0x0110), 0x010E, 0x0132
_DETAILS, _PLACE = 0x8769, 0x8825
_TAKEN = (0x9003, 0x9004)
"""EXIF 2.3: maker and model, description, date of the file; directories of details and of GPS; when it was taken."""

_WORDS = {(2, 5): "title", (2, 25): "keywords", (2, 120): "caption"}
_PLACES = {(2, 90): "city", (2, 92): "location", (2, 95): "state", (2, 101): "country"}
"""IPTC-IIM, record 2: the data sets that people fill in. Programs for photographs write names of places here."""

_LONGEST = 500
"""Characters of one note: a comment may hold a book, and an index stores it beside every picture."""


@dataclass(frozen=True)
class Noted:
    """Notes of one image; None where there is none.

    Attributes:
        taken: local time as ISO 8601, such as `2024-07-14T18:03:00`.
        latitude, longitude: degrees, north and east positive.
        camera: maker and model.
        place: city, state and country, as far as they are written down.
        words: title, description and keywords.
    """

    taken: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    camera: str | None = None
    place: str | None = None
    words: str | None = None

    def fields(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def text(self) -> str:
        """All of it as words that people type: `14 July 2024 Sunday Lisbon Portugal Canon EOS R5 ...`; may be empty."""
        when = [] if self.taken is None else [f"{datetime.fromisoformat(self.taken):%d %B %Y %A %Y-%m-%d}"]
        return " ".join([*when, *(part for part in (self.place, self.words, self.camera) if part)])


def noted(source: Source) -> Noted:
    """Read the notes of an image.

    Args:
        source: path or bytes of a file.

    Returns:
        What there is; empty for what is no image or holds none.
    """
    from PIL import Image, IptcImagePlugin

    try:
        with open_media(source, "image") as file, warnings.catch_warnings():
            # Pillow warns about damaged tags, which are passed over here
            warnings.simplefilter("ignore")
            with Image.open(file, formats=decoders()) as image:
                exif = image.getexif()
                details, place = exif.get_ifd(_DETAILS), exif.get_ifd(_PLACE)
                iptc = IptcImagePlugin.getiptcinfo(image) or {}
    except MediaError:
        return Noted()
    except Exception:
        # parsers of damaged tags raise nearly everything, and the picture is whole without them
        return Noted()
    stamps = [details.get(tag) for tag in _TAKEN] + [exif.get(_CHANGED)]
    told = [_text(exif.get(_DESCRIBED)), *(_text(iptc.get(tag)) for tag in _WORDS)]
    latitude, longitude = _degrees(place, 1, 90), _degrees(place, 3, 180)
    return Noted(
        taken=next((date for stamp in stamps if (date := _date(_text(stamp)))), None),
        latitude=latitude if longitude is not None else None,
        longitude=longitude if latitude is not None else None,
        camera=_joined(_text(exif.get(tag)) for tag in _CAMERA),
        place=_joined(_text(iptc.get(tag)) for tag in _PLACES),
        words=_joined(told),
    )


def _text(value: Any) -> str:
    """A note as one line of printable text; empty for anything else. Lists (IPTC repeats a data set) are joined."""
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(_text, value[:50])))[:_LONGEST]
    if isinstance(value, bytes):
        value = value[: 4 * _LONGEST].decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    kept = "".join(one if one.isprintable() and one != "\ufffd" else " " for one in value[:_LONGEST])
    return " ".join(kept.split())


def _joined(parts: Any) -> str | None:
    """Parts that are there, each once, as one text."""
    return " ".join(dict.fromkeys(part for part in parts if part)) or None


def _date(stamp: str) -> str | None:
    """`2024:07:14 18:03:00` -> ISO 8601. A camera without a set clock writes zeros or blanks: that is no date."""
    try:
        found = datetime.strptime(stamp[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    return found.isoformat() if found.year >= 1800 else None


def _degrees(place: Any, tag: int, most: int) -> float | None:
    """Degrees of a GPS directory. tag: of N/S or E/W, the number of degrees, minutes and seconds behind it."""
    try:
        degrees, minutes, seconds = (float(one) for one in place[tag + 1])
        found = degrees + minutes / 60 + seconds / 3600
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not math.isfinite(found) or not 0 <= found <= most:
        return None
    return round(-found if _text(place.get(tag)) in ("S", "W") else found, 6)
