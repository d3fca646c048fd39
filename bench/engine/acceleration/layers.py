"""Replace layers by cheaper ones with the same output and the same input gradient.

An attack needs one thing of a model in evaluation mode, the gradient with respect to its input. For
that alone much of a model can be computed cheaper (the total effect is in results/speed, "no copy"
beside "bench"):

- batch norm folds into the convolution or linear layer before it (exact to rounding); dropout and
  identity go;
- max-pooling before ReLU in place of after it: output and gradient are the same to the bit, and
  ReLU computes a quarter of the values;
- 2x2 max-pooling as three elementwise maxima over slices, ties broken as torch breaks them;
- the input gradient of a convolution with few input channels, the first one, as a convolution that
  fills a vector with neighbouring pixels: torch's own kernel has only the channels to fill it with.

`bench.engine.acceleration.accelerate` checks the result against the model. Behaviour that may
change later cannot be checked, so nothing is replaced in a model with hooks or with a forward
assigned to an instance, which a graph would lose, and no graph is made of a forward that reads or
sets grad mode, autocast or inference mode: a graph keeps the mode of the moment.
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
from bench.engine.acceleration.block_gradient import replace_convolutions
from bench.engine.acceleration.memory_layout import WIDE, is_channels_last
from bench.engine.opaque_model import OpaqueModel


def fuse_layers(model: nn.Module, on_cpu: bool) -> nn.Module:
    """Copy a model with every layer replaced that can be.

    Where the forward cannot be traced symbolically (control flow on values or on the mode), single
    layers are replaced and no pairs.

    Args:
        model: Model in evaluation mode.
        on_cpu: Whether the copy runs on a CPU, where alone the sliced pooling and the block kernel
            pay.

    Returns:
        The copy; what copying the model raises is passed on.

    Raises:
        HookedError: The model has hooks.
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
        replace_convolutions(own)
    return own


# ------------------------------------------------------------------- what must not be replaced


class HookedError(Exception):
    """A call of the model does more than its class's forward; the message names the module."""


def _find_hooked(model: nn.Module) -> str:
    """Return the first module whose call does more than its class's forward, or ""."""
    programs = [each for each in model.modules() if isinstance(each, OpaqueModel)]
    inside = {id(module) for each in programs for module in each.net.modules()}
    for name, module in model.named_modules():
        # Nothing inside a program is replaced.
        if isinstance(module, torch.jit.ScriptModule) or id(module) in inside:
            continue
        hooks = (
            module._forward_hooks, module._forward_pre_hooks,
            module._backward_hooks, module._backward_pre_hooks,
        )  # fmt: skip
        plain = isinstance(module, fx.GraphModule)  # torch assigns a call to each
        called = type(module).__call__ is not nn.Module.__call__ and not plain
        if any(hooks) or called or "forward" in vars(module):
            return f"{type(module).__name__} ({name})" if name else type(module).__name__
    return ""


MODES = ("grad_enabled", "inference_mode", "is_inference", "autocast")
"""Parts of the names of the functions that read or set torch's modes."""
MODE_FILES = ("torch/autograd/grad_mode.py", "torch/amp/autocast_mode.py")


class _ModeWatch:
    """Record whether torch's modes are read or set inside.

    It uses the profiler, since no hook of torch's sees that.
    """

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
    """Trace the forward; None if that fails or the forward depends on torch's modes."""
    with _ModeWatch() as watch:
        graph = tracing.trace_forward(model)
    return None if watch.seen else graph


# ------------------------------------------------------------------------- pairs, found in a graph


def _remove_layers(graph_module: fx.GraphModule, *kinds: type[nn.Module]) -> None:
    """Remove layers that do nothing in evaluation mode."""
    for node in list(graph_module.graph.nodes):
        if isinstance(called_module(graph_module, node), kinds) and node.args:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def _fold_batch_norm(graph_module: fx.GraphModule) -> None:
    """Fold batch norm into the layer before it, where no other node reads that layer."""
    for node in list(graph_module.graph.nodes):
        norm = called_module(graph_module, node)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
            continue
        if not node.args:  # its input is given by name
            continue
        before = node.args[0]
        layer = called_module(graph_module, before)
        if layer is None or not _is_used_once(graph_module, before):
            continue
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            if norm.bias is None:  # torch folds none without a shift
                continue
            folded = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        graph_module.set_submodule(before.target, folded)
        node.replace_all_uses_with(before)
        graph_module.graph.erase_node(node)


def _pool_first(graph_module: fx.GraphModule, on_cpu: bool) -> None:
    """Replace ReLU and max-pooling by one layer that pools first.

    On a CPU, pooling alone is replaced by a faster one.
    """
    for node in list(graph_module.graph.nodes):
        pool = _as_max_pool(graph_module, node)
        if pool is None:
            continue
        before = node.args[0]
        clips = is_relu(graph_module, before) and len(before.users) == 1
        if not clips and not on_cpu:
            continue
        name = f"pooled_{node.name}"
        graph_module.add_submodule(name, MaxPoolReLU(pool, clips, on_cpu))
        with graph_module.graph.inserting_after(node):
            new = graph_module.graph.call_module(name, (before.args[0] if clips else before,))
        node.replace_all_uses_with(new)
        graph_module.graph.erase_node(node)
        if clips:
            graph_module.graph.erase_node(before)


def called_module(graph_module: fx.GraphModule, node: Any) -> nn.Module | None:
    """Return the module that a node calls.

    Args:
        graph_module: The graph and its modules.
        node: A node or an argument of one.

    Returns:
        The module; None if none is called.
    """
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    return graph_module.get_submodule(str(node.target))


def _is_used_once(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the node's module is called nowhere else, and its output read once."""
    calls = [other for other in graph_module.graph.nodes if other.target == node.target]
    return len(calls) == 1 and len(node.users) == 1


def is_relu(graph_module: fx.GraphModule, node: Any) -> bool:
    """Return whether a node is a ReLU, as a module, method or function.

    Args:
        graph_module: The graph and its modules.
        node: A node or an argument of one.

    Returns:
        True if it is.
    """
    if isinstance(called_module(graph_module, node), nn.ReLU):
        return True
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in (functional.relu, torch.relu)


def _as_max_pool(graph_module: fx.GraphModule, node: fx.Node) -> nn.MaxPool2d | None:
    """Return a node's max-pooling as a layer; None if it is none or returns indices."""
    module = called_module(graph_module, node)
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
    """Max-pooling, followed by ReLU if `clips`."""

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
        """Pool and clip.

        Args:
            x: Features, (n, c, h, w).

        Returns:
            Pooled features.
        """
        wide = x.shape[1] >= WIDE and is_channels_last(x)
        if self.by_slices and not wide:
            return _SlicedMaxPool.apply(x, self.clips)  # type: ignore[no-any-return]
        pooled: Tensor = self.pool(x)
        return pooled.relu_() if self.clips else pooled


class _SlicedMaxPool(torch.autograd.Function):
    """2x2 max-pooling with stride 2 over slices.

    The gradient goes to the first largest entry of each window, row by row, as torch's does.
    """

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
        last = is_channels_last(x) and not x.is_contiguous()
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
    """Return views of the upper left, upper right, lower left and lower right entries."""
    high, wide = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    upper, lower = x[:, :, 0:high:2], x[:, :, 1:high:2]
    left, right = slice(0, wide, 2), slice(1, wide, 2)
    return upper[..., left], upper[..., right], lower[..., left], lower[..., right]
