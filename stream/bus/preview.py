"""Preview messages: the analysed frame, scaled down, with the landmarks found in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mien.errors import WireError
from mien.messages import Float32
from mien.stream.bus.limits import MAX_TIME_NS, NAME
from mien.stream.bus.wire import VERSION_BYTE, Frames, open_frames, parse, topic

MAX_JPEG_BYTES = 512 << 10
MAX_LANDMARKS = 4096

MAX_FACES = 8
_NO_FACES = np.zeros((0, 4), np.float32)

Edges = npt.NDArray[np.uint16]


class Preview(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One analysed frame. The message's header is this struct without `jpeg`, which is the payload.

    Attributes:
        run, seq: of the video worker; `seq` counts previews of one kind, without gaps.
        t_ns: capture time of the frame, that of its row in the features.
        features_seq: `seq` of the features message made from it.
        width, height: of the frame as captured, pixels.
        landmarks: shape (n, 2), float32, x and y as fractions of width and height; n is 0 without a face.
        faces: shape (n, 4), float32, left, top, right and bottom of each face in view, likewise; from left to right.
        chosen: whether the followed face was chosen by the user.
        jpeg: the frame, at most 480 pixels long; empty if only landmarks were requested or allowed.
    """

    session: str
    run: int
    seq: int
    t_ns: int
    features_seq: int
    width: int
    height: int
    landmarks: Float32
    jpeg: bytes = b""
    faces: Float32 = _NO_FACES
    chosen: bool = False


def _floats(_: type, data: Any) -> Float32:
    """A header's array: little-endian float32, not reshaped yet."""
    return np.frombuffer(data, "<f4")


def _float_bytes(array: Float32) -> bytes:
    return np.ascontiguousarray(array, "<f4").tobytes()


_encode = msgspec.msgpack.Encoder(enc_hook=_float_bytes).encode
_decode = msgspec.msgpack.Decoder(Preview, dec_hook=_floats).decode


def encode_preview(preview: Preview, kind: str) -> Frames:
    """A preview message; `kind` is "picture" or "mesh"."""
    # Empty fields are left out of the header: they are the defaults.
    faces = preview.faces if len(preview.faces) else _NO_FACES
    header = msgspec.structs.replace(preview, jpeg=b"", faces=faces)
    return [topic("preview", preview.session, kind), VERSION_BYTE + _encode(header), preview.jpeg]


def decode_preview(frames: Sequence[bytes]) -> Preview:
    """The preview of a message.

    Raises:
        WireError: any deviation from the protocol.
    """
    header, jpeg = open_frames(frames)
    preview = parse(_decode, header)
    if not NAME.fullmatch(preview.session) or min(preview.run, preview.seq, preview.features_seq) < 0:
        raise WireError("malformed: session, run or seq")
    if not 0 <= preview.t_ns <= MAX_TIME_NS:
        raise WireError("time: out of range")
    if not (1 <= preview.width <= 1 << 15 and 1 <= preview.height <= 1 << 15) or len(jpeg) > MAX_JPEG_BYTES:
        raise WireError("oversized: picture")
    if preview.landmarks.size % 2 or preview.landmarks.size > MAX_LANDMARKS * 2:
        raise WireError("truncated: landmarks are pairs of float32")
    if preview.faces.size % 4 or preview.faces.size > MAX_FACES * 4:
        raise WireError("truncated: faces are four float32 each")
    if not (np.isfinite(preview.landmarks).all() and np.isfinite(preview.faces).all()):
        raise WireError("nonfinite: a landmark or face")
    return msgspec.structs.replace(
        preview, landmarks=preview.landmarks.reshape(-1, 2), faces=preview.faces.reshape(-1, 4), jpeg=jpeg
    )


def decode_edges(frames: Sequence[bytes]) -> Edges:
    """The mesh's edges, shape (n, 2): pairs of landmarks to connect. Raises WireError."""
    _, payload = open_frames(frames)
    if len(payload) % 4 or len(payload) > 64 << 10:
        raise WireError("truncated: edges are pairs of uint16")
    return np.frombuffer(payload, "<u2").reshape(-1, 2)
