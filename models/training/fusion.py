"""Training of CM-MSF on datasets of rows: many corpora, each with the modalities and labels that it has.

A step sees one kind of batch: one modality alone, items that have several, or items of different corpora paired by
label. A batch of one modality costs a fraction of a paired one, because the cascade has nothing to do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from mien.errors import DataError
from mien.messages import ModalitySpec
from mien.models.architecture import ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.data.batches import Batch, Perturbation, Perturber, plain_batches
from mien.models.data.datasets import Dataset, Sample, Statistics, make_statistics
from mien.models.data.pairing import Group, Pairing, paired_set, single
from mien.models.data.speakers import Speakers
from mien.models.fusion import Encoding, Fused
from mien.models.training.device import mixed_precision
from mien.models.training.encodings import EncodedItems
from mien.models.voice.columns import ROW
from mien.models.weights.tensors import write_tensors

log = logging.getLogger(__name__)

BEYOND = 0.5  # how much stronger than usual a sentiment may be of which only the sign is known
OWN = "own"  # items that have several modalities themselves
SEPARATOR = "+"


class FusionTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How CM-MSF is trained.

    Attributes:
        kinds: how often a step is of which kind: a modality, several joined by "+" for pairs, or "own". A kind that
            the data cannot make is left out.
        corpora: how often an item comes from which corpus; one that is not named counts by the root of its size.
        by_valence: how often a pair's sentence is one with a sentiment instead of an emotion.
        pair_emotions: how often a pair is of which emotion, 1 where it is not named: what is drawn as often as
            everything else is also said as often.
        composed: how often one member of a pair is neutral and the others are not, and the others are right.
        conflict, damaged: the same with a member of another emotion, and with a damaged one.
        damaged_alone: how often a modality alone is a damaged one.
        alone_weight, reliability_weight: of the emotions that a modality shows by itself, and of the probability that
            it is right; nothing in a model without reliability.
        views: training windows of every item that are encoded once and for all; 0 trains encoders too, and encodes
            every window anew. With views the encoders stay as their readers left them; a modality that has no reader
            gets one, of `reader_steps`.
        reliability_steps: on the "valid" split, for that probability: what was trained on is right too often.
        trained_rate: learning rate of parts that come trained, as a share of `learning_rate`.
        keep_weight: how much a modality alone is held to what its reader said of it (Li & Hoiem, ECCV 2016): it is to
            learn its company, and not to forget.
        ema: decay of the averaged weights, which are what is validated and kept.
        neutral_weight: how much more a guess counts against what shows no feeling: a still face is no bad mood.
        temper: exponent of inverse class frequencies that weigh emotions; 0 none, 1 fully balanced.
        evaluate_every, patience: steps between validations, and how many without a lower loss end the run.
        valid_items: of each kind that a validation looks at. calibration_items: of each corpus, for temperatures.
        bf16: compute in bfloat16; None: where the device multiplies in it.
    """

    seed: int = 1111
    steps: int = 3000
    batch: int = 64
    learning_rate: float = 1.5e-3
    trained_rate: float = 0.2
    keep_weight: float = 1.0
    weight_decay: float = 0.02
    warm_up: int = 100
    ema: float = 0.995
    gradient_clip: float = 1.0
    kinds: dict[str, float] = msgspec.field(
        default_factory=lambda: {
            "text": 0.3, "audio": 0.14, "vision": 0.14, "text+audio": 0.09, "text+vision": 0.09, "audio+vision": 0.09,
            "text+audio+vision": 0.15, OWN: 0.3,
        }
    )  # fmt: skip
    corpora: dict[str, float] = msgspec.field(default_factory=dict)
    by_valence: float = 0.4
    pair_emotions: dict[str, float] = {}
    composed: float = 0.2
    conflict: float = 0.1
    damaged: float = 0.3
    damaged_alone: float = 0.15
    alone_weight: float = 0.5
    reliability_weight: float = 0.5
    views: int = 0
    reader_steps: int = 400
    reliability_steps: int = 300
    emotion_weight: float = 1.0
    sentiment_weight: float = 1.0
    coarse_weight: float = 0.25
    neutral_weight: float = 3.0
    variance_weight: float = 0.1
    label_smoothing: float = 0.05
    temper: float = 0.3
    evaluate_every: int = 150
    patience: int = 8
    valid_items: int = 600
    calibration_items: int = 5000
    bf16: bool | None = None
    threads: int = 1
    model: ModelConfig = ModelConfig()
    perturbation: Perturbation = Perturbation()


