"""A program from a file as a model: what it computes is known, what is inside it is not seen."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OpaqueModel(nn.Module):
    """Images (n, c, h, w) in, what the program gives out.

    Its layers cannot be hooked, followed symbolically or exchanged for others, so that a copy of it
    is one to the bit.
    """

    def __init__(self, net: nn.Module, content: str) -> None:
        """`content` is a hash of the file that it came from."""
        super().__init__()
        self.net, self.content = net, content

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            raise TypeError("a program from a file is run as it is, never followed symbolically")
        found: Tensor = self.net.forward(x)  # the method that was looked at, and no hooks
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "OpaqueModel":
        with torch.no_grad():  # TorchScript computes its copies, and they are to be leaves
            net = copy.deepcopy(self.net, memo)
        return OpaqueModel(net, self.content).train(self.training)

    def extra_repr(self) -> str:
        return f"content {self.content}"


def contains_opaque_model(model: nn.Module) -> bool:
    """Whether some of the model is a program, whose layers cannot be hooked."""
    return any(isinstance(module, OpaqueModel) for module in model.modules())


class OperatorBytes(TorchDispatchMode):
    """Counts the bytes of what every operator gives while inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return found
