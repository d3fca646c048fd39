"""The audit: it names known traps for what they are, and is silent on a net that hides nothing."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import bench
from bench.analysis import results
from bench.cli import cli
from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.types import Threat
from bench.core.errors import RecordError
from bench.evaluation.audit import checks, findings, gradient_check, probes, symptoms
from bench.evaluation.audit.evidence import AttackedCell
from bench.evaluation.audit.symptoms import ObservedSymptom, Symptom
from bench.reporting.report import audit_view
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell

HERE = Path(__file__).parents[1] / "helpers"
N = 100
STEPS = {"steps": "10", "restarts": "1", "alpha": "0.01", "loss": "cross-entropy"}
SCORES, LABELS = "black-box, score-based", "black-box, decision-based"

# --------------------------------------------------------------- symptoms in the records: pairs


def run(broken: Collection[int], n: int = N, **keys: Any) -> AttackedCell:
    """A finished cell, by default of an iterated white-box attack, that broke these examples."""
    columns = keys.pop("records", {})
    given: dict[str, Any] = {
        "model": "net", "attack": "mine", "name": "mine", "implementation": "bench",
        "norm": "linf", "eps": 0.1, "eps_text": "0.1", "goal": "untargeted", "target": "",
        "stop": "first-success", "identity": "", "reason": "", "passes": 10.0, "gradients": 10.0,
        "traits": STEPS, "caveats": (), "family": "mine",
    }  # fmt: skip
    cell = Cell(**{**given, **keys})
    won = pd.Series([k in broken for k in range(n)])
    asked = 0.0 if cell.passes == 0 else 10.0
    rows = pd.DataFrame(
        {
            "label": [k % 10 for k in range(n)],
            "target": -1,
            "adv_pred_8bit": [(k + won[k]) % 10 for k in range(n)],
            "first_success_step": [3 if each else -1 for each in won],
            "violation": "",
            "distance": float("nan"),
            "clean_confidence": 0.9,
            "rejection": -1,
            "rejected_is_robust": False,
            "certified": False,
            cell.norm: cell.eps,
            "forwards": asked,
            "backwards": asked,
        }
    )
    return AttackedCell(cell, won, rows.assign(**columns))


def check(kind: Symptom, *runs: AttackedCell) -> list[ObservedSymptom] | None:
    """What the check for one kind says of the runs on "net"; those on other models stand beside."""
    applies, _ = checks.CHECKS[kind.name]
    return applies([each for each in runs if each.cell.model == "net"], runs)


def other(key: str, value: str) -> dict[str, Any]:
    return {"attack": f"mine, {key} {value}", "traits": {**STEPS, key: value}}


SOME, MOST = range(40), range(60)
PAIRS = {  # against, and by what
    "steps": (symptoms.MORE_STEPS_WORSE, run(SOME, **other("steps", "40")), run(MOST)),
    "restarts": (symptoms.MORE_RESTARTS_WORSE, run(SOME, **other("restarts", "5")), run(MOST)),
    "eps": (symptoms.LARGER_EPS_WORSE, run(SOME, eps=0.2, eps_text="0.2"), run(MOST)),
    "loss": (symptoms.SATURATED_LOSS, run(SOME), run(MOST, **other("loss", "margin"))),
    "one step": (symptoms.ONE_STEP_STRONGER, run(SOME), run(MOST, **other("steps", "1"))),
    "scores": (symptoms.BLACK_BOX_STRONGER, run(SOME), run(MOST, threat_model=SCORES)),
    "transfer": (
        symptoms.BLACK_BOX_STRONGER,
        run(SOME),
        run(MOST, threat_model="black-box, transfer"),
    ),
    "noise": (symptoms.NOISE_AS_STRONG, run(SOME), run(MOST, threat_model=LABELS, passes=0.0)),
}
pairs = pytest.mark.parametrize(("kind", "against", "by"), PAIRS.values(), ids=PAIRS)


@pairs
def test_what_should_do_better_and_does_worse_is_a_symptom(
    kind: Symptom, against: AttackedCell, by: AttackedCell
) -> None:
    (symptom,) = check(kind, against, by) or []
    assert (symptom.name, symptom.n, symptom.eps) == (kind.name, N, against.cell.eps)
    assert set(range(40, 60)) <= set(symptom.examples)
    assert symptom.count == len(symptom.examples)
    assert symptom.attack in (against.cell.attack, checks.ALL_WHITE_BOX)


@pairs
def test_a_handful_that_falls_the_other_way_is_no_symptom(
    kind: Symptom, against: AttackedCell, by: AttackedCell
) -> None:
    lucky = {*range(30), *range(50, 54)}
    few = by.records.assign(first_success_step=-1)
    assert check(kind, against, by._replace(broken=run(lucky).broken, records=few)) == []


@pairs
def test_without_its_pair_a_symptom_is_not_looked_for(
    kind: Symptom, against: AttackedCell, by: AttackedCell
) -> None:
    alone = [] if kind is symptoms.SATURATED_LOSS else None  # which a clean confidence tells, too
    assert check(kind, against) == alone
    elsewhere = by._replace(cell=by.cell.__class__(**{**vars(by.cell), "norm": "l2"}))
    assert check(kind, against, elsewhere) == alone


def test_attacks_of_other_names_are_not_one_attack_with_more_steps() -> None:
    assert (
        check(
            symptoms.MORE_STEPS_WORSE, run(SOME, **other("steps", "40"), name="theirs"), run(MOST)
        )
        is None
    )


def test_one_step_may_do_worse_at_a_larger_eps() -> None:
    large = run(SOME, **{**other("steps", "1"), "attack": "mine"}, eps=0.9, eps_text="0.9")
    small = run(MOST, **{**other("steps", "1"), "attack": "mine"})
    assert check(symptoms.LARGER_EPS_WORSE, large, small) is None


def test_a_few_that_only_scores_break_are_what_autoattack_warns_of() -> None:
    square = run({*range(10), *range(90, 95)}, threat_model=SCORES)
    (symptom,) = check(symptoms.BLACK_BOX_STRONGER, run(range(80)), square) or []
    assert symptom.examples == tuple(range(90, 95))
    assert check(symptoms.BLACK_BOX_STRONGER, run(range(91)), square) == []


def test_black_boxes_are_held_against_all_white_boxes_together() -> None:
    halves = run(range(40)), run(range(40, 80), attack="other half")
    assert check(symptoms.BLACK_BOX_STRONGER, *halves, run(range(60), threat_model=SCORES)) == []


def test_an_ensemble_that_holds_an_attack_by_scores_does_not_cover_for_gradients() -> None:
    ensemble = run(MOST, attack="ensemble", traits={**STEPS, "parts": "gradients, scores"})
    scores = run(MOST, threat_model=SCORES)
    (symptom,) = check(symptoms.BLACK_BOX_STRONGER, run(SOME), ensemble, scores) or []
    assert symptom.examples == tuple(range(40, 60))
    assert check(symptoms.BLACK_BOX_STRONGER, ensemble, scores) is None


def test_noise_that_breaks_nothing_or_everything_says_nothing_of_a_gradient() -> None:
    for hit in (range(2), range(98)):
        assert (
            check(symptoms.NOISE_AS_STRONG, run(hit), run(hit, threat_model=LABELS, passes=0.0))
            == []
        )


def test_an_attack_that_asks_for_labels_is_no_noise() -> None:
    assert check(symptoms.NOISE_AS_STRONG, run(SOME), run(MOST, threat_model=LABELS)) is None
    assert check(symptoms.BLACK_BOX_STRONGER, run(SOME), run(MOST, threat_model=LABELS)) != []


# --------------------------------------------------------------- symptoms in the records: alone


@pytest.mark.parametrize(
    ("kind", "stop"),
    [(symptoms.LOST_SUCCESS, "first-success"), (symptoms.SILENT_SUCCESS, "never")],
    ids=str,
)
def test_a_success_that_was_seen_and_is_not_there_is_a_symptom(kind: Symptom, stop: str) -> None:
    seen = [3] * 50 + [-1] * 50
    (symptom,) = check(kind, run(SOME, stop=stop, records={"first_success_step": seen})) or []
    assert symptom.examples == tuple(range(40, 50))
    single = [3] * 42 + [-1] * 58
    assert check(kind, run(SOME, stop=stop, records={"first_success_step": single})) == []
    assert check(kind, run(SOME, stop="the library's own")) is None


def test_a_success_lost_to_a_violation_is_no_silent_one() -> None:
    spoilt = {"first_success_step": [3] * N, "violation": "linf distance 1, allowed 0.1"}
    assert check(symptoms.SILENT_SUCCESS, run(SOME, stop="never", records=spoilt)) == []


def test_successes_that_go_with_rounding_are_a_symptom() -> None:
    back = [k % 10 if k < 10 else (k + 1) % 10 for k in range(N)]
    (symptom,) = check(symptoms.LOST_BY_ROUNDING, run(SOME, records={"adv_pred_8bit": back})) or []
    assert symptom.examples == tuple(range(10))
    assert check(symptoms.LOST_BY_ROUNDING, run(SOME)) == []


def test_a_target_that_is_lost_with_rounding_is_a_symptom() -> None:
    reached = {"target": 3, "adv_pred_8bit": [3 if k >= 10 else 4 for k in range(N)]}
    (symptom,) = check(symptoms.LOST_BY_ROUNDING, run(SOME, goal="targeted", records=reached)) or []
    assert symptom.examples == tuple(range(10))


def test_what_is_left_at_eps_1_is_a_symptom_unless_all_are_of_one_class() -> None:
    whole = run(MOST, eps=1.0, eps_text="1")
    (symptom,) = check(symptoms.UNCONSTRAINED_FAILURE, whole) or []
    assert symptom.examples == tuple(range(60, N))
    assert check(symptoms.UNCONSTRAINED_FAILURE, run(range(N), eps=1.0)) == []
    assert check(symptoms.UNCONSTRAINED_FAILURE, run(MOST, eps=1.0, records={"label": 3})) is None
    assert check(symptoms.UNCONSTRAINED_FAILURE, run(MOST, eps=0.9)) is None
    assert check(symptoms.UNCONSTRAINED_FAILURE, run(MOST, eps=1.0, **other("steps", "1"))) is None


def test_a_transfer_that_stands_alone_and_fails_is_a_symptom() -> None:
    there = run(MOST, model="source")
    here = run(range(20), threat_model="black-box, transfer", source="source")
    (symptom,) = check(symptoms.TRANSFER_FAILURE, here, there) or []
    assert symptom.examples == tuple(range(20, 60))
    assert check(symptoms.TRANSFER_FAILURE, here._replace(broken=there.broken), there) == []
    assert (
        check(symptoms.TRANSFER_FAILURE, here, there, run(SOME)) is None
    )  # the model itself was attacked
    assert check(symptoms.TRANSFER_FAILURE, here) is None


def test_survivors_that_the_model_is_certain_of_are_a_symptom_unless_the_margin_leaves_them() -> (
    None
):
    sure = {"clean_confidence": [1.0 if k >= 40 else 0.9 for k in range(N)]}
    (symptom,) = check(symptoms.SATURATED_LOSS, run(SOME, records=sure)) or []
    assert (symptom.count, symptom.examples) == (60, tuple(range(40, N)))
    assert check(symptoms.SATURATED_LOSS, run(SOME)) == []
    few = {"clean_confidence": [1.0 if k >= 80 else 0.9 for k in range(N)]}
    assert check(symptoms.SATURATED_LOSS, run(SOME, records=few)) == []  # a third of what is left
    few = run(range(90), **other("steps", "40"))  # breaks all but ten of what the first left
    (symptom,) = (
        check(
            symptoms.SATURATED_LOSS,
            run(SOME, records=sure),
            few._replace(records=run(SOME, records=sure).records),
        )
        or []
    )
    assert (symptom.attack, symptom.count) == (checks.ALL_WHITE_BOX, 10)
    strong = run(range(N), **other("steps", "40"))
    assert (
        check(symptoms.SATURATED_LOSS, run(SOME, records=sure), strong) == []
    )  # the worst case is right
    margin = run(SOME, **other("loss", "margin"))
    assert check(symptoms.SATURATED_LOSS, run(SOME, records=sure), margin) == []


def test_an_attack_that_hardly_moves_what_it_leaves_is_no_evidence() -> None:
    (symptom,) = check(symptoms.UNUSED_BUDGET, run(SOME, records={"linf": 0.04})) or []
    assert (symptom.count, symptom.n, symptom.attack) == (60, N, "mine")
    assert "0.4 of eps" in symptom.evidence
    assert check(symptoms.UNUSED_BUDGET, run(SOME, records={"linf": 0.06})) == []
    assert (
        check(symptoms.UNUSED_BUDGET, run(range(N), records={"linf": 0.04})) == []
    )  # nothing was left
    (symptom,) = check(symptoms.UNUSED_BUDGET, run(range(N - 1), records={"linf": 0.0})) or []
    assert symptom.count == 1  # of one
    theirs = run(SOME, implementation="library", records={"linf": 0.0})
    assert (
        check(symptoms.UNUSED_BUDGET, theirs) == []
    )  # gives back the clean image where it finds nothing
    ensemble = run(SOME, traits={"parts": "several"}, records={"linf": 0.0})
    assert check(symptoms.UNUSED_BUDGET, ensemble) is None
    assert check(symptoms.UNUSED_BUDGET, run(SOME, budget="minimum")) is None


def test_a_search_that_others_beat_inside_its_distance_is_a_symptom() -> None:
    far: dict[str, Any] = {"attack": "search", "name": "search", "budget": "minimum", "eps": 0.3}
    search = run(range(N), **far, records={"distance": 0.15})
    (symptom,) = check(symptoms.BEATEN_SEARCH, search, run(SOME)) or []
    assert (symptom.attack, symptom.examples) == ("search", tuple(SOME))
    assert "1.50 times as far" in symptom.evidence
    (symptom,) = (
        check(symptoms.BEATEN_SEARCH, search, run((), budget="minimum", records={"distance": 0.1}))
        or []
    )
    assert (symptom.attack, symptom.count) == ("search", N)
    near = run(range(N), **far, records={"distance": 0.105})
    assert check(symptoms.BEATEN_SEARCH, near, run(SOME)) == []
    assert check(symptoms.BEATEN_SEARCH, search, run(range(8))) == []
    assert check(symptoms.BEATEN_SEARCH, search, run(SOME, norm="l2")) is None
    nothing = run((), **far, records={"distance": float("inf")})
    (symptom,) = check(symptoms.BEATEN_SEARCH, nothing, run(SOME)) or []
    assert "found nothing" in symptom.evidence


# --------------------------------------------------------------------------- symptoms in a model


def probed(
    net: nn.Module, digits: tuple[Tensor, Tensor], *attacks: str, eps: float = 0.1, **params: Any
) -> list[ObservedSymptom]:
    """The symptoms of a net on the first 24 digits that it gets right."""
    x, y = digits
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        right = (net(x).argmax(1) == y).nonzero()[:24, 0]
    specs = {}
    for name in attacks:
        known = registry.find("attacks", name)
        specs[name] = AttackSpec(
            name=name, attack=known, params=known.params(**params), norm="linf", eps=(eps,)
        )
    model = probes.ProbedModel("net", net, right, x[right], y[right], rows=16)
    return probes.probe_model(model, Threat(norm="linf", eps=eps), specs)


def trap(name: str, net: nn.Module) -> nn.Module:
    """One of traps.py around a net."""
    around: nn.Module = registry.find("models", f"traps.py:{name}", HERE)(net)
    return around


def names(observed: list[ObservedSymptom]) -> set[str]:
    return {symptom.name for symptom in observed}


@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_an_honest_net_shows_no_symptom(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], eps: float
) -> None:
    assert probed(lenet, digits, "pgd", eps=eps, steps=10) == []


def test_saturated_logits_are_named(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    observed = probed(trap("Saturated", lenet), digits, "pgd", steps=10)
    assert names(observed) == {symptoms.SATURATED_LOSS.name, symptoms.FLAT_LOSS.name}
    assert {symptom.attack for symptom in observed if symptom.name == symptoms.FLAT_LOSS.name} == {
        "pgd"
    }


def test_a_stable_loss_is_not_saturated(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    observed = probed(trap("Saturated", lenet), digits, "pgd", steps=10, loss="margin")
    assert symptoms.FLAT_LOSS.name not in names(observed)


def test_a_gradient_of_zeros_is_named(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    observed = probed(trap("Quantised", lenet), digits, "pgd", steps=10)
    expected = {
        symptoms.NO_GRADIENT.name,
        symptoms.UNCONSTRAINED_FAILURE.name,
        symptoms.FLAT_LOSS.name,
    }
    assert names(observed) == expected
    assert all(symptom.count == symptom.n == len(symptom.examples) == 24 for symptom in observed)


def test_a_random_defence_is_named(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    observed = probed(trap("Randomised", lenet), digits)
    assert names(observed) == {symptoms.UNSTABLE_PREDICTIONS.name}
    noise = Replacing(lenet, "noise").eval()
    assert symptoms.WRONG_GRADIENT.name in names(probed(noise, digits))


def test_a_gradient_that_is_not_finite_is_named(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = lenet(x + 0 * (x - x).sqrt())
            return logits

    assert symptoms.NO_GRADIENT.name in names(probed(Root(), digits))


class Replaced(torch.autograd.Function):
    """The identity, whose gradient is noise, its opposite or (to floats) what rounding hides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: str) -> Tensor:
        ctx.how = how
        return (x * 7).round() / 7 if how == "straight-through" else x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        noise = torch.rand_like(gradient) - 0.5
        return {"noise": noise, "opposite": -gradient}.get(ctx.how, gradient), None


