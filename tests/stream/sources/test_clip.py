"""Which of a clip's streams are used, and how their content maps to time and shape."""

from __future__ import annotations

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr

from mien.clock import NS_PER_S, Clock
from mien.config import ClipConfig, load_config
from mien.errors import SourceError
from mien.messages import Float32, UInt8
from mien.stream.processes.plan import plan_session
from mien.stream.sources.address import Url
from mien.stream.sources.audio import open_audio
from mien.stream.sources.camera import NetworkCamera
from mien.stream.sources.clip import BrokenClipError, open_clip, read_sound
from mien.stream.sources.geometry import upright_bgr
from mien.stream.sources.source import SAMPLE_RATE
from mien.stream.sources.video import open_video
from mien.stream.sources.waveform import Downmix
from tests.stream.pictures import brightness, numbered, write_clip
from tests.stream.sources.media import (
    RATE,
    at_16_khz,
    join,
    lag_s,
    melody,
    orient_clip,
    without_pictures,
    write_part,
    write_picture,
    write_tracks,
)


def likeness(one: Float32, other: Float32) -> float:
    size = min(len(one), len(other))
    return float(np.corrcoef(one[:size], other[:size])[0, 1])


# --- tracks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("default", "taken"), [(None, 2), (1, 2), (2, 3), (0, 2)])
def test_of_several_sound_tracks_the_default_is_taken_if_it_is_not_silent(
    tmp_path: Path, default: int | None, taken: int
) -> None:
    tracks = [np.zeros(RATE, np.float32), melody(1.0, 1), melody(1.0, 2)]
    path = write_tracks(tmp_path / "tracks.mkv", tracks, default=default)
    clip = open_clip(path)
    assert clip.audio == taken
    assert likeness(read_sound(path), at_16_khz(tracks[taken - 1])) > 0.99
    assert clip.notes == (f"sound track {taken} of 3 of tracks.mkv; clip.audio_track chooses another",)


def test_requested_track_is_used_everywhere(tmp_path: Path) -> None:
    tracks = [melody(1.0, 1), melody(1.0, 2)]
    path = write_tracks(tmp_path / "tracks.mkv", tracks, images=numbered(25))
    assert likeness(read_sound(path, ClipConfig(audio_track=2)), at_16_khz(tracks[1])) > 0.99
    sources = {"video.source": str(path), "audio.source": str(path)}
    session = plan_session(load_config(None, {**sources, "clip.audio_track": 2}))
    assert session.config.clip.audio_track == 2
    assert any("sound track 2 of 2" in note for note in session.notes)
    assert plan_session(load_config(None, sources)).config.clip.audio_track == 1
    with pytest.raises(SourceError, match=r"has 2 sound tracks, and `clip.audio_track` is 3"):
        plan_session(load_config(None, {**sources, "clip.audio_track": 3}))


