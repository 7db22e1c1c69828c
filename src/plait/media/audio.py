"""Sound: path | bytes -> header and limits -> decode -> mean over channels -> resample -> float32 (samples,).

Behaviour with strange files, each with a test:
- wrong extension: the content counts. Any sample width, rate and number of channels up to the limits is converted.
- M4A, AAC, and the track of a video: decoded by PyAV, everything else by libsndfile.
- packets and headers are not the sound: chained Ogg and joined MP3 files are decoded part by part, a track whose rate
  changes is resampled run by run, lengths that a pipe could not know are those of the file.
- zero length, text, truncated or damaged: MediaError that names the file. WAV and AIFF carry no checksum: wrong bytes
  in the middle are heard, a missing end is an error.
- too long, too many channels or bytes: MediaError before anything is decoded.
"""

from __future__ import annotations

import io
import os
import re
import struct
from typing import BinaryIO

import numpy as np

from plait.errors import import_extra
from plait.media.container import opened
from plait.media.kinds import UNKNOWN_LENGTH, content_of, sniff
from plait.media.limits import (
    MAX_CHANNELS,
    MAX_RATE,
    MAX_SAMPLES,
    MAX_VALUES,
    Limits,
    MediaError,
    Source,
    exceeds,
    limit,
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
_CHUNKS = {b"", b"LIST", b"id3 ", b"ID3 ", b"fact", b"cue ", b"bext", b"PEAK", b"JUNK", b"smpl", b"iXML"}
"""What may follow the sound of a WAV file."""
_MP3_MARK = re.compile(rb"ID3|\xff[\xe2-\xff]")
"""A tag, or the eleven set bits of a frame of some layer."""
_MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""ISO/IEC 11172-3 and 13818-3: version bits -> samples per second by rate bits."""
_MPEG_BITS = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Version (3: MPEG 1, else 2) and layer bits (3: layer I) -> thousands of bits per second by bit rate index from 1."""


def load_audio(
    source: Source, sampling_rate: int = 16000, *, max_seconds: float | None = None, max_bytes: int | None = None
) -> np.ndarray:
    """Load one clip as mono float32 `(samples,)` at `sampling_rate` Hz, full scale +-1.

    Channels are averaged, then resampled (soxr, high quality). Raises MediaError, one line naming the file, for what is
    missing, damaged, empty, longer than `max_seconds` or no audio; MissingExtraError without soundfile and soxr.
    Limits that are None are those in force (`plait.media.raised`).
    """
    max_seconds = limit("max_seconds", max_seconds)
    with open_media(source, "audio", max_bytes) as file:
        container = sniff(file)
        # STREAMINFO counts the samples in 36 bits; a writer to a pipe leaves 0, with which libsndfile cannot read on
        head = file.read(26)
        is_uncounted = head[:4] == b"fLaC" and len(head) == 26 and not head[21] & 0x0F and not any(head[22:])
        file.seek(0)
        if container in BY_AV or is_uncounted:
            return audio_of_video(source, sampling_rate, max_seconds=max_seconds, max_bytes=max_bytes)
        parts = _parts(file, source, container, max_seconds)
        clips: list[np.ndarray] = []
        for part in parts or (file,):
            left = max_seconds - sum(map(len, clips)) / sampling_rate
            clip, rate = _decode(part, source, container, left if clips else max_seconds)
            if len(clip) or parts is None:
                clips.append(resample(clip, rate, sampling_rate, source))
    if not clips:
        return resample(np.zeros(0, np.float32), sampling_rate, sampling_rate, source)
    return np.concatenate(clips)


def audio_of_video(
    source: Source, sampling_rate: int = 16000, *, max_seconds: float | None = None, max_bytes: int | None = None
) -> np.ndarray:
    """The first audio track of a video, or of an audio file that only FFmpeg reads: mono float32 `(samples,)`.

    Raises MediaError, one line naming the file, where there is none, and as `load_audio`.
    """
    max_seconds = limit("max_seconds", max_seconds)
    with opened(source, "audio", max_bytes, max_seconds=max_seconds) as container:
        if not container.streams.audio:
            raise refusal("audio", source, "a video without a sound track", "pass a video with sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise refusal("audio", source, "a codec that FFmpeg here does not know", "convert it to WAV or FLAC")
        length = float(stream.duration * stream.time_base) if stream.duration else 0.0
        _check_sound(source, stream.rate, stream.channels, length, max_seconds)
        # a rate and the blocks decoded at it: it may change midway
        runs: list[tuple[int, list[np.ndarray]]] = []
        seconds = 0.0
        for frame in container.decode(stream):
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                # packed: (1, samples * channels), channels next to each other
                samples = samples.reshape(-1, len(frame.layout.channels)).T
            if samples.dtype == np.uint8:  # the one unsigned format: silence is 128
                block = (samples.astype(np.float32).mean(axis=0) - 128) / 128
            else:
                scale = 1.0 if samples.dtype.kind == "f" else float(-np.iinfo(samples.dtype).min)
                with np.errstate(invalid="ignore", over="ignore"):
                    # infinities are refused by `resample`
                    block = (samples.mean(axis=0, dtype=np.float64) / scale).astype(np.float32)
            if not runs or runs[-1][0] != frame.sample_rate:
                runs.append((frame.sample_rate, []))
            runs[-1][1].append(block)
            seconds += len(block) / max(frame.sample_rate, 1)
            _check_sound(source, frame.sample_rate, len(frame.layout.channels), seconds, max_seconds)
    if not runs:
        return resample(np.zeros(0, np.float32), sampling_rate, sampling_rate, source)
    return np.concatenate([resample(np.concatenate(blocks), rate, sampling_rate, source) for rate, blocks in runs])


def _parts(file: BinaryIO, source: Source, container: str | None, max_seconds: float) -> list[io.BytesIO] | None:
    """The files that a file is made of, where libsndfile would stop after the first or begin too early; else None."""
    if container == "wav":
        return _with_known_length(file)
    if container == "ogg":
        starts = _ogg_starts(file, source)
    elif container == "mp3":
        starts = _mp3_starts(file, source, max_seconds)
    else:
        return None
    if starts in ([], [0]):  # no frame that another follows, or one file from its beginning
        return None
    size = file.seek(0, os.SEEK_END)
    pieces = []
    for start, stop in zip(starts, [*starts[1:], size], strict=True):
        file.seek(start)
        pieces.append(io.BytesIO(file.read(stop - start)))
    file.seek(0)
    return pieces


def _with_known_length(file: BinaryIO) -> list[io.BytesIO] | None:
    """A WAV file whose writer could not know its length, with the length that it has; None where it says it itself."""
    size = file.seek(0, os.SEEK_END)
    place, found = 12, None
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            # 0 stands in a header written first and never again: sound follows then. In an empty file chunks do
            follows = file.read(4)
            if length >= UNKNOWN_LENGTH or (length == 0 and follows not in _CHUNKS):
                found = place
            break
        place += 8 + length + length % 2
    file.seek(0)
    if found is None or size - found - 8 <= 0:
        return None
    written = bytearray(file.read())
    file.seek(0)
    struct.pack_into("<I", written, 4, min(size - 8, 0xFFFF_FFFF))
    struct.pack_into("<I", written, found + 4, min(size - found - 8, 0xFFFF_FFFF))
    return [io.BytesIO(bytes(written))]


def _ogg_starts(file: BinaryIO, source: Source) -> list[int]:
    """Where the streams of an Ogg file begin (RFC 3533): chained ones follow each other, as in radio recordings.

    Raises MediaError where the last page is not whole, with which libsndfile is content.
    """
    size = file.seek(0, os.SEEK_END)
    place, starts, is_beginning = 0, [], False
    while place < size:
        file.seek(place)
        head = file.read(27)
        if head[:4] != b"OggS":  # rubbish between pages: go on at the next one
            file.seek(place)
            found = file.read(_OGG_PAGE + 4).find(b"OggS", 1)
            place += found if found > 0 else _OGG_PAGE
            continue
        segments = file.read(head[26]) if len(head) == 27 else b""
        length = 27 + len(segments) + sum(segments)
        if len(head) < 27 or len(segments) < head[26] or place + length > size:
            raise refusal("audio", source, "an unfinished last page, a truncated file")
        if head[5] & 2 and not is_beginning:
            # first page of a stream; those of one group stand together
            starts.append(place)
        is_beginning = bool(head[5] & 2)
        place += length
    file.seek(0)
    return starts


def _mp3_starts(file: BinaryIO, source: Source, max_seconds: float) -> list[int]:
    """Where the files that are joined in an MP3 begin: at a tag, at a new Xing header, where the rate changes.

    The first one's header counts its own frames only, and a decoder that believes it stops there.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    data = file.read()
    place, starts, form, is_tagged, seconds = 0, [], None, False, 0.0
    while place + 4 <= size:
        if data[place : place + 3] == b"ID3" and place + 10 <= size:
            if not is_tagged:
                starts.append(place)
            is_tagged = True
            place += 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(data[place + 6 : place + 10]))
            continue
        length, kind = _mp3_frame(data[place : place + 4])
        # a frame is one where another follows it, or the end: two set bytes stand anywhere by chance
        after = place + length
        follows = data[after : after + 4]
        if not length or not (len(follows) < 4 or _mp3_frame(follows)[0] or follows[:3] in (b"ID3", b"TAG", b"APE")):
            if (mark := _MP3_MARK.search(data, place + 1)) is None:
                break
            place = mark.start()
            continue
        seconds += (384 if data[place + 1] & 6 == 6 else 1152) / kind
        # half: frames of some versions hold 576 samples
        _check_sound(source, kind, 1, seconds / 2, max_seconds)
        head = data[place : min(after, place + 64)]
        is_new = form is None or kind != form or b"Xing" in head or b"Info" in head
        if is_new and not is_tagged:
            starts.append(place)
        form, is_tagged = kind, False
        place = after
    file.seek(0)
    return starts


def _mp3_frame(head: bytes) -> tuple[int, int]:
    """Bytes of an MPEG audio frame by its four bytes of header, and its rate; zeros where it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0, 0
    version, layer, bits, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 0 or not 0 < bits < 15 or rate == 3:
        return 0, 0
    hertz = _MPEG_RATES[version][rate]
    bits_a_second = 1000 * _MPEG_BITS[3 if version == 3 else 2, layer if version == 3 or layer == 3 else 2][bits - 1]
    padding = head[2] >> 1 & 1
    if layer == 3:
        return (12 * bits_a_second // hertz + padding) * 4, hertz
    samples = 72 if version != 3 and layer == 1 else 144
    return samples * bits_a_second // hertz + padding, hertz


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
                if int(present) < int(promised) < UNKNOWN_LENGTH:
                    raise refusal("audio", source, f"{present} of {promised} bytes of sound, a truncated file")
            blocks, length = [], 0
            while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
                with np.errstate(invalid="ignore", over="ignore"):
                    # infinities are refused by `resample`
                    blocks.append(block.mean(axis=1))
                length += len(block)
                # the header may say less
                _check_sound(source, rate, sound.channels, length / rate, max_seconds)
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
        raise exceeds("audio", source, f"{seconds:.1f} s", "max_seconds", max_seconds, "cut it")
    # each of the three may be allowed and all together gigabytes, which FLAC packs into a few kilobytes of silence
    longer, samples = max(1.0, max_seconds / Limits().max_seconds), rate * seconds
    if samples > longer * MAX_SAMPLES or samples * channels > longer * MAX_VALUES:
        got = f"{samples * channels:.0f} samples ({rate} a second, {channels} channels), too many"
        raise refusal(
            "audio", source, got, "cut it or lower its rate, or raise max_seconds (--limit max_seconds=NUMBER)"
        )


def resample(clip: np.ndarray, rate: int, sampling_rate: int, source: object = "an array") -> np.ndarray:
    """Mono `(samples,)` at `rate` -> float32 `(samples,)` at `sampling_rate`.

    Raises MediaError for a clip without samples, or with some that are no finite numbers.
    """
    for name, hertz in (("rate", rate), ("sampling_rate", sampling_rate)):
        if not 0 < hertz <= MAX_RATE:  # so is NaN, from the configuration of a stranger
            raise ValueError(f"expected a {name} of 1 to {MAX_RATE} Hz, got {hertz}; check it")
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