class Replacing(nn.Module):
    """A net behind something that puts another gradient in the place of its own."""

    def __init__(self, net: nn.Module, how: str, single: bool = False) -> None:
        super().__init__()
        self.net, self.how, self.single = net, how, single

    def forward(self, x: Tensor) -> Tensor:
        if self.single and x.dtype != torch.float32:
            raise TypeError("float32 alone")
        if self.how == "detached":
            logits: Tensor = self.net(x.detach()) + 0.01 * self.net(x)
        elif self.how == "own":
            logits = self.net(x)
        else:
            logits = self.net(Replaced.apply(x, self.how))
        return logits


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("how", ["own", "noise", "opposite", "straight-through", "detached"])
def test_a_gradient_that_is_not_the_slope_of_the_output_is_named(
    how: str, single: bool, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, ids = Replacing(lenet, how, single).eval().requires_grad_(False), torch.arange(4)
    wrong = gradient_check.find_wrong_gradients(
        net, digits[0][:4], net(digits[0][:4]).argmax(1), ids
    )
    # Long steps in float32 are coarse: they see neither rounding nor a small part of the gradient.
    seen = how != "own" and not (single and how in ("straight-through", "detached"))
    if seen:
        assert wrong.all()
    elif how == "own":
        assert not wrong.any()


def test_slopes_agree_with_gradients_of_smooth_nets_residuals_and_any_scale(
    digits: tuple[Tensor, Tensor],
) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            grown: Tensor = x + self.inner(x)
            return grown

    class Scaled(nn.Module):
        def __init__(self, net: nn.Module, scale: float) -> None:
            super().__init__()
            self.net, self.scale = net, scale

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.scale * self.net(x.float())
            return logits

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), Residual(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(144, 10),
        ).eval().requires_grad_(False)  # fmt: skip
    x, y = digits[0][:4], digits[1][:4]
    for scale in (1e-8, 1.0, 1e4):
        assert not gradient_check.find_wrong_gradients(
            Scaled(net, scale), x, y, torch.arange(4)
        ).any()


