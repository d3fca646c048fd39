"""Attacks on a pretended machine with several GPUs: devices, graphs, their memory and failures."""

import gc
import json
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.datasets.as_data import as_data
from bench.datasets.prefetch import Prefetcher
from bench.engine import cuda_graphs, stream
from bench.engine.device import enter_device
from bench.evaluation import chunk_sizes
from gpu.fake_cuda import FakeCuda

Attacked = Callable[..., stream.StreamResult]
SETTINGS: dict[str, Any] = {"params": {"steps": 4}, "rows": 4}
LOOPS = [
    name
    for name in registry.names("attacks")
    if not name.endswith(":")
    and isinstance(attack := registry.find("attacks", name), IterativeAttack)
    and not attack.rule.one_gradient
]


NETS = """
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))

class Reading(Linear):
    def forward(self, x):
        answer = super().forward(x)
        return answer if answer.sum().item() < 1e9 else answer / 2
"""

SUITE = """
schema = 1
name = "captures"
[data]
name = "digits"
limit = 16
[[models]]
name = "nets.py:Linear"
label = "linear"
weights = "random"
[[models]]
name = "nets.py:Reading"
label = "reading"
weights = "random"
[[attacks]]
name = "bim"
norm = "linf"
eps = [0.1]
params = { steps = 2 }
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.1, 0.2]
params = { steps = 2 }
"""


@pytest.fixture
def net(lenet: nn.Module) -> nn.Module:
    return lenet.requires_grad_(False)


