"""The file: complete whenever it ends, readable by the format's own library, and rejected in one line if not ours."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.stream_reader import StreamReader
from mcap.writer import Writer
from typer.testing import CliRunner

from mien.cli import app
from mien.errors import RecordingError
from mien.messages import FeatureWindow, Prediction
from mien.stream.bus.preview import Preview
from mien.stream.bus.sound import Sound
from mien.stream.bus.wire import decode_features, encode_features
from mien.stream.recording import channels, writer
from mien.stream.recording.reader import open_recording
from mien.stream.recording.writer import RecordingWriter, rewrite
from tests.stream.recording.sessions import ABOUT, live, write


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("recording") / "talk.mcap", live(6))


def test_mcap_library_reads_it_and_checksums_match(complete: Path) -> None:
    with complete.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        messages = list(reader.iter_messages())
        attachments = list(reader.iter_attachments())
        assert {m.name: m.metadata["format"] for m in reader.iter_metadata()} == {"mien": "1"}
    assert summary.statistics is not None
    assert summary.statistics.message_count == len(messages)
    assert json.loads(attachments[0].data)["model"] == ABOUT.model
    jsonschema = pytest.importorskip("jsonschema")
    checked = set()
    for schema, channel, message in messages:
        assert channel.message_encoding == "json"
        assert schema is not None
        assert schema.encoding == "jsonschema"
        if channel.topic not in checked:
            jsonschema.Draft202012Validator(json.loads(schema.data)).validate(json.loads(message.data))
            checked.add(channel.topic)
    assert checked == {"/mien/about", "/mien/prediction", *(f"/mien/features/{m}" for m in ("vision", "audio", "text"))}


def test_reading_returns_what_was_recorded(complete: Path) -> None:
    recording = open_recording(complete)
    assert recording.about == ABOUT
    assert not recording.cut_off
    events = [what for _, what in live(6)]
    assert list(recording.predictions()) == [what for what in events if isinstance(what, Prediction)]
    sent = [what for what in events if isinstance(what, FeatureWindow)]
    read = [entry.features()[1] for entry in recording.entries(lambda name: name.startswith(channels.FEATURES))]
    assert read == [encode_features(message) for message in sent]
    decoded = decode_features(read[0])
    np.testing.assert_array_equal(decoded.values, sent[0].values)


def test_truncated_recording_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "talk.mcap"
    writer = RecordingWriter(path)
    events = live(6)
    sizes: list[tuple[int, int]] = []
    for number, (t_ns, what) in enumerate(events):
        if isinstance(what, FeatureWindow):
            record, data = channels.record_features(encode_features(what))
            writer.write(channels.FEATURES + record.modality, data, t_ns, record.t_end_ns)
        else:
            writer.write(channels.PREDICTION, json.dumps({"number": number}).encode(), t_ns, what.t_end_ns)
        if number % 40 == 39:
            writer._end_chunk()  # as it does twice a second
            writer._sync()
            sizes.append((path.stat().st_size, number + 1))
    writer.abandon()
    content = path.read_bytes()
    cut = tmp_path / "cut.mcap"
    ends = [size for size, _ in sizes]
    for size in [*ends, *random.Random(0).sample(range(ends[0], len(content)), 25), len(content)]:
        cut.write_bytes(content[:size])
        recording = open_recording(cut)
        assert recording.cut_off
        promised = max((count for end, count in sizes if end <= size), default=0)
        read = [entry.log_ns for entry in recording.entries()]
        assert read == [t_ns for t_ns, _ in events[: len(read)]]
        assert len(read) >= promised
    # And a tail of garbage, as a file system may leave it after the power failed.
    cut.write_bytes(content[: sizes[1][0]] + os.urandom(500))
    assert len(list(open_recording(cut).entries())) >= sizes[1][1]
    cut.write_bytes(content[: sizes[1][0]] + bytes(500))
    assert len(list(open_recording(cut).entries())) >= sizes[1][1]


def test_truncated_recording_is_repaired(complete: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(complete.read_bytes()[:-3000])
    recording = open_recording(cut)
    assert recording.cut_off
    rewrite(recording, tmp_path / "mended.mcap")
    mended = open_recording(tmp_path / "mended.mcap")
    assert not mended.cut_off
    assert list(mended.entries()) == list(recording.entries())
    with (tmp_path / "mended.mcap").open("rb") as file:
        assert [json.loads(a.data)["label"] for a in make_reader(file).iter_attachments()] == ["talk.mp4"]
    with pytest.raises(RecordingError, match="exists"):
        rewrite(recording, cut)


@pytest.mark.parametrize("part", [0, 7])
def test_damaged_part_of_a_recording_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(writer, "FLUSH_S", 0.0)  # a chunk for each message
    path, mended = write(tmp_path / "a.mcap", live(3)), tmp_path / "mended.mcap"
    before = list(open_recording(path).entries())
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    index = summary.chunk_indexes[part]
    content = bytearray(path.read_bytes())
    content[index.chunk_start_offset + 60 : index.chunk_start_offset + index.chunk_length] = bytes(
        index.chunk_length - 60
    )
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"is damaged: .*keep the rest with `mien export --mcap`"):
        list(open_recording(path).entries())
    result = CliRunner().invoke(app, ["export", str(path), "--mcap", "-o", str(mended)])
    assert result.exit_code == 0, result.output
    lost_s = (before[part].log_ns - before[0].log_ns) / 1e9
    assert result.stderr == f"{path} is damaged from {lost_s:.1f} to {lost_s:.1f} s; that part is left out\n"
    assert list(open_recording(mended).entries()) == [entry for n, entry in enumerate(before) if n != part]


def test_pictures_and_sound_are_standard_messages_and_come_back(tmp_path: Path) -> None:
    preview = Preview(
        session="default", run=1, seq=2, t_ns=5_000_000_123, features_seq=3, width=640, height=480,
        landmarks=np.array([[0.25, 0.5]], np.float32), jpeg=b"\xff\xd8not quite a picture",
    )  # fmt: skip
    sound = Sound(session="default", run=1, seq=0, t_start_ns=5_000_000_000, rate_hz=16_000, pcm=b"\x01\x00\xff\x7f")
    writer = RecordingWriter(tmp_path / "a.mcap")
    writer.write(channels.VIDEO, channels.image_record(preview), 1, preview.t_ns)
    writer.write(channels.AUDIO, channels.sound_record(sound), 2, sound.t_start_ns)
    writer.close()
    image, audio = open_recording(tmp_path / "a.mcap").entries()
    as_foxglove = json.loads(image.data)
    assert as_foxglove["timestamp"] == {"sec": 5, "nsec": 123}
    assert base64.b64decode(as_foxglove["data"]) == preview.jpeg
    assert image.preview().jpeg == preview.jpeg
    np.testing.assert_array_equal(image.preview().landmarks, preview.landmarks)
    assert json.loads(audio.data)["format"] == "pcm-s16"
    assert audio.sound() == sound
    with (tmp_path / "a.mcap").open("rb") as file:
        names = {s.name for s in StreamReader(file).records if type(s).__name__ == "Schema"}
    assert names == {"foxglove.CompressedImage", "foxglove.RawAudio"}


def foreign(path: Path, metadata: dict[str, str] | None) -> Path:
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        if metadata is not None:
            writer.add_metadata("mien", metadata)
        channel = writer.register_channel("/odometry", "json", 0)
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "cannot read .*: No such file"),
        (lambda p: p.mkdir() or p, "is a folder"),
        (lambda p: (p.write_bytes(b"") and p) or p, "is not an MCAP file"),
        (lambda p: p.write_text("dear diary") and p, "is not an MCAP file"),
        (lambda p: foreign(p, None), "not a recording of mien"),
        (lambda p: foreign(p, {"format": "2"}), "version 2, this mien reads up to 1; install a newer mien"),
        (lambda p: foreign(p, {}), "does not say which version"),
        (lambda p: p.write_bytes(b"\x89MCAP0\r\n" + bytes(99)) and p, "not a recording of mien"),
    ],
    ids=["missing", "folder", "empty", "text", "foreign", "newer", "no version", "broken"],
)
def test_invalid_recordings_are_one_line_errors(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "a.mcap")
    with pytest.raises(RecordingError, match=message) as error:
        open_recording(path)
    assert "\n" not in str(error.value)


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_text("precious")
    with pytest.raises(RecordingError, match="exists; choose another name"):
        RecordingWriter(tmp_path / "a.mcap")
    assert (tmp_path / "a.mcap").read_text() == "precious"
    with pytest.raises(RecordingError, match="cannot record to"):
        RecordingWriter(tmp_path / "nowhere" / "a.mcap")


def test_recordings_are_private(complete: Path) -> None:
    if os.name == "posix":
        assert complete.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX")
def test_full_disk_is_reported_and_earlier_data_readable(tmp_path: Path) -> None:
    code = """
    import resource, sys
    from pathlib import Path
    from mien.errors import RecordingError
    from mien.stream.recording import channels, writer
    from tests.stream.recording.sessions import live
    from mien.stream.bus.wire import encode_features
    from mien.messages import FeatureWindow
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    writer.FLUSH_S = 0.0
    recording = writer.RecordingWriter(Path(sys.argv[1]))
    try:
        for t_ns, what in live(20):
            if isinstance(what, FeatureWindow):
                record, data = channels.record_features(encode_features(what))
                recording.write(channels.FEATURES + record.modality, data, t_ns, record.t_end_ns)
    except RecordingError as error:
        print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.mcap")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    (line,) = ran.stdout.splitlines()
    assert "the file may not grow any more" in line
    assert "can be read" in line
    read = list(open_recording(tmp_path / "a.mcap").entries())
    assert len(read) > 20


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX")
def test_repair_on_a_full_disk_leaves_nothing(complete: Path, tmp_path: Path) -> None:
    code = """
    import resource, sys
    from mien.cli import main
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
    sys.argv = ["mien", "export", sys.argv[1], "--mcap", "-o", sys.argv[2]]
    main()
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(complete), str(tmp_path / "a.mcap")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert ran.returncode == RecordingError.exit_code
    assert ran.stderr == f"mien: cannot write {tmp_path / 'a.mcap'}: the file may not grow any more (ulimit -f)\n"
    assert not list(tmp_path.glob("a.mcap"))