class Beside(nn.Module):
    """Answers an image by the images beside it, as batch statistics do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits - logits.mean(0)


class Probabilities(nn.Sequential):
    """A net that ends in a softmax."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, nn.Softmax(1))


class Purifying(nn.Module):
    """Moves the image towards its own prediction before it answers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            (towards,) = torch.autograd.grad(self.net(start).amax(1).sum(), start)
        logits: Tensor = self.net(x + 1e-3 * towards)
        return logits


@pytest.mark.parametrize(
    ("defence", "kind"),
    [
        (Beside, symptoms.BATCH_DEPENDENCE),
        (Probabilities, symptoms.PROBABILITY_OUTPUT),
        (Purifying, symptoms.INFERENCE_OPTIMISATION),
    ],
)
def test_what_a_model_does_when_asked_is_named(
    defence: type[nn.Module], kind: Symptom, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    assert kind.name in names(probed(defence(lenet), digits))


def test_steps_that_do_not_suffice_are_named(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    short: dict[str, Any] = {"steps": 4, "alpha": 0.025, "random_start": False}
    (symptom,) = probed(lenet, digits, "pgd", eps=0.3, **short)
    assert (symptom.name, symptom.attack) == (symptoms.INCOMPLETE_OPTIMISATION.name, "pgd")
    assert probed(lenet, digits, "pgd", eps=0.3, **{**short, "steps": 20}) == []


def test_probing_leaves_the_model_and_the_global_generator_as_they_were(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, state = trap("Randomised", lenet).train(), torch.get_rng_state()
    observed = [probed(net, digits), probed(net, digits)]
    assert repr(observed[0]) == repr(observed[1])  # an eps that is none is not equal to itself
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert all(each.requires_grad and each.grad is None for each in net.parameters())


# ------------------------------------------------------------------------------------ whole runs

SUITE = """
schema = 1
name = "small"
[data]
name = "digits"
limit = 60
[[models]]
name = "{model}"
label = "net"
{weights}
[[attacks]]
name = "noise"
norm = "linf"
eps = [0.1, 0.2]
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1, 0.2]
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0, 0.1, 0.2]
params = {{ steps = 10 }}
[[attacks]]
name = "pgd"
label = "margin-PGD"
norm = "linf"
eps = [0.1, 0.2]
params = {{ steps = 10, loss = "margin" }}
"""


def write_suite(folder: Path, model: str, attacks: int = 4) -> str:
    """The small suite, or its first attacks, on a trap of traps.py or on a net of bench's own."""
    shutil.copy(HERE / "traps.py", folder / "traps.py")
    weights = "" if "traps" in model else 'weights = "digits"'
    path = folder / "small.toml"
    head, *each = SUITE.format(model=model, weights=weights).split("[[attacks]]")
    path.write_text("[[attacks]]".join([head, *each[:attacks]]), encoding="utf-8")
    return str(path)


