"""Hold the items of an attack that wait, and decide which item follows which."""

from collections.abc import Iterator

import torch
from torch import Tensor


class ItemQueue:
    """Waiting items: index of the example, index of the eps, number of the restart.

    A restart follows the one before it and, under "nested", an eps follows the next smaller one.
    """

    def __init__(self, n: int, eps: Tensor, rounds: int, nested: bool) -> None:
        """Queue restart 0 of every example, at every eps or, nested, at the smallest.

        Args:
            n: Number of examples.
            eps: All radii, (e,).
            rounds: Restarts of each item.
            nested: Whether an eps waits for the next smaller one.
        """
        self._ascending = eps.argsort().cpu()
        self._rank = self._ascending.argsort()
        self._rounds, self._nested = rounds, nested
        first = self._ascending[:1] if nested else torch.arange(len(eps))
        grid = torch.cartesian_prod(first, torch.arange(n)).view(-1, 2)
        restart = torch.zeros(len(grid), dtype=torch.int64)
        self._items = torch.stack([grid[:, 1], grid[:, 0], restart], 1)

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return len(self._items)

    @property
    def waiting(self) -> Tensor:
        """All waiting items, (n, 3), on the CPU."""
        return self._items

    def take(self, count: int) -> Tensor:
        """Remove the first items.

        Args:
            count: Most items to remove.

        Returns:
            The items, (rows, 3), on the CPU.
        """
        items, self._items = self._items[:count], self._items[count:]
        return items

    def add_followers(self, items: Tensor) -> None:
        """Queue what follows items that failed.

        Args:
            items: The failed items, (rows, 3), on the CPU.
        """
        example, eps, restart = items.unbind(1)
        again = restart + 1 < self._rounds
        followers = [torch.stack([example, eps, restart + 1], 1)[again]]
        if self._nested:
            rank = self._rank[eps] + 1
            larger = ~again & (rank < len(self._rank))
            next_eps = self._ascending[rank.clamp_max(len(self._rank) - 1)]
            followers.append(torch.stack([example, next_eps, torch.zeros_like(restart)], 1)[larger])
        self._items = torch.cat([self._items, *followers])

    def iterate_larger_eps(self, eps: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Iterate over all eps, from small to large.

        Args:
            eps: Index of the eps of each row, (rows,), on the CPU.

        Yields:
            Index of an eps, and the rows whose own eps is smaller, (rows,), bool.
        """
        for rank, index in enumerate(self._ascending.tolist()):
            yield index, rank > self._rank[eps]
