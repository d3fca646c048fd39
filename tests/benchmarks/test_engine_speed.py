"""The engine's hot paths, timed: throughput and the ratio to a bare loop go into extra_info.

What pytest-benchmark prints as seconds are bare passes: the processor's time over that of one
forward and gradient of the model itself on one image, taken just before. So a run on one machine
can be held against the last committed one of another, as `tox -e bench` does, and a busy machine
does not spoil it. In a plain pytest run each is called once, on little work and untimed, as a test.
"""

import functools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.core.rng import Noise
from bench.datasets.in_memory import make_data
from bench.engine import stream, timing
from bench.engine.acceleration import accelerate
from bench.engine.device import synchronize
from bench.engine.functional import gradients, losses
from bench.evaluation import loading
from bench.evaluation.judge import judge
from bench.models import published_weights
from bench.suite.schema import ModelEntry

SWEEP = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
WORK: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "FGSM sweep": ("fgsm", {}, SWEEP),
    "BIM-40": ("bim", {"steps": 40}, (0.3,)),
    "PGD-40": ("pgd", {"steps": 40}, (0.3,)),
    "MI-FGSM-10": ("mifgsm", {"steps": 10}, (0.3,)),
    "APGD-40": ("apgd", {"steps": 40}, (0.3,)),
}
THERE = [label for label, (name, *_) in WORK.items() if name in registry.names("attacks")]
MODELS = {"LeNet": ("lenet", 128), "dropout CNN": ("dropout_cnn", 64), "ResNet50": ("resnet50", 8)}
"""Name and images of a timed run."""
QUICK = 2
"""Steps and images of a run that is not timed."""
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


class BarePasses:
    """A clock that counts in bare passes of the model that was set last."""

    def __init__(self) -> None:
        self.device, self.unit = torch.device("cpu"), 1.0

    def set(self, model: nn.Module, x: Tensor, y: Tensor, rows: int) -> timing.Floor:
        floor = timing.measure_floor(model, x, y, rows)
        self.device, self.unit = x.device, floor.busy_seconds(1, 1)
        return floor

    def __call__(self) -> float:
        return timing.busy_seconds(self.device) / self.unit


PASSES = BarePasses()
in_bare_passes = pytest.mark.benchmark(timer=PASSES)


class Given(NamedTuple):
    """One model with images on one device."""

    model: nn.Module
    x: Tensor
    y: Tensor
    rows: int
    copy: accelerate.AcceleratedModel


@functools.cache
def given(label: str, device: str, timed: bool) -> Given:
    """Random weights, but for LeNet: what a pass costs does not depend on them."""
    name, n = MODELS[label]
    result = registry.find("models", name)
    n = n if timed else QUICK
    ids = torch.arange(n)
    like = torch.empty(n, *result.shape)
    x = Noise(0, "benchmark", ids, torch.zeros_like(ids)).uniform(like).add(1).div(2)
    data = make_data("noise", x, torch.zeros(n, dtype=torch.int64), ())
    entry = ModelEntry(name=name, label=label, weights="random")
    where = torch.device(device)
    loaded = loading.load_model(entry, published_weights.WEIGHTS, 0, data, where)
    model = loaded.model.requires_grad_(False)
    images = x.to(where)
    rows = timing.rows_per_pass(model, images)
    copy = accelerate.accelerate_model(model, images, rows, ahead=float("inf") if timed else 0.0)
    return Given(model, images, judge(model, images, rows).pred, rows, copy)


def curve(label: str, stop: Any, timed: bool) -> AttackSpec:
    name, params, eps = WORK[label]
    attack = registry.find("attacks", name)
    short = {} if timed or "steps" not in params else {"steps": QUICK}
    result = attack.params(**{**params, **short})
    return AttackSpec(name=name, attack=attack, params=result, norm="linf", eps=eps, stop=stop)


