"""From what the model says to a prediction: smoothed, and with all that a subscriber wants to know of it."""

from __future__ import annotations

import math
from typing import NamedTuple

from mien.clock import NS_PER_MS, NS_PER_S
from mien.messages import EMOTIONS, Phrase, Prediction, Span, Transcript, Word
from mien.stream.inference.refusals import Refusals
from mien.stream.inference.schedule import Trigger

_SILENT = Transcript()


class Answer(NamedTuple):
    """What the model says of one window: as `mien.engines.predictor.Answers`, in Python's numbers."""

    sentiment: float
    emotions: list[float]
    confidence: float
    shares: list[float]
    is_observed: bool


class Evidence(NamedTuple):
    """What a window was made of, as in `Prediction`."""

    age_ms: dict[str, float | None]
    absent: dict[str, str]
    words: tuple[Word, ...]
    transcript: Transcript
    phrases: tuple[Phrase, ...] = ()


class Postprocessor:
    """Makes the predictions of one session from what the model says.

    Args:
        session: its name. names: the modalities in the model's order.
        smoothing_s: time constant of the smoothed sentiment.
        run: of this process.
        refusals: where an output that is no number is counted.

    Attributes:
        smoothed: the smoothed sentiment and the instant that it is of; None before there is one.
    """

    def __init__(self, session: str, names: tuple[str, ...], smoothing_s: float, run: int, refusals: Refusals) -> None:
        self.smoothed: tuple[float, int] | None = None
        self._session, self._names = session, names
        self._smoothing_ns = smoothing_s * NS_PER_S
        self._run = run
        self._refusals = refusals

    def prediction(
        self,
        t_end_ns: int,
        answer: Answer,
        evidence: Evidence,
        *,
        seq: int,
        model: str,
        inputs: dict[str, tuple[Span, ...]],
        latency: dict[str, float],
    ) -> Prediction:
        """The prediction for a window; it abstains where nothing was observed.

        Args:
            inputs: the messages that have come since the prediction before, by modality. latency: see `latency_ms`.
        """
        answers = answer.is_observed
        if answers and not math.isfinite(answer.sentiment):
            self._refusals.note(
                "nonfinite_output", "the model gave a number that is not finite; no prediction was made from it"
            )
            answers = False
        return Prediction(
            session=self._session,
            run=self._run,
            seq=seq,
            t_end_ns=t_end_ns,
            sentiment=answer.sentiment if answers else None,
            sentiment_smooth=self._smooth(answer.sentiment, t_end_ns) if answers else None,
            emotions=dict(zip(EMOTIONS, answer.emotions, strict=True)) if answers else None,
            confidence=answer.confidence if answers else None,
            gates=dict(zip(self._names, answer.shares, strict=True)) if answers else dict.fromkeys(self._names, 0.0),
            age_ms=evidence.age_ms,
            absent=evidence.absent,
            abstains=None if answers else "no face, no voice and no words in the window",
            transcript=evidence.transcript,
            words=evidence.words,
            phrases=evidence.phrases,
            latency=latency,
            model=model,
            inputs=inputs,
        )

    def _smooth(self, sentiment: float, t_ns: int) -> float:
        smooth = sentiment
        if self.smoothed is not None and self._smoothing_ns > 0:
            before, at_ns = self.smoothed
            elapsed_ns = t_ns - at_ns
            if 0 <= elapsed_ns < 10 * self._smoothing_ns:
                smooth = before + (1.0 - math.exp(-elapsed_ns / self._smoothing_ns)) * (sentiment - before)
        self.smoothed = smooth, t_ns
        return smooth


def latency_ms(trigger: Trigger, began_ns: int, done_ns: int, *, captured: bool) -> dict[str, float]:
    """A prediction's stages in ms.

    Args:
        began_ns, done_ns: when the model was asked, and when it had answered.
        captured: False for a clip that is played in full, which has no capture times to count from.
    """
    infer = (done_ns - began_ns) / NS_PER_MS
    if not (captured and trigger.read_ns and trigger.sent_ns and trigger.received_ns):
        return {"infer": infer}
    return {
        "capture": (trigger.read_ns - trigger.t_end_ns) / NS_PER_MS,
        "feature": (trigger.sent_ns - trigger.read_ns) / NS_PER_MS,
        "transport": (trigger.received_ns - trigger.sent_ns) / NS_PER_MS,
        "wait": (began_ns - trigger.received_ns) / NS_PER_MS,
        "infer": infer,
        "total": (done_ns - trigger.read_ns) / NS_PER_MS,
    }
