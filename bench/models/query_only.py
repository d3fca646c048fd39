"""Models that only answer: a callable, or a service behind it, that shows scores or labels alone.

What it answers with is `access`: "scores" (logits, (n, classes)) or "labels" (classes, (n,)). There
is no gradient to follow and nothing inside to copy or exchange; the planner skips what needs more.
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

CERTAIN = 50.0
"""The logit that stands for the answered class among zeros: its softmax probability is 1."""


class QueryOnlyModel(nn.Module):
    """What answers queries, as a model: float images in [0, 1], (n, c, h, w), to (n, classes).

    `ask` is given the images detached, on the device that it lies on if it is a module and on the
    CPU if not, and answers with a tensor, an array or nested lists. A label is turned into CERTAIN
    at its class. Nothing inside is followed by a gradient, symbolically or in a copy.
    """

    def __init__(self, name: str, ask: Callable[[Tensor], Any], access: Access, classes: int):
        super().__init__()
        self.name, self.access, self.classes = name, access, classes
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or isinstance(x, torch.fx.Proxy):
            raise TypeError("a model that only answers queries cannot be followed")
        with torch.no_grad():
            # A copy, since what answers may write into what it is given.
            own = x.detach().clone()
            given = own if isinstance(self.ask, nn.Module) else own.cpu()
            answer = _tensor(self.ask(given)).detach().to(x.device)
        if self.access == "scores":
            return self._scores(answer, len(x))
        return self._labels(answer, len(x))

    def __deepcopy__(self, memo: dict[int, Any]) -> "QueryOnlyModel":
        """What is asked is copied if it is a module; a service, and what stands for it, is one."""
        own = isinstance(self.ask, nn.Module)
        ask = copy.deepcopy(self.ask, memo) if own else self.ask
        return QueryOnlyModel(self.name, ask, self.access, self.classes).train(self.training)

    def _scores(self, answer: Tensor, n: int) -> Tensor:
        if answer.dim() != 2 or len(answer) != n:
            raise ContractError(
                f"{self.name}: expected scores (n, classes) with n = {n}, got {tuple(answer.shape)}"
            )
        return widen(answer) if answer.is_floating_point() else answer.double()

    def _labels(self, answer: Tensor, n: int) -> Tensor:
        if answer.dim() == 2:  # a model that would show more
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
        return CERTAIN * functional.one_hot(answer.long(), self.classes).float()

    def extra_repr(self) -> str:
        return f"{self.name}, {self.access}"


def _tensor(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else torch.from_numpy(np.asarray(answer).copy())