@dataclass(frozen=True)
class Evaluation:
    """After `step`: the mean validation loss, and the loss of each kind."""

    step: int
    loss: float
    by_kind: dict[str, float]


@dataclass
class Trained:
    """A finished run: the averaged weights with the lowest validation loss, and how they came to be."""

    network: CMMSF
    best: Evaluation
    history: list[Evaluation] = field(default_factory=list)


def train_fusion(
    dataset: Dataset,
    settings: FusionTraining,
    *,
    readers: Mapping[str, Mapping[str, Tensor]] | None = None,
    state: Path | None = None,
    log_dir: Path | None = None,
    device: torch.device | None = None,
    report: Callable[[int, int, Evaluation | None], None] | None = None,
) -> Trained:
    """Train on the "train" split, keep what does best on "valid". The same seed gives the same weights, bit for bit.

    Args:
        readers: weights of CM-MSF as it was trained with one modality alone, by modality. All of them bring their
            encoder; the first also its way to the decision, which the others then learn to share.
        state: file that a stopped run is continued from, removed at the end. None never resumes.
        log_dir: for TensorBoard.
        device: where to compute, the processor by default (see `training_device`). What is returned is on the latter.
        report: called after every step with its number, their count, and the validation if there was one. After the
            last step of a run that stops early the count is that of the steps done.

    Raises:
        DataError: nothing to train or to validate on, or a state of another run.
    """
    device = device or torch.device("cpu")
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    train, valid = dataset.split("train"), [s for s in dataset.split("valid") if not s.labels.copy]
    if not train or not valid:
        raise DataError("training needs items in the splits `train` and `valid`; give a corpus that has both")
    specs = dataset.specs
    if settings.views:
        readers = _with_readers(dataset, settings, readers or {}, device)
    statistics = make_statistics([s for s in train if s.labels.damage is None], specs)
    network = CMMSF(list(specs.values()), settings.model)
    network.normalise({n: (torch.tensor(s.mean), torch.tensor(s.std)) for n, s in statistics.items()})
    trained_parts = load_readers(network, readers or {})
    keepers = {name: keeper.to(device) for name, keeper in _keepers(specs, settings.model, readers or {}).items()}
    network.to(device)
    network.encoders.requires_grad_(settings.views == 0)
    average = CMMSF(list(specs.values()), settings.model).to(device).requires_grad_(False)
    average.load_state_dict(network.state_dict())
    run = _Run(network, average, _optimizer(network, settings, trained_parts))
    plan = msgspec.json.encode([settings, [len(train), len(valid)], sorted(specs)]).decode()
    if state is not None and state.exists():
        run.restore(state, plan)
    source = _Source(train, specs, statistics, settings)
    checks = [(kind, [b.to(device) for b in made]) for kind, made in _validation(valid, specs, settings)]
    source.errors = _errors(keepers, checks)
    if settings.views:
        source.encode(network, keepers)
        checks = [(kind, [_encoded(network, b) for b in made]) for kind, made in checks]
    weights = _class_weights(train, settings.temper).to(device)
    writer = _writer(log_dir)
    while run.step < settings.steps and run.stale < settings.patience:
        # A generator for each step: a resumed run then draws what it would have drawn.
        random = np.random.default_rng((settings.seed, run.step))
        torch.manual_seed(settings.seed * 1_000_003 + run.step)
        kind, batch = source.draw(random)
        batch = batch.to(device)
        network.train()
        if settings.views:
            network.encoders.eval()
        with mixed_precision(device, settings.bf16):
            encodings = _encodings(network, batch)
            fused = network.raw_of(encodings)
        fused = fused.in_float32()
        loss = _loss(fused, batch, settings, weights)
        if fused.judgement is not None:
            loss = loss + reliability_loss(network, encodings, fused, batch, settings)
        if kind in keepers and settings.keep_weight > 0:
            said = batch.said.get(kind) or _said(keepers[kind], batch)
            loss = loss + settings.keep_weight * _strayed(fused, said, kind == next(iter(keepers)))
        run.descend(loss, settings)
        evaluation = None
        if run.step % settings.evaluate_every == 0 or run.step == settings.steps:
            evaluation = _evaluate(run, checks, settings)
            run.keep(evaluation)
            if writer is not None:
                writer.add_scalar("valid/loss", evaluation.loss, run.step)
                for name, value in evaluation.by_kind.items():
                    writer.add_scalar(f"valid/{name}", value, run.step)
            log.info("step %d valid %.4f %s", run.step, evaluation.loss,
                     " ".join(f"{k} {v:.3f}" for k, v in evaluation.by_kind.items()))  # fmt: skip
            if state is not None:
                run.store(state, plan)
        if writer is not None:
            writer.add_scalar(f"train/{kind}", float(loss.detach()), run.step)
        if report is not None:
            report(run.step, run.step if run.stale >= settings.patience else settings.steps, evaluation)
    if writer is not None:
        writer.close()
    if state is not None:
        state.unlink(missing_ok=True)
    average.load_state_dict(run.best_weights)
    assert run.best is not None, "the last step is validated"
    return Trained(average.cpu().eval(), run.best, run.history)


