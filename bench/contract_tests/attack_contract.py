"""The contract of attacks, as tests on a small net; the module that collects them sets NAMES.

A module with `from bench.contract_tests.attack_contract import *` and a list NAMES runs every test
for every norm and goal of each attack in the list. The results of a case with three rows per pass
and with one are computed once and read by several tests. A module whose attacks need other params
than `choose_params` returns defines the fixture `quick_params` itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.types import BALLS, Goal, Norm, Stop
from bench.engine import stream, timing
from bench.engine.functional import norms
from bench.engine.threats.registry import find_threat
from bench.evaluation import chunk, make_evaluator, metrics
from bench.evaluation.crafting import Examples
from bench.evaluation.evaluator import ChunkResult, Evaluator
from bench.suite import plan
from bench.suite.reader import parse_attack

CLASSES = 4
EPS: dict[Norm, float] = {
    **{norm: find_threat(norm).example_levels[1] for norm in get_args(Norm) if norm not in BALLS},
    "linf": 0.2, "l2": 1.2, "l1": 6.0, "l0": 12.0,
}  # fmt: skip
"""A radius of each norm that a good attack on the small net can use."""
WITHOUT_SCORES = ("labels", "nothing")
"""What an attack may need that sees neither gradients nor scores: no success is required of it."""
Case = tuple[str, Norm, Goal]
Batch = tuple[Tensor, Tensor]
ParamsChooser = Callable[[str], dict[str, Any]]


def list_cases(names: list[str]) -> list[Case]:
    """List every norm and goal of attacks.

    Args:
        names: Registered names.

    Returns:
        Name, norm and goal of each test.
    """
    found = [(name, registry.find("attacks", name)) for name in names]
    return [
        (name, norm, goal)
        for name, attack in found
        if not attack.unavailable
        for norm in attack.norms
        for goal in attack.goals
    ]


def list_rules(names: list[str]) -> list[str]:
    """List the attacks whose images the engine projects: rules with a budget.

    Args:
        names: Registered names.

    Returns:
        The names of iterative attacks that run at each eps.
    """
    found = [(name, registry.find("attacks", name)) for name in names]
    return [
        name
        for name, attack in found
        if isinstance(attack, IterativeAttack) and attack.budget == "fixed"
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test for the attacks that its module names.

    A test that takes `name` runs for each attack, one that takes `case` for each norm and goal,
    and one that takes `rule_case` for each norm and goal of the rules alone. Cases have the scope
    of a module, so that results of that scope can be computed from them.

    Args:
        metafunc: The test that pytest collects.
    """
    names = list(getattr(metafunc.module, "NAMES", ()))
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names)
    for argument, chosen in (("case", names), ("rule_case", list_rules(names))):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list_cases(chosen), ids="-".join, scope="module")


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


def build_linear_net() -> nn.Module:
    """Build a net with logits w x + b whose largest logit differs among the seven images.

    Returns:
        A net for the images of `make_images`, in evaluation mode.
    """
    layer = nn.Linear(64, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(1)))
        layer.bias.copy_(-layer.weight @ make_images().flatten(1).mean(0))
    return nn.Sequential(nn.Flatten(), layer).eval()


def label_images(net: nn.Module) -> Batch:
    """Label the seven images with the predictions of a net.

    Args:
        net: The model.

    Returns:
        Images (7, 1, 8, 8) and labels (7,) on which the net is right.
    """
    with torch.no_grad():
        return make_images(), net(make_images()).argmax(1)


def build_evaluator(net: nn.Module, rows: int, seed: int = 0) -> Evaluator:
    """Build the evaluator of a net on the seven images, on the CPU.

    The net itself is attacked: which accelerated model replaces it, and so the rounding of the
    logits, depends on a timing.

    Args:
        net: The model, in evaluation mode.
        rows: Rows per pass.
        seed: Seed of every draw.

    Returns:
        The evaluator, which many cases can share.
    """
    return make_evaluator.from_tensors(
        net, *label_images(net), torch.device("cpu"), batch_size=rows, seed=seed,
        use_acceleration=False,
    )  # fmt: skip


