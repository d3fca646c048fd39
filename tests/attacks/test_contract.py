"""What every attack promises, asked of every attack that the registry knows.

A new file in bench/attacks is tested here before its author writes a test.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bench
from bench.core import registry, rng
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.learner import TrainingBatch
from bench.core.contracts.types import Goal, Norm, Threat
from bench.engine import timing
from bench.engine.functional import norms
from bench.evaluation import chunk
from bench.evaluation.crafting import Examples

Attacked = Callable[..., Any]
BUILT_IN = [name for name in registry.names("attacks") if not name.endswith(":")]
FOUND = {name: registry.find("attacks", name) for name in BUILT_IN}
RULES = [
    name
    for name, found in FOUND.items()
    if isinstance(found, IterativeAttack) and found.budget == "fixed"
]
BLIND = ("labels", "nothing")
SEEING = [name for name, found in FOUND.items() if found.needs not in BLIND]
LEARNED: dict[str, dict[str, str]] = {}
"""Params of the attacks that must be trained first, once they are."""
FOREIGN = [f"torchattacks:{name}" for name in ("FGSM", "PGD", "PGDL2", "APGD", "CW")]
CLASSES = 4
EPS: dict[Norm, float] = {"linf": 0.2, "l2": 1.2, "l1": 6.0, "l0": 12.0}


def cases(names: list[str]) -> list[tuple[str, Norm, Goal]]:
    found = [(name, registry.find("attacks", name)) for name in names]
    return [
        (n, norm, goal) for n, attack in found for norm in attack.norms for goal in attack.goals
    ]


def short(attack: str) -> dict[str, Any]:
    """Params with which the attack is quick, and one that seeks the least distance finds some."""
    found = registry.find("attacks", attack)
    fixed = {"steps": 5, "lr": 50.0}  # so long a step that a raw gradient crosses its ball
    wanted = fixed if found.budget == "fixed" else {"steps": 20, "c": 5.0, "lr": 0.1}
    fields = {field.name for field in dataclasses.fields(found.params)}
    return {key: value for key, value in wanted.items() if key in fields} | LEARNED.get(attack, {})


def images() -> Tensor:
    """Seven images, half of their pixels on the walls of the box."""
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.rand(7, 1, 8, 8, generator=generator) - 0.5).clamp(0, 1)


@pytest.fixture(scope="module", autouse=True)
def learned(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Attacks that learn are trained for a moment against the small net, on the seven images."""
    target = small_net().requires_grad_(False)
    threat = Threat(norm="linf", eps=EPS["linf"])
    with torch.no_grad():
        lesson = TrainingBatch(target, images(), target(images()).argmax(1), threat)
    for name, learn in ((name, found.learn) for name, found in FOUND.items() if found.learn):
        settings, shape = learn.params(), (1, 8, 8)
        with rng.seed_global("learned", name):
            networks = learn.build(shape, settings)
        optimisers = {k: torch.optim.Adam(v.parameters(), 3e-3) for k, v in networks.items()}
        for _ in range(60):
            learn.step(networks, optimisers, lesson, settings)
        path = tmp_path_factory.mktemp("learned") / f"{name}.safetensors"
        told = dict(learn.metadata(shape, threat))
        save_file(networks[learn.published].state_dict(), path, metadata=told)
        LEARNED[name] = {"weights": str(path)}


@pytest.fixture
def net() -> nn.Module:
    return small_net()


def small_net() -> nn.Module:
    """A small net with everything that an attack could leave changed."""
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
        layers[-1].bias -= model(images()).mean(0)  # no class is out of reach
    return model


@pytest.fixture
def batch(net: nn.Module) -> tuple[Tensor, Tensor]:
    """The seven images, with labels on which the net is right."""
    with torch.no_grad():
        return images(), net(images()).argmax(1)


