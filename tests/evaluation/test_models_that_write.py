"""Models that write into the images they are given: the images stay, and the numbers are those of
the same model out of place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bench
from bench.core.contracts.dataset import Data
from bench.core.errors import ContractError
from bench.datasets.in_memory import make_data
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import InputCloningModel, InputWriteError, call_model
from bench.evaluation.certification import network
from bench.evaluation.judge import judge
from bench.models.preflight.checks import preflight

CPU = torch.device("cpu")
Change = Callable[[Tensor], Tensor]


class Before(nn.Module):
    """A net behind something that is done to its images."""

    def __init__(self, change: Change, net: nn.Module) -> None:
        super().__init__()
        self.change, self.net = change, net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.change(x))
        return logits


def by_view(x: Tensor) -> Tensor:
    x.view(len(x), -1)[:, 100:].mul_(0.5)
    return x


def out_of_view(x: Tensor) -> Tensor:
    flat = x.view(len(x), -1)
    return torch.cat([flat[:, :100], flat[:, 100:] * 0.5], 1).view(x.shape)


def past_autograd(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.clamp_(0.2, 0.8)
    return x


class Straight(torch.autograd.Function):
    """Clamps, and lets the gradient through as if it had not."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clamp(0.2, 0.8)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def by_data(x: Tensor) -> Tensor:
    x.data.sub_(0.1)
    return x


def by_numpy(x: Tensor) -> Tensor:
    pixels = x.detach().numpy()
    np.subtract(pixels, np.float32(0.1), out=pixels)
    return x


def by_out(x: Tensor) -> Tensor:
    return torch.sub(x, 0.1, out=x)


WRITERS: dict[str, tuple[Change, Change]] = {
    "arithmetic": (lambda x: x.sub_(0.1).div_(0.9), lambda x: (x - 0.1) / 0.9),
    "function": (
        lambda x: functional.relu(x.sub_(0.1), inplace=True),
        lambda x: functional.relu(x - 0.1),
    ),
    "view": (by_view, out_of_view),
    "no-grad": (past_autograd, Straight.apply),
    "data": (by_data, lambda x: x - 0.1),
    "numpy": (by_numpy, lambda x: x - 0.1),
}
"""What writes, and the same out of place."""


def same(a: bench.Evaluation, b: bench.Evaluation) -> None:
    """Whether two models fared alike, whatever they are called: to the bit but for the rounding of
    kernels, which follow how images lie in memory."""
    left, right = (each.records.drop(columns=["cell", "model"]) for each in (a, b))
    assert left["attacked"].any()
    pd.testing.assert_frame_equal(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_a_net_that_writes_into_its_input_gives_what_its_twin_gives(
    name: str, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:12].clone(), digits[1][:12]
    before = x.clone()
    attack = {"attack": "pgd", "eps": [0.1, 0.2], "params": {"steps": 4, "alpha": 0.05}}
    nets = [Before(change, lenet).eval() for change in WRITERS[name]]
    writing, twin = (bench.evaluate(net, x, y, copied=False, **attack) for net in nets)
    assert torch.equal(x, before)
    same(writing, twin)


@pytest.mark.parametrize("attack", ["pgd", "square", "torchattacks:PGD"])
def test_an_inplace_relu_is_like_any_other_under_every_kind_of_attack(
    attack: str, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:12].clone(), digits[1][:12]
    before = x.clone()
    nets = [nn.Sequential(nn.ReLU(inplace=own), lenet).eval() for own in (True, False)]
    steps = {"steps": 5}
    writing, twin = (bench.evaluate(n, x, y, attack=attack, eps=0.2, params=steps) for n in nets)
    assert torch.equal(x, before)
    same(writing, twin)


def test_what_writes_by_out_has_no_gradient_and_answers_queries(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:12].clone(), digits[1][:12]
    before = x.clone()
    nets = [Before(change, lenet).eval() for change in (by_out, lambda x: x - 0.1)]
    writing, twin = (
        bench.evaluate(n, x, y, attack="square", eps=0.2, params={"steps": 5}) for n in nets
    )
    same(writing, twin)
    with pytest.raises(RuntimeError, match="out="):
        bench.evaluate(nets[0], x, y, attack="fgsm")
    assert torch.equal(x, before)


def test_a_callable_that_answers_queries_gets_a_copy_of_the_images(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:12].clone(), digits[1][:12]
    before = x.clone()

    def answers(images: Tensor) -> Tensor:
        with torch.no_grad():
            return lenet(by_numpy(images))

    for access in ("scores", "labels"):
        evaluation = bench.evaluate(
            answers, x, y, attack="noise", eps=0.1, access=access, classes=10
        )
        assert not evaluation.table["violations"].item()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("net", "who"),
    [
        (lambda lenet: nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), lenet), "'1', ReLU"),
        (lambda lenet: nn.Sequential(Before(by_data, lenet)), "'0', Before"),
        (lambda lenet: Before(past_autograd, lenet), "the forward of Before itself"),
    ],
)
def test_preflight_names_the_module_that_writes(
    net: Callable[[nn.Module], nn.Module],
    who: str,
    lenet: nn.Module,
    digits: tuple[Tensor, Tensor],
) -> None:
    x, y = digits[0][:12], digits[1][:12]
    model = net(lenet).eval()
    loaded = preflight("net", model, make_data("digits", x, y, ()), CPU)
    (finding,) = [each for each in loaded.findings if each.endswith("(writes-to-input)")]
    assert who in finding
    assert isinstance(loaded.model, InputCloningModel)
    assert (
        loaded.fingerprint
        != preflight("net", lenet, make_data("digits", x, y, ()), CPU).fingerprint
    )
    assert not any(module._forward_hooks for module in model.modules())


