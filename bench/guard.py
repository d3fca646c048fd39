"""A model's state: how it is while it is asked and attacked, that it comes back as it was, and how
one tells that it had no memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bench.errors import ContractError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside, in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; afterwards everything is as it was.

    Raises: ContractError if weights or buffers were changed inside; they are put back first.
    """
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {key: value.detach().clone() for key, value in tensors.items()}
    changed: list[str] = []
    training: set[str] = set()
    try:
        with evaluating(model):
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
        raise ContractError(_changed(model, changed, training))


def _changed(model: nn.Module, changed: list[str], training: set[str]) -> str:
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
    return f"the attack changed the model: {', '.join(changed[:3])}"


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round float32 products to TF32 inside; torch's own default is yes for
    convolutions and no for matrices. As it was, afterwards."""
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    matrices.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a pass failed for want of memory; on a CPU torch says so in words alone."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
