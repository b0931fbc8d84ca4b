"""Training the encoder of voices in CM-MSF on emotional speech alone, before the fusion is trained.

It is the encoder of CM-MSF itself, under CM-MSF's own gate and head with no other modality: what is measured here is
what the fused model does when there is only a voice. Corpora are few, and each has its own sentences, rooms and
microphones, so the recipe is about corpora never heard: every corpus counts alike, a voice is compared with different
references or with none (see `mien.models.data.speakers`), and clips come in perturbed copies.

The encoder looks at the slots of CM-MSF's time grid and at means over them. A slot of rows that were averaged before is
the same to it as the rows, and a tenth of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.errors import DataError
from mien.messages import EMOTIONS, Float32, ModalitySpec
from mien.models.architecture import Count, ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.data.datasets import Dataset, Sample, make_statistics
from mien.models.data.speakers import AFTER, AUDIO, NONE, SHARES, Speakers
from mien.models.evaluation.metrics import EmotionMetrics, emotion_metrics
from mien.models.training.device import mixed_precision
from mien.models.training.loop import Descent, Report, Run, fit, warm_cosine
from mien.models.voice.columns import ENERGY, ROW, STATE, WEIGHT
from mien.models.voice.moods import Moods
from mien.models.voice.reference import Reference, compare
from mien.windowing import average_slots


class SpeechTraining(Descent, frozen=True):
    """How the encoder of voices is trained.

    Attributes:
        references: how often a clip is compared with which kind of reference.
        corpora: exponent with which larger corpora are drawn more often; 0 all equally, 1 by their size.
        neutral_corpora: how much a corpus without any emotion counts against one with several.
        balance: exponent with which rarer emotions of a corpus are drawn more often; 0 as they are, 1 equally.
        prior: how much of the frequencies of emotions is kept out of the logits (logit adjustment, Menon et al., ICLR
            2021): 0 nothing, 1 all.
        copies: how often a clip's perturbed copies are drawn, relative to the clip itself.
        noise: standard deviation of noise added to a clip's states, in deviations of them. hidden: share of slots that
            are masked.
        mixup: parameter of the Beta distribution that mixes two clips (Zhang et al., ICLR 2018); 0 for none.
        average: decay of the averaged weights, which are kept.
    """

    batch: Count = 128
    warm_up: int = 40
    dropout: float = 0.35
    references: dict[str, float] = msgspec.field(default_factory=lambda: dict(SHARES))
    corpora: float = 0.5
    neutral_corpora: float = 0.1
    balance: float = 0.5
    prior: float = 0.5
    copies: float = 0.2
    noise: float = 0.2
    hidden: float = 0.1
    mixup: float = 0.5
    average: float = 0.99
    gradient_clip: float = 2.0


@dataclass(frozen=True, eq=False)
class SlottedClip:
    """A clip from its first voice to its last, averaged over slots: `values` (n, WEIGHT), `observed` (n,)."""

    sample: Sample
    values: Float32
    observed: Float32


def slotted(sample: Sample, rows: int) -> SlottedClip:
    """A sample's rows of sound, `rows` of them averaged into a slot."""
    track = sample.tracks[AUDIO]
    voiced = np.flatnonzero(track.mask)
    first, last = (int(voiced[0]), int(voiced[-1]) + 1) if len(voiced) else (0, len(track.mask))
    count = max(1, -(-(last - first) // rows))
    slots = (voiced - first) // rows
    means, _ = average_slots(track.values[voiced, :WEIGHT], slots, count)
    return SlottedClip(sample, means, (np.bincount(slots, minlength=count) / rows).astype(np.float32))


def pretrain_audio(
    dataset: Dataset,
    settings: SpeechTraining | None = None,
    model: ModelConfig | None = None,
    *,
    moods: Moods | None = None,
    device: torch.device | None = None,
    report: Report | None = None,
) -> CMMSF:
    """Train on the "train" split with its perturbed copies.

    The last averaged weights are kept, not those that do best on "valid": its few speakers choose by chance. The
    same seed gives the same weights, bit for bit.

    Args:
        dataset: with the modality "audio"; samples without it or without an emotion are left out, and damaged copies,
            which train the fusion.
        moods: see `running_reference`.
        device: where to compute, the processor by default (see `training_device`). What is returned is on the latter.
        report: see `fit`.

    Raises:
        DataError: nothing to train on.
    """
    settings, model = settings or SpeechTraining(), model or ModelConfig()
    device = device or torch.device("cpu")
    torch.set_num_threads(settings.threads)
    spec = dataset.specs.get(AUDIO)
    train = [s for s in dataset.split("train") if AUDIO in s.tracks and s.emotion is not None]
    train = [s for s in train if s.tracks[AUDIO].mask.any() and s.labels.damage is None]
    if spec is None or not train:
        raise DataError("there is no speech with emotions in the split `train`; extract a corpus that has it")
    if spec.dim != ROW:
        raise DataError(f"rows of sound with {spec.dim} columns are not mien's ({ROW}); extract the corpora again")
    torch.manual_seed(settings.seed)
    config = msgspec.structs.replace(model, dropout=settings.dropout).fitted([spec])
    statistics = {name: (torch.tensor(s.mean), torch.tensor(s.std)) for name, s in
                  make_statistics([s for s in train if not s.labels.copy], {AUDIO: spec}).items()}  # fmt: skip
    network = CMMSF([spec], config)
    network.normalise(statistics)
    network.to(device).train()
    batches = _Batches(train, spec, config, settings, statistics[AUDIO][1].numpy(), moods)
    prior = settings.prior * torch.log(torch.from_numpy(batches.shares)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = warm_cosine(settings.steps, settings.warm_up)
    run = Run(network, optimizer, schedule, decay=settings.average, clip=settings.gradient_clip)

    def losses(step: int) -> tuple[str, Tensor]:
        rng = np.random.default_rng((settings.seed, step))
        x, mask, targets = (part.to(device) for part in batches.draw(rng))
        # In float32 on a processor: the model is small, and bfloat16 gains nothing.
        with mixed_precision(device, None if device.type == "cuda" else False):
            logits = network.raw({AUDIO: x}, {AUDIO: mask}).logits.float() + prior
        return AUDIO, F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)

    fit(run, losses, settings.steps, settings.seed, report=report)
    return run.averaged.cpu()


class _Batches:
    """Draws training batches."""

    def __init__(
        self, train: Sequence[Sample], spec: ModalitySpec, config: ModelConfig, settings: SpeechTraining, std: Float32,
        moods: Moods | None,
    ) -> None:  # fmt: skip
        self._settings, self._slots, self._std = settings, config.slots, std[:WEIGHT]
        self._clips = [slotted(sample, spec.steps // config.slots) for sample in train]
        self._speakers = Speakers(train, moods)
        self._chances = _chances(train, settings)
        self._kinds = list(settings.references)
        kinds = np.array(list(settings.references.values()))
        self._kind_chances = kinds / kinds.sum()
        counts = np.zeros(len(EMOTIONS), np.float32)
        np.add.at(counts, [s.emotion or 0 for s in train], self._chances)
        self.shares = np.maximum(counts, 1e-4)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Slots (B, S, ROW), observed (B, S) and targets (B, 7)."""
        settings = self._settings
        chosen = rng.choice(len(self._clips), settings.batch, p=self._chances)
        x = np.zeros((settings.batch, self._slots, ROW), np.float32)
        mask = np.zeros((settings.batch, self._slots), np.float32)
        emotions = [self._clips[index].sample.emotion or 0 for index in chosen]
        kinds = rng.choice(len(self._kinds), settings.batch, p=self._kind_chances)
        for row, (index, kind) in enumerate(zip(chosen, kinds, strict=True)):
            clip = self._clips[index]
            reference = self._speakers.draw(clip.sample, self._kinds[kind], rng)
            self._place(clip, reference, x[row], mask[row], rng)
        targets = F.one_hot(torch.tensor(emotions), len(EMOTIONS)).float()
        values, observed = torch.from_numpy(x), torch.from_numpy(mask)
        if settings.mixup > 0:
            share = float(rng.beta(settings.mixup, settings.mixup))
            share = max(share, 1.0 - share)
            other = torch.from_numpy(rng.permutation(len(x)))
            values = share * values + (1.0 - share) * values[other]
            observed = torch.maximum(observed, observed[other])
            targets = share * targets + (1.0 - share) * targets[other]
        return values, observed, targets

    def _place(
        self, clip: SlottedClip, reference: Reference | None, x: Float32, mask: Float32, rng: np.random.Generator
    ) -> None:
        """One clip into a window: a part of it, somewhere, with holes."""
        settings, count = self._settings, len(clip.values)
        length = min(self._slots, max(min(3, count), round(count * rng.uniform(0.5, 1.0))))
        begin = int(rng.integers(0, count - length + 1))
        at = int(rng.integers(0, self._slots - length + 1))
        values = clip.values[begin : begin + length].copy()
        seen = clip.observed[begin : begin + length] * (rng.random(length) >= settings.hidden)
        if not seen.any():
            seen = clip.observed[begin : begin + length]
        if reference is None:
            values[:, : ENERGY + 1] += np.float32(rng.normal(0.0, 1.0))  # the distance of the microphone is unknown
        noise = rng.standard_normal(STATE.stop - STATE.start, np.float32)
        values[:, STATE] += settings.noise * noise * self._std[STATE]
        x[at : at + length] = compare(values, reference)
        x[at : at + length] *= (seen > 0)[:, None]
        mask[at : at + length] = seen


def _chances(clips: Sequence[Sample], settings: SpeechTraining) -> Float32:
    """How often each clip is drawn: corpora by `corpora`, emotions within them by `balance`."""
    keys = [(clip.labels.corpus, clip.emotion) for clip in clips]
    counts = {key: keys.count(key) for key in set(keys)}
    emotions = {corpus: sum(key[0] == corpus for key in counts) for corpus, _ in counts}
    weights = np.array(
        [counts[key] ** -settings.balance * (settings.copies if clip.labels.copy else 1.0)
         for key, clip in zip(keys, clips, strict=True)]
    )  # fmt: skip
    names = np.array([corpus for corpus, _ in keys])
    for corpus, several in emotions.items():
        ours = names == corpus
        weights[ours] *= (
            ours.sum() ** settings.corpora * (1.0 if several > 1 else settings.neutral_corpora) / weights[ours].sum()
        )
    normal: Float32 = weights / weights.sum()
    return normal


def measure_audio(network: CMMSF, samples: Sequence[Sample], kind: str = NONE) -> dict[str, EmotionMetrics]:
    """Emotion measures per corpus, each clip as a whole and compared with a reference of this kind."""
    by_corpus: dict[str, list[Sample]] = {}
    for sample in samples:
        by_corpus.setdefault(sample.labels.corpus, []).append(sample)
    return {
        corpus: emotion_metrics(
            [s.emotion or 0 for s in members],
            torch.softmax(audio_logits(network, members, kind), 1).numpy(),
        )
        for corpus, members in sorted(by_corpus.items())
    }


@torch.no_grad()  # not inference_mode: temperatures are fitted on what comes out
def audio_logits(network: CMMSF, samples: Sequence[Sample], kind: str = NONE, moods: Moods | None = None) -> Tensor:
    """(n, 7), from the last window of each clip, compared with a reference of this kind made of other clips.

    A speaker's references come from among `samples`, ten clips for a running one and three for a neutral one.

    Args:
        moods: see `running_reference`.
    """
    network.eval()
    slots = network.config.slots
    rows = network.specs[0].steps // slots
    speakers = Speakers(samples, moods) if kind != NONE else None
    logits = []
    for begin in range(0, len(samples), 64):
        part = samples[begin : begin + 64]
        x, mask = np.zeros((len(part), slots, ROW), np.float32), np.zeros((len(part), slots), np.float32)
        for row, sample in enumerate(part):
            reference = None
            if speakers is not None:
                random = np.random.default_rng((0, begin + row))
                reference = speakers.draw(sample, kind, random, AFTER)
            clip = slotted(sample, rows)
            values, seen = compare(clip.values[-slots:], reference), clip.observed[-slots:]
            x[row, slots - len(values) :], mask[row, slots - len(values) :] = values * (seen > 0)[:, None], seen
        logits.append(network.raw({AUDIO: torch.from_numpy(x)}, {AUDIO: torch.from_numpy(mask)}).logits)
    return torch.cat(logits)
