"""CM-MSF becomes one TensorRT engine with the right numbers: proven without a GPU, with what must fail failing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from mien.engines.base import MAX_BATCH, Array
from mien.engines.golden import tolerance
from mien.engines.tensorrt import conversion, lstm
from mien.errors import EngineError
from tests.engines.tensorrt.conftest import FORMS, Form, reference, windows
from tests.engines.tensorrt.interpreter import Interpreter

FormOf = Callable[[str], Form]
CAPABILITIES = ("8.6", "8.9", "12.0")


def run_definition(form: Form, inputs: dict[str, Array]) -> dict[str, Array]:
    """What the TensorRT network computes, under the network's own names."""
    definition = form.definition
    named = {
        port: torch.from_numpy(inputs[name]) for port, name in zip(definition.inputs, form.network.example, strict=True)
    }
    results = Interpreter(definition.net)(named)
    return {name: results[port].numpy() for port, name in zip(definition.outputs, form.network.outputs, strict=True)}


def rows_of(form: Form) -> tuple[int, ...]:
    """How many windows to run it on: its own number, or several where that is open."""
    return (1, 3, MAX_BATCH) if form.batch is None else (form.batch,) * 2


def largest_difference(got: dict[str, Array], want: dict[str, Array]) -> float:
    return max(float(np.abs(got[name] - want[name]).max()) for name in want)


@pytest.mark.parametrize("name", FORMS)
def test_whole_network_is_one_engine(form: FormOf, module: nn.Module, name: str) -> None:
    coverage = conversion.partition(form(name).graph)[0]
    assert coverage.unsupported == ()
    assert (coverage.engines, coverage.torch_blocks) == (1, 0)
    assert coverage.is_whole
    recurrent = sum(isinstance(part, nn.LSTM) for part in module.modules())
    assert coverage.operations["aten.lstm.input"] == recurrent > 0


@pytest.mark.parametrize("name", FORMS)
def test_every_recurrence_is_a_loop(form: FormOf, module: nn.Module, name: str) -> None:
    import tensorrt

    net = form(name).definition.net
    kinds = [net.get_layer(index).type for index in range(net.num_layers)]
    recurrent = sum(isinstance(part, nn.LSTM) for part in module.modules())
    assert kinds.count(tensorrt.LayerType.TRIP_LIMIT) == recurrent


@pytest.mark.parametrize("name", [name for name, (precision, _) in FORMS.items() if precision == "fp32"])
def test_network_equals_eager(form: FormOf, module: nn.Module, name: str) -> None:
    compiled = form(name)
    for seed, rows in enumerate(rows_of(compiled)):
        inputs = windows(compiled.network, rows, seed)
        want = reference(module, compiled.network, inputs)
        assert largest_difference(run_definition(compiled, inputs), want) <= 1e-4


@pytest.mark.parametrize("name", [name for name, (precision, _) in FORMS.items() if precision == "fp16"])
def test_half_precision_is_within_a_hundredth_of_the_deviation(form: FormOf, module: nn.Module, name: str) -> None:
    compiled = form(name)
    population = reference(module, compiled.network, windows(compiled.network, 64, seed=9))
    for seed, rows in enumerate(rows_of(compiled)):
        inputs = windows(compiled.network, rows, seed)
        want, got = reference(module, compiled.network, inputs), run_definition(compiled, inputs)
        for output in ("sentiment", "emotions"):
            off = np.abs(got[output] - want[output]).max()
            assert off <= tolerance([population[output]], "fp16"), output


@pytest.mark.parametrize("name", ["static-4", "static-8", "dynamic"])
def test_batch_equals_single_windows(form: FormOf, module: nn.Module, name: str) -> None:
    """Each row depends on its own window only."""
    compiled = form(name)
    inputs = windows(compiled.network, compiled.batch or 8, seed=5)
    together = run_definition(compiled, inputs)
    assert together["shares"][1, 1] == 0.0  # the modality that this window lacks
    for row in range(len(together["shares"])):
        alone = reference(module, compiled.network, {key: array[row : row + 1] for key, array in inputs.items()})
        assert largest_difference({key: array[row : row + 1] for key, array in together.items()}, alone) <= 1e-4


