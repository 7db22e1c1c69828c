"""Images of every kind become one upright RGB picture or one clear line."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from plait.media.image import load_image
from plait.media.limits import MediaError

from ..fuzzing import bounded_memory, within

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_colours(mode: str = "RGB") -> Image.Image:
    """4 x 2 pixels, left half red, right half blue."""
    image = Image.new("RGB", (4, 2), RED)
    image.paste(BLUE, (2, 0, 4, 2))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def close(pixel, expected, tolerance: int = 40) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, expected))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP", "JPEG", "AVIF"])
def test_every_listed_format_loads(kind):
    if kind in {"WEBP", "AVIF"} and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    loaded = load_image(encoded(image, kind))
    assert loaded.mode == "RGB"
    assert loaded.size == (32, 16)
    assert close(loaded.getpixel((3, 8)), RED)
    assert close(loaded.getpixel((28, 8)), BLUE)


def test_path_bytes_and_pil_give_the_same_picture(tmp_path):
    path = tmp_path / "a.png"
    noise().save(path)
    expected = noise().tobytes()
    for source in (path, str(path), path.read_bytes(), noise()):
        assert load_image(source).tobytes() == expected


def test_the_file_is_closed_and_the_source_image_not_shared(tmp_path):
    path = tmp_path / "a.png"
    noise().save(path)
    loaded = load_image(path)
    path.unlink()
    assert loaded.getpixel((0, 0)) == noise().getpixel((0, 0))
    original = noise()
    load_image(original).paste(RED, (0, 0, 64, 64))
    assert original.tobytes() == noise().tobytes()


def test_wrong_extension_the_content_counts(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(noise(), "PNG"))
    assert load_image(path).tobytes() == noise().tobytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_gives_the_first_frame(kind):
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], duration=100, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert close(load_image(data).getpixel((4, 4)), RED)


# Where the left red / right blue picture of 4 x 2 pixels has its red side once turned upright.
@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (4, 2), (0, 0)),
        (2, (4, 2), (3, 0)),
        (3, (4, 2), (3, 0)),
        (4, (4, 2), (0, 0)),
        (5, (2, 4), (0, 0)),
        (6, (2, 4), (0, 0)),
        (7, (2, 4), (0, 3)),
        (8, (2, 4), (0, 3)),
    ],
)
def test_exif_rotation_is_applied(orientation, size, red):
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(two_colours(), "PNG", exif=exif))
    assert loaded.size == size
    assert loaded.getpixel(red) == RED


def test_exif_orientation_distinguishes_up_from_down():
    tall = Image.new("RGB", (2, 2), RED)
    tall.putpixel((0, 0), BLUE)
    where = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        loaded = load_image(encoded(tall, "PNG", exif=exif))
        where[orientation] = next((x, y) for x in (0, 1) for y in (0, 1) if loaded.getpixel((x, y)) == BLUE)
    assert where == {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_once_in_every_format(kind, orientation):
    """Pillow turns a TIFF by itself when it decodes it, and no other format."""
    image = Image.new("RGB", (64, 32), WHITE)
    image.paste(RED, (0, 0, 32, 16))
    image.paste(BLUE, (0, 16, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    loaded = load_image(encoded(image, kind, exif=exif, **options))
    expected = load_image(encoded(image, "PNG", exif=exif))
    assert loaded.size == ((64, 32) if orientation < 5 else (32, 64))
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(expected)).mean() < 3
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    assert close(loaded.getpixel((corner[0] * (loaded.width - 1), corner[1] * (loaded.height - 1))), RED)


def test_damaged_exif_data_is_ignored():
    data = encoded(two_colours(), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    assert load_image(data).tobytes() == two_colours().tobytes()


@pytest.mark.parametrize("mode", ["P", "L", "1", "CMYK", "YCbCr", "LAB"])
def test_other_colour_modes_become_rgb(mode):
    kind = "PNG" if mode in {"P", "L", "1"} else "TIFF"
    image = two_colours("L").convert(mode) if mode in {"L", "1"} else two_colours("P").convert("P")
    if mode in {"CMYK", "YCbCr"}:
        image = two_colours(mode)
    if mode == "LAB":
        image = Image.new("LAB", (4, 2), (136, 208, 195))
    loaded = load_image(encoded(image, kind))
    assert loaded.mode == "RGB"
    if mode in {"L", "1"}:
        assert loaded.getpixel((0, 0)) == image.convert("RGB").getpixel((0, 0))
    else:
        assert close(loaded.getpixel((0, 0)), RED)


def test_cmyk_jpeg_is_not_inverted():
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert close(load_image(encoded(white, "JPEG")).getpixel((8, 8)), WHITE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    loaded = load_image(encoded(Image.fromarray(values), kind))
    assert [loaded.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_sixteen_bits_may_be_transparent():
    values = np.array([[0, 1000, 40000, 65535]], np.uint16)
    loaded = load_image(encoded(Image.fromarray(values), "PNG", transparency=1000))
    assert np.asarray(loaded)[0, :, 0].tolist() == [0, 255, 156, 255]
    # three colours of 16 bits, which Pillow cannot write: one pixel of the transparent colour, one of another
    rows = struct.pack(">B6H", 0, 0x1234, 0x5678, 0x9ABC, 0x8000, 0, 0)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)),
    ]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    loaded = load_image(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (128, 0, 0)]


def swapped_profile() -> bytes:
    """The profile of sRGB with the primaries of red and blue swapped: what applies it shows blue for red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_converted_to_srgb(mode):
    image = Image.new("RGB", (8, 8), (200, 40, 20))
    data = encoded(image.quantize(4) if mode == "P" else image.convert(mode), "PNG", icc_profile=swapped_profile())
    assert close(load_image(data).getpixel((1, 1)), (20, 40, 200), 3)
    assert close(load_image(data, convert_profile=False).getpixel((1, 1)), (200, 40, 20), 3)
    assert close(load_image(Image.open(io.BytesIO(data))).getpixel((1, 1)), (20, 40, 200), 3)


