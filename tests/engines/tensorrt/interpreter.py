"""Runs a TensorRT network definition in torch on the CPU, layer by layer.

TensorRT itself needs a GPU. This evaluates the network definition built by the converters, loops included, so that a
wrong converter gives wrong numbers here too. It supports the layer types that CM-MSF uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorrt as trt
import torch
from torch import Tensor
from torch.nn import functional as F

_Kind = trt.LayerType
_Elementwise = trt.ElementWiseOperation
_Activation = trt.ActivationType
_Reduce = trt.ReduceOperation
_Unary = trt.UnaryOperation

_TYPES = {
    trt.float32: torch.float32,
    trt.float16: torch.float16,
    trt.int32: torch.int32,
    trt.int64: torch.int64,
    trt.bool: torch.bool,
}
_ELEMENTWISE: dict[Any, Callable[..., Tensor]] = {
    _Elementwise.SUM: torch.add,
    _Elementwise.SUB: torch.sub,
    _Elementwise.PROD: torch.mul,
    _Elementwise.DIV: torch.div,
    _Elementwise.MAX: torch.maximum,
    _Elementwise.MIN: torch.minimum,
    _Elementwise.POW: torch.pow,
    _Elementwise.FLOOR_DIV: torch.floor_divide,
    _Elementwise.EQUAL: torch.eq,
    _Elementwise.GREATER: torch.gt,
    _Elementwise.LESS: torch.lt,
    _Elementwise.AND: torch.logical_and,
    _Elementwise.OR: torch.logical_or,
}
_ACTIVATIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    _Activation.RELU: F.relu,
    _Activation.SIGMOID: torch.sigmoid,
    _Activation.TANH: torch.tanh,
    _Activation.GELU_ERF: F.gelu,
    _Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}
_REDUCTIONS: dict[Any, Callable[..., Tensor]] = {
    _Reduce.SUM: torch.sum,
    _Reduce.AVG: torch.mean,
    _Reduce.MAX: torch.amax,
    _Reduce.MIN: torch.amin,
}
_UNARY: dict[Any, Callable[[Tensor], Tensor]] = {
    _Unary.EXP: torch.exp,
    _Unary.LOG: torch.log,
    _Unary.SQRT: torch.sqrt,
    _Unary.RECIP: torch.reciprocal,
    _Unary.ABS: torch.abs,
    _Unary.NEG: torch.neg,
    _Unary.NOT: torch.logical_not,
}
# The bindings hand out every layer as an ILayer; these are what they really are.
_CLASSES = {
    _Kind.ACTIVATION: trt.IActivationLayer,
    _Kind.CAST: trt.ICastLayer,
    _Kind.CONCATENATION: trt.IConcatenationLayer,
    _Kind.CONSTANT: trt.IConstantLayer,
    _Kind.CONVOLUTION: trt.IConvolutionLayer,
    _Kind.ELEMENTWISE: trt.IElementWiseLayer,
    _Kind.FILL: trt.IFillLayer,
    _Kind.GATHER: trt.IGatherLayer,
    _Kind.ITERATOR: trt.IIteratorLayer,
    _Kind.LOOP_OUTPUT: trt.ILoopOutputLayer,
    _Kind.MATRIX_MULTIPLY: trt.IMatrixMultiplyLayer,
    _Kind.NORMALIZATION: trt.INormalizationLayer,
    _Kind.PADDING: trt.IPaddingLayer,
    _Kind.RECURRENCE: trt.IRecurrenceLayer,
    _Kind.REDUCE: trt.IReduceLayer,
    _Kind.SCALE: trt.IScaleLayer,
    _Kind.SELECT: trt.ISelectLayer,
    _Kind.SHUFFLE: trt.IShuffleLayer,
    _Kind.SLICE: trt.ISliceLayer,
    _Kind.SOFTMAX: trt.ISoftMaxLayer,
    _Kind.TRIP_LIMIT: trt.ITripLimitLayer,
    _Kind.UNARY: trt.IUnaryLayer,
}
_LOOP_KINDS = (_Kind.TRIP_LIMIT, _Kind.ITERATOR, _Kind.RECURRENCE, _Kind.LOOP_OUTPUT)


class _Scope(dict[str, Tensor]):
    """Values of one step of a loop, over those around it."""

    def __init__(self, outer: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.outer = outer

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, name) or name in self.outer

    def __getitem__(self, name: str) -> Tensor:
        return dict.__getitem__(self, name) if dict.__contains__(self, name) else self.outer[name]


class Interpreter:
    """A `tensorrt.INetworkDefinition`, callable.

    Args:
        net: the network. Tensors that are not outputs are renamed, so that every name is unique.
    """

    def __init__(self, net: Any) -> None:
        self._net = net
        self._layers = [net.get_layer(index) for index in range(net.num_layers)]
        self._kinds = [layer.type for layer in self._layers]
        outputs = {net.get_output(index).name for index in range(net.num_outputs)}
        self._maker: dict[str, int] = {}
        self._loops: dict[str, list[int]] = {}
        for index, (layer, kind) in enumerate(zip(self._layers, self._kinds, strict=True)):
            for place in range(layer.num_outputs):
                tensor = layer.get_output(place)
                if tensor.name not in outputs:
                    tensor.name = f"tensor_{index}_{place}"
                self._maker[tensor.name] = index
            if kind in _CLASSES:
                layer.__class__ = _CLASSES[kind]
            if kind in _LOOP_KINDS:
                self._loops.setdefault(layer.loop.name, []).append(index)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output of the network by name."""
        values = dict(inputs)
        with torch.inference_mode():
            for index in range(self._net.num_outputs):
                self._compute(self._net.get_output(index).name, values)
        return {name: values[name] for name in (self._net.get_output(i).name for i in range(self._net.num_outputs))}

    def _compute(self, name: str, values: dict[str, Tensor]) -> Tensor:
        # A stack, not recursion: networks are deeper than Python's call stack.
        stack = [name]
        while stack:
            shape = stack[-1]
            if shape in values:
                stack.pop()
                continue
            index = self._maker[shape]
            layer, kind = self._layers[index], self._kinds[index]
            if kind == _Kind.LOOP_OUTPUT:
                self._run_loop(layer.loop.name, values)
                continue
            tensors = [layer.get_input(place) for place in range(layer.num_inputs)]
            missing = [tensor.name for tensor in tensors if tensor is not None and tensor.name not in values]
            if missing:
                stack.extend(missing)
                continue
            given = [None if tensor is None else values[tensor.name] for tensor in tensors]
            values[shape] = _evaluate(layer, kind, given)
            stack.pop()
        return values[name]

    def _run_loop(self, name: str, values: dict[str, Tensor]) -> None:
        members = [(self._layers[index], self._kinds[index]) for index in self._loops[name]]

        def of(shape: Any) -> list[Any]:
            return [layer for layer, kind in members if kind == shape]

        (limit,) = of(_Kind.TRIP_LIMIT)
        steps = int(self._compute(limit.get_input(0).name, values))
        iterators, recurrences, outputs = of(_Kind.ITERATOR), of(_Kind.RECURRENCE), of(_Kind.LOOP_OUTPUT)
        sources = [self._compute(layer.get_input(0).name, values) for layer in iterators]
        states = [self._compute(layer.get_input(0).name, values) for layer in recurrences]
        collected: list[list[Tensor]] = [[] for _ in outputs]
        for step in range(steps):
            scope = _Scope(values)
            for layer, source in zip(iterators, sources, strict=True):
                at = steps - 1 - step if layer.reverse else step
                scope[layer.get_output(0).name] = source.select(layer.axis, at)
            for layer, state in zip(recurrences, states, strict=True):
                scope[layer.get_output(0).name] = state
            for layer, kept in zip(outputs, collected, strict=True):
                kept.append(self._compute(layer.get_input(0).name, scope))
            states = [self._compute(layer.get_input(1).name, scope) for layer in recurrences]
        for layer, kept in zip(outputs, collected, strict=True):
            if layer.kind == trt.LoopOutput.LAST_VALUE:
                result = kept[-1]
            else:
                result = torch.stack(kept if layer.kind == trt.LoopOutput.CONCATENATE else kept[::-1], layer.axis)
            values[layer.get_output(0).name] = result


