"""FAB-T against the closed form of linear nets, and what a search for the least distance owes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchattacks
from helpers.kernels import KernelCount
from torch import Tensor, nn

import bench
from bench.attacks import fab_t
from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.rule import AttackBatch
from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine import stream
from bench.engine.functional import hyperplane
from bench.engine.functional.norms import distance, norm_of
from bench.engine.resident_rows import copy_changed

Attacked = Callable[..., Any]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
EPS: dict[Norm, list[float]] = {
    "linf": [0.02, 0.075, 0.12],
    "l2": [0.3, 1.3, 1.9],
    "l1": [2.0, 10.0, 18.0],
}
CLASSES = 6


@pytest.fixture
def net(lenet: nn.Module) -> nn.Module:
    return lenet.requires_grad_(False)


@pytest.fixture
def few(net: nn.Module, digits: Any) -> tuple[Tensor, Tensor]:
    """Ten digits that the net gets right."""
    x, y = digits[0][:20], digits[1][:20]
    right = net(x).argmax(1) == y
    return x[right][:10], y[right][:10]


def least(attacked: Attacked, *given: Any, norm: Norm, **params: Any) -> Any:
    """The attack without a bound on the distance."""
    return attacked(*given, "fab_t", torch.inf, norm=norm, stop="never", params=params)


def flat_net(linear: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear net with a boundary close to 30 images, and the walls of the box far from them."""
    g = torch.Generator().manual_seed(0)
    x = 0.5 + 0.1 * (torch.rand(30, 1, 4, 4, generator=g) - 0.5)
    w = torch.randn(CLASSES, 16, generator=g)
    net = linear(w, -w @ x.flatten(1).mean(0)).requires_grad_(False)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("eta", "within"), [(1.0005, 1e-3), (1.05, 1e-2)])
def test_the_distance_to_a_linear_boundary_is_the_closed_form(
    norm: Norm, eta: float, within: float, linear: Any, attacked: Attacked
) -> None:
    """|z_t - z_y| over the dual norm of w_t - w_y, for the nearest t; of the step beyond, a tenth
    is left by the default eta."""
    net, x, y = flat_net(linear)
    w, logits = net[1].weight, net(x)
    gap = logits.gather(1, y[:, None]) - logits
    slopes = (w[y][:, None] - w).flatten(0, 1)
    away = (gap / norm_of(slopes, DUAL[norm]).view_as(gap)).scatter(1, y[:, None], torch.inf)
    reported = least(attacked, net, x, y, norm=norm, steps=20, eta=eta)
    result = distance(reported.x_adv[0], x, norm)
    assert (result >= away.amin(1) * (1 - 1e-5)).all()
    assert (result <= away.amin(1) * (1 + within)).all()
    assert (net(reported.x_adv[0]).argmax(1) != y).all()


