"""The properties that CM-MSF must have for any weights."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
import torch

from mien.errors import ConfigError
from mien.messages import EMOTIONS, ModalitySpec
from mien.models.architecture import ConvLayer, EncoderConfig, ModelConfig
from mien.models.cmmsf import CMMSF
from mien.models.layers import pool_to_slots

SPECS = (
    ModalitySpec("text", 12, 0, 50, snapshot=True),
    ModalitySpec("audio", 9, 50, 250),
    ModalitySpec("vision", 7, 10, 50),
)
ENCODERS = {
    "text": EncoderConfig(kernel=1),
    "audio": EncoderConfig(front=(ConvLayer(8, 5, 2), ConvLayer(12, 3, 2)), kernel=5),
    "vision": EncoderConfig(front=(ConvLayer(12, 3, 2),)),
}
NEW = {"complement": "mean", "reliability": True}
FORMS = [{}, {"complement": "mean"}, {"reliability": True}, NEW]
Batch = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def model(specs: tuple[ModalitySpec, ...] = SPECS, /, **switches: object) -> CMMSF:
    torch.manual_seed(3)
    network = CMMSF(specs, ModelConfig(dim=16, encoders=ENCODERS, **switches))  # type: ignore[arg-type]
    with torch.no_grad():  # statistics other than 0 and 1, so that forgetting them shows
        for name, statistic in network.named_buffers():
            if name.endswith("mean"):
                statistic.normal_()
            elif name.endswith(("std", "var")):
                statistic.uniform_(0.5, 2.0)
    return network.eval()


def batch(size: int = 4, specs: tuple[ModalitySpec, ...] = SPECS, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    features = {s.name: torch.randn(size, s.steps, s.dim, generator=generator) for s in specs}
    mask = {s.name: (torch.rand(size, s.steps, generator=generator) < 0.6).float() for s in specs}
    return features, mask


@torch.inference_mode()
def predict(
    network: CMMSF, features: dict[str, torch.Tensor], mask: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    outputs: tuple[torch.Tensor, ...] = network(
        *itertools.chain.from_iterable((features[m], mask[m]) for m in network.names)
    )
    return outputs


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_outputs_have_the_documented_shapes_and_ranges(form: dict[str, object]) -> None:
    sentiment, emotions, confidence, gates = predict(model(**form), *batch(5))
    assert sentiment.shape == (5,)
    assert confidence.shape == (5,)
    assert emotions.shape == (5, len(EMOTIONS))
    assert gates.shape == (5, 3)
    assert sentiment.abs().max() <= 3
    torch.testing.assert_close(emotions.sum(1), torch.ones(5))
    torch.testing.assert_close(gates.sum(1), torch.ones(5))
    torch.testing.assert_close(confidence, emotions.amax(1))


@pytest.mark.parametrize("garbage", [1e30, -7.0, float("nan"), float("inf")])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_masked_step_changes_nothing_bit_for_bit(form: dict[str, object], garbage: float) -> None:
    network, (features, mask) = model(**form), batch()
    clean = {m: x * mask[m][..., None] for m, x in features.items()}
    dirty = {m: torch.where(mask[m][..., None] > 0, x, torch.full_like(x, garbage)) for m, x in features.items()}
    for a, b in zip(predict(network, clean, mask), predict(network, dirty, mask), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("missing", ["text", "audio", "vision"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_missing_modality_has_share_zero_and_its_values_do_not_matter(form: dict[str, object], missing: str) -> None:
    network, (features, mask) = model(**form), batch()
    mask[missing].zero_()
    first = predict(network, features, mask)
    index = network.names.index(missing)
    assert torch.equal(first[3][:, index], torch.zeros(4))
    torch.testing.assert_close(first[3].sum(1), torch.ones(4))
    features[missing] = features[missing] * 100 + 3
    assert all(torch.equal(a, b) for a, b in zip(first, predict(network, features, mask), strict=True))


@pytest.mark.parametrize("only", ["text", "audio", "vision"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_single_modality_has_share_one(form: dict[str, object], only: str) -> None:
    network, (features, mask) = model(**form), batch()
    for m in network.names:
        if m != only:
            mask[m].zero_()
    torch.testing.assert_close(predict(network, features, mask)[3][:, network.names.index(only)], torch.ones(4))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_nothing_observed_gives_no_prediction(form: dict[str, object]) -> None:
    network, (features, mask) = model(**form), batch()
    for m in network.names:
        mask[m].zero_()
    sentiment, emotions, confidence, gates = predict(network, features, mask)
    assert torch.equal(sentiment, torch.zeros(4))
    assert torch.equal(confidence, torch.zeros(4))
    assert torch.equal(gates, torch.zeros(4, 3))
    torch.testing.assert_close(emotions, torch.full((4, 7), 1 / 7))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_batch_equals_its_items_one_by_one(form: dict[str, object]) -> None:
    network, (features, mask) = model(**form), batch(6)
    mask["audio"][2].zero_()
    mask["text"][3].zero_()
    together = predict(network, features, mask)
    for i in range(6):
        alone = predict(
            network, {m: x[i : i + 1] for m, x in features.items()}, {m: x[i : i + 1] for m, x in mask.items()}
        )
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_cached_encodings_give_what_the_whole_model_gives(form: dict[str, object]) -> None:
    network, (features, mask) = model(**form), batch()
    with torch.inference_mode():
        encodings = {m: network.encode(m, features[m], mask[m]) for m in network.names}
        inputs = [tensor for m in network.names for tensor in encodings[m]]
        for a, b, c in zip(
            predict(network, features, mask),
            network.fusion.calibrated(network.raw_of(encodings)),
            network.fusion(*inputs),
            strict=True,
        ):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@pytest.mark.parametrize("present", [("text",), ("audio", "vision"), ("vision", "text")])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_leaving_a_modality_out_equals_masking_it(form: dict[str, object], present: tuple[str, ...]) -> None:
    network, (features, mask) = model(**form), batch()
    with torch.inference_mode():
        short = network.raw({m: features[m] for m in present}, {m: mask[m] for m in present})
        for m in set(network.names) - set(present):
            mask[m].zero_()
        full = network.raw(features, mask)
    for a, b in zip(short[:4], full[:4], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_modality_and_every_depth_reaches_the_output(form: dict[str, object]) -> None:
    network, (features, mask) = model(**form), batch()
    for x in features.values():
        x.requires_grad_()
    fused = network.raw(features, mask)
    loss: torch.Tensor = (
        fused.sentiment.sum()
        + fused.logits.square().sum()
        + fused.log_variance.sum()
        + fused.shares[:, 0].sum()
        + (0.0 if fused.judgement is None else fused.judgement.alone.square().sum())
    )
    torch.autograd.backward(loss)
    for m, x in features.items():
        assert x.grad is not None
        assert (x.grad.abs().sum(-1) > 0).eq(mask[m] > 0).all()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_modality_is_complemented_by_the_others(form: dict[str, object]) -> None:
    network, (features, mask) = model(**form), batch()
    pooled: list[torch.Tensor] = []
    network.fusion.mgf.pools["text"].register_forward_hook(lambda *args: pooled.append(args[2]))
    predict(network, features, mask)
    features["vision"] = features["vision"] + 1
    predict(network, features, mask)
    assert not torch.allclose(pooled[0], pooled[1])


@pytest.mark.parametrize(
    "switches", [{"bilstm": False}, {"conv": False}, {"cascade": False}, {"mask": False}, {"gate": False}], ids=str
)
def test_ablations_run_and_differ(switches: dict[str, bool]) -> None:
    features, mask = batch()
    whole, part = predict(model(), features, mask), predict(model(**switches), features, mask)
    assert not torch.allclose(whole[1], part[1])
    if switches == {"gate": False}:
        torch.testing.assert_close(part[3], torch.full((4, 3), 1 / 3))


def test_the_mean_of_the_others_takes_half_of_the_recurrences_of_the_cascade() -> None:
    count = {
        way: sum(isinstance(module, torch.nn.LSTM) for module in model(complement=way).fusion.modules())
        for way in ("pairs", "mean")
    }
    assert count == {"pairs": 12, "mean": 6}


def test_a_checkpoint_that_names_no_complement_has_pairs_and_no_reliability() -> None:
    config = msgspec.json.decode(b'{"dim": 16}', type=ModelConfig)
    assert (config.complement, config.reliability) == ("pairs", False)
    with pytest.raises(msgspec.ValidationError, match="complement"):
        msgspec.json.decode(b'{"complement": "sum"}', type=ModelConfig)


@torch.inference_mode()
def rely_on_sound(network: CMMSF, bias: float) -> None:
    """The reliability of sound, constant."""
    assert network.fusion.reliability is not None
    network.fusion.reliability.get_parameter("own.audio.2.bias").fill_(bias)


def test_unreliable_modality_has_a_small_share() -> None:
    network, (features, mask) = model(**NEW), batch()
    mixed = []
    network.fusion.mgf.pools["text"].register_forward_hook(lambda *args: mixed.append(args[2]))
    with torch.inference_mode():
        for bias in (8.0, -8.0):
            rely_on_sound(network, bias)
            fused = network.raw(features, mask)
            mixed.append(fused.shares[:, 1])
    assert (mixed[1] > 0.3).all()
    assert (mixed[3] < 0.01).all()
    assert not torch.allclose(mixed[0], mixed[2])


def test_reliability_does_not_change_a_single_modality() -> None:
    network, (features, mask) = model(**NEW), batch()
    with torch.inference_mode():
        outputs = []
        for bias in (8.0, -8.0):
            rely_on_sound(network, bias)
            outputs.append(network.raw({"audio": features["audio"]}, {"audio": mask["audio"]}))
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    high, low = (each.judgement for each in outputs)
    assert high is not None
    assert low is not None
    assert (high.reliability[:, 1] > low.reliability[:, 1]).all()


def test_without_conv_and_bilstm_there_is_no_encoder() -> None:
    with pytest.raises(ConfigError, match="nothing left"):
        ModelConfig(bilstm=False, conv=False)


def test_a_long_modality_gets_a_front_end() -> None:
    network = CMMSF((ModalitySpec("pulse", 3, 60, 500), ModalitySpec("audio", 5, 50, 250)), ModelConfig(dim=8))
    for name in network.names:
        assert network.config.encoders[name].stride >= 3
    features, mask = batch(2, network.specs)
    assert predict(network, features, mask)[3].shape == (2, 2)


@pytest.mark.parametrize("names", [("text",), ("audio", "text"), ("text", "audio", "vision", "pulse")])
def test_any_set_of_modalities_works(names: tuple[str, ...]) -> None:
    pulse = ModalitySpec("pulse", 2, 4, 20)
    specs = tuple(spec for name in names for spec in (*SPECS, pulse) if spec.name == name)
    torch.manual_seed(0)
    network = CMMSF(specs, ModelConfig(dim=16, encoders=ENCODERS)).eval()
    features, mask = batch(3, specs)
    gates = predict(network, features, mask)[3]
    assert gates.shape == (3, len(names))
    torch.testing.assert_close(gates.sum(1), torch.ones(3))


def test_pooling_averages_observed_steps_of_each_slot() -> None:
    x = torch.tensor([[[1.0], [3.0], [5.0], [100.0], [7.0]]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    pooled, observed = pool_to_slots(x, mask, 3)
    # five steps on three slots: the second step is shared by the first two slots, a third of a step by each border
    np.testing.assert_allclose(pooled[0, :, 0], [(1 + 3 * 2 / 3) / (5 / 3), (3 / 3 + 5) / (4 / 3), 0.0], rtol=1e-6)
    np.testing.assert_allclose(observed[0], [1.0, (4 / 3) / (5 / 3), 0.0], rtol=1e-6)


def test_training_of_one_modality_leaves_the_statistics_of_another_alone() -> None:
    network, (features, mask) = model().train(), batch()
    before = {name: tensor.clone() for name, tensor in network.encoders["audio"].state_dict().items()}
    network.raw({"text": features["text"]}, {"text": mask["text"]})
    for name, tensor in network.encoders["audio"].state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # nn.LSTM's own cache of its weights
@pytest.mark.long  # what a stream runs is exported by the traced exporter, which the tests of the engines look at
@pytest.mark.parametrize("form", [{}, NEW], ids=str)
def test_export_keeps_one_lstm_operation_per_lstm_and_a_free_batch(form: dict[str, object]) -> None:
    specs = SPECS[1:]  # two are exported in half the time of three
    network, (features, mask) = model(specs, stages=1, **form), batch(specs=specs)
    inputs = tuple(tensor for m in network.names for tensor in (features[m], mask[m]))
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    program = torch.export.export(network, inputs, dynamic_shapes={"inputs": dynamic})
    lstms = [node for node in program.graph.nodes if node.op == "call_function" and "lstm" in str(node.target)]
    assert len(lstms) == sum(isinstance(module, torch.nn.LSTM) for module in network.modules())
    features, mask = batch(7, specs, seed=1)
    inputs = tuple(tensor for m in network.names for tensor in (features[m], mask[m]))
    for a, b in zip(program.module()(*inputs), predict(network, features, mask), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
