"""What every attack promises, asked of every attack that the registry knows.

A new file in bench/attacks is tested here before its author writes a test. The runs of one case at
one and at three rows a pass are made once and read by several tests.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bench
from bench.core import registry, rng
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.learner import TrainingBatch
from bench.core.contracts.types import BALLS, Goal, Norm, Threat
from bench.engine import timing
from bench.engine.functional import norms
from bench.engine.threats.registry import find_threat
from bench.evaluation import chunk, metrics
from bench.evaluation.crafting import Examples
from bench.evaluation.evaluator import ChunkResult, Evaluator
from bench.suite import plan
from bench.suite.reader import parse_attack

Attacked = Callable[..., Any]
Case = tuple[str, Norm, Goal]
BUILT_IN = [name for name in registry.names("attacks") if not name.endswith(":")]
ATTACKS = {name: registry.find("attacks", name) for name in BUILT_IN}
RULES = [
    name
    for name, attack in ATTACKS.items()
    if isinstance(attack, IterativeAttack) and attack.budget == "fixed"
]
BLIND = ("labels", "nothing")
SEEING = [name for name, attack in ATTACKS.items() if attack.needs not in BLIND]
LEARNED: dict[str, dict[str, str]] = {}
"""Params of the attacks that must be trained first, once they are."""
FOREIGN = [f"torchattacks:{name}" for name in ("FGSM", "PGD", "PGDL2", "APGD", "CW")]
CLASSES = 4
EPS: dict[Norm, float] = {
    **{norm: find_threat(norm).example_levels[1] for norm in get_args(Norm) if norm not in BALLS},
    "linf": 0.2, "l2": 1.2, "l1": 6.0, "l0": 12.0,
}  # fmt: skip


def list_cases(names: list[str]) -> list[Case]:
    attacks = [(name, registry.find("attacks", name)) for name in names]
    return [
        (name, norm, goal)
        for name, attack in attacks
        if not attack.unavailable or name in FOREIGN
        for norm in attack.norms
        for goal in attack.goals
    ]


def short_params(name: str) -> dict[str, Any]:
    """Params with which the attack is quick, and one that seeks the least distance finds some."""
    attack = registry.find("attacks", name)
    fixed = {
        "steps": 5,
        "queries": 20,
        "lr": 50.0,
    }  # so long a step that a raw gradient crosses its ball
    wanted = fixed if attack.budget == "fixed" else {"steps": 10, "c": 5.0, "lr": 0.1}
    fields = {field.name for field in dataclasses.fields(attack.params)}
    return {key: value for key, value in wanted.items() if key in fields} | LEARNED.get(name, {})


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
    for name, learn in ((name, a.learn) for name, a in ATTACKS.items() if a.learn):
        settings, shape = learn.params(), (1, 8, 8)
        with rng.seed_global("learned", name):
            networks = learn.build(shape, settings)
        optimisers = {k: torch.optim.Adam(v.parameters(), 3e-3) for k, v in networks.items()}
        for _ in range(60):
            learn.step(networks, optimisers, lesson, settings)
        path = tmp_path_factory.mktemp("learned") / f"{name}.safetensors"
        metadata = dict(learn.metadata(shape, threat))
        save_file(networks[learn.published].state_dict(), path, metadata=metadata)
        LEARNED[name] = {"weights": str(path)}


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
def net() -> nn.Module:
    return small_net()


@pytest.fixture
def batch(net: nn.Module) -> tuple[Tensor, Tensor]:
    """The seven images, with labels on which the net is right."""
    with torch.no_grad():
        return images(), net(images()).argmax(1)


@functools.cache
def make_evaluator(rows: int = 3, seed: int = 0) -> Evaluator:
    """The evaluator of a small net, which all cases share and leave unchanged.

    The net itself is attacked: what an accelerated model rounds depends on what was timed.
    """
    model, x = small_net(), images()
    with torch.no_grad():
        labels = model(x).argmax(1)
    cpu = torch.device("cpu")
    return Evaluator.from_tensors(
        model, x, labels, cpu, batch_size=rows, seed=seed, use_acceleration=False
    )


def evaluate(evaluator: Evaluator, case: Case, **settings: Any) -> ChunkResult:
    """Attack, verify and judge the evaluator's images."""
    attack, norm, goal = case
    raw = {"name": attack, "norm": norm, "eps": [EPS[norm]], "goal": goal, "stop": "first-success"}
    if goal == "targeted":
        raw["target"] = "next"
    entry = parse_attack(raw | {"params": short_params(attack)} | settings, "this test")
    (label,) = evaluator.models
    facts = evaluator.model_facts(label)
    task = plan.plan_task(label, entry, facts, evaluator.seed, "independent")
    assert not task.cells[0].reason
    return evaluator.evaluate_chunk(task, 0, evaluator.data.n)


