"""Read the keys of an [[attacks]] table that adapt an attack to a defence.

`params.loss` may name a function of the user's, `features` the modules whose outputs it gets, and
`backward` a differentiable function for each module whose gradient is of no use. From Python the
functions themselves are given.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core import registry
from bench.core.contracts.adaptation import Adaptation, UserFunction
from bench.core.contracts.attack import Attack, EnsembleAttack, IterativeAttack
from bench.core.contracts.types import Norm
from bench.core.errors import SuiteError
from bench.core.validation import Validator
from bench.models.fingerprint import describe_value

LOSS_ARGUMENTS = ("logits", "labels", "images")


def is_user_loss(loss: Any) -> bool:
    """Return whether the parameter `loss` is a function of the user's and not a name of bench's.

    Args:
        loss: Value of `params.loss`.

    Returns:
        True for a function, or text with a colon.
    """
    return callable(loss) or (isinstance(loss, str) and ":" in loss)


def read_adaptation(
    check: Validator,
    attack: Attack,
    loss: Any,
    features: Sequence[str],
    backward: Mapping[str, Any],
    key: str,
    base: Path | None,
) -> Adaptation | None:
    """Read and check what an attack's entry adapts.

    Args:
        check: Collects the mistakes.
        attack: The attack.
        loss: Function or its name, "file.py:NAME"; None for a loss of bench's.
        features: Names of modules.
        backward: Name of a module -> function or its name.
        key: Key of the table in the file.
        base: Folder that file names start from.

    Returns:
        The adaptation; None if the entry has none, or after a mistake.
    """
    if loss is None and not features and not backward:
        return None
    before = len(check.problems)
    if not isinstance(attack, IterativeAttack | EnsembleAttack):
        check.say(
            key,
            "loss, features and backward: expected an iterative attack of bench's own, such as "
            "pgd or apgd, since another one computes its gradients itself; take the keys out",
        )
        return None
    if loss is not None and "loss" not in inspect.signature(attack.params).parameters:
        check.say(
            f"{key}.params.loss",
            "expected an attack whose loss can be chosen, such as pgd or apgd; this one has a loss "
            "of its own",
        )
    if features and loss is None:
        check.say(f"{key}.features", "expected a function as params.loss, which gets the features")
    if backward and attack.needs != "gradient":
        check.say(
            f"{key}.backward", "expected an attack that follows gradients; this one needs none"
        )
    extra = ("features",) if features else ()
    adaptation = Adaptation(
        loss=None
        if loss is None
        else _read_function(check, loss, f"{key}.params.loss", base, (*LOSS_ARGUMENTS, *extra)),
        features=tuple(dict.fromkeys(features)),
        backward=tuple(
            (name, function)
            for name, given in backward.items()
            if (function := _read_function(check, given, f"{key}.backward.{name}", base, ()))
        ),
    )
    return adaptation if len(check.problems) == before else None


def check_parts(
    check: Validator, attack: Attack, params: Any, norm: Norm, adaptation: Adaptation, key: str
) -> None:
    """Check that every part of an ensemble can be adapted.

    Args:
        check: Collects the mistakes.
        attack: The attack.
        params: Its params.
        norm: Norm of the threat model.
        adaptation: What is adapted.
        key: Key of the table in the file.
    """
    if not isinstance(attack, EnsembleAttack) or norm not in attack.norms:
        return
    for part in attack.parts(params, norm):
        if not isinstance(part.attack, IterativeAttack):
            check.say(
                f"{key}.backward",
                f"expected parts that are iterative attacks of bench's own; '{part.label}' has a "
                "loop of its own",
            )


def describe_adaptation(adaptation: Adaptation) -> dict[str, Any]:
    """Describe an adaptation for an identity: names, and the code of the functions.

    Args:
        adaptation: The adaptation.

    Returns:
        Plain values.
    """
    loss = adaptation.loss
    return {
        "loss": None if loss is None else [loss.name, describe_value(loss.function)],
        "features": [*adaptation.features],
        "backward": {
            module: [each.name, describe_value(each.function)]
            for module, each in adaptation.backward
        },
    }


def _read_function(
    check: Validator, given: Any, key: str, base: Path | None, arguments: Sequence[str]
) -> UserFunction | None:
    """Find a function of the user's by its name, or take it as it is."""
    if callable(given):
        module = getattr(given, "__module__", None) or type(given).__module__
        name = f"{module}:{getattr(given, '__qualname__', type(given).__qualname__)}"
        found = given
    elif isinstance(given, str) and ":" in given:
        name = registry.portable_name("attacks", given)
        try:
            found = registry.find("attacks", given, base)
        except SuiteError as error:
            for problem in error.problems:
                check.say(key, problem)
            return None
    else:
        check.say(key, f"expected a function as 'file.py:NAME', got {given!r}")
        return None
    if not callable(found):
        check.say(key, f"expected a function, got {type(found).__name__} '{name}'")
        return None
    if arguments and not _takes(found, len(arguments)):
        check.say(key, f"expected a function of ({', '.join(arguments)}), got '{name}' of others")
        return None
    return UserFunction(name, found)


def _takes(function: Any, count: int) -> bool:
    """Return whether a function can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some callables written in C have no signature
        return True
    return True
