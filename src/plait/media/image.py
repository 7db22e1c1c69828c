"""Images: path | bytes | data URI | PIL image | array | tensor -> one 8-bit RGB picture.

A file passes header and pixel limit, is decoded and turned upright.

Behaviour with strange files, each with a test:
- wrong extension: the content counts. Animated: the first frame. EXIF orientation: applied; damaged EXIF data: ignored.
- palette, grey, CMYK: converted. 16 bits: the high byte, rounded. Transparent: laid over white.
- ICC profile: colours are converted to sRGB as browsers do; a damaged one, or of another colour space, is ignored.
- arrays and tensors: (height, width), channels last or, of tensors, first; bytes, 16 bits, or floats from 0 to 1.
- truncated or damaged: MediaError that names the file (a JPEG or GIF with wrong bytes in the middle decodes to what its
  decoder makes of them). Too many pixels, bytes, or none at all: MediaError before anything is decoded.
"""

from __future__ import annotations

import base64
import io
import re
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.media.kinds import content_of, sniff
from plait.media.limits import MediaError, Source, exceeds, limit, open_media, refusal

if TYPE_CHECKING:
    from PIL import Image as PILImage

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM")
"""The only decoders ever tried."""

_READ = {"jpeg", "png", "gif", "bmp", "tiff", "webp", "avif"}
"""Containers of FORMATS that first bytes tell for sure."""
_ORIENTATION = 0x0112


def load_image(
    source: Source | PILImage.Image | Any,
    *,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    convert_profile: bool = True,
    at_least: int | None = None,
) -> PILImage.Image:
    """Load one image as a PIL image in mode RGB (sRGB), upright, 8 bits per channel, transparent parts white.

    at_least: a JPEG file is decoded at a half, a quarter or an eighth of its size where the shorter side keeps so many
    pixels, which takes a fraction of the time; None decodes it whole.
    convert_profile: False leaves the numbers of an image with an ICC profile as they are, as the official code of
    every family does, for comparisons with it. Raises MediaError, one line naming the file, for what is missing,
    damaged, too large or no image. Limits that are None are those in force (`plait.media.raised`).
    """
    from PIL import Image

    max_pixels = limit("max_pixels", max_pixels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about files that are converted or refused below
        if hasattr(source, "__array__") and not isinstance(source, Image.Image):  # numpy, torch and their like
            source = _of_array(source)
        if isinstance(source, str) and source.startswith("data:"):
            source = _of_data_uri(source)
        if isinstance(source, Image.Image):
            with _one_line(source, None):
                return _normal(source, source, max_pixels, convert_profile)
        with open_media(source, "image", max_bytes) as file:
            container = sniff(file)
            with _one_line(source, container), _pillow_takes(max_pixels):
                if container == "png":  # decoding does not look at the checksums
                    Image.open(file, formats=("PNG",)).verify()
                    file.seek(0)
                with Image.open(file, formats=decoders()) as image:
                    return _normal(image, source, max_pixels, convert_profile, at_least)


def _of_array(source: Any) -> PILImage.Image:
    """An array of numpy or a tensor as a picture, its values as they are. Raises MediaError for other shapes."""
    from PIL import Image

    # torch's bfloat16 has no counterpart in numpy, and what is on a GPU has to leave it
    source = source.detach().float().cpu() if getattr(source, "is_floating_point", bool)() else source
    values = np.asarray(source)
    first, last = (values.shape[0], values.shape[-1]) if values.ndim == 3 else (0, 0)
    is_tensor = hasattr(source, "is_floating_point")
    if first in (1, 3, 4) and (is_tensor or last not in (1, 3, 4)):  # torch puts channels first, numpy last
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or values.size == 0 or (values.ndim == 3 and values.shape[-1] not in (1, 3, 4)):
        got = f"an array of shape {tuple(values.shape)}"
        raise refusal("image", source, got, "pass (height, width, 3), or (3, height, width) of a tensor")
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise refusal("image", source, "floats outside 0 to 1", "divide by 255, or pass bytes")
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and values.ndim == 2):
        return Image.fromarray(np.ascontiguousarray(values))
    raise refusal("image", source, f"an array of {values.dtype}", "pass bytes (uint8), or floats from 0 to 1")


def _of_data_uri(source: str) -> bytes:
    """The bytes of `data:image/png;base64,...`."""
    head, _, content = source.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("no base64")
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise MediaError(
            f"expected a data URI in base64, got {source[:40]!r}...; encode the bytes of a file"
        ) from error


_PILLOW = threading.Lock()


