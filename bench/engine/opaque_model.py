"""Wrap a program from a file as a model whose layers are not accessible."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.engine.padding import call_padded


class OpaqueModel(nn.Module):
    """Model that runs a program from a file.

    Its layers cannot be hooked, traced or replaced, so a copy of it gives the same bits. A program
    that was exported for certain numbers of images gets pieces of such a size, each filled up with
    its last image.
    """

    def __init__(
        self,
        net: nn.Module,
        content: str,
        rows: tuple[int, int] | None = None,
        shape: tuple[int | None, ...] = (),
    ) -> None:
        """Wrap what one of torch's readers made of a file.

        Args:
            net: Its module.
            content: Hash of the file.
            rows: Least and most images that it takes at once; None: any number.
            shape: Sizes of one image, None for a size that is not fixed; unused without `rows`.
        """
        super().__init__()
        self.net, self.content, self.rows, self.shape = net, content, rows, shape

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
        if self.rows is None:
            return self._run(x)
        if len(self.shape) != x.dim() - 1 or any(
            size not in (None, given) for size, given in zip(self.shape, x.shape[1:], strict=True)
        ):
            raise ValueError(f"the program was exported for images {self.shape}")
        return call_padded(self._run, x, *self.rows)

    def _run(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net.forward(x)  # a call would print the traceback of what it raises
        return logits

    def train(self, mode: bool = True) -> "OpaqueModel":
        """Set the mode of every module directly, since a torch.export graph refuses to change it.

        Args:
            mode: Training mode, or evaluation mode.

        Returns:
            This model.
        """
        for module in self.modules():
            module.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "OpaqueModel":
        with torch.no_grad():  # TorchScript computes its copies, and they are to be leaves
            net = copy.deepcopy(self.net, memo)
        return OpaqueModel(net, self.content, self.rows, self.shape).train(self.training)

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
