"""Small inputs that every target takes, made by mien itself: fuzzing begins at these. Nothing in them was recorded.

`python -m tests.fuzz.seeds` writes them to `tests/fuzz/corpus`, a folder a target, beside what fuzzing has found.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import zmq

from mien.clock import Clock
from mien.messages import About, Cue, FeatureWindow, ModalitySpec, Phrase, Prediction, Status, Transcript, Word
from mien.stream.bus import choices, clock_exchange, preview, sound, wire
from mien.stream.bus.keyring import to_hex
from tests.fuzz.targets import NOW_NS, SPECS, join

CORPUS = Path(__file__).parent / "corpus"
_SAID = (Word("so", NOW_NS - 900_000_000, NOW_NS - 700_000_000), Word("be", NOW_NS - 400_000_000, NOW_NS, False, 0.5))


def seeds() -> dict[str, list[bytes]]:
    """Inputs by target."""
    rng = np.random.default_rng(5)
    return {
        "features": [_features(name, rng) for name in SPECS],
        "prediction": [_untopiced(wire.encode_prediction(_prediction(abstains))) for abstains in (False, True)],
        "status": [_untopiced(wire.encode_status(_STATUS))],
        "about": [_untopiced(wire.encode_about(_ABOUT))],
        "cue": [_untopiced(wire.encode_cue(_CUE))],
        "choice": [choices.encode_choice(choice) for choice in _CHOICES],
        "offer": [_untopiced(choices.encode_offer(_OFFER))],
        "preview": [join(preview.encode_preview(_preview(), "picture"))],
        "edges": [join([b"preview/default/edges", wire.VERSION_BYTE, np.arange(8, dtype="<u2").tobytes()])],
        "sound": [join(sound.encode_sound(_SOUND))],
        "clock": [join(clock_exchange.answer_question(b"clock/default/00", 7, _Clock(0)))],
        "config": [
            b'session = "studio"\n[video]\nsource = "0"\nfps = 25\n[bus]\nport = 6000\n[bus.workers]\nvideo = ""\n'
        ],
        "checkpoint": [_checkpoint()],
        "recording": [_recording()],
        "mmsa": [_mmsa(rng, protocol) for protocol in (2, 4)],
        "key": [to_hex(zmq.curve_public(b"0" * 40).decode()).encode()],
    }


class _Clock(Clock):
    def now_ns(self) -> int:
        return NOW_NS


def _untopiced(frames: list[bytes]) -> bytes:
    """Without its topic, which the target makes from what is inside."""
    return join([b"", *frames[1:]])


def _features(name: str, rng: np.random.Generator) -> bytes:
    spec = SPECS[name]
    rows = 3 if name == "audio" else len(_SAID) if name == "text" else 1
    ends = [word.t_end_ns for word in _SAID] if name == "text" else [NOW_NS - i * 20_000_000 for i in range(rows)]
    window = FeatureWindow(
        session="default",
        modality=name,
        run=7,
        seq=3,
        t_start_ns=NOW_NS - 100_000_000,
        t_end_ns=NOW_NS,
        extractor="",
        values=rng.standard_normal((rows, spec.dim)).astype(np.float32),
        valid=np.ones(rows, bool),
        times_ns=np.sort(np.array(ends, np.int64)),
        words=_SAID if name == "text" else (),
        stamps={"read": NOW_NS, "sent": NOW_NS},
    )
    return _untopiced(wire.encode_features(window))


def _prediction(abstains: bool) -> Prediction:
    return Prediction(
        session="default",
        run=7,
        seq=3,
        t_end_ns=NOW_NS,
        sentiment=None if abstains else -1.5,
        sentiment_smooth=None if abstains else -1.25,
        emotions=None if abstains else {"sad": 0.75, "neutral": 0.25},
        confidence=None if abstains else 0.75,
        gates={"vision": 0.5, "audio": 0.5},
        age_ms={"vision": 3.5, "text": None},
        absent={"text": "switched off"},
        abstains="nobody is there" if abstains else None,
        transcript=Transcript("so", "be"),
        words=_SAID,
        phrases=(Phrase(NOW_NS, NOW_NS + 5, -1.5, "sad"),),
        latency={"capture": 1.0, "total": 12.5},
        model="cmmsf-00000000/onnx-fp32",
        inputs={"vision": ((7, 0, 3),)},
    )


_STATUS = Status(
    session="default", worker="video", run=7, t_ns=NOW_NS, state="running", pid=5, fps=25.0, drops={"late": 2},
    lag_ms=4.5, last_error="it was dark", cpu_percent=20.0, rss_mb=200.0, detail={"faces": 1, "source": "0"},
)  # fmt: skip
_ABOUT = About(
    session="default", run=7, t_ns=NOW_NS, origin="live", label="camera", model="cmmsf-00000000/onnx-fp32",
    config={"bus": {"port": 5560}}, versions={"mien": "0.1.0"}, modalities=tuple(SPECS.values()),
)  # fmt: skip
_CUE = Cue(
    session="default", seq=3, t_end_ns=NOW_NS, inputs={"vision": ((7, 0, 3),)}, absent={"text": "off"}, reset=True,
    smoothed=(0.5, NOW_NS),
)  # fmt: skip
_CHOICES = (
    choices.Choice(session="default", worker="video", nonce="a1", face=(0.25, 0.5)),
    choices.Choice(session="default", worker="audio", nonce="a2", source="0123456789abcdef"),
    choices.Choice(session="default", worker="audio", nonce="a3", rest=15.0),
)
_OFFER = choices.Offer(
    session="default", worker="video", run=7, t_ns=NOW_NS, sources=(choices.SourceOffer("0123456789abcdef", "0"),),
    used="0123456789abcdef", faces=((0.1, 0.2, 0.3, 0.4),), following="largest", answers="a1", left_s=2.5,
    rest=choices.RestOffer("test-vision", 14.5, (0.5, -0.25)),
)  # fmt: skip
_SOUND = sound.Sound(session="default", run=7, seq=3, t_start_ns=NOW_NS, rate_hz=16_000, pcm=bytes(64))


def _preview() -> preview.Preview:
    return preview.Preview(
        session="default", run=7, seq=3, t_ns=NOW_NS, features_seq=3, width=16, height=16,
        landmarks=np.zeros((2, 2), np.float32), jpeg=b"\xff\xd8\xff\xd9",
    )  # fmt: skip


def _checkpoint() -> bytes:
    """The header of a checkpoint with no weights but one."""
    from safetensors.numpy import save

    from mien.models.architecture import ModelConfig
    from mien.models.checkpoint import FORMAT, KIND, CheckpointHeader

    spec = ModalitySpec("vision", 4, 10, 50, extractor="faces-1")
    import msgspec

    header = CheckpointHeader(kind=KIND, format=FORMAT, config=ModelConfig(), specs=(spec,))
    weights = {"encoders.vision.mean": np.zeros(4, np.float32), "encoders.vision.std": np.ones(4, np.float32)}
    packed: bytes = save(weights, {"mien": msgspec.json.encode(header).decode()})
    return packed


def _recording() -> bytes:
    """A recording of one message of each kind."""
    from mcap.writer import CompressionType, Writer

    from mien.stream.recording import channels

    out = io.BytesIO()
    writer = Writer(out, compression=CompressionType.NONE, chunk_size=512)
    writer.start(profile="", library="mien")
    writer.add_metadata(channels.METADATA, {"format": str(channels.FORMAT)})
    for topic, data in (
        (channels.ABOUT, wire.encode_about(_ABOUT)[2]),
        (channels.PREDICTION, wire.encode_prediction(_prediction(False))[2]),
    ):
        name, schema = channels.schema_of(topic)
        schema_id = writer.register_schema(name, "jsonschema", schema)
        channel = writer.register_channel(topic, "json", schema_id)
        writer.add_message(channel, log_time=NOW_NS, publish_time=NOW_NS, data=data)
    writer.finish()
    return out.getvalue()


def _mmsa(rng: np.random.Generator, protocol: int) -> bytes:
    part = {
        "text": rng.standard_normal((1, 2, 2)).astype(np.float32),
        "audio": rng.standard_normal((1, 2, 1)).astype(np.float32),
        "regression_labels": np.array([0.5], np.float32),
        "audio_lengths": [2],
        "id": ["a"],
        "raw_text": ["so be"],
    }
    return pickle.dumps({"train": part}, protocol=protocol)


def write() -> None:
    """Write the seeds to the corpus."""
    for target, inputs in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (folder / f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    write()
    print(json.dumps({target: [len(data) for data in inputs] for target, inputs in seeds().items()}))
