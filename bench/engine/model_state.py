"""A model's state: how it is while it is asked and attacked, that it comes back as it was, and how
one tells that it had no memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import ContractError


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside, in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; afterwards everything is as it was.

    Raises: ContractError if weights or buffers were changed inside; they are put back first.
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
        changed = [key for key in before if not torch.equal(before[key], tensors[key])]
        with torch.no_grad():
            for key in changed:
                tensors[key].copy_(before[key])
    if changed:
        raise ContractError(_describe_change(model, changed, training))


def _describe_change(model: nn.Module, changed: list[str], training: set[str]) -> str:
    """Who changed these tensors of the model: a module of its own in training mode, or the attack.

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
    told = f"the attack changed the model: {', '.join(changed[:3])}"
    if not set(changed) <= {key for key, _ in model.named_buffers()}:
        return told
    return (
        f"{told}; if the model's own forward writes there, let it do so in training mode alone, "
        "since its answers must not depend on what it was asked before"
    )


# ------------------------------------------------------------------------- images left as they are


class InputWriteError(ContractError):
    """A model wrote into the images that it was shown."""


class InputCloningModel(nn.Module):
    """A net that writes into what it is given, shown a copy of its own each time: the same answers
    and the same gradient, and the images stay as they are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.net(x.clone())
        return answer


def call_model(model: nn.Module, x: Tensor) -> Any:
    """What `model` answers to x, which it must leave as it is.

    Writing is seen by the tensor's own counter, which costs nothing; what goes past that, through
    NumPy or `.data`, preflight alone looks for.
    Raises: WrittenError if the model wrote into x; whatever else it raises.
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
    """The innermost module that writes into what the model is given, x (n, c, h, w), for people."""
    found = _first_writing_module(model, x, False) or _first_writing_module(model, x, True)
    name = next((name for name, each in model.named_modules() if each is found), "")
    if found is None or not name:
        return f"the forward of {type(model).__name__} itself"
    return f"its module '{name}', {type(found).__name__}"


def _first_writing_module(model: nn.Module, x: Tensor, differentiable: bool) -> nn.Module | None:
    """The first module that ends and has written into the images, none inside it having done so;
    None if there is none."""
    # No leaf, so that autograd lets it be written to.
    given = x.detach().clone().requires_grad_(differentiable).clone()
    before = given._version
    found: list[nn.Module] = []
    intact: list[bool] = []

    def untouched_yet() -> bool:
        return given._version == before and torch.equal(given.detach(), x)

    def enter(module: nn.Module, inputs: Any) -> None:
        intact.append(untouched_yet())

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if intact.pop() and not untouched_yet():
            found.append(module)

    hooked = [each for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]
    handles = [each.register_forward_pre_hook(enter) for each in hooked]
    handles += [each.register_forward_hook(leave) for each in hooked]
    try:
        with torch.set_grad_enabled(differentiable):
            model(given)
    except RuntimeError:  # what writes past autograd may raise with a gradient, and not without
        return None
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round float32 products to TF32 inside; torch's own default is yes for
    convolutions and no for matrices. As it was, afterwards."""
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    matrices.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a pass failed for want of memory; on a CPU torch says so in words alone."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
