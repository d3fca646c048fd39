"""The number of kernels, launches and host reads of an attack on a GPU stays within its budget."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from bench.engine import progress, stream
from bench.engine.progress import Progress, count_unit
from gpu.fake_cuda import FakeCuda
from gpu.launch_counts import counting

Attacked = Callable[..., stream.StreamResult]
BUDGETS = {
    # attack: kernels of a turn in the graph, launches around a turn, host reads of a look
    "pgd": (45, 6, 2),
    "apgd": (90, 10, 3),
    "square": (80, 10, 3),
}


@pytest.mark.parametrize("attack", BUDGETS)
def test_an_attack_keeps_its_budget_of_kernels_launches_and_reads(
    attack: str, lenet: nn.Module, digits: tuple[Tensor, Tensor], attacked: Attacked
) -> None:
    net, cuda = lenet.requires_grad_(False), FakeCuda(0)
    x, y = digits[0][:12], digits[1][:12]
    settings: dict[str, Any] = {"params": {"steps": 40}, "rows": 8}
    with cuda.pretend(), counting(cuda) as found:
        attacked(net, x, y, attack, (0.05, 0.15), **settings)
    (counted,) = found
    asked = counted.in_graph, counted.around, counted.reads
    assert all(each <= most for each, most in zip(asked, BUDGETS[attack], strict=True)), counted


def test_progress_asks_a_gpu_for_nothing_more(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], attacked: Attacked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    net, (x, y) = lenet.requires_grad_(False), (digits[0][:12], digits[1][:12])
    settings: dict[str, Any] = {"params": {"steps": 16}, "rows": 8}
    reports: list[Progress] = []
    counts = []
    for listen in (None, reports.append):
        cuda = FakeCuda(0)
        with cuda.pretend(), counting(cuda) as found, count_unit(listen):
            attacked(net, x, y, "pgd", (0.05, 0.15), **settings)
        counts += found
    assert counts[0] == counts[1]
    assert len(reports) > 1
