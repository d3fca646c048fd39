"""The attacked model of an adaptive attack: gradients and a loss of the user's own.

The wrapper computes what the model computes. While a pass of it runs, hooks replace the gradient of
the named modules and collect the named outputs; they are removed with the pass, also where it
raises, so that the model itself, which judges, is never changed.
Source of the replaced gradients: Athalye et al. 2018, section 4.1 (BPDA),
https://arxiv.org/abs/1802.00420
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.adaptation import Adaptation, UserFunction
from bench.core.errors import SuiteError, nearest
from bench.engine.functional.losses import Objective

WRAPPER = "net."
"""Prefix of a module's name in bench's own wrappers of a model, which a user does not know."""


class _Pass(NamedTuple):
    """What a user's loss gets of one forward pass beside the logits."""

    images: Tensor
    features: Mapping[str, Tensor]


class _SubstituteGradient(torch.autograd.Function):
    """Return a module's output; pass its gradient on to the output of the user's function."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, approximation: Tensor) -> Tensor:
        """Return the output unchanged."""
        ctx.dtype = approximation.dtype
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        """Pass the gradient to the approximation alone."""
        return None, gradients[0].to(ctx.dtype)


class AdaptedModel(nn.Module):
    """A model whose passes follow an adaptation."""

    def __init__(self, net: nn.Module, adaptation: Adaptation) -> None:
        """Find the named modules.

        Args:
            net: The model, which is not changed.
            adaptation: Loss, features and gradients.

        Raises:
            SuiteError: The model has no module of a name.
        """
        super().__init__()
        self.net, self.adaptation = net, adaptation
        self.training = net.training
        self._observed: _Pass | None = None
        for name, _ in adaptation.backward:
            find_module(net, name, "backward")
        for name in adaptation.features:
            find_module(net, name, "features")

    def forward(self, x: Tensor) -> Any:
        """Apply the model.

        Args:
            x: Images, (n, c, h, w), in [0, 1].

        Returns:
            The model's output.

        Raises:
            SuiteError: A function of the user's returned something else than a tensor of the
                expected shape, or a module whose output is asked for was not called.
        """
        features: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, stand_in in self.adaptation.backward:
                module = find_module(self.net, name, "backward")
                hooks.enter_context(_replace_gradient(module, name, stand_in))
            for name in self.adaptation.features:  # after, so that they see the new gradient
                module = find_module(self.net, name, "features")
                handle = module.register_forward_hook(partial(_collect, features, name, len(x)))
                hooks.callback(handle.remove)
            output = self.net(x)
        for name in self.adaptation.features:
            if name not in features:
                raise SuiteError(f"features: the model does not call its module '{name}'")
        self._observed = _Pass(x, features)
        return output

    def make_objective(self, otherwise: Objective) -> Objective:
        """Return the objective of the attack, which belongs to the pass before it.

        Args:
            otherwise: Objective of an adaptation without a loss.

        Returns:
            (logits, class to leave or reach, label) -> what is ascended, (n,).
        """
        loss = self.adaptation.loss
        if loss is None:
            return otherwise
        return lambda logits, y, label: self._evaluate_loss(loss, logits, y)

    def _evaluate_loss(self, loss: UserFunction, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the user's loss of the last pass, and check what it returns."""
        assert self._observed is not None
        (images, features), self._observed = self._observed, None  # frees the graph with the pass
        more = (features,) if self.adaptation.features else ()
        losses = loss.function(logits, y, images, *more)
        if not isinstance(losses, Tensor):
            raise SuiteError(
                f"{loss.name}: expected a loss per example, a tensor of shape ({len(y)},), got "
                f"{type(losses).__name__}"
            )
        if losses.shape != y.shape or not losses.is_floating_point():
            raise SuiteError(
                f"{loss.name}: expected a loss per example, floating-point of shape ({len(y)},), "
                f"got {str(losses.dtype).removeprefix('torch.')} of shape {tuple(losses.shape)}; "
                "take no mean or sum over the examples"
            )
        inputs = (logits, *features.values())
        if not losses.requires_grad and any(each.requires_grad for each in inputs):
            raise SuiteError(
                f"{loss.name}: expected a differentiable loss, got one without a gradient; let it "
                "use no detach(), argmax or no_grad on the way from logits, images or features"
            )
        return losses


def list_module_names(net: nn.Module) -> list[str]:
    """List the names by which `find_module` finds a module.

    Args:
        net: The model, possibly wrapped.

    Returns:
        Names with bench's wrappers, and without them.
    """
    names: dict[str, None] = {}
    for full, _ in net.named_modules():
        name = full
        while name:
            names[name] = None
            name = name[len(WRAPPER) :] if name.startswith(WRAPPER) else ""
    return [*names]


def find_module(net: nn.Module, name: str, key: str) -> nn.Module:
    """Find a module of a model by the name that it has there, without bench's wrappers.

    Args:
        net: The model, possibly wrapped.
        name: Name as in `named_modules()` of the user's model.
        key: Key of the suite that names it, for the message.

    Returns:
        The module.

    Raises:
        SuiteError: There is none; the message names the nearest.
    """
    modules: dict[str, nn.Module] = {full: each for full, each in net.named_modules() if full}
    full = name
    while full not in modules:
        full = WRAPPER + full
        if len(full) > max(map(len, modules), default=0):
            known = [each for each in modules if each != WRAPPER.rstrip(".")]
            raise SuiteError(f"{key}: the model has no module '{name}'; {nearest(name, known)}")
    return modules[full]


@contextmanager
def _replace_gradient(module: nn.Module, name: str, stand_in: UserFunction) -> Iterator[None]:
    """Replace the gradient of a module inside the context.

    The module computes on a detached copy, since it may write into its input, and leaves no graph.
    """
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs.append((args, kwargs))
        return tuple(map(_detach, args)), {key: _detach(each) for key, each in kwargs.items()}

    def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given, named = inputs.pop()
        if not torch.is_grad_enabled():
            return output
        approximation = stand_in.function(*given, **named)
        _check_stand_in(stand_in.name, name, output, approximation)
        return _SubstituteGradient.apply(output.detach(), approximation)

    with ExitStack() as handles:
        hooks: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
            (module.register_forward_pre_hook, enter),
            (module.register_forward_hook, leave),
        )
        for register, hook in hooks:
            handles.callback(register(hook, with_kwargs=True).remove)
        yield


def _detach(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _check_stand_in(function: str, module: str, output: Any, approximation: Any) -> None:
    """Check that a stand-in returns what can take the gradient of a module's output."""
    if not isinstance(output, Tensor):
        raise SuiteError(
            f"backward: expected a module that returns one tensor, got {type(output).__name__} "
            f"from '{module}'"
        )
    if not isinstance(approximation, Tensor) or approximation.shape != output.shape:
        got = (
            f"shape {tuple(approximation.shape)}"
            if isinstance(approximation, Tensor)
            else type(approximation).__name__
        )
        raise SuiteError(
            f"{function}: expected a tensor of the shape that module '{module}' returns, "
            f"{tuple(output.shape)}, got {got}"
        )
    if not approximation.is_floating_point():
        raise SuiteError(
            f"{function}: expected a floating-point tensor in place of module '{module}', got "
            f"{str(approximation.dtype).removeprefix('torch.')}"
        )


def _collect(
    features: dict[str, Tensor], name: str, n: int, module: nn.Module, args: Any, output: Any
) -> None:
    """Store the output of a module; of several calls in one pass, that of the last."""
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != n:
        raise SuiteError(
            f"features: expected a module whose output is one tensor with a row per image, got "
            f"another output of '{name}'"
        )
    features[name] = output
