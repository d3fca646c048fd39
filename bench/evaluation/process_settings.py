"""Settings, modes and levels of the process that foreign code can leave changed.

Each is a `Setting` with a getter and a setter; `process_state` reads all of SETTINGS before foreign
code runs and applies them afterwards. A new one is one more entry of the list.
"""

import contextlib
import decimal
import gc
import locale
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.overrides import _pop_mode as pop_function_mode
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode

from bench.engine.float32_precision import read_precision, restore_precision

TORCH_SETTINGS = (
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_fp16_accumulation", "backends.cudnn.enabled",
    "backends.cudnn.deterministic", "backends.cudnn.benchmark", "backends.mkldnn.enabled",
    "backends.mkldnn.deterministic", "backends.opt_einsum.enabled", "backends.opt_einsum.strategy",
    "backends.quantized.engine", "utils.deterministic.fill_uninitialized_memory",
    "utils.checkpoint._enable_checkpoint_early_stop", "utils.checkpoint._checkpoint_debug_enabled",
    "__future__._overwrite_module_params_on_conversion",
    "__future__._swap_module_params_on_conversion",
)  # fmt: skip
"""Settings that are attributes of torch; those that this version lacks are ignored."""
CPU = torch.device("cpu")

TORCH_SWITCHES = (
    ("torch.autograd.forward_ad", "_is_fwd_grad_enabled", "_set_fwd_grad_enabled"),
    (
        "torch.autograd.set_multithreading_enabled",
        "_is_multithreading_enabled", "_set_multithreading_enabled",
    ),
    (
        "torch.autograd._force_original_view_tracking",
        "_is_view_replay_enabled", "_set_view_replay_enabled",
    ),
    ("torch functions, disabled", "_get_torch_function_state", "_set_torch_function_state"),
    ("torch.jit's tracing", "_get_tracing_state", "_set_tracing_state"),
    ("autocast's cache", "is_autocast_cache_enabled", "set_autocast_cache_enabled"),
    (
        "torch.sparse.check_sparse_tensor_invariants",
        "_check_sparse_tensor_invariants", "_set_check_sparse_tensor_invariants",
    ),
    ("torch.backends.nnpack", "_get_nnpack_enabled", "_set_nnpack_enabled"),
    *(
        (
            f"torch.backends.cuda.enable_{kind}_sdp",
            f"_get_{kind}_sdp_enabled", f"_set_sdp_use_{kind}",
        )
        for kind in ("flash", "mem_efficient", "math", "cudnn")
    ),
    (
        "torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp",
        "_get_math_sdp_allow_fp16_bf16_reduction", "_set_math_sdp_allow_fp16_bf16_reduction",
    ),
)  # fmt: skip
"""Switches behind torch's context managers: name, getter and setter in torch._C; those that this
version lacks are ignored."""

SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
    signal.SIGUSR2, signal.SIGCHLD, signal.SIGPIPE,
)  # fmt: skip
"""Signals whose handlers are recorded: all that a process gets in its ordinary life."""