def _evaluate(layer: Any, kind: Any, x: list[Tensor | None]) -> Tensor:
    evaluate = _EVALUATORS.get(kind)
    if evaluate is None:
        raise NotImplementedError(f"{kind} of layer {layer.name}")
    return evaluate(layer, x)


def _axes(mask: int, rank: int) -> list[int]:
    return [axis for axis in range(rank) if mask >> axis & 1]


def _weights(values: Any, shape: tuple[int, ...]) -> Tensor:
    array = values if isinstance(values, np.ndarray) else values.numpy()
    return torch.from_numpy(np.array(array, copy=True)).reshape(shape)


def _extents(x: list[Any], place: int, default: Any) -> list[int]:
    """A dimension vector that may come from a tensor at run time."""
    if len(x) > place and x[place] is not None:
        return [int(value) for value in x[place].reshape(-1)]
    return [int(value) for value in default]


def _shuffle(layer: Any, x: list[Any]) -> Tensor:
    y: Tensor = x[0]
    if y.dim() > 1:
        y = y.permute(tuple(layer.first_transpose)[: y.dim()])
    shape: list[int] | None
    if len(x) > 1 and x[1] is not None:
        shape = [int(value) for value in x[1].reshape(-1)]
    else:
        try:
            shape = list(layer.reshape_dims)
        except ValueError:
            shape = None  # it was never set: the shape stays
    if shape is not None and (shape or (y.numel() == 1 and not len(layer.get_output(0).shape))):
        if layer.zero_is_placeholder:
            shape = [y.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
        y = y.reshape(shape)
    if y.dim() > 1:
        y = y.permute(tuple(layer.second_transpose)[: y.dim()])
    return y


def _slice(layer: Any, x: list[Any]) -> Tensor:
    y: Tensor = x[0]
    start, size, stride = (
        _extents(x, place, default) for place, default in ((1, layer.start), (2, layer.shape), (3, layer.stride))
    )
    if layer.mode == trt.SampleMode.FILL:
        fill = x[4] if len(x) > 4 and x[4] is not None else torch.zeros((), dtype=y.dtype)
        for axis in range(y.dim()):
            at = torch.tensor([start[axis] + step * stride[axis] for step in range(size[axis])])
            inside = (at >= 0) & (at < y.shape[axis])
            taken = y.index_select(axis, at.clamp(0, y.shape[axis] - 1))
            shape = [-1 if other == axis else 1 for other in range(y.dim())]
            y = torch.where(inside.reshape(shape), taken, fill.reshape([1] * y.dim()).to(y.dtype))
        return y
    if layer.mode != trt.SampleMode.STRICT_BOUNDS:
        raise NotImplementedError(f"slice mode {layer.mode}")
    for axis in range(y.dim()):
        y = y.index_select(axis, torch.tensor([start[axis] + step * stride[axis] for step in range(size[axis])]))
    return y


def _gather(layer: Any, x: list[Any]) -> Tensor:
    y, index, axis = x[0], x[1].long(), layer.axis
    if layer.mode != trt.GatherMode.DEFAULT or layer.num_elementwise_dims:
        raise NotImplementedError("gather other than by one axis")
    taken: Tensor = y.index_select(axis, index.reshape(-1))
    return taken.reshape(y.shape[:axis] + index.shape + y.shape[axis + 1 :])


def _convolution(layer: Any, x: list[Any]) -> Tensor:
    kernel = tuple(layer.kernel_size_nd)
    weight = x[1] if len(x) > 1 else None
    if weight is None:
        weight = _weights(layer.kernel, (layer.num_output_maps, -1, *kernel))
    bias = x[2] if len(x) > 2 else None
    if bias is None and np.size(layer.bias):
        bias = _weights(layer.bias, (-1,))
    if tuple(layer.pre_padding) != tuple(layer.post_padding):
        raise NotImplementedError("convolution with different padding on both sides")
    convolve = F.conv1d if x[0].dim() == 3 else F.conv2d
    result: Tensor = convolve(
        x[0],
        weight,
        bias,
        tuple(layer.stride_nd),
        tuple(layer.padding_nd),
        tuple(layer.dilation_nd),
        layer.num_groups,
    )
    return result


def _scale(layer: Any, x: list[Any]) -> Tensor:
    y: Tensor = x[0]
    shape = [1] * y.dim()
    if layer.mode == trt.ScaleMode.CHANNEL:
        shape[layer.channel_axis] = -1
    elif layer.mode != trt.ScaleMode.UNIFORM:
        raise NotImplementedError(f"scale mode {layer.mode}")
    if np.size(layer.scale):
        y = y * _weights(layer.scale, tuple(shape))
    if np.size(layer.shift):
        y = y + _weights(layer.shift, tuple(shape))
    if np.size(layer.power):
        y = y ** _weights(layer.power, tuple(shape))
    return y


def _normalization(layer: Any, x: list[Any]) -> Tensor:
    y, scale, bias = x
    axes = _axes(layer.axes, y.dim())
    mean = y.mean(axes, keepdim=True)
    variance = (y - mean).pow(2).mean(axes, keepdim=True)
    result: Tensor = (y - mean) / torch.sqrt(variance + layer.epsilon) * scale + bias
    return result


def _matrix_multiply(layer: Any, x: list[Any]) -> Tensor:
    kinds = trt.MatrixOperation
    left, right = x
    # A vector is a matrix of one row on the left, of one column on the right; that axis is not in the result.
    left = left.unsqueeze(-2) if layer.op0 == kinds.VECTOR else left
    right = right.unsqueeze(-1) if layer.op1 == kinds.VECTOR else right
    left = left.transpose(-1, -2) if layer.op0 == kinds.TRANSPOSE else left
    right = right.transpose(-1, -2) if layer.op1 == kinds.TRANSPOSE else right
    result: Tensor = left @ right
    result = result.squeeze(-1) if layer.op1 == kinds.VECTOR else result
    return result.squeeze(-2 if layer.op1 != kinds.VECTOR else -1) if layer.op0 == kinds.VECTOR else result


def _fill(layer: Any, x: list[Any]) -> Tensor:
    if layer.operation != trt.FillOperation.LINSPACE:
        raise NotImplementedError(f"fill by {layer.operation}")
    shape = _extents(x, 0, layer.shape)
    first = x[1] if len(x) > 1 and x[1] is not None else torch.tensor(layer.alpha)
    steps = x[2].reshape(-1) if len(x) > 2 and x[2] is not None else torch.full((len(shape),), float(layer.beta or 0))
    result = torch.zeros(shape) + first
    for axis, extent in enumerate(shape):
        place = [-1 if other == axis else 1 for other in range(len(shape))]
        result = result + steps[axis] * torch.arange(extent).reshape(place)
    return result.to(_TYPES[layer.get_output(0).dtype])


def _unsqueeze(_: Any, x: list[Any]) -> Tensor:
    y: Tensor = x[0]
    for axis in sorted(int(value) for value in x[1].reshape(-1)):
        y = y.unsqueeze(axis)
    return y


def _squeeze(_: Any, x: list[Any]) -> Tensor:
    y: Tensor = x[0]
    for axis in sorted((int(value) for value in x[1].reshape(-1)), reverse=True):
        y = y.squeeze(axis)
    return y


_EVALUATORS: dict[Any, Callable[[Any, list[Any]], Tensor]] = {
    _Kind.ACTIVATION: lambda layer, x: _ACTIVATIONS[layer.type](x[0]),
    _Kind.CAST: lambda layer, x: x[0].to(_TYPES[layer.get_output(0).dtype]),
    _Kind.CONCATENATION: lambda layer, x: torch.cat(x, layer.axis),
    _Kind.CONSTANT: lambda layer, _: _weights(layer.weights, tuple(layer.shape)),
    _Kind.CONVOLUTION: _convolution,
    _Kind.ELEMENTWISE: lambda layer, x: _ELEMENTWISE[layer.op](x[0], x[1]),
    _Kind.FILL: _fill,
    _Kind.GATHER: _gather,
    _Kind.IDENTITY: lambda _, x: x[0],
    _Kind.MATRIX_MULTIPLY: _matrix_multiply,
    _Kind.NORMALIZATION: _normalization,
    _Kind.REDUCE: lambda layer, x: _REDUCTIONS[layer.op](
        x[0], dim=_axes(layer.axes, x[0].dim()), keepdim=layer.keep_dims
    ),
    _Kind.SCALE: _scale,
    _Kind.SELECT: lambda _, x: torch.where(x[0], x[1], x[2]),
    _Kind.SHAPE: lambda _, x: torch.tensor(list(x[0].shape), dtype=torch.int64),
    _Kind.SHUFFLE: _shuffle,
    _Kind.SLICE: _slice,
    _Kind.SOFTMAX: lambda layer, x: torch.softmax(x[0], _axes(layer.axes, x[0].dim())[0]),
    _Kind.SQUEEZE: _squeeze,
    _Kind.UNARY: lambda layer, x: _UNARY[layer.op](x[0]),
    _Kind.UNSQUEEZE: _unsqueeze,
}
