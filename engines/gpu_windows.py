"""All sessions' windows and encodings in GPU memory: only new rows are copied, once per batch.

Encoders run side by side, each on its stream, between the copy and the fusion, which share one; the host synchronises
once, for the results, and is free until then.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from mien.engines.base import MAX_BATCH, Array, padded
from mien.engines.gpu_engine import GpuBinding, GpuEngine, after, on_stream
from mien.engines.ring import Ring
from mien.engines.rings import Look, Windows
from mien.engines.snapshots import Snapshots
from mien.errors import EngineError
from mien.messages import Bool, Float32, Int64

_TORCH_TYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.int64): torch.int64}
_ALIGNED = 16  # bytes: alignment that suits every tensor type


class GpuWindows:
    """The sessions' windows in GPU memory.

    Args:
        windows: in host memory. encoders: by modality. fusion: of their outputs.
        slots, dim: of an encoding.

    Raises:
        RuntimeError: out of memory.
    """

    def __init__(
        self, windows: Windows, encoders: Mapping[str, GpuEngine], fusion: GpuEngine, slots: int, dim: int
    ) -> None:
        self._windows, self._encoders, self._fusion = windows, encoders, fusion
        self._parcel = _Parcel(fusion.device)
        nothing = windows.places  # index of a window in which nothing was observed
        self._rows: dict[str, torch.Tensor] = {}
        self._hidden: dict[str, torch.Tensor] = {}
        self._observed: dict[str, torch.Tensor] = {}
        for name, track in windows.tracks.items():
            kept = track.means if isinstance(track, Ring) else track.features
            # Behind all rows: the rows for last slots that are only partly visible.
            self._rows[name] = torch.zeros(kept[..., 0].size + MAX_BATCH, track.spec.dim, device=fusion.device)
            self._rows[name][: kept[..., 0].size] = torch.from_numpy(kept.reshape(-1, track.spec.dim))
            self._hidden[name] = torch.zeros(nothing + 1, slots, dim, device=fusion.device)
            self._observed[name] = torch.zeros(nothing + 1, slots, device=fusion.device)
            track.written = []
        if fusion.stream is not None:
            torch.cuda.synchronize()
        with on_stream(fusion.stream), torch.no_grad():
            for name, encoder in encoders.items():
                binding = encoder.binding_for(1)
                for tensor in binding.inputs:
                    tensor.zero_()
                hidden, observed = binding.run()
                self._hidden[name][nothing], self._observed[name][nothing] = hidden[0], observed[0]

    def warm_up(self) -> None:
        """Allocate memory and capture CUDA graphs for every possible batch size.

        Raises:
            EngineError: the GPU is out of memory.
        """
        most = min(self._windows.places, MAX_BATCH)
        try:
            for engine in (*self._encoders.values(), self._fusion):
                for power in range((most - 1).bit_length() + 1):
                    with on_stream(self._fusion.stream):
                        engine.binding_for(1 << power).warm_up()
        except RuntimeError as error:
            raise EngineError(f"{self._fusion.id} failed: {error}") from error

    def launch(self, look: Look, observed: Mapping[str, Bool], at: Mapping[str, Int64]) -> None:
        """Begin predictions for sessions. One batch at a time: `outputs` returns them.

        Args:
            look: of at most `MAX_BATCH` sessions. observed: per modality by place, whether its window holds anything;
                updated for what is encoded.
            at: per modality (B,), the places of encodings: the last one for a missing modality.

        Raises:
            EngineError: the GPU is out of memory, or lost.
        """
        try:
            with on_stream(self._fusion.stream), torch.no_grad():
                counts = self._send(look, observed, at)
                for name, rows in counts.items():
                    with after(self._fusion.stream, self._encoders[name].stream):
                        self._encode(name, rows)
                for name in counts:
                    after(self._encoders[name].stream, self._fusion.stream)
                self._running = self._fuse(at)
        except RuntimeError as error:
            raise EngineError(f"{self._fusion.id} failed: {error}") from error

    def is_done(self) -> bool:
        """Whether `outputs` returns at once."""
        try:
            return self._running.is_fetched
        except RuntimeError:  # a lost GPU: `outputs` says so
            return True

    def outputs(self) -> list[Array]:
        """Outputs of the fusion for the batch that was launched, with the rows of its padding; waits for them.

        Raises:
            EngineError: the GPU is lost.
        """
        try:
            return self._running.fetched()
        except RuntimeError as error:
            raise EngineError(f"{self._fusion.id} failed: {error}") from error

    def _fuse(self, at: Mapping[str, Int64]) -> GpuBinding:
        binding = self._fusion.binding_for(len(padded(next(iter(at.values())))))
        for index, name in enumerate(at):
            there = self._parcel[f"{name}.at"]
            _gather(self._hidden[name], there, binding.inputs[2 * index])
            _gather(self._observed[name], there, binding.inputs[2 * index + 1])
        binding.fetch(binding.run())
        self._fusion.uses_graph = binding.graph is not None
        return binding

    def _send(self, look: Look, observed: Mapping[str, Bool], at: Mapping[str, Int64]) -> dict[str, int]:
        """Send new rows and the positions of windows. Returns how many windows of each modality are to be encoded."""
        parcel, counts = self._parcel, {}
        for column, (name, track) in enumerate(self._windows.tracks.items()):
            self._pack_rows(name, track)
            part = np.flatnonzero(look.changed[:, column])
            if len(part):
                counts[name] = len(part)
                places = look.places[part]
                mask = self._pack_windows(name, track, places, look.ends_ns[name][part])
                observed[name][places] = mask.any(1)
        for name, places in at.items():
            parcel.add(f"{name}.at", padded(places))
        parcel.send()
        for name in self._rows:
            if f"{name}.written" in parcel:
                self._rows[name].index_copy_(0, parcel[f"{name}.written"], parcel[f"{name}.values"])
        return counts

    def _pack_rows(self, name: str, track: Ring | Snapshots) -> None:
        """Add the rows written since the last batch to the parcel."""
        if not track.written:
            return
        written = np.unique(np.array(track.written, np.int64))
        track.written.clear()
        if isinstance(track, Ring):
            values = track.means.reshape(-1, track.spec.dim)[written]
        else:
            values = track.features[written].reshape(-1, track.spec.dim)
            written = (written[:, None] * track.spec.steps + np.arange(track.spec.steps)).reshape(-1)
        self._parcel.add(f"{name}.written", written)
        self._parcel.add(f"{name}.values", values)

    def _pack_windows(self, name: str, track: Ring | Snapshots, places: Int64, ends_ns: Int64) -> Float32:
        """Add the windows' positions to the parcel. Returns their mask."""
        if isinstance(track, Ring):
            flat, mask, partial = track.find(places, ends_ns)
            behind = len(self._rows[name]) - MAX_BATCH
            for number, index in enumerate(partial):
                flat[index, -1] = behind + number
            if partial:
                self._parcel.add(f"{name}.partial", np.stack(list(partial.values())))
        else:
            flat, mask = places[:, None] * track.spec.steps + np.arange(track.spec.steps), track.mask[places]
        self._parcel.add(f"{name}.flat", padded(flat).reshape(-1))
        self._parcel.add(f"{name}.mask", padded(mask))
        self._parcel.add(f"{name}.places", places)
        return mask

    def _encode(self, name: str, rows: int) -> None:
        parcel, kept = self._parcel, self._rows[name]
        if f"{name}.partial" in parcel:
            partial = parcel[f"{name}.partial"]
            kept[len(kept) - MAX_BATCH :][: len(partial)] = partial
        mask = parcel[f"{name}.mask"]
        binding = self._encoders[name].binding_for(len(mask))
        features = kept.index_select(0, parcel[f"{name}.flat"]).view(binding.inputs[0].shape)
        torch.mul(features, mask[..., None], out=binding.inputs[0])
        binding.inputs[1].copy_(mask)
        hidden, observed = binding.run()
        places = parcel[f"{name}.places"]
        self._hidden[name].index_copy_(0, places, hidden[:rows].float())
        self._observed[name].index_copy_(0, places, observed[:rows].float())


