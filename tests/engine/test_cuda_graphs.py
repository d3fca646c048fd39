"""Turns recorded once and replayed, and several turns between two looks at who has finished.

A GPU replays kernels on the tensors that they were recorded on. Here torch.fx records the same
tensor operations on a CPU, so that what the host decides while it records is decided once and for
all, as there; the test on a GPU itself is at the end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bench.core import registry
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.engine import cuda_graphs, stream
from bench.engine.functional import gradients
from bench.engine.tensor_tree import (
    count_rows,
    join_rows,
    list_tensors,
    map_tensors,
    split_rows,
    take_rows,
)

Attacked = Callable[..., stream.StreamResult]
BUILT_IN = [name for name in registry.names("attacks") if not name.endswith(":")]
FOUND = {name: registry.find("attacks", name) for name in BUILT_IN}
LOOPS = [
    name
    for name, each in FOUND.items()
    if isinstance(each, IterativeAttack) and not each.rule.one_gradient
]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LOOPS),
    ("pgd", {"stop": "never"}),
    ("mifgsm", {"stop": "never"}),
    ("pgd", {"sweep": "nested"}),
]
TURNS = (3, stream.STEPS_PER_CHECK)


@pytest.fixture
def net(lenet: nn.Module) -> nn.Module:
    return lenet.double().requires_grad_(False)


@pytest.fixture
def few(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """7 digits, float64."""
    x, y = digits
    return x[:7].double(), y[:7]


class Inner(NamedTuple):
    x: Tensor
    momentum: Tensor


class Rows(NamedTuple):
    """A batch as the engine's: a state within it."""

    item: Tensor
    state: Inner


def rows(n: int, start: float = 0.0) -> Rows:
    values = start + torch.arange(float(n))
    return Rows(values.long(), Inner(values[:, None].repeat(1, 3), values[:, None, None] / 2))


def same(ours: Any, theirs: Any) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(list_tensors(ours), list_tensors(theirs), strict=True)
    )


# ---------------------------------------------------------------------------- rows, cut and joined


def test_a_batch_cut_and_joined_is_the_batch() -> None:
    batch = rows(5)
    for at in range(1, 6):
        first, rest = split_rows(batch, at)
        assert (count_rows(first), count_rows(rest)) == (at, 5 - at)
        assert same(join_rows(first, rest), batch)
    assert split_rows(batch, 5)[1] is None
    assert same(join_rows(None, batch), batch)


def test_rows_are_taken_alike_from_every_field_and_the_kind_is_kept() -> None:
    taken = take_rows(rows(5), torch.tensor([False, True, False, False, True]))
    assert isinstance(taken, Rows)
    assert isinstance(taken.state, Inner)
    assert taken.item.tolist() == [1, 4]
    assert taken.state.momentum.flatten().tolist() == [0.5, 2.0]


@pytest.mark.parametrize("held", [3, 4, 8])
def test_a_batch_is_padded_with_its_own_rows(held: int) -> None:
    full = cuda_graphs.pad_rows(rows(3), held)
    assert full.item.tolist() == [0, 1, 2, 0, 1, 2, 0, 1][:held]
    assert torch.equal(full.state.x[:, 0], full.item.float())


def test_what_is_written_reaches_the_first_rows_of_the_same_buffers_alone() -> None:
    static = rows(5)
    buffers = list_tensors(static)
    cuda_graphs.copy_rows(rows(2, start=7.0), static)
    assert static.item.tolist() == [7, 8, 2, 3, 4]
    assert all(a is b for a, b in zip(list_tensors(static), buffers, strict=True))


# --------------------------------------------------------------------------------- recorded turns


