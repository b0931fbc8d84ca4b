"""Training the audio encoder of CM-MSF on emotional speech alone, before the fusion is trained.

It is the encoder of CM-MSF itself, under CM-MSF's own gate and head with no other modality: what is measured here is
what the fused model does when there is only a voice. The corpora are small (some twenty speakers), so the recipe is
mostly about speakers never heard: every window loses its mean level (see `EncoderConfig.centre`), the clips come in
perturbed copies, and the rows are perturbed anew in every batch.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.emotions import EMOTIONS
from mien.errors import DataError
from mien.messages import Float32, ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.augmentation import RowPerturbation, perturb_rows
from mien.models.calibration import fit_temperature
from mien.models.cmmsf import CMMSF
from mien.models.datasets import Dataset, Sample, join_datasets, make_statistics, read_dataset
from mien.models.metrics import EmotionMetrics, ReliabilityBin, confidence_curve, emotion_metrics
from mien.models.tensors import write_tensors
from mien.models.training_device import mixed_precision, training_device

log = logging.getLogger(__name__)

AUDIO = "audio"
SPECTRUM = 64  # leading columns of an audio row that are log-mel bands


class SpeechTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the audio encoder is trained.

    Attributes:
        mixup: parameter of the Beta distribution that mixes two windows (Zhang et al., ICLR 2018); 0 for none.
        average: decay of the running mean of weights, which is what is kept.
        balance: exponent with which rarer emotions of a corpus are drawn more often; 0 as they are, 1 equally.
    """

    seed: int = 1111
    steps: int = 1600
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up: int = 50
    dropout: float = 0.15
    mixup: float = 1.0
    label_smoothing: float = 0.05
    average: float = 0.99
    balance: float = 0.5
    gradient_clip: float = 2.0
    threads: int = 1
    rows: RowPerturbation = RowPerturbation()


@dataclass(frozen=True)
class TrainedAudio:
    """The network, of one modality, and its measures on the validation speakers of each corpus."""

    network: CMMSF
    measures: dict[str, EmotionMetrics]

    @property
    def reader(self) -> dict[str, Tensor]:
        """Its weights, for `train_fusion(readers={"audio": ...})`."""
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}


def pretrain_audio(
    dataset: Dataset,
    settings: SpeechTraining | None = None,
    model: ModelConfig | None = None,
    *,
    device: torch.device | None = None,
    report: Callable[[int, int], None] | None = None,
) -> TrainedAudio:
    """Train on the "train" split with its perturbed copies, and measure on "valid".

    The last averaged weights are kept, not those that do best on "valid": its few speakers choose by chance. The
    same seed gives the same weights, bit for bit.

    Args:
        dataset: with the modality "audio"; samples without it or without an emotion are left out.
        device: where to compute, the processor by default (see `training_device`). What is returned is on the latter.
        report: called after every step with its number and their count.

    Raises:
        DataError: nothing to train on.
    """
    settings, model = settings or SpeechTraining(), model or ModelConfig()
    device = device or torch.device("cpu")
    torch.set_num_threads(settings.threads)
    spec = dataset.specs.get(AUDIO)
    train = [s for s in dataset.split("train") if AUDIO in s.tracks and s.emotion is not None]
    train = [s for s in train if s.tracks[AUDIO].mask.any()]
    if spec is None or not train:
        raise DataError("there is no speech with emotions in the split `train`; extract a corpus that has it")
    torch.manual_seed(settings.seed)
    config = msgspec.structs.replace(model, dropout=settings.dropout).fitted([spec])
    statistics = {name: (torch.tensor(s.mean), torch.tensor(s.std)) for name, s in
                  make_statistics(train, {AUDIO: spec}).items()}  # fmt: skip
    networks = [CMMSF([spec], config) for _ in range(2)]
    network, average = networks
    network.normalise(statistics)
    for either in networks:
        either.to(device)
    average.requires_grad_(False).load_state_dict(network.state_dict())
    groups = list(_copies(train).values())
    chances = _chances([group[0] for group in groups], settings.balance)
    mean = statistics[AUDIO][0].numpy()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        rng = np.random.default_rng((settings.seed, step))
        torch.manual_seed(settings.seed * 1_000_003 + step)
        x, mask, targets = (part.to(device) for part in _batch(groups, chances, mean, settings, rng))
        network.train()
        # In float32 on a processor: the model is small, and bfloat16 gains nothing.
        with mixed_precision(device, None if device.type == "cuda" else False):
            logits = network.raw({AUDIO: x}, {AUDIO: mask}).logits.float()
        smooth = targets * (1.0 - settings.label_smoothing) + settings.label_smoothing / len(EMOTIONS)
        loss = -(smooth * F.log_softmax(logits, 1)).sum(1).mean()
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimizer.step()
        _follow(average, network, min(settings.average, (1 + step) / (10 + step)))
        if step % 200 == 199:
            log.info("step %d loss %.3f", step + 1, float(loss.detach()))
        if report is not None:
            report(step + 1, settings.steps)
    valid = [s for s in dataset.split("valid") if AUDIO in s.tracks and s.emotion is not None and not s.labels.copy]
    average.cpu().eval()
    return TrainedAudio(average, measure_audio(average, valid, spec))


