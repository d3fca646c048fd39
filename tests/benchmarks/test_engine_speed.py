"""The engine's hot paths, timed: throughput and the ratio to a bare loop go into extra_info.

Run with `tox -e bench`; in a plain pytest run each is called once, untimed, as a test.
"""

import pytest
import torch

from bench import engine, measure, meter, registry
from bench.contracts import Curve

EPS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
WORK = {
    "FGSM sweep": ("fgsm", {}),
    "BIM-10 sweep": ("bim", {"steps": 10}),
    "PGD-10 sweep": ("pgd", {"steps": 10}),
    "MI-FGSM-10 sweep": ("mifgsm", {"steps": 10}),
}


def _curve(name, params, stop):
    attack = registry.find("attacks", name)
    chosen = attack.params(**params)
    return Curve(name=name, attack=attack, params=chosen, norm="linf", eps=EPS, stop=stop)


@pytest.mark.parametrize("stop", ["first-success", "never"])
@pytest.mark.parametrize("label", WORK)
def test_an_attack_returns_every_example_at_every_eps(benchmark, lenet, digits, label, stop):
    x, y = (part[:64] for part in digits)
    curve = _curve(*WORK[label], stop)
    model = lenet.requires_grad_(False)
    rows = meter.rows_per_pass(model, x)
    ids = torch.arange(len(x))
    benchmark.group = label
    result = benchmark.pedantic(
        engine.attack, (model, curve, x, y, ids, rows), rounds=5, warmup_rounds=1
    )
    assert result.x_adv.shape == (len(EPS), *x.shape)
    pred, _, _ = measure.judge(model, result.x_adv[-1], rows)
    assert (pred != y).float().mean() > 0.9
    if benchmark.stats is not None:
        floor = meter.floor(model, x, y, rows)
        bare = floor.seconds(float(result.forwards.sum()), float(result.backwards.sum()))
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["examples_per_second"] = len(EPS) * len(x) / seconds
        benchmark.extra_info["floor_ratio"] = seconds / bare
        benchmark.extra_info["gradients_per_example"] = float(result.backwards.sum(0).mean())


def test_judging_asks_the_model_once_for_each_image(benchmark, lenet, digits):
    x, _ = digits
    rows = meter.rows_per_pass(lenet, x)
    pred, confidence, _ = benchmark(measure.judge, lenet, x, rows)
    assert len(pred) == len(x)
    assert bool(((confidence > 0) & (confidence <= 1)).all())
    if benchmark.stats is not None:
        benchmark.extra_info["examples_per_second"] = len(x) / benchmark.stats.stats.median
