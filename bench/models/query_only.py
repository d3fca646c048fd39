"""Wrap a model that exposes scores or labels only: a callable, or a service behind it.

`access` says which: "scores" (logits, (n, classes)) or "labels" (class indices, (n,)). There are no
gradients and no layers to accelerate; the planner skips attacks that need more.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.core.contracts.types import Access
from bench.core.errors import ContractError
from bench.engine.functional.logits import predict_class, widen

LABEL_LOGIT = 50.0
"""Logit of the returned class, where all others are 0: its softmax probability rounds to 1."""


class QueryOnlyModel(nn.Module):
    """A model that answers queries, without gradients and without tracing."""

    def __init__(self, name: str, ask: Callable[[Tensor], Any], access: Access, classes: int):
        """Wrap a callable.

        Args:
            name: Name for messages.
            ask: Maps detached images (n, c, h, w) in [0, 1] to a tensor, an array or nested lists.
                The images are on the model's device if this is a module, else on the CPU.
            access: What it returns, "scores" or "labels".
            classes: Number of classes.
        """
        super().__init__()
        self.name, self.access, self.classes = name, access, classes
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        """Query the model.

        Args:
            x: Images, (n, c, h, w) in [0, 1].

        Returns:
            Logits, (n, classes); for labels, LABEL_LOGIT at the returned class and 0 elsewhere.

        Raises:
            TypeError: The model is traced.
            ContractError: The answer has another shape, type or range.
        """
        if not isinstance(x, Tensor) or isinstance(x, torch.fx.Proxy):
            raise TypeError("a model that only answers queries cannot be followed")
        with torch.no_grad():
            # A copy, since the callable may write into its argument.
            own = x.detach().clone()
            given = own if isinstance(self.ask, nn.Module) else own.cpu()
            answer = _tensor(self.ask(given)).detach().to(x.device)
        if self.access == "scores":
            return self._scores(answer, len(x))
        return self._labels(answer, len(x))

    def __deepcopy__(self, memo: dict[int, Any]) -> "QueryOnlyModel":
        """Copy the callable if it is a module; other callables are shared."""
        own = isinstance(self.ask, nn.Module)
        ask = copy.deepcopy(self.ask, memo) if own else self.ask
        return QueryOnlyModel(self.name, ask, self.access, self.classes).train(self.training)

    def _scores(self, answer: Tensor, n: int) -> Tensor:
        """Check scores (n, classes) and return them as logits."""
        if answer.dim() != 2 or len(answer) != n:
            raise ContractError(
                f"{self.name}: expected scores (n, classes) with n = {n}, got {tuple(answer.shape)}"
            )
        return widen(answer) if answer.is_floating_point() else answer.double()

    def _labels(self, answer: Tensor, n: int) -> Tensor:
        """Check labels (n,) and convert them to logits."""
        if answer.dim() == 2:  # the model returns scores, and labels alone are allowed
            answer = predict_class(answer)
        if answer.shape != (n,) or answer.is_floating_point():
            raise ContractError(
                f"{self.name}: expected labels (n,) with n = {n}, whole numbers, got "
                f"{tuple(answer.shape)} {answer.dtype}"
            )
        if n and not 0 <= int(answer.min()) <= int(answer.max()) < self.classes:
            raise ContractError(
                f"{self.name}: expected classes from 0 to {self.classes - 1}, got "
                f"{int(answer.min())} to {int(answer.max())}"
            )
        return LABEL_LOGIT * functional.one_hot(answer.long(), self.classes).float()

    def extra_repr(self) -> str:
        """Format the settings for `repr`.

        Returns:
            The text between the parentheses.
        """
        return f"{self.name}, {self.access}"


def _tensor(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else torch.from_numpy(np.asarray(answer).copy())
