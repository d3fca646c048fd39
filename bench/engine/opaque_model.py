"""Wrap a program from a file as a model whose layers are not accessible."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OpaqueModel(nn.Module):
    """Model that runs a program from a file.

    Its layers cannot be hooked, traced or replaced, so a copy of it gives the same bits.
    """

    def __init__(self, net: nn.Module, content: str) -> None:
        """`content` is a hash of the file that it came from."""
        super().__init__()
        self.net, self.content = net, content

    def forward(self, x: Tensor) -> Tensor:
        """Run the program.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            The program's output.

        Raises:
            TypeError: torch.fx traces the model.
        """
        if isinstance(x, fx.Proxy):
            raise TypeError("a program from a file is run as it is, never followed symbolically")
        logits: Tensor = self.net.forward(x)  # the program itself, without hooks
        return logits

    def __deepcopy__(self, memo: dict[int, Any]) -> "OpaqueModel":
        with torch.no_grad():  # TorchScript computes its copies, and they are to be leaves
            net = copy.deepcopy(self.net, memo)
        return OpaqueModel(net, self.content).train(self.training)

    def extra_repr(self) -> str:
        """Return the hash of the file for the model's repr.

        Returns:
            "content <hash>".
        """
        return f"content {self.content}"


def contains_opaque_model(model: nn.Module) -> bool:
    """Return whether a part of the model is a program, whose layers cannot be hooked.

    Args:
        model: The model.

    Returns:
        True if a module is an `OpaqueModel`.
    """
    return any(isinstance(module, OpaqueModel) for module in model.modules())


class OperatorBytes(TorchDispatchMode):
    """Dispatch mode that counts the bytes of every operator's output."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return output