@pytest.mark.parametrize("name", ["dynamic", "half-dynamic"])
def test_dynamic_batch_is_one_to_thirty_two(form: FormOf, name: str) -> None:
    """The sizes given to the engine, which refuses larger batches."""
    import tensorrt

    net = form(name).definition.net
    profiles = form(name).definition.interpreter.optimization_profiles
    (profile,) = profiles
    for index in range(net.num_inputs):
        tensor = net.get_input(index)
        assert tensor.shape[0] == -1
        least, _, most = profile.get_shape(tensor.name)
        assert (least[0], most[0]) == (1, MAX_BATCH) == (1, 512)
        assert tuple(least[1:]) == tuple(most[1:]) == tuple(tensor.shape[1:])
        assert tensor.dtype == tensorrt.float32


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", FORMS)
def test_engine_is_built_ahead_of_time(form: FormOf, name: str, capability: str) -> None:
    plan = conversion.serialise(form(name).definition, conversion.capability_of(capability))
    weights = sum(parameter.numel() for parameter in form(name).network.build().parameters())
    assert len(plan) > weights * (2 if FORMS[name][0] == "fp16" else 4) * 0.9


@pytest.mark.parametrize("capability", ["1.0", "9.0"])
def test_unsupported_capability_is_an_error(capability: str) -> None:
    """TensorRT for RTX knows no Hopper; standard TensorRT builds for those where they are."""
    with pytest.raises(EngineError, match=rf"cannot build for SM {capability}, only for .*8\.9.*12\.0"):
        conversion.capability_of(capability)


def test_nine_point_zero_is_refused_by_tensorrt_itself() -> None:
    """Not for want of a name in the bindings: asked by number, the builder refuses. Should this fail, build for it."""
    import tensorrt

    class Listener(tensorrt.ILogger):  # type: ignore[misc]
        text: str = ""

        def log(self, severity: object, message: str) -> None:
            del severity
            self.text += message

    listener = Listener()
    builder = tensorrt.Builder(listener)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(tensorrt.ComputeCapability(89), 0)
    assert not config.set_compute_capability(tensorrt.ComputeCapability(90), 0)
    assert "Compute capability is invalid or not supported" in listener.text


def test_without_the_converter_the_graph_is_split(form: FormOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the coverage check sees a missing converter."""
    from torch_tensorrt.dynamo.conversion import _ConverterRegistry as registry

    compiled = form("static")
    monkeypatch.delitem(registry.DYNAMO_ATEN_CONVERTERS, torch.ops.aten.lstm.input)
    coverage = conversion.partition(compiled.graph)[0]
    assert "aten.lstm.input" in coverage.unsupported
    assert coverage.engines > 1
    assert coverage.torch_blocks > 1
    with pytest.raises(EngineError, match=r"no converter for .*aten\.lstm\.input"):
        conversion.define(compiled.network, compiled.graph)


def test_swapped_gates_are_detected(form: FormOf, module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the numeric check sees a converter that takes the input gate for the forget gate."""
    compiled = form("static")
    right = lstm._array

    def swapped(weight: object) -> Array:
        gates = np.split(right(weight), 4)
        return np.concatenate([gates[1], gates[0], gates[2], gates[3]])

    monkeypatch.setattr(lstm, "_array", swapped)
    wrong = Form(
        compiled.network,
        compiled.precision,
        compiled.batch,
        compiled.graph,
        conversion.define(compiled.network, compiled.graph),
    )
    inputs = windows(compiled.network, 1)
    want = reference(module, compiled.network, inputs)
    assert largest_difference(run_definition(wrong, inputs), want) > 1e-3
