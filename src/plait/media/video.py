"""MP4 and MOV headers, looked at before FFmpeg does: it makes room for every sample a header promises.

file -> top-level boxes -> tables of samples (`stsz`, `trun`) -> counts that the file can hold

A damaged count makes a file of a thousand bytes take gigabytes. Boxes: ISO/IEC 14496-12.

Video: path | bytes -> container by content -> presentation times -> the frames on screen at the times asked for.

Behaviour with strange files, each with a test:
- wrong extension: the content counts, and only the demuxer it calls for is ever tried (no playlists, no addresses).
- variable frame rate, B-frames, late start: a frame is chosen by its presentation time, never by its index.
- rotation noted by a phone: applied. Still pictures are no video. No audio track, or no video track: MediaError.
- truncated or damaged before the last frame asked for: MediaError that names the file.
- a header that promises more samples than the file has bytes: MediaError before FFmpeg makes room for them.
- too long, too many frames, pixels or bytes: MediaError before anything is decoded.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from plait.errors import import_extra
from plait.media.audio import check_sound, resample
from plait.media.kinds import HEAD, container_of, content_of
from plait.media.limits import MAX_BYTES, MAX_FRAMES, MAX_PIXELS, MAX_SECONDS, MediaError, Source, open_media, refusal

if TYPE_CHECKING:
    from PIL import Image as PILImage

MAX_SAMPLES = int(MAX_SECONDS) * 96_000
"""Entries of a table of samples: each value of uncompressed sound may be one."""
MAX_HEADER = 1 << 26
"""Bytes of one box that is no media data."""

_DATA = {b"mdat", b"free", b"skip", b"wide"}
_TABLE = re.compile(rb"(?P<kind>stsz|trun)(?P<body>.{12})", re.DOTALL)


def check_boxes(file: BinaryIO, source: object, kind: str) -> None:
    """Raise MediaError where a table promises more samples than the file has bytes. Leaves `file` at its start."""
    size = file.seek(0, os.SEEK_END)
    for start, length in _headers(file, size):
        if length > MAX_HEADER:
            raise refusal(kind, source, f"a header of {length} bytes, more than {MAX_HEADER}", "convert it anew")
        file.seek(start)
        header = file.read(length)
        if b"cmov" in header:
            raise refusal(kind, source, "a compressed header", "convert it to MP4 or WebM")
        for table in _TABLE.finditer(header):
            count, each = _promised(table["kind"], table["body"])
            if count * each > size or count > MAX_SAMPLES:
                got = f"a header that promises {count} samples in {size} bytes"
                raise refusal(kind, source, f"{got}, a truncated or damaged file")
    file.seek(0)


def _headers(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of every top-level box that is no media data, and of what follows a damaged one."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or start + length > size:
            length = size - start
        if name not in _DATA:
            yield start, length
        start += length


def _promised(name: bytes, body: bytes) -> tuple[int, int]:
    """Samples of a table, and the least bytes of each in the file."""
    if name == b"trun":
        return struct.unpack(">I", body[4:8])[0], 1
    each, count = struct.unpack(">II", body[4:])
    return count, max(each, 1)


DEMUXERS = {
    "mov": "mov",
    "m4a": "mov",
    "matroska": "matroska",
    "avi": "avi",
    "mpeg": "mpeg",
    "mpegts": "mpegts",
    "flv": "flv",
    "asf": "asf",
    "ogv": "ogg",
    "ogg": "ogg",
    "wav": "wav",
    "flac": "flac",
    "mp3": "mp3",
    "aac": "aac",
}
"""Container -> the only FFmpeg demuxer tried on it."""

_ROUNDING = 1e-4
"""Seconds by which times in different units may differ."""


@dataclass(frozen=True)
class Video:
    """Frames with the times, in seconds from the first frame, at which they come on screen; `seconds` is the length."""

    frames: list[PILImage.Image]
    times: list[float]
    seconds: float


def load_frames(source: Source, num_frames: int = 8, **limits: Any) -> list[PILImage.Image]:
    """`num_frames` RGB frames spread evenly over a video; limits and errors as `load_video`."""
    return load_video(source, num_frames, **limits).frames


def load_video(
    source: Source,
    num_frames: int | None = 8,
    *,
    at: Sequence[float] | None = None,
    max_seconds: float = MAX_SECONDS,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Video:
    """The frames on screen in the middle of `num_frames` equal parts of a video, or at the seconds `at`.

    A short video gives a frame several times; times before its first frame give the first, after its end the last.
    Raises MediaError, one line naming the file, for what is missing, damaged, too large or no video; MissingExtraError
    without PyAV.
    """
    with _opened(source, "video", max_bytes, max_pixels) as container:
        times = _presentation_times(container, source, max_seconds, max_frames, max_pixels)
    seconds = times[-1] - times[0] + (times[-1] - times[0]) / max(len(times) - 1, 1)
    if at is None:
        count = num_frames or len(times)
        at = [seconds * (i + 0.5) / count for i in range(count)] if num_frames else [t - times[0] for t in times]
    wanted = sorted(range(len(at)), key=lambda i: at[i])
    with _opened(source, "video", max_bytes, max_pixels) as container:
        shown = _frames_at(container, source, [at[i] + times[0] for i in wanted], len(times))
    place = {original: sorted_ for sorted_, original in enumerate(wanted)}
    chosen = [shown[place[i]] for i in range(len(at))]
    return Video([image for image, _ in chosen], [time - times[0] for _, time in chosen], seconds)


def audio_of_video(
    source: Source, sampling_rate: int = 16000, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """The first sound track of a video, or of a sound file that only FFmpeg reads: mono float32 `(samples,)`.

    Raises MediaError, one line naming the file, where there is none, and as `load_audio`.
    """
    with _opened(source, "audio", max_bytes) as container:
        if not container.streams.audio:
            raise refusal("audio", source, "a video without a sound track", "pass a video with sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise refusal("audio", source, "a codec that FFmpeg here does not know", "convert it to WAV or FLAC")
        length = float(stream.duration * stream.time_base) if stream.duration else 0.0
        check_sound(source, stream.rate, stream.channels, length, max_seconds)
        blocks, total = [], 0
        for frame in container.decode(stream):
            block = _mono(frame)
            blocks.append(block)
            total += len(block)
            check_sound(source, frame.sample_rate, stream.channels, total / stream.rate, max_seconds)
        rate = stream.rate
    return resample(np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate, sampling_rate, source)


@contextmanager
def _opened(source: Source, kind: str, max_bytes: int, max_pixels: int = MAX_PIXELS) -> Generator[Any]:
    """An FFmpeg container over `source`; whatever goes wrong inside becomes a MediaError."""
    av = import_extra("av")
    with open_media(source, kind, max_bytes) as file:
        demuxer = _demuxer(file, source, kind)
        if demuxer == "mov":
            check_boxes(file, source, kind)
        try:
            with av.open(file, mode="r", format=demuxer) as container:
                for stream in container.streams.video:
                    if stream.codec_context is not None:
                        stream.codec_context.options = {"max_pixels": str(max_pixels)}
                yield container
        except MediaError:
            raise
        except Exception as error:  # on damaged files PyAV raises nearly everything
            said = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise refusal(kind, source, f"a truncated or damaged file ({said})") from error


def _demuxer(file: BinaryIO, source: Source, kind: str) -> str:
    container = container_of(file.read(HEAD))
    file.seek(0)
    if container not in DEMUXERS:
        raise refusal(kind, source, content_of(container), "convert it to MP4 or WebM")
    return DEMUXERS[container]


def _presentation_times(
    container: Any, source: Source, max_seconds: float, max_frames: int, max_pixels: int
) -> list[float]:
    """When each frame comes on screen, in seconds and in order, without decoding any. Never empty."""
    if not container.streams.video:
        raise refusal("video", source, "a file without a video track", "pass a video")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise refusal("video", source, "a codec that FFmpeg here does not know", "convert it to H.264 or VP9")
    if stream.codec_context.width * stream.codec_context.height > max_pixels:
        got = f"{stream.codec_context.width} x {stream.codec_context.height} pixels, more than {max_pixels}"
        raise refusal("video", source, got, "scale it down, or raise max_pixels")
    times: list[float] = []
    for packet in container.demux(stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            times.append(float(stamp * stream.time_base))
        if len(times) > max_frames:
            raise refusal("video", source, f"more than {max_frames} frames", "cut it, or raise max_frames")
    if not times:
        raise refusal("video", source, "no frames")
    times.sort()
    if times[-1] - times[0] > max_seconds:
        got = f"{times[-1] - times[0]:.1f} s, more than {max_seconds:g} s"
        raise refusal("video", source, got, "cut it, or raise max_seconds")
    return times


def _frames_at(
    container: Any, source: Source, targets: list[float], promised: int
) -> list[tuple[PILImage.Image, float]]:
    """For each of the rising `targets` the last frame that came on screen by then, and its time."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    shown: list[tuple[PILImage.Image, float]] = []
    current, decoded = None, 0
    for frame in container.decode(stream):
        decoded += 1
        if frame.time is None:
            raise refusal("video", source, "a frame without a presentation time")
        while current is not None and len(shown) < len(targets) and frame.time > targets[len(shown)] + _ROUNDING:
            shown.append((_upright(current), current.time))
        current = frame
        if len(shown) == len(targets):
            return shown
    if current is None or decoded < promised - 1:
        raise refusal("video", source, f"{decoded} of {promised} frames, a truncated or damaged file")
    last = (_upright(current), current.time)
    return shown + [last] * (len(targets) - len(shown))


def _upright(frame: Any) -> PILImage.Image:
    """The frame as a PIL RGB image, turned as its display rotation says (degrees counter-clockwise)."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 360 else image


def _mono(frame: Any) -> np.ndarray:
    """An audio frame as float32 `(samples,)` at full scale +-1, channels averaged."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32).mean(axis=0) - 128) / 128
    scale = 1.0 if samples.dtype.kind == "f" else float(-np.iinfo(samples.dtype).min)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are refused by `resample`
        return (samples.mean(axis=0, dtype=np.float64) / scale).astype(np.float32)
