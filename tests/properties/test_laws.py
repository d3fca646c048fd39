"""Properties that any correct measurement has, on a real net and real digits.

tests/properties/README.md lists them in words. Where one is statistical the tolerance is 1 of 200
examples. Those of losses, linear nets and single iterates are tested beside those parts.
"""

import dataclasses
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.datasets import mnist
from bench.engine.functional.norms import distance
from bench.evaluation import metrics
from bench.models import lenet as architecture
from bench.models import strided_cnn
from bench.models.published_weights import WEIGHTS

Attacked = Callable[..., Any]
FOUND = {
    name: attack
    for name in registry.names("attacks")
    if not name.endswith(":")
    and (attack := registry.find("attacks", name)).norms != ("corruption",)  # eps is a severity
}
BUILT_IN = [*FOUND]
FIXED = [
    name
    for name, attack in FOUND.items()
    if isinstance(attack, IterativeAttack) and attack.budget == "fixed"
]
RULES = [name for name in FIXED if FOUND[name].scale_free]
LOOPS = [name for name in RULES if not FOUND[name].rule.one_gradient]
TARGETED = [name for name in RULES if "targeted" in FOUND[name].goals]
STEPPING = [name for name in LOOPS if hasattr(FOUND[name].params, "alpha")]
QUICK = {"steps": 3, "queries": 20, "targets": 2}
"""Params by which any attack is quick, where it has them."""
BALLS: list[tuple[Norm, float]] = [("linf", 0.1), ("l2", 1.0)]


@pytest.fixture
def net(lenet: nn.Module) -> nn.Module:
    return lenet.requires_grad_(False)


@pytest.fixture
def correct(net: nn.Module, digits: Any) -> tuple[Tensor, Tensor]:
    """Those of the digits that the net gets right: what is attacked."""
    x, y = digits
    right = net(x).argmax(1) == y
    assert 190 <= right.sum() < 200
    return x[right], y[right]


def quick(attack: str) -> dict[str, int]:
    fields = {field.name for field in dataclasses.fields(FOUND[attack].params)}
    return {name: value for name, value in QUICK.items() if name in fields}


def evaluate(
    net: nn.Module, x: Tensor, y: Tensor, attack: str, **settings: Any
) -> bench.Evaluation:
    """`bench.evaluate` of the model itself without the audit, in the first norm of the attack
    unless one is named."""
    norm = settings.pop("norm", FOUND[attack].norms[0])
    return bench.evaluate(
        net, x, y, attack=attack, norm=norm, batch_size=64, audit=False, copied=False,
        device="cpu", **settings,
    )  # fmt: skip


def count_left(net: nn.Module, result: Any, y: Tensor) -> list[int]:
    """Still correct at each eps."""
    return [int((net(images).argmax(1) == y).sum()) for images in result.x_adv]


def still_correct(net: nn.Module, result: Any, y: Tensor) -> Tensor:
    """Which examples are still correct at the first eps."""
    return net(result.x_adv[0]).argmax(1) == y


# ------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("attack", BUILT_IN)
def test_at_eps_0_nothing_moves_and_the_clean_count_remains(
    attack: str, net: nn.Module, digits: Any
) -> None:
    x, y = digits
    result = evaluate(net, x, y, attack, eps=0.0, keep_adversarial=True)
    clean = int((net(x).argmax(1) == y).sum())
    assert torch.equal(result.adversarial[0], x)
    assert result.table["robust_correct"].tolist() == [clean]
    assert clean < len(x)


