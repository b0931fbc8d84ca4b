"""A person at rest, measured by running extractors: raw rows, before any comparison."""

from __future__ import annotations

import numpy as np
import pytest

from mien.clock import NS_PER_S
from mien.errors import ConfigError
from mien.models.baseline import ROW, Rest, voice_at_rest
from mien.stream.modalities.audio import SPEC, AudioExtractor, voice_resting
from mien.stream.modalities.resting import Resting, face_resting
from mien.stream.modalities.vision import VisionExtractor
from mien.stream.sources.source import SAMPLE_RATE
from tests.stream.pictures import head
from tests.stream.sounds import spoken


def test_rows_count_until_the_measurement_ends() -> None:
    seen: list[int] = []

    def rest(values: np.ndarray, valid: np.ndarray, seconds: float) -> Rest:
        seen.append(len(values))
        return Rest("test", seconds, values[valid].mean(0).tolist())

    resting = Resting(5.0, rest)
    for _ in range(100):
        resting.add(np.ones((1, 2), np.float32), [True], 0.1)
    assert resting.left_s == 0.0
    assert resting.result().mean == [1.0, 1.0]
    assert 50 <= seen[0] <= 51, "5 s of 100 ms each, however 0.1 rounds"


@pytest.mark.assets
def test_a_voice_is_measured_before_it_is_compared() -> None:
    from mien.models.voice.reference import RunningReference

    sound = np.tile(spoken("When the sunlight strikes raindrops in the air, they act as a prism."), 3)
    plain = AudioExtractor().extract(sound)
    compared = AudioExtractor(reference=RunningReference())
    compared.resting = voice_resting(len(sound) / SAMPLE_RATE)
    rows = compared.extract(sound)
    assert not np.array_equal(rows.values, plain.values), "it was compared with itself"
    assert compared.resting.result() == voice_at_rest(plain.values, plain.valid, SPEC.extractor)


@pytest.mark.assets
def test_a_face_is_measured_before_it_is_compared() -> None:
    extractor = VisionExtractor(max_faces=1, rest=np.ones(ROW, np.float32))
    extractor.resting = face_resting(5.0, "test-vision")
    image = head(300)
    rows = [extractor.row(image, NS_PER_S + k * NS_PER_S // 10)[0] for k in range(60)]
    rest = extractor.resting.result()
    assert extractor.resting.left_s == 0.0
    extractor.close()
    assert rest.seconds == pytest.approx(5.0, abs=0.2)
    assert np.array(rest.mean) == pytest.approx(np.mean(rows[:51], axis=0) + 1.0, abs=1e-3)


@pytest.mark.assets
def test_no_face_gives_no_baseline() -> None:
    extractor = VisionExtractor(max_faces=1)
    extractor.resting = face_resting(5.0, "test-vision")
    for k in range(20):
        extractor.row(np.zeros((240, 320, 3), np.uint8), NS_PER_S + k * NS_PER_S // 2)
    assert extractor.resting.left_s == 0.0
    with pytest.raises(ConfigError, match=r"a face was in view for 0\.0 s"):
        extractor.resting.result()
    extractor.close()