class Setting(NamedTuple):
    """One setting of the whole process, with its getter and setter."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]
    quiet: bool = False
    """Whether it alters no result, so that it is restored without a report."""


def _torch_setting(path: str) -> Setting | None:
    *way, last = path.split(".")
    place: Any = torch
    for step in way:
        place = getattr(place, step, None)

    if not hasattr(place, last):
        return None
    return Setting(
        f"torch.{path}", lambda: getattr(place, last), lambda value: setattr(place, last, value)
    )


def _torch_switch(name: str, get: str, put: str) -> Setting | None:
    getter, setter = getattr(torch._C, get, None), getattr(torch._C, put, None)
    return None if getter is None or setter is None else Setting(name, getter, setter)


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_inference_mode(value: bool) -> None:
    guard = torch.inference_mode(value)
    guard.__enter__()  # leaves a mode whose own guard belongs to foreign code
    _GUARDS.append(guard)


def _default_device() -> torch.device:
    # torch.get_default_device calls functions, and a mode that was left on may raise on every call.
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return CPU if context is None else context.device


def _set_default_device(value: torch.device) -> None:
    with torch._C.DisableTorchFunction():
        torch.set_default_device(None if value == CPU else value)


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
    """Count nested autocasts; weights stay cast for as long as any is on."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _leave_autocasts(value: int) -> None:
    while _autocast_depth() > value:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def _saved_tensor_hooks() -> Any:
    """Return the innermost hooks on the tensors that a forward saves for its backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def _pop_saved_tensor_hooks(value: Any) -> None:
    while _saved_tensor_hooks() is not None and _saved_tensor_hooks() != value:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _pop_to_length(pop: Callable[[], Any], length: Callable[[], int]) -> Callable[[int], None]:
    def put(value: int) -> None:
        while length() > value:
            pop()

    return put


def _leave_dual_levels(value: int) -> None:
    while forward_ad._current_level > value:
        forward_ad.exit_dual_level()


def _saved_tensor_hooks_disabled() -> Any:
    """Return why hooks on saved tensors are disabled; None if they are not."""
    return torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()


def _set_saved_tensor_hooks_disabled(value: Any) -> None:
    if value is None:
        torch._C._autograd._saved_tensors_hooks_enable()
    else:
        torch._C._autograd._saved_tensors_hooks_disable(value)


def _dispatch_keys() -> tuple[int, int]:
    """Return the dispatch keys that this thread includes and excludes, as bits."""
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set()
    return include.raw_repr(), exclude.raw_repr()


def _set_dispatch_keys(value: tuple[int, int]) -> None:
    guard = torch._C._ForceDispatchKeyGuard(*map(torch._C.DispatchKeySet.from_raw_repr, value))
    guard.__enter__()  # leaves guards of foreign code
    _GUARDS.append(guard)


def _parametrizations_cached() -> int:
    """Return how many nested blocks cache parametrised weights."""
    cached: int = parametrize._cache_enabled
    return cached


def _set_parametrizations_cached(value: int) -> None:
    parametrize._cache_enabled = value
    if not value:
        parametrize._cache.clear()


def _denormals_flushed() -> bool:
    return float(torch.full((1,), 1e-310, dtype=torch.float64, device="cpu") * 1) == 0.0


def _set_environment(value: dict[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    for name, text in value.items():
        if os.environ.get(name) != text:
            os.environ[name] = text


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return ""


def _set_working_folder(value: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(value)


def _signal_handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in SIGNALS}


def _set_signal_handlers(value: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in value.items():
            # None: its handler is not Python's, and Python can neither keep nor set it.
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _timer() -> bool:
    """Return whether a SIGALRM is due, which ends a process that does not handle it."""
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _stop_timer(value: bool) -> None:
    if not value:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _umask() -> int:
    mask = os.umask(0o077)  # there is no other way to read it
    os.umask(mask)
    return mask


def _decimal_context() -> tuple[Any, ...]:
    arguments: tuple[Any, ...] = decimal.getcontext().__reduce__()[1]
    return arguments


def _set_sys_path(value: list[str]) -> None:
    sys.path[:] = value


def _set_locale(value: str) -> None:
    locale.setlocale(locale.LC_ALL, value)


def _set_garbage_collection(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


def _input_stream() -> Any:
    return sys.stdin  # stdout and stderr belong to `bench.core.streams`, which reports changes


def _set_input_stream(value: Any) -> None:
    sys.stdin = value


def _warning_functions() -> tuple[Any, ...]:
    """Return what shows warnings; `catch_warnings(record=True)` replaces both."""
    return warnings.showwarning, warnings._showwarnmsg_impl  # type: ignore[attr-defined]


def _set_warning_functions(value: tuple[Any, ...]) -> None:
    warnings.showwarning, warnings._showwarnmsg_impl = value  # type: ignore[attr-defined]


def _set_warning_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _set_print_options(value: dict[str, Any]) -> None:
    for name, setting in value.items():
        setattr(torch._tensor_str.PRINT_OPTS, name, setting)


def _disable_logs(value: int) -> None:
    logging.root.manager.disable = value


_GUARDS: list[Any] = []
_STACKS = (torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack)
# Settings that affect every operation come before those that are set by operations.
SETTINGS = [
    Setting(
        "the default device (torch.set_default_device)",
        _default_device,
        _set_default_device,
    ),
    Setting(
        "a torch function mode that was left on",
        _STACKS[0],
        _pop_to_length(pop_function_mode, _STACKS[0]),
    ),
    Setting(
        "a torch dispatch mode that was left on",
        _STACKS[1],
        _pop_to_length(pop_dispatch_mode, _STACKS[1]),
    ),
    Setting(
        "a level of torch.func that was left on",
        torch._C._functorch.get_dynamic_layer_stack_depth,
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth,
    ),
    Setting(
        "a level of torch.autograd.forward_ad that was left on",
        lambda: forward_ad._current_level,
        _leave_dual_levels,
    ),
    Setting(
        "torch.autograd.graph.saved_tensors_hooks", _saved_tensor_hooks, _pop_saved_tensor_hooks
    ),
    Setting(
        "torch.autograd.graph.disable_saved_tensors_hooks",
        _saved_tensor_hooks_disabled,
        _set_saved_tensor_hooks_disabled,
    ),
    Setting("torch.inference_mode", torch.is_inference_mode_enabled, _set_inference_mode),
    Setting(
        "gradients (torch.set_grad_enabled)", torch.is_grad_enabled, torch.autograd.set_grad_enabled
    ),
    Setting("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch.use_deterministic_algorithms", _deterministic, _set_deterministic),
    Setting(
        "torch.set_float32_matmul_precision (or torch.backends' allow_tf32 or fp32_precision)",
        read_precision,
        restore_precision,
    ),
    *(setting for path in TORCH_SETTINGS if (setting := _torch_setting(path)) is not None),
    *(setting for names in TORCH_SWITCHES if (setting := _torch_switch(*names)) is not None),
    Setting(
        "torch.backends.mha.set_fastpath_enabled",
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.mha.set_fastpath_enabled,
    ),
    Setting(
        "torch.nn.utils.parametrize.cached", _parametrizations_cached, _set_parametrizations_cached
    ),
    *(_autocast(kind) for kind in ("cpu", "cuda")),
    Setting("a torch.autocast that was left on", _autocast_depth, _leave_autocasts),
    Setting(
        "torch.autograd.set_detect_anomaly",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    # Modes and levels, which are left above, set dispatch keys of their own.
    Setting("torch's dispatch keys", _dispatch_keys, _set_dispatch_keys),
    Setting("torch.set_flush_denormal", _denormals_flushed, torch.set_flush_denormal),
    Setting("the environment", lambda: dict(os.environ), _set_environment, quiet=True),
    Setting("the working folder", _working_folder, _set_working_folder, quiet=True),
    Setting("signal handlers", _signal_handlers, _set_signal_handlers, quiet=True),
    Setting(
        "filters of warnings", lambda: list(warnings.filters), _set_warning_filters, quiet=True
    ),
    Setting("how warnings are shown", _warning_functions, _set_warning_functions, quiet=True),
    Setting(
        "torch.set_warn_always", torch.is_warn_always_enabled, torch.set_warn_always, quiet=True
    ),
    Setting("numpy's warnings", np.geterr, lambda value: np.seterr(**value), quiet=True),
    Setting("numpy's handler of errors", np.geterrcall, np.seterrcall, quiet=True),
    Setting("a timer", _timer, _stop_timer, quiet=True),
    Setting("the umask", _umask, os.umask, quiet=True),
    Setting("sys.path", lambda: list(sys.path), _set_sys_path, quiet=True),
    Setting("the locale", lambda: locale.setlocale(locale.LC_ALL), _set_locale, quiet=True),
    Setting(
        "the decimal context",
        _decimal_context,
        lambda value: decimal.setcontext(decimal.Context(*value)),
        quiet=True,
    ),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, quiet=True),
    Setting("the switch interval", sys.getswitchinterval, sys.setswitchinterval, quiet=True),
    Setting("sys.settrace", sys.gettrace, sys.settrace, quiet=True),
    Setting("sys.setprofile", sys.getprofile, sys.setprofile, quiet=True),
    Setting("the standard input", _input_stream, _set_input_stream, quiet=True),
    Setting(
        "garbage collection",
        lambda: (gc.isenabled(), gc.get_threshold()),
        _set_garbage_collection,
        quiet=True,
    ),
    Setting("logging", lambda: logging.root.manager.disable, _disable_logs, quiet=True),
    Setting(
        "print options",
        lambda: dict(vars(torch._tensor_str.PRINT_OPTS)),
        _set_print_options,
        quiet=True,
    ),
]


def apply_setting(setting: Setting, value: Any) -> None:
    """Set a setting; one that refuses is found to differ afterwards.

    Args:
        setting: The setting.
        value: What its getter returned before.
    """
    # Each library refuses with errors of its own: what was exited cannot always be entered.
    with contextlib.suppress(RuntimeError, ValueError, TypeError, OSError, locale.Error):
        setting.put(value)
