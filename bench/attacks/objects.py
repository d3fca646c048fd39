"""Use attacks that are Python objects: a function, an `Attack`, or an object of a library.

An adapter of a library may define `adapt_object(attack) -> AttackObject | None`, which uses the
library's objects as they are.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module, metadata
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import Attack, ExternalAttack
from bench.core.contracts.types import BALLS, Goal, Norm, Threat
from bench.core.errors import ContractError, SuiteError
from bench.core.rng import Noise

FORMS = (
    "a name of `bench list attacks`, a function (model, x, y) -> x_adv, an Attack, or an attack "
    "object of a library that bench adapts"
)


class AttackObject(NamedTuple):
    """An attack object as an attack of bench, and what the object itself has decided."""

    name: str
    """Keys the noise and belongs to identities."""
    attack: Attack
    norm: Norm | None = None
    """The norm of the object; None if it has none of its own."""
    eps: float | None = None
    """The radius of the object, likewise."""
    model: Any = None
    """The model that the object was made for; None if it takes any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectParams:
    """What an object was made with; no parameter can be set from outside."""

    settings: str = ""
    """Its settings as text, which belong to the identity of its cells."""


def adapt_object(attack: Any) -> AttackObject:
    """Use an object as an attack of bench.

    Args:
        attack: An `Attack`, an object of a library with an adapter, or a function of
            (model, x, y) that returns x_adv; it also gets `eps` and `norm` where it has parameters
            of these names.

    Returns:
        The attack with its name.

    Raises:
        SuiteError: It is none of these.
    """
    if isinstance(attack, Attack):
        return AttackObject(_find_name(attack), attack)
    for kind in type(attack).__mro__:
        library = kind.__module__.partition(".")[0]
        if registry.names_library("attacks", f"{library}:"):
            adapter = import_module(f"bench.attacks.adapters.{library}")
            adapt = getattr(adapter, "adapt_object", None)
            adapted: AttackObject | None = None if adapt is None else adapt(attack)
            if adapted is not None:
                return adapted
    if not callable(attack) or isinstance(attack, type | nn.Module):
        raise SuiteError(f"attack: expected {FORMS}, got {_describe(attack)}")
    return _adapt_function(attack)


def adapt_library_object(
    library: str,
    attack: Any,
    run: Callable[..., Tensor],
    settings: Mapping[str, Any],
    *,
    summary: str,
    norm: Norm | None,
    needs: Literal["gradient", "scores", "labels"],
    goals: tuple[Goal, ...],
    budget: Literal["fixed", "minimum"],
    min_classes: int = 2,
    channels: tuple[int, ...] | None = None,
) -> AttackObject:
    """Describe an attack object of a library; adapters call this.

    Nothing tells which random numbers the object draws or how many steps it makes: it counts as
    stochastic, dependent on its batch and without a count of steps.

    Args:
        library: Import name of the library, that of its distribution.
        attack: The object.
        run: (attack, model, x, y, threat, params, noise) -> x_adv, (n, c, h, w).
        settings: Attribute -> value of the object, which belong to the identity of its cells.
        summary: One line on the attack.
        norm: The object's norm; None if it may have any.
        needs: What the attack asks of a model.
        goals: What it can aim at.
        budget: Whether it works within a radius or looks for the smallest perturbation.
        min_classes: Fewest classes of a model that it attacks.
        channels: Numbers of channels of the images that it takes; None for any.

    Returns:
        The attack, called "library:Class", with the object's norm; radius and model are left open.
    """
    name = type(attack).__name__
    params = dataclasses.make_dataclass(
        f"{name}Object",
        [("settings", str, dataclasses.field(default=repr(dict(sorted(settings.items())))))],
        frozen=True,
        kw_only=True,
    )
    adapted = ExternalAttack(
        summary=summary,
        source=f"{library} {metadata.version(library)}",
        params=params,
        norms=(norm,) if norm else BALLS,
        goals=goals,
        needs=needs,
        stochastic=True,
        budget=budget,
        min_classes=min_classes,
        channels=channels,
        implementation=library,
        batch_dependent=True,
        counts_steps=False,
        run=partial(run, attack),
    )
    return AttackObject(f"{library}:{name}", adapted, norm)


def _adapt_function(function: Callable[..., Any]) -> AttackObject:
    """Use a function (model, x, y) -> x_adv as an attack."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None) or type(function).__module__
    try:
        known = set(inspect.signature(function).parameters)
    except ValueError:  # some callables written in C have none
        known = set()
    return AttackObject(
        f"{module}:{name}",
        ExternalAttack(
            summary=(inspect.getdoc(function) or name).partition("\n")[0],
            source=f"{module}:{name}",
            params=ObjectParams,
            norms=BALLS,
            stochastic=True,
            batch_dependent=True,
            counts_steps=False,
            run=partial(_call_function, function, tuple(sorted(known & {"eps", "norm"}))),
        ),
    )


def _call_function(
    function: Callable[..., Any],
    wanted: tuple[str, ...],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    params: Any,
    noise: Noise,
) -> Tensor:
    del params, noise  # its draws come from the global generators, which the harness seeds
    with torch.enable_grad():
        x_adv = function(model, x, y, **{key: getattr(threat, key) for key in wanted})
    if not isinstance(x_adv, Tensor):
        raise ContractError(
            f"expected a function that returns adversarial images, got {type(x_adv).__name__}"
        )
    return x_adv.detach()


def _find_name(attack: Attack) -> str:
    """Return the registered name of one of bench's own attacks, or a name for the user's."""
    for name in registry.names("attacks"):
        if not name.endswith(":") and registry.find("attacks", name) is attack:
            return name
    return f"{attack.params.__module__}:{attack.params.__qualname__.removesuffix('Params')}"


def _describe(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