def reliability_loss(
    network: CMMSF, encodings: Mapping[str, Encoding], fused: Fused, batch: Batch, settings: FusionTraining
) -> Tensor:
    """Of what each modality shows by itself, and of the probability that it is right: that the very model, with nothing
    else to look at, says what the group is labelled with."""
    judgement = fused.judgement
    assert judgement is not None
    total = fused.logits.new_zeros(())
    known = batch.emotions.sum(1) > 0
    truth = batch.emotions.argmax(1)
    for name, made in encodings.items():
        encoding = Encoding(made.hidden.float(), made.observed.float())
        column = network.names.index(name)
        there = encoding.observed.amax(1) > 0
        shows = there & (batch.own[name].sum(1) > 0)
        if shows.any() and settings.alone_weight > 0:
            errors = -(batch.own[name][shows] * F.log_softmax(judgement.alone[shows, column], 1)).sum(1)
            total = total + settings.alone_weight * errors.mean() / len(encodings)
        judged = there & known
        if judged.any():
            with torch.no_grad():
                said = fused.logits if len(encodings) == 1 else network.raw_of({name: encoding}).logits
                right = (said.argmax(1) == truth)[judged].to(judgement.own.dtype)
            for logit in (judgement.own, judgement.logit):
                error = F.binary_cross_entropy_with_logits(logit[judged, column], right)
                total = total + settings.reliability_weight * error / len(encodings)
    return total


def load_readers(network: CMMSF, readers: Mapping[str, Mapping[str, Tensor]]) -> set[str]:
    """Lay what was trained with one modality alone into a network of several.

    With the first reader's modality alone, the network then says what that reader says.

    Returns:
        The names of the parameters that came trained.

    Raises:
        DataError: a reader is of a model with other sizes.
    """
    state = network.state_dict()
    found: set[str] = set()
    for number, (name, reader) in enumerate(readers.items()):
        for key, value in reader.items():
            target = _place(key, name, number == 0)
            if target is None:
                continue
            if target.startswith("fusion.mgf.gates.") and value.ndim == 2:
                value = _widened(value, state[target], network.names.index(name), len(network.names))
            if target not in state or state[target].shape != value.shape:
                raise DataError(f"the trained reader of {name} does not fit this model ({key}); train it again")
            state[target] = value.to(state[target].dtype)
            found.add(target)
        if not any(key.startswith(f"encoders.{name}.") for key in found):
            raise DataError(f"the trained reader of {name} holds no encoder of {name}; train it again")
    network.load_state_dict(state)
    return found