def evaluated(net: nn.Module, batch: Any, case: Any, rows: int = 7, **settings: Any) -> Any:
    attack, norm, goal = case
    settings = {"eps": EPS[norm], "params": short(attack)} | settings
    if goal == "targeted":
        settings["target"] = "next"
    return bench.evaluate(
        net, *batch, attack=attack, norm=norm, goal=goal, batch_size=rows,
        keep_adversarial=True, device="cpu", **settings,
    )  # fmt: skip


@pytest.mark.parametrize("case", cases(BUILT_IN + FOREIGN), ids="-".join)
@pytest.mark.parametrize("rows", [1, 3])
def test_an_attack_returns_images_of_the_threat_model(
    case: Any, rows: int, net: nn.Module, batch: Any
) -> None:
    x, before = batch[0], batch[0].clone()
    found, attack = evaluated(net, batch, case, rows), registry.find("attacks", case[0])
    (x_adv,), eps, minimum = found.adversarial, EPS[case[1]], attack.budget == "minimum"
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    moved = norms.distance(x_adv.double(), x.double(), case[1])
    assert minimum or (moved <= eps + 1e-6 + 1e-5 * eps).all()
    early = minimum or found.records["fooled"].all()  # each stopped at its first success
    assert moved.max() > (0 if early else eps / 2)  # it did attack
    promised = attack.needs != "labels" and (attack.scale_free or attack.budget == "fixed")
    assert found.records["fooled"].any() or not promised
    assert (found.records["violation"] == "").all()
    assert torch.equal(x, before)


@pytest.mark.parametrize("case", cases(RULES), ids="-".join)
@pytest.mark.parametrize("alpha", [None, 0.1])
def test_the_ball_of_radius_0_gives_the_image_itself_to_the_bit(
    case: Any, alpha: float | None, net: nn.Module, batch: Any, attacked: Attacked
) -> None:
    attack, norm, goal = case
    has_alpha = hasattr(registry.find("attacks", attack).params, "alpha")
    params = short(attack) | ({"alpha": alpha} if alpha and has_alpha else {})
    y = batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    settings = {"norm": norm, "goal": goal, "stop": "never", "params": params}
    told = attacked(net, batch[0], y, attack, 0.0, **settings)
    assert torch.equal(told.x_adv[0], batch[0])


@pytest.mark.parametrize("case", cases(BUILT_IN + FOREIGN), ids="-".join)
def test_the_same_seed_gives_the_same_bits(case: Any, net: nn.Module, batch: Any) -> None:
    first, second = (evaluated(net, batch, case, 3) for _ in range(2))
    assert torch.equal(first.adversarial, second.adversarial)
    assert first.records.equals(second.records)


@pytest.mark.parametrize("case", cases(BUILT_IN + FOREIGN), ids="-".join)
def test_another_seed_gives_other_bits_if_and_only_if_the_attack_says_it_is_stochastic(
    case: Any, net: nn.Module, batch: Any
) -> None:
    first, second = (evaluated(net, batch, case, 3, seed=seed, stop="never") for seed in (0, 1))
    differ = not torch.equal(first.adversarial, second.adversarial)
    assert differ == registry.find("attacks", case[0]).stochastic


