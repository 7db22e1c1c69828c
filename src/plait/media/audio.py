"""Sound: path | bytes -> header and limits -> decode -> mean over channels -> resample -> float32 (samples,).

Behaviour with strange files, each with a test:
- wrong extension: the content counts. Any sample width, rate and number of channels up to the limits is converted.
- M4A, AAC, and the track of a video: decoded by PyAV, everything else by libsndfile.
- zero length, text, truncated or damaged: MediaError that names the file. WAV and AIFF carry no checksum: wrong bytes
  in the middle are heard, a missing end is an error.
- too long, too many channels or bytes: MediaError before anything is decoded.
"""

from __future__ import annotations

import io
import os
import re
from typing import BinaryIO

import numpy as np

from plait.errors import import_extra
from plait.media.container import opened
from plait.media.kinds import content_of, sniff
from plait.media.limits import (
    MAX_BYTES,
    MAX_CHANNELS,
    MAX_RATE,
    MAX_SECONDS,
    MediaError,
    Source,
    open_media,
    refusal,
)

FORMATS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"}
"""The only libsndfile formats taken."""
BY_AV = {"m4a", "mov", "aac", "matroska", "avi", "mpeg", "mpegts", "flv", "asf", "ogv"}
"""Containers that libsndfile does not read."""
MIN_SHARE = 0.95
"""Share of the promised samples that must decode; MP3 headers round up to whole frames."""

_BLOCK = 1 << 16
_CONVERT = "convert it to WAV, FLAC, OGG or MP3"
_UNRECOGNISED = 1
"""libsndfile's code for a file of no format it knows."""
_OGG_PAGE = 27 + 255 + 255 * 255
"""Bytes of the longest Ogg page."""
_SHORTER = re.compile(r"(?:data|SSND)\s*: (\d+) \(should be (\d+)\)")
_UNKNOWN_LENGTH = 0xFFFF_FF00
"""Streamed WAV files hold the largest length, as theirs was not known when writing began."""


