"""Served live or in full, a session predicts from the same words at the same instants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mien.clock import NS_PER_MS
from mien.config import Config
from mien.engines.predictor import Answer
from mien.engines.rings import Windows
from mien.messages import FeatureWindow, Float32, ModalitySpec, Word
from mien.models.text.encoder import TEXT_DIM
from mien.stream.inference.playback import Complete
from mien.stream.inference.prediction import Live, Mode
from mien.stream.modalities.base import message_of
from mien.stream.modalities.text import TextEncoder, WordReader
from mien.stream.speech.asr import Recognised
from tests.stream.inference.test_assembler import T0, frame

STEP_MS, FRAME_MS, SETTLE_MS, STEPS = 800, 40, 500, 6
SPECS = {"vision": ModalitySpec("vision", 2, 10, 50), "text": ModalitySpec("text", TEXT_DIM, 0, 50, snapshot=True)}
Seen = dict[int, tuple[bytes, str]]  # by the instant in ms: rows of words that count, and the words that are shown


class ScriptedEncoder(TextEncoder):
    """The row of a word is the number that it is."""

    def __init__(self) -> None:
        pass

    def encode(self, words: Sequence[str]) -> Float32:
        return np.repeat(np.array([[float(word)] for word in words], np.float32).reshape(-1, 1), TEXT_DIM, 1)


def recognised(step: int, *, last: bool = False) -> Recognised:
    """What a recogniser knows after so many steps: two words of each, of which the newest is tentative."""
    t_end_ns = T0 + step * STEP_MS * NS_PER_MS
    words = tuple(
        Word(str(k), T0 + (k - 1) * STEP_MS // 2 * NS_PER_MS, T0 + k * STEP_MS // 2 * NS_PER_MS, last or k < 2 * step)
        for k in range(1, 2 * step + 1)
    )
    return Recognised(t_end_ns, words, (), last=last)


def messages() -> list[FeatureWindow]:
    """Of the words: one for each step, and the one that ends them."""
    reader = WordReader(ScriptedEncoder(), SETTLE_MS / 1000)
    steps = [recognised(step) for step in range(1, STEPS + 1)] + [recognised(STEPS, last=True)]
    return [message_of(reader.rows(each), SPECS["text"], session="s", run=1, seq=seq) for seq, each in enumerate(steps)]


def serve(mode: type[Mode], lags_ms: Sequence[int]) -> Seen:
    """What is seen at each instant, where a frame takes 10 ms, and the messages of words these times."""
    windows = Windows(SPECS)
    served = mode(Config(), ("video", "text"), {}, SPECS, windows, 1)
    arrivals = [(message.t_end_ns + lag * NS_PER_MS, message) for message, lag in zip(messages(), lags_ms, strict=True)]
    for seq, t_ms in enumerate(range(0, STEPS * STEP_MS + 1, FRAME_MS)):
        arrivals.append((T0 + (t_ms + 10) * NS_PER_MS, frame(seq, t_ms)))
    seen: Seen = {}
    for arrival_ns, message in sorted(arrivals, key=lambda item: item[0]):
        served.take(message, arrival_ns)
        while (trigger := served.trigger(arrival_ns)) is not None:
            look = windows.look([served.place], [trigger.t_end_ns])
            rows, mask = windows.tracks["text"].gather(look.places, look.ends_ns["text"])
            shown = " ".join(word.text for word in windows.tracks["text"].words[served.place])  # type: ignore[union-attr]
            seen[(trigger.t_end_ns - T0) // NS_PER_MS] = rows[mask > 0].tobytes(), shown
    return seen


@pytest.mark.parametrize("lags_ms", [[0] * 7, [400] * 7, [120, 450, 505, 60, 333, 290, 310]])
def test_word_times_do_not_depend_on_recognition_speed(lags_ms: list[int]) -> None:
    in_full, live = serve(Complete, [0] * 7), serve(Live, lags_ms)
    common = {t_ms for t_ms in in_full.keys() & live.keys() if t_ms < STEPS * STEP_MS}  # the last words do not wait
    assert len(common) >= STEPS * STEP_MS / FRAME_MS - 1
    assert [t_ms for t_ms in sorted(common) if in_full[t_ms][0] != live[t_ms][0]] == []
    assert len({in_full[t_ms][0] for t_ms in common}) >= STEPS


def test_words_are_shown_as_soon_as_they_are_recognised_and_count_later() -> None:
    live = serve(Live, [200] * 7)
    first = STEP_MS + 200
    assert live[first - FRAME_MS][1] == ""
    assert live[first] == (b"", "1 2")
    counting = ScriptedEncoder().encode(["1", "2"]).tobytes()
    assert {t_ms: live[t_ms][0] for t_ms in (1280, 1320)} == {1280: b"", 1320: counting}  # 800 + 500 lies between


def test_late_words_count_from_their_arrival() -> None:
    live = serve(Live, [200, 760, 200, 200, 200, 200, 200])
    late = 2 * STEP_MS + 760
    assert live[late - FRAME_MS][0] == ScriptedEncoder().encode(["1", "2"]).tobytes()
    assert live[late][0] == ScriptedEncoder().encode(["1", "2", "3", "4"]).tobytes()


def test_the_last_words_of_a_clip_count_at_its_end() -> None:
    windows = Windows(SPECS)
    served = Complete(Config(), ("video", "text"), {}, SPECS, windows, 1)
    for message in messages():
        served.take(message, 0)
    served.ended.update(("video", "text"))
    for modality in SPECS:
        served.end(modality)
    trigger = served.due(0)
    assert trigger is not None
    assert trigger.t_end_ns == T0 + STEPS * STEP_MS * NS_PER_MS
    windows.look([served.place], [trigger.t_end_ns])
    rows, mask = windows.tracks["text"].gather(np.array([served.place]), np.array([trigger.t_end_ns]))
    assert rows[mask > 0][:, 0].tolist() == [float(k) for k in range(1, 2 * STEPS + 1)]


def test_rows_between_frames_are_expected_with_the_next() -> None:
    served = Live(Config(), ("video", "text"), {}, SPECS, Windows(SPECS), 1)
    words = messages()[0]
    for seq in range(2):
        served.take(frame(seq, seq * FRAME_MS), T0 + (seq * FRAME_MS + 10) * NS_PER_MS)
        assert served.trigger(T0 + (seq * FRAME_MS + 11) * NS_PER_MS) is not None
    next_ns = T0 + 2 * FRAME_MS * NS_PER_MS
    assert served.expected() == (next_ns, set())
    assert served.expected() is None  # nothing has come since
    served.take(words, T0 + (FRAME_MS + 20) * NS_PER_MS)
    assert served.expected() == (next_ns, {"text"})
    served.take(frame(2, 2 * FRAME_MS), next_ns + 10 * NS_PER_MS)
    assert served.expected() is None  # a prediction is due, which encodes what it needs


def test_messages_taken_in_while_the_model_runs_belong_to_the_next_prediction() -> None:
    windows = Windows(SPECS)
    live = Live(Config(), ("video", "text"), {}, SPECS, windows, 1)
    inputs, ages = [], []
    live.take(frame(0, 0), T0)
    for seq in range(1, 4):
        trigger = live.due(T0 + seq * FRAME_MS * NS_PER_MS)
        assert trigger is not None
        (seen,) = windows.look([live.place], [trigger.t_end_ns]).seen()
        evidence = live.evidence(trigger, seen)
        live.take(frame(seq, seq * FRAME_MS), T0 + seq * FRAME_MS * NS_PER_MS)
        answer = Answer(0.5, [1 / 7] * 7, 1 / 7, [1.0, 0.0], is_observed=True)
        prediction = live.predicted(trigger, evidence, answer, "model", (0, 0))
        inputs.append(prediction.inputs)
        ages.append(prediction.age_ms["vision"])
    assert inputs == [{"vision": ((1, seq, seq),)} for seq in range(3)]
    assert ages == [0.0] * 3
