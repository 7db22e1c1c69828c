"""Strange and hostile files, one of every kind that media loaders have a written behaviour for, beside plain ones."""

from __future__ import annotations

import io
import os
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

RATE = 16_000


def picture(seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Image.Image:
    """Coarse random colours: no two seeds give the same."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tone(seed: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    """A sine of its own pitch, float64 (samples,)."""
    return 0.5 * np.sin(2 * np.pi * (200 + 7 * seed) * np.arange(int(seconds * rate)) / rate)


def sound(data: np.ndarray, kind: str, subtype: str, rate: int = RATE) -> bytes:
    """The bytes of a sound file."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, data, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def video(seed: int, with_sound: bool = False) -> bytes:
    """An MP4 of five frames, by default without a sound track."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        track = container.add_stream("aac", rate=RATE) if with_sound else None
        for n in range(5):
            frame = av.VideoFrame.from_image(picture(100 * seed + n, (32, 32)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            samples = tone(seed).astype(np.float32)[None]
            heard = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            heard.sample_rate = RATE
            container.mux(track.encode(heard))
            container.mux(track.encode())
    return buffer.getvalue()


def promising_png(width: int, height: int) -> bytes:
    """A small PNG whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def damaged(data: bytes, at: float = 0.5, count: int = 30) -> bytes:
    """Wrong bytes in the middle."""
    start = int(at * len(data))
    return data[:start] + bytes(b ^ 0x5A for b in data[start : start + count]) + data[start + count :]


def sixteen_bit(seed: int) -> Image.Image:
    """A grey picture of 16 bits."""
    return Image.fromarray(np.asarray(picture(seed, mode="L")).astype(np.uint16) * 257)


def turned(seed: int) -> bytes:
    """A JPEG that says it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(seed), "JPEG", exif=exif)


def hours(path: Path) -> None:
    """Twenty minutes of silence: a hole in the disk behind a WAV header."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(b"\x80" * 8)
    size = 20 * 60 * 8000
    with path.open("r+b") as stream:
        stream.seek(4)
        stream.write(struct.pack("<I", 36 + size))
        stream.seek(40)
        stream.write(struct.pack("<I", size))
        stream.truncate(44 + size)


def hole(path: Path) -> None:
    """Two GiB that take no room on the disk."""
    with path.open("wb") as stream:
        stream.write(sound(tone(1), "WAV", "PCM_16")[:44])
        stream.truncate(2 << 30)


def unreadable(path: Path) -> None:
    """A picture that nobody may read (but root)."""
    path.write_bytes(encoded(picture(77), "PNG"))
    path.chmod(0)


TAKEN: dict[str, Callable[[], bytes]] = {
    "animated.gif": lambda: encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)], duration=50),
    "animated.webp": lambda: encoded(picture(3), "WEBP", save_all=True, append_images=[picture(4)], duration=50),
    "a-png-named.jpg": lambda: encoded(picture(5), "PNG"),
    "a-sound-named.png": lambda: sound(tone(1), "WAV", "PCM_16"),
    "turned.jpg": lambda: turned(6),
    "palette.png": lambda: encoded(picture(7, mode="P"), "PNG"),
    "transparent.png": lambda: encoded(picture(8, mode="RGBA"), "PNG"),
    "sixteen-bit.png": lambda: encoded(sixteen_bit(9), "PNG"),
    "cmyk.jpg": lambda: encoded(picture(10, mode="CMYK"), "JPEG"),
    "damaged-middle.jpg": lambda: damaged(encoded(picture(11, (200, 200)), "JPEG", quality=95), 0.7, 4),
    "eight-bit.wav": lambda: sound(tone(2), "WAV", "PCM_U8"),
    "stereo.wav": lambda: sound(np.stack([tone(3), tone(4)], 1), "WAV", "PCM_16"),
    "odd-rate.wav": lambda: sound(tone(5, rate=11_127), "WAV", "PCM_16", 11_127),
    "silent.mp4": lambda: video(1),
    "with-sound.mp4": lambda: video(2, with_sound=True),
}
"""Read and indexed."""