def load_audio(
    source: Source, sampling_rate: int = 16000, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """Load one clip as mono float32 `(samples,)` at `sampling_rate` Hz, full scale +-1.

    Channels are averaged, then resampled (soxr, high quality). Raises MediaError, one line naming the file, for what is
    missing, damaged, empty, longer than `max_seconds` or no sound; MissingExtraError without soundfile and soxr.
    """
    with open_media(source, "audio", max_bytes) as file:
        container = sniff(file)
        if container in BY_AV:
            return audio_of_video(source, sampling_rate, max_seconds=max_seconds, max_bytes=max_bytes)
        if container == "ogg":
            _check_last_page(file, source)
        clip, rate = _decode(file, source, container, max_seconds)
    return resample(clip, rate, sampling_rate, source)


def audio_of_video(
    source: Source, sampling_rate: int = 16000, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """The first sound track of a video, or of a sound file that only FFmpeg reads: mono float32 `(samples,)`.

    Raises MediaError, one line naming the file, where there is none, and as `load_audio`.
    """
    with opened(source, "audio", max_bytes) as container:
        if not container.streams.audio:
            raise refusal("audio", source, "a video without a sound track", "pass a video with sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise refusal("audio", source, "a codec that FFmpeg here does not know", "convert it to WAV or FLAC")
        length = float(stream.duration * stream.time_base) if stream.duration else 0.0
        _check_sound(source, stream.rate, stream.channels, length, max_seconds)
        blocks, total = [], 0
        for frame in container.decode(stream):
            samples = frame.to_ndarray()
            if not frame.format.is_planar:  # packed: (1, samples * channels), channels next to each other
                samples = samples.reshape(-1, len(frame.layout.channels)).T
            if samples.dtype == np.uint8:  # the one unsigned format: silence is 128
                block = (samples.astype(np.float32).mean(axis=0) - 128) / 128
            else:
                scale = 1.0 if samples.dtype.kind == "f" else float(-np.iinfo(samples.dtype).min)
                with np.errstate(invalid="ignore", over="ignore"):  # infinities are refused by `resample`
                    block = (samples.mean(axis=0, dtype=np.float64) / scale).astype(np.float32)
            blocks.append(block)
            total += len(block)
            _check_sound(source, frame.sample_rate, stream.channels, total / stream.rate, max_seconds)
        rate = stream.rate
    return resample(np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate, sampling_rate, source)


def _decode(file: BinaryIO, source: Source, container: str | None, max_seconds: float) -> tuple[np.ndarray, int]:
    """Mono `(samples,)` and its rate by libsndfile, read block by block so that memory is bounded by the mono clip."""
    soundfile = import_extra("soundfile")
    handle: BinaryIO | int
    if isinstance(file, io.BytesIO):
        handle = _Memory(file.getvalue())
    else:  # a descriptor, so that the name of the file (`x.raw`) says nothing
        handle = file.fileno()
        os.lseek(handle, 0, os.SEEK_SET)
    try:
        with soundfile.SoundFile(handle, closefd=False) as sound:
            rate = sound.samplerate
            _check_sound(source, rate, sound.channels, sound.frames / max(rate, 1), max_seconds)
            if sound.format not in FORMATS:
                raise refusal("audio", source, f"{sound.format} content", _CONVERT)
            for promised, present in _SHORTER.findall(sound.extra_info):
                if int(present) < int(promised) < _UNKNOWN_LENGTH:
                    raise refusal("audio", source, f"{present} of {promised} bytes of sound, a truncated file")
            blocks, length = [], 0
            while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
                with np.errstate(invalid="ignore", over="ignore"):  # infinities are refused by `resample`
                    blocks.append(block.mean(axis=1))
                length += len(block)
                if length > int(max_seconds * rate):
                    got = "more samples than its header says"
                    raise refusal("audio", source, got, "cut it, or raise max_seconds")
            if length < MIN_SHARE * sound.frames:
                got = f"{length} of {sound.frames} samples, a truncated or damaged file"
                raise refusal("audio", source, got)
            return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate
    except MediaError:
        raise
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        if getattr(error, "code", None) == _UNRECOGNISED:
            raise refusal("audio", source, content_of(container), _CONVERT) from error
        said = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
        raise refusal("audio", source, f"a truncated or damaged file ({said})" if container else said) from error


class _Memory(io.BytesIO):
    """Bytes in which a damaged file may ask for a negative position: libsndfile cannot be told by an exception."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: len(self.getbuffer())}[whence]
        return super().seek(max(0, start + offset))


def _check_sound(source: object, rate: int, channels: int, seconds: float, max_seconds: float) -> None:
    """Raise MediaError where a sound is outside the limits."""
    if not 0 < rate <= MAX_RATE:
        raise refusal("audio", source, f"{rate} samples per second, not 1 to {MAX_RATE}")
    if not 0 < channels <= MAX_CHANNELS:
        raise refusal("audio", source, f"{channels} channels, not 1 to {MAX_CHANNELS}", "mix it down")
    if seconds > max_seconds:
        raise refusal("audio", source, f"{seconds:.1f} s, more than {max_seconds:g} s", "cut it, or raise max_seconds")


def _check_last_page(file: BinaryIO, source: Source) -> None:
    """An Ogg file ends with a whole page; libsndfile is content with what comes before. Leaves `file` at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _OGG_PAGE))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) != 27 + len(segments) + sum(segments):
        raise refusal("audio", source, "an unfinished last page, a truncated file")
    file.seek(0)


def resample(clip: np.ndarray, rate: int, sampling_rate: int, source: object = "an array") -> np.ndarray:
    """Mono `(samples,)` at `rate` -> float32 `(samples,)` at `sampling_rate`.

    Raises MediaError for a clip without samples, or with some that are no finite numbers.
    """
    if not len(clip):
        raise refusal("audio", source, "no samples", "pass a clip with sound in it")
    if not np.isfinite(clip).all():
        raise refusal("audio", source, "samples that are no finite numbers")
    clip = clip.astype(np.float32, copy=False)
    if rate == sampling_rate:
        return clip
    made = import_extra("soxr").resample(clip, rate, sampling_rate, quality="HQ").astype(np.float32, copy=False)
    if not len(made):
        raise refusal("audio", source, f"{len(clip)} samples at {rate} Hz, less than one at {sampling_rate} Hz")
    return made
