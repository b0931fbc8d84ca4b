"""What is fuzzed: every reader of foreign bytes, as a function of bytes.

A target returns whether its input was taken. A `MienError` is a refusal; anything else that is raised is a bug. What is
taken must keep its promises. The same targets serve the property tests beside this file and the coverage-guided run
(`make fuzz`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mien.clock import NS_PER_S
from mien.config import load_config
from mien.errors import MienError
from mien.messages import FeatureWindow, ModalitySpec
from mien.models.checkpoint import load_checkpoint
from mien.models.data.mmsa import read_mmsa
from mien.stream.bus import choices, clock_exchange, limits, preview, sound, wire
from mien.stream.bus.keyring import Keyring, parse_public
from mien.stream.inference.assembler import Assembler
from tests.windows import window_of

Target = Callable[[bytes], bool]
Frames = list[bytes]

NOW_NS = 1_700_000_000 * NS_PER_S
SPECS = {
    "vision": ModalitySpec("vision", 4, 10, 50),
    "audio": ModalitySpec("audio", 2, 50, 250),
    "text": ModalitySpec("text", 3, 0, 50, snapshot=True),
}
_SEPARATOR = b"\xfe\xff"


def join(frames: Iterable[bytes]) -> bytes:
    """Frames as one input."""
    return _SEPARATOR.join(frames)


def split(data: bytes) -> Frames:
    """One input as frames."""
    return data.split(_SEPARATOR)


def _names(frames: Frames) -> dict[str, Any]:
    """The names inside a message, if there are any: without the right topic nothing behind it would be reached."""
    if len(frames) != 3:
        return {}
    for decode, part in ((msgspec.msgpack.decode, frames[1][1:]), (msgspec.json.decode, frames[2])):
        with suppress(Exception):
            found = decode(part)
            if isinstance(found, dict):
                return found
    return {}


def _with_topic(data: bytes, kind: str, part: str = "") -> Frames:
    frames = split(data)
    names = _names(frames)
    with suppress(Exception):
        if frames[0] == b"":
            frames[0] = wire.topic(kind, names["session"], names[part] if part else "")
    return frames


def features(data: bytes) -> bool:
    """Features, into windows as inference makes them."""
    try:
        header, payload = wire.decode_feature_header(_with_topic(data, "features", "modality"))
        window = wire.features_of(header, payload)
    except MienError:
        return False
    rows, dim = window.values.shape
    assert rows <= wire.MAX_ROWS
    assert dim <= wire.MAX_DIM
    assert window.valid.shape == window.times_ns.shape == (rows,)
    assert np.isfinite(window.values).all()
    assert limits.NAME.fullmatch(window.session)
    wire.encode_features(window)
    moved = [window, window]
    for by_ns in (-5 * NS_PER_S, limits.MAX_TIME_NS):
        with suppress(MienError):
            moved.append(wire.features_of(header, payload, by_ns))
    _assemble(moved)
    return True


def _assemble(messages: Sequence[FeatureWindow]) -> None:
    assembler = Assembler(SPECS)
    for message in messages:
        assembler.push(message, NOW_NS)
        for t_ns in (NOW_NS, min(message.t_end_ns, NOW_NS)):
            made = window_of(assembler, t_ns)
            assert all(np.isfinite(made.features[name]).all() for name in made.features)
    assert len(assembler.drops) < 16
    assert sum(assembler.drops.values()) < 1 << 53


def _json(kind: str, decode: Callable[[Frames], Any], encode: Callable[[Any], Frames], part: str = "") -> Target:
    def target(data: bytes) -> bool:
        try:
            message = decode(_with_topic(data, kind, part))
        except MienError:
            return False
        assert limits.NAME.fullmatch(message.session)
        again = encode(message)
        assert decode(again) == message
        if kind == "prediction":
            _show(message)
        return True

    target.__doc__ = f"Messages of kind {kind}."
    return target


def _show(prediction: Any) -> None:
    from mien.cli._view import line
    from mien.stream.monitoring.summary import Summary

    assert line(prediction).isprintable()
    summary = Summary(warm_up=0)
    summary.add(prediction, NOW_NS)
    summary.to_dict()


def _refusing(decode: Callable[[Frames], object]) -> Target:
    def target(data: bytes) -> bool:
        try:
            decode(split(data))
        except MienError:
            return False
        return True

    target.__doc__ = decode.__doc__
    return target


def _choice(data: bytes) -> bool:
    """A choice sent during a session."""
    try:
        choice = choices.decode_choice(data)
    except MienError:
        return False
    assert limits.NAME.fullmatch(choice.session)
    assert choices.decode_choice(choices.encode_choice(choice)) == choice
    return True


def _file(read: Callable[[Path], object], suffix: str) -> Target:
    folder = tempfile.TemporaryDirectory(prefix="mien-fuzz-")  # removed when the process ends
    path = Path(folder.name) / f"input{suffix}"

    def target(data: bytes, _folder: object = folder) -> bool:
        path.write_bytes(data)
        try:
            read(path)
        except MienError as error:
            if "\n" in str(error):
                raise AssertionError("an error is one line") from error
            return False
        return True

    target.__doc__ = f"Files {suffix}."
    return target


def _read_recording(path: Path) -> None:
    from mien.stream.recording.reader import open_recording

    recording = open_recording(path)
    for entry in islice(recording.entries(), 100):
        for read in (entry.prediction, entry.status, entry.features, entry.preview, entry.sound):
            with suppress(MienError):
                read()


def _read_mmsa(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_mmsa(path, allow_pickle=True)


def _read_identity(path: Path) -> None:
    path.chmod(0o600)
    Keyring(path.parent).identity()


def _read_public_key(path: Path) -> None:
    parse_public(path.read_bytes().decode("latin-1"))


def _identity() -> Target:
    return _file(_read_identity, ".json")


TARGETS: dict[str, Target] = {
    "features": features,
    "prediction": _json("prediction", wire.decode_prediction, wire.encode_prediction),
    "status": _json("status", wire.decode_status, wire.encode_status, "worker"),
    "about": _json("about", wire.decode_about, wire.encode_about),
    "cue": _json("cue", wire.decode_cue, wire.encode_cue),
    "choice": _choice,
    "offer": _json("offer", choices.decode_offer, choices.encode_offer, "worker"),
    "preview": _refusing(preview.decode_preview),
    "edges": _refusing(preview.decode_edges),
    "sound": _refusing(sound.decode_sound),
    "clock": _refusing(clock_exchange.decode_answer),
    "config": _file(load_config, ".toml"),
    "checkpoint": _file(load_checkpoint, ".safetensors"),
    "recording": _file(_read_recording, ".mcap"),
    "mmsa": _file(_read_mmsa, ".pkl"),
    "key": _file(_read_public_key, ".txt"),
}
