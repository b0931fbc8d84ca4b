"""Ablation: the fusion trained without each of its parts, and on each subset of modalities, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec
import numpy as np
import torch

from mien.models.architecture import ABLATIONS
from mien.models.data.datasets import Dataset
from mien.models.data.pairing import Pairing, paired_set, single
from mien.models.evaluation.scores import figures, score, torch_model
from mien.models.training.device import training_device
from mien.models.training.fusion import train_fusion
from mien.models.training.fusion_settings import FusionTraining
from mien.models.training.loop import Progress
from mien.stream.offline.plan import TrainPlan
from mien.stream.offline.stages import training_data


def ablate(
    plan: TrainPlan, seeds: Sequence[int], progress: Progress | None = None
) -> dict[str, list[dict[str, float]]]:
    """Validation metrics of every variant and seed, with the plan's fusion settings.

    Encoders are trained from scratch in every run, so that no variant profits from another's training.
    """
    dataset = training_data(plan, progress)
    device = training_device(plan.device)
    names = list(dataset.specs)
    variants: list[tuple[str, FusionTraining, Sequence[str]]] = []
    for name, switches in {"whole": {}, **ABLATIONS}.items():
        model = msgspec.structs.replace(plan.fusion.model, **switches)
        variants.append((name, msgspec.structs.replace(plan.fusion, model=model), names))
    for count in range(1, len(names)):
        variants += [(" + ".join(subset), plan.fusion, subset) for subset in combinations(names, count)]
    results: dict[str, list[dict[str, float]]] = {}
    for number, (name, settings, subset) in enumerate(variants):
        for index, seed in enumerate(seeds):
            seeded = msgspec.structs.replace(settings, seed=seed)
            results.setdefault(name, []).append(_measure(dataset.only(subset), seeded, device))
            if progress is not None:
                progress("ablations", number * len(seeds) + index + 1, len(variants) * len(seeds))
    return results


def _measure(dataset: Dataset, settings: FusionTraining, device: torch.device) -> dict[str, float]:
    trained = train_fusion(dataset, settings, device=device)
    model, names = torch_model(trained.averaged), list(dataset.specs)
    valid = [s for s in dataset.split("valid") if not s.labels.copy]
    made: dict[str, float] = {}
    for corpus in sorted({s.labels.corpus for s in valid}):
        groups = [single(s) for s in valid if s.labels.corpus == corpus]
        found = figures(groups, score(model, groups, names))
        if "sentiment" in found:
            made[f"{corpus} Non0 Acc-2"] = found["sentiment"]["non0_accuracy"]
            made[f"{corpus} MAE"] = found["sentiment"]["mae"]
        if "emotion" in found:
            made[f"{corpus} UAR"] = found["emotion"]["uar"]
    pairs = paired_set(valid, names, 700) if len(names) > 1 else []
    if pairs:
        found = figures(pairs, score(model, pairs, names))
        made["paired UAR"] = found["emotion"]["uar"]
        everything = [*valid, *(s for s in dataset.split("valid") if s.labels.damage is not None)]
        for what, damaged in (("damaged", 1.0), ("conflicting", 0.0)):
            pairing, random = Pairing(everything), np.random.default_rng(1)
            emotions = pairing.emotions(names)
            odd = [
                pairing.draw(
                    names, random, emotion=emotions[k % len(emotions)], conflict=1.0 - damaged, damaged=damaged
                )
                for k in range(700)
            ]
            made[f"{what} pairs UAR"] = figures(odd, score(model, odd, names))["emotion"]["uar"]
    return made


def ablation_table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown table: mean and standard deviation over the seeds."""
    columns = list(dict.fromkeys(name for runs in results.values() for run in runs for name in run))
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for variant, runs in results.items():
        cells = [_cell([run[column] for run in runs if column in run]) for column in columns]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
