"""Check the arguments of the Python functions as the keys of a suite are checked.

In Python a number may be one of NumPy or PyTorch, and a list a tuple or an array.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Access
from bench.core.errors import SuiteError
from bench.core.validation import Validator

LISTS = ("features", "budgets", "allow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallArguments:
    """Arguments that no table of a suite checks; a function takes some of them."""

    params: dict[str, Any] | None = None
    transforms: dict[str, Any] | None = None
    backward: dict[str, Any] | None = None
    features: list[str] = dataclasses.field(default_factory=list)
    budgets: list[Any] | None = None
    """Numbers, which the attack's table checks."""
    seed: int = 0
    batch_size: Count | None = None
    keep_adversarial: bool = False
    copied: bool = True
    predictions: Count = 1
    access: Access = "gradient"
    classes: Count | None = None
    allow: list[str] = dataclasses.field(default_factory=list)
    output: str | int | None = None
    audit: bool | None = None
    device: str = "auto"
    limit: Count | None = None
    title: str = ""
    fresh: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Arguments of `bench.run`, which its manifest stores."""

    device: str = "auto"
    limit: Count | None = None
    batch_size: Count | None = None
    fresh: bool = False
    copied: bool = True
    deterministic: bool = False
    shard: str = "1/1"
    isolate: bool = False
    time_limit: float | None = None
    memory_limit: str | None = None
    keep_adversarial: str | None = None


_Arguments = TypeVar("_Arguments", CallArguments, RunArguments)


def check_arguments(where: str, kind: type[_Arguments], **given: Any) -> _Arguments:
    """Check arguments of a function.

    Args:
        where: Name of the function, for messages.
        kind: What they are checked as.
        given: Arguments by name, fields of `kind`; None stands for the default.

    Returns:
        The arguments, with numbers of Python in lists and dictionaries.

    Raises:
        SuiteError: Arguments are invalid; one sentence for each.
    """
    check = Validator(where)
    checked: _Arguments = check.fill(
        kind,
        {
            name: _to_list(value) if name in LISTS else to_plain(value)
            for name, value in given.items()
            if value is not None
        },
        "",
    )
    check.stop_if_wrong()
    return checked


def check_source(where: str, source: Any) -> list[nn.Module]:
    """Check what examples are crafted on.

    Args:
        where: Name of the function, for messages.
        source: A model or several.

    Returns:
        The models, at least one.

    Raises:
        SuiteError: It is neither.
    """
    models = [source] if isinstance(source, nn.Module) else source
    if not isinstance(models, Sequence) or isinstance(models, str):
        expected = "expected a torch.nn.Module or a list of several"
        raise SuiteError(f"{where}: source: {expected}, got {type(source).__name__}")
    if not models:
        raise SuiteError(f"{where}: source: expected at least one model, got an empty list")
    for at, model in enumerate(models):
        if not isinstance(model, nn.Module):
            got = type(model).__name__
            raise SuiteError(f"{where}: source[{at}]: expected a torch.nn.Module, got {got}")
    return list(models)


def to_plain(value: Any) -> Any:
    """Convert a number of NumPy or PyTorch, also in a mapping, to one of Python; leave the rest.

    Numbers of single and half precision mean their shortest decimal, as those of eps do.

    >>> import numpy as np
    >>> to_plain({"steps": np.int64(3), "alpha": np.float32(0.1), "loss": "dlr"})
    {'steps': 3, 'alpha': 0.1, 'loss': 'dlr'}

    Args:
        value: Any value.

    Returns:
        The value with numbers of Python.
    """
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, Tensor) and value.ndim == 0:
        plain = value.detach().cpu()
        value = plain.float() if plain.element_size() < 4 and plain.is_floating_point() else plain
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def _to_list(values: Any) -> Any:
    """Convert a sequence or an array of one dimension to a list; leave anything else."""
    if isinstance(values, Tensor | np.ndarray):
        values = list(values) if values.ndim == 1 else values
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        values = list(values)
    return [to_plain(value) for value in values] if isinstance(values, list) else values
