"""Read a feed-forward net as a graph of layers, for `bounds`.

The forward is traced symbolically, so that nested Sequentials, a built-in module and a user's
forward are all read alike: linear, convolution, batch-norm, elementwise arithmetic with constants
(normalisation), ReLU, max-, average- and adaptive average-pooling, flatten, with dropout off; sums,
differences and concatenations of branches. Anything else, and a path that depends on values, is
refused by name.
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
from bench.engine.float32_precision import allow_tf32
from bench.engine.model_state import eval_mode
from bench.engine.tracing import trace_forward
from bench.evaluation.certification.layers import (
    Concat,
    Conv,
    Dense,
    Flat,
    Layer,
    Node,
    Pool,
    Relu,
    Scale,
    Shape,
    Sum,
    forward,
)


class UnreadableError(SuiteError):
    """A net is no graph of bounded layers; the sentence names the obstacle."""


def read_network(model: nn.Module, shape: Shape) -> tuple[Node, ...]:
    """Read the layers of a model in evaluation mode.

    Dropout is off and batch-norm uses its running statistics.

    Args:
        model: A feed-forward net.
        shape: Shape (c, h, w) of an image.

    Returns:
        The nodes in topological order; parameters are shared with the model, not copied.

    Raises:
        UnreadableError: A layer has no bounds, or the forward branches on values; the first is
            named.
    """
    graph = trace_forward(model)
    if graph is None:
        raise UnreadableError("its forward cannot be followed: it branches on values")
    parameter = next(model.parameters(), torch.empty(()))
    reader = _Reader(graph, parameter.new_zeros(2, *shape))
    with torch.no_grad():
        for node in graph.graph.nodes:
            reader.env[node] = reader.run_node(node)
    return _remove_unread(reader.nodes, reader.returned)


def _remove_unread(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """Remove the nodes that the value `output` does not depend on."""
    read = {output}
    for k in range(output - 1, -1, -1):
        if k + 1 in read:
            read.update(nodes[k].inputs)
    renamed = {0: 0}
    for value in sorted(read - {0}):
        renamed[value] = len(renamed)
    return tuple(
        Node(nodes[value - 1].layer, tuple(renamed[each] for each in nodes[value - 1].inputs))
        for value in sorted(read - {0})
    )


class _Reader(fx.Interpreter):
    """Runs a graph once and collects the layer of every node that depends on the images."""

    def __init__(self, graph: fx.GraphModule, sample: Tensor) -> None:
        super().__init__(graph)
        self.args_iter = iter([sample])
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, int] = {}
        """Number of the value, as in `Node.inputs`, of every node that depends on the images."""
        self.overwritten: set[fx.Node] = set()
        """Nodes whose values an operation in place has changed."""
        self.returned = 0
        """Number of the value that the forward returns."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            if self.values:
                raise UnreadableError("its forward takes more than one input")
            self.values[n] = 0
            return super().run_node(n)
        if n.op == "output":
            (result,) = n.args
            if not isinstance(result, fx.Node) or result not in self.values:
                raise UnreadableError(
                    "its forward returns something beside the last layer's output"
                )
            self._check_unchanged([result], "its output")
            self.returned = self.values[result]
            return super().run_node(n)
        reads = [each for each in n.all_input_nodes if each in self.values]
        versions = [self.env[each]._version for each in reads]
        value = super().run_node(n)
        if not reads:
            return value  # a constant
        if n.op != "call_module" and n.target in _SIZES and not isinstance(value, Tensor):
            return value  # no function of the pixels
        name = _describe_node(n, self.module)
        if not isinstance(value, Tensor):
            raise UnreadableError(f"no bounds for {name}")
        self._check_unchanged(reads, name)
        if versions != [self.env[each]._version for each in reads]:
            memory = value.untyped_storage().data_ptr()
            self.overwritten.update(
                each for each in self.values
                if self.env[each].untyped_storage().data_ptr() == memory
            )  # fmt: skip
        self._add(n, name, value, reads)
        return value

    def _check_unchanged(self, reads: Sequence[fx.Node], name: str) -> None:
        if self.overwritten.intersection(reads):
            raise UnreadableError(f"{name} reads a value that was overwritten in place")

    def _add(self, node: fx.Node, name: str, value: Tensor, reads: Sequence[fx.Node]) -> None:
        """Add the layers of a node; its value is that of the last."""
        after = tuple(value.shape[1:])
        if node.op == "call_module":
            module: Any = self.module.get_submodule(str(node.target))
            before = self._only_input(node, name, reads)
            layers = _to_layers(module, before, name)
        else:
            given: Any = self.map_nodes_to_values((node.args, node.kwargs), node)
            args, kwargs = given
            arithmetic = _ARITHMETIC.get(node.target)
            if node.target in _CONCATENATIONS:
                self._add_concatenation(node, name, value, args, kwargs)
                return
            if arithmetic is not None and len(args) == 2 and not kwargs:
                if all(isinstance(each, fx.Node) and each in self.values for each in node.args):
                    self._add_sum(node, name, arithmetic, value, args)
                    return
                before = self.env[reads[0]]
                first = node.args[0] is reads[0]
                layers = [_elementwise(arithmetic, args, first, tuple(before.shape[1:]), name)]
            else:
                before = self._only_input(node, name, reads)
                shape = tuple(before.shape[1:])
                module = _to_module(node.target, args[1:], kwargs, shape, after)
                layers = _to_layers(module, before, name)
        last = self.values[reads[0]]
        for layer in layers:
            last = self._append(layer, (last,))
        self.values[node] = last

    def _append(self, layer: Layer, inputs: tuple[int, ...]) -> int:
        """Append a node; returns the number of its value."""
        self.nodes.append(Node(layer, inputs))
        return len(self.nodes)

    def _only_input(self, node: fx.Node, name: str, reads: Sequence[fx.Node]) -> Tensor:
        """Return the one activation that a layer reads, which must be its first argument."""
        if len(reads) > 1 or not node.args or node.args[0] is not reads[0]:
            raise UnreadableError(f"no bounds for {name}")
        before: Tensor = self.env[reads[0]]
        return before

    def _add_sum(
        self, node: fx.Node, name: str, kind: str, value: Tensor, args: Sequence[Tensor]
    ) -> None:
        """Add the sum or the difference of two branches."""
        if kind not in ("add", "sub"):
            raise UnreadableError(f"{name} reads what a layer gave on both sides")
        if any(each.shape != value.shape for each in args):
            raise UnreadableError(f"{name} combines branches of different shapes")
        shape, signs = tuple(value.shape[1:]), (1, 1 if kind == "add" else -1)
        branches: Any = node.args
        self.values[node] = self._append(
            Sum(shape, signs), tuple(self.values[each] for each in branches)
        )

    def _add_concatenation(
        self, node: fx.Node, name: str, value: Tensor, args: Sequence[Any], kwargs: Any
    ) -> None:
        """Add the concatenation of branches."""
        parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
        if not all(isinstance(each, fx.Node) and each in self.values for each in parts):
            raise UnreadableError(f"{name} concatenates a constant")
        axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        axis = axis + value.dim() if axis < 0 else axis
        if axis == 0:
            raise UnreadableError(f"{name} concatenates images")
        sizes = tuple(self.env[each].shape[axis] for each in parts)
        self.values[node] = self._append(
            Concat(tuple(value.shape[1:]), sizes, axis - 1),
            tuple(self.values[each] for each in parts),
        )


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
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_SIZES = (getattr, "size", "dim", "numel")
"""What the pixels have no influence on, unless it is a tensor."""


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
        functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    }
    if target in (torch.mean, "mean"):
        return _to_global_pooling(args, kwargs, shape)
    return pools[target](*args, **kwargs) if target in pools else None


