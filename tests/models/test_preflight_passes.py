"""Preflight asks a sound model as few times as show that it is sound, and an odd one more."""

import pytest
import torch
from torch import Tensor, nn

from bench.core.contracts.dataset import Data
from bench.datasets.in_memory import make_data
from bench.engine import timing
from bench.models.preflight import checks

CPU = torch.device("cpu")


def digits_data(digits: tuple[Tensor, Tensor], n: int) -> Data:
    x, y = digits
    return make_data("digits", x[:n], y[:n], tuple("0123456789"))


@pytest.mark.parametrize(("n", "others"), [(8, 0), (16, 0), (24, 8), (200, 29)])
def test_a_sound_model_is_asked_three_times_about_the_first_images_and_once_for_a_gradient(
    n: int, others: int, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Together, alone and in reverse with a gradient; `others` are spread over the data set."""
    first = min(n, checks.N_IMAGES)
    with timing.count_passes(lenet) as passes:
        loaded = checks.preflight("net", lenet, digits_data(digits, n), CPU)
    assert loaded.findings == ()
    assert (passes.forwards, passes.backwards) == (3 * first + others, first)


class Changing(nn.Module):
    """Adds to the logits what depends on how it is called."""

    def __init__(self, net: nn.Module, how: str) -> None:
        super().__init__()
        self.net, self.how, self.calls = net, how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.net(x)
        more = {
            "alone": len(x) == 1,
            "gradient": torch.is_grad_enabled(),
            "calls": self.calls > 1,
        }[self.how]
        return logits.roll(1, 1) if more else logits


@pytest.mark.parametrize(
    ("how", "name"),
    [("alone", "batch-dependent"), ("gradient", "gradient-mode"), ("calls", "random")],
)
def test_what_one_round_of_calls_shows_is_named_by_further_calls(
    how: str, name: str, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    model = Changing(lenet, how)
    findings = checks.preflight("net", model, digits_data(digits, 16), CPU).findings
    assert [text for text in findings if f"({name})" in text]


def test_a_write_past_autograd_is_seen_in_the_reversed_images_too(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """The model writes only where a gradient is asked for, and by `.data`."""

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = lenet

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x * 1.0)
            if torch.is_grad_enabled():
                x.data.mul_(0.5)
            return logits

    findings = checks.preflight("net", Writing(), digits_data(digits, 16), CPU).findings
    assert [text for text in findings if "(writes-to-input)" in text]
