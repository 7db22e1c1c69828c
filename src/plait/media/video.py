"""Video: path | bytes -> container by content -> presentation times -> the frames on screen at the times asked for.

Behaviour with strange files, each with a test:
- wrong extension: the content counts, and only the demuxer it calls for is ever tried (no playlists, no addresses).
- variable frame rate, B-frames, late start: a frame is chosen by its presentation time, never by its index.
- rotation noted by a phone: applied. Still pictures are no video. No audio track, or no video track: MediaError.
- truncated or damaged before the last frame asked for: MediaError that names the file.
- a header that promises more samples than the file has bytes: MediaError before FFmpeg makes room for them.
- too long, too many frames, pixels or bytes: MediaError before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plait.media.container import opened
from plait.media.limits import MAX_BYTES, MAX_FRAMES, MAX_PIXELS, MAX_SECONDS, Source, refusal

if TYPE_CHECKING:
    from PIL import Image as PILImage

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
    with opened(source, "video", max_bytes, max_pixels) as container:
        times = _presentation_times(container, source, max_seconds, max_frames, max_pixels)
    # the last frame stays as long as the frames before it did on average: its own end is not in the packets
    seconds = times[-1] - times[0] + (times[-1] - times[0]) / max(len(times) - 1, 1)
    if at is None:
        count = num_frames or len(times)
        at = [seconds * (i + 0.5) / count for i in range(count)] if num_frames else [t - times[0] for t in times]
    # decoded once from front to back, since seeking lands on key frames only, then put back into the order asked for
    wanted = sorted(range(len(at)), key=lambda i: at[i])
    with opened(source, "video", max_bytes, max_pixels) as container:
        shown = _frames_at(container, source, [at[i] + times[0] for i in wanted], len(times))
    place = {original: sorted_ for sorted_, original in enumerate(wanted)}
    chosen = [shown[place[i]] for i in range(len(at))]
    return Video([image for image, _ in chosen], [time - times[0] for _, time in chosen], seconds)


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
        stamp = packet.pts if packet.pts is not None else packet.dts  # AVI writes decoding times only
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
    if current is None or decoded < promised - 1:  # the last packet of a stream may hold no whole frame
        raise refusal("video", source, f"{decoded} of {promised} frames, a truncated or damaged file")
    last = (_upright(current), current.time)
    return shown + [last] * (len(targets) - len(shown))


def _upright(frame: Any) -> PILImage.Image:
    """The frame as a PIL RGB image, turned as its display rotation says (degrees counter-clockwise)."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 360 else image