SKIPPED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "the file is empty"),
    "truncated.png": (lambda: encoded(picture(20), "PNG")[:60], "truncated"),
    "truncated.jpg": (lambda: encoded(picture(21, (200, 200)), "JPEG")[:900], "truncated"),
    "truncated.ogg": (lambda: sound(tone(21), "OGG", "VORBIS")[:-40], "truncated"),
    "truncated.wav": (lambda: sound(tone(22), "WAV", "PCM_16")[:4000], "truncated"),
    "truncated.mp4": (lambda: video(3)[:900], "check the file"),
    "damaged-middle.png": (lambda: damaged(encoded(picture(22, (200, 200)), "PNG")), "broken PNG file"),
    "damaged-middle.flac": (lambda: damaged(sound(tone(23), "FLAC", "PCM_16")), "flac decoder lost sync"),
    "bomb.png": (lambda: promising_png(60_000, 60_000), "3600000000 pixels, more than"),
    "huge.png": (lambda: promising_png(9_000, 9_000), "9000 x 9000 pixels, more than"),
    "floating.tiff": (lambda: encoded(picture(24, mode="F"), "TIFF"), "floating-point pixels"),
    "no-numbers.wav": (lambda: sound(np.full(800, np.nan), "WAV", "FLOAT"), "no finite numbers"),
    "words.wav": (lambda: b"milk, eggs, butter", "content of no kind known here"),
    "silent.m4a": (lambda: video(4), "without a sound track"),
    "notes.txt": (lambda: b"milk", "no picture, video or sound"),
    "program.py": (lambda: b"import os\n", "no picture, video or sound"),
    "archive.zip": (lambda: b"PK\x03\x04" + bytes(40), "no picture, video or sound"),
}
"""Left out, with what the reason says."""

SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "hours.wav": (hours, "1200.0 s, more than 600 s"),
    "hole.wav": (hole, "2147483648 bytes, more than"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "gone.png": (lambda path: path.symlink_to("nowhere.png"), "o such file"),
    "circle.png": (lambda path: path.symlink_to("circle.png"), "ymbolic links"),
}
"""Left out as well; what is no file that bytes could be written to."""


def write_hostile(folder: Path) -> dict[str, str | None]:
    """Write one file of every kind; returns name -> what the reason for leaving it out says, None for what is taken.

    A link to the folder itself lies among them, which is no file and not followed. What nobody may read is left out
    for everybody but root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, str | None] = {}
    for name, make in TAKEN.items():
        (folder / name).write_bytes(make())
        expected[name] = None
    for name, (make, reason) in SKIPPED.items():
        (folder / name).write_bytes(make())
        expected[name] = reason
    for name, (write, reason) in SPECIAL.items():
        write(folder / name)
        expected[name] = reason
    (folder / "two\nlines.png").write_bytes(encoded(picture(25), "PNG"))  # a line break is a person's choice too
    expected["two\nlines.png"] = None
    latin = os.fsdecode(b"caf\xe9.png")
    (folder / latin).write_bytes(encoded(picture(26), "PNG"))
    expected[latin] = "no UTF-8"
    unreadable(folder / "unreadable.png")
    expected["unreadable.png"] = None if os.access(folder / "unreadable.png", os.R_OK) else "ermission denied"
    (folder / "loop").symlink_to(folder.resolve())
    return expected


def write_plain(folder: Path, count: int, seed: int = 1000) -> list[Path]:
    """`count` ordinary files: pictures, every third a sound, every tenth a video."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n in range(count):
        kind = "mp4" if n % 10 == 9 else "wav" if n % 3 == 2 else "png"
        path = folder / f"plain-{n}.{kind}"
        make = {
            "mp4": video,
            "wav": lambda s: sound(tone(s), "WAV", "PCM_16"),
            "png": lambda s: encoded(picture(s), "PNG"),
        }
        path.write_bytes(make[kind](seed + n))
        paths.append(path)
    return paths
