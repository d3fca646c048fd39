"""ART's attacks through the adapter: the same as ours where they are the same, and judged."""

import dataclasses
import importlib.util
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import bench
from bench.attacks.adapters import art as adapter
from bench.core import rng
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import SuiteError
from bench.core.registry import find
from bench.engine.functional.norms import norm_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("art") is None, reason="ART is an extra, not installed here"
)
Trained = tuple[nn.Module, Tensor, Tensor]
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 10.0, "l0": 20.0}
ASCENT = {"max_iter": 3, "eps_step": "eps/2"}
ADAPTS = {"max_iter": 3, "nb_random_init": 1}
SMALL: dict[str, dict[str, Any]] = {
    "BasicIterativeMethod": ASCENT,
    "ProjectedGradientDescent": ASCENT,
    "ProjectedGradientDescentNumpy": ASCENT,
    "ProjectedGradientDescentPyTorch": ASCENT,
    "MomentumIterativeMethod": ASCENT,
    "AutoProjectedGradientDescent": ADAPTS,
    "AutoConjugateGradient": ADAPTS,
    "RescalingAutoConjugateGradient": ADAPTS,
    "SquareAttack": {"max_iter": 5},
    "DeepFool": {"max_iter": 5},
    "NewtonFool": {"max_iter": 5},
    "CarliniL2Method": {"max_iter": 3, "binary_search_steps": 2},
    "CarliniLInfMethod": {"max_iter": 2, "largest_const": 0.01},
    "CarliniL0Method": {"max_iter": 1, "binary_search_steps": 2},
    "ElasticNet": {"max_iter": 3, "binary_search_steps": 2},
    "SaliencyMapMethod": {"gamma": 0.02},
    "BoundaryAttack": {"max_iter": 2, "init_size": 10, "num_trial": 2, "sample_size": 2},
    "HopSkipJump": {"max_iter": 1, "max_eval": 20, "init_eval": 5, "init_size": 10},
    "SignOPTAttack": {"max_iter": 1, "num_trial": 3, "k": 3, "query_limit": 100},
    "SimBA": {"max_iter": 5},
    "ZooAttack": {"max_iter": 2, "nb_parallel": 4, "use_resize": False, "use_importance": False},
}
SLOW = ("PixelAttack", "VirtualAdversarialMethod")


def attacked(name: str, batch: Trained, threat: Threat, seed: int = 0, **settings: Any) -> Tensor:
    """The attack's answer, with the global generators seeded as the harness seeds them."""
    model, x, y = batch
    attack = adapter.adapt(name)
    noise = rng.Noise(seed, name, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))
    assert isinstance(attack, ExternalAttack)
    with rng.seed_global(seed, name):
        params = attack.params(**(SMALL.get(name, {}) | settings))
        return attack.run(model, x, y, threat, params, noise)


def test_every_class_has_a_row_or_a_refusal() -> None:
    from art.attacks import evasion

    there = {name for name, kind in vars(evasion).items() if isinstance(kind, type)}
    assert set(adapter.TABLE) | set(adapter.REFUSED) == there
    assert not set(adapter.TABLE) & set(adapter.REFUSED)


@pytest.mark.parametrize("name", adapter.TABLE)
def test_what_an_attack_needs_is_what_its_class_requires(name: str) -> None:
    asks = {kind.__name__ for kind in adapter._class(name)._estimator_requirements}
    gradients = not asks.isdisjoint({"LossGradientsMixin", "ClassGradientsMixin"})
    assert (adapter.adapt(name).needs == "gradient") == gradients


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in adapter.TABLE if name not in SLOW])
def test_every_class_keeps_its_promise(name: str, trained: Trained) -> None:
    attack, (model, x, y) = adapter.adapt(name), trained
    x, norm = x[:2], attack.norms[0]
    before = x.clone()
    for goal in attack.goals:
        aim = (y[:2] + 1) % 10 if goal == "targeted" else y[:2]
        threat = Threat(norm=norm, eps=EPS[norm], goal=goal)
        x_adv = attacked(name, (model, x, aim), threat)
        assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)
        assert torch.equal(x, before)
        assert x_adv.min() >= -1e-6
        assert x_adv.max() <= 1 + 1e-6
        far = norm_of(x_adv - x, norm).max()
        assert attack.budget == "minimum" or far <= threat.eps * (1 + 1e-5) + 1e-6
        assert torch.equal(x_adv, attacked(name, (model, x, aim), threat))


