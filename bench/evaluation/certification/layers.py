"""Define the layers that `bounds` can bound: affine ones, ReLU and max-pooling.

Every affine layer has `map` (forwards without its constant, or with magnitudes alone), `back`
(propagates linear forms on its output back to its input), `shift` (the constant) and `terms`
(products that one output sums, for the rounding error).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

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


Affine: TypeAlias = Dense | Conv | Scale | Flat
Layer: TypeAlias = Affine | Relu | Pool


def forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Compute the output of a sequence of layers.

    Args:
        layers: The net, in order.
        x: Inputs (n, *shape).

    Returns:
        Logits (n, classes).
    """
    for layer in layers:
        if isinstance(layer, Relu):
            x = x.relu()
        elif isinstance(layer, Pool):
            x = functional.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        else:
            x = layer.map(x) if layer.shift is None else layer.map(x) + layer.shift
    return x
