"""What everything in this process shares: looked at before a stranger's code, put back after it.

That is torch's settings, the hooks on every module, and the functions and methods that bench, its
models and its attacks call. What could change a number is told by name; what cannot (the
environment, the working folder, signal handlers, warnings, how numbers are printed) is put back
without a word. The random state is `rng.seeded`'s.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.overrides import _pop_mode as pop_function_mode
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode

WATCHED_MODULES = (
    "builtins", "math", "random", "time", "copy", "numpy", "numpy.random", "numpy.linalg", "pandas",
    "torch", "torch.nn", "torch.nn.functional", "torch.nn.modules.module", "torch.autograd",
    "torch.autograd.functional", "torch.autograd.graph", "torch.linalg", "torch.fft",
    "torch.special", "torch.func", "torch.random", "torch.cuda", "torch.optim", "torch.fx",
    "torch._C._nn",
)  # fmt: skip
"""Whose functions and classes are looked at, beside those of bench and of every model."""
TORCH_SETTINGS = (
    "backends.fp32_precision", "backends.cuda.matmul.fp32_precision",
    "backends.cuda.matmul.allow_tf32",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_fp16_accumulation", "backends.cudnn.fp32_precision",
    "backends.cudnn.conv.fp32_precision", "backends.cudnn.rnn.fp32_precision",
    "backends.cudnn.allow_tf32", "backends.cudnn.enabled", "backends.cudnn.deterministic",
    "backends.cudnn.benchmark", "backends.mkldnn.fp32_precision",
    "backends.mkldnn.matmul.fp32_precision", "backends.mkldnn.conv.fp32_precision",
    "backends.mkldnn.rnn.fp32_precision", "backends.mkldnn.enabled",
    "backends.mkldnn.deterministic",
)  # fmt: skip
"""Settings that are attributes of torch; those that this version has not are passed over."""
TORCH = Path(torch.__file__).parent
UNREADABLE = "mixed"
"""What a setting is that torch refuses to tell, where its old and its new form disagree."""


class Setting(NamedTuple):
    """One thing that holds for the whole process."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]
    quiet: bool = False
    """Whether it changes no number, so that it is put back without a word."""


def _attribute(path: str) -> Setting | None:
    *way, last = path.split(".")
    place: Any = torch
    for step in way:
        place = getattr(place, step, None)

    def get() -> Any:
        try:
            return getattr(place, last)
        except RuntimeError:
            return UNREADABLE

    try:
        get()
    except AttributeError:
        return None
    return Setting(f"torch.{path}", get, lambda value: setattr(place, last, value))


def _matmul() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return UNREADABLE


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _put_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _put_inference(value: bool) -> None:
    guard = torch.inference_mode(value)
    guard.__enter__()  # the way out of a mode whose own guard is a stranger's
    _GUARDS.append(guard)


def _put_device(value: torch.device) -> None:
    torch.set_default_device(None)
    if torch.get_default_device() != value:
        torch.set_default_device(value)