def test_transparency_stays_where_it_was_when_colours_are_converted():
    layer = Image.new("RGBA", (2, 1), (200, 40, 20, 255))
    layer.putpixel((1, 0), (200, 40, 20, 0))
    loaded = load_image(encoded(layer, "PNG", icc_profile=swapped_profile()))
    assert close(loaded.getpixel((0, 0)), (20, 40, 200), 3)
    assert loaded.getpixel((1, 0)) == WHITE


@pytest.mark.parametrize("profile", ["sRGB", "rubbish"])
def test_pixels_with_the_profile_of_srgb_or_a_damaged_one_stay_as_they_are(profile):
    written = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile == "sRGB" else b"rubbish"
    for image in (noise(), noise().convert("L"), noise().convert("RGBA")):
        data = encoded(image, "PNG", icc_profile=written)
        assert load_image(data).tobytes() == image.convert("RGB").tobytes()


def test_floating_point_pixels_are_refused():
    with pytest.raises(MediaError, match="floating-point pixels"):
        load_image(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))


def test_transparency_is_laid_over_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 255, 128))
    grey = Image.new("LA", (2, 1), (0, 0))
    palette = two_colours("P")
    index = palette.getpixel((0, 0))
    assert load_image(encoded(rgba, "PNG")).getpixel((0, 0)) == WHITE
    assert close(load_image(encoded(rgba, "PNG")).getpixel((1, 0)), (127, 127, 255), 1)
    assert load_image(encoded(grey, "PNG")).getpixel((0, 0)) == WHITE
    assert load_image(encoded(palette, "PNG", transparency=index)).getpixel((0, 0)) == WHITE
    assert load_image(encoded(palette, "GIF", transparency=index)).getpixel((0, 0)) == WHITE
    assert load_image(encoded(two_colours(), "PNG", transparency=RED)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_is_an_error_that_names_the_file(kind, tmp_path):
    path = tmp_path / "cut.img"
    data = encoded(noise(), kind)
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(MediaError, match=r"^expected an image file, got .*cut\.img: "):
            load_image(path)


def test_damaged_in_the_middle_is_an_error_for_a_png():
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(MediaError):
        load_image(bytes(data))


def test_a_png_whose_checksum_alone_tells_of_the_damage_is_an_error():
    def chunk(name: bytes, body: bytes, flipped: bytes = b"") -> bytes:
        return struct.pack(">I", len(body)) + name + (flipped or body) + struct.pack(">I", zlib.crc32(name + body))

    rows = zlib.compress(b"".join(b"\x00" + bytes(range(30)) for _ in range(10)), 0)  # stored: any byte decodes
    damaged = bytearray(rows)
    damaged[50] ^= 0x40
    damaged[-4:] = struct.pack(">I", zlib.adler32(zlib.decompressobj(-15).decompress(bytes(damaged[2:-4]))))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0))
    assert load_image(start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")).size == (10, 10)
    with pytest.raises(MediaError):
        load_image(start + chunk(b"IDAT", rows, bytes(damaged)) + chunk(b"IEND", b""))


def test_damaged_in_the_middle_of_a_jpeg_keeps_its_size():
    data = bytearray(encoded(noise(), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 8] = b"\x11" * 8
    assert load_image(bytes(data)).size == (64, 64)


def png_of(width: int, height: int) -> bytes:
    """A small PNG file whose header promises a huge picture."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\x00" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 12_000, 40_000, 1_000_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded a bomb"))
    with pytest.raises(MediaError, match="pixels"):
        load_image(png_of(side, side))


def test_the_pixel_limit_is_the_callers():
    assert load_image(noise(8), max_pixels=64).size == (8, 8)
    for source in (noise(9), encoded(noise(9), "PNG")):
        with pytest.raises(MediaError, match="9 x 9 pixels, more than 64; scale it down, or raise max_pixels"):
            load_image(source, max_pixels=64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_that_ends_in_its_header_is_called_truncated(kind):
    with pytest.raises(MediaError, match=rf"got bytes in memory: a truncated or damaged {kind} file.*; check the file"):
        load_image(encoded(noise(), kind)[:20])


def test_formats_that_are_not_listed_are_never_tried():
    with pytest.raises(MediaError, match="content of no kind known here"):
        load_image(encoded(noise(), "ICO"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    with pytest.raises(MediaError, match="convert it to PNG or JPEG"):
        load_image(postscript)


@pytest.mark.parametrize("content", [b"just text", b"\x00" * 100, b"\xff\xd8\xff", b"GIF89a", b"<svg></svg>"])
def test_what_is_no_image_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_missing_directory_and_too_large(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(MediaError, match="an empty file"):
        load_image(empty)
    with pytest.raises(MediaError, match="an empty file"):
        load_image(b"")
    with pytest.raises(MediaError, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(MediaError, match="a directory"):
        load_image(tmp_path)
    with pytest.raises(MediaError, match="more than 100"):
        load_image(encoded(noise(), "PNG"), max_bytes=100)
    with pytest.raises(MediaError, match="pass a path or the bytes"):
        load_image(17)


def test_a_loop_of_links_is_an_error_and_a_link_is_followed(tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    a.symlink_to(b)
    b.symlink_to(a)
    with pytest.raises(MediaError, match="symbolic links"):
        load_image(a)
    noise().save(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert load_image(tmp_path / "link.png").size == (64, 64)


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(MediaError, match="a pipe, device or socket"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(MediaError, match="a pipe, device or socket"):
        load_image("/dev/zero")


def test_unreadable_permissions_are_an_error(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    noise().save(path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # the tests may run as root, whom no permission stops
    with pytest.raises(MediaError, match="permission denied; check the path and its permissions"):
        load_image(path)


def test_nothing_is_printed_or_warned(recwarn, capfd):
    load_image(encoded(two_colours("P"), "PNG", transparency=b"\x00\x80\xff"))
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
@bounded_memory()
def test_damaged_files_are_read_or_refused(count):
    rng = np.random.default_rng(1)
    kinds = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"] + ["AVIF"] * features.check("avif")
    seeds = [encoded(noise(16), kind) for kind in kinds]
    seeds += [
        encoded(noise(16), kind, save_all=True, append_images=[two_colours().resize((16, 16))])
        for kind in ("GIF", "WEBP", "MPO")
    ]
    refused = 0
    for i in range(count):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            with within():
                assert load_image(bytes(data[: rng.integers(1, len(data) + 1)]), max_pixels=10_000).mode == "RGB"
        except MediaError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > count // 3


def test_arrays_and_tensors_are_the_picture_that_they_show() -> None:
    image = noise(12).crop((0, 0, 12, 7))
    values = np.asarray(image)  # (height, width, channel)
    levels = torch.from_numpy(values.copy()).permute(2, 0, 1)
    given = [values, values[::-1][::-1], levels, levels / 255, (levels / 255).double(), values / 255]
    # floats a little below or above a level are that level
    given += [((levels + 0.3) / 255).clamp(0, 1), ((levels - 0.3) / 255).clamp(0, 1)]
    for one in given:
        assert np.array_equal(np.asarray(load_image(one)), values)
    assert np.array_equal(np.asarray(load_image(levels[:1])), np.repeat(values[..., :1], 3, 2))
    assert np.array_equal(np.asarray(load_image(values[..., 1])), np.repeat(values[..., 1:2], 3, 2))


@pytest.mark.parametrize("wrong", [1.01, -0.01, float("nan"), float("inf")])
def test_floats_that_are_no_levels_are_refused(wrong: float) -> None:
    values = np.full((4, 4, 3), 0.5, np.float32)
    values[1, 2, 0] = wrong
    with pytest.raises(MediaError, match="floats outside 0 to 1; divide by 255"):
        load_image(values)
    with pytest.raises(MediaError, match=r"an array of shape \(5, 6, 2\)"):
        load_image(np.zeros((5, 6, 2), np.uint8))


def test_a_damaged_data_uri_is_no_picture() -> None:
    content = base64.b64encode(encoded(noise(), "PNG")).decode()
    assert load_image(f"data:image/png;base64,{content}").size == (64, 64)
    with pytest.raises(MediaError, match="expected a data URI in base64"):
        load_image(f"data:image/png;base64,{content[:40]}*!{content[40:]}")