def recorded(turn: Any, example: Any) -> Any:
    """`turn` as torch.fx records it on the example's tensors, played on buffers as a graph is."""
    static = map_tensors(torch.clone, example)

    def flat(*tensors: Tensor) -> list[Tensor]:
        left = iter(tensors)
        return list_tensors(turn(map_tensors(lambda _: next(left), static)))

    # One mode for all tensors: without it torch.fx makes one for every operation.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        graph = make_fx(flat)(*list_tensors(static))

    def replay() -> None:
        after = graph(*list_tensors(static))
        for new, buffer in zip(after, list_tensors(static), strict=True):
            buffer.copy_(new)

    return lambda batch: cuda_graphs.replay(replay, static, batch)


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every attack replays recorded turns; the rows of each recording."""
    recordings: list[int] = []

    def record(turn: Any, example: Any) -> Any:
        recordings.append(count_rows(example))
        return recorded(turn, example)

    monkeypatch.setattr(cuda_graphs, "capture_graph", record)
    monkeypatch.setattr(stream, "runs_asynchronously", lambda device: True)
    return recordings


def agree(ours: stream.StreamResult, theirs: stream.StreamResult) -> None:
    assert torch.allclose(ours.x_adv, theirs.x_adv, rtol=0, atol=1e-6)
    assert torch.equal(ours.first_success, theirs.first_success)
    assert torch.equal(ours.forwards, theirs.forwards)
    assert torch.equal(ours.backwards, theirs.backwards)


@pytest.mark.parametrize(("attack", "settings"), CASES)
def test_recorded_turns_return_what_turns_return(
    attack: str, settings: Any, net: nn.Module, few: Any, attacked: Attacked, request: Any
) -> None:
    x, y = few[0][:5], few[1][:5]
    settings = {"params": {"steps": 4}, "rows": 3, **settings}
    eager = attacked(net, x, y, attack, (0.1, 0.2), **settings)
    recordings = request.getfixturevalue("replaying")
    agree(attacked(net, x, y, attack, (0.1, 0.2), **settings), eager)
    assert recordings[0] == 3
    assert len(recordings) == len(set(recordings))  # every size is recorded once
    # Batches shrank, unless the last rows finish together.
    assert len(recordings) > 1 or attack in ("fab_t", "apgd_malt")


@pytest.mark.parametrize("held", [14, 5])
def test_restarts_are_replayed_in_full_and_in_half_full_batches(
    held: int, net: nn.Module, few: Any, attacked: Attacked, request: Any
) -> None:
    settings = {"params": {"steps": 4, "restarts": 3}, "rows": held, "stop": "first-success"}
    eager = attacked(net, *few, "pgd", (0.07, 0.12), **settings)
    request.getfixturevalue("replaying")
    agree(attacked(net, *few, "pgd", (0.07, 0.12), **settings), eager)
    assert len(eager.first_success.unique()) > 3


def test_the_smallest_recording_that_holds_a_batch_is_played(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    result: list[int] = []
    played: list[tuple[int, int]] = []

    def record(turn: Any, example: Any) -> Any:
        held = count_rows(example)
        result.append(held)
        return lambda batch: played.append((count_rows(batch), held))

    monkeypatch.setattr(cuda_graphs, "capture_graph", record)
    pgd = FOUND["pgd"]
    spec = AttackSpec(name="pgd", attack=pgd, params=pgd.params(), norm="linf", eps=(0.1,))
    graphs = cuda_graphs.StepGraphs(net, spec, most=20)
    for n in (20, 11, 10, 6, 5, 3, 2, 1, 20, 4):
        graphs.run(lambda batch: batch, rows(n))
    assert played == [
        (20, 20), (11, 20), (10, 10), (6, 10), (5, 5), (3, 5), (2, 2), (1, 1), (20, 20), (4, 5),
    ]  # fmt: skip
    assert result == [20, 10, 5, 2, 1]


def test_rows_that_are_not_in_use_change_nothing(net: nn.Module, few: Any) -> None:
    def turn(batch: Inner) -> Inner:
        seen = gradients.gradient_pass(
            net, lambda logits, y, label: logits[:, 0], batch.x, few[1], few[1]
        )
        momentum = batch.momentum + seen.gradient
        return Inner(batch.x + momentum.sign() / 100, momentum)

    whole = Inner(few[0], torch.zeros_like(few[0]))
    static = map_tensors(torch.clone, whole)
    spoilt = [torch.nan, torch.inf, -torch.inf, 1e300]
    for n, value in zip((5, 1, 7, 4), spoilt, strict=True):
        for buffer in list_tensors(static):
            buffer.fill_(value)
        batch = take_rows(whole, slice(0, n))
        after = cuda_graphs.replay(
            lambda: cuda_graphs.copy_rows(turn(static), static), static, batch
        )
        assert count_rows(after) == n
        wanted = take_rows(turn(whole), slice(0, n))
        assert torch.allclose(after.momentum, wanted.momentum)
        assert torch.equal(after.x, wanted.x)


def test_what_was_read_back_is_no_view_of_the_buffers() -> None:
    static = rows(4)
    after = cuda_graphs.replay(lambda: None, static, rows(4, start=9.0))
    cuda_graphs.copy_rows(rows(4), static)
    assert after.item.tolist() == [9, 10, 11, 12]


# ---------------------------------------------------------------------------------- several turns


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """(turns) -> rows of every batch checked from now on, after so many turns as on a GPU."""
    remove = stream.AttackStream.remove_finished

    def start(turns: int) -> list[int]:
        checked: list[int] = []

        def counting(run: Any, batch: Any) -> Any:
            checked.append(count_rows(batch))
            return remove(run, batch)

        monkeypatch.setattr(stream, "runs_asynchronously", lambda device: True)
        monkeypatch.setattr(stream, "STEPS_PER_CHECK", turns)
        monkeypatch.setattr(stream.AttackStream, "remove_finished", counting)
        return checked

    return start


@pytest.mark.parametrize(("attack", "settings"), CASES)
def test_several_turns_between_two_checks_give_the_same_outcome_and_passes(
    attack: str, settings: Any, net: nn.Module, few: Any, attacked: Attacked, blind: Any
) -> None:
    settings = {"params": {"steps": 10}, "rows": 4, **settings}
    every_turn = blind(1)
    one = attacked(net, *few, attack, (0.1, 0.2), **settings)
    for turns in TURNS:
        checked = blind(turns)
        agree(attacked(net, *few, attack, (0.1, 0.2), **settings), one)
        assert len(checked) < len(every_turn)


def test_restarts_wait_for_the_look_and_lose_nothing(
    net: nn.Module, few: Any, attacked: Attacked, blind: Any, replaying: list[int]
) -> None:
    settings = {"params": {"steps": 5, "restarts": 3}, "rows": 3}
    blind(1)
    one = attacked(net, *few, "pgd", (0.07, 0.12), **settings)
    blind(4)
    agree(attacked(net, *few, "pgd", (0.07, 0.12), **settings), one)
    assert (one.forwards > 5).any()
    assert replaying


def test_a_trace_is_kept_turn_by_turn(
    lenet: nn.Module, digits: Any, attacked: Attacked, blind: Any
) -> None:
    x, y = (part[:7] for part in digits)
    settings = {"params": {"steps": 6}, "rows": 4, "trace": True}
    one = attacked(lenet, x, y, "bim", (0.1, 0.2), **settings)
    blind(4)
    several = attacked(lenet, x, y, "bim", (0.1, 0.2), **settings)
    assert several.losses is not None
    assert one.losses is not None
    assert torch.allclose(several.losses, one.losses, rtol=1e-4, equal_nan=True)


# ------------------------------------------------------------------------------------------ a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize(("attack", "settings"), CASES)
def test_a_gpu_replays_what_it_would_have_computed(
    attack: str, settings: Any, net: nn.Module, few: Any, attacked: Attacked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    net = net.cuda()
    x, y = (part.cuda() for part in few)
    settings = {"examples": torch.arange(len(x)).cuda(), "rows": 8, **settings}
    replays: list[int] = []
    play = cuda_graphs.replay

    def counting(replay: Any, static: Any, batch: Any) -> Any:
        replays.append(count_rows(batch))
        return play(replay, static, batch)

    monkeypatch.setattr(cuda_graphs, "replay", counting)
    replayed = attacked(net, x, y, attack, (0.1, 0.2), **settings)
    assert replays
    monkeypatch.setattr(cuda_graphs.StepGraphs, "run", lambda graphs, step, batch: step(batch))
    agree(replayed, attacked(net, x, y, attack, (0.1, 0.2), **settings))
