"""Compute the convolutional part of a model in the blocked layout of oneDNN (torch: MKL-DNN).

There a processor's vector holds 16 channels of one pixel, and the layers' kernels hand their
outputs to each other as they are: pooling stores a byte in place of an index of eight, and no
layer's input is laid out anew. A convolution lays its input out, and the first layer that has no
kernel for that layout reads a tensor in the usual one.

Which layers they are is found in the traced graph of a model with fused layers. Whether they are
faster than in another layout is timed (`bench.engine.acceleration.calibration`): never chosen by
rule, since summing in another order changes the last bits.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from bench.engine.acceleration.block_gradient import BlockGradientConv, shuffle_blocks
from bench.engine.acceleration.layers import MaxPoolReLU, called_module, is_relu

ADDITIONS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)

ROWS = 4
"""Numbers of rows are rounded up to multiples of this one. A kernel for a new number of rows takes
as long as ten rows of a LeNet, once; an added row is computed in every pass."""


def is_supported() -> bool:
    """Return whether torch computes in this layout here.

    Returns:
        False where it was built without oneDNN, or where oneDNN is switched off.
    """
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def lay_out_convolutions(net: nn.Module) -> bool:
    """Compute convolutions and what follows them in oneDNN's layout, in place.

    Args:
        net: A model with fused layers, in evaluation mode.

    Returns:
        Whether anything was laid out; nothing is in a model that could not be traced.
    """
    if not isinstance(net, fx.GraphModule):
        return False
    blocked: set[fx.Node] = set()
    for node in list(net.graph.nodes):
        if _replace_layer(net, node, blocked):
            blocked.add(node)
    for node in blocked:
        _read_densely(net, node, blocked)
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    # As `layers.fuse_layers` does: torch.fx's own call prints a traceback where the forward raises.
    type(net).__call__ = nn.Module.__call__  # type: ignore[method-assign]
    return bool(blocked)


def call_rounded(net: nn.Module, x: Tensor) -> Tensor:
    """Call a net on as many rows as it was called on before, as far as possible.

    oneDNN makes a kernel of each layer for each number of rows, and an attack's batch becomes
    smaller row by row. Rows of zeros are added so that fewer numbers occur: powers of two up to
    ROWS, and multiples of it.

    Args:
        net: The net.
        x: Images, (n, c, h, w).

    Returns:
        Logits, (n, classes).
    """
    n = len(x)
    rounded = -(-n // ROWS) * ROWS if n > ROWS else 1 << max(n - 1, 0).bit_length()
    if rounded == n:
        return net(x)  # type: ignore[no-any-return]
    return net(torch.cat([x, x.new_zeros(rounded - n, *x.shape[1:])]))[:n]  # type: ignore[no-any-return]


def _replace_layer(net: fx.GraphModule, node: fx.Node, blocked: set[fx.Node]) -> bool:
    """Let a node return a blocked tensor; False if it has no kernel that does."""
    inputs = node.all_input_nodes
    follows = bool(inputs) and all(each in blocked for each in inputs)
    layer = called_module(net, node)
    new: nn.Module | None = None
    if type(layer) is nn.Conv2d and _is_plain(layer):
        new = layer if follows else BlockedConv(layer)
    elif isinstance(layer, BlockGradientConv) and not follows and _is_plain(layer.layer):
        new = BlockedGradientConv(layer)
    elif not follows:
        return False
    elif isinstance(layer, MaxPoolReLU) and _has_kernel(layer.pool):
        new = BlockedPoolReLU(layer)
    elif is_relu(net, node) and len(inputs) == 1:
        new = nn.ReLU()
    elif node.op == "call_function" and node.target in ADDITIONS:
        return len(node.args) == 2 == len(inputs) and not node.kwargs
    if new is None or len(node.args) != 1:  # an input given by name
        return False
    if new is not layer:
        name = f"blocked_{node.name}"
        net.add_submodule(name, new)
        node.op, node.target, node.args, node.kwargs = "call_module", name, (inputs[0],), {}
    return True


def _read_densely(net: fx.GraphModule, node: fx.Node, blocked: set[fx.Node]) -> None:
    """Hand a blocked output to all other nodes in the usual layout."""
    others = [user for user in node.users if user not in blocked]
    if not others:
        return
    with net.graph.inserting_after(node):
        dense = net.graph.call_method("to_dense", (node,))
    for user in others:
        user.replace_input_with(node, dense)


def _is_plain(layer: nn.Conv2d) -> bool:
    """Return whether oneDNN's convolution computes a layer, in float32."""
    return layer.padding_mode == "zeros" and layer.weight.dtype == torch.float32


def _has_kernel(pool: nn.MaxPool2d) -> bool:
    """Return whether oneDNN's pooling takes the windows of a layer."""
    return pool.dilation in (1, (1, 1)) and not pool.ceil_mode


class BlockedConv(nn.Module):
    """A convolution that lays its input out."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: Features, (n, c, h, w).

        Returns:
            Features, (n, out, h, w), blocked.
        """
        return self.layer(x.to_mkldnn())  # type: ignore[no-any-return]


class BlockedGradientConv(nn.Module):
    """A `BlockGradientConv` whose output and whose gradient are blocked."""

    def __init__(self, conv: BlockGradientConv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: Features, (n, c, h, w).

        Returns:
            Features, (n, out, h, w), blocked.
        """
        return _BlockedGradient.apply(x, self.conv)  # type: ignore[no-any-return]


class _BlockedGradient(torch.autograd.Function):
    """The convolution with the block kernel as its backward pass, in oneDNN's layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: BlockGradientConv) -> Tensor:
        ctx.size, ctx.conv = x.shape[2:], conv
        layer, (geometry, _) = conv.layer, conv.choose_blocks(x.shape[2:])
        return functional.conv2d(
            x.to_mkldnn(), layer.weight, layer.bias, geometry.stride, geometry.padding
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        geometry, turned = ctx.conv.choose_blocks(ctx.size)
        if geometry.needs_copy(ctx.size):
            gradient = geometry.append_zeros(gradient.to_dense(), ctx.size).to_mkldnn()
        blocks = functional.conv2d(
            gradient, turned, stride=geometry.step, padding=geometry.before
        ).to_dense()
        return shuffle_blocks(blocks, geometry, ctx.size), None


class BlockedPoolReLU(nn.Module):
    """A `MaxPoolReLU` by oneDNN's pooling; ties go to the first entry there, too."""

    def __init__(self, layer: MaxPoolReLU) -> None:
        super().__init__()
        self.pool, self.clips = layer.pool, layer.clips

    def forward(self, x: Tensor) -> Tensor:
        """Pool and clip.

        Args:
            x: Features, (n, c, h, w), blocked.

        Returns:
            Pooled features, blocked.
        """
        pooled: Tensor = self.pool(x)
        return pooled.relu() if self.clips else pooled