@pytest.mark.parametrize("name", adapter.TABLE)
def test_params_are_the_librarys_and_survive_a_suite_and_a_process(name: str) -> None:
    attack = find("attacks", f"art:{name}")
    params, theirs = attack.params(), adapter._signature(name)
    ours = {"start", "batch_size"} if name in ("BoundaryAttack", "HopSkipJump") else set()
    for item in dataclasses.fields(params):
        if item.name in ours:
            continue
        assert getattr(params, item.name) == theirs[item.name]
    text = json.dumps(dataclasses.asdict(params))
    assert TypeAdapter(attack.params).validate_json(text, strict=True) == params
    assert pickle.loads(pickle.dumps(params)) == params
    pickle.dumps(attack)
    for norm in attack.norms:
        assert all(isinstance(v, str) for v in attack.traits(params, norm, 1.0).values())
        assert all(text.endswith(".") for text in attack.caveats(params, norm, 1.0))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ProjectedGradientDecent", "did you mean 'ProjectedGradientDescent'"),
        ("AdversarialPatchPyTorch", "it pastes a patch"),
        ("AutoAttack", "needs the package multiprocess"),
        ("GeoDA", "np.mat"),
    ],
)
def test_a_name_that_cannot_be_used_is_reported_in_one_sentence(name: str, said: str) -> None:
    with pytest.raises(SuiteError, match=said):
        adapter.adapt(name)


@pytest.mark.parametrize("settings", [{"max_iter": 0}, {"eps_step": "eps plus"}, {"decay": "x"}])
def test_a_setting_out_of_its_domain_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(adapter.adapt("ProjectedGradientDescent").params).validate_json(
            json.dumps(settings), strict=True
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_its_one_step_attack_has_our_outcomes_and_our_pixels(norm: Norm, trained: Trained) -> None:
    settings: dict[str, Any] = {"norm": norm, "eps": EPS[norm], "keep_adversarial": True}
    ours = bench.evaluate(*trained, attack="fgsm", stop="never", **settings)
    theirs = bench.evaluate(*trained, attack="art:FastGradientMethod", **settings)
    assert ours.records["fooled"].tolist() == theirs.records["fooled"].tolist()
    assert torch.allclose(ours.adversarial, theirs.adversarial, rtol=0, atol=1e-5)
    assert 0 < theirs.records["fooled"].sum() < 24
    assert set(theirs.table["implementation"]) == {"art"}


def test_a_random_start_makes_it_pgd_and_it_breaks_as_many_give_or_take(trained: Trained) -> None:
    ours = bench.evaluate(*trained, params={"steps": 10, "alpha": "eps/4"}, stop="never")
    theirs = bench.evaluate(
        *trained,
        attack="art:ProjectedGradientDescentPyTorch",
        params={"max_iter": 10, "eps_step": "eps/4", "num_random_init": 1},
    )
    differ = ours.records["fooled"] != theirs.records["fooled"]
    assert differ.sum() <= 2


def test_a_targeted_attack_reaches_its_targets(trained: Trained) -> None:
    settings: dict[str, Any] = {"goal": "targeted", "target": "next", "norm": "l2", "eps": 6}
    params = {"max_iter": 20, "eps_step": "eps/10"}
    evaluation = bench.evaluate(
        *trained, attack="art:ProjectedGradientDescent", params=params, **settings
    )
    assert evaluation.records["fooled"].sum() > 18
    assert (evaluation.records["violation"] == "").all()


def test_a_search_for_the_least_distance_runs_once_and_is_read_at_every_eps(
    trained: Trained,
) -> None:
    model, x, y = trained
    table = bench.evaluate(
        model, x[:8], y[:8], attack="art:DeepFool", norm="l2", eps=[0.5, 1.0, 8.0]
    ).table
    kept = table["robust_correct"].tolist()
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 0 < kept[0]
    assert (table["violations"] == 0).all()


def test_its_decision_based_attacks_draw_by_the_suites_seed_alone(trained: Trained) -> None:
    model, x, y = trained
    batch, threat = (model, x[:3], y[:3]), Threat(norm="l2", eps=1.0)
    np.random.RandomState(5)  # what the adapter puts aside is back each time
    first = attacked("HopSkipJump", batch, threat)
    assert torch.equal(first, attacked("HopSkipJump", batch, threat))
    assert not torch.equal(first, attacked("HopSkipJump", batch, threat, seed=1))
    assert isinstance(np.random.RandomState, type)
    evaluation = bench.evaluate(
        *batch, attack="art:HopSkipJump", norm="l2", eps=30.0, params=SMALL["HopSkipJump"]
    )
    assert evaluation.records["fooled"].all()
    assert (evaluation.records["backwards"] == 0).all()
    assert (evaluation.records["forwards"] > 10).all()


def test_the_callers_generators_and_model_are_left_alone(trained: Trained) -> None:
    model, x, y = trained
    before, drawn = torch.get_rng_state(), np.random.get_state()[1].copy()
    model.train()
    params = {"num_random_init": 1, "max_iter": 3}
    evaluation = bench.evaluate(
        model, x, y, attack="art:ProjectedGradientDescent", params=params, copied=False
    )
    assert all(module.training for module in model.modules())
    model.eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == drawn).all()
    rows = evaluation.records[evaluation.records["forwards"] > 0]
    assert (rows["backwards"] == 3).all()
    assert not any(module._forward_hooks for module in model.modules())
