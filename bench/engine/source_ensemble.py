"""Several models attacked as one: the source of examples that transfer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.core.contracts.types import Combination
from bench.engine.functional.logits import widen


class SourceEnsemble(nn.Module):
    """Models whose logits, losses or gradients are averaged at every step of an attack.

    One pass of the ensemble is one pass of each member. Called as a model, it returns the mean of
    the logits, whatever is averaged at a step; they decide whether an iterate is a success.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float], combine: Combination
    ) -> None:
        """Take the members; they are not copied.

        Args:
            members: Models of the same number of classes.
            weights: Weight of each, which sum to 1.
            combine: What the steps average.
        """
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights, self.combine = tuple(weights), combine

    def forward(self, x: Tensor) -> Tensor:
        """Average the members' logits.

        Args:
            x: Images, (n, c, h, w), in [0, 1].

        Returns:
            Mean logits, (n, classes).
        """
        return self.average([widen(member(x)) for member in self.members])

    def average(self, values: Sequence[Tensor]) -> Tensor:
        """Average a value of each member by the weights.

        Args:
            values: A tensor of each member, all of one shape.

        Returns:
            The weighted mean.
        """
        return torch.stack([w * v for w, v in zip(self.weights, values, strict=True)]).sum(0)
