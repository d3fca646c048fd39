"""Control the state of a model while it is called and attacked: mode, frozen parameters, its input.

Everything is restored afterwards, and a change of parameters, buffers or input is an error.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import ContractError
from bench.engine.device import is_gpu


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode; restore each module's mode afterwards.

    Args:
        model: The model.

    Yields:
        In evaluation mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and freeze its parameters; restore both afterwards.

    Args:
        model: The model.

    Yields:
        With parameters that require no gradient.

    Raises:
        ContractError: Parameters or buffers were changed inside; they are restored first.
    """
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {key: value.detach().clone() for key, value in tensors.items()}
    changed: list[str] = []
    training: set[str] = set()
    try:
        with eval_mode(model):
            model.requires_grad_(False)
            training = {name for name, module in model.named_modules() if module.training}
            yield
    finally:
        for parameter, wants, gradient in parameters:
            parameter.requires_grad_(wants)
            parameter.grad = gradient
        changed = _find_changed(before, tensors)
        with torch.no_grad():
            for key in changed:
                tensors[key].copy_(before[key])
    if changed:
        raise ContractError(_describe_change(model, changed, training))


def _find_changed(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """List the tensors that are no longer equal; each GPU is waited for once, not for each tensor.

    As with torch.equal, NaN is no number's equal.
    """
    changed: set[str] = set()
    differ: dict[torch.device, dict[str, Tensor]] = {}
    for key, old in before.items():
        new = now[key]
        if is_gpu(new.device) and (old.shape, old.dtype) == (new.shape, new.dtype):
            differ.setdefault(new.device, {})[key] = (old != new).any()
        elif not torch.equal(old, new):
            changed.add(key)
    for flags in differ.values():
        answers = torch.stack(list(flags.values())).tolist()
        changed |= {key for key, differs in zip(flags, answers, strict=True) if differs}
    return [key for key in before if key in changed]


def _describe_change(model: nn.Module, changed: list[str], training: set[str]) -> str:
    """Describe what changed these tensors: a module in training mode, or the attack.

    Batch norm, for one, writes its running statistics at each pass in training mode.
    """
    for key in changed:
        owner, _, tensor = key.rpartition(".")
        if owner in training and tensor in dict(model.get_submodule(owner).named_buffers()):
            kind = type(model.get_submodule(owner)).__name__
            return (
                f"the model changes while it predicts: its module '{owner or kind}' ({kind}) stays "
                f"in training mode when the model is put into evaluation mode, and writes its "
                f"{tensor} at each pass; let train() and eval() reach it"
            )
    problem = f"the attack changed the model: {', '.join(changed[:3])}"
    if not set(changed) <= {key for key, _ in model.named_buffers()}:
        return problem
    return (
        f"{problem}; if the model's own forward writes there, let it do so in training mode alone, "
        "since its answers must not depend on what it was asked before"
    )


# ------------------------------------------------------------------------- unchanged inputs


class InputWriteError(ContractError):
    """A model wrote into its input."""


class InputCloningModel(nn.Module):
    """Wrapper of a model that writes into its input: passes a copy, with the same gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Apply the model to a copy of the images.

        Args:
            x: Images, (n, c, h, w), in [0, 1].

        Returns:
            The model's output.
        """
        answer: Tensor = self.net(x.clone())
        return answer


def call_model(model: nn.Module, x: Tensor) -> Any:
    """Call a model and check that it does not write into its input.

    Writes are detected by the tensor's version counter, which costs nothing; writes through NumPy
    or `.data` pass it, and preflight alone looks for them.

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].

    Returns:
        The model's output.

    Raises:
        InputWriteError: The model wrote into x.
    """
    if x.is_inference():  # which has no counter
        return model(x)
    before = x._version
    try:
        answer = model(x)
    except RuntimeError as error:
        if "leaf Variable that requires grad is being used in an in-place operation" in str(error):
            raise InputWriteError(_WRITES) from error
        raise
    if x._version != before:
        raise InputWriteError(_WRITES)
    return answer


_WRITES = (
    "the model writes into the images that it is shown, which it did not do when preflight asked "
    "it; let it compute out of place"
)


def find_input_writer(model: nn.Module, x: Tensor) -> str:
    """Find the innermost module that writes into the model's input, for a message.

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].

    Returns:
        The module's name and class.
    """
    writer = _first_writing_module(model, x, False) or _first_writing_module(model, x, True)
    name = next((name for name, each in model.named_modules() if each is writer), "")
    if writer is None or not name:
        return f"the forward of {type(model).__name__} itself"
    return f"its module '{name}', {type(writer).__name__}"


def _first_writing_module(model: nn.Module, x: Tensor, differentiable: bool) -> nn.Module | None:
    """Return the first module to end whose call, and none inside it, wrote into the images."""
    # Not a leaf, so that autograd allows writes.
    given = x.detach().clone().requires_grad_(differentiable).clone()
    before = given._version
    writers: list[nn.Module] = []
    intact: list[bool] = []

    def untouched_yet() -> bool:
        return given._version == before and torch.equal(given.detach(), x)

    def enter(module: nn.Module, inputs: Any) -> None:
        intact.append(untouched_yet())

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if intact.pop() and not untouched_yet():
            writers.append(module)

    hooked = [each for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]
    handles = [each.register_forward_pre_hook(enter) for each in hooked]
    handles += [each.register_forward_hook(leave) for each in hooked]
    try:
        with torch.set_grad_enabled(differentiable):
            model(given)
    except RuntimeError:  # a write past autograd may raise with a gradient only
        return None
    finally:
        for handle in handles:
            handle.remove()
    return writers[0] if writers else None


OUT_OF_MEMORY = re.compile(
    r"out of memory"  # CUDA, HIP, XPU and Metal, their drivers, and graphs that are captured
    r"|can't allocate memory|not enough memory|std::bad_alloc"  # a processor
    r"|ALLOC(ATION)?_?FAILED"  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT, hipBLAS, MIOpen
    r"|CUBLAS_STATUS_NOT_INITIALIZED.*cublasCreate"  # no room for the library's own buffers
    r"|unable to find an engine|unable to find a valid cuDNN algorithm"  # none fits the memory
    r"|OUT_OF_(DEVICE_MEMORY|HOST_MEMORY|RESOURCES)",  # SYCL, below XPU
    re.IGNORECASE,
)
"""Messages by which torch and the libraries below it report that memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a pass failed for lack of memory.

    torch has a class for its own allocators alone; of other libraries only the message says so. A
    capture that runs out of memory may end with another error, raised while the first is handled.

    Args:
        error: The exception.

    Returns:
        True if memory ran out.
    """
    cause: BaseException | None = error if isinstance(error, RuntimeError) else None
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError):
            return True
        if isinstance(cause, RuntimeError) and OUT_OF_MEMORY.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
