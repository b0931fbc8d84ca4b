"""CM-MSF on simultaneous faces and voices: RAVDESS clips and the action units of the same performances.

    python -m mien.models.training.simultaneous DATASET --units ravdess_au.npz [--ablations] [--seeds 1111,1112,1113]

Pairs by label are artificial; these are real. Over folds of actors: the voice alone, the face alone, the mean of both
predictions, and CM-MSF, each trained on the same clips. The last weights of a run are kept, so that no fold selects its
own.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from mien.clock import NS_PER_S
from mien.errors import DataError
from mien.files import json_text
from mien.messages import ModalitySpec
from mien.models.architecture import ABLATIONS, EncoderConfig, ModelConfig
from mien.models.data.batches import Perturbation
from mien.models.data.dataset_files import read_dataset
from mien.models.data.datasets import Dataset, Sample, Track, join_datasets
from mien.models.data.pairing import single
from mien.models.evaluation.metrics import emotion_metrics
from mien.models.evaluation.scores import Doubles, score, torch_model
from mien.models.training.device import training_device
from mien.models.training.fusion import train_fusion
from mien.models.training.fusion_settings import OWN, FusionTraining
from mien.windowing import average_slots

RATE_HZ, STEPS = 10, 50
VOICE, FACE = "audio", "vision"
TRAINING = FusionTraining(
    steps=400, batch=48, evaluate_every=400, kinds={VOICE: 0.25, FACE: 0.2, OWN: 0.55}, sentiment_weight=0.0,
    coarse_weight=0.0, temper=0.0, damaged_alone=0.0, perturbation=Perturbation(noise=0.1),
    model=ModelConfig(
        dim=64, slots=12, stages=1,  # and the rest as configs/train.toml
        complement="mean", reliability=True, sharpness=2.4, product=True,
        encoders={VOICE: EncoderConfig(), FACE: EncoderConfig()},
    ),
)  # fmt: skip


def join_units(dataset: Dataset, units: Path) -> Dataset:
    """Voices of RAVDESS, ten averaged rows a second, with the mean action units of the same performance.

    Args:
        units: an npz of `ids` "01-01-EE-II-SS-RR-AA" and `units` (n, D).

    Raises:
        DataError: the file is not one, or no clip of the dataset is in it.
    """
    try:
        with np.load(units, allow_pickle=False) as arrays:
            ids, rows = arrays["ids"], np.nan_to_num(arrays["units"].astype(np.float32))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{units} is not a table of action units: {error}") from error
    by_name = {str(name).partition("-")[2]: row for name, row in zip(ids, rows, strict=True)}
    voice = dataset.specs.get(VOICE)
    samples = []
    for sample in dataset.samples:
        face = by_name.get(sample.labels.id.partition("-")[2])
        if voice is None or face is None or VOICE not in sample.tracks or sample.labels.copy:
            continue
        count = max(1, sample.labels.duration_ns * RATE_HZ // NS_PER_S)
        times = np.arange(count, dtype=np.int64) * (NS_PER_S // RATE_HZ)
        tracks = {
            VOICE: _averaged(sample.tracks[VOICE], round(voice.rate_hz / RATE_HZ)),
            FACE: Track(np.repeat(face[None], count, 0), np.ones(count, np.float32), times),
        }
        samples.append(Sample(sample.labels, tracks))
    if not samples or voice is None:
        raise DataError(f"no voice of the dataset has action units in {units}; extract RAVDESS first")
    specs = {
        VOICE: ModalitySpec(VOICE, voice.dim, RATE_HZ, STEPS, extractor=voice.extractor),
        FACE: ModalitySpec(FACE, rows.shape[1], RATE_HZ, STEPS, extractor="action-units"),
    }
    return Dataset(specs, samples)


def _averaged(track: Track, width: int) -> Track:
    """Every `width` rows as one: the mean of the observed ones."""
    count = -(-len(track.mask) // width)
    seen = np.flatnonzero(track.mask)
    rows, mask = average_slots(track.values[seen], seen // width, count)
    return Track(rows, mask, np.arange(count, dtype=np.int64) * (NS_PER_S // RATE_HZ))


def actor_folds(dataset: Dataset, count: int) -> list[tuple[Dataset, list[Sample]]]:
    """(dataset, held-out samples) per fold; every actor is held out once."""
    actors = sorted({s.labels.speaker for s in dataset.samples if s.labels.speaker is not None})
    if len(actors) < count:
        raise DataError(f"{len(actors)} actors cannot make {count} folds")
    folds = []
    for fold in range(count):
        held_out = set(actors[fold::count])
        split = [
            Sample(
                msgspec.structs.replace(s.labels, split="valid" if s.labels.speaker in held_out else "train"), s.tracks
            )
            for s in dataset.samples
        ]
        folds.append((Dataset(dataset.specs, split), [s for s in split if s.labels.split == "valid"]))
    return folds


def judge(
    dataset: Dataset, settings: FusionTraining, folds: int, variants: Mapping[str, Mapping[str, Any]],
    device: torch.device | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """UAR of each method, one number a fold."""
    made: dict[str, list[float]] = {}
    for split, held_out in actor_folds(dataset, folds):
        truth = np.array([s.emotion for s in held_out])
        alone = {m: _predicted(split.only([m]), settings, held_out, [m], device) for m in (VOICE, FACE)}
        predicted = {"voice": alone[VOICE], "face": alone[FACE], "mean of both": (alone[VOICE] + alone[FACE]) / 2}
        for name, switches in variants.items():
            changed = msgspec.structs.replace(settings, model=msgspec.structs.replace(settings.model, **switches))
            predicted[name] = _predicted(split, changed, held_out, [VOICE, FACE], device)
        for name, emotions in predicted.items():
            made.setdefault(name, []).append(emotion_metrics(truth, emotions).uar)
        logging.info("%s", {name: round(values[-1], 3) for name, values in made.items()})
    return made


def _predicted(
    dataset: Dataset,
    settings: FusionTraining,
    held_out: Sequence[Sample],
    names: Sequence[str],
    device: torch.device | None,
) -> Doubles:
    network = train_fusion(dataset, settings, device=device).averaged
    groups = [single(sample, names) for sample in held_out]
    return score(torch_model(network), groups, names).emotions


def table(made: Mapping[str, Sequence[float]]) -> str:
    """A table in Markdown: mean and standard deviation over folds, and the difference from the mean of both."""
    reference = np.array(made["mean of both"])
    lines = ["| | UAR | against the mean of both |", "|---|---|---|"]
    for name, values in made.items():
        difference = np.array(values) - reference
        lines.append(
            f"| {name} | {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} "
            f"| {difference.mean():+.3f} ± {difference.std(ddof=1):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path, nargs="+", help="as `mien extract` writes them, with RAVDESS")
    parser.add_argument("--units", type=Path, required=True, help="npz of action units")
    parser.add_argument("--folds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=TRAINING.steps)
    parser.add_argument("--seeds", default=str(TRAINING.seed))
    parser.add_argument("--ablations", action="store_true", help="with each part left out, too")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dataset = join_units(join_datasets([read_dataset(folder) for folder in options.datasets]), options.units)
    variants = {"CM-MSF": {}, **(ABLATIONS if options.ablations else {})}
    made: dict[str, list[float]] = {}
    for seed in map(int, options.seeds.split(",")):
        settings = msgspec.structs.replace(TRAINING, seed=seed, steps=options.steps, evaluate_every=options.steps)
        for name, values in judge(dataset, settings, options.folds, variants, training_device(options.device)).items():
            made.setdefault(name, []).extend(values)
    print(json_text(made) if options.json else f"{len(dataset.samples)} clips\n\n{table(made)}")


if __name__ == "__main__":
    main()