def test_a_file_that_is_cut_off_is_named_with_the_length_it_has(tmp_path: Path) -> None:
    """An interrupted download or a full disk: everything that is left is used, but not without a word."""
    whole = write_tracks(tmp_path / "whole.mkv", [melody(4.0)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (note,) = open_clip(cut).notes
    assert note == f"cut.mkv is cut off: it holds {len(read_sound(cut)) / SAMPLE_RATE:.1f} s of 4.0 s"
    assert open_clip(whole).notes == ()
    content = whole.read_bytes()
    cut.write_bytes(content[: content.index(b"\x1f\x43\xb6\x75") + 40])  # the first cluster has just begun
    with pytest.raises(SourceError, match=r"cut\.mkv holds no picture or sound; it may be cut off"):
        open_clip(cut)


def test_all_silent_tracks_are_no_error(tmp_path: Path) -> None:
    path = write_tracks(tmp_path / "tracks.mkv", [np.zeros(RATE, np.float32)] * 2)
    assert open_clip(path).audio == 1


def test_video_is_played_instead_of_cover_art(tmp_path: Path) -> None:
    cover = np.full((48, 48, 3), 255, np.uint8)
    path = write_picture(tmp_path / "film.mkv", numbered(10), cover=cover)
    clip = open_clip(path)
    shapes = {upright_bgr(picture).shape for _, picture in clip.pictures()}
    assert shapes == {(64, 64, 3)}
    source = open_video(load_config(None, {"video.source": str(path), "clip.fast": True}), Clock())
    source.start(0)
    frame = source.read(0.0)
    assert frame is not None
    assert frame.image.shape == (64, 64, 3)


# --- geometry ---------------------------------------------------------------------------------------------------


def grainy(image: UInt8) -> list[UInt8]:
    """The picture again and again with noise: enough bytes for a network camera to look at before it begins."""
    noise = np.random.default_rng(0)
    return [np.clip(image + noise.normal(0, 12, image.shape), 0, 255).astype(np.uint8) for _ in range(100)]


@pytest.mark.parametrize(("pixel", "shape"), [((2, 1), (128, 192)), ((4, 3), (128, 128)), ((1, 2), (256, 96))])
def test_oblong_pixels_become_square_in_clips_and_network_cameras(
    tmp_path: Path, pixel: tuple[int, int], shape: tuple[int, int]
) -> None:
    images = grainy(np.full((128, 96, 3), 90, np.uint8))
    path = write_picture(tmp_path / "oblong.mkv", images, Fraction(*pixel))
    assert {upright_bgr(p).shape[:2] for _, p in open_clip(path).pictures()} == {shape}
    camera = NetworkCamera(Url(f"file:{path}"), Clock())
    assert camera.read().image.shape[:2] == shape
    camera.close()


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), (0, 0)),
        ((0, 1, -1, 0), (0, -1)),
        ((-1, 0, 0, -1), (-1, -1)),
        ((0, -1, 1, 0), (-1, 0)),
        ((-1, 0, 0, 1), (0, -1)),  # mirrored left to right
        ((1, 0, 0, -1), (-1, 0)),  # upside down
        ((0, 1, 1, 0), (0, 0)),  # mirrored at the diagonals
        ((0, -1, -1, 0), (-1, -1)),
    ],
)
def test_rotation_and_mirroring_metadata_apply(
    tmp_path: Path, matrix: tuple[int, int, int, int], corner: tuple[int, int]
) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:24, :24] = 255
    image[:12, 24:60] = 120  # along the upper edge: mirrored and turned are told apart
    path = write_clip(tmp_path / "clip.mp4", grainy(image))
    orient_clip(path, matrix, *image.shape[:2])
    camera = NetworkCamera(Url(f"file:{path}"), Clock())
    seen = camera.read().image
    camera.close()
    assert abs(seen.astype(int) - upright_bgr(next(open_clip(path).pictures())[1])).mean() < 20
    assert seen.shape[:2] == ((64, 96) if matrix[0] else (96, 64))
    light = {(y, x): int(seen[y, x, 0]) for y in (0, -1) for x in (0, -1)}
    assert max(light, key=light.__getitem__) == corner
    # The grey bar continues from the white corner in the direction given by the matrix.
    along = (40, 6)
    a, b, c, d = matrix
    x, y = a * along[0] + c * along[1], b * along[0] + d * along[1]
    assert abs(int(seen[y if y >= 0 else y - 1, x if x >= 0 else x - 1, 0]) - 120) < 30


def test_pictures_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", grainy(np.full((64, 96, 3), 90, np.uint8)))
    gc.collect()
    gc.disable()
    try:
        for _, picture in open_clip(path).pictures():
            upright_bgr(picture)
        left = [each for each in gc.get_objects() if type(each) is av.VideoFrame]
    finally:
        gc.enable()
    assert len(left) <= 1  # the loop's own


def test_size_change_continues(tmp_path: Path) -> None:
    small = write_part(tmp_path / "a.ts", melody(1.0), numbered(25))
    wide = write_part(tmp_path / "b.ts", melody(1.0), [np.full((64, 96, 3), 200, np.uint8)] * 25)
    clip = open_clip(join(tmp_path / "joined.ts", small, wide))
    shapes = [upright_bgr(picture).shape for _, picture in clip.pictures()]
    assert shapes == [(64, 64, 3)] * 25 + [(64, 96, 3)] * 25


# --- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.8, 0.94, 1.06, 1.2])
def test_sound_follows_its_stamps_without_clicks(tmp_path: Path, factor: float) -> None:
    original = melody(13.0)
    samples = soxr.resample(original, RATE, RATE / factor).astype(np.float32)
    path = write_tracks(tmp_path / "drift.mkv", [samples], factor=factor)
    decoded = read_sound(path)
    assert abs(len(decoded) / SAMPLE_RATE - 13.0) < 0.1
    lags = [lag_s(decoded, at_16_khz(original), at_s) for at_s in (2.0, 5.0, 9.0, 12.5)]
    assert max(map(abs, lags)) < 0.1, lags
    # Cut or padded anywhere, a slow wave would have a step.
    slow = (0.5 * np.sin(2 * np.pi * 40 * np.arange(len(samples)) / RATE)).astype(np.float32)
    decoded = read_sound(write_tracks(tmp_path / "slow.mkv", [slow], factor=factor))
    assert np.abs(np.diff(decoded[:-50])).max() < 1.4 * 0.5 * 2 * np.pi * 40 * max(1, 1 / factor) / SAMPLE_RATE


