"""A session's window at an instant, in separate arrays, and the model's prediction for it alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mien.engines.base import Array
from mien.engines.predictor import Answer, Predictor
from mien.engines.snapshots import Snapshots
from mien.messages import Float32, Word
from mien.stream.inference.assembler import Assembler, ages_ms


@dataclass(frozen=True)
class Window:
    """Per modality features (T, D), mask (T,), age of the newest row, why it is absent, and whether it has changed."""

    t_end_ns: int
    features: dict[str, Float32]
    mask: dict[str, Float32]
    age_ms: dict[str, float | None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    changed: dict[str, bool] = field(default_factory=dict)
    words: tuple[Word, ...] = ()


def window_of(assembler: Assembler, t_end_ns: int) -> Window:
    """The window that ends at `t_end_ns`, built from what has arrived."""
    look = assembler.windows.look([assembler.place], [t_end_ns])
    made = Window(
        t_end_ns,
        {},
        {},
        ages_ms(assembler.specs, t_end_ns, look.present[0].tolist(), look.newest_ns[0].tolist()),
        assembler.absent(t_end_ns),
    )
    words: tuple[Word, ...] = ()
    for is_there, changed, (name, track) in zip(
        look.present[0], look.changed[0], assembler.windows.tracks.items(), strict=True
    ):
        spec = track.spec
        features, mask = np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
        if is_there:
            (features,), (mask,) = track.gather(look.places, look.ends_ns[name])
            words = track.words[assembler.place] if isinstance(track, Snapshots) else words
        made.features[name], made.mask[name] = features.copy(), mask.copy()
        made.changed[name] = bool(changed)
    return Window(t_end_ns, made.features, made.mask, made.age_ms, made.absent, made.changed, words)


def predict_anew(predictor: Predictor, window: Window) -> Answer:
    """The prediction for one window, with every modality encoded again."""
    inputs: dict[str, Array] = {}
    for name in predictor.specs:
        seen = {"features": window.features[name][None], "mask": window.mask[name][None]}
        encoded = predictor._encoders[name].infer(seen)
        inputs |= {f"{name}.{part}": encoded[part] for part in ("hidden", "observed")}
    fused = {name: values[0].tolist() for name, values in predictor._fusion.infer(inputs).items()}
    observed = any(mask.any() for mask in window.mask.values())
    return Answer(fused["sentiment"], fused["emotions"], fused["confidence"], fused["shares"], observed)
