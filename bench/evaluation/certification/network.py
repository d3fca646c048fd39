"""Read a feed-forward net as the sequence of its layers, for `bounds`.

The forward is traced symbolically, so that nested Sequentials, a built-in module and a user's
forward are all read alike: linear, convolution, batch-norm, elementwise arithmetic with constants
(normalisation), ReLU, max- and average-pooling, flatten, with dropout off. Anything else, and any
path that branches, is refused by name.
"""

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from bench.core.errors import SuiteError, first_line
from bench.engine.model_state import eval_mode
from bench.engine.tracing import trace_forward
from bench.evaluation.certification.layers import (
    Conv,
    Dense,
    Flat,
    Layer,
    Pool,
    Relu,
    Scale,
    Shape,
    forward,
)


class UnreadableError(SuiteError):
    """A net is no sequence of bounded layers; the sentence names the obstacle."""


def read_network(model: nn.Module, shape: Shape) -> tuple[Layer, ...]:
    """Read the layers of a model in evaluation mode.

    Dropout is off and batch-norm uses its running statistics.

    Args:
        model: A feed-forward net.
        shape: Shape (c, h, w) of an image.

    Returns:
        The layers in order; parameters are shared with the model, not copied.

    Raises:
        UnreadableError: A layer has no bounds, or the forward branches; the first is named.
    """
    graph = trace_forward(model)
    if graph is None:
        raise UnreadableError("its forward cannot be followed: it branches on values")
    parameter = next(model.parameters(), torch.empty(()))
    reader = _Reader(graph, parameter.new_zeros(2, *shape))
    with torch.no_grad():
        for node in graph.graph.nodes:
            reader.env[node] = reader.run_node(node)
    return tuple(reader.layers)


class _Reader(fx.Interpreter):
    """Runs a graph once and collects the layer of every node that depends on the images."""

    def __init__(self, graph: fx.GraphModule, sample: Tensor) -> None:
        super().__init__(graph)
        self.args_iter = iter([sample])
        self.layers: list[Layer] = []
        self.last: fx.Node | None = None
        """The node whose output the next layer must read."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            if self.last is not None:
                raise UnreadableError("its forward takes more than one input")
            self.last = n
            return super().run_node(n)
        if n.op == "output" and n.args[0] is not self.last:
            raise UnreadableError("its forward returns something beside the last layer's output")
        value = super().run_node(n)
        reads = [each for each in n.all_input_nodes if self._is_activation(each)]
        if n.op == "output" or not reads or not isinstance(value, Tensor):
            return value  # a constant, or a size
        name = _describe_node(n, self.module)
        if reads != [self.last]:
            raise UnreadableError(f"{name} reads what an earlier layer gave: the net is no chain")
        self._add(n, name, value)
        self.last = n
        return value

    def _is_activation(self, node: fx.Node) -> bool:
        """Check whether a node's value is an activation rather than a constant."""
        if node.op == "placeholder":
            return True
        return isinstance(self.env.get(node), Tensor) and any(
            map(self._is_activation, node.all_input_nodes)
        )

    def _add(self, node: fx.Node, name: str, value: Tensor) -> None:
        assert self.last is not None
        before = self.env[self.last]
        shape, after = tuple(before.shape[1:]), tuple(value.shape[1:])
        if node.op == "call_module":
            module: Any = self.module.get_submodule(str(node.target))
        else:
            given: Any = self.map_nodes_to_values((node.args, node.kwargs), node)
            args, kwargs = given
            arithmetic = _ARITHMETIC.get(node.target)
            if arithmetic is not None and len(args) == 2 and not kwargs:
                first = node.args[0] is self.last
                if first and node.args[1] is self.last:
                    raise UnreadableError(f"{name} reads what a layer gave on both sides")
                self.layers.append(_elementwise(arithmetic, args, first, shape, name))
                return
            module = _to_module(node.target, args[1:], kwargs, shape, after)
        layer = _to_layer(module, before, name)
        self.layers.extend([] if layer is None else [layer])


def _describe_node(node: fx.Node, module: nn.Module) -> str:
    """Name a node as its author knows it: the class or function, and where it is."""
    if node.op == "call_module":
        target = str(node.target)
        return f"{type(module.get_submodule(target)).__name__} ({target})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    owners = [kind.__name__ for _, kind in (node.meta.get("nn_module_stack") or {}).values()
              if isinstance(kind, type)]  # fmt: skip
    return f"{name} (in {owners[-1]})" if owners else str(name)


# ------------------------------------------------------------------------- from a node to its layer

_ARITHMETIC: Mapping[Any, str] = {
    operator.add: "add", torch.add: "add", "add": "add",
    operator.sub: "sub", torch.sub: "sub", "sub": "sub",
    operator.mul: "mul", torch.mul: "mul", "mul": "mul",
    operator.truediv: "div", torch.div: "div", "div": "div",
}  # fmt: skip


def _elementwise(kind: str, args: tuple[Any, ...], first: bool, shape: Shape, name: str) -> Scale:
    """Build the layer x (+ - * /) constant, or constant (+ - *) x if x does not come `first`."""
    x, constant = args if first else args[::-1]
    number = torch.as_tensor(constant, dtype=x.dtype, device=x.device)
    if torch.broadcast_shapes(number.shape, (1, *shape)) != (1, *shape):
        raise UnreadableError(f"{name} changes the shape of what it is given")
    one = torch.ones_like(number)
    if kind == "add":
        return Scale(one, number, shape)
    if kind == "sub":
        return Scale(one, -number, shape) if first else Scale(-one, number, shape)
    if kind == "mul":
        return Scale(number, None, shape)
    if not first:
        raise UnreadableError(f"{name} divides by what a layer gave")
    return Scale(1 / number, None, shape)