def _autocast(kind: str) -> Setting:
    def put(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(kind, value[0])
        torch.set_autocast_dtype(kind, value[1])
        torch.clear_autocast_cache()

    return Setting(
        f"torch.autocast('{kind}')",
        lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        put,
    )


def _autocast_depth() -> int:
    """How many autocasts are on, one in another; weights are cast once for as long as any is."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _leave_autocasts(value: int) -> None:
    while _autocast_depth() > value:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def _saving() -> Any:
    """The innermost hooks on what a forward saves for its backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def _leave_saving(value: Any) -> None:
    while _saving() is not None and _saving() != value:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _pop(pop: Callable[[], Any], length: Callable[[], int]) -> Callable[[int], None]:
    def put(value: int) -> None:
        while length() > value:
            pop()

    return put


def _denormals_flushed() -> bool:
    return float(torch.full((1,), 1e-310, dtype=torch.float64, device="cpu") * 1) == 0.0


def _put_environment(value: dict[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    for name, text in value.items():
        if os.environ.get(name) != text:
            os.environ[name] = text


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return ""


def _put_folder(value: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(value)


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _put_handlers(value: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in value.items():
            if handler is not None:
                signal.signal(number, handler)


def _put_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _put_prints(value: dict[str, Any]) -> None:
    for name, setting in value.items():
        setattr(torch._tensor_str.PRINT_OPTS, name, setting)


def _disable_logs(value: int) -> None:
    logging.root.manager.disable = value


_GUARDS: list[Any] = []
_STACKS = (torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack)
# What holds in every operation comes before what is made of operations.
SETTINGS = [
    Setting(
        "the default device (torch.set_default_device)", torch.get_default_device, _put_device
    ),
    Setting(
        "a torch function mode that was left on", _STACKS[0], _pop(pop_function_mode, _STACKS[0])
    ),
    Setting(
        "a torch dispatch mode that was left on", _STACKS[1], _pop(pop_dispatch_mode, _STACKS[1])
    ),
    Setting("torch.autograd.graph.saved_tensors_hooks", _saving, _leave_saving),
    Setting("torch.inference_mode", torch.is_inference_mode_enabled, _put_inference),
    Setting(
        "gradients (torch.set_grad_enabled)", torch.is_grad_enabled, torch.autograd.set_grad_enabled
    ),
    Setting("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch.use_deterministic_algorithms", _deterministic, _put_deterministic),
    Setting("torch.set_float32_matmul_precision", _matmul, torch.set_float32_matmul_precision),
    *(setting for path in TORCH_SETTINGS if (setting := _attribute(path)) is not None),
    *(_autocast(kind) for kind in ("cpu", "cuda")),
    Setting("a torch.autocast that was left on", _autocast_depth, _leave_autocasts),
    Setting(
        "torch.autograd.set_detect_anomaly",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    Setting("torch.set_flush_denormal", _denormals_flushed, torch.set_flush_denormal),
    Setting("the environment", lambda: dict(os.environ), _put_environment, quiet=True),
    Setting("the working folder", _folder, _put_folder, quiet=True),
    Setting("signal handlers", _handlers, _put_handlers, quiet=True),
    Setting("filters of warnings", lambda: list(warnings.filters), _put_filters, quiet=True),
    Setting(
        "numpy's warnings", np.geterr, lambda value: np.seterr(**value), quiet=True
    ),
    Setting("logging", lambda: logging.root.manager.disable, _disable_logs, quiet=True),
    Setting(
        "print options", lambda: dict(vars(torch._tensor_str.PRINT_OPTS)), _put_prints, quiet=True
    ),
]  # fmt: skip


class _Names(NamedTuple):
    """The functions of a module, or the methods of a class."""

    kind: type | None
    """None for a module."""
    space: Any
    """Its namespace, alive."""
    before: dict[str, Any]
    """The same as it was."""


class ProcessState:
    """How the process is at one moment."""

    def __init__(self) -> None:
        self._names = [*_of_modules(), *_of_classes()]
        self._hooks = {
            name: (hooks, dict(hooks)) if isinstance(hooks, dict) else (None, hooks)
            for name, hooks in vars(modules).items()
            if name.startswith(("_global_", "_has_any_global"))
        }
        self._settings = [(setting, setting.get()) for setting in SETTINGS]

    def restore(self) -> list[str]:
        """Make everything as it was; what had been changed that could change a number, by name."""
        # Functions come first: all that follows may call them.
        exchanged = [name for names in self._names for name in _put_names(names)]
        changed = self._put_hooks()
        for setting, value in self._settings:
            if setting.get() == value:
                continue
            if not setting.quiet:
                changed.append(setting.name)
            if value != UNREADABLE:
                setting.put(value)
        # Where torch has an old and a new form of a setting, the one may have moved the other.
        for setting, value in self._settings:
            if value != UNREADABLE and setting.get() != value:
                setting.put(value)
        return [*changed, *exchanged]

    def _put_hooks(self) -> list[str]:
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


def _of_modules() -> Iterator[_Names]:
    own = [name for name in sys.modules if name == "bench" or name.startswith("bench.")]
    for name in (*WATCHED_MODULES, *own):
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            yield _Names(None, vars(module), vars(module).copy())


def _of_classes() -> Iterator[_Names]:
    """Tensors, every class of modules, and what each forward finds in its own file."""
    seen: set[int] = set()
    for kind in (*torch.Tensor.__mro__[:-1], *_below(nn.Module)):
        space = vars(kind)
        yield _Names(kind, space, space.copy())
        around = getattr(space.get("forward"), "__globals__", None)
        if around is not None and id(around) not in seen:
            seen.add(id(around))
            yield _Names(None, around, around.copy())


def _below(kind: type) -> list[type]:
    """A class and all that are derived from it."""
    found: dict[type, None] = {kind: None}
    waiting = [kind]
    while waiting:
        derived: list[type] = type.__subclasses__(waiting.pop())
        for each in derived:
            if each not in found:
                found[each] = None
                waiting.append(each)
    return list(found)


def _put_names(names: _Names) -> Iterator[str]:
    """Put the functions of a namespace back; the names of those that had been exchanged."""
    kind, space, before = names
    for key, value in before.items():
        if key in space and (space[key] is value or _wrapped(value, space[key])):
            continue
        if _called(value):
            if kind is None:
                space[key] = value
            else:
                type.__setattr__(kind, key, value)
            yield f"{_name(names)}.{key}"
    if kind is None or len(space) == len(before):
        return
    for key in [*space]:
        if key not in before and _called(space[key]) and _inherited(kind, key):
            type.__delattr__(kind, key)
            yield f"{_name(names)}.{key}"


def _name(names: _Names) -> str:
    kind = names.kind
    module = str(names.space.get("__name__")) if kind is None else kind.__module__
    if module.startswith("bench_user_"):  # as the registry calls a file of the user's own
        module = Path(str(getattr(sys.modules.get(module), "__file__", module))).name
    return module if kind is None else f"{module}.{kind.__qualname__}"


def _wrapped(before: Any, now: Any) -> bool:
    """Whether torch itself has put a function of its own around one, as its compiler does with
    some when it is first imported."""
    code = getattr(now, "__code__", None)
    own = code is not None and Path(code.co_filename).is_relative_to(TORCH)
    return own and getattr(now, "__wrapped__", None) is before


def _called(value: Any) -> bool:
    """Whether it is a function, a class, a method or a property, and no plain value."""
    return callable(value) or hasattr(type(value), "__get__")


def _inherited(kind: type, key: str) -> bool:
    return any(key in vars(base) for base in kind.__mro__[1:])
