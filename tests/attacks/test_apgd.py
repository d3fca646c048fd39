"""APGD and APGD-T, held to the papers' algorithms written out for one example at a time."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.attacks import apgd, apgd_t
from bench.core.contracts.rule import AttackBatch, StepInput
from bench.core.contracts.types import Norm
from bench.core.errors import SuiteError
from bench.core.rng import Noise
from bench.engine import stream
from bench.engine.functional import gradients, norms, projections
from bench.engine.functional.losses import Objective, make_objective

Attacked = Callable[..., stream.StreamResult]
STEPS, EPS_L1 = 50, 8.0
BALLS: list[tuple[Norm, float]] = [("linf", 0.06), ("l2", 0.8)]


def known(x: Tensor, y: Tensor, eps: float, k: int = 0) -> AttackBatch:
    """What the engine tells of the rows at step k."""
    zero, radius = torch.zeros_like(y), torch.full_like(x[:, 0, 0, 0], eps)
    return AttackBatch(
        x=x, y=y, label=y, eps=radius, k=zero + k, aim=zero - 1, restart=zero, nearest=radius
    )


def start(x: Tensor, y: Tensor, eps: float, norm: Norm, params: apgd.Params) -> Tensor:
    """Where the rule begins, which is drawn and so cannot be written out."""
    noise = Noise(0, "apgd", torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))
    return apgd.init(known(x, y, eps), noise, params, norm).x


class Plain:
    """One example: what is ascended, its gradient, and the nearest point of the threat model."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, loss: Objective) -> None:
        self.net, self.x, self.y, self.loss = net, x, y, loss
        self.success: Tensor | None = None

    def look(self, x: Tensor, counts: bool = True) -> tuple[float, Tensor]:
        """Loss and gradient at x, which is kept if it is misclassified."""
        logits, loss, gradient = gradients.gradient_pass(self.net, self.loss, x, self.y, self.y)
        if counts and logits.argmax(1) != self.y:
            self.success = x
        return float(loss), gradient

    def project(self, x: Tensor, eps: float, norm: Norm) -> Tensor:
        return projections.project(x, self.x, x.new_tensor([eps]), norm)


