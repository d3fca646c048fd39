"""What the adapters of other libraries share: a library that may not be there, what it prints and
warns of while it works, and its own settings as the params of an attack.

An adapter is a file of bench/attacks that has no ATTACK but a function `adapt(name)`.
"""

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, make_dataclass
from functools import partial
from types import ModuleType
from typing import Annotated, Any, NamedTuple, NoReturn

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import ContractError, SuiteError, nearest
from bench.core.rng import Noise

ANY: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")

# ------------------------------------------------------------------------------------- the library


def import_library(module: str) -> ModuleType:
    """A module of a library, imported at its first use: that takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its imports deprecate, which no user can change
        return importlib.import_module(module)


def missing_reason(module: str, extra: str = "peers") -> str:
    """The sentence that tells why a library cannot be had, and what to do; "" if it can."""
    try:
        import_library(module)
    except ImportError as error:
        library = module.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == library
        why = "is not installed" if absent else f"could not be imported ({error})"
        return f"library '{library}' {why}: pip install \"robustness-bench[{extra}]\""
    return ""


@dataclass(frozen=True, kw_only=True)
class Unchecked:
    """Params of an attack whose library is not there to say what it takes."""


def unavailable_attack(library: str, reason: str) -> Attack:
    """What stands for any attack of a library that cannot be had: a suite skips its cells."""
    return Attack(
        summary="an attack of a library that is not here",
        source=library,
        params=Unchecked,
        norms=ANY,
        implementation=library,
        unavailable=reason,
        run=partial(_refuse, reason),
    )


def _refuse(
    reason: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Any, noise: Noise
) -> NoReturn:
    raise ContractError(reason)


def check_name(library: str, name: str, known: Iterable[str], refused: Mapping[str, str]) -> None:
    """Raises: SuiteError if the library has no attack `name`, or none that can be used here."""
    if name in refused:
        raise SuiteError(f"attack '{library}:{name}' cannot be used here: {refused[name]}")
    if name not in known:
        raise SuiteError(f"attack '{library}:{name}' is unknown; {nearest(name, known)}")


@contextlib.contextmanager
def silence(*libraries: str) -> Iterator[None]:
    """Nothing that the libraries print or warn of is heard inside, and gradients are on."""
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


def make_params(name: str, module: str, settings: Sequence[Setting]) -> type:
    """The params dataclass of the attack `name`, to be found in `module` as <name>Params."""
    fields = [(key, kind, field(default=_whole(kind, default))) for key, kind, default in settings]
    space = {"__module__": module}
    return make_dataclass(f"{name}Params", fields, frozen=True, kw_only=True, namespace=space)


def _whole(kind: Any, default: Any) -> Any:
    return float(default) if kind is float and default is not MISSING else default


def infer_type(default: Any) -> Any:
    """The annotation of a parameter of which only the default is known; whole numbers count."""
    return Count if type(default) is int else type(default)


def _pair(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # a suite has lists, no tuples


Pair = Annotated[tuple[Count, Count], BeforeValidator(_pair)]