def _keepers(
    specs: Mapping[str, ModalitySpec], model: ModelConfig, readers: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, CMMSF]:
    """The readers as networks of one modality, by modality."""
    keepers = {}
    # Alone, a modality is as it would be without.
    model = msgspec.structs.replace(model, reliability=False)
    for name, reader in readers.items():
        keepers[name] = CMMSF([specs[name]], model).requires_grad_(False).eval()
        state = {key: value for key, value in reader.items() if not key.startswith("fusion.reliability.")}
        keepers[name].load_state_dict(state | {"fusion.temperature": torch.ones(2)})
    return keepers


@torch.no_grad()
def _said(keeper: CMMSF, batch: Batch) -> tuple[Tensor, Tensor]:
    """Emotion logits (B, 7) and sentiment (B,) of a batch of one modality, as its reader says them."""
    said = keeper.raw(batch.features, batch.mask)
    return said.logits, said.sentiment


def _strayed(fused: Fused, said: tuple[Tensor, Tensor], first: bool) -> Tensor:
    """How far a batch of one modality is from what its reader says: of emotions, and for the first reader, which
    brought the way to the decision, of sentiment too."""
    logits, sentiment = said
    strayed = F.kl_div(F.log_softmax(fused.logits, 1), logits.softmax(1), reduction="batchmean")
    return strayed + (fused.sentiment - sentiment).abs().mean() if first else strayed


def _errors(keepers: Mapping[str, CMMSF], checks: Sequence[tuple[str, Sequence[Batch]]]) -> dict[str, float]:
    """How often each reader is wrong about validation items, every emotion counted alike."""
    made = {}
    for name, batches in checks:
        if name not in keepers:
            continue
        said = torch.cat([_said(keepers[name], batch)[0].argmax(1) for batch in batches])
        emotions = torch.cat([batch.emotions for batch in batches])
        known = emotions.sum(1) > 0
        truth = emotions[known].argmax(1)
        recalls = [float((said[known][truth == e] == e).float().mean()) for e in sorted(set(truth.tolist()))]
        made[name] = 1.0 - sum(recalls) / len(recalls) if recalls else 0.0
    log.info("readers are wrong in %s", " ".join(f"{name} {error:.2f}" for name, error in made.items()))
    return made


def _encodings(network: CMMSF, batch: Batch) -> dict[str, Encoding]:
    """Of a batch, made now unless they were made before."""
    return batch.encodings or {
        name: network.encode(name, batch.features[name], batch.mask[name]) for name in batch.features
    }


@torch.no_grad()
def _encoded(network: CMMSF, batch: Batch) -> Batch:
    network.eval()
    return replace(batch, features={}, mask={}, encodings=_encodings(network, batch))


