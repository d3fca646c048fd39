"""Every reader of logits sees the same class, however small or large they are and in any type."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.contracts.types import Threat
from bench.datasets.in_memory import make_data
from bench.engine.functional import gradients, losses
from bench.engine.functional.logits import probabilities, reaches_goal
from bench.evaluation.audit import probes
from bench.evaluation.judge import Vote, judge
from bench.models.preflight import checks, preprocessing
from bench.workflows.single_image import attack

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
POWERS = range(-12, 7)


class Scaled(nn.Module):
    """A net whose logits are multiplied, and returned in another type."""

    def __init__(self, net: nn.Module, factor: float, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net, self.factor, self.kind = net, factor, kind

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x).double() * self.factor).to(self.kind)


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def readings(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Whether each reader takes each image for its label y (n,)."""
    loaded = probes.ProbedModel("net", net, torch.arange(len(x)), x, y, 7)
    ascend = losses.make_objective("margin", "untargeted")
    at_ease = gradients.forward_pass(net, ascend, x, y, y).logits
    pulled = gradients.gradient_pass(net, ascend, x, y, y).logits
    threat = Threat(norm="linf", eps=0.1)
    pred = preprocessing._predictions(net, x)
    assert pred is not None
    return {
        "engine": ~reaches_goal(at_ease, y, "untargeted"),
        "engine, with gradients": ~reaches_goal(pulled, y, "untargeted"),
        "judge": judge(net, x, 7).pred == y,
        "judge, by a vote": judge(net, x, 7, Vote(3, 0)).pred == y,
        "suspicions": pred == y,
        "probes": ~probes._ascend(loaded, threat, 0, 0.1, "margin").fooled,
        "probes, the answer": probes._logits(loaded, x).argmax(1) == y,
    }


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_engine_judge_suspicions_and_probes_agree_at_every_scale_and_in_every_type(
    linear: nn.Module, images: Tensor, kind: torch.dtype
) -> None:
    """What the type itself loses is excluded: images whose two largest logits it rounds to one
    value (half precision has 8 or 11 digits, and float16 nothing below 6e-8), where the readers
    must still agree, and images with a logit above 65504 in float16, which is infinite."""
    y = linear(images).argmax(1)
    kept = 0
    for power in POWERS:
        net = Scaled(linear, 10.0**power, kind)
        returned = net(images).double()
        finite = returned.isfinite().all(1)
        first, second = returned.topk(2, dim=1).values.unbind(1)
        apart = finite & (first > second)
        seen = readings(net, images, y)
        for (one, a), (other, b) in itertools.pairwise(seen.items()):
            assert torch.equal(a[finite], b[finite]), (power, one, other)
        assert seen["judge"][apart].all(), power
        kept += int(apart.sum())
    least = {torch.float16: 0.4, torch.bfloat16: 0.9}.get(kind, 1.0)
    assert kept >= least * len(images) * len(POWERS)


def test_float64_logits_that_float32_cannot_tell_apart_are_not_tied(images: Tensor) -> None:
    class Close(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = 1 + 1e-12 * x.flatten(1)[:, :4].double()
            return torch.cat([near, near.new_full((len(x), 1), 1e300).neg()], 1)

    result = judge(Close(), images, 8)
    assert torch.equal(result.pred, images.flatten(1)[:, :4].argmax(1))
    assert result.confidence.dtype == torch.float32
    assert torch.allclose(result.confidence, torch.tensor(0.25))
    assert (result.least_likely == 4).all()


def test_confidence_is_that_of_the_predicted_class_and_does_not_overflow() -> None:
    huge = torch.tensor([[1e6, 1e6 - 1, -1e6]])
    for kind in (torch.float32, torch.float64):
        assert probabilities(huge.to(kind))[0, 0] == pytest.approx(0.731059, abs=1e-6)
    assert torch.equal(probabilities(huge), huge.softmax(1))


def test_an_attack_counts_the_same_when_all_logits_are_divided(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """By a power of two, so that no rounding differs, and by a loss that has no scale."""
    x, y = (part[:40] for part in digits)
    settings: dict[str, Any] = {
        "attack": "square", "eps": [0.4], "params": {"steps": 20}, "device": "cpu",
    }  # fmt: skip
    whole, tiny = (
        bench.evaluate(Scaled(lenet, factor).eval(), x, y, **settings).records
        for factor in (1.0, 2.0**-30)
    )
    assert whole["clean_correct"].sum() > 35
    assert whole["fooled"].sum() > 5
    for column in ("clean_pred", "adv_pred", "adv_pred_8bit", "fooled", "linf", "l2"):
        assert whole[column].tolist() == tiny[column].tolist(), column


def test_one_image_is_named_by_its_largest_logit(linear: nn.Module, images: Tensor) -> None:
    for image in images[:8]:
        whole, tiny = (
            attack._answer(Scaled(linear, factor), image, 0, ()) for factor in (1.0, 1e-12)
        )
        assert whole.pred == tiny.pred == int(linear(image[None]).argmax())
        assert [name for name, _ in whole.top] == [name for name, _ in tiny.top]


@pytest.mark.parametrize(
    ("factor", "kind", "result"),
    [
        (1.0, torch.float32, []),
        (1e-10, torch.float32, ["(flat)"]),
        (1e-10, torch.float64, ["(flat)"]),
        (1e-10, torch.float16, ["(not-float32, allowed by the suite)", "(ties)"]),
    ],
)
def test_logits_too_flat_to_tell_classes_apart_are_named_before_anything_runs(
    linear: nn.Module, images: Tensor, factor: float, kind: torch.dtype, result: list[str]
) -> None:
    y = linear(images).argmax(1)
    data = make_data("images", images, y, ())
    net = Scaled(linear, factor, kind).eval()
    findings = checks.preflight(
        "net", net, data, torch.device("cpu"), allow=["not-float32"]
    ).findings
    ends = [each[each.rindex("(") :] for each in findings]
    assert [end for end in ends if end not in ("(zero-gradient)", "(near-chance)")] == result
