"""Helpers of the adapters of other libraries: import, silence, and settings as params of an attack.

An adapter is a file of bench/attacks/adapters with a function `adapt(name)`. Its library may be
missing; its attacks are then skipped.
"""

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, make_dataclass
from functools import partial
from importlib.machinery import NamespaceLoader
from types import ModuleType
from typing import Annotated, Any, NamedTuple, NoReturn

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from bench.core.contracts.attack import Attack, ExternalAttack
from bench.core.contracts.parameters import UNLESS_DEFAULT, Count
from bench.core.contracts.types import BALLS, Threat
from bench.core.errors import ContractError, SuiteError, first_line, nearest
from bench.core.rng import Noise

# ------------------------------------------------------------------------------------- the library


def import_library(module: str) -> ModuleType:
    """Import a module of a library at its first use, without its warnings.

    Args:
        module: Dotted name of the module.

    Returns:
        The module.

    Raises:
        ImportError: It cannot be imported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its imports deprecate, which no user can change
        return importlib.import_module(module)


def missing_reason(module: str, extra: str = "peers") -> str:
    """Return the sentence that says why a library is missing and how to install it.

    Args:
        module: Dotted name of a module of the library.
        extra: The extra of bench that installs it.

    Returns:
        The sentence; empty if the module can be imported.
    """
    library, why = module.partition(".")[0], ""
    try:
        import_library(module)
        if isinstance(_loader(library), NamespaceLoader):  # a folder of that name on Python's path
            why = "is not installed"
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == library
        why = "is not installed" if absent else f"could not be imported ({first_line(error)})"
    return why and f"library '{library}' {why}: pip install \"robustness-bench[{extra}]\""


def _loader(library: str) -> Any:
    """Return what loaded the top module of a library."""
    return getattr(getattr(sys.modules[library], "__spec__", None), "loader", None)


@dataclass(frozen=True, kw_only=True)
class Unchecked:
    """Params of an attack whose library is not installed and so cannot name its parameters."""


def unavailable_attack(library: str, reason: str) -> Attack:
    """Return the placeholder for attacks of a missing library; its cells are skipped.

    Args:
        library: Import name of the library.
        reason: Why the library is missing.

    Returns:
        An attack of any norm that refuses to run.
    """
    return ExternalAttack(
        summary="an attack of a library that is not here",
        source=library,
        params=Unchecked,
        norms=BALLS,
        implementation=library,
        unavailable=reason,
        run=partial(_refuse, reason),
    )


def _refuse(
    reason: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Any, noise: Noise
) -> NoReturn:
    """Raise ContractError with the reason."""
    raise ContractError(reason)


def check_name(library: str, name: str, known: Iterable[str], refused: Mapping[str, str]) -> None:
    """Check that a library has an attack that can be used here.

    Args:
        library: Import name of the library.
        name: Name of the attack in the library.
        known: Names that are supported.
        refused: Name -> why it cannot be used.

    Raises:
        SuiteError: The name is unknown or refused.
    """
    if name in refused:
        raise SuiteError(f"attack '{library}:{name}' cannot be used here: {refused[name]}")
    if name not in known:
        raise SuiteError(f"attack '{library}:{name}' is unknown; {nearest(name, known)}")


@contextlib.contextmanager
def silence(*libraries: str) -> Iterator[None]:
    """Suppress what libraries print and warn of; enable gradients.

    Args:
        *libraries: Import names of the libraries.

    Yields:
        With stdout redirected.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        for library in libraries:
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        yield


# -------------------------------------------------------------------------------------- its params


class Setting(NamedTuple):
    """One parameter of a library's constructor."""

    name: str
    kind: Any
    """Its annotation, which says what a suite may write."""
    default: Any = MISSING
    """MISSING where the suite must say it."""
    added: bool = False
    """Whether bench adds it to those of the library: identities contain it only if it is set."""


def make_params(name: str, module: str, settings: Sequence[Setting]) -> type:
    """Build the params dataclass of an attack, <name>Params.

    Args:
        name: Name of the attack in the library.
        module: Module in which the class is found when params are unpickled.
        settings: The parameters in order.

    Returns:
        A frozen dataclass.
    """
    fields = [
        (key, kind, field(default=_whole(kind, default), metadata={UNLESS_DEFAULT: added}))
        for key, kind, default, added in settings
    ]
    space = {"__module__": module}
    return make_dataclass(f"{name}Params", fields, frozen=True, kw_only=True, namespace=space)


def _whole(kind: Any, default: Any) -> Any:
    """Convert a whole default of a float parameter to float."""
    return float(default) if kind is float and default is not MISSING else default


def infer_type(default: Any) -> Any:
    """Return the annotation of a parameter of which only the default is known.

    Args:
        default: The default.

    Returns:
        `Count` for a whole number, else the type of the default.
    """
    return Count if type(default) is int else type(default)


def _pair(value: object) -> object:
    """Convert a list, which suites have, to a tuple, which libraries take."""
    return tuple(value) if isinstance(value, list) else value  # a suite has lists, no tuples


Pair = Annotated[tuple[Count, Count], BeforeValidator(_pair)]
