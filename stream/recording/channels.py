"""The format of a recording: MCAP channels of JSON messages, each with a schema, for Foxglove and any MCAP reader.

    /mien/about         mien.About, as on the wire
    /mien/features/M    mien.Features: a features message, its numbers as base64 of little-endian float32
    /mien/prediction    mien.Prediction, as on the wire
    /mien/status/W      mien.Status, as on the wire
    /mien/transcript    foxglove.Log: words as they are committed
    /mien/video         foxglove.CompressedImage: only on request
    /mien/mesh          mien.Mesh: once, with the pictures: the edges between their landmarks
    /mien/audio         foxglove.RawAudio: only on request

Log times are session times of arrival at the recorder; publish times are those of the evidence. The metadata record
`mien` holds the format version; the attachment `session.json` is a copy of /mien/about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from mien.clock import NS_PER_S
from mien.messages import About, Float32, Prediction, Status
from mien.stream.bus.preview import Preview
from mien.stream.bus.sound import Sound
from mien.stream.bus.wire import VERSION_BYTE, FeatureHeader, Frames, decode_feature_header, topic

PROFILE = "mien"
METADATA = "mien"
FORMAT = 1
ATTACHMENT = "session.json"
PREFIX = "/mien/"

ABOUT, PREDICTION, TRANSCRIPT, VIDEO, MESH, AUDIO = (
    PREFIX + name for name in ("about", "prediction", "transcript", "video", "mesh", "audio")
)
FEATURES, STATUS = PREFIX + "features/", PREFIX + "status/"

_encode = msgspec.json.Encoder().encode
_encode_header = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.json.Decoder(FeatureHeader).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode

_TIME = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer", "minimum": 0}, "nsec": {"type": "integer", "minimum": 0}},
}
_BASE64 = {"type": "string", "contentEncoding": "base64"}


def record_features(frames: Sequence[bytes]) -> tuple[FeatureHeader, bytes]:
    """A wire features message in its recorded form: the fields of its header, and its payload as `values`.

    Lossless: see `features_frames`.

    Raises:
        WireError: it violates the protocol.
    """
    header, payload = decode_feature_header(frames)
    return header, _encode(header)[:-1] + b"," + _encode({"values": payload})[1:]


def features_frames(data: bytes) -> tuple[FeatureHeader, Frames]:
    """A recorded features message in its wire form.

    Raises:
        msgspec.MsgspecError, KeyError: it is not such a record.
    """
    header, payload = _decode_header(data), msgspec.json.decode(_decode_raw(data)["values"], type=bytes)
    name = topic("features", header.session, header.modality)
    return header, [name, VERSION_BYTE + _encode_header(header), payload]


def log_entry(t_ns: int, text: str) -> bytes:
    """A foxglove.Log message of level info."""
    return _encode({"timestamp": _time(t_ns), "level": 2, "message": text, "name": "transcript", "file": "", "line": 0})


def image_record(preview: Preview) -> bytes:
    """A preview's picture as foxglove.CompressedImage, with mien's own fields added."""
    fields = msgspec.structs.asdict(preview)
    del fields["faces"], fields["chosen"]  # only needed by the page
    image = {"timestamp": _time(fields.pop("t_ns")), "frame_id": "camera", "data": fields.pop("jpeg"), "format": "jpeg"}
    return _encode(image | fields | {"landmarks": np.ascontiguousarray(preview.landmarks, "<f4").tobytes()})


def preview_of(data: bytes) -> Preview:
    """The preview of a recorded picture."""
    fields = _decode_fields(data)
    fields |= {"t_ns": _time_ns(fields), "jpeg": fields["data"]}
    return msgspec.convert(fields, Preview, dec_hook=_landmarks)


def sound_record(sound: Sound) -> bytes:
    """A chunk of audio as foxglove.RawAudio, with mien's own fields added."""
    fields = msgspec.structs.asdict(sound)
    audio = {"timestamp": _time(fields.pop("t_start_ns")), "data": fields.pop("pcm"), "format": "pcm-s16"}
    return _encode(audio | {"sample_rate": fields.pop("rate_hz"), "number_of_channels": 1} | fields)


def sound_of(data: bytes) -> Sound:
    """The recorded chunk of audio."""
    fields = _decode_fields(data)
    fields |= {"t_start_ns": _time_ns(fields), "rate_hz": fields["sample_rate"], "pcm": fields["data"]}
    return msgspec.convert(fields, Sound)


def schema_of(name: str) -> tuple[str, bytes]:
    """Name and JSON Schema of a channel's messages."""
    if name.startswith(FEATURES):
        schema = _schema(FeatureHeader)
        schema["properties"]["values"] = _BASE64 | {"description": "rows * dim float32, little-endian, row-major"}
        return "mien.Features", _encode(schema | {"required": [*schema["required"], "values"]})
    known: dict[str, type[msgspec.Struct]] = {PREDICTION: Prediction, ABOUT: About}
    kind = Status if name.startswith(STATUS) else known.get(name)
    if kind is not None:
        return f"mien.{kind.__name__}", _encode(_schema(kind))
    if name == MESH:
        return "mien.Mesh", _encode({"title": "mien.Mesh", "type": "object", "properties": {"edges": _BASE64}})
    title, properties = _FOXGLOVE[name]
    return title, _encode({"title": title, "type": "object", "properties": {"timestamp": _TIME, **properties}})


_FOXGLOVE: dict[str, tuple[str, dict[str, Any]]] = {
    TRANSCRIPT: (
        "foxglove.Log",
        {
            "level": {
                "title": "foxglove.LogLevel",
                "oneOf": [
                    {"title": level, "const": number}
                    for number, level in enumerate(("UNKNOWN", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL"))
                ],
            },
            "message": {"type": "string"},
            "name": {"type": "string"},
            "file": {"type": "string"},
            "line": {"type": "integer", "minimum": 0},
        },
    ),
    VIDEO: (
        "foxglove.CompressedImage",
        {"frame_id": {"type": "string"}, "data": _BASE64, "format": {"type": "string"}, "landmarks": _BASE64},
    ),
    AUDIO: (
        "foxglove.RawAudio",
        {
            "data": _BASE64,
            "format": {"type": "string"},
            "sample_rate": {"type": "integer", "minimum": 0},
            "number_of_channels": {"type": "integer", "minimum": 0},
        },
    ),
}


def _schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A schema with an object as its root, as Foxglove requires, instead of a reference to one."""
    (reference,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    root = components.pop(reference["$ref"].rpartition("/")[2])
    return {**root, "$defs": components} if components else root


def _time(t_ns: int) -> dict[str, int]:
    return {"sec": t_ns // NS_PER_S, "nsec": t_ns % NS_PER_S}


def _time_ns(fields: dict[str, Any]) -> int:
    time = msgspec.convert(fields["timestamp"], dict[str, int])
    return time["sec"] * NS_PER_S + time["nsec"]


def _landmarks(_: type, text: str) -> Float32:
    return np.frombuffer(msgspec.convert(text, bytes), "<f4").reshape(-1, 2)
