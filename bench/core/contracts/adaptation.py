"""How a user adapts an iterative attack to a defence: a loss and gradients of the user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class UserFunction(NamedTuple):
    """A function of the user's with its name."""

    name: str
    """"file.py:NAME" or "module:NAME", for messages and tables."""
    function: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What an attack entry adapts; an entry without any has none."""

    loss: UserFunction | None = None
    """(logits (n, classes), classes (n,), images (n, c, h, w)[, features]) -> losses to ascend,
    (n,). The classes are the labels, or the targets of a targeted attack."""
    features: tuple[str, ...] = ()
    """Names of the modules whose outputs the loss gets, by name, as its fourth argument."""
    backward: tuple[tuple[str, UserFunction], ...] = ()
    """Name of a module -> differentiable function of the module's input whose gradient takes the
    place of the module's (BPDA). The forward pass remains the module's."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of all modules that the model must have."""
        return tuple(dict.fromkeys([*(name for name, _ in self.backward), *self.features]))

    @property
    def functions(self) -> tuple[UserFunction, ...]:
        """All functions of the user's."""
        return *(each for _, each in self.backward), *([self.loss] if self.loss else ())