def _to_global_pooling(
    args: Sequence[Any], kwargs: Mapping[str, Any], shape: Shape
) -> nn.Module | None:
    """Build the module equivalent to a mean over height and width; None for another mean."""
    places = {**dict(zip(("dim", "keepdim"), args, strict=False)), **kwargs}
    axes = places.get("dim")
    if not isinstance(axes, tuple | list) or len(shape) != 3 or places.keys() - {"dim", "keepdim"}:
        return None
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    pooling = nn.AdaptiveAvgPool2d(1)
    return pooling if places.get("keepdim") else nn.Sequential(pooling, nn.Flatten())


def _to_layers(module: nn.Module | None, before: Tensor, name: str) -> list[Layer]:
    """Build the layers of a module on its input; none if it changes nothing."""
    if isinstance(module, nn.Sequential):
        layers = []
        for part in module:
            layers += _to_layers(part, before, name)
            before = part(before)
        return layers
    if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return []
    return [_to_layer(module, before, name)]


def _to_layer(module: nn.Module | None, before: Tensor, name: str) -> Layer:
    """Build the layer of a module on its input."""
    shape = tuple(before.shape[1:])
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
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return _average_pooling(_to_average_pooling(module, shape, name), before, name)
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


def _to_average_pooling(module: nn.AdaptiveAvgPool2d, shape: Shape, name: str) -> nn.AvgPool2d:
    """Build the pooling over equal windows that an adaptive one amounts to."""
    wanted = [size if out is None else out
              for out, size in zip(_pair(module.output_size), shape[1:], strict=True)]  # fmt: skip
    if any(size % out for out, size in zip(wanted, shape[1:], strict=True)):
        raise UnreadableError(f"{name} averages over windows of unequal size")
    height, width = (size // out for out, size in zip(wanted, shape[1:], strict=True))
    return nn.AvgPool2d((height, width))


def _pair(value: Any) -> Shape:
    return tuple(value) if isinstance(value, tuple) else (value, value)


# ------------------------------------------------------------------------------------- in float64

LOGIT_TOLERANCE = 1e-4
"""How far the logits of layers and net may be apart, as a share of the largest."""


def read_network_in_double(model: nn.Module, images: Tensor) -> tuple[Node, ...]:
    """Read the layers of a float64 copy of a model and compare them with the model.

    Args:
        model: A feed-forward net.
        images: Images (n, c, h, w) on which both must agree.

    Returns:
        The nodes in topological order, in float64.

    Raises:
        UnreadableError: The model has other layers, or they answer otherwise than the model.
    """
    try:
        nodes = read_network(copy.deepcopy(model).double().eval(), tuple(images.shape[1:]))
        with torch.no_grad(), eval_mode(model), allow_tf32(False):
            logits = model(images).double()
    except (UnreadableError, KeyboardInterrupt):
        raise
    except BaseException as error:  # of the user's forward, which may not support float64
        raise UnreadableError(f"its forward fails in float64: {first_line(error)}") from error
    with torch.no_grad():
        answers = forward(nodes, images.double())
    far = float((answers - logits).abs().max()) if answers.shape == logits.shape else math.inf
    if not far <= LOGIT_TOLERANCE * (float(logits.abs().max()) + 1):
        raise UnreadableError("its layers, read one by one, answer otherwise than the net")
    return nodes
