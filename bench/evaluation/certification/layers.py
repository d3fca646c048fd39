"""Define the layers that `bounds` can bound: affine ones, ReLU, max-pooling and joins.

Every affine layer has `map` (forwards without its constant, or with magnitudes alone), `back`
(propagates linear forms on its output back to its input), `shift` (the constant) and `terms`
(products that one output sums, for the rounding error). A join reads several values: `Sum` adds
them, `Concat` concatenates them. A net is a sequence of nodes: layers with the values they read.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

Shape: TypeAlias = tuple[int, ...]
"""Of one example: no batch axis."""


class Dense(NamedTuple):
    """x -> x W' + b."""

    weight: Tensor
    """(outputs, inputs)"""
    bias: Tensor | None
    shape: Shape
    """Of the input; likewise in every layer."""

    @property
    def terms(self) -> int:
        """Number of products that one output sums, for the rounding error."""
        return self.weight.shape[1]

    def map(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Compute W x without the bias, or |W| x.

        Args:
            x: Inputs (n, inputs).
            absolute: Whether to take magnitudes of the weights.

        Returns:
            Outputs (n, outputs).
        """
        return functional.linear(x, self.weight.abs() if absolute else self.weight)

    def back(self, rows: Tensor) -> Tensor:
        """Propagate linear forms on the output back to the input.

        Args:
            rows: Forms (n, outputs).

        Returns:
            Forms (n, inputs).
        """
        return rows @ self.weight

    @property
    def shift(self) -> Tensor | None:
        """The constant, in a shape that broadcasts over (n, *output)."""
        return self.bias


class Conv(NamedTuple):
    """A two-dimensional convolution with zero padding; average-pooling is one, too."""

    weight: Tensor
    bias: Tensor | None
    shape: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    @property
    def terms(self) -> int:
        """Number of products that one output sums."""
        return self.weight[0].numel()

    def map(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Apply the layer without its constant.

        Args:
            x: Inputs (n, *shape).
            absolute: Whether to take magnitudes of the weights.

        Returns:
            Outputs (n, *output).
        """
        weight = self.weight.abs() if absolute else self.weight
        return functional.conv2d(
            x, weight, None, self.stride, self.padding, self.dilation, self.groups
        )

    def back(self, rows: Tensor) -> Tensor:
        """Propagate linear forms on the output back to the input.

        Args:
            rows: Forms (n, *output).

        Returns:
            Forms (n, *shape).
        """
        size = (len(rows), *self.shape)
        return conv2d_input(  # type: ignore[no-any-return]
            size, self.weight, rows, self.stride, self.padding, self.dilation, self.groups
        )

    @property
    def shift(self) -> Tensor | None:
        """The constant, in a shape that broadcasts over (n, *output)."""
        return None if self.bias is None else self.bias[:, None, None]


class Scale(NamedTuple):
    """x -> factor x + shift, element by element."""

    factor: Tensor
    """Broadcasts over (n, *shape), as `shift` does."""
    shift: Tensor | None
    shape: Shape
    terms: int = 8
    """More roundings than normalisation and batch-norm make of one element."""
    summed: Tensor | None = None
    """The magnitudes that add up to `shift`, where they may cancel."""

    def map(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Apply the layer without its constant.

        Args:
            x: Inputs (n, *shape).
            absolute: Whether to take magnitudes of the weights.

        Returns:
            Outputs (n, *output).
        """
        return x * (self.factor.abs() if absolute else self.factor)

    def back(self, rows: Tensor) -> Tensor:
        """Propagate linear forms on the output back to the input.

        Args:
            rows: Forms (n, *output).

        Returns:
            Forms (n, *shape).
        """
        return rows * self.factor


class Flat(NamedTuple):
    """(n, *shape) -> (n, entries)."""

    shape: Shape
    shift: None = None
    terms: int = 0
    """Nothing is computed, so nothing is rounded."""

    def map(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Apply the layer without its constant.

        Args:
            x: Inputs (n, *shape).
            absolute: Whether to take magnitudes of the weights.

        Returns:
            Outputs (n, *output).
        """
        del absolute
        return x.flatten(1)

    def back(self, rows: Tensor) -> Tensor:
        """Propagate linear forms on the output back to the input.

        Args:
            rows: Forms (n, *output).

        Returns:
            Forms (n, *shape).
        """
        return rows.view(len(rows), *self.shape)


class Relu(NamedTuple):
    """x -> max(x, 0)."""

    shape: Shape


class Pool(NamedTuple):
    """Max-pooling, whose padding is never the largest."""

    shape: Shape
    kernel: Shape
    stride: Shape
    padding: Shape


class Sum(NamedTuple):
    """(x, y, ...) -> the sum of all, each with its sign."""

    shape: Shape
    """Of each input and of the output."""
    signs: tuple[int, ...]
    """1 or -1 for each input."""

    def combine(self, values: Sequence[Tensor], absolute: bool = False) -> Tensor:
        """Add the inputs.

        Args:
            values: Inputs (n, *shape) each.
            absolute: Whether to ignore the signs.

        Returns:
            Output (n, *shape).
        """
        first, *others = (
            x if sign > 0 or absolute else -x for sign, x in zip(self.signs, values, strict=True)
        )
        for other in others:
            first = first + other
        return first

    def back(self, forms: Tensor) -> list[Tensor]:
        """Propagate linear forms on the output back to each input.

        Args:
            forms: Forms (n, forms, *shape).

        Returns:
            Forms on each input, likewise.
        """
        return [forms if sign > 0 else -forms for sign in self.signs]


class Concat(NamedTuple):
    """(x, y, ...) -> all of them along one axis."""

    shape: Shape
    """Of the output."""
    sizes: tuple[int, ...]
    """Of each input along the axis."""
    axis: int
    """Of one example: 0 is the axis of channels or features."""

    def combine(self, values: Sequence[Tensor], absolute: bool = False) -> Tensor:
        """Concatenate the inputs.

        Args:
            values: Inputs (n, *input) each.
            absolute: Without effect, as no input changes its sign.

        Returns:
            Output (n, *shape).
        """
        del absolute
        return torch.cat([*values], self.axis + 1)

    def back(self, forms: Tensor) -> list[Tensor]:
        """Propagate linear forms on the output back to each input.

        Args:
            forms: Forms (n, forms, *shape).

        Returns:
            Forms on each input, (n, forms, *input).
        """
        return [*forms.split(self.sizes, self.axis + 2)]


Affine: TypeAlias = Dense | Conv | Scale | Flat
Join: TypeAlias = Sum | Concat
Layer: TypeAlias = Affine | Relu | Pool | Join


class Node(NamedTuple):
    """A layer of a net and the values that it reads.

    A net is a sequence of nodes in topological order. Value 0 is the image, value k + 1 the output
    of node k; the last value is the logits.
    """

    layer: Layer
    inputs: tuple[int, ...]
    """One value; several for a join."""


def forward(nodes: Sequence[Node], x: Tensor) -> Tensor:
    """Compute the output of a net.

    Args:
        nodes: The net, in topological order.
        x: Inputs (n, *shape).

    Returns:
        Logits (n, classes).
    """
    values = [x]
    for layer, inputs in nodes:
        read = values[inputs[0]]
        if isinstance(layer, Sum | Concat):
            values.append(layer.combine([values[each] for each in inputs]))
        elif isinstance(layer, Relu):
            values.append(read.relu())
        elif isinstance(layer, Pool):
            pooled = functional.max_pool2d(read, layer.kernel, layer.stride, layer.padding)
            values.append(pooled)
        else:
            mapped = layer.map(read)
            values.append(mapped if layer.shift is None else mapped + layer.shift)
    return values[-1]
