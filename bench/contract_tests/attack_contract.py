"""What an attack owes, as tests on a small net; the module that collects them sets NAMES.

A module with `from bench.contract_tests.attack_contract import *` and a list NAMES runs every test
for every norm and goal of each attack in the list.
"""

import dataclasses
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry, rng
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.types import BALLS, Goal, Norm
from bench.engine import stream, timing
from bench.engine.functional import norms
from bench.engine.threats.registry import find_threat
from bench.evaluation import chunk
from bench.evaluation.crafting import Examples

CLASSES = 4
EPS: dict[Norm, float] = {
    **{norm: find_threat(norm).example_levels[1] for norm in get_args(Norm) if norm not in BALLS},
    "linf": 0.2, "l2": 1.2, "l1": 6.0, "l0": 12.0,
}  # fmt: skip
"""A radius of each norm that a good attack on the small net can use."""
Case = tuple[str, Norm, Goal]
Batch = tuple[Tensor, Tensor]


def list_cases(names: list[str]) -> list[Case]:
    """List every norm and goal of attacks.

    Args:
        names: Registered names.

    Returns:
        Name, norm and goal of each test.
    """
    found = [(name, registry.find("attacks", name)) for name in names]
    return [
        (n, norm, goal) for n, attack in found for norm in attack.norms for goal in attack.goals
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test for the attacks that its module names.

    Args:
        metafunc: The test that pytest collects.
    """
    names = list(getattr(metafunc.module, "NAMES", ()))
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list_cases(names), ids="-".join)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names)


def choose_params(name: str) -> dict[str, Any]:
    """Choose params with which an attack is quick: few steps, where it has steps.

    Args:
        name: Registered name.

    Returns:
        Params that differ from the defaults.
    """
    found = registry.find("attacks", name)
    fields = {field.name for field in dataclasses.fields(found.params)}
    return {"steps": 5 if found.budget == "fixed" else 20} if "steps" in fields else {}


def make_images() -> Tensor:
    """Make seven images, half of their pixels on the faces of the box.

    Returns:
        Images, (7, 1, 8, 8), in [0, 1].
    """
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.rand(7, 1, 8, 8, generator=generator) - 0.5).clamp(0, 1)


def build_small_net() -> nn.Module:
    """Build a small net with everything that an attack could leave changed.

    Returns:
        A net for the images of `make_images`, in evaluation mode; no class is out of reach.
    """
    with rng.seed_global("a small net"):
        layers = [
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(256, CLASSES),
        ]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        layers[-1].bias -= model(make_images()).mean(0)
    return model


def collect_state(net: nn.Module) -> tuple[Any, ...]:
    """Collect all that an attack could leave changed, as plain values.

    Args:
        net: The model.

    Returns:
        Parameters and buffers, gradients, which parameters need one, and the modules' modes.
    """
    state = {key: value.tolist() for key, value in net.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    wants = [p.requires_grad for p in net.parameters()]
    return state, grads, wants, [module.training for module in net.modules()]


@pytest.fixture
def net() -> nn.Module:
    """The small net."""
    return build_small_net()


@pytest.fixture
def batch(net: nn.Module) -> Batch:
    """The seven images, with labels on which the net is right."""
    with torch.no_grad():
        return make_images(), net(make_images()).argmax(1)


def evaluate_case(
    net: nn.Module, batch: Batch, case: Case, rows: int = 7, **settings: Any
) -> bench.Evaluation:
    """Evaluate a model under one attack, norm and goal on the CPU.

    Args:
        net: The model.
        batch: Images and labels.
        case: Name, norm and goal.
        rows: Batch size.
        settings: Further arguments of `bench.evaluate`.

    Returns:
        The result, with the adversarial images.
    """
    attack, norm, goal = case
    chosen: dict[str, Any] = {"eps": EPS[norm], "params": choose_params(attack)} | settings
    if goal == "targeted":
        chosen["target"] = "next"
    return bench.evaluate(
        net, *batch, attack=attack, norm=norm, goal=goal, batch_size=rows,
        keep_adversarial=True, device="cpu", **chosen,
    )  # fmt: skip


def adversarial_images(result: bench.Evaluation) -> Tensor:
    """Return the images of a result that keeps them.

    Args:
        result: The result of `evaluate_case`.

    Returns:
        Images, (number of eps, 7, 1, 8, 8).
    """
    assert result.adversarial is not None
    return result.adversarial


def test_an_attack_says_what_it_is(name: str) -> None:
    attack = registry.find("attacks", name)
    params = attack.params()
    assert attack.summary
    assert attack.source
    assert attack.norms
    assert set(attack.norms) <= set(get_args(Norm))
    for norm in attack.norms:
        assert all(isinstance(v, str) for v in attack.traits(params, norm, 0.1).values())
        assert all(text.endswith(".") for text in attack.caveats(params, norm, 0.1))


@pytest.mark.parametrize("rows", [1, 3])
def test_an_attack_returns_images_of_the_threat_model(
    case: Case, rows: int, net: nn.Module, batch: Batch
) -> None:
    x, before = batch[0], batch[0].clone()
    found, attack = evaluate_case(net, batch, case, rows), registry.find("attacks", case[0])
    eps, minimum = EPS[case[1]], attack.budget == "minimum"
    (x_adv,) = adversarial_images(found)
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert (found.records["violation"] == "").all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(x, before)
    if case[1] not in BALLS:  # the family's own verification is in the records
        assert not torch.equal(x_adv, x)
        return
    moved = norms.distance(x_adv.double(), x.double(), case[1])
    assert minimum or (moved <= eps + 1e-6 + 1e-5 * eps).all()
    assert moved.max() > 0


def test_the_same_seed_gives_the_same_bits(case: Case, net: nn.Module, batch: Batch) -> None:
    first, second = (evaluate_case(net, batch, case, 3) for _ in range(2))
    assert torch.equal(adversarial_images(first), adversarial_images(second))
    assert first.records.equals(second.records)


def test_another_seed_gives_other_bits_if_and_only_if_the_attack_says_it_is_stochastic(
    case: Case, net: nn.Module, batch: Batch
) -> None:
    first, second = (evaluate_case(net, batch, case, 3, seed=s, stop="never") for s in (0, 1))
    differ = not torch.equal(adversarial_images(first), adversarial_images(second))
    assert differ == registry.find("attacks", case[0]).stochastic


def test_an_example_does_not_depend_on_its_batch_unless_the_attack_says_so(
    case: Case, net: nn.Module, batch: Batch
) -> None:
    if registry.find("attacks", case[0]).batch_dependent:
        pytest.skip("the attack declares that its results depend on the batch")
    one, three = (evaluate_case(net, batch, case, rows) for rows in (1, 3))
    assert one.records["fooled"].equals(three.records["fooled"])
    assert torch.allclose(adversarial_images(one), adversarial_images(three), rtol=0, atol=1e-4)


def test_a_larger_ball_never_leaves_more_robust_on_a_linear_net(case: Case, batch: Batch) -> None:
    found = registry.find("attacks", case[0])
    if found.needs in ("labels", "nothing"):
        pytest.skip("an attack that sees neither gradients nor scores owes no success")
    if case[1] not in BALLS:
        pytest.skip("a family need not contain its images of a lower level")
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(64, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(CLASSES, 64, generator=generator))
        layer.bias.copy_(-layer.weight @ batch[0].flatten(1).mean(0))
    net = nn.Sequential(nn.Flatten(), layer).eval()
    eps = [EPS[case[1]] * factor for factor in (0.0, 0.25, 1.0, 2.0)]
    table = evaluate_case(net, (batch[0], net(batch[0]).argmax(1)), case, eps=eps).table
    robust = table["robust_correct"].tolist()
    assert robust == sorted(robust, reverse=True)
    assert robust[0] == 7
    assert robust[-1] < 7 or (found.budget == "minimum" and not found.scale_free)


def test_the_model_comes_out_of_an_evaluation_as_it_went_in(
    case: Case, net: nn.Module, batch: Batch
) -> None:
    net.train()
    net[3].eval()  # type: ignore[index]
    net[0].bias.requires_grad_(False)  # type: ignore[index]
    net[0].weight.grad = torch.ones_like(net[0].weight)  # type: ignore[index]
    before, state = collect_state(net), torch.get_rng_state()
    evaluate_case(net, batch, case)
    assert collect_state(net) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_ball_of_radius_0_gives_the_image_itself_to_the_bit(
    case: Case, net: nn.Module, batch: Batch
) -> None:
    attack, norm, goal = case
    found = registry.find("attacks", attack)
    if not isinstance(found, IterativeAttack) or found.budget != "fixed":
        pytest.skip("only a rule with a budget is projected by the engine")
    y = batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    spec = AttackSpec(
        name=attack, attack=found, params=found.params(**choose_params(attack)), norm=norm,
        eps=(0.0,), goal=goal, stop="never",
    )  # fmt: skip
    result = stream.run_attack(net, spec, batch[0], y, torch.arange(7), 7)
    assert torch.equal(result.x_adv[0], batch[0])


def test_rows_do_not_read_each_other(case: Case, net: nn.Module, batch: Batch) -> None:
    """A row of another example's NaN must not reach its neighbours."""
    attack, norm, goal = case
    found = registry.find("attacks", attack)
    if found.batch_dependent:
        pytest.skip("the attack declares that its results depend on the batch")
    x, y = batch[0].clone(), batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    x[2] = torch.nan
    target = torch.full_like(y, -1) if goal == "untargeted" else y
    examples = Examples(
        torch.arange(7), x, batch[1], target, batch[1], torch.ones(7), torch.ones(7)
    )
    spec = AttackSpec(
        name=attack, attack=found, params=found.params(**choose_params(attack)), norm=norm,
        eps=(EPS[norm],), goal=goal,
    )  # fmt: skip
    (frame,) = chunk.evaluate_chunk(net, spec, examples, 7, timing.Floor(0.0, 0.0)).records
    assert (frame["violation"] != "").tolist() == [i == 2 for i in range(7)]