@contextmanager
def _pillow_takes(max_pixels: int) -> Generator[None]:
    """Pillow refuses twice `MAX_IMAGE_PIXELS` by itself: that gives way where the limit here is higher."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    if before is None or max_pixels <= 2 * before:
        yield
        return
    with _PILLOW:  # the number is that of the whole process: pictures so large are opened one after the other
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _one_line(source: object, container: str | None) -> Generator[None]:
    """Whatever a decoder raises becomes a MediaError that says what the content looks like."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except MediaError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, of a format that holds several sizes
        pixels, most = re.findall(r"\d+", str(error))
        raise exceeds("image", source, f"{pixels} pixels", "max_pixels", int(most), "scale it down") from error
    except UnidentifiedImageError as error:
        if container in _READ:
            raise refusal("image", source, f"a truncated or damaged {container.upper()} file") from error
        raise refusal("image", source, content_of(container), "convert it to PNG or JPEG") from error
    except Exception as error:  # decoders of damaged files raise nearly everything
        got = f"a truncated or damaged {container.upper()} file ({error})" if container in _READ else error
        raise refusal("image", source, got) from error


@cache
def decoders() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with; no other is ever tried."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _normal(
    image: PILImage.Image, source: object, max_pixels: int, convert_profile: bool, at_least: int | None = None
) -> PILImage.Image:
    """The picture as `load_image` promises it; `image` may be a file that is not decoded yet."""
    from PIL import Image
    from PIL.Image import Transpose

    if image.width * image.height > max_pixels:
        got = f"{image.width} x {image.height} pixels"
        raise exceeds("image", source, got, "max_pixels", max_pixels, "scale it down")
    is_deep = any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # the decoder's raw mode: "RGB;16B"
    if at_least is not None and (short := min(image.size)) > 0:
        # of a JPEG alone; Pillow takes the smallest scale that keeps both sides of what is asked for
        image.draft(None, (image.width * at_least // short, image.height * at_least // short))
    image.load()
    try:  # after `load`: there Pillow turns a TIFF by itself and deletes the tag
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data does not make a picture unreadable, and its parser raises nearly everything
        orientation = None
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits, in 32 of them: 65535 is white, and x / 257 rounds half up
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        plain = _in_srgb(grey, image, "RGB", convert_profile)
        if isinstance(clear, int):  # PNG, tRNS: the one value of 65536 that stands for nothing
            plain.paste("white", mask=Image.fromarray(np.where(values == clear, 255, 0).astype(np.uint8)))
    elif image.mode == "F":
        raise refusal("image", source, "floating-point pixels of unknown range", "convert it to 8 or 16 bits")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or clear is not None:
        if is_deep and isinstance(clear, tuple):  # the pixels were cut to their high bytes, and Pillow's colour was not
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        layer = _in_srgb(image.convert("RGBA"), image, "RGBA", convert_profile)
        plain = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    else:
        plain = _in_srgb(image, image, "RGB", convert_profile)
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


def _in_srgb(pixels: PILImage.Image, image: PILImage.Image, mode: str, convert_profile: bool) -> PILImage.Image:
    """A copy of `pixels` in `mode` (RGB or RGBA), converted by the ICC profile of `image` where it has one."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if profile and convert_profile:
        try:
            space, transform = _to_srgb(bytes(profile), mode)
            if space == "CMYK" and pixels.mode == "CMYK":
                return ImageCms.applyTransform(pixels, transform)  # ty: ignore[invalid-explicit-return]
            if space in ("RGB", "GRAY") and pixels.mode != "CMYK":
                made = pixels.convert(mode) if pixels.mode != mode else pixels.copy()
                if transform is not None and space == "RGB":
                    ImageCms.applyTransform(made, transform, inPlace=True)
                elif transform is not None:  # grey: one table for all three channels
                    made = made.point(transform)
                return made
        except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile does not make a picture unreadable
            pass
    return pixels.convert(mode) if pixels.mode != mode else pixels.copy()


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> tuple[str, Any]:
    """The colour space of an ICC profile and what converts it: a transform, for grey a table, None where nothing moves.

    Most pictures hold sRGB itself, which leaves every level within one: their pixels stay as they were written.
    """
    from PIL import Image, ImageCms

    read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space, srgb = read.profile.xcolor_space.strip(), ImageCms.createProfile("sRGB")
    levels = np.arange(256, dtype=np.uint8)
    if space == "GRAY":
        table = np.asarray(
            ImageCms.profileToProfile(Image.fromarray(levels[None]), read, srgb, outputMode="RGB"), dtype=np.uint8
        )[0, :, 1]
        if np.abs(table.astype(int) - levels).max() <= 1:
            return space, None
        return space, [*table.tolist() * 3, *(range(256) if mode == "RGBA" else ())]
    if space == "CMYK":
        return space, ImageCms.buildTransform(read, srgb, "CMYK", "RGB")
    if space != "RGB":
        return space, None
    few = levels[::17]  # 16 levels of each channel in every combination
    cube = np.stack(np.meshgrid(few, few, few), axis=-1).reshape(64, 64, 3)
    shown = ImageCms.profileToProfile(Image.fromarray(cube), read, srgb, outputMode="RGB")
    moved = np.abs(np.asarray(shown).astype(int) - cube).max()
    return space, None if moved <= 1 else ImageCms.buildTransform(read, srgb, mode, mode)