@in_bare_passes
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stop", ["first-success", "never"])
@pytest.mark.parametrize("label", THERE)
@pytest.mark.parametrize("model", MODELS)
def test_an_attack_returns_every_example_at_every_eps(
    benchmark: Any, model: str, label: str, stop: str, device: str
) -> None:
    timed = benchmark.enabled
    if model == "ResNet50" and not timed:
        pytest.skip("a net of this size is attacked where it is timed: it takes a minute")
    (net, x, y, rows, copy), work = given(model, device, timed), curve(label, stop, timed)
    ids = torch.arange(len(x))
    benchmark.group = f"{model} on {device}, {label}"
    if timed:
        floor = PASSES.set(net, x, y, copy.rows)

    def attacked() -> stream.StreamResult:
        result = stream.run_attack(net, work, x, y, ids, copy.rows, accelerated=copy.model)
        synchronize(x.device)
        return result

    result = benchmark.pedantic(attacked, rounds=5 if timed else 1, warmup_rounds=int(timed))
    assert result.x_adv.shape == (len(work.eps), *x.shape)
    reached = float((result.x_adv[-1] - x).abs().amax())
    assert 0 < reached < work.eps[-1] + 1e-6
    assert stop == "first-success" or reached == pytest.approx(work.eps[-1], abs=1e-6)
    stood = [int((judge(net, images, rows).pred == y).sum()) for images in result.x_adv]
    assert all(0 <= count <= len(x) for count in stood)
    if timed:
        passes = float(result.forwards.sum()), float(result.backwards.sum())
        seconds = benchmark.stats.stats.median * PASSES.unit
        benchmark.extra_info.update(
            examples_per_second=len(work.eps) * len(x) / seconds,
            floor_ratio=seconds / floor.busy_seconds(*passes),
            gradients_per_example=float(result.backwards.sum(0).mean()),
            robust=stood,
            threads=torch.get_num_threads(),
            rows=copy.rows,
            layout=copy.layout,
        )


def padded_lenet() -> nn.Module:
    """A net whose first convolution and pooling cost as much as its second convolution."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
        ).eval().requires_grad_(False)  # fmt: skip


@in_bare_passes
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "mkldnn"])
def test_a_padded_net_has_the_same_gradient_in_every_layout(benchmark: Any, layout: str) -> None:
    net, rows = padded_lenet(), 128 if benchmark.enabled else QUICK
    x = torch.rand(rows, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(rows, dtype=torch.int64)
    facts = {
        "rows": rows, "layout": layout, "exchanged": True, "precision": "float32",
        "timed": False, "worth": 0.0, "dropped": "",
    }  # fmt: skip
    choice = accelerate.AcceleratedChoice(True, facts, x.device)
    own = accelerate.rebuild_model(net, choice)
    assert own is not None
    objective = losses.make_objective("cross-entropy", "untargeted")
    benchmark.group = "a gradient of a padded LeNet"
    if benchmark.enabled:
        PASSES.set(net, x, y, rows)
    found = benchmark(gradients.gradient_pass, own.model, objective, x, y, y)
    wanted = gradients.gradient_pass(net, objective, x, y, y)
    assert torch.allclose(found.logits, wanted.logits, atol=1e-4)
    assert torch.allclose(found.gradient, wanted.gradient, rtol=1e-3, atol=1e-5)


@in_bare_passes
def test_judging_asks_the_model_once_for_each_image(
    benchmark: Any, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    rows = timing.rows_per_pass(lenet, x)
    if benchmark.enabled:
        PASSES.set(lenet, x, y, rows)
    verdict = benchmark(judge, lenet, x, rows)
    assert len(verdict.pred) == len(x)
    assert bool(((verdict.confidence > 0) & (verdict.confidence <= 1)).all())
    if benchmark.enabled:
        benchmark.extra_info["examples_per_second"] = len(x) / (
            benchmark.stats.stats.median * PASSES.unit
        )
