"""Count what the steps of an attack ask of a GPU: kernels, launches and moments of waiting.

Run as a program, it prints the table of all attack rules:

    PYTHONPATH=tests:tests/helpers python -m gpu.step_counts [ATTACK...]

An attack runs twice on a pretended GPU (`fake_cuda`, `fake_tensors`), the second time with as many
more steps as the host makes between two looks, on one batch that nothing leaves: the difference is
what these steps cost. An operation of torch
counts as one kernel; views, allocations and operations on nothing count as none. The numbers do not
depend on the speed or the load of the machine.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.types import Norm
from bench.datasets import digits
from bench.engine import cuda_graphs, stream
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.models import lenet
from bench.models.published_weights import WEIGHTS
from gpu.fake_cuda import FakeCuda, FakeGraph
from gpu.fake_tensors import Event, FakeDevice

LOOK = stream.STEPS_PER_CHECK
"""Steps between two looks of the host at what has finished."""
WAITS = ("read", "download")
"""Events for which the host waits."""


class RunCounts(NamedTuple):
    """What one attack asked of a GPU."""

    steps: int
    """Graphs replayed."""
    graph: Counter[str]
    """Kernels of the graph that was captured first, by operation."""
    around: Counter[str]
    """Kernels launched one by one, by operation, without those of captures."""
    events: list[Event]
    """What the host waited for and copied, without that of captures."""
    failures: list[str]
    """Why steps could not be captured."""


class StepCounts(NamedTuple):
    """What the steps of an attack cost."""

    kernels: int
    """Of one step, all in one graph."""
    launches: float
    """Kernels launched beside the graph, for each step."""
    waits: float
    """Moments at which the host waits for the GPU, for each look."""
    copies: float
    """Copies to the GPU, for each look."""
    start: int
    """Kernels that an attack of no steps would launch: to start items and to store results."""
    start_waits: int
    """Likewise moments of waiting."""
    where: tuple[str, ...]
    """File, line and kind of what makes the host wait or copies, between steps."""
    failure: str
    """Why the step could not be captured; empty if it was."""


def list_rules() -> list[tuple[str, Norm]]:
    """Every attack that is a rule, with each of its norms."""
    records = [(n, registry.find("attacks", n)) for n in registry.names("attacks") if n[-1] != ":"]
    return [
        (name, norm)
        for name, record in records
        if isinstance(record, IterativeAttack)
        for norm in record.norms
    ]


def make_spec(name: str, norm: Norm, steps: int = 0, **settings: Any) -> AttackSpec:
    """An attack with its defaults, two eps and a number of steps, 0 for the default."""
    attack = registry.find("attacks", name)
    known = {field.name for field in fields(attack.params)}
    params = attack.params(**({"steps": steps} if steps and "steps" in known else {}))
    eps = {"linf": (0.1, 0.2), "l2": (1.0, 2.0), "l1": (5.0, 10.0), "l0": (8.0, 16.0)}[norm]
    return AttackSpec(
        **{"name": name, "attack": attack, "params": params, "norm": norm, "eps": eps} | settings
    )


def load_problem(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """LeNet for the digits, n images and the classes that it predicts."""
    net = lenet.build().eval().requires_grad_(False)
    net.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))
    x = digits.load(limit=n).read(0, n)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def count_run(
    attack: Callable[[nn.Module, Tensor, Tensor, Tensor], object],
    net: nn.Module,
    x: Tensor,
    y: Tensor,
) -> RunCounts:
    """Run an attack on a pretended GPU.

    `attack` is given the model, images, classes and the examples' numbers, all on the GPU.
    """
    gpu, cuda = FakeDevice(), FakeCuda(at=0)
    failures = cuda_graphs.CaptureFailures()
    given = [gpu.upload(each) for each in (x, y, torch.arange(len(x)))]
    gpu.upload_module(net)
    with (
        cuda.replace_module(),
        captures_apart(gpu) as graphs,
        gpu.pretend(),
        cuda_graphs.remember_failures(failures),
    ):
        attack(net, *given)
    return RunCounts(
        steps=cuda.replays - len(graphs),
        graph=graphs[0] if graphs else Counter(),
        around=gpu.kernels,
        events=gpu.events,
        failures=[each.reason for each in failures.take_new()],
    )


@contextmanager
def captures_apart(gpu: FakeDevice) -> Iterator[list[Counter[str]]]:
    """Note apart what captures and replays do; yields the kernels of each graph captured.

    To be entered inside `FakeCuda.replace_module`.
    """
    graphs: list[Counter[str]] = []
    capture, replay, graph = cuda_graphs.capture_graph, FakeGraph.replay, torch.cuda.graph

    def capture_apart(*args: Any) -> Any:
        with gpu.note_apart():
            return capture(*args)

    def replay_apart(self: FakeGraph) -> None:
        with gpu.note_apart():
            replay(self)

    @contextmanager
    def graph_apart(*args: Any, **kwargs: Any) -> Iterator[None]:
        with gpu.note_apart() as (_, kernels), graph(*args, **kwargs):
            yield
        graphs.append(kernels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graphs, "capture_graph", capture_apart)
        patch.setattr(FakeGraph, "replay", replay_apart)
        patch.setattr(torch.cuda, "graph", graph_apart)
        yield graphs


def count_steps(name: str, norm: Norm, rows: int = 8, **settings: Any) -> StepCounts:
    """Count what the steps of a rule cost, beside what starts and ends an attack.

    `settings` are those of the spec; by default the attack goes on after a success.
    """
    net, x, y = load_problem(rows)

    def run(steps: int) -> RunCounts:
        spec = make_spec(name, norm, steps, **{"stop": "never", "eps": (0.1,)} | settings)
        return count_run(
            lambda net, x, y, ids: stream.run_attack(net, spec, x, y, ids, rows), net, x, y
        )

    few, many = run(2 * LOOK), run(3 * LOOK)
    waits = _count(many, WAITS) - _count(few, WAITS)
    launches = many.around.total() - few.around.total()
    looks = max(many.steps - few.steps, 1) / LOOK  # of all restarts; a step from x makes none
    return StepCounts(
        kernels=many.graph.total(),
        launches=launches / looks / LOOK,
        waits=waits / looks,
        copies=(_count(many, ("upload",)) - _count(few, ("upload",))) / looks,
        start=few.around.total() - 2 * launches,
        start_waits=_count(few, WAITS) - 2 * waits,
        where=tuple(
            f"{event.file}:{event.line} {event.kind}"
            for event in Counter(many.events) - Counter(few.events)
        ),
        failure="; ".join(many.failures),
    )


def count_gradient() -> int:
    """Kernels of one forward and one backward pass of LeNet, with the loss of PGD."""
    net, x, y = load_problem(8)
    objective = make_objective("cross-entropy", "untargeted")
    return count_run(
        lambda net, x, y, ids: gradient_pass(net, objective, x, y, y), net, x, y
    ).around.total()


def _count(counts: RunCounts, kinds: Sequence[str]) -> int:
    return sum(event.kind in kinds for event in counts.events)


def main(names: Sequence[str]) -> None:
    """Print the table."""
    print("attack norm | kernels a step | launches around it | waits, copies a look"
          " | launches, waits to start and end | where")  # fmt: skip
    print(f"of which one gradient of the net: {count_gradient()} kernels")
    for name, norm in list_rules():
        if names and name not in names:
            continue
        c = count_steps(name, norm)
        print(
            f"{name} {norm} | {c.kernels} | {c.launches:g} | {c.waits:g}, {c.copies:g}"
            f" | {c.start}, {c.start_waits} | {', '.join(sorted(set(c.where)))} {c.failure}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