def test_well_formed_sound_is_not_touched(tmp_path: Path) -> None:
    original = melody(3.0)
    decoded = read_sound(write_tracks(tmp_path / "good.mkv", [original]))
    expected = at_16_khz((np.round(original * 32767) / 32768).astype(np.float32))
    assert np.abs(decoded - expected[: len(decoded)]).max() < 1e-5


@pytest.mark.parametrize(
    ("suffix", "rates", "layouts"),
    [(".mp3", (44_100, 48_000), ("mono", "mono")), (".ts", (44_100, 48_000), ("mono", "stereo")),
     (".ts", (48_000, 22_050), ("stereo", "mono"))],
)  # fmt: skip
def test_rate_or_layout_change_continues(
    tmp_path: Path, suffix: str, rates: tuple[int, int], layouts: tuple[str, str]
) -> None:
    original = melody(6.0)
    halves = original[: 3 * RATE], original[3 * RATE :]
    parts = [
        write_part(tmp_path / f"{n}{suffix}", half, rate=rate, layout=layout)
        for n, (half, rate, layout) in enumerate(zip(halves, rates, layouts, strict=True))
    ]
    path = join(tmp_path / f"joined{suffix}", *parts)
    decoded = read_sound(path)
    lags = [lag_s(decoded, at_16_khz(original), at_s) for at_s in (1.0, 2.2, 4.0, 5.2)]
    assert max(map(abs, lags)) < 0.12, lags
    source = open_audio(load_config(None, {"audio.source": str(path), "clip.fast": True}), Clock())
    source.start(0)
    count = 0
    while not source.ended:
        chunk = source.read(0.1)
        count += 0 if chunk is None else len(chunk.samples)
    assert count == len(decoded)
    assert source.error is None


def test_joined_files_keep_picture_and_sound_in_sync(tmp_path: Path) -> None:
    original, images = melody(6.0), [np.zeros((64, 64, 3), np.uint8)] * 150
    for flash in (25, 100):
        images[flash] = np.full((64, 64, 3), 255, np.uint8)
    first = write_part(tmp_path / "a.ts", original[: 3 * RATE], images[:75])
    second = write_part(tmp_path / "b.ts", original[3 * RATE :], images[75:])
    path = join(tmp_path / "joined.ts", first, second)
    clip = open_clip(path)
    assert abs(clip.duration_s - 6.1) < 0.15
    times, light = [], []
    for t_ns, picture in clip.pictures():
        times.append(t_ns / NS_PER_S)
        light.append(brightness(upright_bgr(picture)))
    assert len(times) == 150
    assert np.all(np.diff(times) > 0)
    decoded = read_sound(path)
    flashes = [t for t, bright in zip(times, light, strict=True) if bright > 128]
    for at_s, flash_s in zip((1.0, 4.0), flashes, strict=True):
        late_s = lag_s(decoded, at_16_khz(original), at_s)
        assert abs(late_s) < 0.1
        assert abs(flash_s - at_s - late_s) < 0.05, "picture and sound part"


def test_a_loop_of_joined_files_is_as_long_as_both(tmp_path: Path) -> None:
    part = write_part(tmp_path / "a.ts", melody(1.0), numbered(25))
    clip = open_clip(join(tmp_path / "joined.ts", part, part, part))
    assert 2.9 < clip.duration_s < 3.3


def test_late_start_joins_a_concatenated_file_in_progress(tmp_path: Path) -> None:
    part = write_part(tmp_path / "a.ts", melody(2.0), numbered(50))
    clip = open_clip(join(tmp_path / "joined.ts", part, part))
    t_ns, _ = next(clip.pictures(3 * NS_PER_S))
    assert t_ns <= 3 * NS_PER_S
    assert len(list(clip.pictures(0))) == 100


# --- errors on the way ------------------------------------------------------------------------------------------


