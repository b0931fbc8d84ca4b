"""`nn.LSTM` as one TensorRT loop.

torch.export keeps an LSTM as one operator, `aten.lstm.input`. torch-tensorrt has no converter for it and writes it out
step by step, which takes minutes to build and thousands of layers. Here it becomes a TensorRT loop (ILoop) of one
step, in which both directions advance together:

    input projections of all steps at once, (B, T, I) -> (B, T, 8H), outside the loop
    gates of a step = projection of the step + h @ W_h, as one batched product over both directions, (2, B, 4H)
    c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c)

Formulas and gate order (i, f, g, o): documentation of torch.nn.LSTM. Only what mien's models use is converted: one
layer, bidirectional, batch first, with biases, from zero states, of which only the output sequence is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

Floats = npt.NDArray[Any]
DIRECTIONS = 2


def register_converter() -> None:
    """Make torch-tensorrt convert `aten.lstm.input` whole. Safe to call again."""
    from torch_tensorrt.dynamo.conversion import _ConverterRegistry as registry
    from torch_tensorrt.dynamo.lowering import _decomposition_groups as groups

    target = torch.ops.aten.lstm.input
    if target not in registry.DYNAMO_ATEN_CONVERTERS:
        register = registry.dynamo_tensorrt_converter(
            target, capability_validator=is_convertible, supports_dynamic_shapes=True
        )
        register(convert)
    groups.torch_disabled_decompositions.add(target)


def is_convertible(node: fx.Node, settings: Any = None) -> bool:
    """Whether a call of `aten.lstm.input` is one that `convert` reproduces exactly."""
    del settings
    _, states, weights, has_biases, layers, dropout, training, bidirectional, batch_first = node.args
    assert isinstance(states, Sequence)
    assert isinstance(weights, Sequence)
    return bool(
        has_biases
        and bidirectional
        and batch_first
        and layers == 1
        and (dropout == 0 or not training)
        and len(weights) == 4 * DIRECTIONS
        and all(isinstance(state, fx.Node) and _is_zero(state) for state in states)
        and _reads_only_the_sequence(node)
    )


def convert(ctx: Any, target: Any, args: Sequence[Any], kwargs: Any, name: str) -> tuple[Any, None, None]:
    """Add the loop to `ctx.net`. Returns the output sequence (B, T, 2H); final states are not computed."""
    del target, kwargs
    x, weights = args[0], [_array(weight) for weight in args[2]]
    cell = _Loop(ctx, name, x, weights)
    return cell.sequence(), None, None


class _Loop:
    """Builds the layers of one LSTM. Shapes in comments; B may only be known at run time, then it is -1 here."""

    def __init__(self, ctx: Any, name: str, x: Any, weights: Sequence[Floats]) -> None:
        import tensorrt

        self.trt, self.ctx, self.net, self.name, self.x = tensorrt, ctx, ctx.net, name, x
        self.batch, self.steps, _ = (int(size) for size in x.shape)
        w_in, w_hidden, b_in, b_hidden = (np.stack(weights[index::4]) for index in range(4))  # leading axis: direction
        self.hidden = w_hidden.shape[-1]
        self.w_in = w_in.transpose(2, 0, 1).reshape(1, w_in.shape[2], -1)  # (1, I, 8H)
        self.bias = (b_in + b_hidden).reshape(1, 1, -1)  # (1, 1, 8H)
        self.w_hidden = w_hidden.transpose(0, 2, 1)  # (2, H, 4H)

    def sequence(self) -> Any:
        """The whole LSTM: (B, T, I) -> (B, T, 2H)."""
        trt, net, hidden, steps = self.trt, self.net, self.hidden, self.steps
        gates = 4 * hidden
        projected = self._sum(self._matmul(self.x, self._constant(self.w_in, "w_in")), self._constant(self.bias, "b"))
        forward = self._cut(projected, (0, 0, 0), (self.batch, steps, gates))
        # The second direction reads time backwards, so that step k of the loop is its k-th step too.
        backward = self._cut(projected, (0, steps - 1, gates), (self.batch, steps, gates), (1, -1, 1))
        both = self._concatenate([self._lead(forward), self._lead(backward)], axis=0)  # (2, B, T, 4H)

        loop = net.add_loop()
        loop.name = f"{self.name}-loop"
        trips = self._constant(np.array(steps, np.int32), "trips")
        loop.add_trip_limit(trips, trt.TripLimit.COUNT)
        step = loop.add_iterator(both, 2, False).get_output(0)  # (2, B, 4H)
        zeros = self._zeros(both)
        h_state, c_state = loop.add_recurrence(zeros), loop.add_recurrence(zeros)  # (2, B, H)
        h, c = h_state.get_output(0), c_state.get_output(0)
        preactivation = self._sum(step, self._matmul(h, self._constant(self.w_hidden, "w_hidden")))

        def gate(index: int, kind: Any) -> Any:
            part = self._cut(preactivation, (0, 0, index * hidden), (DIRECTIONS, self.batch, hidden), batch_axis=1)
            return net.add_activation(part, kind).get_output(0)

        sigmoid, tanh = trt.ActivationType.SIGMOID, trt.ActivationType.TANH
        i, f, g, o = gate(0, sigmoid), gate(1, sigmoid), gate(2, tanh), gate(3, sigmoid)
        c_next = self._sum(self._product(f, c), self._product(i, g))
        h_next = self._product(o, net.add_activation(c_next, tanh).get_output(0))
        c_state.set_input(1, c_next)
        h_state.set_input(1, h_next)
        collected = loop.add_loop_output(h_next, trt.LoopOutput.CONCATENATE, 2)
        collected.set_input(1, trips)
        states = collected.get_output(0)  # (2, B, T, H)

        size = (1, self.batch, steps, hidden)
        forward = self._cut(states, (0, 0, 0, 0), size, batch_axis=1)
        backward = self._cut(states, (1, 0, steps - 1, 0), size, (1, 1, -1, 1), batch_axis=1)
        joined = self._concatenate([forward, backward], axis=3)  # (1, B, T, 2H)
        output = net.add_shuffle(joined)
        # 0 stands for "as in the input"; the axis of B comes first now.
        output.first_transpose = trt.Permutation([1, 0, 2, 3])
        output.reshape_dims = trt.Dims([0, steps, DIRECTIONS * hidden])
        output.name = f"{self.name}-output"
        return output.get_output(0)

    def _zeros(self, like: Any) -> Any:
        """Zeros (2, B, H) in the type of the computation."""
        zero = np.zeros((1, 1, 1), self.w_hidden.dtype)
        layer = self.net.add_slice(
            self._constant(zero, "zero"), (0, 0, 0), (DIRECTIONS, max(self.batch, 1), self.hidden), (0, 0, 0)
        )
        if self.batch < 0:
            layer.set_input(2, self._size((DIRECTIONS, -1, self.hidden), like, 1, batch_axis=1))
        return layer.get_output(0)

    def _cut(
        self,
        tensor: Any,
        start: Sequence[int],
        size: Sequence[int],
        stride: Sequence[int] | None = None,
        batch_axis: int = 0,
    ) -> Any:
        """A slice, in which the size of the batch axis may be known at run time only."""
        fixed = tuple(max(extent, 1) for extent in size)
        layer = self.net.add_slice(tensor, tuple(start), fixed, tuple(stride or [1] * len(size)))
        if self.batch < 0:
            layer.set_input(2, self._size(size, tensor, batch_axis, batch_axis))
        return layer.get_output(0)

    def _size(self, size: Sequence[int], source: Any, source_axis: int, batch_axis: int) -> Any:
        """`size` as a shape tensor, its batch axis taken from axis `source_axis` of `source`."""
        shape = self.net.add_shape(source).get_output(0)
        batch = self.net.add_slice(shape, (source_axis,), (1,), (1,)).get_output(0)
        parts = [
            batch if axis == batch_axis else self._constant(np.array([extent], np.int64), "extent")
            for axis, extent in enumerate(size)
        ]
        return self._concatenate(parts, axis=0)

    def _constant(self, values: Floats, what: str) -> Any:
        from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

        if values.ndim == 0 or values.dtype.kind == "i":
            held = np.ascontiguousarray(values)
            self.ctx.cpu_weights_reference_holder.append(held)  # TensorRT reads it only when it builds
            return self.net.add_constant(values.shape, self.trt.Weights(held)).get_output(0)
        return get_trt_tensor(self.ctx, torch.from_numpy(np.ascontiguousarray(values)), f"{self.name}_{what}")

    def _lead(self, tensor: Any) -> Any:
        """(B, T, G) -> (1, B, T, G)."""
        axis = self._constant(np.array([0], np.int32), "axis")
        return self.net.add_unsqueeze(tensor, axis).get_output(0)

    def _concatenate(self, tensors: Sequence[Any], axis: int) -> Any:
        layer = self.net.add_concatenation(list(tensors))
        layer.axis = axis
        return layer.get_output(0)

    def _matmul(self, left: Any, right: Any) -> Any:
        plain = self.trt.MatrixOperation.NONE
        return self.net.add_matrix_multiply(left, plain, right, plain).get_output(0)

    def _sum(self, left: Any, right: Any) -> Any:
        return self.net.add_elementwise(left, right, self.trt.ElementWiseOperation.SUM).get_output(0)

    def _product(self, left: Any, right: Any) -> Any:
        return self.net.add_elementwise(left, right, self.trt.ElementWiseOperation.PROD).get_output(0)


def _is_zero(state: fx.Node) -> bool:
    """Whether an initial state is zero for all inputs."""
    if state.op == "get_attr":
        value = _attribute(state)
        return isinstance(value, torch.Tensor) and not bool(value.count_nonzero())
    if state.op != "call_function":
        return False
    if state.target is torch.ops.aten.zeros.default:
        return True
    if state.target is torch.ops.aten.full.default:
        return bool(state.args[1] == 0)
    # Views of zeros are zeros.
    views: tuple[Callable[..., Any], ...] = (
        torch.ops.aten.expand.default,
        torch.ops.aten.clone.default,
        torch.ops.aten._to_copy.default,
    )
    source = state.args[0] if state.args else None
    return state.target in views and isinstance(source, fx.Node) and _is_zero(source)


def _attribute(node: fx.Node) -> Any:
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value


def _reads_only_the_sequence(node: fx.Node) -> bool:
    """Whether nothing but output 0 of the LSTM is used."""
    return all(len(user.args) == 2 and (user.args[1] == 0 or not user.users) for user in node.users)


def _array(weight: Any) -> Floats:
    if isinstance(weight, torch.Tensor):
        values: Floats = weight.detach().cpu().numpy()
        return values
    return np.asarray(weight)