def evaluate_case(
    evaluator: Evaluator, case: Case, params: dict[str, Any], eps: list[float] | None = None
) -> ChunkResult:
    """Attack, verify and judge the images of an evaluator.

    Args:
        evaluator: The evaluator of one model.
        case: Name, norm and goal.
        params: Params of the attack that differ from the defaults.
        eps: Radii; the one of `EPS` unless given.

    Returns:
        Records and adversarial images.
    """
    attack, norm, goal = case
    raw: dict[str, Any] = {
        "name": attack,
        "norm": norm,
        "goal": goal,
        "params": params,
        "stop": "first-success",
        "eps": [EPS[norm]] if eps is None else eps,
    }
    if goal == "targeted":
        raw["target"] = "next"
    (label,) = evaluator.models
    facts = evaluator.model_facts(label)
    entry = parse_attack(raw, "this test")
    task = plan.plan_task(label, entry, facts, evaluator.seed, "independent")
    assert not task.cells[0].reason
    return evaluator.evaluate_chunk(task, 0, evaluator.data.n)


def make_spec(
    case: Case, params: dict[str, Any], eps: float, stop: Stop = "first-success"
) -> AttackSpec:
    """Make the spec of a case at one radius, for the engine alone.

    Args:
        case: Name, norm and goal.
        params: Params of the attack that differ from the defaults.
        eps: The radius.
        stop: When an example leaves the attack.

    Returns:
        The spec of one attack at one eps.
    """
    name, norm, goal = case
    attack = registry.find("attacks", name)
    return AttackSpec(
        name=name, attack=attack, params=attack.params(**params), norm=norm, eps=(eps,), goal=goal,
        stop=stop,
    )  # fmt: skip


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
    """The seven images, with labels on which the small net is right."""
    return label_images(net)


@pytest.fixture(scope="module")
def quick_params() -> ParamsChooser:
    """Name -> params with which the attack is quick; a module may define this fixture itself."""
    return choose_params


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """The evaluator of the small net, with three rows per pass."""
    return build_evaluator(build_small_net(), rows=3)


@pytest.fixture(scope="module")
def one_row_evaluator() -> Evaluator:
    """The evaluator of the small net, with one row per pass."""
    return build_evaluator(build_small_net(), rows=1)


@pytest.fixture(scope="module")
def other_seed_evaluator() -> Evaluator:
    """The evaluator of the small net with another seed."""
    return build_evaluator(build_small_net(), rows=3, seed=1)


@pytest.fixture(scope="module")
def linear_evaluator() -> Evaluator:
    """The evaluator of the linear net."""
    return build_evaluator(build_linear_net(), rows=7)


@pytest.fixture(scope="module")
def training_evaluator() -> Evaluator:
    """The evaluator of the small net in the middle of training: mixed modes, a gradient."""
    evaluator = build_evaluator(build_small_net(), rows=3)
    (loaded,) = evaluator.models.values()
    model: Any = loaded.model
    model.train()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return evaluator


@pytest.fixture(scope="module")
def three_row_result(case: Case, evaluator: Evaluator, quick_params: ParamsChooser) -> ChunkResult:
    """The result of a case with three rows per pass."""
    return evaluate_case(evaluator, case, quick_params(case[0]))


@pytest.fixture(scope="module")
def one_row_result(
    case: Case, one_row_evaluator: Evaluator, quick_params: ParamsChooser
) -> ChunkResult:
    """The result of a case with one row per pass."""
    return evaluate_case(one_row_evaluator, case, quick_params(case[0]))


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


@pytest.mark.parametrize("fixture", ["three_row_result", "one_row_result"])
def test_an_attack_returns_images_of_the_threat_model(
    case: Case, fixture: str, request: pytest.FixtureRequest
) -> None:
    found: ChunkResult = request.getfixturevalue(fixture)
    (x_adv,), records, x = found.x_adv, found.frame, make_images()
    attack, eps = registry.find("attacks", case[0]), EPS[case[1]]
    minimum = attack.budget == "minimum"
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert (records["violation"] == "").all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if case[1] not in BALLS:  # the family's own verification is in the records
        assert not torch.equal(x_adv, x)
        return
    moved = norms.distance(x_adv.double(), x.double(), case[1])
    assert minimum or (moved <= eps + 1e-6 + 1e-5 * eps).all()
    early = minimum or records["fooled"].all()  # each stopped at its first success
    assert moved.max() > (0 if early else eps / 2)  # it did attack
    promised = attack.scale_free or not minimum
    assert records["fooled"].any() or attack.needs in WITHOUT_SCORES or not promised


