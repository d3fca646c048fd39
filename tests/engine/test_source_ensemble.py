"""Several models as one source: what is averaged, what is planned and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.contracts.types import Combination
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.engine.source_ensemble import SourceEnsemble
from bench.evaluation import make_evaluator
from bench.evaluation.evaluator import Evaluator
from bench.suite import plan
from bench.suite.reader import parse_suite

Attacked = Callable[..., Any]
COMBINATIONS: tuple[Combination, ...] = ("logits", "losses", "gradients")
WEIGHTS = (0.25, 0.75)


def build_net(seed: int, size: float = 1.0) -> nn.Module:
    """A small net for images of 28 x 28, whose logits grow with `size`."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        net[3].weight *= size
    return net.eval().requires_grad_(False)


@pytest.fixture
def few(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][:8].double(), digits[1][:8]


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_pass_averages_what_it_says(combine: Combination, few: tuple[Tensor, Tensor]) -> None:
    members, (x, y) = [build_net(0), build_net(1, size=30.0)], few
    loss = make_objective("cross-entropy", "untargeted")
    found = gradient_pass(SourceEnsemble(members, WEIGHTS, combine), loss, x, y, y)
    with torch.enable_grad():
        at = x.clone().requires_grad_()
        logits = [net(at) for net in members]
        losses = [nn.functional.cross_entropy(z, y, reduction="none") for z in logits]
        mean = sum(w * z for w, z in zip(WEIGHTS, logits, strict=True))
        gradients = [
            torch.autograd.grad(each.sum(), at, retain_graph=True)[0]
            for each in (*losses, nn.functional.cross_entropy(mean, y, reduction="none"))
        ]
    sizes = [each.abs().sum((1, 2, 3), keepdim=True) for each in gradients]
    expected = {
        "logits": gradients[2],
        "losses": WEIGHTS[0] * gradients[0] + WEIGHTS[1] * gradients[1],
        "gradients": WEIGHTS[0] * gradients[0] / sizes[0] + WEIGHTS[1] * gradients[1] / sizes[1],
    }[combine]
    torch.testing.assert_close(found.logits, mean.detach())
    torch.testing.assert_close(found.gradient, expected)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_model_averaged_with_itself_is_that_model(
    combine: Combination, few: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    net, (x, y) = build_net(0), few
    ensemble = SourceEnsemble([net, net], WEIGHTS, combine)
    alone, both = (attacked(m, x, y, "pgd", 0.1, params={"steps": 5}) for m in (net, ensemble))
    assert torch.equal(alone.x_adv, both.x_adv)
    assert torch.equal(alone.forwards, both.forwards)


SUITE = """
schema = 1
name = "sources"
[data]
name = "digits"
limit = 12
[[models]]
name = "lenet"
weights = "digits"
[[models]]
name = "mine.py:make"
label = "a"
[[models]]
name = "mine.py:make"
label = "b"
params = { seed = 1 }
[[attacks]]
name = "bim"
norm = "linf"
eps = [0.2]
source = SOURCE

"""
MINE = """
import torch
from torch import nn

def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


def load(
    folder: Path, source: str, name: str = "bim", steps: int | None = None
) -> tuple[Evaluator, list[plan.AttackTask]]:
    """The evaluator and the tasks of the suite with one source."""
    (folder / "mine.py").write_text(MINE)
    text = SUITE.replace("SOURCE", source).replace('"bim"', f'"{name}"')
    text += f"params = {{ steps = {steps} }}\n" if steps else ""
    suite = parse_suite(text, "sources.toml", folder)
    evaluator = make_evaluator.from_suite(
        suite, torch.device("cpu"), Path(), batch_size=8, use_acceleration=False
    )
    facts = {label: evaluator.model_facts(label) for label in evaluator.models}
    return evaluator, plan.plan_tasks(suite, facts)


BOTH = '{ models = ["a", "b"] }'


def test_a_suite_crafts_on_several_models_and_judges_each(tmp_path: Path) -> None:
    evaluator, tasks = load(tmp_path, BOTH)
    assert [task.spec.stop for task in tasks] == ["never"] * 3
    cells = [task.cells[0] for task in tasks]
    assert {(cell.attack, cell.source) for cell in cells} == {("bim from a + b", "a + b")}
    inside = "white-box, one of the sources"
    assert [cell.threat_model for cell in cells] == ["black-box, transfer", inside, inside]
    found = evaluator.evaluate_chunk(tasks[0], 0, 12)
    members = [evaluator.models[label].model for label in ("a", "b")]
    x, y = evaluator.data.read(0, 12), evaluator.data.labels
    direct = bench.evaluate(
        evaluator.models["lenet"].model, x, y, attack="bim", eps=0.2, source=members,
        keep_adversarial=True, device="cpu", copied=False, audit=False, batch_size=8,
    )  # fmt: skip
    assert direct.adversarial is not None
    assert torch.equal(found.x_adv, direct.adversarial)
    assert found.frame["fooled"].tolist() == direct.records["fooled"].tolist()
    again = evaluator.evaluate_chunk(tasks[2], 0, 12)
    attacked = found.frame["attacked"].to_numpy() & again.frame["attacked"].to_numpy()
    assert torch.equal(again.x_adv[0, attacked], found.x_adv[0, attacked])  # of one source


def test_members_weights_and_what_is_averaged_belong_to_the_identity(tmp_path: Path) -> None:
    sources = [
        BOTH,
        '{ models = ["b", "a"] }',
        '{ models = ["a", "lenet"] }',
        '{ models = ["a", "b"], combine = "losses" }',
        '{ models = ["a", "b"], combine = "gradients" }',
        '{ models = ["a", "b"], weights = [1, 2] }',
        '"a"',
    ]
    identities = [load(tmp_path, each)[1][0].cells[0].identity for each in sources]
    assert len(set(identities)) == len(sources)
    renamed = load(tmp_path, '{ models = ["a", "b"], weights = [3, 3], label = "two" }')[1][0]
    assert renamed.cells[0].identity == identities[0]
    assert renamed.cells[0].source == "two"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ('{ models = ["a", "lenett"] }', "did you mean 'lenet'"),
        ('{ models = ["a"] }', "expected at least two models, each once, got ['a']"),
        ('{ models = ["a", "a"] }', "expected at least two models, each once"),
        ('{ models = ["a", "b"], weights = [1] }', "expected a weight for each model"),
        ('{ models = ["a", "b"], weights = [0, 0] }', "with a sum above 0"),
        ('{ models = ["a", "b"], weights = [1, -1] }', "weights"),
        ('{ models = ["a", "b"], combine = "loss" }', "combine"),
        ('{ models = ["a", "b"], label = "lenet" }', "expected a name that no model has"),
        ('{ model = ["a", "b"] }', "did you mean 'models'"),
    ],
)
def test_a_source_of_several_models_is_checked(source: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(bench.SuiteError) as found:
        load(tmp_path, source)
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        ('{ models = ["a", "lenet"], label = "pair" }', True),
        ('{ models = ["a", "b"], combine = "losses", label = "pair" }', True),
        ('{ models = ["a", "b"], weights = [1, 2], label = "pair" }', True),
        ('{ models = ["a", "b"], weights = [2, 2], label = "pair" }', False),
        ('{ models = ["a", "lenet"], label = "others" }', False),
    ],
)
def test_two_sources_of_several_models_have_two_labels(
    other: str, refused: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    first, second = (
        SUITE.replace("SOURCE", source).partition("[[attacks]]")
        for source in ('{ models = ["a", "b"], label = "pair" }', other)
    )
    text = "".join([*first, '\nlabel = "earlier"\n', *second[1:]])
    if refused:
        with pytest.raises(bench.SuiteError, match="got 'pair' for two of attacks 'earlier from"):
            parse_suite(text, "sources.toml", tmp_path)
    else:
        assert len(parse_suite(text, "sources.toml", tmp_path).attacks) == 2


@pytest.mark.parametrize("models", ["[]", '["lenet"]'])
def test_a_source_of_too_few_models_is_one_mistake(models: str, tmp_path: Path) -> None:
    with pytest.raises(bench.SuiteError) as found:
        load(tmp_path, f"{{ models = {models} }}")
    (problem,) = found.value.problems
    assert "expected at least two models, each once" in problem


def test_a_loss_of_the_user_belongs_to_one_model(tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text("def mine(logits, labels, images):\n    return -labels\n")
    with pytest.raises(bench.SuiteError, match="expected one model: a user's loss"):
        load(tmp_path, BOTH + '\nparams = { loss = "loss.py:mine" }')


@pytest.mark.parametrize(("name", "steps"), [("square", 10), ("torchattacks:FGSM", None)])
def test_attacks_that_ask_or_bring_their_own_loop_have_such_a_source_too(
    name: str, steps: int | None, tmp_path: Path
) -> None:
    evaluator, tasks = load(tmp_path, '{ models = ["a", "b"], combine = "losses" }', name, steps)
    if tasks[0].cells[0].reason:
        pytest.skip(tasks[0].cells[0].reason)
    with torch.no_grad():
        found = evaluator.evaluate_chunk(tasks[1], 0, 12).frame
    assert (found["violation"] == "").all()


def test_members_are_given_back_in_the_mode_in_which_they_came(
    digits: tuple[Tensor, Tensor],
) -> None:
    nets = {
        name: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10)) for name in "abc"
    }
    nets["b"][1].eval()
    modes = [[module.training for module in net.modules()] for net in nets.values()]
    entry = {"name": "fgsm", "eps": 0.1, "source": {"models": ["a", "b"]}}
    found = bench.benchmark(nets, (digits[0][:4], digits[1][:4]), attacks=[entry], device="cpu")
    assert (found.table["status"] == "ok").all()
    assert [[module.training for module in net.modules()] for net in nets.values()] == modes