def test_a_run_on_an_honest_net_has_no_symptom_and_says_what_it_did_not_look_for(
    tmp_path: Path,
) -> None:
    out, suite = tmp_path / "out", write_suite(tmp_path, "lenet")
    done = CliRunner().invoke(
        cli, ["run", suite, "--out", str(out), "--device", "cpu", "--audit"], standalone_mode=False
    )
    assert done.return_value == 0, done.output
    read = results.read_results(out)
    assert read.audit.symptoms == []
    missing = {each.name for each in read.audit.unchecked}
    assert missing == {
        kind.name
        for kind in (
            symptoms.MORE_STEPS_WORSE,
            symptoms.MORE_RESTARTS_WORSE,
            symptoms.BLACK_BOX_STRONGER,
            symptoms.TRANSFER_FAILURE,
            symptoms.SILENT_SUCCESS,
            symptoms.BEATEN_SEARCH,
        )
    }
    checked = len(symptoms.SYMPTOMS) - len(missing)
    said = f"No symptom of a failed attack, of {checked} symptoms checked."
    for page in ("report.md", "report.html"):
        text = (out / page).read_text(encoding="utf-8")
        assert said in text
        assert "no attack was run with more steps beside itself with fewer" in text
    assert said in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("model", "kind", "absent"),
    [
        (
            "traps.py:saturated",
            symptoms.SATURATED_LOSS,
            {symptoms.NO_GRADIENT, symptoms.UNSTABLE_PREDICTIONS},
        ),
        (
            "traps.py:quantised",
            symptoms.NO_GRADIENT,
            {symptoms.SATURATED_LOSS, symptoms.UNSTABLE_PREDICTIONS},
        ),
        (
            "traps.py:randomised",
            symptoms.UNSTABLE_PREDICTIONS,
            {symptoms.SATURATED_LOSS, symptoms.NO_GRADIENT},
        ),
    ],
)
def test_a_run_on_a_trap_is_named_for_what_it_is(
    model: str, kind: Symptom, absent: set[Symptom], tmp_path: Path
) -> None:
    audit = bench.run(write_suite(tmp_path, model), tmp_path / "out", device="cpu", limit=24).audit
    observed = audit.symptoms
    assert kind.name in names(observed)
    if kind is symptoms.UNSTABLE_PREDICTIONS:  # whose successes go whatever the stop rule
        why = {each.name: each.why for each in audit.unchecked}
        assert why[symptoms.SILENT_SUCCESS.name] == findings.RANDOM_MODEL
        assert symptoms.SILENT_SUCCESS.name not in names(observed)
    assert names(observed).isdisjoint(each.name for each in absent)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite on a net that hides nothing, with its run in `out`."""
    folder = tmp_path_factory.mktemp("honest")
    bench.run(write_suite(folder, "lenet", attacks=2), folder / "out", device="cpu", limit=20)
    return folder


def test_a_symptom_is_in_every_page_and_decides_the_exit_code_if_that_is_asked_for(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    suite = write_suite(tmp_path, "traps.py:quantised", attacks=2)
    audit = bench.run(suite, out, device="cpu", limit=20).audit
    for words, code in ((["report", str(out)], 0), (["report", str(out), "--audit"], 1)):
        done = CliRunner().invoke(cli, words, standalone_mode=False)
        assert done.return_value == code, done.output
    for page in ("report.md", "report.html"):
        text = (out / page).read_text(encoding="utf-8")
        assert symptoms.NO_GRADIENT.meaning in text
        assert symptoms.NO_GRADIENT.source in text
    table = pd.read_csv(out / "audit.csv")
    assert list(table) == list(symptoms.COLUMNS)
    assert list(table["name"]) == [symptom.name for symptom in audit.symptoms]
    assert [len(ids.split()) for ids in table["examples"]] == list(table["count"])


def test_a_resumed_run_does_not_probe_again(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []
    really = probes.probe_model
    monkeypatch.setattr(
        probes, "probe_model", lambda *given: probed.append("once") or really(*given)
    )
    out = shutil.copytree(honest / "out", tmp_path / "out")
    before = results.read_results(out).provenance["probes"]["net"]

    def run_again(fresh: bool) -> Any:
        again = bench.run(str(honest / "small.toml"), out, device="cpu", limit=20, fresh=fresh)
        return again.provenance["probes"]["net"]

    assert run_again(fresh=False) == before
    assert probed == []
    assert run_again(fresh=True)["signs"] == before["signs"]
    assert probed == ["once"]


def test_a_run_without_probes_can_be_read_and_damaged_ones_are_named(
    honest: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(honest / "out", tmp_path / "out")
    path = out / "provenance.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in document.items() if k != "probes"}))
    missing = {each.name: each.why for each in results.read_results(out).audit.unchecked}
    assert missing[symptoms.NO_GRADIENT.name] == "the model was not probed"
    document["probes"]["net"]["signs"] = [{"name": "no such sign"}]
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match="probes of model 'net' are damaged"):
        _ = results.read_results(out).audit


def test_a_random_model_that_votes_under_attacks_that_average_is_cared_for() -> None:
    plain: dict[str, Any] = {
        "norm": "", "eps": None, "count": 1, "n": 1, "evidence": "", "examples": [0],
        "threshold": "", "model": "net", "attack": "", "name": symptoms.UNSTABLE_PREDICTIONS.name,
    }  # fmt: skip
    probed = {"net": {"failed": "", "traced": ["mine"], "signs": [plain]}}
    for care, left in (({"samples": 4, "predictions": 5}, 0), ({"samples": 4}, 1)):
        cell = run(SOME, identity="c", **care).cell
        frame = run(SOME).records.assign(
            cell="c", example=range(N), attacked=True, fooled=[k in SOME for k in range(N)]
        )
        row = {
            "cell": "c", "model": "net", "attack": "pgd", "status": "ok", "norm": "linf", "eps": 0.1
        }  # fmt: skip
        table, stored = pd.DataFrame([row]), StoredRecords(frame, [], {})
        assert len(findings.audit_run([cell], table, stored, probed).symptoms) == left


# ------------------------------------------------------------------------------------- the words


def test_every_indicator_of_pintor_and_every_flag_of_autoattack_has_its_symptom() -> None:
    sources = " ".join(kind.source for kind in symptoms.SYMPTOMS.values())
    assert all(f"Pintor et al. 2022, indicator {k}" in sources for k in range(1, 7))
    flags = ("randomized defense", "softmax output", "zero gradient", "Square Attack improves",
             "optimization at inference time")  # fmt: skip
    assert all(f"AutoAttack flag: {flag}" in sources for flag in flags)


def test_no_symptom_names_a_law_by_number_neither_here_nor_in_what_is_published() -> None:
    published = [*(HERE.parents[1] / "results").glob("*/audit.csv")]
    assert len(published) > 3
    texts = [path.read_text(encoding="utf-8") for path in published]
    texts += [kind.source for kind in symptoms.SYMPTOMS.values()]
    assert not any(re.search(r"\blaw\b", text) for text in texts)


def test_every_symptom_is_looked_for_somewhere() -> None:
    looked = {
        *checks.CHECKS,
        *(kind.name for kind in (*probes.MODEL_SYMPTOMS, *probes.TRACE_SYMPTOMS)),
    }
    assert looked == set(symptoms.SYMPTOMS)


def test_a_symptom_survives_json() -> None:
    (symptom,) = (
        check(symptoms.MORE_STEPS_WORSE, run(SOME, **other("steps", "40")), run(MOST)) or []
    )
    assert symptoms.from_json(json.loads(json.dumps(symptoms.to_json(symptom)))) == symptom


def test_a_table_of_symptoms_has_every_id_and_the_page_the_first() -> None:
    (symptom,) = (
        check(symptoms.MORE_STEPS_WORSE, run(SOME, **other("steps", "40")), run(MOST)) or []
    )
    assert symptoms.to_frame([symptom])["examples"].item() == " ".join(map(str, range(40, 60)))
    (observed,) = audit_view.build_audit_views(findings.Audit(["net"], [symptom], []), {0.1: "0.1"})
    assert observed.symptoms is not None
    assert "40, 41, 42, 43, 44, ..." in observed.symptoms.rows[0]
    assert observed.verdict.startswith("1 of 22 symptoms checked: more steps do worse")
