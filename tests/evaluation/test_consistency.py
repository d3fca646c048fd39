"""Answers now and before: rounding is no change, anything else ends the run in one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.errors import SuiteError
from bench.evaluation import consistency
from bench.evaluation.judge import judge
from bench.storage import reader

FORGETFUL = """
import torch
from torch import nn


class Net(nn.Module):
    \"\"\"Answers otherwise from its N-th call on.\"\"\"

    def __init__(self, calls):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.left = calls

    def forward(self, x):
        self.left -= 1
        return self.net(x) if self.left > 0 else self.net(x).flip(1)


def make(calls):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(calls)
"""
SUITE = """
schema = 1
name = "s"
[data]
name = "digits"
limit = 24
[[models]]
name = "mine.py:make"
label = "net"
"""
FGSM = '[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0.1]\n'
LONG = '[[attacks]]\nname = "pgd"\nnorm = "linf"\neps = [0.1]\nstop = "never"\nparams.steps = 400\n'


def changed(model: nn.Module, x: Tensor, before: nn.Module, rows: int = 16) -> bool:
    """Whether `model` is seen to answer otherwise than `before` did."""
    said = judge(before, x, rows)
    return consistency.first_difference(model, x, 5, said.pred, said.confidence) is not None


def test_rounding_is_no_change_and_anything_more_is(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    class As(nn.Module):
        def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.net, self.answer = lenet, answer

        def forward(self, x: Tensor) -> Tensor:
            return self.answer(self.net(x))

    x = digits[0][:40]
    flat = As(lambda z: torch.ones_like(z))
    same: list[tuple[nn.Module, nn.Module]] = [
        (lenet, lenet),
        (As(lambda z: z.double().mul(1 + 1e-6).float()), lenet),
        (As(lambda z: z * 1e6 * (1 + 1e-6)), As(lambda z: z * 1e6)),  # a saturated net
        (As(lambda z: 1 + z * 1e-7), flat),  # ties, broken by rounding
        (As(lambda z: torch.full_like(z, torch.nan)), As(lambda z: torch.full_like(z, torch.nan))),
        (As(lambda z: z - z.mean(0)), As(lambda z: z - z.mean(0))),  # depends on its batch
    ]
    other = [
        (As(lambda z: z * 1.1), lenet),
        (As(lambda z: z.roll(1, 1)), lenet),
        (As(lambda z: torch.full_like(z, torch.nan)), lenet),
        (lenet, As(lambda z: torch.full_like(z, torch.nan))),
        (As(lambda z: z[:, :9] * 1.0), As(lambda z: 1e3 * z.roll(9 - int(z[0].argmax()), 1))),
    ]
    assert [changed(now, x, before) for now, before in same] == [False] * len(same)
    assert [changed(now, x, before) for now, before in other] == [True] * len(other)


def test_a_model_that_changes_while_it_is_attacked_ends_the_run_and_keeps_what_was_sound(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(FORGETFUL, encoding="utf-8")

    def left(*attacks: str) -> set[str]:
        """Attacks that have records once the run has ended in one sentence."""
        path, out = tmp_path / "s.toml", tmp_path / str(len(attacks[0]))
        path.write_text(SUITE + "params.calls = 250\n" + "".join(attacks), encoding="utf-8")
        with pytest.raises(SuiteError, match=r"^model 'net' changes its answers .* example 0 was"):
            bench.run(str(path), out=out, device="cpu", batch_size=24, copied=False)
        return set(reader.read_records(out).frame["attack"])

    assert left(FGSM, LONG) == {"fgsm"}
    assert left(LONG, FGSM) == set()
