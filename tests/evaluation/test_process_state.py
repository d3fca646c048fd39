"""What foreign code leaves entered is left for it, and named where it could alter a result."""

import decimal
import gc
import io
import locale
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from bench.evaluation import process_state
from bench.evaluation.process_state import ProcessState

ENTERED: list[Any] = []
"""Context managers that were entered: one that is collected would exit."""


def leave(manager: Any) -> None:
    """Enter a context manager and never exit it."""
    ENTERED.append(manager)
    manager.__enter__()


def leave_level(transform: str) -> None:
    """Enter a level of torch.func and never exit it."""
    functorch = torch._C._functorch
    if transform == "vmap":
        functorch._vmap_increment_nesting(2, "error")
    else:
        getattr(functorch, f"_{transform}_increment_nesting")()


LOUD: dict[str, Callable[[], Any]] = {
    "a level of torch.autograd.forward_ad": forward_ad.enter_dual_level,
    "torch.autograd.forward_ad": lambda: leave(forward_ad._set_fwd_grad_enabled(False)),
    "a level of torch.func that": lambda: leave_level("grad"),
    "a level of torch.func": lambda: [leave_level(each) for each in ("vmap", "jvp", "grad")],
    "a torch function mode": lambda: leave(TorchFunctionMode()),
    "a torch dispatch mode": lambda: leave(FakeTensorMode()),
    "torch functions, disabled": lambda: leave(torch._C.DisableTorchFunctionSubclass()),
    "torch.inference_mode": lambda: leave(torch.inference_mode()),
    "gradients": lambda: torch.set_grad_enabled(False),
    "torch.autograd.set_multithreading": lambda: leave(
        torch.autograd.set_multithreading_enabled(False)
    ),
    "torch.autograd._force_original": lambda: leave(
        torch.autograd._force_original_view_tracking(True)
    ),
    "torch.autograd.graph.saved_tensors_hooks": lambda: leave(torch.autograd.graph.save_on_cpu()),
    "torch.autograd.graph.disable_saved": lambda: leave(
        torch.autograd.graph.disable_saved_tensors_hooks("no")
    ),
    "torch.autograd.set_detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "torch.autocast('cpu')": lambda: leave(torch.autocast("cpu")),
    "autocast's cache": lambda: torch.set_autocast_cache_enabled(False),
    "torch's dispatch keys": lambda: leave(torch._C._AutoDispatchBelowAutograd()),
    "torch.nn.utils.parametrize.cached": lambda: leave(parametrize.cached()),
    "torch.utils.checkpoint._enable": lambda: leave(
        checkpoint.set_checkpoint_early_stop(not checkpoint._enable_checkpoint_early_stop)
    ),
    "torch.sparse.check_sparse_tensor": torch.sparse.check_sparse_tensor_invariants.enable,
    "torch.backends.mha": lambda: torch.backends.mha.set_fastpath_enabled(
        not torch.backends.mha.get_fastpath_enabled()
    ),
    "torch.backends.cuda.enable_math_sdp": lambda: leave(
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.FLASH_ATTENTION])
    ),
    "torch.backends.cudnn.benchmark": lambda: leave(
        torch.backends.cudnn.flags(enabled=True, benchmark=True)
    ),
    "torch.utils.deterministic.fill": lambda: setattr(
        torch.utils.deterministic, "fill_uninitialized_memory", False
    ),
    "torch.__future__._overwrite": lambda: (
        torch.__future__.set_overwrite_module_params_on_conversion(True)
    ),
    "torch.set_default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "the default device": lambda: torch.set_default_device("meta"),
    "torch.set_flush_denormal": lambda: torch.set_flush_denormal(True),
    "torch.set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
}
"""What the report begins with -> code that leaves something entered or set."""


@pytest.mark.parametrize("name", LOUD)
def test_what_is_left_entered_is_left_and_named(name: str) -> None:
    state = ProcessState()
    LOUD[name]()
    reported = state.restore()
    assert any(each.startswith(name) for each in reported), reported
    assert not any(each.endswith(process_state.LOST) for each in reported)
    assert state.restore() == []
    assert_works()


