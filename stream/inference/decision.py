"""From a window to a prediction: what the model says, smoothed, with all that a subscriber wants to know of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from mien.clock import NS_PER_MS, NS_PER_S
from mien.engines.predictor import Outputs, Predictor
from mien.messages import Prediction, Span, Transcript, Window
from mien.stream.inference.refusals import Refusals
from mien.stream.inference.schedule import Trigger


class Decider:
    """Makes the predictions of one session from what the model says.

    Args:
        predictor: the model, which other sessions may share.
        smoothing_s: time constant of the smoothed sentiment.
        run: of this process.
        refusals: where an output that is no number is counted.

    Attributes:
        smoothed: the smoothed sentiment and the instant that it is of; None before there is one.
    """

    def __init__(self, predictor: Predictor, smoothing_s: float, run: int, refusals: Refusals) -> None:
        self.smoothed: tuple[float, int] | None = None
        self._predictor = predictor
        self._smoothing_ns = smoothing_s * NS_PER_S
        self._run = run
        self._refusals = refusals

    def decide(
        self, window: Window, outputs: Outputs | None, seq: int, inputs: Mapping[str, tuple[Span, ...]]
    ) -> Prediction:
        """The prediction for a window.

        Args:
            outputs: what the model says of it; None where nothing was observed: the prediction then abstains.
            inputs: the messages that have come since the prediction before, by modality.
        """
        words = window.words
        if outputs is not None and not math.isfinite(outputs.sentiment):
            said = "the model gave a number that is not finite; no prediction was made from it"
            self._refusals.note("nonfinite_output", said)
            outputs = None
        return Prediction(
            session=window.session,
            run=self._run,
            seq=seq,
            t_end_ns=window.t_end_ns,
            sentiment=outputs.sentiment if outputs else None,
            sentiment_smooth=self._smooth(outputs.sentiment, window.t_end_ns) if outputs else None,
            emotions=outputs.emotions if outputs else None,
            confidence=outputs.confidence if outputs else None,
            gates=outputs.gates if outputs else dict.fromkeys(window.mask, 0.0),
            age_ms=window.age_ms,
            absent=window.absent,
            abstains=None if outputs else "no face, no voice and no words in the window",
            transcript=Transcript(
                " ".join(word.text for word in words if word.committed and not word.uncertain),
                " ".join(word.text for word in words if not word.committed and not word.uncertain),
                " ".join(word.text for word in words if word.uncertain),
            ),
            words=words,
            model=self._predictor.id,
            inputs=dict(inputs),
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


def with_latency(prediction: Prediction, trigger: Trigger, began_ns: int, done_ns: int, *, fast: bool) -> Prediction:
    """The prediction with its stages in ms. A clip played in full has no capture times to count from."""
    stages = {"infer": (done_ns - began_ns) / NS_PER_MS}
    if not fast and trigger.read_ns and trigger.sent_ns and trigger.received_ns:
        stages = {
            "capture": (trigger.read_ns - trigger.t_end_ns) / NS_PER_MS,
            "feature": (trigger.sent_ns - trigger.read_ns) / NS_PER_MS,
            "transport": (trigger.received_ns - trigger.sent_ns) / NS_PER_MS,
            "wait": (began_ns - trigger.received_ns) / NS_PER_MS,
            **stages,
            "total": (done_ns - trigger.read_ns) / NS_PER_MS,
        }
    return msgspec.structs.replace(prediction, latency=stages)
