"""What a configuration comes to: which workers run, and which clear error is given instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from mien.config import load_config
from mien.errors import SourceError
from mien.stream.processes.plan import Session, plan_session, with_source


def make_clip(path: Path, *, picture: bool = True, sound: bool = True) -> Path:
    """Half a second of grey and silence."""
    with av.open(str(path), "w") as container:
        # Both streams first: the header is written with the first packet.
        video = container.add_stream("mpeg4", rate=25) if picture else None
        audio = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        if video is not None:
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
            for index in range(12):
                image = np.full((64, 64, 3), index * 10, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode())
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8_000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16_000
            container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return path


def plan(video: object, audio: object, **more: object) -> Session:
    return plan_session(load_config(None, {"video.source": str(video), "audio.source": str(audio), **more}))


def test_a_clip_with_both_runs_all_workers(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "both.mp4")
    session = plan(clip, clip)
    assert session.workers == ("video", "audio", "text")
    assert session.absent == {}
    assert session.label == "both.mp4"


def test_without_asr_there_are_no_words(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "both.mp4")
    session = plan(clip, clip, **{"text.asr": "none"})
    assert session.workers == ("video", "audio")
    assert session.absent == {"text": "switched off"}


@pytest.mark.parametrize(
    ("streams", "workers", "absent"),
    [
        ({"sound": False}, ("video",), {"audio": "the clip has no sound", "text": "the clip has no sound"}),
        ({"picture": False}, ("audio", "text"), {"vision": "the clip has no picture"}),
    ],
)
def test_clip_with_one_track_runs_with_it(
    tmp_path: Path, streams: dict[str, bool], workers: tuple[str, ...], absent: dict[str, str]
) -> None:
    clip = make_clip(tmp_path / "half.mp4", **streams)
    session = plan(clip, clip)
    assert session.workers == workers
    assert session.absent == absent
    assert session.notes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.mp4", "does not exist"),
        (lambda folder: (folder / "text.mp4").write_text("no clip") and folder / "text.mp4", "cannot be read"),
        (lambda folder: (folder / "empty.mp4").touch() or folder / "empty.mp4", "cannot be read"),
    ],
)
def test_a_clip_that_cannot_be_played_is_a_clear_error(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    clip = make(tmp_path)
    with pytest.raises(SourceError, match=message):
        plan(clip, clip)


def test_asking_for_the_picture_of_a_clip_without_one_is_an_error(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "sound.mp4", picture=False)
    with pytest.raises(SourceError, match="has no picture"):
        plan(clip, "none")


def test_asking_for_the_sound_of_a_clip_without_one_is_an_error(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "silent.mp4", sound=False)
    with pytest.raises(SourceError, match="has no sound"):
        plan("none", clip)


def test_no_source_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"nothing to capture.*--clip"):
        plan("none", "none")


def test_devices_cannot_be_played_fast(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "both.mp4")
    with pytest.raises(SourceError, match="--fast plays files"):
        plan("0", clip, **{"clip.fast": True})


def test_changed_source_can_be_changed_back(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "both.mp4")
    config = with_source(load_config(None, {"video.source": "0", "clip.video_track": 2}), "video", str(clip))
    assert (config.video.source, config.video.choices) == (str(clip), ["0"])
    assert config.clip.loop, "a file in place of a camera does not end either"
    assert config.clip.video_track == 0
    assert with_source(config, "video", "0").video.choices == ["0", str(clip)]