def checkpoints(steps: int) -> list[int]:
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06); w_j = ceil(p_j N)."""
    shares = [0, 22]
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return [math.ceil(share * steps / 100) for share in shares]


def algorithm_1(plain: Plain, x: Tensor, eps: float, norm: Norm, steps: int, rho: float) -> Tensor:
    """Croce and Hein 2020, algorithm 1, from x; its latest success, or its last iterate."""
    loss, gradient = plain.look(x)
    best, before, eta = (loss, x, gradient), x, 2 * eps
    losses, marks, last, halved, mark = [loss], checkpoints(steps), loss, True, 0
    for k in range(steps):
        ahead = plain.project(x + eta * projections.steepest_direction(gradient, norm), eps, norm)
        mixed = plain.project(x + 0.75 * (ahead - x) + 0.25 * (x - before), eps, norm)
        x, before = ahead if k == 0 else mixed, x
        if k + 1 == steps:
            break  # the last iterate is judged, not looked at
        loss, gradient = plain.look(x)
        losses.append(loss)
        best = max(best, (loss, x, gradient), key=lambda point: point[0])
        if k + 1 in marks:
            rises = sum(b > a for a, b in pairwise(losses[mark:]))
            halved = rises <= rho * (k + 1 - mark) or (not halved and best[0] == last)
            last, mark = best[0], k + 1
            if halved:
                eta, (_, x, gradient) = eta / 2, best
    return x if plain.success is None else plain.success


def sparse_ascent(plain: Plain, x: Tensor, eps: float, steps: int) -> Tensor:
    """Croce and Hein 2021, section 3, from x; as above."""
    lengths = [steps * 30 // 100, steps * 30 // 100, steps - 2 * (steps * 30 // 100)]
    for ball, (radius, length) in enumerate(zip((3 * eps, 2 * eps, eps), lengths, strict=True)):
        x, counts = plain.project(x, radius, "l1"), ball == 2
        loss, gradient = plain.look(x, counts)
        best, eta, changed = (loss, x, gradient), radius, int((x != plain.x).sum())
        for k in range(length if counts else length - 1):
            many = min(max(math.ceil(changed / 1.5), 1), x.numel())
            least = gradient.abs().flatten().sort(descending=True).values[many - 1]
            signs = torch.where(gradient.abs() >= least, gradient.sign(), 0.0)
            x = plain.project(x + eta * signs / max(float(signs.abs().sum()), 1), radius, "l1")
            if counts and k + 1 == length:
                break
            loss, gradient = plain.look(x, counts)
            best = max(best, (loss, x, gradient), key=lambda point: point[0])
            now = int((best[1] != plain.x).sum())
            if now < 0.95 * changed:
                eta, (_, x, gradient) = radius, best
            else:
                eta = max(eta / 1.5, radius / 10)
            changed = now
        x = x if counts else best[1]
    return x if plain.success is None else plain.success


@pytest.fixture
def correct(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> tuple[nn.Module, Tensor, Tensor]:
    """LeNet and 64 digits that it gets right, in float64."""
    net, x, y = lenet.double().requires_grad_(False), digits[0].double(), digits[1]
    right = net(x).argmax(1) == y
    return net, x[right][:64], y[right][:64]


@pytest.fixture
def few(correct: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """Twelve of them."""
    net, x, y = correct
    return net, x[:12], y[:12]


@pytest.mark.parametrize(("norm", "eps"), BALLS)
@pytest.mark.parametrize("loss", ["cross-entropy", "dlr"])
def test_it_is_algorithm_1_of_the_paper(
    loss: Any, norm: Norm, eps: float, few: Any, attacked: Attacked
) -> None:
    net, x, y = few
    params = apgd.Params(steps=STEPS, loss=loss)
    begin, objective = start(x, y, eps, norm, params), make_objective(loss, "untargeted")
    result = attacked(
        net, x, y, "apgd", eps, norm=norm, stop="never", rows=5,
        params={"steps": STEPS, "loss": loss},
    )  # fmt: skip
    for i in range(len(x)):
        plain = Plain(net, x[i : i + 1], y[i : i + 1], objective)
        wanted = algorithm_1(plain, begin[i : i + 1], eps, norm, STEPS, params.rho)
        assert torch.allclose(result.x_adv[0, i], wanted[0], rtol=0, atol=1e-5)
        assert (result.first_success[0, i] >= 0) == (plain.success is not None)
    assert 0 < (result.first_success >= 0).sum() < len(x)


def test_in_l1_it_is_the_sparse_ascent_through_three_balls(few: Any, attacked: Attacked) -> None:
    net, x, y = few
    params = apgd.Params(steps=STEPS)
    begin, objective = (
        start(x, y, EPS_L1, "l1", params),
        make_objective("cross-entropy", "untargeted"),
    )
    result = attacked(
        net, x, y, "apgd", EPS_L1, norm="l1", stop="never", rows=5, params={"steps": STEPS}
    )
    for i in range(len(x)):
        plain = Plain(net, x[i : i + 1], y[i : i + 1], objective)
        wanted = sparse_ascent(plain, begin[i : i + 1], EPS_L1, STEPS)
        assert torch.allclose(result.x_adv[0, i], wanted[0], rtol=0, atol=1e-5)
        assert (result.first_success[0, i] >= 0) == (plain.success is not None)
    assert 0 < (result.first_success >= 0).sum() < len(x)


def test_the_checkpoints_are_the_papers() -> None:
    assert checkpoints(100)[1:-1] == [*apgd.CHECKPOINTS]
    assert checkpoints(100)[-1] > 100


def test_every_l1_iterate_is_in_the_ball_of_its_turn_and_only_the_smallest_counts(few: Any) -> None:
    net, x, y = few
    params, objective = apgd.Params(steps=20), make_objective("cross-entropy", "untargeted")
    noise = Noise(0, "apgd", torch.arange(len(x)), torch.zeros_like(y))
    state = apgd.init(known(x, y, 2.0), noise, params, "l1")
    widest = []
    for k in range(20):
        items = known(x, y, 2.0, k)
        far = norms.distance(state.x, x, "l1")
        widest.append(float(far.max()))
        inside = apgd.within(items, params, "l1")
        assert torch.equal(inside, torch.full_like(inside, k >= 12))
        seen = StepInput(*gradients.gradient_pass(net, objective, state.x, y, y), inside)
        state = apgd.respond(state, seen, items, params, "l1")
    assert widest == pytest.approx([6.0] * 6 + [4.0] * 6 + [2.0] * 8)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_however_few_the_steps_an_l1_image_ends_in_the_ball(
    steps: int, few: Any, attacked: Attacked
) -> None:
    net, x, y = few
    result = attacked(net, x, y, "apgd", 2.0, norm="l1", stop="never", params={"steps": steps})
    assert (norms.distance(result.x_adv[0], x, "l1") <= 2.0 + 1e-6).all()


def test_in_l1_it_finds_most_of_what_the_budget_buys_on_a_linear_net(linear: Any) -> None:
    """The best l1 image is a formula: the budget goes to the heaviest pixels, each to its wall."""
    generator = torch.Generator().manual_seed(0)
    w, x = (torch.randn(36, generator=generator), torch.rand(60, 1, 6, 6, generator=generator))
    bias = -float((x.flatten(1) @ w).median())
    net = linear(torch.stack([-w / 2, w / 2]), torch.tensor([-bias / 2, bias / 2]))
    score, y = x.flatten(1) @ w + bias, net(x).argmax(1)
    room = torch.where(w * score.sign()[:, None] > 0, x.flatten(1), 1 - x.flatten(1))
    heaviest = w.abs().argsort(descending=True)
    for eps in (0.25, 0.5, 1.0):
        spent = room[:, heaviest].cumsum(1).clamp_max(eps).diff(dim=1, prepend=torch.zeros(60, 1))
        can_fall = score.abs() - spent @ w.abs()[heaviest] < 1e-4
        evaluation = bench.evaluate(net, x, y, attack="apgd", norm="l1", eps=eps, device="cpu")
        fooled = torch.tensor(evaluation.records["fooled"].to_numpy())
        assert not (fooled & ~can_fall).any()
        assert 0 < 0.9 * can_fall.sum() <= fooled.sum() < 60


def test_it_leaves_no_more_than_pgd_of_as_many_gradients(few: Any, attacked: Attacked) -> None:
    net, x, y = few
    for norm, eps in BALLS:
        kept = []
        for attack in ("apgd", "pgd"):
            result = attacked(net, x, y, attack, eps, norm=norm, params={"steps": STEPS})
            kept.append(int((net(result.x_adv[0]).argmax(1) == y).sum()))
        assert kept[0] <= kept[1]


def test_restarts_keep_what_was_broken(few: Any, attacked: Attacked) -> None:
    net, x, y = few
    one, three = (
        attacked(net, x, y, "apgd", 0.05, params={"steps": 5, "restarts": restarts})
        for restarts in (1, 3)
    )
    stands = [net(result.x_adv[0]).argmax(1) == y for result in (one, three)]
    assert not (stands[1] & ~stands[0]).any()
    assert torch.equal(one.forwards[0][~stands[0]], three.forwards[0][~stands[0]].clamp_max(5))


# ------------------------------------------------------------------------------------------ APGD-T


def test_the_classes_are_tried_until_one_succeeds(few: Any, attacked: Attacked) -> None:
    net, x, y = few
    params = {"steps": 10, "targets": 3}
    result = attacked(net, x, y, "apgd_t", 0.06, params=params)
    broken = net(result.x_adv[0]).argmax(1) != y
    assert 0 < broken.sum() < len(x)
    assert (result.backwards[0][~broken] == 30).all()
    assert (result.backwards[0][broken] <= 30).all()
    assert (result.backwards[0] < 10).any()


def test_more_classes_leave_no_more(correct: Any, attacked: Attacked) -> None:
    net, x, y = correct
    stands = [
        net(attacked(net, x, y, "apgd_t", 0.08, params=params).x_adv[0]).argmax(1) == y
        for params in ({"steps": 3, "targets": targets} for targets in (1, 3, 9))
    ]
    assert all(not (more & ~fewer).any() for fewer, more in pairwise(stands))
    assert stands[-1].sum() < stands[0].sum()


def test_its_loss_is_not_to_be_chosen(few: Any) -> None:
    net, x, y = few
    assert apgd_t.Params().loss == "dlr"
    with pytest.raises(SuiteError, match=r"params\.loss: unknown key"):
        bench.evaluate(net, x.float(), y, attack="apgd_t", params={"loss": "margin"}, device="cpu")


@pytest.mark.parametrize(
    ("attack", "params", "reason"),
    [
        ("apgd", {"loss": "dlr"}, "loss 'dlr' needs at least 3 classes, the model has 2"),
        ("apgd_t", {}, "the attack needs at least 4 classes, the model has 2"),
    ],
)
def test_too_few_classes_are_refused_in_a_sentence(
    attack: str, params: dict[str, Any], reason: str, linear: Any
) -> None:
    net, x = linear(torch.eye(2, 4), torch.zeros(2)), torch.zeros(3, 1, 2, 2)
    with pytest.raises(SuiteError, match=f"attack '{attack}': .*{reason}"):
        bench.evaluate(net, x, torch.tensor([0, 1, 0]), attack=attack, params=params, device="cpu")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", ["apgd", "apgd_t"])
def test_where_there_is_no_gradient_the_start_stays_and_is_no_nan(
    attack: str, norm: Norm, linear: Any, attacked: Attacked
) -> None:
    net, x = (
        linear(torch.zeros(4, 9), torch.tensor([1.0, 0.0, -1.0, 0.0])),
        torch.full((3, 1, 3, 3), 0.5),
    )
    y, settings = torch.zeros(3, dtype=torch.int64), {"norm": norm, "params": {"steps": 12}}
    result = attacked(net, x, y, attack, 0.3, **settings)
    assert result.x_adv.isfinite().all()
    assert (result.first_success == -1).all()
    assert (norms.distance(result.x_adv[0], x, norm) <= 0.3 * (1 + 1e-5)).all()