def _gather(source: torch.Tensor, rows: torch.Tensor, to: torch.Tensor) -> None:
    if to.dtype == source.dtype:
        torch.index_select(source, 0, rows, out=to)
    else:  # TensorRT may hold its inputs in half precision
        to.copy_(source.index_select(0, rows))


class _Parcel:
    """Arrays of any dtype in one pinned buffer, sent to the GPU in one copy."""

    def __init__(self, device: str) -> None:
        self._device, self._arrays = device, dict[str, Array]()
        self._sent: dict[str, torch.Tensor] = {}
        self._make(1 << 20)

    def __contains__(self, name: str) -> bool:
        return name in self._sent

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._sent[name]

    def add(self, name: str, array: Array) -> None:
        self._arrays[name] = array

    def send(self) -> None:
        """Copy everything added, on the current stream; overwrites the previous copy."""
        places, size = [], 0
        for array in self._arrays.values():
            places.append(size)
            size += -(-array.nbytes // _ALIGNED) * _ALIGNED
        if size > len(self._host):
            self._make(2 * size)
        for begin, array in zip(places, self._arrays.values(), strict=True):
            to = self._host_array[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(to, array)
        self._there[:size].copy_(self._host[:size], non_blocking=True)
        self._sent = {
            name: self._there[begin : begin + array.nbytes].view(_TORCH_TYPES[array.dtype]).view(array.shape)
            for begin, (name, array) in zip(places, self._arrays.items(), strict=True)
        }
        self._arrays = {}

    def _make(self, size: int) -> None:
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=self._device == "cuda")
        self._host_array = self._host.numpy()
        self._there = torch.empty(size, dtype=torch.uint8, device=self._device)
