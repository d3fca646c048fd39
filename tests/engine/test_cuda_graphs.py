"""Turns recorded once and replayed, and several turns between two looks at who has finished.

A GPU replays kernels on the tensors that they were recorded on. Here torch.fx records the same
tensor operations on a CPU, so that what the host decides while it records is decided once and for
all, as there; the test on a GPU itself is at the end.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core import registry
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.rule import AttackBatch
from bench.engine import cuda_graphs, stream
from bench.engine.active_rows import ActiveBatch, ActiveRows
from bench.engine.query_log import QueryLog
from bench.engine.resident_rows import ResidentRows, RowBuffers, copy_changed, replace_tensors
from bench.engine.tensor_tree import (
    count_rows,
    join_rows,
    list_tensors,
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


class Other(NamedTuple):
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


# -------------------------------------------------------------------------------- rows in buffers


def active(n: int, start: float = 0.0) -> ActiveBatch:
    """Rows that can be told apart, with numbers, truth values and images."""
    number = (start + torch.arange(float(n))).long()
    image = number.float()[:, None, None, None].repeat(1, 1, 2, 2)
    known = AttackBatch(
        image, number, number + 1, number / 2, number + 2, number - 1, number, number * 0.1
    )
    log = QueryLog(number.double(), image.new_empty(n, 0), image.new_empty(n, 0))
    item = torch.stack([number, number, number], 1)
    return ActiveBatch(item, known, Inner(-image, image * 2), number - 1, number, item[:, :0], log)


@pytest.fixture
def held() -> ResidentRows:
    """No rows, in buffers for 8."""
    return ResidentRows(lambda example: RowBuffers(example, 8))


def numbers(rows: Any) -> list[int]:
    whole: list[int] = rows.batch.item[:, 0].tolist()
    assert same(rows.batch, active_of(whole))
    return whole


def active_of(whole: list[int]) -> ActiveBatch:
    """The rows of these numbers."""
    return take_rows(active(1 + max(whole)), torch.tensor(whole))


def test_rows_are_added_taken_and_removed_in_their_buffers(held: ResidentRows) -> None:
    held.add(active(3))
    held.add(active(4, start=3.0))
    assert numbers(held) == [0, 1, 2, 3, 4, 5, 6]
    memory = held.batch.state.x.data_ptr()
    assert same(held.take(torch.tensor([5, 1])), active_of([5, 1]))
    held.remove(torch.tensor([1, 2, 6]))
    assert sorted(numbers(held)) == [0, 3, 4, 5]
    held.add(active(2, start=7.0))
    assert sorted(numbers(held)) == [0, 3, 4, 5, 7, 8]
    assert held.batch.state.x.data_ptr() == memory
    held.remove(torch.arange(6))
    assert held.batch is None


@pytest.mark.parametrize("kind", [ActiveRows, None])
def test_any_rows_can_be_removed(kind: Any, held: ResidentRows) -> None:
    for bits in range(1, 2**5):
        rows = held if kind is None else kind()
        rows.add(active(5))
        at = torch.tensor([number for number in range(5) if bits & 2**number])
        rows.remove(at)
        assert len(rows) == 5 - len(at)
        left = set(range(5)) - set(at.tolist())
        assert not left or set(numbers(rows)) == left
        if len(rows):
            rows.remove(torch.arange(len(rows)))


def test_rows_that_leave_are_no_view_of_the_buffers(held: ResidentRows) -> None:
    held.add(active(4))
    taken, gone = held.take(torch.tensor([2, 3])), held.leave()
    assert len(held) == 0
    held.add(active(8, start=20.0))
    assert same(taken, active_of([2, 3]))
    assert same(gone, active(4))


def test_only_tensors_that_changed_are_copied_also_where_they_changed_places(
    held: ResidentRows,
) -> None:
    held.add(active(3))
    batch = held.batch
    swapped = batch._replace(state=Inner(batch.state.momentum, batch.state.x + 1))
    copies = Counter[str]()

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            copies[function._schema.name] += 1
            return function(*args, **(kwargs or {}))

    with Copies():
        copy_changed(swapped, batch)
    assert dict(copies) == {"aten::clone": 1, "aten::_foreach_copy_": 1}
    assert torch.equal(held.batch.state.x, 2 * active(3).known.x)
    assert torch.equal(held.batch.state.momentum, 1 - active(3).known.x)


def test_buffers_fit_rows_of_their_kind_and_number_alone() -> None:
    buffers = RowBuffers(active(3), 8)
    assert buffers.fits(active(2), 8)
    assert not buffers.fits(active(2), 9)
    other = active(2)
    assert not buffers.fits(other._replace(first=other.first.float()), 8)
    assert not buffers.fits(other._replace(state=Other(*other.state)), 8)


# --------------------------------------------------------------------------------- recorded turns


def recorded(step: Any, static: Any, number: int) -> Callable[[], None]:
    """Steps as torch.fx records them on the buffers, played on them as a graph is."""

    def flat(*tensors: Tensor) -> list[Tensor]:
        return list_tensors(step(replace_tensors(static, [*tensors]), number))

    # One mode for all tensors: without it torch.fx makes one for every operation.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        graph = make_fx(flat)(*list_tensors(static))

    def replay() -> None:
        after = graph(*list_tensors(static))
        for new, buffer in zip(after, list_tensors(static), strict=True):
            buffer.copy_(new.clone())

    return replay


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every attack replays recorded turns; rows and turns of each recording."""
    recordings: list[tuple[int, int]] = []

    def record(step: Any, static: Any, number: int, memory: Any) -> Any:
        recordings.append((count_rows(static), number))
        return recorded(step, static, number)

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
    assert recordings[0] == (3, 4)
    assert len(recordings) == len(set(recordings))  # every size is recorded once