def test_a_sound_net_is_asked_as_it_is(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    loaded = preflight("net", lenet, make_data("digits", *digits, ()), CPU)
    assert loaded.model is lenet


def test_who_writes_only_later_is_refused_by_engine_and_judge(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:8].clone(), digits[1][:8]
    writer = nn.Sequential(nn.ReLU(inplace=True), lenet).eval()
    with pytest.raises(InputWriteError, match="out of place"):
        gradient_pass(writer, make_objective("cross-entropy", "untargeted"), x, y, y)
    with pytest.raises(InputWriteError, match="out of place"):
        judge(writer, x, 8)
    with torch.inference_mode():
        assert len(call_model(lenet, x + 0)) == 8  # no counter to read


class Moody(nn.Module):
    """Writes past autograd, but not yet when preflight and floor ask: into few images alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(x) == 11:
            x.data.mul_(0.5)
        logits: Tensor = self.net(x)
        return logits


def test_the_images_of_a_chunk_are_compared_where_no_counter_tells(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x = digits[0][:12].clone()
    y = lenet(x).argmax(1)
    y[0] = (y[0] + 1) % 10  # so that eleven are attacked
    before = x.clone()
    with pytest.raises(ContractError, match="wrote into the images"):
        bench.evaluate(Moody(lenet).eval(), x, y, attack="fgsm", copied=False)
    assert torch.equal(x, before)


def test_what_data_hand_out_is_nobody_elses(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:4].clone(), digits[1][:4].clone()
    kept = x.clone(), y.clone()
    foreign = Data(
        name="own", read=lambda first, last: x[first:last], labels=y, n=4, shape=(1, 28, 28),
        classes=(), fingerprint="own",
    )  # fmt: skip
    for data in (make_data("digits", x, y, ()), foreign):
        data.read(0, 2).zero_()
        assert data.labels is not None
        data.labels.zero_()
        assert torch.equal(data.read(0, 4), kept[0])
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_a_net_shown_a_copy_is_certified_as_without(lenet: nn.Module) -> None:
    net = InputCloningModel(lenet).double().eval()
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    plain, private = (network.read_network(each, images.shape[1:]) for each in (net.net, net))
    assert [type(layer) for layer in plain] == [type(layer) for layer in private]