def _to_module(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], shape: Shape, after: Shape
) -> nn.Module | None:
    """Build the module equivalent to a function or method with these further arguments."""
    if target in (functional.relu, torch.relu, "relu", "relu_"):
        return nn.ReLU()
    if target in (torch.flatten, "flatten", "view", "reshape", torch.reshape):
        return nn.Flatten() if after == (math.prod(shape),) else None
    if target in (torch.clone, "clone"):
        return nn.Identity()
    if target is functional.dropout:
        places = dict(zip(("p", "training"), args, strict=False))
        return None if {"training": True, **places, **kwargs}["training"] else nn.Identity()
    pools: Mapping[Any, Callable[..., nn.Module]] = {
        functional.max_pool2d: nn.MaxPool2d,
        torch.max_pool2d: nn.MaxPool2d,
        functional.avg_pool2d: nn.AvgPool2d,
    }
    return pools[target](*args, **kwargs) if target in pools else None


def _to_layer(module: nn.Module | None, before: Tensor, name: str) -> Layer | None:
    """Build the layer of a module on its input; None if it changes nothing."""
    shape = tuple(before.shape[1:])
    if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return None
    if isinstance(module, nn.ReLU):
        return Relu(shape)
    if (
        isinstance(module, nn.Flatten)
        and module.start_dim == 1
        and module.end_dim in (-1, len(shape))
    ):
        return Flat(shape)
    if isinstance(module, nn.Linear) and len(shape) == 1:
        return Dense(module.weight, module.bias, shape)
    if isinstance(module, nn.Conv2d):
        return _convolution(module, shape, name)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _to_scale(module, shape, name)
    if isinstance(module, nn.AvgPool2d):
        return _average_pooling(module, before, name)
    if isinstance(module, nn.MaxPool2d):
        if module.ceil_mode or module.return_indices or _pair(module.dilation) != (1, 1):
            raise UnreadableError(f"{name} pools with dilation, ceil_mode or indices")
        kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        return Pool(shape, kernel, stride, _pair(module.padding))
    raise UnreadableError(f"no bounds for {name}")


def _convolution(module: nn.Conv2d, shape: Shape, name: str) -> Conv:
    if module.padding_mode != "zeros":
        raise UnreadableError(f"{name} pads with {module.padding_mode}, not with zeros")
    padding = module.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if padding == "same" and any(each % 2 for each in reach):
            raise UnreadableError(f"{name} pads more on one side")
        padding = tuple(each // 2 if padding == "same" else 0 for each in reach)
    return Conv(
        module.weight, module.bias, shape, module.stride, tuple(padding), module.dilation,
        module.groups,
    )  # fmt: skip


def _to_scale(module: nn.BatchNorm1d | nn.BatchNorm2d, shape: Shape, name: str) -> Scale:
    if module.running_mean is None or module.running_var is None:
        raise UnreadableError(f"{name} normalises by the batch: it keeps no running statistics")
    factor = (module.running_var + module.eps).rsqrt()
    factor = factor if module.weight is None else factor * module.weight
    moved = -module.running_mean * factor
    bias = torch.zeros_like(moved) if module.bias is None else module.bias
    places = (-1, *[1] * (len(shape) - 1))
    shift, summed = moved + bias, moved.abs() + bias.abs()
    return Scale(factor.view(places), shift.view(places), shape, summed=summed.view(places))


def _average_pooling(module: nn.AvgPool2d, before: Tensor, name: str) -> Conv:
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    padding = _pair(module.padding)
    counts = module.count_include_pad or padding == (0, 0)
    if module.ceil_mode or not counts:
        raise UnreadableError(f"{name} averages over windows of unequal size")
    channels, share = before.shape[1], 1 / (module.divisor_override or math.prod(kernel))
    weight = before.new_full((channels, 1, *kernel), share)
    return Conv(weight, None, tuple(before.shape[1:]), stride, padding, (1, 1), channels)


def _pair(value: Any) -> Shape:
    return tuple(value) if isinstance(value, tuple) else (value, value)


# ------------------------------------------------------------------------------------- in float64

LOGIT_TOLERANCE = 1e-4
"""How far the logits of layers and net may be apart, as a share of the largest."""


def read_network_in_double(model: nn.Module, images: Tensor) -> tuple[Layer, ...]:
    """Read the layers of a float64 copy of a model and compare them with the model.

    Args:
        model: A feed-forward net.
        images: Images (n, c, h, w) on which both must agree.

    Returns:
        The layers in order, in float64.

    Raises:
        UnreadableError: The model has other layers, or they answer otherwise than the model.
    """
    try:
        layers = read_network(copy.deepcopy(model).double().eval(), tuple(images.shape[1:]))
        with torch.no_grad(), eval_mode(model):
            logits = model(images).double()
    except (UnreadableError, KeyboardInterrupt):
        raise
    except BaseException as error:  # of the user's forward, which may not support float64
        raise UnreadableError(f"its forward fails in float64: {first_line(error)}") from error
    with torch.no_grad():
        answers = forward(layers, images.double())
    far = float((answers - logits).abs().max()) if answers.shape == logits.shape else math.inf
    if not far <= LOGIT_TOLERANCE * (float(logits.abs().max()) + 1):
        raise UnreadableError("its layers, read one by one, answer otherwise than the net")
    return layers
