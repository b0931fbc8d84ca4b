"""Preview messages: the frame that was analysed, small, with the landmarks found in that very frame."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from mien.errors import WireError
from mien.messages import Float32
from mien.stream.bus.limits import MAX_TIME_NS, NAME
from mien.stream.bus.wire import MAX_HEADER_BYTES, VERSION_BYTE, Frames, open_frames, topic

MAX_JPEG_BYTES = 512 << 10
MAX_LANDMARKS = 4096

MAX_FACES = 8
_NO_FACES = np.zeros((0, 4), np.float32)

Edges = npt.NDArray[np.uint16]


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """One frame, as it was analysed.

    Attributes:
        run, seq: of the video worker; `seq` counts previews of one kind, without gaps.
        t_ns: capture time of the frame, that of its row in the features.
        features_seq: `seq` of the features message that was made from it.
        width, height: of the frame as captured, pixels.
        landmarks: shape (n, 2), float32, x and y as fractions of width and height; n is 0 without a face.
        faces: shape (n, 4), float32, left, top, right and bottom of each face in view, likewise; from left to right.
        chosen: whether the face that is followed was chosen.
        jpeg: the frame, at most 480 pixels long; empty where only landmarks were asked for or allowed.
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


class _Header(msgspec.Struct, frozen=True, omit_defaults=True):
    session: str
    run: int
    seq: int
    t_ns: int
    features_seq: int
    width: int
    height: int
    landmarks: bytes
    faces: bytes = b""
    chosen: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Header).decode


def encode_preview(preview: Preview, kind: str) -> Frames:
    """A preview message; `kind` is "picture" or "mesh"."""
    header = _Header(
        session=preview.session,
        run=preview.run,
        seq=preview.seq,
        t_ns=preview.t_ns,
        features_seq=preview.features_seq,
        width=preview.width,
        height=preview.height,
        landmarks=np.ascontiguousarray(preview.landmarks, "<f4").tobytes(),
        faces=np.ascontiguousarray(preview.faces, "<f4").tobytes(),
        chosen=preview.chosen,
    )
    return [topic("preview", preview.session, kind), VERSION_BYTE + _encode(header), preview.jpeg]


def decode_preview(frames: Sequence[bytes]) -> Preview:
    """The preview of a message.

    Raises:
        WireError: any deviation from the protocol.
    """
    header_bytes, jpeg = open_frames(frames)
    if len(header_bytes) > MAX_HEADER_BYTES:
        raise WireError("oversized: header")
    try:
        header = _decode(header_bytes)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise WireError(f"malformed: header: {error}") from None
    if not NAME.fullmatch(header.session) or min(header.run, header.seq, header.features_seq) < 0:
        raise WireError("malformed: session, run or seq")
    if not 0 <= header.t_ns <= MAX_TIME_NS:
        raise WireError("time: out of range")
    if not (1 <= header.width <= 1 << 15 and 1 <= header.height <= 1 << 15) or len(jpeg) > MAX_JPEG_BYTES:
        raise WireError("oversized: picture")
    if len(header.landmarks) % 8 or len(header.landmarks) > MAX_LANDMARKS * 8:
        raise WireError("truncated: landmarks are pairs of float32")
    landmarks = np.frombuffer(header.landmarks, "<f4").reshape(-1, 2)
    if len(header.faces) % 16 or len(header.faces) > MAX_FACES * 16:
        raise WireError("truncated: faces are four float32 each")
    faces = np.frombuffer(header.faces, "<f4").reshape(-1, 4)
    if not (np.isfinite(landmarks).all() and np.isfinite(faces).all()):
        raise WireError("nonfinite: a landmark or face")
    return Preview(
        session=header.session,
        run=header.run,
        seq=header.seq,
        t_ns=header.t_ns,
        features_seq=header.features_seq,
        width=header.width,
        height=header.height,
        landmarks=landmarks,
        jpeg=jpeg,
        faces=faces,
        chosen=header.chosen,
    )


def decode_edges(frames: Sequence[bytes]) -> Edges:
    """The mesh's edges, shape (n, 2): which landmarks a line joins. Raises WireError."""
    _, payload = open_frames(frames)
    if len(payload) % 4 or len(payload) > 64 << 10:
        raise WireError("truncated: edges are pairs of uint16")
    return np.frombuffer(payload, "<u2").reshape(-1, 2)
