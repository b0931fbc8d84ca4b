from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mien.assets import asset_path
from mien.clock import NS_PER_S, Clock
from mien.config import AssetsConfig, Config, load_config
from mien.errors import AssetError, ConfigError
from mien.messages import FeatureWindow, Float32, Word
from mien.models.text.encoder import TEXT_DIM
from mien.stream.modalities import text
from mien.stream.modalities.base import Health, create_modality
from mien.stream.modalities.text import SPEC, Text, TextEncoder, asr_folder, create, words_within
from mien.stream.offline.extractors import Extractors
from mien.stream.sources.clip import read_sound
from mien.stream.sources.source import SAMPLE_RATE
from mien.stream.speech.asr import Recognised
from mien.stream.speech.whisper import Hypothesis, Whisper
from tests.stream.sounds import spoken, tone, write_wav

START_NS = 1_700_000_000 * NS_PER_S
SENTENCE = "I am so happy that you came, because I was waiting for this day."
WRITTEN = "Honestly, it's the loveliest unbirthday-party I've ever photobombed!"


@pytest.fixture(scope="module")
def plain_encoder() -> TextEncoder:
    """MiniLM as it was published."""
    return TextEncoder(asset_path("minilm-l6-v2"), "onnx", adapters=None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of silence, a sentence, and 1.2 s of silence."""
    sound = np.pad(spoken(SENTENCE), (SAMPLE_RATE // 2, SAMPLE_RATE * 12 // 10))
    return write_wav(tmp_path_factory.mktemp("clips") / "sentence.wav", sound)


def config_of(source: Path, **overrides: object) -> Config:
    return load_config(None, {"audio.source": str(source), "clip.fast": True} | overrides)


def play(config: Config) -> tuple[list[FeatureWindow], Health]:
    """All rows of a clip, and how the worker was at its end."""
    modality = create(config, Clock())
    try:
        modality.prepare()
        modality.start(START_NS)
        return [rows for rows in modality.rows() if rows is not None], modality.health()
    finally:
        modality.close()


def text_of(rows: FeatureWindow) -> str:
    return " ".join(word.text for word in rows.words)


def word(name: str, end_s: float, committed: bool = True) -> Word:
    end_ns = round(end_s * NS_PER_S)
    return Word(name, end_ns - NS_PER_S // 10, end_ns, committed)


def test_the_window_keeps_the_words_that_end_in_it() -> None:
    words = (*(word(str(i), i) for i in (4, 5, 6, 9)), word("10", 10, committed=False))
    assert [w.text for w in words_within(Recognised(10 * NS_PER_S, words, ()))] == ["6", "9", "10"]
    assert words_within(Recognised(16 * NS_PER_S, words, ())) == ()


def test_the_worker_is_found_by_its_name() -> None:
    modality = create_modality("text", load_config(), Clock())
    assert modality.spec == SPEC
    assert (SPEC.name, SPEC.dim, SPEC.rate_hz, SPEC.steps, SPEC.snapshot) == ("text", TEXT_DIM, 0, 50, True)
    assert SPEC.extractor.startswith("minilm-l6-v2/")
    assert modality.health().state == "starting"
    modality.close()
    modality.close()


@pytest.mark.assets
def test_rows_are_the_means_of_the_published_models_states(plain_encoder: TextEncoder) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = asset_path("minilm-l6-v2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = WRITTEN.split()
    batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**batch).last_hidden_state[0].numpy()
    index = np.array([-1 if i is None else i for i in batch.word_ids()])
    expected = np.stack([states[index == i].mean(axis=0) for i in range(len(words))])
    assert (np.bincount(index[index >= 0]) > 1).any(), "the sentence has words of several pieces"
    assert plain_encoder.encode(words) == pytest.approx(expected, abs=1e-4)


@pytest.mark.assets
def test_word_row_depends_on_context(plain_encoder: TextEncoder) -> None:
    river, money = plain_encoder.encode(["river", "bank"]), plain_encoder.encode(["money", "bank"])
    assert np.abs(river[1] - money[1]).max() > 0.05
    assert plain_encoder.encode([]).shape == (0, TEXT_DIM)
    assert plain_encoder.encode(["?"]).shape == (1, TEXT_DIM)


@pytest.mark.assets
def test_oldest_words_beyond_the_limit_are_dropped(plain_encoder: TextEncoder) -> None:
    words = ["extraordinarily", *(f"word{i}" for i in range(100))]
    rows = plain_encoder.encode(words)
    read = np.any(rows != 0, axis=1)
    assert rows.shape == (101, TEXT_DIM)
    assert not read[0]
    assert read[-1]
    first = int(np.argmax(read))
    assert read[first:].all()
    assert rows[first:] == pytest.approx(plain_encoder.encode(words[first:]), abs=1e-5)


@pytest.mark.assets
def test_a_clip_becomes_snapshots(clip: Path) -> None:
    rows, health = play(config_of(clip))
    step_ns = load_config().text.step_ms * 1_000_000
    full = [START_NS + i * step_ns for i in range(1, len(rows) - 1)]
    assert [r.t_end_ns for r in rows[:-2]] == full[: len(rows) - 2]  # the watermark moves in steps of sound
    assert rows[-1].t_end_ns == rows[-2].t_end_ns
    for r in rows:
        assert r.values.shape == (len(r.words), TEXT_DIM)
        assert r.values.dtype == np.float32
        assert np.isfinite(r.values).all()
        assert r.valid.all()
        assert r.times_ns.tolist() == [w.t_end_ns for w in r.words]
        assert all(r.t_end_ns - 5 * NS_PER_S < w.t_end_ns <= r.t_end_ns for w in r.words)
    assert not rows[0].words or not rows[0].words[0].committed
    assert any(not w.committed for r in rows for w in r.words)
    assert all(w.committed for w in rows[-1].words)
    assert "waiting for this day" in text_of(rows[-1])
    assert health.state == "ended"
    assert health.drops == {}
    assert health.last_error is None
    assert health.detail["asr"] == "tiny.en"
    factor = health.detail["real_time_factor"]
    assert isinstance(factor, float)
    assert factor > 0


@pytest.mark.assets
def test_a_clip_gives_the_same_rows_every_time(clip: Path) -> None:
    first, _ = play(config_of(clip))
    again, _ = play(config_of(clip, **{"audio.chunk_ms": 20}))
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        assert (a.t_end_ns, a.words) == (b.t_end_ns, b.words)
        assert np.array_equal(a.values, b.values)


@pytest.mark.assets
def test_a_clip_read_offline_has_the_rows_of_the_live_worker(clip: Path) -> None:
    live, _ = play(config_of(clip))
    extractors = Extractors(("text",), "tiny.en")
    offline = list(extractors.word_messages(read_sound(clip)))
    assert [r.t_end_ns for r in offline] == [r.t_end_ns - START_NS for r in live]
    for a, b in zip(offline, live, strict=True):
        assert [(w.text, w.t_start_ns, w.committed) for w in a.words] == [
            (w.text, w.t_start_ns - START_NS, w.committed) for w in b.words
        ]
        assert a.values == pytest.approx(b.values, abs=1e-4)
        assert np.array_equal(a.valid, b.valid)
    words, ends_ns = extractors.recognise(read_sound(clip))
    assert words == text_of(live[-1]).split()
    assert ends_ns.tolist() == [w.t_end_ns - START_NS for w in live[-1].words]


@pytest.mark.assets
def test_without_voice_time_advances_without_words(tmp_path: Path) -> None:
    rows, health = play(config_of(write_wav(tmp_path / "tone.wav", tone(330, 3.0))))
    assert [r.t_end_ns - START_NS for r in rows[:3]] == [800_000_000, 1_600_000_000, 2_400_000_000]
    assert rows[-1].t_end_ns == START_NS + 3 * NS_PER_S
    assert all(r.values.shape == (0, TEXT_DIM) and r.words == () for r in rows)
    assert health.drops == {}


@pytest.mark.assets
def test_live_worker_publishes_an_empty_snapshot_first(tmp_path: Path) -> None:
    """A restarted worker publishes before a first step of sound is complete."""
    clock = Clock()
    modality = create(config_of(write_wav(tmp_path / "tone.wav", tone(330, 3.0)), **{"clip.fast": False}), clock)
    try:
        modality.prepare()
        began_ns = clock.now_ns()
        modality.start(began_ns)
        rows = [r for r in modality.rows() if r is not None]
    finally:
        modality.close()
    assert rows[0].t_end_ns - began_ns < 800_000_000 <= rows[1].t_end_ns - began_ns
    assert rows[0].values.shape == (0, TEXT_DIM)
    assert rows[0].words == ()


def test_sound_is_read_while_words_are_recognised(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Whisper.decode

    def slow(self: Whisper, samples: Float32, prefix: str = "") -> Hypothesis:
        time.sleep(1.0)  # a machine that is too busy
        return decode(self, samples, prefix)

    monkeypatch.setattr(Whisper, "decode", slow)
    modality = create(config_of(clip, **{"clip.fast": False}), Clock())
    try:
        modality.prepare()
        modality.start(Clock().now_ns())
        yields = list(modality.rows())
    finally:
        modality.close()
    rows = [r for r in yields if r is not None]
    # Between one row and the next there were many turns at which the worker could report and stop.
    assert len(yields) > 5 * len(rows)
    ends = np.array([r.t_end_ns for r in rows])
    assert (np.diff(ends) >= 0).all()
    assert np.diff(ends).max() > 800_000_000, "late steps are taken together"
    assert "this day" in text_of(rows[-1])


@pytest.mark.assets
def test_failed_recogniser_is_reopened(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Whisper.decode
    calls = 0

    def failing(self: Whisper, samples: Float32, prefix: str = "") -> Hypothesis:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("out of memory")
        return decode(self, samples, prefix)

    monkeypatch.setattr(Whisper, "decode", failing)
    monkeypatch.setattr(text, "RETRY_S", 0.0)
    modality = create(config_of(clip), Clock())
    try:
        modality.prepare()
        modality.start(START_NS)
        states, rows = [], []
        for r in modality.rows():
            states.append(modality.health().state)
            if r is not None:
                rows.append(r)
        health = modality.health()
    finally:
        modality.close()
    assert "degraded" in states
    assert states[-1] in ("running", "ended")
    assert health.drops["asr_failures"] == 1
    assert health.drops["skipped_ms"] == 800
    assert health.last_error is not None
    assert "out of memory" in health.last_error
    assert rows[-1].t_end_ns > rows[3].t_end_ns
    assert "this day" in text_of(rows[-1]), "speech after the failure is recognised"


@pytest.mark.assets
def test_unopenable_recogniser_fails_at_once(clip: Path, tmp_path: Path) -> None:
    def refused(config: Config) -> Iterator[str]:
        modality = Text(config, Clock())
        try:
            with pytest.raises((AssetError, ConfigError)) as caught:
                modality.prepare()
            yield str(caught.value)
        finally:
            modality.close()

    (error,) = refused(config_of(clip, **{"text.asr": "tinny"}))
    assert "`text.asr` is `tinny`" in error
    (error,) = refused(config_of(clip, **{"text.asr": str(tmp_path)}))
    assert "lacks model.bin" in error
    (error,) = refused(config_of(clip, **{"assets.cache": str(tmp_path), "assets.offline": True}))
    assert "minilm-l6-v2" in error or "whisper-tiny.en" in error


def test_speech_models_by_name_or_folder(tmp_path: Path) -> None:
    nowhere = AssetsConfig(cache=str(tmp_path), offline=True)
    with pytest.raises(AssetError, match="whisper-base"):
        asr_folder("base", nowhere)
    with pytest.raises(ConfigError, match=r"text\.asr"):
        asr_folder(str(tmp_path / "missing"), nowhere)
    assert asr_folder(str(tmp_path), nowhere) == tmp_path