@pytest.fixture(scope="module", params=list_cases(BUILT_IN + FOREIGN), ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture(scope="module")
def in_threes(case: Case, learned: None) -> ChunkResult:
    """The result of a case at three rows a pass, which several tests read."""
    return evaluate(make_evaluator(rows=3), case)


@pytest.fixture(scope="module")
def one_by_one(case: Case, learned: None) -> ChunkResult:
    """The result of a case at one row a pass."""
    return evaluate(make_evaluator(rows=1), case)


@pytest.mark.parametrize("run", ["in_threes", "one_by_one"])
def test_an_attack_returns_images_of_the_threat_model(
    case: Case, run: str, request: pytest.FixtureRequest
) -> None:
    result: ChunkResult = request.getfixturevalue(run)
    (x_adv,), records, x = result.x_adv, result.frame, images()
    attack, eps = registry.find("attacks", case[0]), EPS[case[1]]
    minimum = attack.budget == "minimum"
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (records["violation"] == "").all()
    if case[1] not in BALLS:  # the family's own verification is in the records
        assert not torch.equal(x_adv, x)
        return
    moved = norms.distance(x_adv.double(), x.double(), case[1])
    assert minimum or (moved <= eps + 1e-6 + 1e-5 * eps).all()
    early = minimum or records["fooled"].all()  # each stopped at its first success
    assert moved.max() > (0 if early else eps / 2)  # it did attack
    promised = attack.needs != "labels" and (attack.scale_free or attack.budget == "fixed")
    assert records["fooled"].any() or not promised


def test_an_example_does_not_depend_on_its_batch_unless_the_attack_says_so(
    case: Case, in_threes: ChunkResult, one_by_one: ChunkResult
) -> None:
    if registry.find("attacks", case[0]).batch_dependent:
        pytest.skip("the attack declares that its results depend on the batch")
    assert one_by_one.frame["fooled"].equals(in_threes.frame["fooled"])
    assert torch.allclose(one_by_one.x_adv, in_threes.x_adv, rtol=0, atol=1e-4)


def list_state(model: nn.Module) -> tuple[Any, ...]:
    """All that an attack could leave changed, as plain values."""
    state = {key: value.tolist() for key, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    wants = [p.requires_grad for p in model.parameters()]
    return state, grads, wants, [module.training for module in model.modules()]


def test_the_same_seed_gives_the_same_bits_and_model_and_generators_stay_as_they_were(
    case: Case, in_threes: ChunkResult
) -> None:
    """Also where the caller trains the model: it is measured in evaluation mode."""
    evaluator = make_evaluator(rows=3)
    (loaded,) = evaluator.models.values()
    model: Any = loaded.model
    model.train()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state, generator = list_state(model), torch.get_rng_state()
    again = evaluate(evaluator, case)
    assert torch.equal(again.x_adv, in_threes.x_adv)
    assert again.frame.equals(in_threes.frame)
    assert list_state(model) == state
    assert torch.equal(torch.get_rng_state(), generator)


def test_another_seed_makes_other_bits_if_and_only_if_the_attack_says_it_is_stochastic(
    case: Case, in_threes: ChunkResult
) -> None:
    other = evaluate(make_evaluator(seed=1), case)
    differ = not torch.equal(other.x_adv, in_threes.x_adv)
    assert differ == registry.find("attacks", case[0]).stochastic


@pytest.mark.parametrize("attack", ["pgd", "torchattacks:PGD"])
def test_bench_evaluate_leaves_a_model_in_training_mode_as_it_was(
    attack: str, net: nn.Module, batch: Any
) -> None:
    settings: dict[str, Any] = {"attack": attack, "eps": 0.2, "batch_size": 3, "device": "cpu"}
    records = bench.evaluate(net, *batch, **settings).records
    net.train()
    net[3].eval()
    state, x = list_state(net), batch[0].clone()
    assert bench.evaluate(net, *batch, **settings).records.equals(records)
    assert list_state(net) == state
    assert torch.equal(batch[0], x)


@pytest.mark.parametrize("case", list_cases(RULES), ids="-".join)
def test_the_ball_of_radius_0_returns_the_image_itself_to_the_bit(
    case: Case, net: nn.Module, batch: Any, attacked: Attacked
) -> None:
    attack, norm, goal = case
    y = batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    has_alpha = hasattr(registry.find("attacks", attack).params, "alpha")
    for alpha in [{}, {"alpha": 0.1}] if has_alpha else [{}]:
        params = short_params(attack) | alpha
        settings = {"norm": norm, "goal": goal, "stop": "never", "params": params}
        result = attacked(net, batch[0], y, attack, 0.0, **settings)
        assert torch.equal(result.x_adv[0], batch[0]), alpha


@pytest.mark.parametrize("case", list_cases(RULES), ids="-".join)
def test_permuted_examples_get_permuted_images(
    case: Case, net: nn.Module, batch: Any, attacked: Attacked
) -> None:
    attack, norm, goal = case
    x, y = batch[0].double(), batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    settings = {"norm": norm, "goal": goal, "rows": 3, "params": short_params(attack)}
    straight = attacked(net.double(), x, y, attack, EPS[norm], **settings)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    permuted = attacked(net, x[order], y[order], attack, EPS[norm], examples=order, **settings)
    assert torch.allclose(permuted.x_adv[0], straight.x_adv[0][order], rtol=0, atol=1e-9)
    assert torch.equal(permuted.forwards[0], straight.forwards[0][order])
    assert torch.equal(permuted.first_success[0], straight.first_success[0][order])


@pytest.fixture(scope="module")
def linear_evaluator() -> Evaluator:
    """The evaluator of a net with logits w x + b, all of whose classes the seven images have."""
    generator = torch.Generator().manual_seed(1)
    w, x = torch.randn(CLASSES, 64, generator=generator), images()
    layer = nn.Linear(64, CLASSES).requires_grad_(False)
    layer.weight.copy_(w)
    layer.bias.copy_(-w @ x.flatten(1).mean(0))
    model = nn.Sequential(nn.Flatten(), layer).eval()
    cpu, labels = torch.device("cpu"), model(x).argmax(1)
    return Evaluator.from_tensors(model, x, labels, cpu, batch_size=7, use_acceleration=False)


@pytest.mark.parametrize("case", list_cases(SEEING + FOREIGN), ids="-".join)
def test_a_larger_ball_never_leaves_more_robust_on_a_linear_net(
    case: Case, learned: None, linear_evaluator: Evaluator
) -> None:
    if case[1] not in BALLS:
        pytest.skip("a family need not contain its images of a lower level")
    eps = [EPS[case[1]] * factor for factor in (0.0, 0.25, 1.0, 2.0)]
    records = evaluate(linear_evaluator, case, eps=eps).frame
    robust = metrics.robust_examples(records).groupby(records["eps"]).sum().tolist()
    assert robust == sorted(robust, reverse=True)
    assert robust[0] == 7
    attack = registry.find("attacks", case[0])
    assert robust[-1] < 7 or (attack.budget == "minimum" and not attack.scale_free)


@pytest.mark.parametrize("name", BUILT_IN + FOREIGN)
def test_an_attack_says_what_it_is(name: str) -> None:
    attack = registry.find("attacks", name)
    params = attack.params()
    assert attack.summary
    assert attack.source
    assert set(attack.norms) <= set(get_args(Norm))
    for norm in attack.norms:
        assert all(isinstance(v, str) for v in attack.traits(params, norm, 0.1).values())
        assert all(text.endswith(".") for text in attack.caveats(params, norm, 0.1))


@pytest.mark.parametrize("case", list_cases(BUILT_IN), ids="-".join)
def test_rows_do_not_read_each_other(case: Case, learned: None, net: nn.Module, batch: Any) -> None:
    """A row of another example's NaN must not reach its neighbours."""
    name, norm, goal = case
    attack = ATTACKS[name]
    x, y = batch[0].clone(), batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    x[2] = torch.nan
    ids, floor = torch.arange(7), timing.Floor(0.0, 0.0)
    target = torch.full_like(y, -1) if goal == "untargeted" else y
    examples = Examples(ids, x, batch[1], target, batch[1], torch.ones(7), torch.ones(7))
    params = attack.params(**short_params(name))
    spec = AttackSpec(
        name=name, attack=attack, params=params, norm=norm, eps=(EPS[norm],), goal=goal
    )
    (frame,) = chunk.evaluate_chunk(net, spec, examples, 7, floor).records
    assert (frame["violation"] != "").tolist() == [i == 2 for i in range(7)]
