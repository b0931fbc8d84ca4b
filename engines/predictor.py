"""Windows in, predictions out, without doing any work twice.

While a face moves thirty times a second, words change once and sound ten times: a modality is encoded only when its
window is not the one that was encoded last. Streams that are due together share a batch.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.emotions import EMOTIONS
from mien.engines.base import Array, Engine
from mien.engines.cmmsf import encoder_network, fusion_network, whole_network
from mien.engines.fallback import IN_PLACE_OF
from mien.engines.selection import choose_engine, open_engine
from mien.messages import Float32, ModalitySpec, Window
from mien.models.checkpoint import Checkpoint

MAX_SESSIONS = 256
MAX_BATCH = 32  # windows for one call of an engine; more are predicted in turns


@dataclass(frozen=True)
class Outputs:
    """What CM-MSF says of one window.

    Attributes:
        sentiment: -3 ... 3. emotions: probability per emotion. confidence: of the top emotion.
        gates: share of each modality, summing to 1, exactly 0 for a missing one; all 0 when nothing was observed.
        model: checkpoint and engine, for instance "cmmsf-1a2b3c4d/onnx-fp32".
        infer_ms: time of the call; of windows that were predicted together, the time of all of them.
        encoded: modalities that had to be encoded for it.
    """

    sentiment: float
    emotions: dict[str, float]
    confidence: float
    gates: dict[str, float]
    model: str
    infer_ms: float
    encoded: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Encoded:
    """One modality of one window, and copies of what it was made from."""

    features: Float32
    mask: Float32
    hidden: Array  # (S, d)
    observed: Array  # (S,)

    def is_of(self, features: Float32, mask: Float32) -> bool:
        # 15 us for all modalities: cheap against any encoder, and no version number can be wrong.
        return np.array_equal(self.mask, mask) and np.array_equal(self.features, features)


class Predictor:
    """CM-MSF, compiled, for any number of sessions.

    Args:
        checkpoint: the weights.
        engine: "auto", or a name that `mien engines` lists. precision: "fp32", "fp16" or "bf16".
        threads: CPU threads for one inference.
        reuse: False encodes every modality of every window; the numbers are the same.
        cache: folder of compiled forms; by default in mien's cache folder of this user.

    Attributes:
        specs: the modalities that it knows, by name.

    Raises:
        EngineError: no engine can run the checkpoint. CheckpointError: the weights cannot be used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: str = "auto",
        precision: str = "fp32",
        threads: int = 1,
        *,
        reuse: bool = True,
        cache: Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.specs: dict[str, ModalitySpec] = {spec.name: spec for spec in checkpoint.specs}
        self._why = ""
        if engine == "auto":
            choice = choose_engine(whole_network(checkpoint), precision, threads, cache)
            engine, precision, self._why = choice.engine, choice.precision, choice.reason
        self._encoders: dict[str, Engine] = {
            name: open_engine(encoder_network(checkpoint, spec), engine, precision, threads, cache)
            for name, spec in self.specs.items()
        }
        self._fusion = open_engine(fusion_network(checkpoint), engine, precision, threads, cache)
        self._reuse = reuse
        self._kept: OrderedDict[str, dict[str, _Encoded]] = OrderedDict()

    @property
    def id(self) -> str:
        """Checkpoint and engine. Changes when an engine fails and another one takes its place."""
        return f"{self.checkpoint.id}/{'+'.join(dict.fromkeys(part.id for part in self._parts()))}"

    @property
    def reason(self) -> str:
        """Why this engine."""
        return self.trouble or self._why or "; ".join(dict.fromkeys(part.reason for part in self._parts()))

    @property
    def trouble(self) -> str | None:
        """What failed, so that another engine than the chosen one had to take its place; None if nothing did."""
        causes = dict.fromkeys(part.reason for part in self._parts() if part.reason.startswith(IN_PLACE_OF))
        return "; ".join(causes) or None

    def predict(self, window: Window) -> Outputs:
        """The prediction for one window."""
        return self.predict_many([window])[0]

    def predict_many(self, windows: Sequence[Window]) -> list[Outputs]:
        """Predictions for windows of any sessions, in their order, encoded and fused together.

        Raises:
            EngineError: no engine can run them any more.
        """
        return [
            outputs
            for first in range(0, len(windows), MAX_BATCH)
            for outputs in self._predict_batch(windows[first : first + MAX_BATCH])
        ]

    def forget(self, session: str) -> None:
        """Drop what is kept of a session that has ended."""
        self._kept.pop(session, None)

    def _parts(self) -> list[Engine]:
        return [*self._encoders.values(), self._fusion]

    def _predict_batch(self, windows: Sequence[Window]) -> list[Outputs]:
        started = time.perf_counter()
        encoded: list[dict[str, _Encoded]] = [{} for _ in windows]
        fresh: list[list[str]] = [[] for _ in windows]
        for name, spec in self.specs.items():
            wanted: list[tuple[int, Float32, Float32]] = []
            for index, window in enumerate(windows):
                features, mask = _modality(window, spec)
                before = self._kept.get(window.session, {}).get(name)
                if self._reuse and before is not None and before.is_of(features, mask):
                    encoded[index][name] = before
                else:
                    wanted.append((index, features, mask))
                    fresh[index].append(name)
            for (index, _, _), result in zip(wanted, self._encode(name, wanted), strict=True):
                encoded[index][name] = result
        for window, parts in zip(windows, encoded, strict=True):
            self._keep(window.session, parts)
        inputs: dict[str, Array] = {}
        for name in self.specs:
            inputs[f"{name}.hidden"] = np.stack([parts[name].hidden for parts in encoded])
            inputs[f"{name}.observed"] = np.stack([parts[name].observed for parts in encoded])
        fused = self._fusion.infer(inputs)
        infer_ms = (time.perf_counter() - started) * 1e3
        model = self.id
        return [
            Outputs(
                sentiment=float(fused["sentiment"][index]),
                emotions=dict(zip(EMOTIONS, fused["emotions"][index].tolist(), strict=True)),
                confidence=float(fused["confidence"][index]),
                gates=dict(zip(self.specs, fused["shares"][index].tolist(), strict=True)),
                model=model,
                infer_ms=infer_ms,
                encoded=tuple(names),
            )
            for index, names in enumerate(fresh)
        ]

    def _encode(self, name: str, wanted: Sequence[tuple[int, Float32, Float32]]) -> list[_Encoded]:
        if not wanted:
            return []
        features = np.stack([rows for _, rows, _ in wanted])
        mask = np.stack([observed for _, _, observed in wanted])
        result = self._encoders[name].infer({"features": features, "mask": mask})
        hidden, observed = result["hidden"], result["observed"]
        return [_Encoded(features[i], mask[i], hidden[i], observed[i]) for i in range(len(wanted))]

    def _keep(self, session: str, parts: dict[str, _Encoded]) -> None:
        if not self._reuse:
            return
        self._kept[session] = parts
        self._kept.move_to_end(session)
        if len(self._kept) > MAX_SESSIONS:
            self._kept.popitem(last=False)


def _modality(window: Window, spec: ModalitySpec) -> tuple[Float32, Float32]:
    """Features and mask; a modality that the window does not speak of is not observed."""
    if spec.name in window.features:
        return window.features[spec.name], window.mask[spec.name]
    return np.zeros((spec.steps, spec.dim), np.float32), np.zeros(spec.steps, np.float32)
