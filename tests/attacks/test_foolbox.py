"""Foolbox's attacks through the adapter: the same as ours where they are the same, and judged."""

import dataclasses
import importlib.util
import json
import pickle
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import bench
from bench.attacks.adapters import foolbox as adapter
from bench.core import optional, rng
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import SuiteError
from bench.core.registry import find
from bench.engine import timing
from bench.engine.functional.norms import norm_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("foolbox") is None, reason="Foolbox is an extra, not installed here"
)
Trained = tuple[nn.Module, Tensor, Tensor]
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 10.0, "l0": 20.0}
SMALL: dict[str, dict[str, Any]] = {
    "BoundaryAttack": {"steps": 10},
    "HopSkipJumpAttack": {"steps": 1, "initial_gradient_eval_steps": 5},
    "L2CarliniWagnerAttack": {"steps": 5, "binary_search_steps": 2, "initial_const": 1.0},
    "EADAttack": {"steps": 5, "binary_search_steps": 2, "initial_const": 1.0},
    "GenAttack": {"steps": 3},
    "SaltAndPepperNoiseAttack": {"steps": 20},
    "LinearSearchBlendedUniformNoiseAttack": {"steps": 10, "directions": 20},
    "LinearSearchContrastReductionAttack": {"steps": 10},
    "GaussianBlurAttack": {"steps": 5},
    "VirtualAdversarialAttack": {"steps": 1},
    "NewtonFoolAttack": {"steps": 5},
}
SLOW = ("PointwiseAttack",)


def classes() -> list[str]:
    """Every class of the library that can be used here; none where it is not installed."""
    if optional.missing_reason("foolbox"):
        return []
    return sorted(set(adapter._names().values()) - set(adapter.REFUSED))


def attacked(name: str, batch: Trained, threat: Threat, **settings: Any) -> Tensor:
    """The attack's answer, with the global generators seeded as the harness seeds them."""
    model, x, y = batch
    attack = adapter.adapt(name)
    noise = rng.Noise(0, name, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))
    assert isinstance(attack, ExternalAttack)
    with rng.seed_global(0, name):
        params = attack.params(**(SMALL.get(name, {}) | settings))
        return attack.run(model, x, y, threat, params, noise)


def test_every_class_has_a_row_or_a_refusal() -> None:
    result = {adapter._family(name) for name in classes()}
    assert result == set(adapter.TABLE)
    assert set(adapter.REFUSED) < set(adapter._names())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in classes() if name not in SLOW])
def test_every_class_keeps_its_promise(name: str, trained: Trained) -> None:
    attack, (model, x, y) = adapter.adapt(name), trained
    x, norm = x[:3], attack.norms[0]
    before = x.clone()
    for goal in attack.goals:
        aim = (y[:3] + 1) % 10 if goal == "targeted" else y[:3]
        threat = Threat(norm=norm, eps=EPS[norm], goal=goal)
        x_adv = attacked(name, (model, x, aim), threat)
        assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)
        assert torch.equal(x, before)
        result = x_adv[x_adv.flatten(1).isfinite().all(1)]
        assert len(result) == 3 or name == "NewtonFoolAttack"  # its caveat tells
        assert result.min() >= -1e-6
        assert result.max() <= 1 + 1e-6
        far = norm_of(x_adv - x, norm).nan_to_num(0)
        assert attack.budget == "minimum" or far.max() <= threat.eps * (1 + 1e-5) + 1e-6
        again = attacked(name, (model, x, aim), threat)
        assert torch.allclose(x_adv, again, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", classes())
def test_params_are_the_librarys_and_survive_a_suite_and_a_process(name: str) -> None:
    attack = find("attacks", f"foolbox:{name}")
    needed = {"steps": 2} if name == "VirtualAdversarialAttack" else {}
    params = attack.params(**needed)
    text = json.dumps(dataclasses.asdict(params))
    assert TypeAdapter(attack.params).validate_json(text, strict=True) == params
    assert pickle.loads(pickle.dumps(params)) == params
    pickle.dumps(attack)
    for norm in attack.norms:
        assert all(isinstance(v, str) for v in attack.traits(params, norm, 1.0).values())
        assert all(text.endswith(".") for text in attack.caveats(params, norm, 1.0))


def test_a_short_name_is_the_class_of_the_long_one() -> None:
    short = adapter.adapt("LinfPGD")
    long = adapter.adapt("LinfProjectedGradientDescentAttack")
    assert (short.params, short.norms, short.budget) == (long.params, ("linf",), "fixed")
    assert pickle.loads(pickle.dumps(short.params())) == long.params()
    assert adapter.adapt("L2DeepFoolAttack").budget == "minimum"
    assert adapter.adapt("HopSkipJumpAttack").norms == ("l2", "linf")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LinfPDG", "did you mean 'LinfPGD'"),
        ("SpatialAttack", "it turns and shifts an image"),
        ("L2BrendelBethgeAttack", "needs numba"),
    ],
)
def test_a_name_that_cannot_be_used_is_reported_in_one_sentence(name: str, said: str) -> None:
    with pytest.raises(SuiteError, match=said):
        adapter.adapt(name)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"abs_stepsize": "eps plus"}, {"steps": 2.0}])
