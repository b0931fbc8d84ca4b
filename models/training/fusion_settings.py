"""Settings of the training of CM-MSF."""

from __future__ import annotations

import msgspec

from mien.models.architecture import Count, ModelConfig, Natural
from mien.models.data.batches import Perturbation
from mien.models.training.loop import Descent

OWN = "own"  # batches of items that were recorded with several modalities


class HeldOutGroups(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How groups of held-out items are drawn.

    Attributes:
        damaged, damaged_wrong, conflict, odd, pair_emotions: as in `FusionTraining`.
        noise: share of members that are replaced by noise.
    """

    damaged: float = 0.3
    damaged_wrong: float = 0.5
    conflict: float = 0.2
    odd: dict[str, float] = msgspec.field(default_factory=dict)
    pair_emotions: dict[str, float] = msgspec.field(default_factory=dict)
    noise: float = 0.1


class ReliabilityFit(HeldOutGroups, frozen=True):
    """How the reliability of modalities is fitted on the "valid" split.

    Attributes:
        steps: on 128 groups each, for the layers that judge a modality by itself, and as many for those that judge it
            in company; 0 keeps what training learned.
        right, decision: loss weights in company of whether each modality alone is right, and of the head's emotions.
        ranking: by modality, loss weight of how badly its gating vector's share ranks by whether it alone is right.
    """

    steps: Natural = 300
    right: float = 1.0
    decision: float = 1.0
    ranking: dict[str, float] = msgspec.field(default_factory=dict)


class FusionTraining(Descent, frozen=True):
    """How CM-MSF is trained.

    Attributes:
        kinds: relative frequency of each kind of batch: a modality, several joined by "+" for pairs, or "own". Kinds
            that the data cannot make are left out.
        corpora: relative frequency of each corpus; default: the square root of its size.
        by_valence: share of pairs whose sentence is labelled with a sentiment instead of an emotion.
        pair_emotions: relative frequency of each emotion in pairs, default 1. Frequent emotions are also predicted more
            often.
        composed: share of pairs in which one member is neutral and the others show the labelled emotion.
        conflict, damaged: share of pairs in which one member shows another emotion, or is damaged.
        odd: relative frequency with which each modality is the conflicting member, default 1.
        damaged_wrong: share of damaged members whose emotion is random instead of that of the others.
        damaged_alone: share of unimodal batches that are damaged.
        wrong: minimum error rate of a modality in pairs. By default the error rate of its reader on the "valid" split,
            which is too low for people outside the corpora.
        alone_weight, reliability_weight: loss weights of the emotion that a modality shows alone, and of the
            probability that it is right; no effect on a model without reliability.
        views: training windows of each item that are encoded once, before training; 0 trains the encoders too and
            encodes every window anew. With views the encoders keep the weights of their readers; a modality without a
            reader gets one, trained for `reader_steps`.
        reliability: how the last layers of reliability are then fitted on the "valid" split.
        decision: the groups that the decision between modalities is fitted on, in a model with `product`.
        trained_rate: learning rate of pretrained parameters, as a fraction of `learning_rate`.
        keep_weight: loss weight of the distillation from the frozen unimodal readers.
        ema: decay of the averaged weights, which are validated and kept.
        neutral_weight: penalty factor for non-zero sentiment on neutral items.
        temper: exponent of the inverse class frequencies that weight emotions; 0 none, 1 fully balanced.
        evaluate_every, patience: steps between validations; validations without improvement before training stops.
        valid_items: of each kind in a validation. calibration_items: of each corpus, for temperatures.
        bf16: compute in bfloat16; None: if the device has bfloat16 matrix multiplication.
    """

    trained_rate: float = 0.2
    keep_weight: float = 1.0
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
    pair_emotions: dict[str, float] = msgspec.field(default_factory=dict)
    composed: float = 0.2
    conflict: float = 0.1
    odd: dict[str, float] = msgspec.field(default_factory=dict)
    damaged: float = 0.3
    damaged_wrong: float = 0.5
    damaged_alone: float = 0.15
    wrong: dict[str, float] = msgspec.field(default_factory=dict)
    alone_weight: float = 0.5
    reliability_weight: float = 0.5
    views: Natural = 0
    reader_steps: Count = 400
    reliability: ReliabilityFit = ReliabilityFit()
    decision: HeldOutGroups = HeldOutGroups()
    emotion_weight: float = 1.0
    sentiment_weight: float = 1.0
    coarse_weight: float = 0.25
    neutral_weight: float = 3.0
    variance_weight: float = 0.1
    temper: float = 0.3
    evaluate_every: Count = 150
    patience: int = 8
    valid_items: int = 600
    calibration_items: int = 5000
    bf16: bool | None = None
    model: ModelConfig = ModelConfig()
    perturbation: Perturbation = Perturbation()
