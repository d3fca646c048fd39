"""Why two attacks disagree: planted differences, each of which must be named."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import cli
from bench.analysis import explanations, results
from bench.analysis.explanations import Explanation
from bench.core.errors import RecordError, SuiteError
from bench.execution import options as execution_options
from bench.execution import runner
from bench.reporting.report import crosscheck_view
from bench.suite import reader
from bench.workflows.explain import search

USER = '''
"""Attacks that declare nothing, and a net that is sure of itself: what a user may bring."""

import dataclasses
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from bench import Attack
from bench.models.published_weights import WEIGHTS
from bench.models import lenet


@dataclass(frozen=True, kw_only=True)
class Params:
    share: float = 0.1
    """Of eps, that one step covers."""
    count: int = 10


def climb(model, x, y, threat, params, loss, far=1.0, after=lambda momentum, gradient: gradient):
    x_adv, momentum = x.clone(), torch.zeros_like(x)
    for _ in range(params.count):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(x_adv), y), x_adv)
        momentum = after(momentum, gradient)
        x_adv = x_adv.detach() + params.share * threat.eps * momentum.sign()
        x_adv = (x + (x_adv - x).clamp(-far * threat.eps, far * threat.eps)).clamp(0, 1)
    return x_adv


def ascent(model, x, y, threat, params, noise):
    return climb(model, x, y, threat, params, F.cross_entropy)


def signs_first(model, x, y, threat, params, noise):
    """MI-FGSM as Foolbox 3.3 has it: the momentum gathers signs."""
    after = lambda momentum, gradient: momentum + gradient.sign()
    return climb(model, x, y, threat, params, F.cross_entropy, after=after)


def lead(z, y):
    """How far the largest other output is ahead, summed up."""
    own = F.one_hot(y, z.shape[1]).bool()
    return (z.masked_fill(own, -torch.inf).amax(1) - z[own]).sum()


def on_probabilities(model, x, y, threat, params, noise):
    return climb(model, x, y, threat, params, lambda z, y: lead(z.softmax(1), y))


def for_log_probabilities(model, x, y, threat, params, noise):
    return climb(model, x, y, threat, params, F.nll_loss)


def for_positive_logits(model, x, y, threat, params, noise):
    def masked(z, y):
        own = F.one_hot(y, z.shape[1])
        return ((1 - own) * z).amax(1).sum() - (own * z).sum()

    return climb(model, x, y, threat, params, masked)


def too_far(model, x, y, threat, params, noise):
    twice = dataclasses.replace(params, share=0.2)
    return climb(model, x, y, threat, twice, F.cross_entropy, far=1.001)


def in_double(model, x, y, threat, params, noise):
    at = x.double().requires_grad_()
    net = nn.Sequential(model).double()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(at), y), at)
    net.float()
    return (x + threat.eps * gradient.sign().float()).clamp(0, 1)


def foolboxs(model, x, y, threat, params, noise):
    import foolbox

    net = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfMomentumIterativeFastGradientMethod(rel_stepsize=0.1, steps=10)
    return attack(net, x, y, epsilons=threat.eps)[1]


def backwards(model, x, y, threat, params, noise):
    return climb(model, x, y, threat, params, lambda z, y: -F.cross_entropy(z, y))


def attack(run):
    return Attack(summary="s", source="s", params=Params, norms=("linf",), run=run)


ASCENT, SIGNS, PROBABILITIES = attack(ascent), attack(signs_first), attack(on_probabilities)
LOG_PROBABILITIES, POSITIVE = attack(for_log_probabilities), attack(for_positive_logits)
FAR, DOUBLE, BACKWARDS = attack(too_far), attack(in_double), attack(backwards)
FOOLBOX = attack(foolboxs)


class Net(nn.Module):
    """LeNet on waves, its logits scaled and shifted."""

    def __init__(self, wave=0.0, factor=1.0, shift=0.0):
        super().__init__()
        self.net, self.wave, self.factor, self.shift = lenet.build(), wave, factor, shift
        self.net.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))

    def forward(self, x):
        return self.factor * self.net(x + self.wave * torch.sin(100 * x)) + self.shift
'''
SUITE = """
schema = 1
name = "pair"
stop = "never"
[data]
name = "digits"
limit = {limit}
[[models]]
name = {model}
label = "net"
[[attacks]]
label = "ours"
norm = "linf"
eps = [{eps}]
{ours}
[[attacks]]
label = "theirs"
norm = "linf"
eps = [{eps}]
{theirs}
"""
LENET = '"lenet"\nweights = "digits"'
SURE, SURER, WAVY, LOW = (
    f'"user.py:Net"\nparams = {{{text}}}'
    for text in ("factor = 2.0", "factor = 8.0", "wave = 0.05", "shift = -50.0")
)
"""Nets with gradients that float32 rounds, or loses; that turn about; and with negative logits."""
BIM = 'name = "pgd"\nparams = {random_start = false, steps = 10, alpha = "eps/steps"}'
Explain = Callable[..., Explanation]


def options(limit: int | None = None) -> execution_options.RunOptions:
    return execution_options.RunOptions(device="cpu", limit=limit, command="bench explain")


@pytest.fixture
def explained(tmp_path: Path) -> Explain:
    """(ours, theirs, eps, limit, model: parts of a suite) -> what experiments tell."""
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")

    def ask(
        ours: str, theirs: str, *, eps: float = 0.1, limit: int = 40, model: str = LENET
    ) -> Explanation:
        text = SUITE.format(ours=ours, theirs=theirs, eps=eps, limit=limit, model=model)
        path = tmp_path / "pair.toml"
        path.write_text(text, encoding="utf-8")
        return search.explain_cells(str(path), "net/ours", "net/theirs", options(limit))

    return ask


def opening(result: Explanation) -> int:
    """How far the two disagreed, which must be enough to tell."""
    first = result.experiments[0]
    assert first.gap >= 6
    assert not first.closes
    assert len(result.only_ours) == first.only_ours_broke
    assert len(result.only_reference) == first.only_reference_broke
    return first.gap


def left(result: Explanation) -> int:
    """What the change that was named leaves of the gap, when tried alone."""
    (name,) = result.closed_by
    return next(actual.gap for actual in result.experiments if actual.change == name)


# ------------------------------------------------------------------ one difference, and its name


def test_a_step_size_that_does_not_grow_with_eps_is_found(explained: Explain) -> None:
    result = explained('name = "mifgsm"', 'name = "torchattacks:MIFGSM"', eps=0.3)
    assert opening(result) > 20
    reported = "step size: 0.00784314 instead of 0.03; it does not grow with eps"
    assert (result.closed_by, left(result)) == ((reported,), 0)
    assert result.cause == f"The first change that closes the gap is {reported} (0 left)."


def test_ten_steps_against_a_hundred_are_found(explained: Explain) -> None:
    ours = 'name = "apgd"\nstop = "first-success"'
    result = explained(ours, 'name = "torchattacks:APGD"', eps=0.1, limit=300)
    opening(result)
    assert result.closed_by == ("number of steps: 10 instead of 100",)


def test_momentum_of_signs_is_found_where_nothing_declares_it(explained: Explain) -> None:
    result = explained('name = "mifgsm"', 'name = "user.py:SIGNS"', eps=0.15, model=WAVY)
    opening(result)
    assert result.closed_by == ("gathers: directions instead of gradients",)
    assert left(result) == 0


def test_foolboxs_own_momentum_is_found(explained: Explain) -> None:
    pytest.importorskip("foolbox")
    result = explained('name = "mifgsm"', 'name = "user.py:FOOLBOX"', eps=0.15, model=WAVY)
    opening(result)
    assert result.closed_by == ("gathers: directions instead of gradients",)


def test_a_loss_on_probabilities_is_found(explained: Explain) -> None:
    ours = BIM.replace("}", ', loss = "logit-difference"}')
    result = explained(ours, 'name = "user.py:PROBABILITIES"', model=SURER)
    opening(result)
    assert result.closed_by == ("outputs: ours loses on probabilities, not logits",)
    assert left(result) == 0


def test_a_loss_that_wants_log_probabilities_is_found(explained: Explain) -> None:
    result = explained(BIM, 'name = "user.py:LOG_PROBABILITIES"')
    opening(result)
    assert result.closed_by == ("outputs: the reference is given log-probabilities",)
    assert left(result) == 0


def test_a_loss_that_takes_logits_to_be_positive_is_found(explained: Explain) -> None:
    ours = BIM.replace("}", ', loss = "logit-difference"}')
    result = explained(ours, 'name = "user.py:POSITIVE"', model=LOW)
    opening(result)
    assert result.closed_by == ("outputs: the reference is given logits above 0",)


def test_saturation_is_found_where_the_reference_computes_in_float64(explained: Explain) -> None:
    result = explained('name = "fgsm"', 'name = "user.py:DOUBLE"', eps=0.15, model=SURE)
    opening(result)
    assert result.closed_by == ("arithmetic: float64 on our side",)
    assert "The cause is saturation: the clean confidence of" in result.cause


def test_saturation_is_distinguished_from_a_loss_that_merely_avoids_it(explained: Explain) -> None:
    ours = 'name = "fgsm"\nparams = {loss = "margin"}'
    result = explained(ours, 'name = "torchattacks:FGSM"', eps=0.15, model=SURE)
    opening(result)
    reported = "loss: cross-entropy instead of margin"
    assert (result.closed_by, left(result)) == ((reported,), 0)
    assert "The cause is saturation" in result.cause
    again = result.experiments[-1]
    assert (again.change, again.closes) == (f"{reported}, in float64", False)


def test_another_start_is_found_and_shared(explained: Explain) -> None:
    ours = BIM.replace("steps = 10", "steps = 3")
    theirs = 'name = "torchattacks:PGD"\nparams = {steps = 3, alpha = "eps/3"}'
    result = explained(ours, theirs, limit=200, eps=0.08)
    opening(result)
    assert result.closed_by == ("start: the reference's own points (uniform in the ball)",)
    assert left(result) == 0


def test_images_that_leave_the_ball_are_found_to_be_refused(explained: Explain) -> None:
    result = explained(BIM.replace("eps/steps", "eps/5"), 'name = "user.py:FAR"')
    opening(result)
    assert result.closed_by == ("counting: images that break the threat model count as they fall",)


# ------------------------------------------------------------ several differences, none, and chance


def test_two_differences_are_joined_and_nothing_else_is(explained: Explain) -> None:
    theirs = 'name = "user.py:SIGNS"\nparams = {share = 0.07}'
    result = explained('name = "mifgsm"', theirs, eps=0.15, model=WAVY)
    opening(result)
    assert result.closed_by == (
        "step size: 0.0105 instead of 0.015", "gathers: directions instead of gradients",
    )  # fmt: skip
    assert "No change closes the gap alone; together these do" in result.cause


def test_what_no_experiment_closes_is_said_to_be_open(explained: Explain) -> None:
    result = explained('name = "fgsm"', 'name = "user.py:BACKWARDS"', limit=30)
    opening(result)
    assert result.closed_by == ()
    assert result.cause.startswith("No change closes the gap, alone or with others; ")
    assert "Not tried: number of steps" not in result.cause
    assert not any(actual.closes for actual in result.experiments)


def test_two_that_agree_need_no_explanation(explained: Explain) -> None:
    result = explained('name = "fgsm"', 'name = "torchattacks:FGSM"')
    (only,) = result.experiments
    assert (only.gap, only.closes, result.closed_by) == (0, True, ())
    assert result.cause.endswith("there is nothing to explain.")


def test_other_draws_of_the_same_attack_are_chance(explained: Explain) -> None:
    theirs = 'name = "torchattacks:PGD"\nparams = {steps = 3, alpha = "2.5*eps/steps"}'
    result = explained('name = "pgd"\nparams = {steps = 3}', theirs, limit=200, eps=0.08)
    assert result.experiments[0].gap > 1
    assert result.cause.startswith("That is chance: ")


# ------------------------------------------------------------------------------- what people type


def written(folder: Path) -> Path:
    text = SUITE.format(
        ours='name = "mifgsm"', theirs='name = "torchattacks:MIFGSM"', eps="0.1, 0.3", limit=40,
        model=LENET,
    )  # fmt: skip
    path = folder / "pair.toml"
    crosscheck = '[[crosschecks]]\nours = "ours"\nreference = "theirs"\n'
    path.write_text(text + crosscheck, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("net/our/0.3", "net/theirs/0.3", "did you mean 'net/ours/0.3'?"),
        ("ours", "net/theirs/0.3", "expected MODEL/ATTACK/EPS"),
        ("ours/0.1", "theirs/0.3", "expected the same eps on both sides, got 0.1 and 0.3"),
        ("ours/0.3", "net/ours/0.3", "expected two cells, got one twice"),
    ],
)
def test_a_cell_that_is_not_there_or_does_not_compare_is_the_users_mistake(
    ours: str, theirs: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(SuiteError) as raised:
        search.explain_cells(str(written(tmp_path)), ours, theirs, options())
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_names_the_command_keeps_what_it_finds_and_the_report_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed, words = CliRunner(), ["--device", "cpu"]
    runner.run_suite(reader.read_suite(str(written(tmp_path))), Path("out"), options())
    result = results.read_results(Path("out"))
    command = "bench explain . net/ours/0.3 net/theirs/0.3"
    assert crosscheck_view.list_explain_commands(result.crosschecks, result.explanations, {}) == [
        command
    ]
    said = typed.invoke(cli.cli, ["explain", "out", "net/ours/0.3", "net/theirs/0.3", *words])
    assert said.exit_code == 0
    assert "The first change that closes the gap is step size" in said.output
    assert typed.invoke(cli.cli, ["report", "out"]).exit_code == 0
    for name in ("report.md", "report.html"):
        page = Path("out", name).read_text(encoding="utf-8")
        assert "Explained by experiment: ours and theirs disagree on" in page
        assert command not in page


def test_an_explanation_is_kept_once_for_each_pair_of_cells_in_the_plan(tmp_path: Path) -> None:
    result = explanations.Experiment(
        change="", ours_robust=1, reference_robust=3, only_ours_broke=2, only_reference_broke=0,
        p_value=0.5, closes=False,
    )  # fmt: skip
    first = Explanation(
        model="net", ours="a", reference="b", norm="linf", eps_text="0.1", attacked=4,
        only_ours=(1, 3), only_reference=(), experiments=(result,), closed_by=("x",), cause="y",
        cells=("1", "2"),
    )  # fmt: skip
    second = dataclasses.replace(first, cause="z")
    explanations.write_explanation(tmp_path, first)
    explanations.write_explanation(tmp_path, dataclasses.replace(first, cells=("1", "3")))
    explanations.write_explanation(tmp_path, second)
    assert explanations.read_explanations(tmp_path, {"1", "2"}) == [second]
    assert len(explanations.read_explanations(tmp_path, {"1", "2", "3"})) == 2
    (tmp_path / explanations.FILE).write_text('{"schema": 2}', encoding="utf-8")
    with pytest.raises(RecordError, match="use the bench that wrote it"):
        explanations.read_explanations(tmp_path, {"1"})