def measure_audio(network: CMMSF, samples: Sequence[Sample], spec: ModalitySpec) -> dict[str, EmotionMetrics]:
    """Emotion measures per corpus, from the last window of each clip."""
    by_corpus: dict[str, list[Sample]] = {}
    for sample in samples:
        by_corpus.setdefault(sample.labels.corpus, []).append(sample)
    return {
        corpus: emotion_metrics(
            [s.emotion or 0 for s in members], torch.softmax(audio_logits(network, members, spec), 1).numpy()
        )
        for corpus, members in sorted(by_corpus.items())
    }


@torch.inference_mode()
def audio_logits(network: CMMSF, samples: Sequence[Sample], spec: ModalitySpec) -> Tensor:
    """(n, 7), from the last window of each clip."""
    network.eval()
    logits = []
    for begin in range(0, len(samples), 64):
        windows = [_last_window(sample, spec.steps) for sample in samples[begin : begin + 64]]
        x = torch.from_numpy(np.stack([values for values, _ in windows]))
        mask = torch.from_numpy(np.stack([seen for _, seen in windows]))
        logits.append(network.raw({AUDIO: x}, {AUDIO: mask}).logits)
    return torch.cat(logits)


def calibrated_folds(
    folds: Sequence[tuple[Sequence[Sample], Tensor]],
) -> dict[str, tuple[EmotionMetrics, list[ReliabilityBin]]]:
    """Measures and the confidence curve per corpus, over all folds, each calibrated by a temperature of the others.

    The few speakers of one fold cannot show how well confidence fits; those of all folds can.

    Args:
        folds: samples that a network has never heard, and what it says of them (n, 7). Two at least.
    """
    targets = [F.one_hot(torch.tensor([s.emotion or 0 for s in samples]), len(EMOTIONS)) for samples, _ in folds]
    said: dict[str, list[tuple[int, Tensor]]] = {}
    for fold, (samples, logits) in enumerate(folds):
        others = [other for other in range(len(folds)) if other != fold]
        theirs = torch.cat([folds[other][1] for other in others])
        temperature = fit_temperature(
            theirs, torch.ones(len(theirs), 1), torch.cat([targets[other] for other in others]).float()
        )
        for sample, shares in zip(samples, torch.softmax(logits / temperature, 1), strict=True):
            said.setdefault(sample.labels.corpus, []).append((sample.emotion or 0, shares))
    measured = {}
    for corpus, made in sorted(said.items()):
        truth, shares = np.array([emotion for emotion, _ in made]), torch.stack([shares for _, shares in made]).numpy()
        curve = confidence_curve(shares.argmax(1) == truth, shares.max(1))
        measured[corpus] = emotion_metrics(truth, shares), curve
    return measured


