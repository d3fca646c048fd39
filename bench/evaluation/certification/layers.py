"""The layers that `certify` has bounds for: what an affine one does forwards, in magnitude, and to
linear forms on its output that are carried back; and the two that bend.
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
    """Of what goes in; the same in every layer."""

    @property
    def terms(self) -> int:
        """Products that one output sums, for the rounding."""
        return self.weight.shape[1]

    def map(self, x: Tensor, absolute: bool = False) -> Tensor:
        """W x without the bias, or |W| x if `absolute`; (n, inputs) -> (n, outputs)."""
        return functional.linear(x, self.weight.abs() if absolute else self.weight)

    def back(self, rows: Tensor) -> Tensor:
        """rows W: linear forms on the output become forms on the input."""
        return rows @ self.weight

    @property
    def shift(self) -> Tensor | None:
        """What is added, in a shape that broadcasts over (n, *output)."""
        return self.bias


class Conv(NamedTuple):
    """A two-dimensional convolution with zero padding; average-pooling is one."""

    weight: Tensor
    bias: Tensor | None
    shape: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    @property
    def terms(self) -> int:
        return self.weight[0].numel()

    def map(self, x: Tensor, absolute: bool = False) -> Tensor:
        weight = self.weight.abs() if absolute else self.weight
        return functional.conv2d(
            x, weight, None, self.stride, self.padding, self.dilation, self.groups
        )

    def back(self, rows: Tensor) -> Tensor:
        size = (len(rows), *self.shape)
        return conv2d_input(  # type: ignore[no-any-return]
            size, self.weight, rows, self.stride, self.padding, self.dilation, self.groups
        )

    @property
    def shift(self) -> Tensor | None:
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
        return x * (self.factor.abs() if absolute else self.factor)

    def back(self, rows: Tensor) -> Tensor:
        return rows * self.factor


class Flat(NamedTuple):
    """(n, *shape) -> (n, entries)."""

    shape: Shape
    shift: None = None
    terms: int = 0
    """Nothing is computed, so nothing is rounded."""

    def map(self, x: Tensor, absolute: bool = False) -> Tensor:
        del absolute
        return x.flatten(1)

    def back(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), *self.shape)


class Relu(NamedTuple):
    shape: Shape


class Pool(NamedTuple):
    """The largest of each window; padding never wins."""

    shape: Shape
    kernel: Shape
    stride: Shape
    padding: Shape


Affine: TypeAlias = Dense | Conv | Scale | Flat
Layer: TypeAlias = Affine | Relu | Pool


def forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """What the layers make of x (n, *shape), one after another."""
    for layer in layers:
        if isinstance(layer, Relu):
            x = x.relu()
        elif isinstance(layer, Pool):
            x = functional.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        else:
            x = layer.map(x) if layer.shift is None else layer.map(x) + layer.shift
    return x
