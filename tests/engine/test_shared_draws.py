"""Random starts are keyed by example and restart: an attack draws them once for all its eps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.types import Norm

EPS: dict[Norm, float] = {"linf": 1e-3, "l2": 1e-2, "l1": 0.1, "l0": 1}
"""So small that no attack succeeds."""


@pytest.mark.parametrize("sweep", ["independent", "nested"])
@pytest.mark.parametrize("norm", EPS)
def test_a_start_is_drawn_once_for_all_eps_and_is_that_of_each_eps_alone(
    norm: Norm, sweep: str, lenet: nn.Module, digits: tuple[Tensor, Tensor],
    attacked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In float64, where the size of a batch changes no sign of a gradient."""
    net, x, y = lenet.double().requires_grad_(False), digits[0][:10].double(), digits[1][:10]
    eps = tuple(EPS[norm] * factor for factor in (1, 2, 3))
    restarts = 1 if sweep == "nested" else 2
    settings = {"norm": norm, "params": {"steps": 2, "restarts": restarts}, "rows": 7}
    alone = [attacked(net, x, y, "pgd", each, **settings) for each in eps]
    assert (net(x).argmax(1) == y).all()

    drawn: list[tuple[Any, int]] = []
    generators = rng._generators

    def note(keys: Any, draw: int) -> Any:
        drawn.extend((key, draw) for key in keys)
        return generators(keys, draw)

    monkeypatch.setattr(rng, "_generators", note)
    together = attacked(net, x, y, "pgd", eps, sweep=sweep, **settings)
    kinds = {"linf": 1, "l0": 3}.get(norm, 2)
    assert len(drawn) == len(set(drawn)) == 10 * restarts * kinds
    for at, each in enumerate(alone):
        assert torch.allclose(together.x_adv[at], each.x_adv[0], rtol=0, atol=1e-12)
