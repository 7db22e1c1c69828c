"""Images: path | bytes | PIL image -> header and pixel limit -> decode -> turn upright -> one 8-bit RGB picture.

Behaviour with strange files, each with a test:
- wrong extension: the content counts. Animated: the first frame. EXIF orientation: applied; damaged EXIF data: ignored.
- palette, grey, CMYK: converted. 16 bits: the high byte, rounded. Transparent: laid over white.
- truncated or damaged: MediaError that names the file (a JPEG or GIF with wrong bytes in the middle decodes to what its
  decoder makes of them). Too many pixels, bytes, or none at all: MediaError before anything is decoded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from plait.media.kinds import HEAD, container_of, content_of
from plait.media.limits import MAX_BYTES, MAX_PIXELS, MediaError, Source, open_media, refusal

if TYPE_CHECKING:
    from PIL import Image as PILImage

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM")
"""The only decoders ever tried."""

_READ = {"jpeg", "png", "gif", "bmp", "tiff", "webp", "avif"}
"""Containers of FORMATS that first bytes tell for sure."""
_ORIENTATION = 0x0112


def load_image(
    source: Source | PILImage.Image, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> PILImage.Image:
    """Load one picture as a PIL image in mode RGB, upright, 8 bits per channel, transparent parts white.

    Raises MediaError, one line naming the file, for what is missing, damaged, too large or no image.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about files that are converted or refused below
        if isinstance(source, Image.Image):
            with _one_line(source, None):
                return _normal(source, source, max_pixels)
        with open_media(source, "image", max_bytes) as file:
            container = container_of(file.read(HEAD))
            file.seek(0)
            with _one_line(source, container):
                if container == "png":  # decoding does not look at the checksums
                    Image.open(file, formats=("PNG",)).verify()
                    file.seek(0)
                with Image.open(file, formats=_formats()) as image:
                    return _normal(image, source, max_pixels)


@contextmanager
def _one_line(source: object, container: str | None) -> Generator[None]:
    """Whatever a decoder raises becomes a MediaError that says what the content looks like."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except MediaError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, which `max_pixels` cannot raise
        pixels, limit = re.findall(r"\d+", str(error))
        raise refusal("image", source, f"{pixels} pixels, more than {limit}", "scale it down") from error
    except UnidentifiedImageError as error:
        if container in _READ:
            raise refusal("image", source, f"a truncated or damaged {container.upper()} file") from error
        raise refusal("image", source, content_of(container), "convert it to PNG or JPEG") from error
    except Exception as error:  # decoders of damaged files raise nearly everything
        got = f"a truncated or damaged {container.upper()} file ({error})" if container in _READ else error
        raise refusal("image", source, got) from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _normal(image: PILImage.Image, source: object, max_pixels: int) -> PILImage.Image:
    """The picture as `load_image` promises it; `image` may be a file that is not decoded yet."""
    from PIL import Image
    from PIL.Image import Transpose

    if image.width * image.height > max_pixels:
        got = f"{image.width} x {image.height} pixels, more than {max_pixels}"
        raise refusal("image", source, got, "scale it down, or raise max_pixels")
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data does not make a picture unreadable, and its parser raises nearly everything
        orientation = None
    image.load()
    if image.mode.startswith("I"):  # 16 bits, in 32 of them: 65535 is white, and x / 257 rounds half up
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        plain = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    elif image.mode == "F":
        raise refusal("image", source, "floating-point pixels of unknown range", "convert it to 8 or 16 bits")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    else:
        plain = image.convert("RGB") if image.mode != "RGB" else image.copy()
    turns = {  # EXIF orientation (TIFF 6.0, tag 274) -> what turns the picture upright
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return plain if turn is None else plain.transpose(turn)