@pytest.mark.parametrize("attack", RULES)
@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_every_image_is_in_ball_and_box_and_finite(
    attack: str, norm: Norm, eps: float, net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    x, y = correct
    settings = {"params": {"steps": 10} if attack in LOOPS else {}}
    result = attacked(net, x[:50], y[:50], attack, eps, norm=norm, stop="never", **settings)
    x_adv = result.x_adv[0]
    assert x_adv.isfinite().all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    moved = distance(x_adv.double(), x[:50].double(), norm)
    assert (moved <= (eps + 1e-6 if norm == "linf" else eps * (1 + 1e-5))).all()
    assert (moved > eps / 2).all()


def test_fgsm_moves_a_pixel_by_eps_or_to_the_wall_or_has_no_gradient(
    net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    x, y = correct
    x_adv = attacked(net, x, y, "fgsm", 0.1).x_adv[0]
    probe = x.clone().requires_grad_()
    nn.functional.cross_entropy(net(probe), y, reduction="sum").backward()
    up, down = (x + 0.1).clamp(0, 1), (x - 0.1).clamp(0, 1)
    values = torch.where(probe.grad > 0, up, torch.where(probe.grad < 0, down, x))
    assert (x_adv == values).float().mean() > 0.999  # a gradient of 1e-9 may turn with the batch
    assert ((x_adv == up) | (x_adv == down) | ((x_adv == x) & (probe.grad.abs() < 1e-8))).all()


def test_the_worst_case_over_seeds_is_no_more_than_any_of_them(
    net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    x, y = correct
    short = {"steps": 3}
    runs = [attacked(net, x, y, "pgd", 0.08, seed=seed, params=short) for seed in (0, 1)]
    seeds = [still_correct(net, run, y) for run in runs]
    both = int((seeds[0] & seeds[1]).sum())
    assert both < max(int(s.sum()) for s in seeds)  # the seeds differ
    again = attacked(net, x, y, "pgd", 0.08, params={"steps": 3, "restarts": 3})
    # Restart 0 is the run without restarts.
    assert not (still_correct(net, again, y) & ~seeds[0]).any()


@pytest.mark.parametrize("attack", TARGETED)
def test_who_is_taken_for_the_target_is_also_taken_wrongly(
    attack: str, net: nn.Module, digits: Any
) -> None:
    params = {"steps": 5} if attack in LOOPS else {}
    records = evaluate(
        net, *digits, attack, norm="linf", eps=0.2, goal="targeted", target="next", params=params
    ).records
    tried = records[records["attacked"]]
    reached = tried["adv_pred"] == tried["target"]
    assert records["fooled"].sum() == reached.sum() > 0
    assert reached.sum() <= (tried["adv_pred"] != tried["label"]).sum()


@pytest.mark.parametrize("attack", RULES)
def test_success_rate_clean_and_robust_counts_add_up(
    attack: str, net: nn.Module, digits: Any
) -> None:
    table = evaluate(net, *digits, attack, norm="linf", eps=[0.05, 0.1], params=quick(attack)).table
    clean, robust = (table[f"{what}_correct"].astype(int) for what in ("clean", "robust"))
    assert (table["attack_success_rate"] == (clean - robust) / clean).all()
    assert (table["robust_accuracy"] == robust / 200).all()
    assert (robust < clean).all()
    assert (clean < 200).all()


@pytest.mark.parametrize("attack", BUILT_IN)
def test_the_net_is_left_as_it_was(attack: str, lenet: nn.Module, digits: Any) -> None:
    lenet[3].train()
    lenet[1].bias.requires_grad_(False)
    lenet[1].weight.grad = torch.ones_like(lenet[1].weight)
    before = [(p.clone(), p.requires_grad, p.grad) for p in lenet.parameters()]
    modes = [module.training for module in lenet.modules()]
    x, y = (each[:10] for each in digits)
    settings = {"norm": FOUND[attack].norms[0], "params": quick(attack)}
    more = attack == "pgd"  # the audit and the acceleration do the same for every attack
    bench.evaluate(lenet, x, y, attack=attack, audit=more, copied=more, device="cpu", **settings)
    assert [module.training for module in lenet.modules()] == modes
    for (value, wants, gradient), parameter in zip(before, lenet.parameters(), strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == wants
        assert parameter.grad is gradient


@pytest.mark.parametrize("attack", RULES)
def test_the_same_seed_gives_the_same_bits_and_any_batch_the_same_outcomes(
    attack: str, net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    x, y = (each[:80] for each in correct)
    settings = {"params": {"steps": 5} if attack in LOOPS else {}}
    first, second, small = (
        attacked(net, x, y, attack, 0.1, rows=rows, **settings) for rows in (64, 64, 7)
    )
    assert torch.equal(first.x_adv, second.x_adv)
    logits = net.double()(first.x_adv[0].double())
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    clear = (logits.gather(1, y[:, None])[:, 0] - others).abs() > 1e-3
    net.float()
    assert clear.sum() > 70
    assert torch.equal(still_correct(net, first, y)[clear], still_correct(net, small, y)[clear])


@pytest.mark.parametrize("attack", BUILT_IN)
def test_a_constant_net_has_its_clean_count_under_attack(attack: str, digits: Any) -> None:
    x, y = (each[:60] for each in digits)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(constant[1].weight)
    with torch.no_grad():
        constant[1].bias.copy_(torch.arange(10.0))
    table = evaluate(constant, x, y, attack, eps=0.3, params=quick(attack)).table
    assert table["robust_correct"].tolist() == [int((y == 9).sum())] != [0]
    assert table["violations"].tolist() == [0]


# ------------------------------------------------------------------------------------- statistical


@pytest.mark.parametrize("attack", ["bim", "pgd"])
def test_a_larger_ball_leaves_no_more_correct(
    attack: str, net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    result = attacked(net, *correct, attack, (0.0, 0.02, 0.05, 0.1, 0.2), params={"steps": 10})
    counts = count_left(net, result, correct[1])
    assert all(larger <= smaller + 1 for smaller, larger in pairwise(counts))
    assert counts[0] == len(correct[1])
    assert counts[-1] < 20


def test_the_whole_cube_leaves_nothing_under_a_long_pgd(
    net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    x, y = correct
    params = {"steps": 200, "alpha": 0.02}
    assert count_left(net, attacked(net, x, y, "pgd", 1.0, params=params), y) == [0]


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
def test_ten_steps_leave_no_more_than_one(
    eps: float, net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    (one,) = count_left(net, attacked(net, *correct, "fgsm", eps), correct[1])
    (ten,) = count_left(net, attacked(net, *correct, "bim", eps, params={"steps": 10}), correct[1])
    assert ten <= one + 1
    assert one < len(correct[1])


@pytest.mark.parametrize("attack", STEPPING)
def test_more_steps_of_one_length_leave_no_more(
    attack: str, net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    counts = [
        count_left(net, attacked(net, *correct, attack, 0.08, params=params), correct[1])[0]
        for params in ({"steps": steps, "alpha": 0.01} for steps in (2, 5, 15))
    ]
    assert counts[0] >= counts[1] - 1
    assert counts[1] >= counts[2] - 1
    assert counts[0] > counts[2]


@pytest.mark.parametrize("attack", TARGETED)
def test_to_reach_a_target_is_no_easier_than_to_leave_the_label(
    attack: str, net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    x, y = correct
    target, params = (y + 1) % 10, {"steps": 5} if attack in LOOPS else {}
    away = attacked(net, x, y, attack, 0.15, params=params)
    towards = attacked(net, x, target, attack, 0.15, goal="targeted", params=params)
    reached = int((net(towards.x_adv[0]).argmax(1) == target).sum())
    assert 0 < reached <= len(y) - count_left(net, away, y)[0] + 1


@pytest.mark.parametrize("eps", [0.1, 0.2])
def test_a_gradient_beats_noise(
    eps: float, net: nn.Module, correct: Any, attacked: Attacked
) -> None:
    x, y = correct
    noise = Noise(0, "noise", torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))
    noisy = net((x + eps * noise.uniform(x)).clamp(0, 1)).argmax(1) == y
    (one,) = count_left(net, attacked(net, x, y, "fgsm", eps), y)
    assert one < noisy.sum()


@pytest.fixture
def mnist_200() -> tuple[Tensor, Tensor]:
    """The first 200 MNIST test images and their labels, if they are on this machine."""
    folder = Path(os.environ.get("BENCH_DATA_DIR", ""))
    if not os.environ.get("BENCH_DATA_DIR") or not (folder / "MNIST" / "raw").is_dir():
        pytest.skip("needs MNIST, and BENCH_DATA_DIR names no folder with MNIST/raw")
    data = mnist.load(limit=200, data_dir=folder)
    assert data.labels is not None
    return data.read(0, 200), data.labels


def shipped(model: Any, weights: str) -> nn.Module:
    net: nn.Module = model.build().eval().requires_grad_(False)
    net.load_state_dict(load_file(WEIGHTS / f"{weights}.safetensors"))
    return net


PGD_40 = {"steps": 40, "alpha": 0.01}


def test_a_standard_net_on_mnist_keeps_nothing_at_0_3(
    attacked: Attacked, mnist_200: tuple[Tensor, Tensor]
) -> None:
    x, y = mnist_200
    net = shipped(architecture, "lenet-mnist")
    assert (net(x).argmax(1) == y).sum() > 190
    assert count_left(net, attacked(net, x, y, "pgd", 0.3, params=PGD_40), y) == [0]


def test_the_net_trained_against_pgd_keeps_nine_of_ten_at_0_3_and_not_by_masking_gradients(
    attacked: Attacked, mnist_200: tuple[Tensor, Tensor]
) -> None:
    x, y = mnist_200
    net, lenet = (
        shipped(strided_cnn, "strided_cnn-mnist-adversarial"),
        shipped(architecture, "lenet-mnist"),
    )
    (robust,) = count_left(net, attacked(net, x, y, "pgd", 0.3, params=PGD_40), y)
    assert robust >= 180
    (one_step,) = count_left(net, attacked(net, x, y, "fgsm", 0.3), y)
    transfer = attacked(lenet, x, y, "pgd", 0.3, stop="never", params=PGD_40)
    (transferred,) = count_left(net, transfer, y)
    assert robust <= min(one_step, transferred)  # neither one step nor less sight does better
    (beyond,) = count_left(net, attacked(net, x, y, "pgd", 0.5, params={"steps": 40}), y)
    assert beyond <= 20  # it is the radius that stops the attack


def test_attacks_together_leave_no_more_than_any_of_them(net: nn.Module, digits: Any) -> None:
    outcomes = []
    x, y = (each[:40] for each in digits)
    for attack in (name for name in BUILT_IN if "linf" in FOUND[name].norms):
        result = evaluate(net, x, y, attack, norm="linf", eps=0.06, params=quick(attack))
        outcomes.append(metrics.robust_examples(result.records))
    together = metrics.worst_case(outcomes)
    assert all(not (together & ~outcome).any() for outcome in outcomes)
    assert together.sum() < max(outcome.sum() for outcome in outcomes)
    assert not together[~result.records["clean_correct"]].any()