def test_a_setting_out_of_its_domain_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(adapter.adapt("LinfPGD").params).validate_json(
            json.dumps(settings), strict=True
        )


@pytest.mark.parametrize(("norm", "name"), [("linf", "FGSM"), ("l2", "FGM")])
def test_its_one_step_attack_has_our_outcomes_and_our_pixels(
    norm: Norm, name: str, trained: Trained
) -> None:
    settings: dict[str, Any] = {"norm": norm, "eps": EPS[norm], "keep_adversarial": True}
    ours = bench.evaluate(*trained, attack="fgsm", stop="never", **settings)
    theirs = bench.evaluate(*trained, attack=f"foolbox:{name}", **settings)
    assert ours.records["fooled"].tolist() == theirs.records["fooled"].tolist()
    assert torch.allclose(ours.adversarial, theirs.adversarial, rtol=0, atol=1e-5)
    assert 0 < theirs.records["fooled"].sum() < 24
    assert set(theirs.table["implementation"]) == {"foolbox"}


@pytest.mark.parametrize(("norm", "name"), [("linf", "LinfBasic"), ("l2", "L2Basic")])
def test_its_iterated_steps_are_ours(norm: Norm, name: str, trained: Trained) -> None:
    settings: dict[str, Any] = {"norm": norm, "eps": EPS[norm], "keep_adversarial": True}
    ours = {"steps": 5, "alpha": "eps/4"}
    theirs = {"steps": 5, "abs_stepsize": "eps/4"}
    a = bench.evaluate(*trained, attack="bim", stop="never", params=ours, **settings)
    b = bench.evaluate(*trained, attack=f"foolbox:{name}IterativeAttack", params=theirs, **settings)
    assert torch.allclose(a.adversarial, b.adversarial, rtol=0, atol=1e-4)


def test_a_targeted_attack_reaches_its_targets(trained: Trained) -> None:
    settings: dict[str, Any] = {"goal": "targeted", "target": "next", "norm": "l2", "eps": 6}
    evaluation = bench.evaluate(
        *trained, attack="foolbox:L2PGD", params={"steps": 20, "rel_stepsize": 0.1}, **settings
    )
    assert evaluation.records["fooled"].sum() > 18
    assert (evaluation.records["violation"] == "").all()


@pytest.mark.parametrize(
    ("norm", "name"), [("l2", "L2DeepFool"), ("linf", "LinfDeepFool"), ("l2", "L2FMN")]
)
def test_a_search_for_the_least_distance_runs_once_and_is_read_at_every_eps(
    norm: Norm, name: str, trained: Trained
) -> None:
    attack = f"foolbox:{name}Attack"
    eps = [EPS[norm] * factor for factor in (0.5, 1.0, 8.0)]
    table = bench.evaluate(*trained, attack=attack, norm=norm, eps=eps).table
    kept = table["robust_correct"].tolist()
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 12
    assert kept[-1] == 0
    assert (table["violations"] == 0).all()


def test_an_image_without_a_start_comes_back_clean_and_the_others_are_attacked() -> None:
    """Class 1 is told from class 0 by brightness, class 2 by nothing: it is found by no noise."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval().requires_grad_(False)
    net[1].weight.copy_(torch.stack([-torch.ones(16), torch.ones(16), torch.zeros(16)]))
    net[1].bias.copy_(torch.tensor([4.0, -4.0, -100.0]))
    x, target = torch.full((2, 1, 4, 4), 0.1), torch.tensor([1, 2])
    threat = Threat(norm="l2", eps=1.0, goal="targeted")
    x_adv = attacked("HopSkipJumpAttack", (net, x, target), threat)
    assert torch.equal(x_adv[1], x[1])
    assert net(x_adv).argmax(1).tolist() == [1, 0]


def test_its_momentum_carries_its_caveat() -> None:
    attack = adapter.adapt("MIFGSM")
    reported = " ".join(attack.caveats(attack.params(), "linf", 0.3))
    assert "signs of gradients" in reported
    result = attack.traits(attack.params(rel_stepsize=0.1), "linf", 0.3)
    assert result["momentum"] == "mu=1, signs of gradients"
    assert result["alpha"] == "0.03"


def test_what_foolbox_asks_is_counted_and_the_callers_state_is_left_alone(trained: Trained) -> None:
    model, x, y = trained
    before = torch.get_rng_state()
    with timing.count_passes(model) as passes:
        evaluation = bench.evaluate(
            model, x, y, attack="foolbox:LinfPGD", params={"steps": 4}, copied=False
        )
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    attacked_rows = evaluation.records["forwards"] > 0
    assert (evaluation.records["forwards"][attacked_rows] == 5).all()  # 4 steps and its own verdict
    assert (evaluation.records["backwards"][attacked_rows] == 4).all()
    assert passes.forwards >= 5 * int(attacked_rows.sum())
