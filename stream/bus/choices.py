"""Choices that a user makes while a session runs: a source, the face to follow, when to measure a person at rest.

A worker publishes its options (`offer/<session>/<worker>`) to subscribers that ask for them by name. A choice goes
the other way, as one frame sent by an XSUB socket. The bytes are in `stream/protocol.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mien.errors import WireError
from mien.stream.bus.limits import MAX_COUNT, MAX_TIME_NS, NAME
from mien.stream.bus.wire import VERSION, VERSION_BYTE, Frames, open_frames, parse, topic

MAX_CHOICE_BYTES = 512
MAX_SOURCES = 64
MAX_FACES = 8
_MAX_TEXT = 512
SHORTEST_REST_S, LONGEST_REST_S = 5.0, 300.0
_MAX_MEAN, _MOST_IN_MEAN = 4096, 1e6

Name = Annotated[str, Meta(pattern=rf"^{NAME.pattern}\Z")]
Text = Annotated[str, Meta(max_length=_MAX_TEXT)]
Seconds = Annotated[float, Meta(ge=0.0, le=LONGEST_REST_S)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Edge = Annotated[float, Meta(ge=-2.0, le=3.0)]  # of a face, which may reach beyond the picture
Place = tuple[Fraction, Fraction]


class SourceOffer(msgspec.Struct, frozen=True):
    """A device, file or address that a worker can open. `id` identifies it in a choice; `name` is for display."""

    id: Name
    name: Text


class RestOffer(msgspec.Struct, frozen=True):
    """A person at rest, as measured by a worker: the `mean` of rows of `extractor` over that many `seconds`."""

    extractor: Text
    seconds: Seconds
    mean: Annotated[tuple[Annotated[float, Meta(ge=-_MOST_IN_MEAN, le=_MOST_IN_MEAN)], ...], Meta(max_length=_MAX_MEAN)]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What can be chosen at a worker, and the outcome of the last choice.

    Attributes:
        run: of the worker. t_ns: session time of this state.
        sources: the options, including the current one; `used` is its id.
        faces: left, top, right and bottom of each face in view as fractions of the picture, from left to right.
        following: "largest" or "chosen"; empty if faces cannot be chosen.
        left_s: remaining seconds of a measurement of a person at rest; None if there is none.
        rest: the measurement, in the offer that answers a choice asking for it.
        answers: `nonce` of the choice that this answers; empty if it answers none.
        refused: why that choice was rejected; empty if it was accepted.
    """

    session: Name
    worker: Name
    run: Annotated[int, Meta(ge=0, le=MAX_COUNT)]
    t_ns: Annotated[int, Meta(ge=0, le=MAX_TIME_NS)]
    sources: Annotated[tuple[SourceOffer, ...], Meta(max_length=MAX_SOURCES)] = ()
    used: Text = ""
    faces: Annotated[tuple[tuple[Edge, Edge, Edge, Edge], ...], Meta(max_length=MAX_FACES)] = ()
    following: Literal["", "largest", "chosen"] = ""
    left_s: Seconds | None = None
    rest: RestOffer | None = None
    answers: Text = ""
    refused: Text = ""


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A choice of a source, a face, or what to do about a measurement.

    Attributes:
        version: of the protocol.
        nonce: any string; the answering offer carries it.
        source: `id` of a source. face: x and y in the face to follow, as fractions of the picture, or "largest".
        rest: seconds for which to measure a person at rest; 0 asks for the result, once they have passed.
    """

    session: Name
    worker: Name
    nonce: Name
    version: int = VERSION
    source: Name | None = None
    face: Place | Literal["largest"] | None = None
    rest: float | None = None


_encode = msgspec.json.Encoder().encode
_decode_choice = msgspec.json.Decoder(Choice).decode
_decode_offer = msgspec.json.Decoder(Offer).decode


def encode_choice(choice: Choice) -> bytes:
    """A choice as a single frame."""
    # Always with its version: it begins with a brace, and the tag byte of other messages would make it a subscription.
    return _encode(msgspec.to_builtins(choice) | {"version": choice.version})


def decode_choice(frame: bytes) -> Choice:
    """The choice in a frame.

    Raises:
        WireError: any deviation from the protocol.
    """
    choice = parse(_decode_choice, frame, MAX_CHOICE_BYTES)
    if choice.version != VERSION:
        raise WireError(f"version: {choice.version}, this mien speaks {VERSION}")
    if sum(each is not None for each in (choice.source, choice.face, choice.rest)) != 1:
        raise WireError("malformed: a choice is of a source, of a face, or of a person at rest")
    if choice.rest is not None and choice.rest != 0.0 and not SHORTEST_REST_S <= choice.rest <= LONGEST_REST_S:
        raise WireError("malformed: a person at rest is measured for 5 to 300 seconds")
    return choice


def offer_topic(session: str, worker: str) -> bytes:
    """The topic of a worker's offers."""
    return topic("offer", session, worker)


def encode_offer(offer: Offer) -> Frames:
    """An offer message."""
    return [offer_topic(offer.session, offer.worker), VERSION_BYTE, _encode(offer)]


def decode_offer(frames: Sequence[bytes]) -> Offer:
    """The offer of a message, or WireError."""
    _, payload = open_frames(frames)
    offer = parse(_decode_offer, payload)
    if bytes(frames[0]) != offer_topic(offer.session, offer.worker):
        raise WireError("malformed: the topic is of another message")
    return offer