@pytest.mark.parametrize("case", cases(BUILT_IN + FOREIGN), ids="-".join)
def test_an_example_does_not_depend_on_its_batch_unless_the_attack_says_so(
    case: Any, net: nn.Module, batch: Any
) -> None:
    if registry.find("attacks", case[0]).batch_dependent:
        pytest.skip("the attack declares that its results depend on the batch")
    one, three = (evaluated(net, batch, case, rows) for rows in (1, 3))
    assert one.records["fooled"].equals(three.records["fooled"])
    assert torch.allclose(one.adversarial, three.adversarial, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", cases(RULES), ids="-".join)
def test_permuted_examples_get_permuted_images(
    case: Any, net: nn.Module, batch: Any, attacked: Attacked
) -> None:
    attack, norm, goal = case
    x, y = batch[0].double(), batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    settings = {"norm": norm, "goal": goal, "rows": 3, "params": short(attack)}
    straight = attacked(net.double(), x, y, attack, EPS[norm], **settings)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    turned = attacked(net, x[order], y[order], attack, EPS[norm], examples=order, **settings)
    assert torch.allclose(turned.x_adv[0], straight.x_adv[0][order], rtol=0, atol=1e-9)
    assert torch.equal(turned.forwards[0], straight.forwards[0][order])


@pytest.mark.parametrize("case", cases(SEEING + FOREIGN), ids="-".join)
def test_a_larger_ball_never_leaves_more_robust_on_a_linear_net(
    case: Any, linear: Any, batch: Any
) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(CLASSES, 64, generator=generator)
    net = linear(w, -w @ batch[0].flatten(1).mean(0))
    eps = [EPS[case[1]] * factor for factor in (0.0, 0.25, 1.0, 2.0)]
    table = evaluated(net, (batch[0], net(batch[0]).argmax(1)), case, eps=eps).table
    kept = table["robust_correct"].tolist()
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 7
    found = registry.find("attacks", case[0])
    assert kept[-1] < 7 or (found.budget == "minimum" and not found.scale_free)


def everything(net: nn.Module) -> tuple[Any, ...]:
    """All that an attack could leave changed, as plain values."""
    state = {key: value.tolist() for key, value in net.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    wants = [p.requires_grad for p in net.parameters()]
    return state, grads, wants, [module.training for module in net.modules()]


@pytest.mark.parametrize("case", cases(BUILT_IN + FOREIGN), ids="-".join)
def test_the_model_comes_out_of_an_evaluation_as_it_went_in(
    case: Any, net: nn.Module, batch: Any
) -> None:
    net[0].bias.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = everything(net)
    evaluated(net, batch, case)
    assert everything(net) == before


@pytest.mark.parametrize("case", cases(BUILT_IN + FOREIGN), ids="-".join)
def test_a_model_in_training_mode_is_measured_in_evaluation_mode_and_given_back_in_its_own(
    case: Any, net: nn.Module, batch: Any
) -> None:
    records = evaluated(net, batch, case).records
    net.train()
    net[3].eval()
    before = everything(net)
    assert evaluated(net, batch, case).records.equals(records)
    assert everything(net) == before


@pytest.mark.parametrize("case", cases(BUILT_IN + FOREIGN), ids="-".join)
def test_the_callers_global_generators_are_not_moved(case: Any, net: nn.Module, batch: Any) -> None:
    before = torch.get_rng_state()
    evaluated(net, batch, case)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", BUILT_IN + FOREIGN)
def test_an_attack_says_what_it_is(name: str) -> None:
    attack = registry.find("attacks", name)
    params = attack.params()
    assert attack.summary
    assert attack.source
    assert set(attack.norms) <= set(chunk.NORMS)
    for norm in attack.norms:
        assert all(isinstance(v, str) for v in attack.traits(params, norm, 0.1).values())
        assert all(text.endswith(".") for text in attack.caveats(params, norm, 0.1))


@pytest.mark.parametrize("case", cases(BUILT_IN), ids="-".join)
def test_rows_do_not_read_each_other(case: Any, net: nn.Module, batch: Any) -> None:
    """A row of another example's NaN must not reach its neighbours."""
    attack, norm, goal = case
    found = registry.find("attacks", attack)
    x, y = batch[0].clone(), batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    x[2] = torch.nan
    ids, floor = torch.arange(7), timing.Floor(0.0, 0.0)
    target = torch.full_like(y, -1) if goal == "untargeted" else y
    examples = Examples(ids, x, batch[1], target, batch[1], torch.ones(7), torch.ones(7))
    params = found.params(**short(attack))
    curve = AttackSpec(
        name=attack, attack=found, params=params, norm=norm, eps=(EPS[norm],), goal=goal
    )
    (frame,) = chunk.evaluate_chunk(net, curve, examples, 7, floor).records
    assert (frame["violation"] != "").tolist() == [i == 2 for i in range(7)]
