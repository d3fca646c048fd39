"""The batched stream against plain loops over one example at a time, in outcomes and in passes.

In float64, where a batch's size does not change the sign of a gradient.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine import timing
from bench.engine.functional import losses
from bench.engine.functional.sampling import random_in_ball

Attacked = Callable[..., Any]
BUILT_IN = [name for name in registry.names("attacks") if not name.endswith(":")]
FOUND = {name: registry.find("attacks", name) for name in BUILT_IN}
FIXED = [
    name
    for name, attack in FOUND.items()
    if isinstance(attack, IterativeAttack) and attack.budget == "fixed"
]
RULES = [name for name in FIXED if FOUND[name].scale_free]
LOOPS = [name for name in RULES if not FOUND[name].rule.one_gradient]
CLIMBING = [name for name in RULES if FOUND[name].needs == "gradient"]
"""Rules that follow a gradient, and so stay where there is none."""
ONE_ROUND = [name for name in RULES if FOUND[name].rule.aims is None]
"""Rules that do not try class after class, of which each round has its own passes."""
EPS = {"linf": 0.15, "l2": 1.5}
STEPS = 8
SETTINGS = [{}, {"stop": "never"}, {"sweep": "nested"}]
SHORT: dict[str, dict[str, Any]] = {name: {"steps": 5} for name in LOOPS}
"""Params with which every rule is quick."""


def start(attack: str) -> dict[str, bool]:
    """Params with which the attack starts at x itself."""
    fields = dataclasses.fields(registry.find("attacks", attack).params)
    return {"random_start": False} if "random_start" in {f.name for f in fields} else {}


FROM_X = [name for name in CLIMBING if start(name) or not FOUND[name].stochastic]
"""Those of them that can start at x itself."""


@pytest.fixture
def few(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """16 digits, float64."""
    x, y = digits
    return x[:16].double(), y[:16]


@pytest.fixture
def net(lenet: nn.Module) -> nn.Module:
    return lenet.double().requires_grad_(False)


def unit(g: Tensor, norm: Norm) -> Tensor:
    return g.sign() if norm == "linf" else g / g.norm()


def into(x: Tensor, x0: Tensor, eps: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return x.clamp(x0 - eps, x0 + eps).clamp(0, 1)
    return (x0 + (x - x0) * min(1.0, eps / float((x - x0).norm()))).clamp(0, 1)


def plain(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, norm: Norm, alpha: float, mu: float
) -> list[Tensor]:
    """All iterates of one example (1, c, h, w): momentum mu where above 0, else the gradient."""
    iterates, momentum = [start], torch.zeros_like(x)
    for _ in range(STEPS):
        at = iterates[-1].clone().requires_grad_()
        nn.functional.cross_entropy(model(at), y).backward()
        momentum = mu * momentum + at.grad / at.grad.abs().sum()
        ascend = momentum if mu else at.grad
        iterates.append(into(at.detach() + alpha * unit(ascend, norm), x, EPS[norm], norm))
    return iterates


def expected(
    model: nn.Module, x: Tensor, y: Tensor, attack: str, norm: Norm, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Last iterates, first successful ones (the last if none) and their steps (-1 if none)."""
    last, first, steps = [], [], []
    for i in range(len(x)):
        one, label, start = x[i : i + 1], y[i : i + 1], x[i : i + 1]
        if settings.get("random_start"):
            key = Noise(0, attack, torch.tensor([i]), torch.tensor([0]))
            offset = random_in_ball(one, torch.full((1,), EPS[norm]).double(), norm, key)
            start = into(one + offset, one, EPS[norm], norm)
        mu = settings.get("decay", 0.0)
        iterates = plain(model, one, label, start, norm, EPS[norm] / STEPS, mu)
        won = [k for k in range(STEPS) if model(iterates[k]).argmax(1) != label]
        steps.append(won[0] if won else -1)
        last.append(iterates[-1])
        first.append(iterates[won[0]] if won else iterates[-1])
    return torch.cat(last), torch.cat(first), torch.tensor(steps)


CASES = [
    (name, norm, settings)
    for name, settings in [
        ("bim", {}),
        ("pgd", {"random_start": False}),
        ("pgd", {"random_start": True}),
        ("mifgsm", {"decay": 1.0}),
        ("mifgsm", {"decay": 0.5}),
    ]
    for norm in ("linf", "l2")
]


