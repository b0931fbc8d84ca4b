"""Predictions on a clip equal those of a live session that knows only what had come by then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mien.engines.predictor import Predictor
from mien.engines.rings import Windows
from mien.errors import AssetError
from mien.models.checkpoint import load_checkpoint
from mien.stream.offline.clips import predict_clip, read_clip
from mien.stream.offline.extractors import Extractors, live_specs
from tests.stream.pictures import portrait, write_clip
from tests.stream.sources.media import RATE, melody, write_tracks


@pytest.mark.assets
def test_paused_or_late_picture_does_not_count(tmp_path: Path) -> None:
    images = [portrait(256)] * 30
    times_ms = [*range(1000, 1600, 40), *range(4000, 4600, 40)]
    clip = write_clip(tmp_path / "pauses.mkv", images, times_ms)
    extractors = Extractors(("vision",))
    specs = live_specs(("vision",))
    try:
        read = read_clip(clip, specs, extractors, words=False)
    except AssetError as error:
        pytest.skip(str(error))
    finally:
        extractors.close()
    predictor = Predictor(load_checkpoint(), "onnx")
    moments = {m.t_s: m.answer for m in predict_clip(read, predictor, Windows(predictor.specs), 0.1)}
    begin_s = min(message.t_end_ns for message in read.messages) / 1e9  # a file begins with its first packet
    seen = {t_s: answer is not None for t_s, answer in moments.items()}
    assert all(predicted for t_s, predicted in seen.items() if begin_s + 0.1 <= t_s <= begin_s + 0.9)
    assert not any(predicted for t_s, predicted in seen.items() if begin_s + 1.1 <= t_s <= begin_s + 2.9)
    assert any(predicted for t_s, predicted in seen.items() if t_s >= begin_s + 3.05)


def test_chosen_track_is_reported(tmp_path: Path) -> None:
    tracks = [np.zeros(RATE, np.float32), melody(1.0)]
    path = write_tracks(tmp_path / "two.mkv", tracks)
    read = read_clip(path, {}, Extractors(()), words=False)
    assert read.notes == ("sound track 2 of 2 of two.mkv; clip.audio_track chooses another",)
    assert read.messages == ()
