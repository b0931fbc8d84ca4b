"""From windows to predictions, without repeated work.

Video changes thirty times a second, audio ten times, words once: a modality is encoded only when its window has
changed. Streams that are due at the same time share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from mien.engines.base import MAX_BATCH as GPU_BATCH
from mien.engines.base import Array
from mien.engines.cmmsf import OUTPUTS, encoder_network, fusion_network, whole_network
from mien.engines.rings import Look, Windows
from mien.engines.selection import IN_PLACE_OF, FallbackEngine, choose_engine, compile_together, open_engine
from mien.errors import CheckpointError, EngineError
from mien.messages import EMOTIONS, Bool, Float32, Int64, ModalitySpec
from mien.models.checkpoint import Checkpoint
from mien.windowing import last_rows

if TYPE_CHECKING:
    from mien.engines.gpu_engine import GpuEngine
    from mien.engines.gpu_windows import GpuWindows

MAX_BATCH = 32  # windows per call of a CPU engine; larger batches are split


# Called while a GPU computes, with a function that tells whether it is done.
Meanwhile = Callable[[Callable[[], bool]], object]


class Answer(NamedTuple):
    """The prediction for one window: a row of `Answers`, as Python numbers.

    Attributes:
        sentiment: -3 ... 3. emotions: probabilities, in the order of EMOTIONS. confidence: of the top emotion.
        shares: of each modality in the model's order, summing to 1, exactly 0 for a missing one; all 0 if nothing was
            observed.
        is_observed: whether there was any input to predict from.
    """

    sentiment: float
    emotions: list[float]
    confidence: float
    shares: list[float]
    is_observed: bool


class Answers(NamedTuple):
    """Predictions for B windows: as in `Answer`, with emotions (B, 7) and shares (B, M)."""

    sentiment: Float32
    emotions: Float32
    confidence: Float32
    shares: Float32
    is_observed: Bool

    def rows(self) -> Iterator[Answer]:
        return map(Answer, *(part.tolist() for part in self))


class Predictor:
    """CM-MSF, compiled, for any number of sessions.

    Args:
        checkpoint: the weights.
        engine: "auto", or a name that `mien engines` lists. precision: "fp32", "fp16" or "bf16".
        threads: CPU threads for one inference.
        cache: folder of compiled forms; default: in the user's mien cache folder.

    Attributes:
        specs: its modalities, by name.

    Raises:
        EngineError: no engine can run the checkpoint. CheckpointError: the weights cannot be used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: str = "auto",
        precision: str = "fp32",
        threads: int = 1,
        cache: Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.specs: dict[str, ModalitySpec] = {spec.name: spec for spec in checkpoint.specs}
        self._why = ""
        encoders = {name: encoder_network(checkpoint, spec) for name, spec in self.specs.items()}
        fusion = fusion_network(checkpoint)
        parts = (*encoders.values(), fusion)
        if engine == "auto":
            choice = choose_engine(whole_network(checkpoint), precision, threads, cache, parts)
            engine, precision, self._why = choice.engine, choice.precision, choice.reason
        compile_together(parts, engine, precision, threads, cache)
        self._encoders = {
            name: open_engine(network, engine, precision, threads, cache) for name, network in encoders.items()
        }
        self._fusion = open_engine(fusion, engine, precision, threads, cache)
        self._windows: Windows | None = None
        # Encodings in host memory, by modality: (places + 1, S, d), (places + 1, S), and whether anything was observed
        # (places + 1,). The last place is a window in which nothing was.
        self._hidden: dict[str, Float32] = {}
        self._observed: dict[str, Float32] = {}
        self._anything: dict[str, Bool] = {}
        self._gathered: dict[str, Float32] = {}
        self._gpu: GpuWindows | None = None
        self._lost_gpu = False

    @property
    def id(self) -> str:
        """Checkpoint and engine. Changes when an engine fails and is replaced."""
        return f"{self.checkpoint.id}/{'+'.join(dict.fromkeys(part.id for part in self._parts()))}"

    @property
    def reason(self) -> str:
        """Why this engine was chosen."""
        return self.trouble or self._why or "; ".join(dict.fromkeys(part.reason for part in self._parts()))

    @property
    def trouble(self) -> str | None:
        """Why the chosen engine was replaced; None if it was not."""
        causes = dict.fromkeys(part.reason for part in self._parts() if part.reason.startswith(IN_PLACE_OF))
        return "; ".join(causes) or None

    @property
    def on_gpu(self) -> bool:
        """Whether windows and encodings are kept in a GPU's memory."""
        return all(part.engine.on_gpu for part in self._parts())

    def predict_look(self, windows: Windows, look: Look, meanwhile: Meanwhile | None = None) -> Answers:
        """Predictions for the windows of the sessions of a process.

        Args:
            windows: always the same object. look: returned by it.
            meanwhile: called while a GPU computes; not called on a CPU.

        Raises:
            EngineError: no engine can run them any longer.
        """
        self.prepare(windows)
        if len(look.places) == 1 and self._gpu is None and not self._lost_gpu:
            return self._predict_one(windows, look)
        at = {
            name: np.where(look.present[:, column], look.places, windows.places)
            for column, name in enumerate(self.specs)
        }
        fused = self._predict_on_gpu(look, at, meanwhile)
        if fused is None and self._lost_gpu:
            self._lost_gpu = False
            windows.show_all()  # encodings on the GPU are lost
            look = look._replace(changed=look.present)
        if fused is None:
            self._encode_on_host(windows, look)
        is_observed: Bool = np.logical_or.reduce([self._anything[name][places] for name, places in at.items()])
        if fused is None:
            fused = self._fuse_on_host(at, np.flatnonzero(is_observed))
        return Answers(**fused, is_observed=is_observed)

    def _predict_one(self, windows: Windows, look: Look) -> Answers:
        """`predict_look` for one session on a CPU: views, where index arrays would cost more than they save."""
        place, inputs, is_observed = int(look.places[0]), dict[str, Array](), False
        for name, track, there, new in zip(
            self.specs, windows.tracks.values(), look.present[0].tolist(), look.changed[0].tolist(), strict=True
        ):
            if new:
                self._keep(name, look.places, *track.gather(look.places, look.ends_ns[name], self._gathered.get(name)))
            at = place if there else windows.places
            inputs[f"{name}.hidden"] = self._hidden[name][at : at + 1]
            inputs[f"{name}.observed"] = self._observed[name][at : at + 1]
            is_observed |= bool(self._anything[name][at])
        fused = self._fusion.infer(inputs) if is_observed else self._nothing(1)
        return Answers(**fused, is_observed=np.array([is_observed]))

    def encode_ahead(self, windows: Windows, place: int, t_end_ns: int, updated: Collection[str]) -> None:
        """Encode a session's changed windows before its prediction is due, so that the prediction need not.

        Args:
            windows: always the same object, as for `predict_look`. t_end_ns: of the expected prediction.
            updated: the modalities with new rows.

        Raises:
            EngineError: no engine can run them any longer.
        """
        self.prepare(windows)
        if self._gpu is not None or self._lost_gpu:
            return
        places = np.array([place])
        for name, end_ns in windows.look_ahead(place, t_end_ns, updated).items():
            self._keep(name, places, *windows.tracks[name].gather(places, np.array([end_ns]), self._gathered.get(name)))

    def _parts(self) -> list[FallbackEngine]:
        return [*self._encoders.values(), self._fusion]

    def prepare(self, windows: Windows) -> None:
        """Warm up for these windows, which takes seconds on a GPU; `predict_look` does it if needed."""
        if self._windows is windows:
            return
        self._windows = windows
        config = self.checkpoint.config
        for name, spec in self.specs.items():
            self._hidden[name] = np.zeros((windows.places + 1, config.slots, config.dim), np.float32)
            self._observed[name] = np.zeros((windows.places + 1, config.slots), np.float32)
            self._anything[name] = np.zeros(windows.places + 1, bool)
            self._gathered[name] = np.empty((MAX_BATCH, spec.steps, spec.dim), np.float32)
            nothing = np.zeros((1, spec.steps, spec.dim), np.float32), np.zeros((1, spec.steps), np.float32)
            self._keep(name, np.array([windows.places]), *nothing)
        if not self.on_gpu:
            return
        from mien.engines.gpu_windows import GpuWindows

        encoders = {name: cast("GpuEngine", part.engine) for name, part in self._encoders.items()}
        try:
            self._gpu = GpuWindows(windows, encoders, cast("GpuEngine", self._fusion.engine), config.slots, config.dim)
            self._gpu.warm_up()
        except RuntimeError as error:
            self._leave_gpu(EngineError(f"no room for windows on the GPU: {error}"))
        except EngineError as error:
            self._leave_gpu(error)

    def _predict_on_gpu(
        self, look: Look, at: Mapping[str, Int64], meanwhile: Meanwhile | None
    ) -> dict[str, Array] | None:
        """Outputs of the fusion; None if there is no GPU, or it was lost."""
        if self._gpu is None:
            return None
        parts: list[list[Array]] = []
        try:
            for first in range(0, len(look.places), GPU_BATCH):
                part = slice(first, first + GPU_BATCH)
                ends_ns = {name: ends[part] for name, ends in look.ends_ns.items()}
                some = look._replace(
                    places=look.places[part], ends_ns=ends_ns, present=look.present[part], changed=look.changed[part]
                )
                self._gpu.launch(some, self._anything, {name: places[part] for name, places in at.items()})
                if meanwhile is not None:
                    meanwhile(self._gpu.is_done)
                parts.append([output[: len(some.places)] for output in self._gpu.outputs()])
        except EngineError as error:
            self._leave_gpu(error)
            return None
        return {name: np.concatenate(pieces) for name, pieces in zip(OUTPUTS, zip(*parts, strict=True), strict=True)}

    def _leave_gpu(self, error: EngineError) -> None:
        """Fall back to the next engine, with windows in host memory."""
        self._gpu, self._lost_gpu = None, True
        for track in self._windows.tracks.values() if self._windows is not None else ():
            track.written = None
        for part in self._parts():
            part.give_up(error)

    def _encode_on_host(self, windows: Windows, look: Look) -> None:
        """Encode what has changed."""
        for column, (name, track) in enumerate(windows.tracks.items()):
            changed = np.flatnonzero(look.changed[:, column])
            for first in range(0, len(changed), MAX_BATCH):
                part = changed[first : first + MAX_BATCH]
                places = look.places[part]
                features, mask = track.gather(places, look.ends_ns[name][part], self._gathered.get(name))
                self._keep(name, places, features, mask)

    def _keep(self, name: str, places: Int64, features: Float32, mask: Float32) -> None:
        result = self._encoders[name].infer({"features": features, "mask": mask})
        self._hidden[name][places] = result["hidden"]
        self._observed[name][places] = result["observed"]
        self._anything[name][places] = mask.any(1)

    def _fuse_on_host(self, at: Mapping[str, Int64], observed: Int64) -> dict[str, Array]:
        """Outputs of the fusion for batch items with any observation, zeros for the others."""
        fused = self._nothing(len(next(iter(at.values()))))
        for first in range(0, len(observed), MAX_BATCH):
            part = observed[first : first + MAX_BATCH]
            inputs: dict[str, Array] = {}
            for name, places in at.items():
                inputs[f"{name}.hidden"] = self._hidden[name][places[part]]
                inputs[f"{name}.observed"] = self._observed[name][places[part]]
            for name, values in self._fusion.infer(inputs).items():
                fused[name][part] = values
        return fused

    def _nothing(self, count: int) -> dict[str, Array]:
        """Outputs for windows in which nothing is observed."""
        shapes = ((), (len(EMOTIONS),), (), (len(self.specs),))
        return {name: np.zeros((count, *shape), np.float32) for name, shape in zip(OUTPUTS, shapes, strict=True)}


