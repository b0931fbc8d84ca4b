"""Leave-one-corpus-out evaluation of the encoder of voices.

Users differ from all corpora in sentences, rooms, microphones and languages. Figures on a corpus that was trained on,
even on other speakers, say little about them. Confidence is calibrated in the same way: the logits on one corpus are
divided by a temperature chosen on the others, each as it was when it was left out. What changes in a voice with its
emotions (`mien.models.voice.moods`) is also learned from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.errors import DataError
from mien.messages import EMOTIONS
from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.data.datasets import Dataset, Sample
from mien.models.data.speakers import AUDIO, CORPUS, KINDS, LASTING, NEUTRAL, NONE, RUNNING, Speakers
from mien.models.evaluation.metrics import EmotionMetrics, calibration_error, emotion_metrics
from mien.models.training.calibration import fit_temperature
from mien.models.training.speech import SpeechTraining, audio_logits, pretrain_audio

NAMES = {
    NONE: "nothing", RUNNING: "ten clips of the speaker", LASTING: "ten clips in the same mood",
    NEUTRAL: "three neutral clips", CORPUS: "the corpus",
}  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """One corpus, compared with one kind of reference.

    Attributes:
        metrics: over the emotions that the corpus has. confidence: the mean.
        predicted: share of clips predicted as each emotion, in the order of EMOTIONS.
    """

    corpus: str
    reference: str
    metrics: EmotionMetrics
    confidence: float
    predicted: tuple[float, ...]


@dataclass(frozen=True)
class LeaveOut:
    """Every corpus with every kind of reference, and the temperature that fits all of them."""

    judged: tuple[LeftOut, ...]
    temperature: float

    def hotter_than(self, network: CMMSF, valid: Sequence[Sample]) -> float:
        """Ratio of this temperature to the one on a network's own validation clips, at least 1."""
        logits = audio_logits(network, valid)
        targets = F.one_hot(torch.tensor([s.emotion or 0 for s in valid]), len(EMOTIONS)).float()
        inside = float(fit_temperature(logits, torch.ones(len(logits), 1), targets))
        return max(1.0, self.temperature / inside)

    def of(self, reference: str) -> tuple[LeftOut, ...]:
        """The corpora with one kind of reference."""
        return tuple(each for each in self.judged if each.reference == reference)

    def table(self) -> str:
        """The figures as a table in Markdown."""
        head = ["corpus", "compared with", "UAR", "accuracy", "ECE", "confidence", *EMOTIONS]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for reference in KINDS:
            rows = self.of(reference)
            numbers = [[each.metrics.uar, each.metrics.accuracy, each.metrics.ece, each.confidence] for each in rows]
            for each, measured in zip(rows, numbers, strict=True):
                cells = [f"{n:.3f}" for n in measured] + [f"{share:.2f}" for share in each.predicted]
                lines.append(f"| {each.corpus} | {NAMES[reference]} | " + " | ".join(cells) + " |")
            if rows:
                cells = [f"**{mean:.3f}**" for mean in np.mean(numbers, 0)] + [""] * len(EMOTIONS)
                lines.append(f"| **mean of {len(rows)}** | {NAMES[reference]} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def leave_out(
    dataset: Dataset,
    corpora: Sequence[str] = (),
    settings: SpeechTraining | None = None,
    model: ModelConfig | None = None,
    *,
    device: torch.device | None = None,
    report: Callable[[int, int], None] | None = None,
) -> LeaveOut:
    """Train the encoder of voices once for each corpus, on all the others, and evaluate it there.

    Args:
        corpora: to leave out; none means every one that has several emotions.
        report: called after every step with its number and their count.

    Raises:
        DataError: a corpus is missing, or there is only one.
    """
    settings = settings or SpeechTraining()
    spoken = [s for s in dataset.samples if AUDIO in s.tracks and s.emotion is not None and s.tracks[AUDIO].mask.any()]
    emotions: dict[str, set[int | None]] = {}
    for sample in spoken:
        emotions.setdefault(sample.labels.corpus, set()).add(sample.emotion)
    chosen = list(corpora) or sorted(name for name, several in emotions.items() if len(several) > 1)
    for name in chosen:
        if name not in emotions:
            raise DataError(
                f"there is no emotional speech of {name} to leave out; there is some of {', '.join(emotions)}"
            )
    if len(emotions) < 2:
        raise DataError("leaving out the only corpus leaves nothing to train on; give several")
    logits_of: dict[tuple[str, str], Tensor] = {}
    truth: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
    for number, name in enumerate(chosen):

        def step(done: int, total: int, _: object, begun: int = number) -> None:
            if report is not None:
                report(begun * total + done, len(chosen) * total)

        rest = _without(dataset, spoken, name)
        moods = Speakers(rest.samples).moods()
        network = pretrain_audio(rest, settings, model, moods=moods, device=device, report=step)
        held = [s for s in spoken if s.labels.corpus == name and not s.labels.copy]
        truth[name] = np.array([s.emotion or 0 for s in held])
        for kind in KINDS:
            logits_of[name, kind] = audio_logits(network, held, kind, moods=moods)
    judged = []
    for name in chosen:
        others = [other for other in chosen if other != name]
        temperature = _temperature(logits_of, truth, others) if others else 1.0
        for kind in KINDS:
            shares = torch.softmax(logits_of[name, kind] / temperature, 1).numpy()
            counts = np.bincount(shares.argmax(1), minlength=len(EMOTIONS)) / len(shares)
            judged.append(
                LeftOut(name, kind, emotion_metrics(truth[name], shares), float(shares.max(1).mean()), tuple(counts))
            )
    return LeaveOut(tuple(judged), _temperature(logits_of, truth, chosen))


def _without(dataset: Dataset, spoken: Sequence[Sample], corpus: str) -> Dataset:
    """The clips of the other corpora, as a training split."""
    samples = [
        Sample(msgspec.structs.replace(s.labels, split="train"), s.tracks)
        for s in spoken
        if s.labels.corpus != corpus and s.labels.split != "test"
    ]
    return Dataset(dataset.specs, samples)


def _temperature(logits_of: dict[tuple[str, str], Tensor], truth: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]],
                 corpora: Sequence[str]) -> float:  # fmt: skip
    """The temperature with the lowest mean calibration error over corpora and kinds of references.

    Not the one with the lowest cross-entropy: a corpus on which a model is surely wrong has the largest, and would make
    it unsure everywhere.
    """

    def error(temperature: float) -> float:
        errors = []
        for (corpus, _), logits in logits_of.items():
            if corpus in corpora:
                confidence, guess = torch.softmax(logits / temperature, 1).max(1)
                errors.append(calibration_error(guess.numpy() == truth[corpus], confidence.double().numpy()))
        return float(np.mean(errors))

    candidates: list[float] = np.geomspace(0.4, 5.0, 101).tolist()
    return min(candidates, key=error)
