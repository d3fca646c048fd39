"""What the steps of attacks ask of a GPU is counted, and stays within its budget."""

import pytest
import torch
from torch import Tensor, nn

from bench.engine import stream
from gpu import step_counts
from gpu.step_counts import StepCounts, count_run, count_steps


@pytest.fixture(scope="module")
def pgd() -> StepCounts:
    return count_steps("pgd", "linf", rows=4)


def test_a_step_of_pgd_is_one_graph_that_the_host_does_not_wait_for(pgd: StepCounts) -> None:
    assert pgd.failure == ""
    assert 0 < pgd.kernels <= 79
    assert pgd.copies == 0


def test_between_two_looks_the_host_waits_at_most_twice(pgd: StepCounts) -> None:
    assert pgd.waits <= 2
    assert pgd.launches <= 29
    assert all(place.startswith("engine/stream.py:") for place in pgd.where)


def test_each_replay_and_each_kernel_beside_it_is_counted() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    def attack(net: nn.Module, x: Tensor, y: Tensor, ids: Tensor) -> None:
        for _ in range(3):
            net(x).t()[0]  # one kernel: a view launches none
        if y.sum() > 0:
            y.add_(1)

    counts = count_run(attack, Doubling(), torch.ones(2, 2), torch.ones(2, dtype=torch.int64))
    assert dict(counts.around) == {"mul": 3, "sum": 1, "gt": 1, "add_": 1}
    assert [(event.kind, event.file) for event in counts.events] == [
        ("read", "test_step_counts.py")
    ]
    assert counts.steps == 0


def test_a_step_that_cannot_be_captured_is_counted_kernel_by_kernel() -> None:
    net, x, y = step_counts.load_problem(2)

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.net(x)
            return answer if answer.sum().item() < 1e9 else answer / 2

    spec = step_counts.make_spec("bim", "linf", 2)
    counts = count_run(
        lambda net, x, y, ids: stream.run_attack(net, spec, x, y, ids, 4), Reading(), x, y
    )
    assert len(counts.failures) == 1
    assert counts.graph.total() == 0
    assert counts.around["convolution_backward"] > 0