def speaker_folds(dataset: Dataset, count: int) -> list[Dataset]:
    """The dataset with other speakers in "valid" each time: every speaker of "train" and "valid" once.

    Speakers of each corpus are dealt out in order. The split "test" is left out.
    """
    samples = [s for s in dataset.samples if s.labels.split in ("train", "valid") and s.labels.speaker is not None]
    fold_of: dict[tuple[str, str], int] = {}
    for corpus in sorted({s.labels.corpus for s in samples}):
        speakers = sorted({_speaker(s) for s in samples if s.labels.corpus == corpus})
        fold_of |= {(corpus, speaker): index * count // len(speakers) for index, speaker in enumerate(speakers)}
    folds = []
    for fold in range(count):
        moved = []
        for sample in samples:
            held = fold_of[sample.labels.corpus, _speaker(sample)] == fold
            if held and sample.labels.copy:
                continue
            labels = msgspec.structs.replace(sample.labels, split="valid" if held else "train")
            moved.append(Sample(labels, sample.tracks))
        folds.append(Dataset(dataset.specs, moved))
    return folds


def _speaker(sample: Sample) -> str:
    return sample.labels.speaker or ""


def _copies(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Clips with their perturbed copies, so that a clip with many is not drawn more often."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        name = sample.labels.id.partition("~")[0] if sample.labels.copy else sample.labels.id
        groups.setdefault((sample.labels.corpus, name), []).append(sample)
    return groups


def _chances(clips: Sequence[Sample], balance: float) -> Float32:
    """How often each clip is drawn: corpora by the root of their size, emotions within them by `balance`."""
    keys = [(clip.labels.corpus, clip.emotion) for clip in clips]
    counts = {key: keys.count(key) for key in set(keys)}
    chances = np.array([counts[key] ** -balance for key in keys])
    normal: Float32 = chances / chances.sum()
    return normal


def _batch(
    groups: Sequence[Sequence[Sample]],
    chances: Float32,
    mean: Float32,
    settings: SpeechTraining,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (B, window, dim), mask (B, window) and targets (B, 7)."""
    windows, emotions = [], []
    for index in rng.choice(len(groups), settings.batch, p=chances):
        sample = groups[index][int(rng.integers(len(groups[index])))]
        track = sample.tracks[AUDIO]
        windows.append(perturb_rows(track.values, track.mask, mean, SPECTRUM, settings.rows, rng))
        emotions.append(sample.emotion or 0)
    x = torch.from_numpy(np.stack([values for values, _ in windows]))
    mask = torch.from_numpy(np.stack([seen for _, seen in windows]))
    targets = F.one_hot(torch.tensor(emotions), len(EMOTIONS)).float()
    if settings.mixup > 0:
        share = float(rng.beta(settings.mixup, settings.mixup))
        share = max(share, 1.0 - share)
        other = torch.from_numpy(rng.permutation(len(x)))
        x = share * x + (1.0 - share) * x[other]
        mask = torch.maximum(mask, mask[other])
        targets = share * targets + (1.0 - share) * targets[other]
    return x, mask, targets


def _last_window(sample: Sample, steps: int) -> tuple[Float32, Float32]:
    """The newest `steps` rows up to the last voice, as a live window ends while somebody speaks."""
    track = sample.tracks[AUDIO]
    voiced = np.flatnonzero(track.mask)
    end = int(voiced[-1]) + 1 if len(voiced) else len(track.mask)
    values, mask = track.values[max(0, end - steps) : end], track.mask[max(0, end - steps) : end]
    missing = steps - len(values)
    return np.pad(values, ((missing, 0), (0, 0))), np.pad(mask, (missing, 0))


def _follow(average: CMMSF, network: CMMSF, decay: float) -> None:
    current = network.state_dict()
    for name, kept in average.state_dict().items():
        if kept.is_floating_point():
            kept.lerp_(current[name], 1.0 - decay)
        else:
            kept.copy_(current[name])


def main() -> None:
    """`python -m mien.models.speech_training DATASET...`: speaker-independent folds, or the encoder to a file."""
    parser = argparse.ArgumentParser(description="Train the audio encoder on emotional speech.")
    parser.add_argument("datasets", type=Path, nargs="+", help="as `mien extract` and `mien train` write them")
    parser.add_argument(
        "--folds", type=int, default=0, help="measure by so many folds of speakers, and train nothing else"
    )
    parser.add_argument("--out", type=Path, help="where the weights go, .safetensors")
    parser.add_argument("--steps", type=int, default=SpeechTraining().steps)
    parser.add_argument("--seed", type=int, default=SpeechTraining().seed)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args()
    if options.folds == 1:
        parser.error("--folds needs two at least: one trains, another is measured")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings, device = SpeechTraining(seed=options.seed, steps=options.steps), training_device(options.device)
    dataset = join_datasets([read_dataset(folder) for folder in options.datasets])
    if options.folds:
        measures, said = [], []
        for fold in speaker_folds(dataset, options.folds):
            trained = pretrain_audio(fold, settings, device=device)
            heard = [s for s in fold.split("valid") if s.emotion is not None and AUDIO in s.tracks]
            measures.append(trained.measures)
            said.append((heard, audio_logits(trained.network, heard, dataset.specs[AUDIO])))
        calibrated = calibrated_folds(said)
        for corpus, (over_all, curve) in calibrated.items():
            recalls = [measured[corpus].uar for measured in measures if corpus in measured]
            spread = float(np.std(recalls, ddof=1)) if len(recalls) > 1 else 0.0
            listed = " ".join(f"{recall:.3f}" for recall in recalls)
            print(f"{corpus}: UAR {np.mean(recalls):.3f} +- {spread:.3f} over {len(recalls)} folds ({listed})")
            print(f"  all {over_all.count} clips: ECE {over_all.ece:.3f}, by chance {over_all.ece_by_chance:.3f}")
            rising = " ".join(f"{part.accuracy:.3f}" for part in curve)
            print(f"  accuracy from the least to the most confident fifth: {rising}")
        return
    trained = pretrain_audio(dataset, settings, device=device)
    print(json.dumps({corpus: round(measure.uar, 4) for corpus, measure in trained.measures.items()}))
    if options.out is not None:
        write_tensors(options.out, trained.reader)


if __name__ == "__main__":
    main()
