"""Videos give the frames on screen at the times asked for, or one clear line."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.media import kind_of
from plait.media.audio import audio_of_video, load_audio
from plait.media.limits import MediaError
from plait.media.video import load_frames, load_video

from ..fuzzing import bounded_memory, within

WIDTH, HEIGHT = 64, 48
CODEC = {"mp4": "mpeg4", "mov": "mpeg4", "matroska": "mpeg4", "avi": "mpeg4", "mpegts": "mpeg2video", "webm": "libvpx"}


def grey(level: int, width: int = WIDTH, height: int = HEIGHT) -> av.VideoFrame:
    return av.VideoFrame.from_image(Image.new("RGB", (width, height), (level, level, level)))


def make_video(
    kind: str = "mp4",
    levels=range(0, 250, 25),
    *,
    stamps=None,
    rate: int = 10,
    tone: float | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    rotation: int = 0,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video whose frames are grey: frame i at stamp i / rate (or stamps[i] / 100 s) has brightness levels[i]."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options=options or {}) as container:
        video = container.add_stream(CODEC[kind], rate=rate)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.max_b_frames = b_frames
        video.codec_context.gop_size = 5
        if stamps is not None:
            video.codec_context.time_base = Fraction(1, 100)
        if rotation:
            video.set_display_rotation(rotation)
        sound = container.add_stream("mp2" if kind == "mpegts" else "aac", rate=16000) if tone else None
        for i, level in enumerate(levels):
            frame = grey(level, *size)
            frame.pts, frame.time_base = (stamps[i], Fraction(1, 100)) if stamps is not None else (i, Fraction(1, rate))
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            seconds = len(levels) / rate
            wave = 0.5 * np.sin(2 * np.pi * tone * np.arange(int(16000 * seconds)) / 16000)
            samples = np.stack([wave, wave]).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 16000, 0
            resampler = av.AudioResampler(sound.format, sound.layout, 16000, frame_size=sound.frame_size or None)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))
    return buffer.getvalue()


def brightness(image: Image.Image) -> int:
    return int(np.asarray(image.convert("L")).mean().round())


def near(images, levels, tolerance: int = 8) -> bool:
    return len(images) == len(levels) and all(abs(brightness(i) - v) <= tolerance for i, v in zip(images, levels))


@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska", "avi", "mpegts"])
def test_frames_are_spread_evenly(kind):
    video = load_video(make_video(kind), 5)
    assert near(video.frames, [25, 75, 125, 175, 225])
    assert np.allclose(video.times, [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.002)
    assert video.seconds == pytest.approx(1.0, abs=0.01)
    assert all(frame.mode == "RGB" and frame.size == (WIDTH, HEIGHT) for frame in video.frames)


def test_all_frames_and_frames_at_given_times():
    data = make_video()
    assert near(load_video(data, None).frames, range(0, 250, 25))
    video = load_video(data, at=[0.95, 0.0, 0.42, -1.0, 99.0, 0.42])
    assert near(video.frames, [225, 0, 100, 0, 225, 100])
    assert np.allclose(video.times, [0.9, 0.0, 0.4, 0.0, 0.9, 0.4], atol=0.002)


def test_a_frame_is_chosen_by_its_time_not_its_index():
    """Nine frames in the first tenth of the video: by index they would win, on screen they hardly are."""
    stamps = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 50, 99]
    data = make_video("matroska", levels=[0] * 10 + [100, 200], stamps=stamps)
    assert near(load_video(data, at=[0.3, 0.6, 1.0]).frames, [0, 100, 200])
    assert near(load_frames(data, 4), [0, 0, 100, 100])


def test_times_count_from_the_first_frame_of_a_late_start():
    data = make_video("matroska", levels=[50, 100, 150, 200], stamps=[500, 510, 520, 530])
    video = load_video(data, 4)
    assert near(video.frames, [50, 100, 150, 200])
    assert np.allclose(video.times, [0, 0.1, 0.2, 0.3], atol=0.002)


def test_b_frames_come_in_order_of_presentation():
    video = load_video(make_video("mp4", b_frames=2), None)
    assert near(video.frames, range(0, 250, 25), 12)
    assert video.times == sorted(video.times)


def test_a_short_video_repeats_its_frames():
    assert near(load_frames(make_video(levels=[0, 200]), 4), [0, 0, 200, 200])
    assert near(load_frames(make_video(levels=[120]), 3), [120] * 3)


def test_rotation_of_a_phone_is_applied():
    data = make_video("mp4", levels=[100] * 3, rotation=90)
    assert load_frames(data, 1)[0].size == (HEIGHT, WIDTH)
    assert load_frames(make_video("mp4", levels=[100] * 3), 1)[0].size == (WIDTH, HEIGHT)


def test_rotation_turns_the_right_way():
    """The top half is white; turned by 90 degrees counter-clockwise it is the left half."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.set_display_rotation(90)
        picture = Image.new("RGB", (WIDTH, HEIGHT))
        picture.paste((255, 255, 255), (0, 0, WIDTH, HEIGHT // 2))
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        assert next(container.decode(video=0)).rotation == 90
    frame = load_frames(buffer.getvalue(), 1)[0]
    assert brightness(frame.crop((0, 0, HEIGHT // 2, WIDTH))) > 200
    assert brightness(frame.crop((HEIGHT // 2, 0, HEIGHT, WIDTH))) < 50


def test_path_bytes_and_wrong_extension_agree(tmp_path):
    data = make_video()
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    for source in (path, str(path), data):
        assert near(load_frames(source, 2), [50, 175])


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
def test_the_sound_of_a_video(kind, tmp_path):
    data = make_video(kind, tone=440.0)
    clip = audio_of_video(data)
    assert clip.dtype == np.float32
    assert abs(len(clip) / 16000 - 1.0) < 0.1
    spectrum = np.abs(np.fft.rfft(clip))
    assert abs(spectrum.argmax() * 16000 / len(clip) - 440) < 5
    assert 0.3 < np.abs(clip).max() < 0.8
    assert np.array_equal(load_audio(data), clip)
    assert abs(len(audio_of_video(data, 8000)) - len(clip) / 2) <= 1


def test_m4a_is_sound(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=16000)
        for i in range(20):
            wave = 0.5 * np.sin(2 * np.pi * 440 * (np.arange(1024) + 1024 * i) / 16000)
            frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]).astype(np.float32), "fltp", "stereo")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = tmp_path / "song.m4a"
    path.write_bytes(buffer.getvalue())
    assert kind_of(path) == "audio"
    assert abs(len(load_audio(path)) - 20 * 1024) <= 2048
    with pytest.raises(MediaError, match="without a video track"):
        load_frames(path)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s32le", "pcm_f32le"])
def test_sample_formats_of_a_sound_track_have_one_scale(codec):
    buffer = io.BytesIO()
    wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32)
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], "flt", "mono")
        frame.sample_rate = 16000
        for part in av.AudioResampler(stream.format, "mono", 16000).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    assert np.abs(audio_of_video(buffer.getvalue()) - wave).max() < 0.01


def test_a_video_without_sound_says_so():
    with pytest.raises(MediaError, match="a video without a sound track; pass a video with sound"):
        audio_of_video(make_video())
    with pytest.raises(MediaError, match="a video without a sound track"):
        load_audio(make_video())


def test_truncated_videos_are_an_error():
    mp4 = make_video("mp4", tone=440.0)
    for share in (0.05, 0.5, 0.9):
        with pytest.raises(MediaError):
            load_frames(mp4[: int(len(mp4) * share)])


def test_a_video_damaged_in_the_middle_is_read_or_refused():
    data = bytearray(make_video("mp4", levels=list(range(0, 250, 5))))
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    try:
        frames = load_frames(bytes(data), 4)
    except MediaError as error:
        assert "expected a video file" in str(error)
    else:
        assert len(frames) == 4


@pytest.mark.parametrize(
    "content", [b"no video at all", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 50, b"\x1aE\xdf\xa3junk"]
)
def test_what_is_no_video_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"^expected a video file, got .*clip\.mp4: ") as caught:
        load_video(path)
    assert "\n" not in str(caught.value)


def test_playlists_are_never_followed(tmp_path):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(make_video("mpegts"))
    for text in (f"#EXTM3U\n#EXTINF:1,\nfile:{secret}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile {secret}\n"):
        path = tmp_path / "list.mp4"
        path.write_text(text)
        with pytest.raises(MediaError, match="content of no kind known here"):
            load_video(path)


def test_a_picture_is_no_video():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(MediaError, match="PNG content"):
        load_video(buffer.getvalue())


def test_limits_hold_before_anything_is_decoded(monkeypatch):
    data = make_video()
    monkeypatch.setattr("plait.media.video._frames_at", lambda *a: pytest.fail("decoded what is over the limit"))
    with pytest.raises(MediaError, match=r"more than 0\.5 s; cut it, or raise max_seconds"):
        load_video(data, max_seconds=0.5)
    with pytest.raises(MediaError, match="frames and more, more than 5; cut it, or raise max_frames"):
        load_video(data, max_frames=5)
    with pytest.raises(MediaError, match="64 x 48 pixels, more than 100"):
        load_video(data, max_pixels=100)
    with pytest.raises(MediaError, match="bytes, more than 100"):
        load_video(data, max_bytes=100)
    with pytest.raises(MediaError, match="s, more than 0"):
        audio_of_video(make_video(tone=440.0), max_seconds=0.2)


def test_missing_empty_directory_and_pipe(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        load_video(tmp_path / "missing.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match="an empty file"):
        load_video(tmp_path / "empty.mp4")
    with pytest.raises(MediaError, match="a directory"):
        load_video(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="a pipe"):
        load_video(tmp_path / "pipe.mp4")


# Kinds.


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def sound(kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(4000, np.float32), 16000, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["right.bin", "no_extension", "wrong.txt"])
def test_kind_is_told_by_content(name, tmp_path):
    path: Path = tmp_path / name
    expected = {
        "image": [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")],
        "audio": [sound(kind) for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64")],
        "video": [make_video(kind) for kind in ("mp4", "mov", "matroska", "avi", "mpegts")],
    }
    for kind, contents in expected.items():
        for content in contents:
            path.write_bytes(content)
            assert kind_of(path) == kind, content[:16]


def test_the_extension_decides_where_content_does_not(tmp_path):
    for name, kind in {"a.txt": "text", "b.JPG": "image", "c.m4a": "audio", "d.mkv": "video", "e.xyz": None}.items():
        (tmp_path / name).write_bytes(b"nothing that is known")
        assert kind_of(tmp_path / name) == kind
    assert kind_of(tmp_path / "missing.png") == "image"
    assert kind_of(tmp_path) is None
    (tmp_path / "sound.mka").write_bytes(make_video("matroska"))
    assert kind_of(tmp_path / "sound.mka") == "audio"


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize("count", [10_000, 90_000_000, 0xFFFF_FFFF])
def test_a_header_that_promises_more_samples_than_there_are_bytes_takes_no_memory(kind, count):
    video = bytearray(make_video(kind))
    table = video.index(b"stsz")
    struct.pack_into(">II", video, table + 8, 58, count)
    with bounded_memory(100), within(), pytest.raises(MediaError, match=f"promises {count} samples in {len(video)} b"):
        load_frames(bytes(video), 2)


def test_fragments_and_compressed_headers_are_checked_as_well():
    video = make_video("mp4", options={"movflags": "frag_keyframe+empty_moov"})
    assert len(load_frames(video, 2)) == 2
    table = video.index(b"trun")
    made = video[: table + 8] + struct.pack(">I", 50_000_000) + video[table + 12 :]
    with bounded_memory(100), pytest.raises(MediaError, match="promises 50000000 samples"):
        load_frames(made, 2)
    with pytest.raises(MediaError, match="a compressed header; convert it"):
        load_frames(make_video("mp4").replace(b"mvhd", b"cmov"), 2)


@pytest.mark.parametrize("count", [60, pytest.param(100_000, marks=pytest.mark.slow)])
@bounded_memory()
def test_damaged_videos_are_read_or_refused(count, capfd):
    rng = np.random.default_rng(4)
    seeds = [make_video(kind, levels=[0, 100, 200]) for kind in CODEC]
    refused = 0
    for i in range(count):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.integers(1, 30)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.integers(2):
            data = data[: rng.integers(1, len(data))]
        try:
            with within():
                assert len(load_frames(bytes(data), 2, max_pixels=1_000_000)) == 2
        except MediaError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > count // 5


# Packets are not frames.


def test_a_mirrored_video_is_shown_as_its_matrix_says():
    """All eight matrices of right angles: the top left quarter is white, and the matrix tells where it lands."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture = Image.new("RGB", (WIDTH, HEIGHT))
        picture.paste((255, 255, 255), (0, 0, WIDTH // 2, HEIGHT // 2))
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    data = buffer.getvalue()
    place = data.index(b"tkhd") + 44
    straight = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
    for a, b, c, d in [*straight, *((0, a, d, 0) for a, _, _, d in straight)]:
        matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        frame = load_frames(data[:place] + matrix + data[place + 36 :], 1)[0]
        assert frame.size == ((WIDTH, HEIGHT) if a else (HEIGHT, WIDTH))
        # the quarter lies at (-1, -1) of the middle; x' = a x + c y, y' = b x + d y
        x, y = (-a - c) > 0, (-b - d) > 0
        width, height = frame.width // 2, frame.height // 2
        found = [brightness(frame.crop((i * width, j * height, (i + 1) * width, (j + 1) * height))) > 128
                 for i in (0, 1) for j in (0, 1)]  # fmt: skip
        assert found == [(i, j) == (x, y) for i in (0, 1) for j in (0, 1)], (a, b, c, d)


def test_an_edit_list_hides_packets():
    """Frames before the edit list's first are decoded for the frames that need them and never shown."""
    data = make_video("mp4", rate=10)
    edits = data.index(b"elst")
    length, time = struct.unpack(">Ii", data[edits + 12 : edits + 20])
    scale = struct.unpack(">I", data[(at := data.index(b"mdhd") + 16) : at + 4])[0]
    start = time + scale * 3 // 10
    cut = data[: edits + 12] + struct.pack(">Ii", length * 7 // 10, start) + data[edits + 20 :]
    with av.open(io.BytesIO(cut)) as container:
        shown = len(list(container.decode(video=0)))
    video = load_video(cut, None)
    assert shown == 7
    assert near(video.frames, range(75, 250, 25))
    assert video.seconds == pytest.approx(0.7, abs=0.02)
    assert near(load_frames(cut, 3), [100, 150, 200])


@pytest.mark.parametrize("gap", [0, 100])
def test_a_clock_that_jumps_goes_on_where_it_was(gap):
    """Joined transport streams: the second clock begins anew, or far ahead; order and length are those of both."""
    first = make_video("mpegts", levels=range(0, 100, 10))
    second = make_video("mpegts", levels=range(150, 250, 10), stamps=range(100 * gap, 100 * gap + 100, 10))
    video = load_video(first + second, None)
    assert near(video.frames, [*range(0, 100, 10), *range(150, 250, 10)])
    assert video.times == sorted(video.times)
    assert video.seconds == pytest.approx(1.95, abs=0.06)
    assert near(load_frames(first + second, 4), [20, 70, 170, 220], 12)
    with pytest.raises(MediaError, match=r"more than 1\.5 s"):
        load_video(first + second, max_seconds=1.5)


def test_a_stream_joined_midway_begins_with_its_first_whole_picture():
    data = make_video("mpegts", levels=range(0, 250, 10))
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    cut = b"".join(packets[:3] + packets[len(packets) // 3 :])[50:]
    with av.open(io.BytesIO(cut), format="mpegts") as container:
        shown = [brightness(frame.to_image()) for frame in container.decode(video=0)]
    assert 5 < len(shown) < 25
    assert near(load_video(cut, None).frames, shown)


def test_the_last_frame_stays_as_long_as_it_says():
    """A slide show: three pictures in the first half second, the last of which stays."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=100)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        packets = []
        for level, stamp in ((0, 0), (100, 25), (200, 50)):
            frame = grey(level)
            frame.pts, frame.time_base = stamp, Fraction(1, 100)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet, duration in zip(packets, (25, 25, 350), strict=True):
            packet.duration = duration
            container.mux(packet)
    video = load_video(buffer.getvalue(), 4)
    assert video.seconds == pytest.approx(4.0, abs=0.02)
    assert near(video.frames, [200, 200, 200, 200])
    assert near(load_video(buffer.getvalue(), at=[0.1, 0.3]).frames, [0, 100])


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_a_video_that_ends_too_early_is_refused(kind):
    data = make_video(kind, levels=range(0, 250, 5))
    if kind == "mp4":  # as for the web: what tells of the frames comes first, and needs no places here to be found out
        at, size = data.index(b"mdat") - 4, struct.unpack(">I", data[data.index(b"mdat") - 4 : data.index(b"mdat")])[0]
        data = data[:at] + data[at + size :] + data[at : at + size]
    for share in (0.6, 0.9):
        with pytest.raises(MediaError, match="truncated"):
            load_video(data[: int(len(data) * share)], 4)


# Sniffing is as wide as the decoder.


def test_camcorder_packets_of_192_bytes(tmp_path):
    data = make_video("mpegts")
    packets = [bytes(4) + data[i : i + 188] for i in range(0, len(data), 188)]
    (tmp_path / "00001.MTS").write_bytes(b"".join(packets))
    assert kind_of(tmp_path / "00001.MTS") == "video"
    assert near(load_frames(tmp_path / "00001.MTS", 5), [25, 75, 125, 175, 225])


@pytest.mark.parametrize("first", [b"wide", b"free", b"skip"])
def test_a_quicktime_film_without_ftyp(first, tmp_path):
    data = make_video("mov")
    size = struct.unpack(">I", data[:4])[0]
    (tmp_path / "a").write_bytes(struct.pack(">I4s", size, first) + bytes(size - 8) + data[size:])
    assert kind_of(tmp_path / "a") == "video"
    assert near(load_frames(tmp_path / "a", 2), [50, 175])


@pytest.mark.parametrize(
    ("name", "kind", "codec"),
    [("a.mp4", "mp4", "aac"), ("a.webm", "webm", "libopus"), ("a.mov", "mov", "aac"), ("a.wmv", "asf", "mp2"),
     ("a.flv", "flv", "aac"), ("a.mkv", "matroska", "pcm_s16le")],
)  # fmt: skip
def test_sound_alone_in_a_container_of_films_is_a_sound(name, kind, codec, tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=48000, layout="mono", bit_rate=96000)
        wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], "flt", "mono")
        frame.sample_rate, frame.pts = 48000, 0
        resampler = av.AudioResampler(stream.format, stream.layout, 48000, frame_size=stream.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    (tmp_path / name).write_bytes(buffer.getvalue())
    assert kind_of(tmp_path / name) == "audio"
    assert abs(len(load_audio(tmp_path / name)) / 16000 - 1) < 0.1


@pytest.mark.parametrize(("name", "kind"), [("a.mp4", "mp4"), ("a.bin", "matroska"), ("a.xyz", "webm")])
def test_a_film_stays_a_film(name, kind, tmp_path):
    (tmp_path / name).write_bytes(make_video(kind))
    assert kind_of(tmp_path / name) == "video"


def test_photographs_in_containers_like_films_are_named(tmp_path):
    for brand, said in ((b"heic", "HEIC"), (b"heim", "HEIC"), (b"mif1", "HEIC"), (b"crx ", "CR3")):
        head = struct.pack(">I4s4sI4s", 24, b"ftyp", brand, 0, brand) + struct.pack(">I4s", 8, b"free")
        (tmp_path / "a.bin").write_bytes(head)
        assert kind_of(tmp_path / "a.bin") == "image"
        with pytest.raises(MediaError, match=f"{said} content; convert it"):
            load_video(tmp_path / "a.bin")
