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
    is one to the bit. A program that was exported for certain numbers of images is given pieces of
    such a size, each filled up with its last image.
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
        if isinstance(x, fx.Proxy):
            raise TypeError("a program from a file is run as it is, never followed symbolically")
        if self.rows is None:
            return self._run(x)
        if len(self.shape) != x.dim() - 1 or any(
            size not in (None, given) for size, given in zip(self.shape, x.shape[1:], strict=True)
        ):
            raise ValueError(f"the program was exported for images {self.shape}")
        least, most = self.rows
        if least <= len(x) <= most:
            return self._run(x)
        parts = x.split(most)
        filled = [torch.cat([part, *[part[-1:]] * (least - len(part))]) for part in parts]
        return torch.cat(
            [self._run(each)[: len(part)] for each, part in zip(filled, parts, strict=True)]
        )

    def _run(self, x: Tensor) -> Tensor:
        found: Tensor = self.net.forward(x)  # a call would print the traceback of what it raises
        return found

    def train(self, mode: bool = True) -> "OpaqueModel":
        """Set the mode of every module directly: a torch.export graph has none, and raises if it is
        asked for one."""
        for module in self.modules():
            module.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "OpaqueModel":
        with torch.no_grad():  # TorchScript computes its copies, and they are to be leaves
            net = copy.deepcopy(self.net, memo)
        return OpaqueModel(net, self.content, self.rows, self.shape).train(self.training)

    def extra_repr(self) -> str:
        return f"content {self.content}"


def is_inside(model: nn.Module) -> bool:
    """Whether some of the model is a program, whose layers cannot be hooked."""
    return any(isinstance(module, OpaqueModel) for module in model.modules())


class Given(TorchDispatchMode):
    """Counts the bytes of what every operator gives while inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return found