@pytest.fixture
def few(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """6 digits."""
    return digits[0][:6], digits[1][:6]


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage is collected: what is freed is freed by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Witness(nn.Module):
    """A net that notes the current device at each call."""

    def __init__(self, net: nn.Module, cuda: FakeCuda) -> None:
        super().__init__()
        self.net, self.cuda = net, cuda
        self.seen: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(self.cuda.current_device())
        answer: Tensor = self.net(x)
        return answer


class Reading(nn.Module):
    """A net that the host reads a value of, as one that branches on its activations."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.net(x)
        return answer if answer.sum().item() < 1e9 else answer / 2


class Beside(nn.Module):
    """A net during whose calls another thread does something."""

    def __init__(self, net: nn.Module, act: Callable[[], object]) -> None:
        super().__init__()
        self.net, self.act = net, act

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=self.act)
        thread.start()
        thread.join()
        answer: Tensor = self.net(x)
        return answer


# ------------------------------------------------------------------------------------ the device


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_graphs_replay_on_any_device_what_steps_return(
    at: int, attack: str, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    eager = attacked(net, *few, attack, (0.05, 0.1), **SETTINGS)
    cuda = FakeCuda(at)
    with cuda.pretend():
        replayed = attacked(net, *few, attack, (0.05, 0.1), **SETTINGS)
    assert {capture.device for capture in cuda.captures} == {at}
    assert cuda.replays > len(cuda.captures)
    assert torch.equal(replayed.x_adv, eager.x_adv)
    assert torch.equal(replayed.first_success, eager.first_success)
    assert torch.equal(replayed.forwards, eager.forwards)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_device_is_current_inside_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(1)
    monkeypatch.setattr(torch.get_device_module(kind), "device", cuda.device)
    with enter_device(torch.device(kind, 1)):
        assert cuda.current_device() == 1
    with enter_device(torch.device("cpu")):
        assert cuda.current_device() == 0


def test_models_are_examined_attacked_judged_and_probed_on_their_device(
    net: nn.Module, few: Any
) -> None:
    cuda = FakeCuda(1)
    witness = Witness(net, cuda)
    with cuda.pretend():
        bench.evaluate(
            witness, few, eps=0.1, params={"steps": 3}, batch_size=6, copied=False, device="cuda:1"
        )
    assert witness.seen == {1}
    assert cuda.captures
    assert cuda.current_device() == 0


def test_images_are_read_ahead_and_pinned_on_their_device(few: Any) -> None:
    cuda = FakeCuda(1)
    with cuda.pretend() as device, enter_device(device):
        reader = Prefetcher(as_data(*few), [(0, 3), (3, 6)], device, ahead=True)
        parts = [reader.read(0, 3), reader.read(3, 6)]
        assert torch.equal(torch.cat(parts), few[0])
        reader.read(0, 3)  # waits for the last part that is read ahead
    assert set(cuda.pinned_on) == {1}


# ---------------------------------------------------------------------------- steps without effect


def test_a_replay_that_changes_nothing_is_no_capture(
    net: nn.Module, few: Any, attacked: Attacked
) -> None:
    eager = attacked(net, *few, "pgd", 0.1, **SETTINGS)
    cuda = FakeCuda(1)
    cuda.records = False
    kept = cuda_graphs.KeptGraphs()
    with cuda.pretend(), cuda_graphs.keep_graphs(kept):
        stepped = attacked(net, *few, "pgd", 0.1, **SETTINGS)
    assert [each.reason for each in kept.failures.take_new()] == ["its replay changes nothing"]
    assert torch.equal(stepped.x_adv, eager.x_adv)


def test_steps_that_change_nothing_are_an_error_and_no_loop(
    net: nn.Module, few: Any, attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "capture_graph", lambda *given: lambda: None)
    with (
        FakeCuda(1).pretend(),
        pytest.raises(RuntimeError, match="the steps of pgd change nothing"),
    ):
        attacked(net, *few, "pgd", 0.1, **SETTINGS)


# ---------------------------------------------------------------------------------- other threads


def test_memory_may_be_pinned_beside_a_capture(
    net: nn.Module, few: Any, attacked: Attacked
) -> None:
    cuda = FakeCuda(1)
    kept = cuda_graphs.KeptGraphs()
    with cuda.pretend(), cuda_graphs.keep_graphs(kept):
        beside = Beside(net, lambda: few[0].pin_memory())
        attacked(beside, *few, "pgd", 0.1, **SETTINGS)
    assert cuda.pinned_on
    assert cuda.replays
    assert not kept.failures.take_new()


# --------------------------------------------------------------------------------------- lifetime


@pytest.mark.parametrize("broken", [False, True])
def test_graphs_and_their_memory_are_freed_when_an_attack_returns(
    broken: bool, net: nn.Module, few: Any, attacked: Attacked, no_collection: None
) -> None:
    cuda = FakeCuda(1)
    with cuda.pretend():
        attacked(Reading(net) if broken else net, *few, "pgd", 0.1, **SETTINGS)
    assert cuda.graphs
    assert bool(cuda.memory) != broken
    assert not any(reference() is not None for reference in (*cuda.graphs, *cuda.memory))


@pytest.mark.parametrize("attack", LOOPS)
def test_an_attack_frees_its_tensors_when_it_returns(
    attack: str, net: nn.Module, few: Any, no_collection: None
) -> None:
    record = registry.find("attacks", attack)
    spec = AttackSpec(
        name=attack, attack=record, params=record.params(steps=2), norm="linf", eps=(0.1,)
    )
    x, y = few
    run = stream.AttackStream(net, net, spec, x, y, torch.arange(6), y, 6)
    run.run()
    alive = weakref.ref(run)
    del run
    assert alive() is None


# ------------------------------------------------------------------------------- failed captures


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite of two attacks on a net that can be captured and one that cannot, in two chunks."""
    monkeypatch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 8)
    monkeypatch.setattr(chunk_sizes, "LARGEST_CHUNK", 8)
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    path = tmp_path / "suite.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def test_a_failed_capture_is_tried_once_noted_once_and_counted(
    suite: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bench")
    cuda = FakeCuda(1)
    with cuda.pretend():
        options: dict[str, Any] = {"batch_size": 8, "copied": False, "device": "cuda:1"}
        bench.run(str(suite), tmp_path / "out", **options)
    (note,) = [each for each in caplog.messages if "CUDA graph" in each]
    assert "reading: a step of bim cannot be captured" in note
    assert "operation not permitted" in note
    failed = [capture for capture in cuda.captures if capture.invalid]
    assert len(failed) == 2  # of each attack, for all chunks and sizes
    about = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert about["sessions"][-1]["failed_captures"] == {"reading": 2}


def test_memory_that_runs_out_in_a_capture_halves_the_rows(
    net: nn.Module, few: Any, attacked: Attacked
) -> None:
    cuda = FakeCuda(1)
    kept = cuda_graphs.KeptGraphs()

    class Full(nn.Module):
        """A net that has memory for its passes, and none for those of a capture."""

        def forward(self, x: Tensor) -> Tensor:
            if cuda.is_capturing():
                raise torch.OutOfMemoryError("planted")
            answer: Tensor = net(x)
            return answer

    with cuda.pretend(), cuda_graphs.keep_graphs(kept):
        found = attacked(Full(), *few, "pgd", 0.1, **SETTINGS)
    assert found.rows == 1  # captured anew for half the rows, and then no more
    assert not kept.failures.take_new()