@pytest.mark.parametrize("held", [14, 5])
def test_restarts_are_replayed_in_full_and_in_half_full_batches(
    held: int, net: nn.Module, few: Any, attacked: Attacked, request: Any
) -> None:
    settings = {"params": {"steps": 4, "restarts": 3}, "rows": held, "stop": "first-success"}
    eager = attacked(net, *few, "pgd", (0.07, 0.12), **settings)
    request.getfixturevalue("replaying")
    agree(attacked(net, *few, "pgd", (0.07, 0.12), **settings), eager)
    assert len(eager.first_success.unique()) > 3


class Sizes:
    """In place of captures: notes the size of each recording and of each replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, net: nn.Module, most: int) -> None:
        monkeypatch.setattr(cuda_graphs, "capture_graph", self.record)
        pgd = FOUND["pgd"]
        spec = AttackSpec(name="pgd", attack=pgd, params=pgd.params(), norm="linf", eps=(0.1,))
        self.graphs = cuda_graphs.StepGraphs(net, spec)
        self.most = most
        self.recorded: list[int] = []
        self.played: list[int] = []

    def record(self, step: Any, static: Any, number: int, memory: Any) -> Any:
        held = count_rows(static)
        self.recorded.append(held)
        return lambda: self.played.append(held)

    def run(self, n: int, number: int = 8) -> None:
        rows = ResidentRows(lambda example: self.graphs.reserve_buffers(example, self.most))
        rows.add(active(n))
        self.graphs.run(lambda batch, number: batch, rows, number)


def test_a_finer_recording_is_made_once_coarser_ones_have_cost_as_much(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(monkeypatch, net, most=20)
    for n in (20, 12, 12, 12, 12, 20, 3, 11):
        sizes.run(n)
    # 8 rows in vain at each of 8 steps, twice, cost less than 11 steps of 12 rows; thrice, more.
    # 9 rows in vain at each of 8 steps cost more than 11 steps of 3 rows.
    assert sizes.played == [20, 20, 20, 12, 12, 20, 3, 12]
    assert len(sizes.recorded) == len(set(sizes.recorded))


def test_no_more_than_a_quarter_of_the_computed_rows_is_computed_in_vain(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(monkeypatch, net, most=100)
    needed = [n for n in range(100, 0, -1) for _ in range(30)]
    for n in needed:
        sizes.run(n)
    assert sum(sizes.played) < 1.25 * sum(needed)


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square"])
def test_rows_that_are_not_in_use_change_nothing(
    attack: str, net: nn.Module, few: Any, attacked: Attacked,
    monkeypatch: pytest.MonkeyPatch, request: Any,
) -> None:  # fmt: skip
    params = {"steps": 4} if attack == "square" else {"steps": 4, "restarts": 3}
    settings = {"params": params, "rows": 14, "stop": "first-success"}
    eager = attacked(net, *few, attack, (0.07, 0.12), **settings)
    request.getfixturevalue("replaying")
    run, spoilt = cuda_graphs.StepGraphs.run, [torch.nan, torch.inf, -torch.inf, 1e300]

    def spoiling(graphs: Any, step: Any, rows: Any, number: int) -> None:
        buffers = rows.buffers
        unused = take_rows(buffers.view(buffers.most), slice(len(rows), None))
        for image in (unused.state.x, unused.known.x, unused.known.eps):
            image.fill_(spoilt[0])
        unused.known.k.fill_(10_000)  # they are stepped on and on
        spoilt.append(spoilt.pop(0))
        run(graphs, step, rows, number)

    monkeypatch.setattr(cuda_graphs.StepGraphs, "run", spoiling)
    monkeypatch.setattr(cuda_graphs, "round_up_rows", lambda rows, most: most)
    agree(attacked(net, *few, attack, (0.07, 0.12), **settings), eager)


# ---------------------------------------------------------------------------------- several turns


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """(turns) -> rows of every batch checked from now on, after so many turns as on a GPU."""
    remove = stream.AttackStream.remove_finished

    def start(turns: int) -> list[int]:
        checked: list[int] = []

        def counting(run: Any) -> None:
            checked.append(len(run.active))
            remove(run)

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
    capture = cuda_graphs.capture_graph
    captured: list[int] = []

    def counting(step: Any, static: Any, number: int, memory: Any) -> Any:
        captured.append(number)
        return capture(step, static, number, memory)

    def eagerly(graphs: Any, step: Any, rows: Any, number: int) -> None:
        rows.replace(step(rows.batch, number))

    monkeypatch.setattr(cuda_graphs, "capture_graph", counting)
    replayed = attacked(net, x, y, attack, (0.1, 0.2), **settings)
    assert captured
    monkeypatch.setattr(cuda_graphs.StepGraphs, "run", eagerly)
    agree(replayed, attacked(net, x, y, attack, (0.1, 0.2), **settings))
