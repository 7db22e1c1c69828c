"""Sounds of every kind become mono float32 at one rate or one clear line."""

from __future__ import annotations

import io
import os
import struct

import av
import numpy as np
import pytest
import soundfile

from plait.errors import MissingExtraError
from plait.media import kind_of
from plait.media.audio import load_audio, resample
from plait.media.limits import MediaError

from ..fuzzing import bounded_memory, within
from ..hostile import video

RATE = 16000


def tone(seconds: float = 0.25, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(clip: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def pitch(clip: np.ndarray, rate: int = RATE) -> float:
    return np.abs(np.fft.rfft(clip * np.hanning(len(clip)))).argmax() * rate / len(clip)


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("WAV", "ULAW", 0.05),
        ("RF64", "PCM_16", 1e-4),
        ("W64", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("AIFF", "PCM_S8", 1e-2),
        ("AU", "PCM_16", 1e-4),
        ("CAF", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
    ],
)
def test_every_sample_width_gives_the_same_clip(kind, subtype, tolerance):
    clip = load_audio(encoded(tone(), kind, subtype))
    assert clip.dtype == np.float32
    assert clip.shape == tone().shape
    assert np.abs(clip - tone()).max() <= tolerance


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_keep_length_and_pitch(kind, subtype):
    clip = load_audio(encoded(tone(0.5), kind, subtype))
    assert abs(len(clip) - RATE // 2) < 100
    assert abs(pitch(clip) - 440) < 5


def test_path_and_bytes_agree_and_the_extension_says_nothing(tmp_path):
    data = encoded(tone())
    for name in ("a.wav", "a.flac", "a.raw", "a"):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(load_audio(tmp_path / name), load_audio(data))
        assert np.array_equal(load_audio(str(tmp_path / name)), load_audio(data))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 7919])
def test_odd_rates_are_resampled(rate):
    clip = load_audio(encoded(tone(0.5, rate), "WAV", "FLOAT", rate))
    assert abs(len(clip) - RATE // 2) <= 1
    assert abs(pitch(clip) - 440) < 3
    assert np.abs(clip[1000:-1000] - tone(0.5)[1000 : len(clip) - 1000]).max() < 1e-3


def test_the_rate_asked_for_is_the_rate_given():
    assert len(load_audio(encoded(tone(0.5)), sampling_rate=48000)) == 24000


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(channels):
    clips = np.stack([tone() * (i + 1) / channels for i in range(channels)], axis=1)
    assert np.allclose(load_audio(encoded(clips, "WAV", "FLOAT")), clips.mean(axis=1), atol=1e-7)


def test_opposite_channels_cancel():
    assert np.abs(load_audio(encoded(np.stack([tone(), -tone()], axis=1)))).max() < 1e-4


def test_a_long_clip_is_read_in_blocks_without_seams():
    clip = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    assert np.array_equal(load_audio(encoded(clip, "WAV", "FLOAT")), clip)


def test_zero_length_is_an_error(tmp_path):
    with pytest.raises(MediaError, match="no samples"):
        load_audio(encoded(np.zeros(0, np.float32)))
    (tmp_path / "empty.wav").touch()
    with pytest.raises(MediaError, match="an empty file"):
        load_audio(tmp_path / "empty.wav")


@pytest.mark.parametrize("content", [b"this is a shopping list\n" * 20, b"\x00" * 1000, b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_sound_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "note.wav"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"^expected an audio file, got .*note\.wav: ") as caught:
        load_audio(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")],
)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_truncated_is_an_error(kind, subtype, share):
    data = encoded(tone(2.0), kind, subtype)
    with pytest.raises(MediaError):
        load_audio(data[: int(len(data) * share)])


def test_a_truncated_mp3_is_an_error():
    data = encoded(tone(2.0), "MP3", "MPEG_LAYER_III")
    with pytest.raises(MediaError, match="truncated or damaged"):
        load_audio(data[: len(data) // 2])


def test_a_streamed_wav_of_unknown_length_is_whole():
    data = bytearray(encoded(tone()))
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff\xff\xff\xff"
    assert np.array_equal(load_audio(bytes(data)), load_audio(encoded(tone())))


def test_damaged_in_the_middle_is_an_error_where_there_are_checksums():
    data = bytearray(encoded(tone(1.0), "FLAC"))
    data[len(data) // 2 : len(data) // 2 + 50] = b"\xa5" * 50
    with pytest.raises(MediaError):
        load_audio(bytes(data))
    wav = bytearray(encoded(tone()))
    wav[2000:2004] = b"\xff\x7f\xff\x7f"
    assert load_audio(bytes(wav)).max() > 0.99


def test_samples_that_are_no_numbers_are_an_error():
    clip = tone()
    clip[7] = np.nan
    with pytest.raises(MediaError, match="no finite numbers"):
        load_audio(encoded(clip, "WAV", "FLOAT"))


def test_limits_hold_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: pytest.fail("decoded what is over the limit"))
    with pytest.raises(MediaError, match=r"2\.0 s, more than 1 s; cut it, or raise max_seconds"):
        load_audio(encoded(tone(2.0)), max_seconds=1)
    with pytest.raises(MediaError, match="40 channels, not 1 to 32"):
        load_audio(encoded(np.zeros((10, 40), np.float32)))
    with pytest.raises(MediaError, match="bytes, more than 1000"):
        load_audio(encoded(tone()), max_bytes=1000)
    huge = bytearray(encoded(tone()))
    huge[24:28] = struct.pack("<I", 2_000_000_000)
    with pytest.raises(MediaError, match="2000000000 samples per second"):
        load_audio(bytes(huge))


def test_a_small_file_that_promises_hours_is_refused():
    silence = encoded(np.zeros(3_700 * 8000, np.float32), "FLAC", "PCM_16", 8000)
    assert len(silence) < 200_000
    with pytest.raises(MediaError, match=r"3700\.0 s, more than 600 s"):
        load_audio(silence)


def test_formats_that_are_not_listed_are_refused():
    with pytest.raises(MediaError, match="VOC content; convert it to WAV, FLAC, OGG or MP3"):
        load_audio(encoded(tone(), "VOC", "PCM_16"))


def test_missing_directory_links_and_pipes(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(MediaError, match="a directory"):
        load_audio(tmp_path)
    loop = tmp_path / "loop.wav"
    loop.symlink_to(loop)
    with pytest.raises(MediaError, match="symbolic links"):
        load_audio(loop)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(MediaError, match="a pipe"):
        load_audio(tmp_path / "pipe.wav")


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_extra_says_how_to_install_it(package, monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    data = encoded(tone(0.1, 8000), rate=8000)
    monkeypatch.setattr("plait.errors.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'plait\[media\]'"):
        if package == "soxr":
            resample(tone(0.1, 8000), 8000, RATE)
        else:
            load_audio(data)


def test_a_clip_shorter_than_one_output_sample_is_an_error():
    with pytest.raises(MediaError, match="less than one"):
        resample(np.ones(1, np.float32), 700_000, 1000)


@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
@bounded_memory()
def test_damaged_files_are_read_or_refused(count, capfd):
    rng = np.random.default_rng(2)
    kinds = [("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]
    kinds += [("AIFF", "PCM_16"), ("CAF", "FLOAT"), ("AU", "ULAW"), ("W64", "PCM_16")]
    seeds = [encoded(tone(0.05), *kind) for kind in kinds] + [video(1, with_sound=True)]
    refused = 0
    for i in range(count):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.integers(2):
            data = data[: rng.integers(1, len(data))]
        try:
            with within():
                clip = load_audio(bytes(data), max_seconds=5)
            assert clip.ndim == 1
            assert len(clip)
            assert np.isfinite(clip).all()
        except MediaError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > count // 3


# Packets and headers are not the sound.


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("second_rate", [48000, 16000])
def test_chained_ogg_streams_are_all_heard(subtype, second_rate):
    first = encoded(tone(1.0, 48000), "OGG", subtype, 48000)
    second = encoded(tone(2.0, second_rate, 880.0), "OGG", subtype, second_rate)
    for data, seconds in ((first + second, 3), (first + second + first, 4), (first + first, 2)):
        clip = load_audio(data)
        assert abs(len(clip) / RATE - seconds) < 0.05
        assert abs(pitch(clip[:RATE]) - 440) < 5
    assert abs(pitch(load_audio(first + second)[RATE + 200 :]) - 880) < 5
    with pytest.raises(MediaError, match="truncated"):
        load_audio((first + second)[:-500])
    with pytest.raises(MediaError, match="more than"):
        load_audio(first + second, max_seconds=2)


@pytest.mark.parametrize("second_rate", [44100, 22050])
@pytest.mark.parametrize("between", ["", "tag", "rubbish"])
def test_joined_mp3_files_are_all_heard(second_rate, between):
    first = encoded(tone(1.0, 44100), "MP3", "MPEG_LAYER_III", 44100)
    second = encoded(tone(2.0, second_rate, 880.0), "MP3", "MPEG_LAYER_III", second_rate)
    middle = {"": b"", "tag": b"ID3\x03\0\0\0\0\1\0" + bytes(128), "rubbish": b"\xff\xfbTAG" + b"x" * 123}[between]
    clip = load_audio(first + middle + second)
    assert abs(len(clip) / RATE - 3) < 0.15
    assert abs(pitch(clip[: RATE - 500]) - 440) < 5
    assert abs(pitch(clip[RATE + 2000 :]) - 880) < 5


def test_a_plain_mp3_is_decoded_as_it_was():
    data = encoded(tone(1.0, 44100), "MP3", "MPEG_LAYER_III", 44100)
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        expected = resample(sound.read(dtype="float32"), 44100, RATE)
    assert np.array_equal(load_audio(data), expected)
    assert np.array_equal(load_audio(data + b"TAG" + b"x" * 125), expected)


@pytest.mark.parametrize("zeros", [100, 5000])
def test_an_mp3_behind_zeros_is_a_sound(zeros, tmp_path):
    data = bytes(zeros) + encoded(tone(1.0), "MP3", "MPEG_LAYER_III")
    (tmp_path / "a.bin").write_bytes(data)
    assert kind_of(tmp_path / "a.bin") == "audio"
    clip = load_audio(data)
    assert abs(len(clip) / RATE - 1) < 0.1
    assert abs(pitch(clip) - 440) < 5


def test_a_tag_says_nothing_of_what_it_belongs_to(tmp_path):
    tag = b"ID3\x03\0\0\0\0\x10\0" + bytes(2048)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        for i in range(16):
            frame = av.AudioFrame.from_ndarray(tone(1.024)[None, 1024 * i : 1024 * i + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for content in (buffer.getvalue(), encoded(tone(1.0), "FLAC"), encoded(tone(1.0), "MP3", "MPEG_LAYER_III")):
        clip = load_audio(tag + content)
        assert abs(len(clip) / RATE - 1) < 0.15
        assert abs(pitch(clip) - 440) < 5


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("as_path", [False, True])
def test_a_wav_whose_writer_could_not_know_its_length_is_whole(length, as_path, tmp_path):
    data = bytearray(encoded(tone()))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", length)
    (tmp_path / "a.wav").write_bytes(data)
    clip = load_audio(tmp_path / "a.wav" if as_path else bytes(data))
    assert np.array_equal(clip, load_audio(encoded(tone())))


def test_an_empty_wav_with_words_behind_it_has_no_samples():
    data = encoded(np.zeros(0, np.float32)) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(MediaError, match="no samples"):
        load_audio(data)


def test_a_track_whose_rate_changes_midway_keeps_its_pitch():
    """Two joined AAC streams of different rates: as one rate the second would be heard an octave lower."""
    parts = []
    for rate, hertz in ((32000, 440.0), (16000, 880.0)):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate, layout="mono")
            wave = tone(1.024, rate, hertz)
            for i in range(len(wave) // 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, 1024 * i : 1024 * i + 1024], "fltp", "mono")
                frame.sample_rate, frame.pts = rate, 1024 * i
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(buffer.getvalue())
    clip = load_audio(b"".join(parts))
    assert abs(len(clip) / RATE - 2.05) < 0.2
    assert abs(pitch(clip[: RATE - 500]) - 440) < 5
    assert abs(pitch(clip[RATE + 3000 :]) - 880) < 5


def test_a_flac_from_a_pipe_is_whole():
    data = bytearray(encoded(tone(1.0), "FLAC"))
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples: unknown
    data[22:26] = bytes(4)
    clip = load_audio(bytes(data))
    assert abs(len(clip) - RATE) <= 4096
