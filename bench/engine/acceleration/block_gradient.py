"""Compute the input gradient of a convolution with few input channels in blocks, on a CPU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.engine.acceleration.memory_layout import WIDE, is_channels_last

FEW_CHANNELS = 4
"""Input channels up to which a convolution's own gradient kernel loses on a CPU."""
VECTOR = 16
"""Float32 numbers in a wide vector: entries that the block kernel computes at once."""


def replace_convolutions(model: nn.Module) -> None:
    """Replace every convolution with few input channels in place.

    Args:
        model: The model, which is changed.
    """
    for name, layer in list(model.named_modules()):
        if name and type(layer) is nn.Conv2d and _has_block_gradient(layer):
            model.set_submodule(name, BlockGradientConv(layer))


def _has_block_gradient(layer: nn.Conv2d) -> bool:
    """Return whether `BlockGradientConv` supports and accelerates a layer."""
    high, wide = layer.kernel_size
    square = high == wide and layer.stride[0] == layer.stride[1]
    plain = layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not (square and plain) or (layer.padding == "same" and high % 2 == 0):
        return False
    padding = set(_find_padding(layer))
    return layer.in_channels <= FEW_CHANNELS and len(padding) == 1 and max(padding) < high


def _find_padding(layer: nn.Conv2d) -> tuple[int, ...]:
    """Return the zeros on each side of a convolution without dilation, of odd size if "same"."""
    if not isinstance(layer.padding, str):
        return layer.padding
    return tuple(side // 2 if layer.padding == "same" else 0 for side in layer.kernel_size)


class BlockGradientConv(nn.Module):
    """A convolution whose input gradient is a convolution of the output's gradient, in blocks.

    Entry P of the padded input's gradient is the sum over u of gradient[j + u] * weight[P - s*(j +
    u)], s the stride. Written for blocks of s*m entries it is one convolution with stride m whose
    channels are the entries of a block: as many as a processor's vector holds, where the plain one
    has a single channel and wastes the rest of the vector.

    The first block starts at the padded input. Where its last block would reach beyond the zeros
    that a convolution adds, so that the gradient had to be copied into a larger tensor, and one
    that starts at the input itself does not, that one is taken: of 28 pixels with padding 1 there
    are 7 x 7 blocks of 4 x 4 in place of 8 x 8, and no copy.
    """

    turned: Tensor
    turned_inside: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        step = 1
        while layer.in_channels * (layer.stride[0] * (step + 1)) ** 2 <= VECTOR:
            step += 1
        kernel, stride, padding = layer.kernel_size[0], layer.stride[0], _find_padding(layer)[0]
        self.geometry = Geometry(kernel, stride, padding, step, start=0)
        weight = layer.weight.detach()
        self.register_buffer("turned", _block_kernel(weight, self.geometry))
        inside = self.geometry._replace(start=padding)
        self.register_buffer("turned_inside", _block_kernel(weight, inside))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as the layer does.

        Args:
            x: Features, (n, c, h, w).

        Returns:
            Features after the convolution.
        """
        layer = self.layer
        x = x.to(layer.weight.dtype)
        geometry, turned = self.choose_blocks(x.shape[2:])
        return _BlockGradient.apply(  # type: ignore[no-any-return]
            x, layer.weight, layer.bias, turned, geometry
        )

    def choose_blocks(self, sizes: Sequence[int]) -> tuple["Geometry", Tensor]:
        """Choose where the first block starts.

        Args:
            sizes: Height and width of the input.

        Returns:
            The blocks and their kernel.
        """
        inside = self.geometry._replace(start=self.geometry.padding)
        if self.geometry.needs_copy(sizes) and not inside.needs_copy(sizes):
            return inside, self.turned_inside
        return self.geometry, self.turned


class Geometry(NamedTuple):
    """A convolution along one axis, and blocks of its padded input from `start` on."""

    kernel: int
    stride: int
    padding: int
    step: int
    """Windows that start in a block."""
    start: int

    @property
    def block(self) -> int:
        """Entries of a block."""
        return self.stride * self.step

    @property
    def before(self) -> int:
        """Windows before a block's own ones that touch it."""
        return (self.kernel - 1 - self.start) // self.stride

    @property
    def taps(self) -> int:
        """Windows that touch a block."""
        return self.before + (self.start + self.block - 1) // self.stride + 1

    def lack(self, size: int) -> int:
        """Count the zeros that the gradient lacks behind its last entry, so that blocks cover it.

        Args:
            size: Entries of the input.

        Returns:
            How many more are needed than the `before` that a convolution adds; at most 0 if none.
        """
        windows = (size + 2 * self.padding - self.kernel) // self.stride + 1
        blocks = -(-(self.padding - self.start + size) // self.block)
        return self.step * (blocks - 1) + self.taps - 2 * self.before - windows

    def needs_copy(self, sizes: Sequence[int]) -> bool:
        """Return whether the gradient has to be copied into a larger tensor.

        Args:
            sizes: Height and width of the input.

        Returns:
            Whether it lacks zeros along one of them.
        """
        return any(self.lack(size) > 0 for size in sizes)

    def append_zeros(self, gradient: Tensor, sizes: Sequence[int]) -> Tensor:
        """Copy a gradient into a tensor that is as large as the blocks need.

        Args:
            gradient: Gradient of the convolution's output, (n, c, h, w).
            sizes: Height and width of the input.

        Returns:
            The gradient with zeros below and to the right.
        """
        down, right = (max(self.lack(size), 0) for size in sizes)
        return functional.pad(gradient, (0, right, 0, down))


def _block_kernel(weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the kernel (into * block^2, out, taps, taps) for a weight (out, into, k, k)."""
    out, into, k, _ = weight.shape
    stride, block, taps = geometry.stride, geometry.block, geometry.taps
    turned = weight.new_zeros(into, block, block, out, taps, taps)
    inside = [
        (at, tap, entry)
        for at in range(block)
        for tap in range(taps)
        if 0 <= (entry := geometry.start + at - stride * (tap - geometry.before)) < k
    ]
    for row, up, i in inside:
        for column, across, j in inside:
            turned[:, row, column, :, up, across] = weight[:, :, i, j].T
    return turned.reshape(into * block**2, out, taps, taps)


class _BlockGradient(torch.autograd.Function):
    """The convolution with the block kernel as its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        turned: Tensor,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(turned)
        ctx.size, ctx.geometry = x.shape[2:], geometry
        return functional.conv2d(x, weight, bias, geometry.stride, geometry.padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (turned,) = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        as_is = gradient.shape[1] >= WIDE and is_channels_last(gradient)
        layout = torch.channels_last if as_is else torch.contiguous_format
        gradient = gradient.contiguous(memory_format=layout)
        if geometry.needs_copy(ctx.size):
            gradient = geometry.append_zeros(gradient, ctx.size)
        blocks = functional.conv2d(
            gradient,
            turned.contiguous(memory_format=layout),
            stride=geometry.step,
            padding=geometry.before,
        )
        return shuffle_blocks(blocks, geometry, ctx.size), *[None] * 4


def shuffle_blocks(blocks: Tensor, geometry: Geometry, sizes: Sequence[int]) -> Tensor:
    """Arrange the entries of blocks as an image.

    Args:
        blocks: Input gradient by blocks, (n, c * block^2, blocks down, blocks across).
        geometry: The blocks.
        sizes: Height and width of the input.

    Returns:
        The input's gradient, (n, c, h, w).
    """
    shuffled = functional.pixel_shuffle(blocks, geometry.block)
    cut = geometry.padding - geometry.start
    high, wide = (slice(cut, cut + size) for size in sizes)
    return shuffled[:, :, high, wide]