def broken(tmp_path: Path) -> Path:
    """Good for three seconds of six; then neither picture nor sound can be decoded."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(150)]
    path = write_part(tmp_path / "broken.mov", melody(6.0), images)
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat")
    size = int.from_bytes(content[at - 4 : at], "big") - 8
    content[at + 4 + size // 2 : at + 4 + size] = b"\xff" * (size - size // 2)
    path.write_bytes(content)
    return path


def test_truncated_file_ends_with_a_reason_and_keeps_earlier_data(tmp_path: Path) -> None:
    path = broken(tmp_path)
    assert 2.0 < len(read_sound(path)) / SAMPLE_RATE < 4.0
    with pytest.raises(BrokenClipError, match=r"the sound of clip broken.mov breaks off after [23]\.\d s"):
        list(open_clip(path).sound())
    config = load_config(None, {"audio.source": str(path), "video.source": str(path), "clip.fast": True,
                                "clip.loop": True})  # fmt: skip
    for source in (open_audio(config, Clock()), open_video(config, Clock())):
        source.start(0)
        for _ in range(10_000):
            source.read(0.0)
            if source.ended:
                break
        assert source.ended, "it begins again and again"
        assert "breaks off after" in str(source.error)
        assert "Error number" not in str(source.error)


def test_undecodable_video_leaves_the_sound(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = [np.zeros((64, 64, 3), np.uint8)] * 50
    path = without_pictures(write_part(tmp_path / "whole.mkv", melody(2.0), images), tmp_path / "broken.mkv")
    assert len(read_sound(path)) / SAMPLE_RATE == pytest.approx(2.0, abs=0.1)
    for options in ({"clip.fast": True}, {}, {"clip.fps": 30.0}):
        source = open_video(load_config(None, {"video.source": str(path)} | options), Clock())
        source.start(0)
        assert source.read(0.0) is None
        assert "the picture of clip broken.mkv cannot be decoded" in str(source.error)
    assert not capfd.readouterr().err  # FFmpeg's own complaints


# --- channels ---------------------------------------------------------------------------------------------------


def test_channels_of_opposite_phase_do_not_cancel_each_other(tmp_path: Path) -> None:
    original = melody(2.0)
    decoded = read_sound(write_tracks(tmp_path / "phase.mkv", [np.stack([original, -original])]))
    assert likeness(decoded, at_16_khz(original)) > 0.99
    assert 0.9 < np.std(decoded) / np.std(at_16_khz(original)) < 1.1


def test_stronger_of_cancelling_channels_wins_and_others_are_averaged() -> None:
    original, other = melody(2.0, 1), melody(2.0, 2)
    for channels, expected in (
        (np.stack([0.6 * original, -original]), -original),
        (np.stack([original, original]), original),
        (np.stack([original, 0 * original]), original),
        (np.stack([original, other]), (original + other) / 2),
        (
            np.stack([0 * original, 0 * original, original, 0 * original, 0 * original, 0 * original]),
            original,
        ),  # dialogue in the centre alone
        (np.stack([original, 0 * original, other]), (original + other) / 2),
        (original[None], original),
    ):
        mix = Downmix(RATE)
        decoded = np.concatenate([mix(channels[:, at : at + 1024]) for at in range(0, channels.shape[1], 1024)])
        assert np.allclose(decoded, expected, atol=1e-6)


def test_late_channel_joins_without_a_click() -> None:
    wave = (0.5 * np.sin(2 * np.pi * 100 * np.arange(6 * RATE) / RATE)).astype(np.float32)
    late = np.where(np.arange(6 * RATE) // (2 * RATE) == 1, wave, 0.0).astype(np.float32)
    mix = Downmix(RATE)
    channels = np.stack([0 * wave, wave, late / 2])
    decoded = np.concatenate([mix(channels[:, at : at + 960]) for at in range(0, channels.shape[1], 960)])
    seconds = decoded.reshape(6, RATE)
    levels = [round(float(np.std(seconds[k]) / np.std(wave[:RATE])), 2) for k in (0, 1, 3, 4, 5)]
    assert levels == [1.0, 1.0, 0.75, 0.5, 0.5]
    assert np.abs(np.diff(decoded)).max() < 0.02


def test_phase_change_is_detected_without_a_click() -> None:
    wave = (0.5 * np.sin(2 * np.pi * 100 * np.arange(8 * RATE) / RATE)).astype(np.float32)
    sign = np.where(np.arange(8 * RATE) // (2 * RATE) % 2, -1.0, 1.0).astype(np.float32)
    mix = Downmix(RATE)
    channels = np.stack([wave, sign * wave])
    decoded = np.concatenate([mix(channels[:, at : at + 960]) for at in range(0, channels.shape[1], 960)])
    seconds = decoded.reshape(8, RATE)
    assert all(np.std(seconds[k]) > 0.3 for k in (0, 1, 3, 4, 5, 7)), "a second after each change it is there"
    assert np.abs(np.diff(decoded)).max() < 0.02
