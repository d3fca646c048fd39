"""Count what a pretended GPU is asked for: kernels of graphs, launches around them, host reads.

An operation of aten counts as one kernel; views and allocations count as none. Tensors are on the
host where they were made without a device, where `cpu()` returned them, and where they were
computed from such tensors alone; what is computed from them costs the GPU nothing.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.core import philox
from bench.engine import cuda_graphs
from bench.engine.stream import AttackStream
from gpu.fake_cuda import READS, Call, FakeCuda

NO_KERNELS = {
    "view", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "alias", "t",
    "transpose", "permute", "as_strided", "split", "split_with_sizes", "unbind", "_unsafe_view",
    "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "lift_fresh", "unfold", "diagonal", "is_same_size", "chunk", "narrow", "detach_", "flatten",
    "scalar_tensor",
}  # fmt: skip
CREATE = {"ones", "zeros", "arange", "tensor", "full", "empty", "from_numpy", "randperm"}


def is_on_host(tensor: Tensor) -> bool:
    return bool(getattr(tensor, "_is_on_host", False))


def tensors_in(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def place(value: Any, on_host: bool) -> Any:
    for tensor in tensors_in(value):
        tensor._is_on_host = on_host  # type: ignore[attr-defined]
    return value


class Launches(TorchDispatchMode):
    """Counts operations outside of captures and replays, by name."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda, self.paused = cuda, False
        self.kernels: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        """Operations that make the host wait."""

    @contextmanager
    def pause(self) -> Iterator[None]:
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def counts(self) -> bool:
        return not (self.paused or self.cuda.replaying or self.cuda.is_capturing())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, given = function._schema.name.split("::")[1], tensors_in(args, kwargs)
        on_host = bool(given) and all(map(is_on_host, given))
        if self.counts() and not on_host:
            self.kernels[name] += name not in NO_KERNELS
            masks = [each for each in tensors_in(args[1:]) if each.dtype == torch.bool]
            if name in READS or (masks and name in ("index", "index_put", "index_put_")):
                self.reads[name] += 1
        returned = function(*args, **(kwargs or {}))
        return place(returned, on_host) if on_host else returned


class Moves(TorchFunctionMode):
    """Says which tensors are on the host, and counts what is moved."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name in CREATE and kwargs.get("device") is None:
            with self.launches.pause():
                return place(function(*args, **kwargs), True)
        if name == "cpu" and not is_on_host(args[0]):
            self.launches.reads["cpu"] += self.launches.counts()
            with self.launches.pause():
                return place(args[0].detach().clone(), True)
        returned = function(*args, **kwargs)
        to_device = any(isinstance(each, torch.device) for each in (*args, *kwargs.values()))
        if name == "to" and to_device and is_on_host(args[0]):
            self.launches.kernels["copy to the device"] += self.launches.counts()
            return place(returned.detach(), False)
        return returned


class Counted(NamedTuple):
    """What one run of an attack asked for."""

    turns: int
    """Steps that graphs made, all rows at once."""
    in_graph: float
    """Kernels of the graphs per turn."""
    around: float
    """Launches outside of the graphs per turn; those of captures and random starts do not count."""
    reads: float
    """Host reads per look at who has finished."""
    inside: Counter[str]
    """Kernels of all replays, by name."""
    outside: Counter[str]
    read: Counter[str]


def kernels(calls: list[Call]) -> Counter[str]:
    names = [call.function._schema.name.split("::")[1] for call in calls]
    return Counter(name for name in names if name not in NO_KERNELS)


@contextmanager
def counting(cuda: FakeCuda) -> Iterator[list[Counted]]:
    """Count an attack on a pretended GPU; the list has its numbers afterwards."""
    launches, result, looks = Launches(cuda), list[Counted](), [0]
    inside: list[tuple[int, Counter[str]]] = []
    capture, remove = cuda_graphs.capture_graph, AttackStream.remove_finished

    def paused(step: Any, static: Any, number: int, memory: Any) -> Any:
        with launches.pause():
            launch = capture(step, static, number, memory)
        recorded = kernels(launch.__self__.calls)  # type: ignore[attr-defined]

        def replay() -> None:
            inside.append((number, recorded))
            launch()

        return replay

    def look(run: AttackStream) -> None:
        looks[0] += 1
        remove(run)

    def apart(draw: Any) -> Any:
        """Random starts are drawn once for all steps and eps, in a number of kernels of its own."""

        def drawn(*arguments: Any) -> Any:
            with launches.pause():
                return draw(*arguments)

        return drawn

    draws = philox.draw_uniform, philox.draw_unit
    cuda_graphs.capture_graph = paused
    AttackStream.remove_finished = look  # type: ignore[method-assign]
    philox.draw_uniform, philox.draw_unit = map(apart, draws)
    try:
        with launches, Moves(launches):
            yield result
    finally:
        philox.draw_uniform, philox.draw_unit = draws
        cuda_graphs.capture_graph = capture
        AttackStream.remove_finished = remove  # type: ignore[method-assign]
    turns = sum(number for number, _ in inside)
    total = sum((each for _, each in inside), Counter[str]())
    result.append(
        Counted(
            turns, total.total() / turns, launches.kernels.total() / turns,
            launches.reads.total() / looks[0], total, launches.kernels, launches.reads,
        )
    )  # fmt: skip
