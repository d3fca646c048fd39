"""AutoAttack by its authors' code through the adapter, beside ours."""

import dataclasses
import importlib.util
import json
import logging
import pickle
import sys
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

import bench
from bench.attacks.adapters import pyautoattack as adapter
from bench.core import rng
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import SuiteError
from bench.core.registry import find
from bench.engine.functional.norms import norm_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pyautoattack") is None,
    reason="pyautoattack is an extra, not installed here",
)
Trained = tuple[nn.Module, Tensor, Tensor]
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 10.0}
SHORT = {"n_iter": 3, "n_queries": 10}


def small(name: str) -> dict[str, int]:
    return {key: value for key, value in SHORT.items() if key in adapter.TABLE[name].knobs}


def attacked(name: str, batch: Trained, threat: Threat, **settings: Any) -> Tensor:
    model, x, y = batch
    attack = adapter.adapt(name)
    noise = rng.Noise(0, name, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))
    assert isinstance(attack, ExternalAttack)
    with rng.seed_global(0, name):
        return attack.run(model, x, y, threat, attack.params(**small(name) | settings), noise)


@pytest.mark.slow
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", adapter.TABLE)
def test_every_version_and_part_keeps_its_promise(
    name: str, norm: Norm, trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    model, x, y = trained
    batch, threat = (model, x[:3], y[:3]), Threat(norm=norm, eps=EPS[norm])
    before = x.clone()
    x_adv = attacked(name, batch, threat)
    assert torch.equal(x, before)
    assert (x_adv.min() >= 0, x_adv.max() <= 1) == (True, True)
    assert norm_of(x_adv - x[:3], norm).max() <= threat.eps * (1 + 1e-5) + 1e-6
    same = (x_adv == x[:3]).flatten(1).all(1)
    assert torch.equal(same, model(x_adv).argmax(1) == y[:3])
    assert torch.equal(x_adv, attacked(name, batch, threat))
    assert caplog.records == []


@pytest.mark.parametrize("name", adapter.TABLE)
def test_params_are_the_authors_and_survive_a_suite_and_a_process(name: str) -> None:
    attack = find("attacks", f"pyautoattack:{name}")
    params = attack.params()
    assert getattr(params, "n_iter", 100) == 100
    assert getattr(params, "n_queries", 5000) == 5000
    text = json.dumps(dataclasses.asdict(params))
    assert TypeAdapter(attack.params).validate_json(text, strict=True) == params
    assert pickle.loads(pickle.dumps(params)) == params
    assert all(text.endswith(".") for text in attack.caveats(params, "linf", 0.3))
    result = " ".join(attack.caveats(attack.params(**small(name)), "linf", 0.3))
    assert "Fewer looks than the authors prescribe" in result


@pytest.mark.parametrize(
    ("name", "said"), [("standart", "did you mean 'standard'"), ("custom", "name the parts")]
)
def test_a_name_that_cannot_be_used_is_reported_in_one_sentence(name: str, said: str) -> None:
    with pytest.raises(SuiteError, match=said):
        adapter.adapt(name)


def test_in_a_few_steps_it_leaves_about_as_many_as_ours_and_breaks_no_promise(
    trained: Trained,
) -> None:
    ours = bench.evaluate(*trained, attack="autoattack", params={"steps": 10, "queries": 20})
    theirs = bench.evaluate(
        *trained, attack="pyautoattack:standard", params={"n_iter": 10, "n_queries": 20}
    )
    assert (theirs.records["violation"] == "").all()
    assert 0 < theirs.records["fooled"].sum() < 24
    assert abs(int(ours.records["fooled"].sum()) - int(theirs.records["fooled"].sum())) <= 3
    assert set(theirs.table["implementation"]) == {"pyautoattack"}
    assert (theirs.records["forwards"] > 7).all()


def test_the_seed_comes_from_the_suite_unless_the_user_sets_one(trained: Trained) -> None:
    threat = Threat(norm="linf", eps=0.2)
    first, second = (attacked("apgd-ce", trained, threat, seed=seed) for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, attacked("apgd-ce", trained, threat, seed=1))


def test_targets_never_exceed_the_models_classes() -> None:
    with rng.seed_global("a net of five classes"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval().requires_grad_(False)
        x = torch.rand(3, 1, 4, 4)
    x_adv = attacked("apgd-t", (net, x, net(x).argmax(1)), Threat(norm="linf", eps=0.5))
    assert x_adv.shape == x.shape


def test_the_callers_log_tracer_and_generators_are_left_alone(trained: Trained) -> None:
    def tracer(*_: Any) -> None:
        return None

    model, x, y = trained
    log, before, own = logging.getLogger("auto-attack"), torch.get_rng_state(), sys.gettrace()
    sys.settrace(tracer)
    try:
        bench.evaluate(model, x[:4], y[:4], attack="pyautoattack:apgd-ce", params={"n_iter": 2})
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(own)
    assert not log.disabled
    assert torch.equal(torch.get_rng_state(), before)