# Sentiment (-3 to 3) and the most probable emotion of rows (n, dim), oldest first, n >= 1.
SnapshotReader = Callable[[Float32], tuple[float, str]]


def snapshot_reader(checkpoint: Checkpoint, modality: str, engine: str = "onnx") -> SnapshotReader:
    """Predicts from one snapshot modality (rows without timestamps, such as words) alone.

    Args:
        checkpoint: the weights. modality: the one to read. engine: as for `open_engine`.

    Raises:
        CheckpointError: the checkpoint lacks that modality. EngineError: no engine can run it.
    """
    spec = next((spec for spec in checkpoint.specs if spec.name == modality), None)
    if spec is None or not spec.snapshot:
        raise CheckpointError(f"{checkpoint.path} reads no {modality}")
    encoder = open_engine(encoder_network(checkpoint, spec), engine)
    fusion = open_engine(fusion_network(checkpoint), engine)
    missing = {name: np.zeros_like(example) for name, example in fusion.network.example.items()}

    def read(rows: Float32) -> tuple[float, str]:
        features, mask = last_rows(spec, rows)
        encoded = encoder.infer({"features": features[None], "mask": mask[None]})
        fused = fusion.infer(missing | {f"{modality}.{name}": values for name, values in encoded.items()})
        return float(fused["sentiment"][0]), EMOTIONS[int(fused["emotions"][0].argmax())]

    return read
