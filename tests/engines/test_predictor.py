"""The predictor gives the whole model's numbers, whatever it reuses and however windows are batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mien.emotions import EMOTIONS
from mien.engines.cmmsf import whole_network
from mien.engines.predictor import Outputs, Predictor
from mien.engines.selection import open_engine
from mien.messages import Window
from mien.models.checkpoint import Checkpoint
from tests.engines.networks import SPECS


@pytest.fixture
def predictor(checkpoint: Checkpoint, compiled: Path) -> Predictor:
    return Predictor(checkpoint, "onnx", cache=compiled)


class Stream:
    """Windows of a session in which each modality changes at its own pace."""

    def __init__(self, session: str, seed: int) -> None:
        self.session, self.random, self.seq = session, np.random.default_rng(seed), 0
        self.version: dict[str, int] = {}
        self.features: dict[str, np.ndarray] = {}
        self.mask: dict[str, np.ndarray] = {}

    def next(self, *changed: str) -> Window:
        for spec in SPECS:
            if spec.name in changed or spec.name not in self.features:
                mask = (self.random.random(spec.steps) < 0.8).astype(np.float32)
                rows = self.random.standard_normal((spec.steps, spec.dim)).astype(np.float32)
                self.features[spec.name], self.mask[spec.name] = rows * mask[:, None], mask
                self.version[spec.name] = self.version.get(spec.name, 0) + 1
        self.seq += 1
        return Window(
            session=self.session,
            seq=self.seq,
            t_end_ns=self.seq,
            features=dict(self.features),
            mask=dict(self.mask),
            age_ms=dict.fromkeys(self.features, 0.0),
            version=dict(self.version),
        )


PACE = [("vision",), ("vision",), ("vision", "audio"), (), ("vision", "audio", "text"), ("text",), ("vision",)]


def assert_close(left: Outputs, right: Outputs, atol: float = 1e-5) -> None:
    assert left.sentiment == pytest.approx(right.sentiment, abs=atol)
    assert left.confidence == pytest.approx(right.confidence, abs=atol)
    assert left.emotions == pytest.approx(right.emotions, abs=atol)
    assert left.gates == pytest.approx(right.gates, abs=atol)


def test_reuse_changes_no_number(checkpoint: Checkpoint, compiled: Path) -> None:
    reusing = Predictor(checkpoint, "onnx", cache=compiled)
    anew = Predictor(checkpoint, "onnx", reuse=False, cache=compiled)
    stream = Stream("a", 1)
    for changed in PACE:
        window = stream.next(*changed)
        left, right = reusing.predict(window), anew.predict(window)
        assert (left.sentiment, left.emotions, left.gates) == (right.sentiment, right.emotions, right.gates)
        assert right.encoded == ("text", "audio", "vision")
        assert set(left.encoded) == (set(changed) if window.seq > 1 else set(reusing.specs))


def test_parts_are_the_whole(checkpoint: Checkpoint, compiled: Path, predictor: Predictor) -> None:
    whole = open_engine(whole_network(checkpoint), "torch", cache=compiled)
    stream = Stream("a", 2)
    for changed in PACE:
        window = stream.next(*changed)
        outputs = predictor.predict(window)
        inputs = {}
        for name in predictor.specs:
            inputs |= {f"{name}.features": window.features[name][None], f"{name}.mask": window.mask[name][None]}
        want = whole.infer(inputs)
        assert outputs.sentiment == pytest.approx(float(want["sentiment"][0]), abs=1e-5)
        assert list(outputs.emotions) == list(EMOTIONS)
        np.testing.assert_allclose(list(outputs.emotions.values()), want["emotions"][0], atol=1e-5)
        np.testing.assert_allclose(list(outputs.gates.values()), want["shares"][0], atol=1e-5)


def test_sessions_together_are_as_sessions_alone(checkpoint: Checkpoint, compiled: Path) -> None:
    together = Predictor(checkpoint, "onnx", cache=compiled)
    alone = Predictor(checkpoint, "onnx", reuse=False, cache=compiled)
    streams = [Stream(name, seed) for seed, name in enumerate("abc")]
    for changed in PACE:
        windows = [stream.next(*changed) for stream in streams]
        for outputs, window in zip(together.predict_many(windows), windows, strict=True):
            assert_close(outputs, alone.predict(window))
    assert together.predict_many([]) == []


def test_window_that_changes_without_saying_so_is_still_encoded(predictor: Predictor) -> None:
    """A second assembler counts its versions from one again; memory may be written to in place."""
    first = predictor.predict(Stream("a", 3).next())
    other = Stream("a", 4).next()
    assert predictor.predict(other).sentiment != first.sentiment
    other.features["vision"][:] = 0
    other.mask["vision"][:] = 0
    outputs = predictor.predict(other)
    assert outputs.encoded == ("vision",)
    assert outputs.gates["vision"] == 0.0


def test_missing_modality_has_no_share(predictor: Predictor) -> None:
    window = Stream("a", 5).next()
    del window.features["text"], window.mask["text"]
    outputs = predictor.predict(window)
    assert outputs.gates["text"] == 0.0
    assert sum(outputs.gates.values()) == pytest.approx(1.0)
    assert sum(outputs.emotions.values()) == pytest.approx(1.0)


def test_nothing_observed_gives_no_confidence(predictor: Predictor) -> None:
    window = Stream("a", 6).next()
    for mask in window.mask.values():
        mask[:] = 0
    outputs = predictor.predict(window)
    assert outputs.confidence == 0.0
    assert set(outputs.gates.values()) == {0.0}


def test_model_id_names_checkpoint_and_engine(predictor: Predictor, checkpoint: Checkpoint) -> None:
    assert predictor.id == f"{checkpoint.id}/onnx-fp32"
    assert predictor.predict(Stream("a", 7).next()).model == predictor.id


def test_auto_uses_one_engine_for_all_parts(checkpoint: Checkpoint, compiled: Path) -> None:
    predictor = Predictor(checkpoint, cache=compiled)
    assert "+" not in predictor.id
    assert predictor.reason.startswith("measured on this machine")


def test_memory_is_bounded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mien.engines.predictor.MAX_SESSIONS", 3)
    streams = [Stream(str(number), number) for number in range(5)]
    windows = [stream.next() for stream in streams]
    for window in windows:
        predictor.predict(window)
    assert predictor.predict(windows[4]).encoded == ()
    assert predictor.predict(windows[0]).encoded == ("text", "audio", "vision")
    predictor.forget("4")
    assert predictor.predict(windows[4]).encoded == ("text", "audio", "vision")