@pytest.mark.parametrize(("attack", "norm", "settings"), CASES)
def test_the_stream_returns_what_a_plain_loop_returns(
    attack: str, norm: Norm, settings: dict[str, Any], net: Any, few: Any, attacked: Attacked
) -> None:
    x, y = few
    last, first, steps = expected(net, x, y, attack, norm, settings)
    params = {"steps": STEPS, "alpha": "eps/steps"} | settings
    for stop, images in (("first-success", first), ("never", last)):
        ours = attacked(net, x, y, attack, EPS[norm], norm=norm, stop=stop, params=params, rows=7)
        assert torch.allclose(ours.x_adv[0], images, rtol=0, atol=1e-6)
        assert torch.equal(ours.first_success[0], steps)
    assert 0 < (steps > 0).sum() < len(x)  # some examples fall on the way and some never


@pytest.mark.parametrize("attack", RULES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_number_of_rows_a_pass_changes_nothing(
    attack: str, settings: Any, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    x, y = few[0][:7], few[1][:7]
    two, many = (
        attacked(net, x, y, attack, (0.1, 0.2), rows=rows, params=SHORT.get(attack), **settings)
        for rows in (2, 64)
    )
    assert alike(two, many)


@pytest.mark.parametrize("attack", RULES)
def test_each_eps_of_a_list_is_attacked_as_if_alone(
    attack: str, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    params = SHORT.get(attack)
    many = attacked(net, *few, attack, (0.2, 0.05, 0.1), rows=5, params=params)
    for index, eps in enumerate((0.2, 0.05, 0.1)):
        alone = attacked(net, *few, attack, eps, params=params)
        assert torch.allclose(many.x_adv[index], alone.x_adv[0], rtol=0, atol=1e-6)
        assert torch.equal(many.first_success[index], alone.first_success[0])


def test_in_a_data_set_of_another_order_an_image_keeps_its_outcome_and_a_position_its_noise(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    """Examples are positions: without noise nothing depends on them, and noise on nothing else."""
    x, y = (part[:20] for part in digits)
    x = 0.2 + 0.6 * x  # away from the walls, so that the start is seen whole
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    settings: dict[str, Any] = {"stop": "never", "params": {"steps": 4}}
    here = attacked(lenet, x, y, "bim", 0.1, **settings)
    there = attacked(lenet, x[order], y[order], "bim", 0.1, **settings)
    assert torch.allclose(there.x_adv[0], here.x_adv[0][order], rtol=0, atol=1e-6)
    assert torch.equal(there.first_success[0], here.first_success[0][order])
    settings["params"] = {"steps": 1, "alpha": 1e-9}
    starts = [
        attacked(lenet, images, labels, "pgd", 0.1, **settings).x_adv[0] - images
        for images, labels in ((x, y), (x[order], y[order]))
    ]
    assert torch.allclose(*starts, rtol=0, atol=1e-6)
    assert (starts[0] - starts[0][order]).abs().max() > 0.05


# ------------------------------------------------------------------------------------------ passes


@pytest.mark.parametrize("attack", RULES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_passes_counted_are_those_that_the_model_made(
    attack: str, settings: Any, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    with timing.count_passes(net) as seen:
        settings = settings | {"params": SHORT.get(attack)}
        result = attacked(net, *few, attack, (0.05, 0.2), rows=5, **settings)
    assert seen.forwards == pytest.approx(float(result.forwards.sum()))
    assert seen.backwards == pytest.approx(float(result.backwards.sum()))


def test_restarts_are_counted_too(net: nn.Module, few: Any, attacked: Attacked) -> None:
    with timing.count_passes(net) as seen:
        result = attacked(net, *few, "pgd", 0.1, params={"steps": 4, "restarts": 3}, rows=5)
    assert seen.forwards == float(result.forwards.sum())
    assert seen.backwards == float(result.backwards.sum())


def test_a_sweep_of_one_gradient_costs_one_gradient(
    net: nn.Module, few: Any, attacked: Attacked
) -> None:
    result = attacked(net, *few, "fgsm", (0.05, 0.1, 0.2, 0.3))
    assert torch.equal(result.forwards, torch.full((4, 16), 0.25, dtype=torch.float64))
    assert torch.equal(result.backwards, result.forwards)


@pytest.mark.parametrize("attack", [name for name in LOOPS if name in ONE_ROUND])
def test_without_a_stop_every_step_is_a_pass(
    attack: str, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    result = attacked(net, *few, attack, (0.1, 0.2), stop="never", params={"steps": 5})
    assert (result.forwards == 5).all()
    assert (result.backwards == (5 if attack in CLIMBING else 0)).all()


@pytest.mark.parametrize("attack", [name for name in LOOPS if name in ONE_ROUND])
def test_a_success_is_the_last_pass_of_its_example(
    attack: str, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    result = attacked(net, *few, attack, (0.1, 0.2), params={"steps": 10})
    step = result.first_success
    assert torch.equal(result.forwards, torch.where(step < 0, 10, step + 1).double())
    assert len(step.unique()) > (3 if attack in CLIMBING else 1)


# ---------------------------------------------------------------------------------------- restarts


def robust(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    """(e, n) for x_adv (e, n, c, h, w)."""
    return torch.stack([model(images).argmax(1) == y for images in x_adv])


def test_more_restarts_fool_what_fewer_fooled_and_more(
    net: nn.Module, few: Any, attacked: Attacked
) -> None:
    x, y = few
    stood = [
        robust(net, attacked(net, x, y, "pgd", 0.1, params={"steps": 2, "restarts": r}).x_adv, y)[0]
        for r in (1, 2, 8)
    ]
    assert not (stood[1] & ~stood[0]).any()
    assert not (stood[2] & ~stood[1]).any()
    assert stood[2].sum() < stood[0].sum()


def test_a_restart_draws_the_same_noise_however_many_follow(attacked: Attacked) -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).requires_grad_(False)
    nn.init.zeros_(flat[1].weight), nn.init.zeros_(flat[1].bias)  # never fooled, never moves
    y, ids = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    for restarts in (1, 2, 3):
        params = {"steps": 1, "restarts": restarts}
        ours = attacked(flat, x, y, "pgd", 0.1, params=params).x_adv[0]
        key = Noise(0, "pgd", ids, torch.full((3,), restarts - 1))
        assert torch.equal(ours, x + random_in_ball(x, torch.full((3,), 0.1), "linf", key))


# -------------------------------------------------------------------------------------------- sweep


@pytest.mark.parametrize("attack", RULES)
@pytest.mark.parametrize("stop", ["first-success", "never"])
def test_a_nested_sweep_is_the_union_over_smaller_balls_of_the_independent_one(
    attack: str, stop: str, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    """Robust at an eps, nested, if and only if robust at it and every smaller one, independent:
    both start from the same noise, which does not depend on eps."""
    x, y = few[0][:10], few[1][:10]
    eps = (0.3, 0.02, 0.1, 0.05)
    settings = {"stop": stop, "params": SHORT.get(attack)}
    alone = robust(net, attacked(net, x, y, attack, eps, **settings).x_adv, y)
    nested = robust(net, attacked(net, x, y, attack, eps, sweep="nested", **settings).x_adv, y)
    for index, radius in enumerate(eps):
        smaller = [other for other in range(4) if eps[other] <= radius]
        assert torch.equal(nested[index], alone[smaller].all(0))


class Window(nn.Module):
    """Class 1 where the mean pixel lies within 0.1 of 0.7: a long step from 0.5 passes it by."""

    def forward(self, x: Tensor) -> Tensor:
        score = 0.1 - (x.flatten(1).mean(1) - 0.7).abs()
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("attack", FROM_X)
def test_a_nested_success_stays_one_where_a_longer_step_would_miss(
    attack: str, attacked: Attacked
) -> None:
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    params = {"steps": 1, "alpha": "eps"} if attack in LOOPS else {}
    alone = attacked(Window(), x, y, attack, (0.45, 0.2), params=params | start(attack))
    assert robust(Window(), alone.x_adv, y).tolist() == [[True, True], [False, False]]
    settings = {"sweep": "nested", "params": params | start(attack)}
    nested = attacked(Window(), x, y, attack, (0.45, 0.2), **settings)
    assert not robust(Window(), nested.x_adv, y).any()


def test_a_success_is_inherited_by_larger_balls_for_nothing(
    net: nn.Module, few: Any, attacked: Attacked
) -> None:
    result = attacked(net, *few, "bim", (0.05, 0.1, 0.2), sweep="nested")
    for small, large in ((0, 1), (1, 2)):
        won = robust(net, result.x_adv, few[1])[small].logical_not()
        assert won.any()
        assert torch.equal(result.x_adv[large][won], result.x_adv[small][won])
        assert (result.forwards[large][won] == 0).all()


# ------------------------------------------------------------------------------------ no gradient


class Answer(nn.Module):
    """Logits that do not depend on the image; `attached` ones have a gradient, of zeros."""

    def __init__(self, attached: bool) -> None:
        super().__init__()
        self.attached = attached

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.linspace(1, 0, 10).expand(len(x), 10)
        return logits + 0 * x.flatten(1).sum(1, keepdim=True) if self.attached else logits


@pytest.mark.parametrize("attack", FROM_X)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attached", [True, False])
def test_where_there_is_no_gradient_the_image_stays_and_is_no_nan(
    attack: str, norm: Norm, attached: bool, attacked: Attacked
) -> None:
    x, y = torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64)
    settings = {"norm": norm, "params": start(attack)}
    result = attacked(Answer(attached), x, y, attack, (0.1, 0.3), **settings)
    assert torch.equal(result.x_adv, x.expand(2, *x.shape))
    assert (result.first_success == -1).all()


def test_no_examples_make_no_pass(net: nn.Module, few: Any, attacked: Attacked) -> None:
    x, y = few[0][:0], few[1][:0]
    assert all(
        attacked(net, x, y, attack, 0.1).x_adv.shape == (1, 0, 1, 28, 28) for attack in LOOPS
    )


def test_a_trace_holds_the_loss_of_every_iterate_that_was_looked_at(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    x, y = (part[:8] for part in digits)
    result = attacked(lenet, x, y, "bim", (0.02, 0.1), params={"steps": 5}, trace=True)
    assert result.losses is not None
    assert result.losses.shape == (2, 8, 5)
    clean = losses.cross_entropy(lenet(x), y).detach()
    assert torch.allclose(result.losses[:, :, 0], clean.expand(2, 8), atol=1e-5)
    assert torch.equal((~result.losses.isnan()).sum(2), result.forwards.long())
    assert attacked(lenet, x, y, "bim", 0.1, params={"steps": 5}).losses is None


# -------------------------------------------------------------------------------------- memory


class Narrow(nn.Module):
    """A net that has memory for `most` rows at a time, once it has answered `after` times."""

    def __init__(self, net: nn.Module, most: int, error: Exception, after: int = 0) -> None:
        super().__init__()
        self.net, self.most, self.error, self.left = net, most, error, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if len(x) > self.most and self.left < 0:
            raise type(self.error)(*self.error.args)
        return self.net(x)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]
LOADS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"params": SHORT.get(name)}) for name in RULES),
    ("pgd", {"params": {"steps": 4}, "stop": "never"}),
    ("pgd", {"params": {"steps": 4, "restarts": 3}}),
    ("pgd", {"params": {"steps": 4, "restarts": 2}, "sweep": "nested"}),
]


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two attacks made the same images with the same passes."""
    close = torch.allclose(ours.x_adv, theirs.x_adv, rtol=0, atol=1e-6)
    return close and all(torch.equal(a, b) for a, b in zip(ours[1:4], theirs[1:4], strict=True))


@pytest.mark.parametrize(("attack", "settings"), LOADS)
@pytest.mark.parametrize(("rows", "after"), [(16, 0), (8, 1)])  # at once, and on the way
def test_where_memory_runs_out_fewer_rows_a_pass_give_the_same_outcome(
    rows: int, after: int, attack: str, settings: Any, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    wanted = attacked(net, *few, attack, (0.1, 0.2), rows=7, **settings)
    narrow = Narrow(net, 7, OUT_OF_MEMORY[after], after)
    result = attacked(narrow, *few, attack, (0.1, 0.2), rows=rows, **settings)
    assert alike(result, wanted)
    assert (wanted.rows, result.rows) == (7, 4)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_every_way_to_say_that_memory_ran_out_is_understood(
    error: Exception, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    for attack in ("bim", "fgsm"):
        result = attacked(
            Narrow(net, 2, error), *few, attack, 0.1, rows=3, params=SHORT.get(attack)
        )
        assert result.rows == 1


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_an_error_that_is_not_about_memory_is_passed_on(
    attack: str, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    for error in (RuntimeError("planted"), ValueError("planted")):
        with pytest.raises(type(error), match="planted"):
            attacked(Narrow(net, 7, error), *few, attack, (0.1, 0.2))


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_where_there_is_no_memory_for_one_row_that_is_said(
    attack: str, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    for error in OUT_OF_MEMORY:
        with pytest.raises(type(error), match="memory"):
            attacked(Narrow(net, 0, error), *few, attack, (0.1, 0.2))


# -------------------------------------------------------------------------------- an attacked copy


@pytest.fixture
def other(net: nn.Module) -> nn.Module:
    """A net that answers much as `net` does, and leads a little elsewhere."""
    nearby = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    for weight in nearby.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.add_(0.2 * weight.std() * noise)
    return nearby


@pytest.mark.parametrize("attack", ONE_ROUND)
@pytest.mark.parametrize("stop", ["first-success", "never"])
def test_gradients_and_first_successes_are_the_copys(
    attack: str, stop: str, net: nn.Module, other: nn.Module, few: Any, attacked: Attacked
) -> None:
    settings = {"stop": stop, "params": SHORT.get(attack), "rows": 5}
    with timing.count_passes(net) as own, timing.count_passes(other) as led:
        result = attacked(net, *few, attack, (0.1, 0.2), copy=other, **settings)
    assert (own.forwards, own.backwards) == (0, 0)
    assert led.backwards == pytest.approx(float(result.backwards.sum()))
    assert alike(result, attacked(other, *few, attack, (0.1, 0.2), **settings))
    assert not alike(result, attacked(net, *few, attack, (0.1, 0.2), **settings))


@pytest.mark.parametrize("settings", [{"params": {"steps": 3, "restarts": 4}}, {"sweep": "nested"}])
def test_the_model_itself_says_whom_a_restart_or_a_larger_ball_waits_for(
    settings: Any, net: nn.Module, other: nn.Module, few: Any, attacked: Attacked
) -> None:
    settings = {"stop": "never", "params": {"steps": 3}, "rows": 5, **settings}
    with timing.count_passes(net) as own, timing.count_passes(other) as led:
        result = attacked(net, *few, "pgd", (0.08, 0.16), copy=other, **settings)
    assert own.backwards == 0
    assert own.forwards == led.forwards / 3  # once, when its three steps are made
    assert float(result.forwards.sum()) == own.forwards + led.forwards
    runs = result.backwards / 3
    fooled = ~robust(net, result.x_adv, few[1])
    if "sweep" in settings:
        assert torch.equal(runs[1] == 0, fooled[0])
        assert (runs[0] == 1).all()
    else:
        assert (runs[~fooled] == 4).all()
        assert (runs[fooled] < 4).any()
    assert 0 < fooled.sum() < fooled.numel()
    assert not torch.equal(fooled, ~robust(other, result.x_adv, few[1]))  # the copy would differ


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_memory_that_runs_out_on_the_copy_leaves_fewer_rows_too(
    attack: str, net: nn.Module, other: nn.Module, few: Any, attacked: Attacked
) -> None:
    wanted = attacked(other, *few, attack, (0.1, 0.2), rows=7, params=SHORT.get(attack))
    narrow = Narrow(other, 7, OUT_OF_MEMORY[0])
    settings = {"copy": narrow, "rows": 16, "params": SHORT.get(attack)}
    result = attacked(net, *few, attack, (0.1, 0.2), **settings)
    assert alike(result, wanted)
    assert result.rows == 4


@pytest.mark.parametrize("settings", [{"params": {"steps": 3, "restarts": 2}}, {"sweep": "nested"}])
def test_memory_that_runs_out_when_the_model_is_asked_leaves_fewer_rows_too(
    settings: Any, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    settings = {"stop": "never", "params": {"steps": 3}, **settings}
    wanted = attacked(net, *few, "pgd", (0.1, 0.2), rows=7, **settings)
    narrow = Narrow(net, 7, OUT_OF_MEMORY[0])
    result = attacked(narrow, *few, "pgd", (0.1, 0.2), rows=16, copy=net, **settings)
    assert alike(result, wanted)
    assert result.rows < 16
