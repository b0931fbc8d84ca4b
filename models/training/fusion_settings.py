"""Settings of the training of CM-MSF."""

from __future__ import annotations

import msgspec

from mien.models.architecture import ModelConfig
from mien.models.data.batches import Perturbation

OWN = "own"  # kind of batch: items that have several modalities themselves


class FusionTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How CM-MSF is trained.

    Attributes:
        kinds: how often a batch is of which kind: a modality, several joined by "+" for pairs, or "own". A kind that
            the data cannot make is left out.
        corpora: how often an item comes from which corpus; one that is not named counts by the root of its size.
        by_valence: how often a pair's sentence is one with a sentiment instead of an emotion.
        pair_emotions: how often a pair is of which emotion, 1 where it is not named. Frequent emotions are also
            predicted more often.
        composed: how often one member of a pair is neutral while the others show the labelled emotion.
        conflict, damaged: the same with a member of another emotion, and with a damaged one.
        odd: how often, against the others, each modality is the member of another emotion; 1 where it is not named.
        damaged_wrong: how often a damaged member is of any emotion, and not of that of the others.
        damaged_alone: how often a single modality is a damaged one.
        wrong: least error rate of a modality in pairs. Without it the error rate of its reader on the "valid" split
            counts, and people outside of the corpora are read worse.
        alone_weight, reliability_weight: of the emotions that a modality shows by itself, and of the probability that
            it is right; no effect on a model without reliability.
        views: training windows of every item that are encoded once, before training; 0 trains encoders too and
            encodes every window anew. With views the encoders stay as their readers left them; a modality that has no
            reader gets one, trained for `reader_steps`.
        reliability_steps: of fitting that probability on the "valid" split: on training items a model is right too
            often. reliability_noise: how often a member is noise meanwhile; None: as in `perturbation`.
            reliability_damaged, reliability_conflict: as `damaged` and `conflict` meanwhile; None: the same.
            reliability_damaged_wrong: as `damaged_wrong` meanwhile, by modality; the same where it is not named.
        surviving: by modality, exponent of how much damage leaves of how often it is right: a damaged member counts as
            right only so far. 1 where it is not named; above it, the share falls faster than the modality gets worse.
        trained_rate: learning rate of parameters that come trained, as a share of `learning_rate`.
        keep_weight: of the distillation from the frozen unimodal readers.
        ema: decay of the averaged weights, which are validated and kept.
        neutral_weight: penalty factor for non-zero sentiment on neutral items.
        temper: exponent of inverse class frequencies that weigh emotions; 0 none, 1 fully balanced.
        evaluate_every, patience: steps between validations, and how many without a lower loss end the run.
        valid_items: of each kind in a validation. calibration_items: of each corpus, for temperatures.
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
    odd: dict[str, float] = {}
    damaged: float = 0.3
    damaged_wrong: float = 0.5
    damaged_alone: float = 0.15
    wrong: dict[str, float] = {}
    alone_weight: float = 0.5
    reliability_weight: float = 0.5
    views: int = 0
    reader_steps: int = 400
    reliability_steps: int = 300
    reliability_noise: float | None = None
    reliability_damaged: float | None = None
    reliability_conflict: float | None = None
    reliability_damaged_wrong: dict[str, float] = {}
    surviving: dict[str, float] = {}
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