def _with_readers(
    dataset: Dataset, settings: FusionTraining, readers: Mapping[str, Mapping[str, Tensor]], device: torch.device
) -> dict[str, Mapping[str, Tensor]]:
    """The readers, and one more for every modality that has none, in the order of the readers given."""
    made = dict(readers)
    for name, spec in dataset.specs.items():
        if name in made:
            continue
        alone = msgspec.structs.replace(
            settings,
            views=0,
            kinds={name: 1.0},
            steps=settings.reader_steps,
            evaluate_every=max(1, settings.reader_steps // 4),
            model=msgspec.structs.replace(settings.model, reliability=False),
        )
        ours = [Sample(s.labels, {name: s.tracks[name]}) for s in dataset.samples if name in s.tracks]
        log.info("reader of %s", name)
        network = train_fusion(Dataset({name: spec}, ours), alone, device=device).network
        made[name] = network.state_dict()
    return made


def _place(key: str, name: str, first: bool) -> str | None:
    """Where an entry of a reader belongs; None: nowhere."""
    if key.startswith(f"encoders.{name}."):
        return key
    decides = ("fusion.mgf.", "fusion.sentiment.", "fusion.emotions.", "fusion.log_variance.")
    return key if first and key.startswith(decides) else None


def _widened(gate: Tensor, wide: Tensor, index: int, count: int) -> Tensor:
    """The weights of a gate that saw one modality, in those of one that sees `count`: (d, d + 2) in (d, count d + 2
    count). What it says of the others is left as it is, since they are zero where they are missing."""
    dim = gate.shape[0]
    if gate.shape[1] != dim + 2 or wide.shape != (dim, count * dim + 2 * count):
        return gate  # and its shape is then found wrong
    wide = wide.clone()
    wide[:, index * dim : (index + 1) * dim] = gate[:, :dim]
    wide[:, count * dim + index], wide[:, count * dim + count + index] = gate[:, dim], gate[:, dim + 1]
    return wide


def _optimizer(network: CMMSF, settings: FusionTraining, trained: set[str]) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        groups.setdefault((name in trained, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "scale": settings.trained_rate if known else 1.0,
                "weight_decay": settings.weight_decay if matrix else 0.0,
            }
            for (known, matrix), parameters in sorted(groups.items())
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )


class _Source:
    """Training batches of every kind that the data can make."""

    def __init__(
        self,
        train: Sequence[Sample],
        specs: Mapping[str, ModalitySpec],
        statistics: Mapping[str, Statistics],
        settings: FusionTraining,
    ) -> None:
        self._settings, self._train = settings, train
        self._encoded: EncodedItems | None = None
        self.errors: dict[str, float] = {}
        voices = "audio" in specs and specs["audio"].dim == ROW
        speakers = Speakers(train) if voices else None
        self._perturber = Perturber(specs, statistics, settings.perturbation, speakers)
        self._pairing = Pairing(train)
        self._singles: dict[str, list[tuple[float, list[Sample]]]] = {}
        self._damaged: dict[str, list[Sample]] = {}
        for kind in [*specs, OWN]:
            ours = [s for s in train if _is_of_kind(s, kind)]
            self._damaged[kind] = [s for s in ours if s.labels.damage is not None]
            pools = _by_corpus([s for s in ours if s.labels.damage is None], settings.corpora)
            if pools:
                self._singles[kind] = pools
        self.kinds = {
            kind: share for kind, share in settings.kinds.items() if share > 0 and self._possible(kind, set(specs))
        }
        if not self.kinds:
            raise DataError("no kind of training batch can be made; the training split has no labelled rows")

    def encode(self, network: CMMSF, readers: Mapping[str, CMMSF]) -> None:
        """From here on, batches are of windows that are encoded now."""
        random = np.random.default_rng((self._settings.seed, 7))
        self._encoded = EncodedItems(network, self._train, self._perturber, self._settings.views, random, readers)

    def draw(self, random: np.random.Generator) -> tuple[str, Batch]:
        """A kind, and a batch of it."""
        shares = np.array(list(self.kinds.values()))
        kind = list(self.kinds)[int(random.choice(len(shares), p=shares / shares.sum()))]
        groups = [self._group(kind, random) for _ in range(self._settings.batch)]
        return kind, (self._encoded or self._perturber).batch(groups, random)

    def _group(self, kind: str, random: np.random.Generator) -> Group:
        if kind in self._singles:
            pools = self._singles[kind]
            shares = np.array([share for share, _ in pools])
            pool = pools[int(random.choice(len(pools), p=shares / shares.sum()))][1]
            if self._damaged[kind] and random.random() < self._settings.damaged_alone:
                pool = self._damaged[kind]
            return single(pool[int(random.integers(len(pool)))], None if kind == OWN else (kind,))
        return self._pairing.draw(
            kind.split(SEPARATOR),
            random,
            self._settings.by_valence,
            composed=self._settings.composed,
            shares=self._settings.pair_emotions,
            conflict=self._settings.conflict,
            damaged=self._settings.damaged,
            errors=self.errors,
        )

    def _possible(self, kind: str, names: set[str]) -> bool:
        if kind in self._singles:
            return True
        modalities = kind.split(SEPARATOR)
        return len(modalities) > 1 and names >= set(modalities) and bool(self._pairing.emotions(modalities))


def _is_of_kind(sample: Sample, kind: str) -> bool:
    labelled = sample.labels.sentiment is not None or sample.labels.emotions is not None
    return labelled and (len(sample.tracks) > 1 if kind == OWN else kind in sample.tracks)


def _by_corpus(samples: Sequence[Sample], shares: Mapping[str, float]) -> list[tuple[float, list[Sample]]]:
    pools: dict[str, list[Sample]] = {}
    for sample in samples:
        pools.setdefault(sample.labels.corpus, []).append(sample)
    weighted = [(shares.get(name, math.sqrt(len(pool))), pool) for name, pool in sorted(pools.items())]
    return [(share, pool) for share, pool in weighted if share > 0]


def _validation(
    valid: Sequence[Sample], specs: Mapping[str, ModalitySpec], settings: FusionTraining
) -> Iterator[tuple[str, list[Batch]]]:
    """Whole windows of each modality alone, and of pairs; the same for every run on the same data."""
    random = np.random.default_rng(0)
    for kind in [*specs, OWN]:
        samples = [s for s in valid if _is_of_kind(s, kind)]
        if samples:
            chosen = random.permutation(len(samples))[: settings.valid_items]
            groups = [single(samples[i], None if kind == OWN else (kind,)) for i in chosen]
            yield kind, plain_batches(specs, groups)
    for kind in settings.kinds:
        modalities = kind.split(SEPARATOR)
        if len(modalities) > 1 and specs.keys() >= set(modalities) and Pairing(valid).emotions(modalities):
            yield kind, plain_batches(specs, paired_set(valid, modalities, settings.valid_items // 3))


def _loss(fused: Fused, batch: Batch, settings: FusionTraining, weights: Tensor) -> Tensor:
    """Emotion cross-entropy, sentiment error, and how well the model knows that error; each where a label is."""
    total = fused.sentiment.new_zeros(())
    known = batch.emotions.sum(1) > 0
    if known.any():
        smooth = settings.label_smoothing
        soft = batch.emotions[known] * (1 - smooth) + smooth / batch.emotions.shape[1]
        share = soft * weights
        total = total - settings.emotion_weight * (share * F.log_softmax(fused.logits[known], 1)).sum() / share.sum()
    fine = torch.isfinite(batch.sentiment) & ~batch.coarse
    if fine.any():
        error = (fused.sentiment[fine] - batch.sentiment[fine]).abs()
        # The variance learns from the error and not the error from the variance: a hard item is not to be given up.
        log_variance = fused.log_variance[fine].clamp(-6, 6)
        spread = 0.5 * (error.detach().square() * torch.exp(-log_variance) + log_variance)
        total = total + (settings.sentiment_weight * error + settings.variance_weight * spread).mean()
    coarse = torch.isfinite(batch.sentiment) & batch.coarse
    if coarse.any():
        guess, truth = fused.sentiment[coarse], batch.sentiment[coarse]
        # Only the sign is known: up to the usual strength a stronger guess is better, somewhat beyond it no worse.
        agreeing = guess * truth.sign()
        short, beyond = F.relu(truth.abs() - agreeing), F.relu(agreeing - truth.abs() - BEYOND)
        error = torch.where(truth == 0, settings.neutral_weight * guess.abs(), short + beyond)
        total = total + settings.coarse_weight * error.mean()
    return total


def _class_weights(train: Sequence[Sample], temper: float) -> Tensor:
    counts = np.zeros(7)
    for sample in train:
        if sample.labels.emotions is not None and sample.labels.damage is None:
            counts += sample.labels.emotions
    counts = np.maximum(counts, 1.0)
    return torch.tensor((counts.mean() / counts) ** temper, dtype=torch.float32)


class _Run:
    """What changes while training, and what a resumed run reads back."""

    def __init__(self, network: CMMSF, average: CMMSF, optimizer: torch.optim.AdamW) -> None:
        self.network, self.average, self.optimizer = network, average, optimizer
        self.step = self.stale = 0
        self.device = next(average.parameters()).device
        self.best: Evaluation | None = None
        self.best_weights = {name: tensor.clone() for name, tensor in average.state_dict().items()}
        self.history: list[Evaluation] = []

    def descend(self, loss: Tensor, settings: FusionTraining) -> None:
        """One step of AdamW, warmed up and then falling along a cosine, and of the averaged weights."""
        done = self.step / settings.steps
        rate = (
            settings.learning_rate
            * min(1.0, (self.step + 1) / settings.warm_up)
            * (0.52 + 0.48 * math.cos(math.pi * done))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        self.optimizer.step()
        # The average follows quickly at first, or it would remember the random start.
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        current = self.network.state_dict()
        for name, kept in self.average.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(current[name], 1 - decay)
            else:
                kept.copy_(current[name])
        self.step += 1

    def keep(self, evaluation: Evaluation) -> None:
        """Note a validation, and the weights if they are the best so far."""
        self.history.append(evaluation)
        if self.best is None or evaluation.loss < self.best.loss:
            self.best, self.stale = evaluation, 0
            self.best_weights = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        else:
            self.stale += 1

    def store(self, path: Path, plan: str) -> None:
        """Write everything, all at once."""
        tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.state_dict().items()}
        tensors |= {f"best.{n}": t for n, t in self.best_weights.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        metadata = {
            "plan": plan,
            "step": str(self.step),
            "stale": str(self.stale),
            "history": msgspec.json.encode([[e.step, e.loss, e.by_kind] for e in self.history]).decode(),
        }
        write_tensors(path, tensors, metadata)

    def restore(self, path: Path, plan: str) -> None:
        """Go on where `store` was called.

        Raises:
            DataError: the file is damaged or of a run with other settings or data.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata()
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot continue from {path}: {error}; remove it to begin anew") from error
        if metadata.get("plan") != plan:
            raise DataError(f"{path} belongs to a run with other settings or data; remove it to begin anew")
        self.network.load_state_dict(_part(tensors, "network."))
        self.average.load_state_dict(_part(tensors, "average."))
        self.best_weights = _part(tensors, "best.")
        adam: dict[int, dict[str, Any]] = {}
        for name, tensor in _part(tensors, "adam.").items():
            index, key = name.split(".")
            adam.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": adam})
        self.step, self.stale = int(metadata["step"]), int(metadata["stale"])
        self.history = [Evaluation(*entry) for entry in msgspec.json.decode(metadata["history"])]
        self.best = min(self.history, key=lambda e: e.loss, default=None)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.inference_mode()
def _evaluate(run: _Run, checks: Sequence[tuple[str, Sequence[Batch]]], settings: FusionTraining) -> Evaluation:
    run.average.eval()
    plain = msgspec.structs.replace(settings, label_smoothing=0.0, variance_weight=0.0, neutral_weight=1.0)
    even = torch.ones(7, device=run.device)
    by_kind = {}
    for kind, batches in checks:
        losses = [
            float(_loss(run.average.raw_of(_encodings(run.average, b)), b, plain, even)) * len(b.sentiment)
            for b in batches
        ]
        by_kind[kind] = sum(losses) / sum(len(b.sentiment) for b in batches)
    return Evaluation(run.step, sum(by_kind.values()) / len(by_kind), by_kind)


def _writer(log_dir: Path | None) -> Any:
    if log_dir is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(log_dir))
