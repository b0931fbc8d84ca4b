"""CM-MSF on a single modality, with all others missing."""

from __future__ import annotations

import numpy as np

from mien.engines.base import Array
from mien.engines.cmmsf import encoder_network, fusion_network
from mien.engines.selection import open_engine
from mien.errors import CheckpointError
from mien.messages import EMOTIONS, Float32
from mien.models.checkpoint import Checkpoint
from mien.windowing import last_rows


class SnapshotReader:
    """Predicts from one snapshot modality (rows without timestamps, such as words) alone.

    Args:
        checkpoint: the weights. modality: the one to read. engine: as for `open_engine`.

    Raises:
        CheckpointError: the checkpoint lacks that modality. EngineError: no engine can run it.
    """

    def __init__(self, checkpoint: Checkpoint, modality: str, engine: str = "onnx") -> None:
        spec = next((spec for spec in checkpoint.specs if spec.name == modality), None)
        if spec is None or not spec.snapshot:
            raise CheckpointError(f"{checkpoint.path} reads no {modality}")
        self._spec = spec
        self._encoder = open_engine(encoder_network(checkpoint, spec), engine)
        self._fusion = open_engine(fusion_network(checkpoint), engine)
        slots, dim = checkpoint.config.slots, checkpoint.config.dim
        self._missing: dict[str, Array] = {}
        for each in checkpoint.specs:
            self._missing[f"{each.name}.hidden"] = np.zeros((1, slots, dim), np.float32)
            self._missing[f"{each.name}.observed"] = np.zeros((1, slots), np.float32)

    def read(self, rows: Float32) -> tuple[float, str]:
        """Sentiment (-3 to 3) and the most probable emotion of rows (n, dim), oldest first, n >= 1."""
        features, mask = last_rows(self._spec, rows)
        encoded = self._encoder.infer({"features": features[None], "mask": mask[None]})
        inputs = self._missing | {f"{self._spec.name}.{name}": values for name, values in encoded.items()}
        fused = self._fusion.infer(inputs)
        return float(fused["sentiment"][0]), EMOTIONS[int(fused["emotions"][0].argmax())]
