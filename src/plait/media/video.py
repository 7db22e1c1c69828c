"""Video: path | bytes -> container by content -> presentation times -> the frames on screen at the times asked for.

Behaviour with strange files, each with a test:
- wrong extension: the content counts, and only the demuxer it calls for is ever tried (no playlists, no addresses).
- variable frame rate, B-frames, late start: a frame is chosen by its presentation time, never by its index.
- packets are not frames: an edit list hides some, a stream joined midway begins with some that nothing decodes, a
  clock that jumps (joined streams) goes on where it was. Length, frames and order are those that FFmpeg shows.
- rotation and mirroring noted by a phone: applied. Still pictures are no video. No track asked for: MediaError.
- truncated or damaged before the last frame asked for: MediaError that names the file.
- a header that promises more samples than the file has bytes: MediaError before FFmpeg makes room for them.
- too long, too many frames, pixels or bytes: MediaError before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.media.container import opened
from plait.media.limits import Source, exceeds, limit, refusal

if TYPE_CHECKING:
    from PIL import Image as PILImage

_ROUNDING = 1e-4
"""Seconds by which times in different units may differ."""
_JUMP = 10.0
"""Seconds a broadcast clock may go forward at once, as in FFmpeg (`dts_delta_threshold`); more is another stream."""
_BROADCAST = {"mpegts", "mpeg"}
"""Demuxers whose clock may jump: elsewhere a gap is a picture that stays."""
_WITHOUT_TIMES = {"avi"}
"""Demuxers of files without presentation times: frames leave the decoder in order, and its clock counts them."""


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
    at: Sequence[float] | Callable[[float], Sequence[float]] | None = None,
    longest_side: int | None = None,
    choose: Callable[[int, float], Sequence[int]] | None = None,
    max_seconds: float | None = None,
    max_frames: int | None = None,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
) -> Video:
    """The frames on screen in the middle of `num_frames` equal parts of a video, at the seconds `at`, or by number.

    at: the seconds, or what gives them for the length of the video. longest_side: frames are made no larger, so that
    many fit into memory.
    choose: (frames of the video, frames per second) -> numbers of the frames wanted, as published samplers have it.
    A short video gives a frame several times; times before its first frame give the first, after its end the last.
    Raises MediaError, one line naming the file, for what is missing, damaged, too large or no video; MissingExtraError
    without PyAV. Limits that are None are those in force (`plait.media.raised`).
    """
    max_seconds, max_frames = limit("max_seconds", max_seconds), limit("max_frames", max_frames)
    max_pixels = limit("max_pixels", max_pixels)
    costs = (max_bytes, max_pixels, max_seconds)
    with opened(source, "video", *costs) as container:
        track = _promised(container, source, max_seconds, max_frames, max_pixels)
    if not track.is_sure:
        with opened(source, "video", *costs) as container:
            track = _decoded(container, source, track, max_seconds)
    while True:
        if choose is not None:
            numbers = choose(len(track.times), len(track.times) / track.seconds if track.seconds else 1.0)
            targets = [track.times[number] for number in numbers]
        elif at is None:
            seconds, count = track.seconds, num_frames
            targets = [seconds * (i + 0.5) / count for i in range(count)] if count else list(track.times)
        else:
            targets = list(at) if isinstance(at, Sequence) else list(at(track.seconds))
        # decoded once from front to back, since seeking lands on key frames only, then put back into the order asked
        wanted = sorted(range(len(targets)), key=lambda i: targets[i])
        with opened(source, "video", *costs) as container:
            shown = _frames_at(container, [targets[i] for i in wanted], track, longest_side)
        if shown is not None:
            break
        # the packets promised other frames than those that came: ask the frames themselves
        with opened(source, "video", *costs) as container:
            track = _decoded(container, source, track, max_seconds)
    place = {original: sorted_ for sorted_, original in enumerate(wanted)}
    chosen = [shown[place[i]] for i in range(len(targets))]
    return Video([image for image, _ in chosen], [time for _, time in chosen], track.seconds)


@dataclass(frozen=True)
class _Track:
    """When each frame comes on screen, in seconds from the first, and when the last one leaves.

    packets: how many should give a frame. is_sure: whether the times may be those of the frames.
    """

    times: list[float]
    seconds: float
    packets: int
    is_sure: bool


def _stream(container: Any, source: Source) -> Any:
    """The first video track that is no cover of an album."""
    from av.stream import Disposition

    films = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not films:
        raise refusal("video", source, "a file without a video track", "pass a video")
    if films[0].codec_context is None:
        raise refusal("video", source, "a codec that FFmpeg here does not know", "convert it to H.264 or VP9")
    return films[0]


def _promised(container: Any, source: Source, max_seconds: float, max_frames: int, max_pixels: int) -> _Track:
    """The track as its packets tell it, without decoding any. Never empty."""
    stream = _stream(container, source)
    if stream.codec_context.width * stream.codec_context.height > max_pixels:
        got = f"{stream.codec_context.width} x {stream.codec_context.height} pixels"
        raise exceeds("video", source, got, "max_pixels", max_pixels, "scale it down")
    # of what is shown: when, and for how long where the packet knows
    stamps: list[tuple[float, float]] = []
    seen, promised, is_sure, last, has_key = 0, 0, True, None, False
    is_broadcast = container.format.name in _BROADCAST
    for packet in container.demux(stream):
        if not packet.size:
            # the end of the stream, or the empty packets by which AVI repeats a picture
            is_sure = is_sure and packet.dts is None
            continue
        seen += 1
        if seen > max_frames:
            raise exceeds("video", source, f"{seen} frames and more", "max_frames", max_frames, "cut it")
        has_key = has_key or packet.is_keyframe
        if packet.dts is not None:  # decoding order never goes back, unless another stream begins
            now = float(packet.dts * stream.time_base)
            is_sure = is_sure and (last is None or last - _ROUNDING <= now)
            is_sure = is_sure and not (is_broadcast and last is not None and now > last + _JUMP)
            last = now
        # AVI writes decoding times only
        stamp = packet.pts if packet.pts is not None else packet.dts
        is_sure = is_sure and stamp is not None and has_key and not packet.is_corrupt
        if packet.is_discard:
            # hidden by an edit list: decoded for the frames that need it, never shown
            continue
        promised += has_key  # what comes before the first key frame cannot be decoded
        if stamp is not None:
            stamps.append((float(stamp * stream.time_base), float((packet.duration or 0) * stream.time_base)))
    if not stamps:
        raise refusal("video", source, "no frames")
    stamps.sort()
    times = [stamp - stamps[0][0] for stamp, _ in stamps]
    if is_sure:
        _check_length(source, times[-1], max_seconds)
    # where nothing says how long the last frame stays, it stays as long as the frames before it did on average
    return _Track(times, times[-1] + (stamps[-1][1] or times[-1] / max(len(times) - 1, 1)), promised, is_sure)


def _check_length(source: Source, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise exceeds("video", source, f"{seconds:.1f} s", "max_seconds", max_seconds, "cut it")


def _decoded(container: Any, source: Source, promised: _Track, max_seconds: float) -> _Track:
    """The track as its frames tell it: all are decoded, and none is kept."""
    times, last = [], 0.0
    for _, time, stays in _clocked(container, source):
        times.append(time)
        last = stays
        _check_length(source, time, max_seconds)
    # the last packet of a stream may hold no whole frame, and two packets may be the fields of one frame
    is_fields = len(times) > 4 and abs(promised.packets - 2 * len(times)) <= 2
    if not times or (len(times) < promised.packets - 1 and not is_fields):
        got = f"{len(times)} of {promised.packets} frames, a truncated or damaged file"
        raise refusal("video", source, got)
    return _Track(times, times[-1] + (last or times[-1] / max(len(times) - 1, 1)), len(times), True)


def _clocked(container: Any, source: Source) -> Iterator[tuple[Any, float, float]]:
    """Every frame shown, in order; when, in seconds from the first; and how long it stays, 0 where that is unknown."""
    stream = _stream(container, source)
    stream.thread_type = "AUTO"
    is_broadcast, has_times = container.format.name in _BROADCAST, container.format.name not in _WITHOUT_TIMES
    last, shown, stays = None, 0.0, 0.0
    for count, frame in enumerate(container.decode(stream)):
        stamp = frame.pts if has_times else frame.dts
        now = None if stamp is None or frame.time_base is None else float(stamp * frame.time_base)
        if now is None and last is None:
            raise refusal("video", source, "a frame without a presentation time")
        if last is None:
            last = now
        elif now is None or now < last or (is_broadcast and now > last + _JUMP):
            # another stream begins, and its clock is set to ours
            shown += stays or shown / max(count - 1, 1)
        else:
            shown += now - last
        last = last if now is None else now
        stays = float((frame.duration or 0) * frame.time_base) if frame.time_base else 0.0
        yield frame, shown, stays


def _frames_at(
    container: Any, targets: list[float], track: _Track, longest_side: int | None = None
) -> list[tuple[PILImage.Image, float]] | None:
    """For each of the rising `targets` the last frame that came on screen by then, and its time.

    None where the frames that come are not those of `track`.
    """
    shown: list[tuple[PILImage.Image, float]] = []
    current: tuple[Any, float] | None = None
    count = 0
    for frame, time, _ in _clocked(container, ""):
        if count >= len(track.times) or abs(time - track.times[count]) > 10 * _ROUNDING:
            return None
        count += 1
        while current is not None and len(shown) < len(targets) and time > targets[len(shown)] + _ROUNDING:
            shown.append((_upright(current[0], longest_side), current[1]))
        current = (frame, time)
        if len(shown) == len(targets):
            return shown
    if current is None or count < len(track.times):
        return None
    last = (_upright(current[0], longest_side), current[1])
    return shown + [last] * (len(targets) - len(shown))


def _upright(frame: Any, longest_side: int | None = None) -> PILImage.Image:
    """The frame as a PIL RGB image, turned and mirrored as its display matrix says (ISO/IEC 14496-12, `tkhd`)."""
    from PIL.Image import Transpose

    image = frame.to_image()
    if longest_side is not None:
        image.thumbnail((longest_side, longest_side))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y, in units of 1/65536; only the signs matter for turns by right angles
    a, b, _, c, d = np.frombuffer(bytes(matrix)[:20], np.int32).astype(int)
    if not any((b, c)):
        turn = {(True, True): None, (False, True): Transpose.FLIP_LEFT_RIGHT, (True, False): Transpose.FLIP_TOP_BOTTOM}
        turned = turn.get((a >= 0, d >= 0), Transpose.ROTATE_180)
    elif not any((a, d)):
        turn = {
            (True, False): Transpose.ROTATE_270,
            (False, True): Transpose.ROTATE_90,
            (True, True): Transpose.TRANSPOSE,
        }
        turned = turn.get((b > 0, c > 0), Transpose.TRANSVERSE)
    else:  # another angle, in degrees counter-clockwise
        return image.rotate(frame.rotation, expand=True)
    return image if turned is None else image.transpose(turned)
