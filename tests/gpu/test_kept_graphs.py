"""Graphs stay for the next chunk of an evaluation while nothing that they depend on changes."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.input_transforms import InputTransforms
from bench.engine import cuda_graphs, stream
from bench.evaluation import chunk_sizes
from gpu.fake_cuda import FakeCuda

Attacked = Callable[..., stream.StreamResult]
SETTINGS: dict[str, Any] = {"params": {"steps": 4}, "rows": 4}
Images = tuple[Tensor, Tensor]


class Scaled(nn.Module):
    """A linear net whose logits are multiplied by a number."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.linspace(-1, 1, 7840).sin_().view(10, 784)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1) @ self.weight.T


@pytest.fixture
def net() -> Scaled:
    return Scaled().eval()


@pytest.fixture
def few(net: Scaled, digits: Images) -> Images:
    """8 digits, and what the net predicts for them."""
    return digits[0][:8], net(digits[0][:8]).argmax(1)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage is collected: what is freed is freed by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def same(one: stream.StreamResult, other: stream.StreamResult) -> bool:
    return torch.equal(one.x_adv, other.x_adv) and torch.equal(one.forwards, other.forwards)


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square"])
def test_the_next_chunk_replays_the_graphs_of_the_one_before(
    attack: str, net: Scaled, few: Images, attacked: Attacked
) -> None:
    parts = [(few[0][:5], few[1][:5], torch.arange(5)), (few[0][5:], few[1][5:], torch.arange(3))]

    def run() -> list[stream.StreamResult]:
        return [attacked(net, x, y, attack, 0.1, examples=e, **SETTINGS) for x, y, e in parts]

    eager, cuda = run(), FakeCuda(0)
    with cuda.pretend(), cuda_graphs.keep_graphs(cuda_graphs.KeptGraphs()):
        first = run()
        captures = len(cuda.captures)
        again = run()
    assert captures == len(cuda.captures) > 0
    assert len({capture.memory for capture in cuda.captures}) == 1
    assert all(map(same, first, eager))
    assert all(map(same, again, eager))


def test_a_graph_has_the_random_transformations_of_the_chunk_that_replays_it(
    lenet: nn.Module, digits: Images, attacked: Attacked
) -> None:
    net, few = lenet.requires_grad_(False), (digits[0][:4], digits[1][:4])
    settings = {**SETTINGS, "transforms": InputTransforms(diversity=1.0)}
    ids = [torch.arange(4), torch.arange(4) + 50]
    eager = [attacked(net, *few, "bim", 0.1, examples=e, **settings) for e in ids]
    cuda = FakeCuda(0)
    with cuda.pretend(), cuda_graphs.keep_graphs(cuda_graphs.KeptGraphs()):
        replayed = [attacked(net, *few, "bim", 0.1, examples=e, **settings) for e in ids]
    assert not same(*eager)
    assert all(map(same, replayed, eager))


@pytest.mark.parametrize("change", ["numbers", "tensor", "attribute", "mode"])
def test_a_model_that_changed_in_between_gives_no_number_of_the_old_one(
    change: str, net: Scaled, few: Images, attacked: Attacked
) -> None:
    other = -net.weight
    cuda = FakeCuda(0)
    with cuda.pretend(), cuda_graphs.keep_graphs(cuda_graphs.KeptGraphs()):
        before = attacked(net, *few, "pgd", 0.1, **SETTINGS)
        if change == "numbers":
            net.weight.copy_(other)
        elif change == "tensor":
            net.weight = nn.Parameter(other, requires_grad=False)
        elif change == "attribute":
            net.scale = -1.0
        else:
            net.forward = lambda x: -x.flatten(1) @ net.weight.T  # type: ignore[method-assign]
            net.train()
        after = attacked(net, *few, "pgd", 0.1, **SETTINGS)
    assert not same(before, after)
    assert same(after, attacked(net, *few, "pgd", 0.1, **SETTINGS))


def test_graphs_of_other_params_norms_and_models_are_others(
    net: Scaled, few: Images, attacked: Attacked
) -> None:
    cases: list[tuple[nn.Module, dict[str, Any]]] = [
        (net, {}), (net, {"norm": "l2"}), (net, {"params": {"steps": 3}}), (net, {"stop": "never"}),
        (net, {"goal": "targeted"}), (Scaled().eval(), {}),
    ]  # fmt: skip

    def run() -> list[stream.StreamResult]:
        return [attacked(m, *few, "pgd", 0.1, **(SETTINGS | more)) for m, more in cases]

    eager, cuda = run(), FakeCuda(0)
    with cuda.pretend(), cuda_graphs.keep_graphs(cuda_graphs.KeptGraphs()):
        assert all(map(same, run(), eager))
        assert all(map(same, run(), eager))


