"""Passes are counted whoever makes them, and the floor is a time that a real loop cannot beat."""

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.types import Threat
from bench.engine import timing
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x)[0]


def test_rows_that_went_forward_and_gradients_that_came_back_are_counted(lenet: nn.Module) -> None:
    x = torch.rand(5, 1, 28, 28)
    with timing.count_passes(lenet) as passes:
        with torch.no_grad():
            lenet(x[:2])
        for _ in range(3):
            gradient(lenet, x)
        lenet(x)  # whose gradient nobody asks for
    assert (passes.forwards, passes.backwards) == (2 + 15 + 5, 15)


def test_a_gradient_taken_twice_is_two(lenet: nn.Module) -> None:
    x = torch.rand(4, 1, 28, 28, requires_grad=True)
    with timing.count_passes(lenet) as passes:
        total = lenet(x).sum()
        for _ in range(2):
            torch.autograd.grad(total, x, retain_graph=True)
    assert (passes.forwards, passes.backwards) == (4, 8)


@pytest.mark.parametrize(
    ("name", "settings", "forwards", "backwards"),
    [
        ("FGSM", {}, 1, 1),
        ("PGD", {"steps": 3}, 3, 3),
        ("EOTPGD", {"steps": 3, "eot_iter": 2}, 6, 6),
        ("GN", {}, 0, 0),
    ],
)
def test_a_foreign_attacks_passes_are_counted(
    name: str, settings: Any, forwards: int, backwards: int, lenet: nn.Module
) -> None:
    attack = registry.find("attacks", f"torchattacks:{name}")
    x, y, ids = torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64), torch.arange(4)
    noise = rng.Noise(0, name, ids, torch.zeros_like(ids))
    threat = Threat(norm="linf", eps=0.1)
    with rng.seed_global(0), timing.count_passes(lenet) as passes:
        attack.run(lenet, x, y, threat, attack.params(**settings), noise)
    assert (passes.forwards, passes.backwards) == (4 * forwards, 4 * backwards)


def test_nothing_is_counted_afterwards_not_even_after_an_error(lenet: nn.Module) -> None:
    x = torch.rand(2, 1, 28, 28)

    def broken() -> None:
        with timing.count_passes(lenet) as counting:
            seen.append(counting)
            lenet(x[:, :, :9])

    seen: list[timing.PassCounts] = []
    with pytest.raises(RuntimeError):
        broken()
    gradient(lenet, x)
    assert (seen[0].forwards, seen[0].backwards) == (0, 0)
    assert not lenet._forward_hooks


def test_the_floor_is_the_pace_of_a_bare_loop(lenet: nn.Module, digits: Any) -> None:
    """Within a factor of four, so that a busy machine does not fail it."""
    lenet.requires_grad_(False)
    x, y = digits[0][:64], digits[1][:64]
    floor = timing.measure_floor(lenet, x, y, 64)

    def loop() -> None:
        for _ in range(10):
            gradient_pass(lenet, make_objective("cross-entropy", "untargeted"), x, y, y)

    _, seconds = timing.time_call(loop, x.device)
    assert 0.25 < seconds / floor.seconds(640.0, 640.0) < 4
    assert 0 < floor.forward < floor.gradient


@pytest.mark.parametrize(
    ("seconds", "most_calls", "timed"),
    [
        ([9.0, 9.5], 15, 2),  # long, and the two agree
        ([9.0, 12.0, 11.0], 15, 3),  # a third one decides
        ([9.0, 12.0, 11.0], 2, 2),
        ([0.04, 0.05, 0.05], 15, 3),  # until their sum is a tenth of a second
        ([1e-6] * 15, 15, 15),
        ([1e-6] * 15, 4, 4),
    ],
)
def test_a_function_is_called_as_often_as_its_times_differ_and_once_to_warm_up(
    seconds: list[float], most_calls: int, timed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(seconds)
    calls: list[str] = []

    def call(work: Any, device: torch.device) -> tuple[Any, float]:
        return work(), next(left)

    monkeypatch.setattr(timing, "time_call", call)
    work, device = (lambda: calls.append("called")), torch.device("cpu")
    median, _ = timing.median_seconds(work, device, most_calls=most_calls)
    assert len(calls) == 1 + timed
    assert median == statistics.median(seconds[:timed])


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_the_passes_of_a_floor_are_counted_before_it_is_timed(rows: int, lenet: nn.Module) -> None:
    x, y = torch.rand(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64)
    with timing.count_passes(lenet) as passes:
        timing.measure_floor(lenet, x, y, rows, 2)
    assert (passes.forwards + passes.backwards) / 2 == timing.count_floor_passes(rows, 2)


def test_a_floor_charges_each_backward_with_its_forward_and_the_rest_with_forwards() -> None:
    floor = timing.Floor(1.0, 3.0)
    assert floor.seconds(10.0, 10.0) == 30.0
    assert floor.seconds(14.0, 10.0) == 34.0
    assert floor.seconds(5.0, 0.0) == 5.0


def wide(channels: int) -> nn.Module:
    """A net whose activations take about 8 * channels kilobytes a row."""
    return nn.Sequential(nn.Conv2d(1, channels, 1), nn.Flatten(), nn.Linear(channels * 784, 2))


def test_a_pass_holds_a_power_of_two_of_rows_and_fewer_where_activations_are_larger() -> None:
    x = torch.rand(3, 1, 28, 28)
    rows = [timing.rows_per_pass(wide(channels), x) for channels in (1, 32, 128, 512)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 256 > rows[1] > rows[2] >= rows[3] == 8
    assert all(row & (row - 1) == 0 for row in rows)


def test_how_many_rows_is_a_rule_and_no_stopwatch(lenet: nn.Module, digits: Any) -> None:
    rows = [timing.rows_per_pass(lenet, digits[0][start : start + 3]) for start in (0, 5, 50)]
    assert len(set(rows)) == 1
    assert not any(module._forward_hooks for module in lenet.modules())


@pytest.mark.parametrize("ask", ["rows", "floor"])
def test_a_net_in_training_mode_is_not_changed_by_being_measured(ask: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    if ask == "rows":
        timing.rows_per_pass(net, x)
    else:
        timing.measure_floor(net, x, y, 4)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
