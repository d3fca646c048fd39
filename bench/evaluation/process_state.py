"""Record the global state of the process before foreign code runs, and restore it afterwards.

The state is the settings of torch and Python, the modes and levels that torch nests, the hooks on
every module, and the functions and methods that bench, its models and its attacks call. Changes
that could alter a result are reported by name; others (the environment, the working folder, signal
handlers, warnings, print options) are undone silently. What cannot be put back is reported, too.
The random state belongs to `rng.seed_global`. Devices and streams of CUDA are not recorded.
"""

import operator
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as modules

from bench.evaluation.process_settings import SETTINGS, apply_setting

WATCHED_MODULES = (
    "builtins", "math", "random", "time", "copy", "numpy", "numpy.random", "numpy.linalg", "pandas",
    "torch", "torch.nn", "torch.nn.functional", "torch.nn.modules.module", "torch.autograd",
    "torch.autograd.functional", "torch.autograd.graph", "torch.linalg", "torch.fft",
    "torch.special", "torch.func", "torch.random", "torch.cuda", "torch.optim", "torch.fx",
    "torch._C._nn",
)  # fmt: skip
"""Modules whose functions and classes are recorded, besides those of bench and of every model."""
TORCH = Path(torch.__file__).parent
LOST = " (which could not be put back)"
"""Ends the name of what `ProcessState.restore` reports without having restored it."""


class _Namespace(NamedTuple):
    """The namespace of a module or a class, and a copy of it."""

    kind: type | None
    """None for a module."""
    space: Any
    """The live namespace."""
    before: dict[str, Any]
    """Its copy."""


class ProcessState:
    """The global state of the process at one moment."""

    def __init__(self) -> None:
        """Record the current state."""
        self._names = [*_module_namespaces(), *_class_namespaces()]
        self._hooks = {
            name: (hooks, dict(hooks)) if isinstance(hooks, dict) else (None, hooks)
            for name, hooks in vars(modules).items()
            if name.startswith(("_global_", "_has_any_global"))
        }
        self._settings = [(setting, setting.get()) for setting in SETTINGS]
        self._modules = dict(sys.modules)

    def restore(self) -> list[str]:
        """Restore the recorded state.

        Returns:
            Names of what had been changed and could alter a result, and of all that could not be
            put back.
        """
        # Functions come first: all that follows may call them.
        replaced = [name for names in self._names for name in _restore_namespace(names)]
        changed = self._restore_hooks()
        applied = False
        for setting, value in self._settings:
            if setting.get() == value:
                continue
            if not setting.quiet:
                changed.append(setting.name)
            apply_setting(setting, value)
            applied = True
        # Restoring one setting may have changed another.
        lost = []
        for setting, value in self._settings if applied else ():
            if setting.get() != value:
                apply_setting(setting, value)
                if setting.get() != value:
                    lost.append(setting.name + LOST)
        for name, module in self._modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
        return [*lost, *changed, *replaced]

    def _restore_hooks(self) -> list[str]:
        space, changed = vars(modules), []
        for name, (hooks, before) in self._hooks.items():
            if hooks is None:
                if space[name] is not before:
                    space[name] = before
            elif space[name] is not hooks or [*hooks.items()] != [*before.items()]:
                hooks.clear()
                hooks.update(before)
                space[name] = hooks
                kind = name.removeprefix("_global_").replace("_", " ")
                changed.append(f"the {kind} of every module (torch.nn.modules.module)")
        return changed


def _module_namespaces() -> Iterator[_Namespace]:
    own = [name for name in sys.modules if name == "bench" or name.startswith("bench.")]
    for name in (*WATCHED_MODULES, *own):
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            yield _Namespace(None, vars(module), vars(module).copy())


def _class_namespaces() -> Iterator[_Namespace]:
    """Record tensors, every class of modules and the globals of each forward."""
    recorded: set[int] = set()
    for kind in (*torch.Tensor.__mro__[:-1], *_subclasses(nn.Module)):
        space = vars(kind)
        yield _Namespace(kind, space, space.copy())
        around = getattr(space.get("forward"), "__globals__", None)
        if around is not None and id(around) not in recorded:
            recorded.add(id(around))
            yield _Namespace(None, around, around.copy())


def _subclasses(kind: type) -> list[type]:
    """List a class and all its subclasses."""
    types: dict[type, None] = {kind: None}
    waiting = [kind]
    while waiting:
        derived: list[type] = type.__subclasses__(waiting.pop())
        for each in derived:
            if each not in types:
                types[each] = None
                waiting.append(each)
    return list(types)


def _restore_namespace(names: _Namespace) -> Iterator[str]:
    """Restore the functions of a namespace; yield the names of those that had been replaced."""
    kind, space, before = names
    if _is_same(space, before):
        return
    for key, value in before.items():
        if key in space and (space[key] is value or _is_wrapped_by_torch(value, space[key])):
            continue
        if _is_code(value):
            if kind is None:
                space[key] = value
            else:
                type.__setattr__(kind, key, value)
            yield f"{_qualified_name(names)}.{key}"
    if kind is None or len(space) == len(before):
        return
    for key in [*space]:
        if key not in before and _is_code(space[key]) and _is_inherited(kind, key):
            type.__delattr__(kind, key)
            yield f"{_qualified_name(names)}.{key}"


def _is_same(space: Any, before: dict[str, Any]) -> bool:
    """Check whether a namespace has the same names in the same order with the same values.

    Nearly all have, and comparing them so takes half the time of looking up each name.
    """
    values = map(operator.is_, space.values(), before.values())
    return [*space] == [*before] and all(values)


def _qualified_name(names: _Namespace) -> str:
    kind = names.kind
    module = str(names.space.get("__name__")) if kind is None else kind.__module__
    if module.startswith("bench_user_"):  # the registry's name of a user's file
        module = Path(str(getattr(sys.modules.get(module), "__file__", module))).name
    return module if kind is None else f"{module}.{kind.__qualname__}"


def _is_wrapped_by_torch(before: Any, now: Any) -> bool:
    """Check whether torch itself wrapped a function, as its compiler does on its first import."""
    code = getattr(now, "__code__", None)
    own = code is not None and Path(code.co_filename).is_relative_to(TORCH)
    return own and getattr(now, "__wrapped__", None) is before


def _is_code(value: Any) -> bool:
    """Check whether a value is a function, a class, a method or a property, and no plain value."""
    return callable(value) or hasattr(type(value), "__get__")


def _is_inherited(kind: type, key: str) -> bool:
    return any(key in vars(base) for base in kind.__mro__[1:])