def test_no_more_than_a_few_attacks_keep_their_graphs(
    net: Scaled, few: Images, attacked: Attacked, no_collection: None
) -> None:
    cuda, kept = FakeCuda(0), cuda_graphs.KeptGraphs()
    with cuda.pretend(), cuda_graphs.keep_graphs(kept):
        for number in range(1, cuda_graphs.MOST_KEPT + 4):
            params = {"steps": 2, "alpha": number / 1000}
            attacked(net, *few, "bim", 0.1, params=params, rows=8)
    alive = [graph for graph in cuda.graphs if graph() is not None]
    assert len(cuda.graphs) > len(alive) == cuda_graphs.MOST_KEPT
    kept.drop()
    assert not any(reference() is not None for reference in (*cuda.graphs, *cuda.memory))


def test_graphs_buffers_and_memory_are_freed_with_what_keeps_them(
    net: Scaled, few: Images, attacked: Attacked, no_collection: None
) -> None:
    cuda, kept = FakeCuda(0), cuda_graphs.KeptGraphs()
    with cuda.pretend(), cuda_graphs.keep_graphs(kept):
        attacked(net, *few, "pgd", 0.1, **SETTINGS)
    assert cuda.memory
    assert all(graph() is not None for graph in cuda.graphs)
    del kept
    assert not any(reference() is not None for reference in (*cuda.graphs, *cuda.memory))


def test_rows_that_are_not_in_use_never_make_more_steps_than_there_are(
    net: Scaled, few: Images, attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    run = cuda_graphs.StepGraphs.run

    def noting(graphs: Any, step: Any, rows: Any, number: int) -> None:
        run(graphs, step, rows, number)
        made.append(int(rows.buffers.view(rows.buffers.most).known.k.max()))

    monkeypatch.setattr(cuda_graphs.StepGraphs, "run", noting)
    with FakeCuda(0).pretend():
        attacked(net, *few, "pgd", (0.01, 0.1), params={"steps": 10, "restarts": 2}, rows=8)
    assert max(made) == 10
    assert len(made) > 3


def test_an_evaluation_captures_once_for_all_its_chunks_and_frees_its_graphs(
    net: Scaled, few: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures = {}
    for size in (8, 4):
        monkeypatch.setattr(chunk_sizes, "choose_size", lambda *about, size=size: size)
        cuda = FakeCuda(0)
        with cuda.pretend():
            bench.evaluate(
                net, few, eps=0.1, params={"steps": 3}, batch_size=4, copied=False, device="cuda:0"
            )
            gc.collect()
        captures[8 // size] = len(cuda.captures)
        assert not any(reference() is not None for reference in (*cuda.graphs, *cuda.memory))
    assert captures[2] == captures[1] > 0


def test_memory_that_runs_out_releases_the_graphs_of_other_attacks(
    net: Scaled, few: Images, attacked: Attacked, monkeypatch: pytest.MonkeyPatch,
    no_collection: None,
) -> None:  # fmt: skip
    cuda, capture = FakeCuda(0), cuda_graphs.capture_graph

    def full(*given: Any) -> Any:
        if any(graph() is not None for graph in cuda.graphs):
            raise torch.OutOfMemoryError("planted")
        return capture(*given)

    with cuda.pretend(), cuda_graphs.keep_graphs(cuda_graphs.KeptGraphs()):
        attacked(net, *few, "bim", 0.1, **SETTINGS)
        monkeypatch.setattr(cuda_graphs, "capture_graph", full)
        found = attacked(net, *few, "pgd", 0.1, **SETTINGS)
    assert found.rows == 2
    assert same(found._replace(rows=4), attacked(net, *few, "pgd", 0.1, **SETTINGS))


def test_steps_that_log_queries_outlive_the_attack_that_recorded_them(
    net: Scaled, few: Images
) -> None:
    """The tensors that a graph reads must stay as long as it."""
    ddn = registry.find("attacks", "ddn")
    spec = AttackSpec(
        name="ddn", attack=ddn, params=ddn.params(steps=4), norm="l2", eps=(float("inf"),),
        radii=(1.0, 2.0), budgets=(2, 4), stop="never",
    )  # fmt: skip
    kept, cuda = cuda_graphs.KeptGraphs(), FakeCuda(0)
    with cuda.pretend(), cuda_graphs.keep_graphs(kept):
        run = stream.AttackStream(net, net, spec, *few, torch.arange(8), few[1], 4)
        radii = weakref.ref(run.steps.radii)
        run.run()
        del run
        gc.collect()
        assert radii() is not None
