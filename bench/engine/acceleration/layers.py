"""Layers exchanged for cheaper ones with the same answer and the same gradient.

An attack asks a model in evaluation mode for one thing, the gradient with respect to its input.
For that alone much of a model can be had cheaper (what all of it together is worth stands in
results/speed, "no copy" beside "bench"):

- batch-norm folds into the convolution or linear layer before it (exact to rounding); dropout and
  identity go;
- max-pooling before ReLU instead of after it: the largest of clipped values is the clipped largest,
  so output and gradient are the same to the bit, and ReLU sees a quarter of the values;
- 2x2 max-pooling as three elementwise maxima over slices, ties broken as torch breaks them;
- the gradient of a convolution with few input channels, the first one, as a convolution of the
  output's gradient that fills a vector with neighbouring pixels: torch's own kernel has only the
  channels to fill it with.

What the exchange may have got wrong is not argued about here:
`bench.engine.acceleration.accelerate` probes it. But what holds now and may not hold later cannot
be probed, so nothing is exchanged in a model with hooks or with a forward of its instance's own,
which a graph would lose, and no graph is made of a forward that asks whether gradients are wanted
or switches them, autocast or inference mode on or off: a graph keeps the answer of the moment.
"""

import copy
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bench.engine import tracing

FEW_CHANNELS = 4
"""Input channels up to which a convolution's own gradient kernel loses on a CPU."""
VECTOR = 16
"""Float32 numbers in a wide vector: entries that the turned kernel computes at once."""
WIDE = 16
"""Channels from which torch's max-pooling is vectorised in the channels-last layout."""