@pytest.mark.parametrize("norm", NORMS)
def test_what_was_found_fools_and_is_read_at_every_eps(
    norm: Norm, net: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    x, y = few
    evaluation = bench.evaluate(
        net, x, y, attack="fab_t", norm=norm, eps=EPS[norm], params={"steps": 12, "targets": 2},
        keep_adversarial=True, device="cpu",
    )  # fmt: skip
    assert (evaluation.records["violation"] == "").all()
    fooled = evaluation.records["fooled"].to_numpy().reshape(3, 10)
    assert (fooled[:-1] <= fooled[1:]).all()  # a larger ball holds what a smaller one holds
    assert 0 == fooled[0].sum() < fooled[1].sum() < fooled[2].sum()
    for eps, images, won in zip(EPS[norm], evaluation.adversarial, fooled, strict=True):
        near = distance(images, x, norm) <= eps
        assert ((net(images).argmax(1) != y) & near).tolist() == won.tolist()


@pytest.mark.parametrize("norm", NORMS)
def test_it_comes_as_near_as_torchattacks_does_in_as_many_passes(
    norm: Norm, net: nn.Module, few: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    """In the geometric mean over the digits, towards the two likeliest classes. The library's step
    is two forward passes and one back, ours one of each: 20 of its steps are 30 of ours."""
    x, y = few
    reference = torch.full((len(x),), torch.inf)
    library = torchattacks.FAB(net, norm=norm.capitalize(), steps=20, multi_targeted=True)
    for library.target_class in (2, 3):  # ranks on the clean image
        x_adv = library.attack_single_run_targeted(x, y).detach()
        far = distance(x_adv, x, norm).masked_fill(net(x_adv).argmax(1) == y, torch.inf)
        reference = torch.minimum(reference, far)
    result = least(attacked, net, x, y, norm=norm, steps=30, targets=2)
    assert (net(result.x_adv[0]).argmax(1) != y).all()
    ratio = (distance(result.x_adv[0], x, norm) / reference).log().mean().exp()
    assert ratio <= 1.002


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_classes_and_restarts_never_lead_further_away(
    norm: Norm, net: nn.Module, few: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    settings: list[dict[str, Any]] = [
        {"steps": 4, "targets": 1},
        {"steps": 8, "targets": 1},
        {"steps": 8, "targets": 3},
        {"steps": 8, "targets": 3, "restarts": 2},
    ]
    far = []
    for params in settings:
        result = least(attacked, net, *few, norm=norm, **params)
        fooled = net(result.x_adv[0]).argmax(1) != few[1]
        far.append(torch.where(fooled, distance(result.x_adv[0], few[0], norm), torch.inf))
    assert all((more <= fewer).all() for fewer, more in pairwise(far))
    assert (far[1] < far[0]).any()
    assert (far[2] < far[1]).any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_run_begins_at_the_image_and_others_half_as_far_as_the_nearest_find(
    norm: Norm,
) -> None:
    n, far, result = 6, 0.3, torch.tensor([0.1, 0.4, torch.inf] * 2)
    x = torch.full((n, 1, 4, 4), 0.5)
    zero, runs = torch.zeros(n, dtype=torch.int64), torch.tensor([0, 0, 0, 1, 1, 2])
    items = AttackBatch(x, zero, zero, torch.full((n,), far), zero, zero + 1, runs, result)
    noises = [Noise(seed, "test", torch.arange(n), runs) for seed in (0, 1)]
    starts = [fab_t.init(items, noise, fab_t.Params(restarts=3), norm).x for noise in noises]
    halves = torch.tensor([0, 0, 0, 0.05, 0.15, 0.15])
    assert all(torch.allclose(distance(start, x, norm), halves) for start in starts)
    assert ((starts[0] != starts[1]).flatten(1).any(1) == (runs > 0)).all()


def test_a_restart_counts_its_passes_and_leads_elsewhere(
    net: nn.Module, few: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    once, twice = (
        least(attacked, net, *few, norm="l2", steps=3, targets=2, restarts=r) for r in (1, 2)
    )
    assert (once.forwards == 2 * 3 + 1).all()  # a pass ranks the classes
    assert (twice.forwards == 4 * 3 + 1).all()
    assert not torch.equal(once.x_adv, twice.x_adv)


def test_the_first_find_within_eps_ends_the_search(
    net: nn.Module, few: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    x, y = few
    reported = attacked(net, x, y, "fab_t", 0.075, params={"steps": 12, "targets": 2})
    result = reported.first_success[0] >= 0
    assert 0 < result.sum() < len(y)
    assert (distance(reported.x_adv[0], x, "linf")[result] <= 0.075 + 1e-6).all()
    assert (net(reported.x_adv[0][result]).argmax(1) != y[result]).all()
    assert (reported.backwards[0][~result] == 2 * 12).all()
    assert (reported.backwards[0][result] < 2 * 12).all()


def test_a_net_of_two_classes_has_one_to_be_driven_to(linear: Any, attacked: Attacked) -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    net = linear(torch.tensor([[0.0] * 4, [1.0, 2.0, 3.0, 4.0]]), torch.tensor([0.0, -6.0]))
    y = torch.zeros(2, dtype=torch.int64)
    result = least(attacked, net, x, y, norm="linf", steps=10)
    assert (result.backwards == 10).all()
    assert torch.allclose(distance(result.x_adv[0], x, "linf"), torch.tensor(0.1), rtol=1e-2)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_at_most_250_kernels_of_a_gpu(
    norm: Norm, net: nn.Module, few: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small net, whose passes are a fifth of them; with the copies into a graph's buffers."""
    monkeypatch.setattr(stream, "runs_asynchronously", lambda device: True)
    monkeypatch.setattr(hyperplane, "get_proxy_mode", object)  # the host must not ask
    spec = AttackSpec(
        name="fab_t", attack=fab_t.ATTACK, params=fab_t.Params(), norm=norm, eps=(torch.inf,)
    )
    run = stream.AttackStream(net, net, spec, *few, torch.arange(10), few[1], rows=10)
    assert run._fill_batch()
    batch = run.active.batch
    with KernelCount() as count:
        copy_changed(run.steps.make_steps(batch, 1), batch)
    assert count.total <= 250, count.operations.most_common()
