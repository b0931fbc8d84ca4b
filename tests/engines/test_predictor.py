"""The predictor returns the whole model's numbers, with any reuse and batching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien.clock import NS_PER_MS
from mien.engines.base import Array
from mien.engines.cmmsf import whole_network
from mien.engines.predictor import Answer, Answers, Predictor
from mien.engines.rings import Windows
from mien.engines.selection import open_engine
from mien.engines.text import text_network
from mien.models.checkpoint import Checkpoint
from mien.stream.bench.synthetic import SyntheticStream
from mien.stream.inference.assembler import Assembler
from tests.engines.networks import SPECS
from tests.needs import need_asset
from tests.windows import Window, predict_anew, window_of


@pytest.fixture
def predictor(checkpoint: Checkpoint, compiled: Path) -> Predictor:
    return Predictor(checkpoint, "onnx", cache=compiled)


class Stream:
    """Windows of a session in which each modality changes at its own pace."""

    def __init__(self, seed: int) -> None:
        self.random, self.seq = np.random.default_rng(seed), 0
        self.features: dict[str, np.ndarray] = {}
        self.mask: dict[str, np.ndarray] = {}

    def next(self, *changed: str) -> Window:
        for spec in SPECS:
            if spec.name in changed or spec.name not in self.features:
                mask = (self.random.random(spec.steps) < 0.8).astype(np.float32)
                rows = self.random.standard_normal((spec.steps, spec.dim)).astype(np.float32)
                self.features[spec.name], self.mask[spec.name] = rows * mask[:, None], mask
        self.seq += 1
        return Window(self.seq, dict(self.features), dict(self.mask))


PACE = [("vision",), ("vision",), ("vision", "audio"), (), ("vision", "audio", "text"), ("text",), ("vision",)]


def assert_close(left: Answer, right: Answer, atol: float = 1e-5) -> None:
    assert left.sentiment == pytest.approx(right.sentiment, abs=atol)
    assert left.confidence == pytest.approx(right.confidence, abs=atol)
    assert left.emotions == pytest.approx(right.emotions, abs=atol)
    assert left.shares == pytest.approx(right.shares, abs=atol)


def test_reuse_changes_no_output(checkpoint: Checkpoint, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictors = {reuse: Predictor(checkpoint, "onnx", cache=compiled) for reuse in (True, False)}
    windows = {reuse: Windows(predictor.specs) for reuse, predictor in predictors.items()}
    encoded: Counter[tuple[bool, str]] = Counter()
    for reuse, predictor in predictors.items():
        predictor.prepare(windows[reuse])
        for name, encoder in predictor._encoders.items():
            monkeypatch.setattr(encoder, "infer", counted(encoder.infer, encoded, (reuse, name)))
    streams = {reuse: kept_stream("a", 0, each, 40) for reuse, each in windows.items()}
    for left, right in zip(streams[True], streams[False], strict=True):
        answers = []
        windows[False].show_all()
        for reuse, (kept, _, t_ns) in ((True, left), (False, right)):
            answers.append(predictors[reuse].predict_look(windows[reuse], windows[reuse].look([kept.place], [t_ns])))
        for mine, theirs in zip(*answers, strict=True):
            assert np.array_equal(mine, theirs)
    assert [encoded[False, spec.name] for spec in SPECS] == [40, 40, 40]
    assert encoded[True, "vision"] == 40
    assert encoded[True, "text"] < encoded[True, "audio"] < 40


def test_encoding_ahead_is_reused_and_changes_no_output(
    checkpoint: Checkpoint, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, plain = (Predictor(checkpoint, "onnx", cache=compiled) for _ in range(2))
    windows = {predictor: Windows(predictor.specs) for predictor in (ahead, plain)}
    encoded = {"ahead": Counter[str](), "waited for": Counter[str]()}
    now = "ahead"
    for predictor in (ahead, plain):
        predictor.prepare(windows[predictor])
    for name, encoder in ahead._encoders.items():

        def infer(inputs: Any, name: str = name, infer: Callable[..., Any] = encoder.infer) -> Any:
            encoded[now][name] += 1
            return infer(inputs)

        monkeypatch.setattr(encoder, "infer", infer)
    streams = (kept_stream("a", 1, windows[predictor], 40) for predictor in (ahead, plain))
    for number, ((kept, _, t_ns), (other, _, _)) in enumerate(zip(*streams, strict=True)):
        now = "ahead"
        wrong_ns = 150 * NS_PER_MS if number % 5 == 4 else 0  # the expected rows do not always arrive
        ahead.encode_ahead(windows[ahead], kept.place, t_ns + wrong_ns, {"audio"})
        now, before = "waited for", encoded["waited for"].copy()
        answers = [
            predictor.predict_look(windows[predictor], windows[predictor].look([place], [t_ns]))
            for predictor, place in ((ahead, kept.place), (plain, other.place))
        ]
        for mine, theirs in zip(*answers, strict=True):
            assert np.array_equal(mine, theirs)
        if not wrong_ns:
            assert encoded["waited for"] - before == Counter(["vision"])
    assert encoded["ahead"]["vision"] == 0
    assert min(encoded["ahead"]["audio"], encoded["ahead"]["text"]) > 0


def counted(infer: Callable[..., Any], counts: Counter[tuple[bool, str]], key: tuple[bool, str]) -> Callable[..., Any]:
    def run(inputs: Any) -> Any:
        counts[key] += 1
        return infer(inputs)

    return run


def test_parts_equal_the_whole(checkpoint: Checkpoint, compiled: Path, predictor: Predictor) -> None:
    whole = open_engine(whole_network(checkpoint), "torch", cache=compiled)
    stream = Stream(2)
    for changed in PACE:
        window = stream.next(*changed)
        outputs = predict_anew(predictor, window)
        inputs: dict[str, Array] = {}
        for name in predictor.specs:
            inputs |= {f"{name}.features": window.features[name][None], f"{name}.mask": window.mask[name][None]}
        want = whole.infer(inputs)
        assert outputs.sentiment == pytest.approx(float(want["sentiment"][0]), abs=1e-5)
        np.testing.assert_allclose(outputs.emotions, want["emotions"][0], atol=1e-5)
        np.testing.assert_allclose(outputs.shares, want["shares"][0], atol=1e-5)


def kept_stream(name: str, seed: int, windows: Windows, frames: int) -> Iterator[tuple[Assembler, Window, int]]:
    """A synthetic stream in shared windows, next to the same one in windows of its own."""
    stream = SyntheticStream(name, windows.specs, seed)
    kept, alone = Assembler(windows.specs, 400, windows), Assembler(windows.specs, 400)
    for frame in range(frames):
        t_ns = stream.due_ns
        for message in stream.next():
            if seed == 1 and message.modality == "audio" and frame > frames // 2:
                continue  # falls silent, and is masked
            kept.push(message)
            alone.push(message)
        yield kept, window_of(alone, t_ns), t_ns


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_rolling_windows_of_sessions_equal_single_windows(checkpoint: Checkpoint, compiled: Path, engine: str) -> None:
    together = Predictor(checkpoint, engine, cache=compiled)
    alone = Predictor(checkpoint, engine, cache=compiled)
    windows = Windows(together.specs, 4)
    streams = [kept_stream(str(seed), seed, windows, 40) for seed in range(3)]
    quiet = Assembler(windows.specs, 400, windows)
    for moment in zip(*streams, strict=True):
        places = [quiet.place, *(kept.place for kept, _, _ in moment)]
        look = windows.look(places, [moment[0][2], *(t_ns for _, _, t_ns in moment)])
        answers = together.predict_look(windows, look)
        assert answers.is_observed.tolist() == [False, True, True, True]
        for index, (_, window, _) in enumerate(moment, start=1):
            want = predict_anew(alone, window)
            assert answers.sentiment[index] == pytest.approx(want.sentiment, abs=1e-5)
            np.testing.assert_allclose(answers.emotions[index], want.emotions, atol=1e-5)
            np.testing.assert_allclose(answers.shares[index], want.shares, atol=1e-5)
            assert answers.confidence[index] == pytest.approx(want.confidence, abs=1e-5)


def test_one_session_is_bit_equal_to_its_windows(checkpoint: Checkpoint, compiled: Path) -> None:
    kept, alone = (Predictor(checkpoint, "onnx", cache=compiled) for _ in range(2))
    windows = Windows(kept.specs, 2)
    quiet = Assembler(windows.specs, 400, windows)
    for assembler, window, t_ns in kept_stream("1", 1, windows, 40):
        answers = kept.predict_look(windows, windows.look([assembler.place], [t_ns]))
        want = predict_anew(alone, window)
        assert answers.sentiment.tolist() == [want.sentiment]
        assert answers.emotions.tolist() == [want.emotions]
        assert answers.shares.tolist() == [want.shares]
        assert (answers.confidence.tolist(), answers.is_observed.tolist()) == ([want.confidence], [True])
        nothing = kept.predict_look(windows, windows.look([quiet.place], [t_ns]))
        assert not any(part.any() for part in nothing)
        assert [part.shape for part in nothing] == [part.shape for part in answers]


def test_missing_modality_has_no_share(predictor: Predictor) -> None:
    windows = Windows(predictor.specs)
    stream, assembler = SyntheticStream("a", predictor.specs), Assembler(predictor.specs, 400, windows)
    for _ in range(10):
        t_ns = stream.due_ns
        for message in stream.next():
            if message.modality != "text":
                assembler.push(message)
        (answer,) = predictor.predict_look(windows, windows.look([assembler.place], [t_ns])).rows()
        assert answer.shares[list(predictor.specs).index("text")] == 0.0
        assert sum(answer.shares) == pytest.approx(1.0)
        assert sum(answer.emotions) == pytest.approx(1.0)


def test_nothing_observed_gives_no_confidence(predictor: Predictor) -> None:
    window = Stream(6).next()
    for mask in window.mask.values():
        mask[:] = 0
    answer = predict_anew(predictor, window)
    assert answer.confidence == 0.0
    assert set(answer.shares) == {0.0}


def test_model_id_names_checkpoint_and_engine(predictor: Predictor, checkpoint: Checkpoint) -> None:
    assert predictor.id == f"{checkpoint.id}/onnx-fp32"


def test_auto_uses_one_engine_for_all_parts(checkpoint: Checkpoint, compiled: Path) -> None:
    predictor = Predictor(checkpoint, cache=compiled)
    assert "+" not in predictor.id
    assert predictor.reason.startswith("measured on this machine")


def with_engines_on(device: str, predictor: Predictor) -> Predictor:
    """Put its torch modules where a GPU's would be, with separate memory: the code path is the GPU's."""
    import torch

    from mien.engines.torch_eager import build_module, cuda_engine

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU")
    torch.backends.cudnn.allow_tf32 = False  # as the backend does
    for part in predictor._parts():
        module = build_module(part.network).to(device)
        part.engine = cuda_engine(part.id, part.network, module, device=device)
    return predictor


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_windows_in_gpu_memory_give_equal_outputs(checkpoint: Checkpoint, compiled: Path, device: str) -> None:
    on_gpu = with_engines_on(device, Predictor(checkpoint, "torch", cache=compiled))
    on_host = Predictor(checkpoint, "torch", cache=compiled)
    windows = {"gpu": Windows(on_gpu.specs, 6), "host": Windows(on_gpu.specs, 6)}
    streams = [SyntheticStream(str(seed), on_gpu.specs, seed) for seed in range(6)]
    sessions = {kind: [Assembler(on_gpu.specs, 400, each) for _ in streams] for kind, each in windows.items()}
    random = np.random.default_rng(0)
    for frame in range(90):
        messages = [(stream.due_ns, stream.next()) for stream in streams]
        if frame < 30 and frame % 7:
            continue  # the first rows come late, all at once
        some = random.permutation(6)[: random.integers(1, 7)].tolist()
        early_ns = int(random.choice([0, 0, 40_000_000]))
        answers: dict[str, Answers] = {}
        for kind, predictor in (("gpu", on_gpu), ("host", on_host)):
            for number, (_, pieces) in enumerate(messages):
                for message in pieces:
                    sessions[kind][number].push(message)
            look = windows[kind].look(some, [messages[number][0] - early_ns for number in some])
            answers[kind] = predictor.predict_look(windows[kind], look)
        for left, right in zip(answers["gpu"], answers["host"], strict=True):
            np.testing.assert_allclose(left.astype(np.float32), right.astype(np.float32), atol=1e-4)
    assert on_gpu._gpu is not None


@pytest.mark.assets
def test_gpu_engine_takes_texts_of_any_length() -> None:
    from mien.engines.torch_eager import build_module, cuda_engine

    network = text_network(need_asset("minilm-l6-v2"))
    engine = cuda_engine("torch-cuda", network, build_module(network), device="cpu")
    example = network.example
    for pieces in (3, example["input_ids"].shape[1], 40):
        inputs = {name: np.resize(array, (1, pieces)) for name, array in example.items()}
        assert engine.infer(inputs)["states"].shape[:2] == (1, pieces)


def test_time_of_a_gpu_can_be_used(checkpoint: Checkpoint, compiled: Path) -> None:
    predictor = with_engines_on("cpu", Predictor(checkpoint, "torch", cache=compiled))
    windows = Windows(predictor.specs, 2)
    told: list[bool] = []
    for kept, window, t_ns in kept_stream("a", 0, windows, 3):
        look = windows.look([kept.place], [t_ns])
        answers = predictor.predict_look(windows, look, lambda is_done: told.append(is_done()))
        assert answers.sentiment[0] == pytest.approx(predict_anew(predictor, window).sentiment, abs=1e-4)
    assert told == [True] * 3


def test_failing_gpu_is_replaced_with_equal_outputs(
    checkpoint: Checkpoint, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = with_engines_on("cpu", Predictor(checkpoint, "torch", cache=compiled))
    steady = Predictor(checkpoint, "torch", cache=compiled)
    windows = Windows(failing.specs, 2)
    streams = (kept_stream(str(seed), seed, windows, 12) for seed in range(2))
    for number, moment in enumerate(zip(*streams, strict=True)):
        if number == 6:
            fusion = failing._fusion.engine

            def full(rows: int) -> None:
                raise RuntimeError(f"CUDA out of memory for {rows} rows")

            monkeypatch.setattr(fusion, "binding_for", full)
        look = windows.look([kept.place for kept, _, _ in moment], [t_ns for _, _, t_ns in moment])
        answers = failing.predict_look(windows, look)
        for index, (_, window, _) in enumerate(moment):
            assert answers.sentiment[index] == pytest.approx(predict_anew(steady, window).sentiment, abs=1e-4)
    assert failing.trouble is not None
    assert "out of memory" in failing.trouble
    assert all(track.written is None for track in windows.tracks.values())  # nobody would empty the lists
