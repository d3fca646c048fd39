"""The raw gradient attack, held to the tutorial's own loop."""

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.engine.stream import run_attack


def make_spec(goal: str, **params: object) -> AttackSpec:
    attack = registry.find("attacks", "raw_gradient")
    result = attack.params(**params)
    return AttackSpec(
        name="raw_gradient", attack=attack, params=result, norm="linf", eps=(0.1,), goal=goal,
        stop="never",
    )  # fmt: skip


def tutorial(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, lr: float, steps: int
) -> Tensor:
    """Kolter and Madry's loop with SGD on delta, and the box that we keep."""
    delta = torch.zeros_like(x, requires_grad=True)
    optimiser = torch.optim.SGD([delta], lr=lr)
    loss = nn.CrossEntropyLoss(reduction="sum")
    for _ in range(steps):
        cost = -loss(model(x + delta), y)
        if target is not None:
            cost = cost + loss(model(x + delta), target)
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
        with torch.no_grad():
            delta.clamp_(-0.1, 0.1)
            delta.copy_((x + delta).clamp(0, 1) - x)
    return (x + delta).detach()


def test_untargeted_it_is_the_tutorials_loop(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, (x, y) = lenet.double(), digits
    x, y = x[:16].double(), y[:16]
    result = run_attack(net, make_spec("untargeted", steps=5, lr=0.1), x, y, torch.arange(16), 8)
    assert torch.allclose(result.x_adv[0], tutorial(net, x, y, None, 0.1, 5), atol=1e-9)


def test_targeted_it_ascends_target_and_leaves_label_as_the_tutorial_does(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, (x, y) = lenet.double(), digits
    x, y = x[:16].double(), y[:16]
    target = 9 - y
    chosen = make_spec("targeted", steps=20, lr=0.05)
    result = run_attack(net, chosen, x, target, torch.arange(16), 8, label=y)
    assert torch.allclose(result.x_adv[0], tutorial(net, x, y, target, 0.05, 20), atol=1e-9)
    assert int((net(result.x_adv[0]).argmax(1) == target).sum()) > 2
