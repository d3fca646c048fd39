"""Attacks, the floor and the speed race multiply in the same arithmetic, which the table names."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.engine import timing
from bench.engine.float32_precision import allow_tf32
from bench.workflows.speed import page, race, setup, workloads
from bench.workflows.speed.competitors import list_competitors


class Seen(nn.Module):
    """Notes whether TF32 is on, in matrix products and in convolutions, at every pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.tf32: set[tuple[bool, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        backends = torch.backends
        self.tf32.add((backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32))
        return self.net(x)


@pytest.mark.parametrize("process", [True, False])
def test_the_floor_is_timed_without_tf32(process: bool, lenet: nn.Module) -> None:
    net = Seen(lenet.requires_grad_(False))
    with allow_tf32(process):
        timing.measure_floor(net, torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.long), 4)
    assert net.tf32 == {(False, False)}


@pytest.fixture
def task(tmp_path: Path) -> setup.RaceTask:
    work = workloads.Workload(
        name="w", title="w", models=[workloads.TargetModel(name="lenet", weights="random")],
        data="digits", limit=4, attack="pgd", params={"steps": 1}, eps=[0.1],
        ours=["plain", "judged"],
    )  # fmt: skip
    return setup.load_task(
        work, work.models[0], device=torch.device("cpu"), data_dir=tmp_path, limit=4
    )


@pytest.mark.parametrize("process", [True, False])
def test_every_competitor_races_without_tf32_and_the_table_says_so(
    process: bool, task: setup.RaceTask
) -> None:
    net = Seen(task.model)
    task = dataclasses.replace(task, model=net)
    with allow_tf32(process):
        done = race.run_race(task, list(list_competitors(task.work, ())), rounds=1, rows=4)
        said = page.describe_timing(done)
    assert {each.status for each in done.outcomes} == {"ok"}
    assert net.tf32 == {(False, False)}
    assert re.search(r"TF32 off\b", said)