def fuse_layers(model: nn.Module, on_cpu: bool) -> nn.Module:
    """A copy of `model`, which is in evaluation mode, with every layer exchanged that can be.

    The slices and the turned kernel pay on a CPU alone. Where the model's forward cannot be
    followed symbolically (control flow on values, or on the mode), single layers are exchanged and
    no pairs.
    Raises: HookedError where there are hooks; whatever copying the model raises.
    """
    if name := _find_hooked(model):
        raise HookedError(f"{name} has hooks, or a forward of its own")
    own = copy.deepcopy(model)
    graph = _trace_without_modes(own)
    if graph is not None:
        _remove_layers(graph, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
        _fold_batch_norm(graph)
        _pool_first(graph, on_cpu)
        graph.delete_all_unused_submodules()
        graph.graph.lint()
        graph.recompile()
        # torch.fx's own call prints a traceback where the forward raises; the probe reads errors.
        type(graph).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        own = graph
    if on_cpu:
        _replace_convolutions(own)
    return own


# ------------------------------------------------------------------- what must not be exchanged


class HookedError(Exception):
    """A model whose calls do more than its forward says; the sentence names the module."""


def _find_hooked(model: nn.Module) -> str:
    """The first module whose call does more than its class's forward; "" if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # nothing in it is exchanged
            continue
        hooks = (
            module._forward_hooks, module._forward_pre_hooks,
            module._backward_hooks, module._backward_pre_hooks,
        )  # fmt: skip
        plain = isinstance(module, fx.GraphModule)  # torch writes a call of its own for each
        called = type(module).__call__ is not nn.Module.__call__ and not plain
        if any(hooks) or called or "forward" in vars(module):
            return f"{type(module).__name__} ({name})" if name else type(module).__name__
    return ""


MODES = ("grad_enabled", "inference_mode", "is_inference", "autocast")
"""Parts of the names of the functions by which torch is asked for its modes, or told them."""
MODE_FILES = ("torch/autograd/grad_mode.py", "torch/amp/autocast_mode.py")


class _ModeWatch:
    """Notes whether torch is asked for its modes, or told them, inside; as a profiler does, since
    no hook of torch's sees it."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> "_ModeWatch":
        self._before = sys.getprofile()
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _note(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            name = getattr(arg, "__name__", "")
            self.seen = self.seen or any(part in name for part in MODES)
        elif event == "call":
            file = frame.f_code.co_filename.replace("\\", "/")
            self.seen = self.seen or file.endswith(MODE_FILES)


def _trace_without_modes(model: nn.Module) -> fx.GraphModule | None:
    """The forward as a graph; None where it cannot be followed, or depends on torch's modes."""
    with _ModeWatch() as watch:
        graph = tracing.trace_forward(model)
    return None if watch.seen else graph


# ------------------------------------------------------------------------- pairs, found in a graph


def _remove_layers(traced: fx.GraphModule, *kinds: type[nn.Module]) -> None:
    for node in list(traced.graph.nodes):
        if isinstance(_called_module(traced, node), kinds) and node.args:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Batch-norm into the layer before it, where no one else reads that layer's output."""
    for node in list(traced.graph.nodes):
        norm = _called_module(traced, node)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
            continue
        if not node.args:  # its input is given by name
            continue
        before = node.args[0]
        layer = _called_module(traced, before)
        if layer is None or not _is_used_once(traced, before):
            continue
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            if norm.bias is None:  # torch folds none without a shift
                continue
            folded = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        traced.set_submodule(before.target, folded)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def _pool_first(traced: fx.GraphModule, on_cpu: bool) -> None:
    """ReLU and then max-pooling becomes one layer that pools first; pooling alone, one that is
    quicker on a CPU."""
    for node in list(traced.graph.nodes):
        pool = _as_max_pool(traced, node)
        if pool is None:
            continue
        before = node.args[0]
        clips = _is_relu(traced, before) and len(before.users) == 1
        if not clips and not on_cpu:
            continue
        name = f"pooled_{node.name}"
        traced.add_submodule(name, MaxPoolReLU(pool, clips, on_cpu))
        with traced.graph.inserting_after(node):
            new = traced.graph.call_module(name, (before.args[0] if clips else before,))
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)
        if clips:
            traced.graph.erase_node(before)


def _called_module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    return traced.get_submodule(str(node.target))


def _is_used_once(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's module is called nowhere else, and its output read once."""
    calls = [other for other in traced.graph.nodes if other.target == node.target]
    return len(calls) == 1 and len(node.users) == 1


def _is_relu(traced: fx.GraphModule, node: Any) -> bool:
    if isinstance(_called_module(traced, node), nn.ReLU):
        return True
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in (functional.relu, torch.relu)


def _as_max_pool(traced: fx.GraphModule, node: fx.Node) -> nn.MaxPool2d | None:
    """The max-pooling that a node does, as a layer; None if it does none, or gives indices."""
    module = _called_module(traced, node)
    if not node.args or len(node.all_input_nodes) != 1:  # by name, or as large as values say
        return None
    if isinstance(module, nn.MaxPool2d):
        return None if module.return_indices else module
    if node.op != "call_function" or node.target not in (functional.max_pool2d, torch.max_pool2d):
        return None
    places = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    keys = {**dict(zip(places, node.args[1:], strict=False)), **node.kwargs}
    try:
        pool = nn.MaxPool2d(**keys)  # type: ignore[arg-type]
    except TypeError:
        return None
    return None if pool.return_indices else pool


# ------------------------------------------------------------------------------------------ layers


class MaxPoolReLU(nn.Module):
    """Max-pooling, and ReLU behind it where `clips`."""

    def __init__(self, pool: nn.MaxPool2d, clips: bool, on_cpu: bool) -> None:
        super().__init__()
        self.pool, self.clips = pool, clips
        kernel, stride, padding, dilation = (
            value if isinstance(value, tuple) else (value, value)
            for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        halves = (kernel, stride, padding, dilation) == ((2, 2), (2, 2), (0, 0), (1, 1))
        self.by_slices = on_cpu and halves and not pool.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        wide = x.shape[1] >= WIDE and _is_channels_last(x)
        if self.by_slices and not wide:
            return _SlicedMaxPool.apply(x, self.clips)  # type: ignore[no-any-return]
        pooled: Tensor = self.pool(x)
        return pooled.relu_() if self.clips else pooled


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of x (n, c, h, w) lie beside each other."""
    return x.is_contiguous(memory_format=torch.channels_last)


class _SlicedMaxPool(torch.autograd.Function):
    """2x2 max-pooling with stride 2; the gradient goes to the first largest of each window, row by
    row, as torch's does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clips: bool) -> Tensor:
        a, b, c, d = _quarters(x)
        top, bottom = torch.maximum(a, b), torch.maximum(c, d)
        largest = torch.maximum(top, bottom)
        if clips:
            largest.clamp_min_(0)
        if not ctx.needs_input_grad[0]:
            return largest
        where = [a >= b, c >= d, top >= bottom, *([largest > 0] if clips else [])]
        ctx.save_for_backward(*where)
        ctx.shape = x.shape
        last = _is_channels_last(x) and not x.is_contiguous()
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        left_of_top, left_of_bottom, is_top, *passes = ctx.saved_tensors
        if passes:
            gradient = gradient * passes[0]
        out = torch.empty(
            ctx.shape, memory_format=ctx.layout, dtype=gradient.dtype, device=gradient.device
        )
        if ctx.shape[2] % 2 or ctx.shape[3] % 2:
            out.zero_()
        a, b, c, d = _quarters(out)
        top = gradient * is_top
        bottom = gradient - top
        torch.mul(top, left_of_top, out=a)
        torch.sub(top, a, out=b)
        torch.mul(bottom, left_of_bottom, out=c)
        torch.sub(bottom, c, out=d)
        return out, None


def _quarters(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Upper left, upper right, lower left and lower right of each 2x2 window, as views."""
    high, wide = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    upper, lower = x[:, :, 0:high:2], x[:, :, 1:high:2]
    left, right = slice(0, wide, 2), slice(1, wide, 2)
    return upper[..., left], upper[..., right], lower[..., left], lower[..., right]


def _replace_convolutions(model: nn.Module) -> None:
    """Exchange every convolution with few input channels in place."""
    for name, layer in list(model.named_modules()):
        if name and type(layer) is nn.Conv2d and _has_block_gradient(layer):
            model.set_submodule(name, BlockGradientConv(layer))


def _has_block_gradient(layer: nn.Conv2d) -> bool:
    high, wide = layer.kernel_size
    square = high == wide and layer.stride[0] == layer.stride[1]
    plain = layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer.padding, str) or not (square and plain):
        return False
    padding = set(layer.padding)
    return layer.in_channels <= FEW_CHANNELS and len(padding) == 1 and max(padding) < high


class BlockGradientConv(nn.Module):
    """A convolution whose input gradient is a convolution of the output's gradient, in blocks.

    Entry P of the padded input's gradient is the sum over u of gradient[j + u] * weight[P - s*(j +
    u)], s the stride. Written for blocks of s*m entries it is one convolution with stride m whose
    channels are the entries of a block: as many as a processor's vector holds, where the plain one
    has a single channel and wastes the rest of the vector.
    """

    turned: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        step = 1
        while layer.in_channels * (layer.stride[0] * (step + 1)) ** 2 <= VECTOR:
            step += 1
        self.step = step
        self.register_buffer("turned", _block_kernel(layer.weight.detach(), layer.stride[0], step))

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        x = x.to(layer.weight.dtype)
        geometry = layer.stride[0], layer.padding[0], self.step
        return _BlockGradient.apply(  # type: ignore[no-any-return]
            x, layer.weight, layer.bias, self.turned, geometry
        )


def _block_kernel(weight: Tensor, stride: int, step: int) -> Tensor:
    """The kernel for blocks: (into * block * block, out, taps, taps) from (out, into, k, k)."""
    out, into, k, _ = weight.shape
    block, reach = stride * step, -(-k // stride) - 1  # reach: windows before a block that touch it
    turned = weight.new_zeros(into, block, block, out, reach + step, reach + step)
    inside = [
        (at, u, at - stride * u)
        for at in range(block)
        for u in range(-reach, step)
        if 0 <= at - stride * u < k
    ]
    for row, up, i in inside:
        for column, across, j in inside:
            turned[:, row, column, :, up + reach, across + reach] = weight[:, :, i, j].T
    return turned.reshape(into * block**2, out, reach + step, reach + step)


class _BlockGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        turned: Tensor,
        geometry: tuple[int, int, int],
    ) -> Tensor:
        ctx.save_for_backward(turned)
        ctx.size, ctx.geometry = x.shape[2:], geometry
        stride, padding, _ = geometry
        return functional.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (turned,) = ctx.saved_tensors
        stride, padding, step = ctx.geometry
        block, reach = stride * step, turned.shape[-1] - step
        sizes = ctx.size
        # Zeros behind the last window, so that the blocks cover the image.
        lack = [
            -(-(padding + size) // block) * step - (windows + reach)
            for size, windows in zip(sizes, gradient.shape[2:], strict=True)
        ]
        as_is = gradient.shape[1] >= WIDE and _is_channels_last(gradient)
        layout = torch.channels_last if as_is else torch.contiguous_format
        gradient = gradient.contiguous(memory_format=layout)
        if max(lack) > 0:
            gradient = functional.pad(gradient, (0, max(lack[1], 0), 0, max(lack[0], 0)))
        blocks = functional.conv2d(
            gradient, turned.contiguous(memory_format=layout), stride=step, padding=reach
        )
        padded = functional.pixel_shuffle(blocks, block)
        high, wide = (slice(padding, padding + size) for size in sizes)
        return padded[:, :, high, wide], *[None] * 4