def test_the_same_seed_gives_the_same_bits_and_model_and_generators_remain_unchanged(
    case: Case,
    three_row_result: ChunkResult,
    training_evaluator: Evaluator,
    quick_params: ParamsChooser,
) -> None:
    """Also where the caller trains the model: it is measured in evaluation mode."""
    (loaded,) = training_evaluator.models.values()
    state, generator = collect_state(loaded.model), torch.get_rng_state()
    again = evaluate_case(training_evaluator, case, quick_params(case[0]))
    assert torch.equal(again.x_adv, three_row_result.x_adv)
    assert again.frame.equals(three_row_result.frame)
    assert collect_state(loaded.model) == state
    assert torch.equal(torch.get_rng_state(), generator)


def test_another_seed_gives_other_bits_if_and_only_if_the_attack_says_it_is_stochastic(
    case: Case,
    three_row_result: ChunkResult,
    other_seed_evaluator: Evaluator,
    quick_params: ParamsChooser,
) -> None:
    other = evaluate_case(other_seed_evaluator, case, quick_params(case[0]))
    differ = not torch.equal(other.x_adv, three_row_result.x_adv)
    assert differ == registry.find("attacks", case[0]).stochastic


def test_an_example_does_not_depend_on_its_batch_unless_the_attack_says_so(
    case: Case, three_row_result: ChunkResult, one_row_result: ChunkResult
) -> None:
    if registry.find("attacks", case[0]).batch_dependent:
        pytest.skip("the attack declares that its results depend on the batch")
    assert one_row_result.frame["fooled"].equals(three_row_result.frame["fooled"])
    assert torch.allclose(one_row_result.x_adv, three_row_result.x_adv, rtol=0, atol=1e-4)


def test_a_larger_ball_never_leaves_more_robust_on_a_linear_net(
    case: Case, linear_evaluator: Evaluator, quick_params: ParamsChooser
) -> None:
    attack = registry.find("attacks", case[0])
    if attack.needs in WITHOUT_SCORES:
        pytest.skip("no success is required of an attack that sees neither gradients nor scores")
    if case[1] not in BALLS:
        pytest.skip("a family need not contain its images of a lower level")
    eps = [EPS[case[1]] * factor for factor in (0.0, 0.25, 1.0, 2.0)]
    records = evaluate_case(linear_evaluator, case, quick_params(case[0]), eps).frame
    robust = metrics.robust_examples(records).groupby(records["eps"]).sum().tolist()
    assert robust == sorted(robust, reverse=True)
    assert robust[0] == 7
    assert robust[-1] < 7 or (attack.budget == "minimum" and not attack.scale_free)


def test_the_ball_of_radius_0_returns_the_image_itself_to_the_bit(
    rule_case: Case, net: nn.Module, batch: Batch, quick_params: ParamsChooser
) -> None:
    name, _, goal = rule_case
    x, y = batch[0], batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    has_alpha = hasattr(registry.find("attacks", name).params, "alpha")
    for alpha in [{}, {"alpha": 0.1}] if has_alpha else [{}]:
        spec = make_spec(rule_case, quick_params(name) | alpha, 0.0, "never")
        found = stream.run_attack(net, spec, x, y, torch.arange(7), 7)
        assert torch.equal(found.x_adv[0], make_images()), alpha


def test_rows_do_not_read_each_other(
    case: Case, net: nn.Module, batch: Batch, quick_params: ParamsChooser
) -> None:
    """A row of another example's NaN must not reach its neighbours."""
    name, norm, goal = case
    if registry.find("attacks", name).batch_dependent:
        pytest.skip("the attack declares that its results depend on the batch")
    x, y = batch[0].clone(), batch[1]
    x[2] = torch.nan
    target = torch.full_like(y, -1) if goal == "untargeted" else (y + 1) % CLASSES
    examples = Examples(torch.arange(7), x, y, target, y, torch.ones(7), torch.ones(7))
    spec = make_spec(case, quick_params(name), EPS[norm])
    (frame,) = chunk.evaluate_chunk(net, spec, examples, 7, timing.Floor(0.0, 0.0)).records
    assert (frame["violation"] != "").tolist() == [i == 2 for i in range(7)]