def assert_works() -> None:
    """Assert that a pass and a gradient are what they are in a fresh process."""
    net, x = nn.Linear(3, 2), torch.ones(2, 3, requires_grad=True)
    with torch.no_grad():
        net.weight.fill_(2.0)
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    assert type(gradient) is Tensor
    assert gradient.dtype == torch.float32
    assert gradient.tolist() == [[4.0] * 3] * 2


def test_several_nested_levels_are_left_at_once() -> None:
    state = ProcessState()
    forward_ad.enter_dual_level()
    leave(torch.inference_mode())
    leave(TorchFunctionMode())
    leave_level("vmap")
    leave(FakeTensorMode())
    leave_level("grad")
    assert len(state.restore()) >= 5
    assert state.restore() == []
    assert_works()


def read_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def replace_input() -> None:
    sys.stdin = io.StringIO()


def replace_warnings() -> None:
    leave(warnings.catch_warnings(record=True))


QUIET: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "environment": (lambda: os.environ.get("LEFT"), lambda: os.environ.update(LEFT="1")),
    "folder": (Path.cwd, lambda: os.chdir("/")),
    "umask": (read_umask, lambda: os.umask(0o777)),
    "timer": (
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda: signal.setitimer(signal.ITIMER_REAL, 600),
    ),
    "handler": (
        lambda: signal.getsignal(signal.SIGALRM),
        lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
    ),
    "path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/nowhere")),
    "modules": (lambda: sys.modules["json"], lambda: sys.modules.pop("json")),
    "locale": (
        lambda: locale.setlocale(locale.LC_ALL),
        lambda: locale.setlocale(locale.LC_ALL, "C"),
    ),
    "decimal": (
        lambda: decimal.getcontext().prec,
        lambda: leave(decimal.localcontext(decimal.Context(prec=3))),
    ),
    "recursion": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(5000)),
    "switch": (sys.getswitchinterval, lambda: sys.setswitchinterval(0.5)),
    "collection": (gc.isenabled, gc.disable),
    "profile": (sys.getprofile, lambda: sys.setprofile(lambda *_: None)),
    "standard input": (lambda: sys.stdin, replace_input),
    "warnings": (lambda: (list(warnings.filters), warnings.showwarning), replace_warnings),
    "numpy": (np.geterr, lambda: leave(np.errstate(all="raise"))),
    "numpy's handler": (np.geterrcall, lambda: np.seterrcall(print)),
    "always": (torch.is_warn_always_enabled, lambda: torch.set_warn_always(True)),
}
"""Name -> how it is read, and code that changes it and can alter no result once it is undone."""


@pytest.fixture
def _decimal_places() -> Iterator[None]:
    with decimal.localcontext():
        yield


@pytest.mark.usefixtures("_decimal_places")
@pytest.mark.parametrize("name", QUIET)
def test_what_alters_no_result_is_put_back_without_a_word(name: str) -> None:
    read, change = QUIET[name]
    before, state = read(), ProcessState()
    change()
    reported = state.restore()
    assert read() == before
    assert reported == []


def test_what_cannot_be_put_back_is_named() -> None:
    """A signal's handler can be set by the main thread alone."""
    before = signal.getsignal(signal.SIGUSR1)
    state = ProcessState()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    reported: list[str] = []
    thread = threading.Thread(target=lambda: reported.extend(state.restore()))
    thread.start()
    thread.join()
    try:
        assert f"signal handlers{process_state.LOST}" in reported
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_level_that_foreign_code_exits_cannot_be_entered_again() -> None:
    forward_ad.enter_dual_level()
    state = ProcessState()
    forward_ad.exit_dual_level()
    name = "a level of torch.autograd.forward_ad that was left on"
    assert state.restore() == [f"{name}{process_state.LOST}", name]
