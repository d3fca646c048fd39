"""Capture steps of the engine as a CUDA graph: one launch in place of hundreds.

The pass of a small network ends before the host has launched its next kernel. Captured steps
(forward, backward, update and the test for success) cost one launch. The rows stay in buffers that
the graph reads and writes (`resident_rows`). Unused rows of the buffers hold old values; as no row
reads another, they change nothing but the time.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.core.errors import describe
from bench.engine import heartbeat
from bench.engine.active_rows import ActiveBatch
from bench.engine.device import enter_device
from bench.engine.model_state import is_out_of_memory
from bench.engine.resident_rows import ResidentRows, RowBuffers, copy_changed
from bench.engine.tensor_tree import Batch, list_tensors, map_tensors

WARM = 3
"""Calls before the capture, as torch requires: libraries choose their kernels in them."""
MOST_KEPT = 8
"""Attacks whose graphs an evaluation keeps: the parts of an ensemble take turns in each chunk."""


class CaptureError(Exception):
    """A step cannot be captured; the message says why."""


# ------------------------------------------------------------------------- captures that failed


class CaptureFailure(NamedTuple):
    """A step that could not be captured."""

    attack: str
    """Registered name."""
    reason: str


class CaptureFailures:
    """The steps that could not be captured, by model and attack spec: none is tried again."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
        self._new: list[CaptureFailure] = []

    def is_known(self, model: nn.Module, spec: AttackSpec) -> bool:
        """Return whether the step of an attack on a model could not be captured before.

        Args:
            model: The model that is differentiated.
            spec: The attack; its eps do not count, since its step does not depend on them.

        Returns:
            True if a capture has failed.
        """
        return _describe_step(spec) in self._known.get(model, ())

    def add(self, model: nn.Module, spec: AttackSpec, reason: str) -> None:
        """Remember that a capture failed.

        Args:
            model: The model that is differentiated.
            spec: The attack.
            reason: What failed.
        """
        self._known.setdefault(model, set()).add(_describe_step(spec))
        self._new.append(CaptureFailure(spec.name, reason))

    def take_new(self) -> list[CaptureFailure]:
        """Return what failed since the last call.

        Returns:
            One entry for each capture.
        """
        found, self._new = self._new, []
        return found


def _describe_step(spec: AttackSpec) -> str:
    """Describe everything of a spec that its step may depend on."""
    logs = bool(spec.radii or spec.budgets)
    return f"{replace(spec, eps=(), radii=(), budgets=())} {logs}"


# ------------------------------------------------------------------------------------- the graphs


class CaptureMemory:
    """Stream and memory pool of captures: what one graph needs while it runs, the next one reuses.

    Graphs may share their memory because they run one after another on one stream, and all that a
    graph leaves lies in buffers outside of it.
    """

    def __init__(self) -> None:
        self._made: dict[torch.device, tuple[Any, Any]] = {}

    def find(self, device: torch.device) -> tuple[Any, Any]:
        """Return stream and pool of a device.

        Args:
            device: A GPU.

        Returns:
            A `torch.cuda.Stream` and the handle of a pool.
        """
        if device not in self._made:
            self._made[device] = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        return self._made[device]


Step = Callable[[ActiveBatch, int], ActiveBatch]
"""(rows, number of steps) -> the rows after them."""


class StepGraphs:
    """The graphs of one attack's steps, captured when they are first needed and then replayed.

    They hold the step, too: a graph reads the memory of the model, and of whatever else the step
    refers to, at every replay.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: AttackSpec,
        failures: CaptureFailures | None = None,
        memory: CaptureMemory | None = None,
    ) -> None:
        """Capture nothing yet.

        Args:
            model: The model that the step differentiates.
            spec: The attack.
            failures: Captures that failed before.
            memory: Memory that the graphs share with others.
        """
        self._model, self._spec = model, spec
        self._failures = failures or CaptureFailures()
        self._memory = memory or CaptureMemory()
        self._buffers: RowBuffers | None = None
        self._graphs: dict[tuple[int, int], tuple[Callable[[], None], Step]] = {}
        self._wasted: dict[tuple[int, int], int] = defaultdict(int)

    def reserve_buffers(self, example: ActiveBatch, rows: int) -> RowBuffers:
        """Return buffers for rows; those of an earlier call where they fit.

        Args:
            example: Rows like those to be held.
            rows: Most rows.

        Returns:
            The buffers, which these graphs read and write.
        """
        if self._buffers is None or not self._buffers.fits(example, rows):
            self._graphs, self._buffers = {}, None
            self._buffers = RowBuffers(example, rows)
        return self._buffers

    def run(self, step: Step, rows: ResidentRows, number: int) -> None:
        """Make steps by a graph; kernel by kernel if they cannot be captured.

        Args:
            step: Makes the steps; equal ones at every call.
            rows: Rows in the reserved buffers.
            number: Number of steps.

        Raises:
            RuntimeError: The step itself raised, or memory ran out.
        """
        assert self._buffers is not None
        key = self._choose_size(len(rows), number), number
        if key not in self._graphs and not self._failures.is_known(self._model, self._spec):
            try:
                launch = capture_graph(step, self._buffers.view(key[0]), number, self._memory)
                self._graphs[key] = launch, step
            except CaptureError as error:
                self._failures.add(self._model, self._spec, str(error))
        if key in self._graphs:
            self._graphs[key][0]()
            heartbeat.beat()  # no module is called here that could report one
        else:
            batch = rows.batch
            copy_changed(step(batch, number), batch)

    def _choose_size(self, rows: int, number: int) -> int:
        """Choose for how many rows a graph is replayed, or captured if there is none.

        A finer size is captured once the rows that coarser graphs computed in vain have cost as
        much as the capture, so that all costs at most twice what the best choice would have.
        """
        assert self._buffers is not None
        size = round_up_rows(rows, self._buffers.most)
        larger = [held for held, made in self._graphs if made == number and held >= size]
        if not larger or size in larger:
            return size
        self._wasted[size, number] += number * (min(larger) - size)
        return size if self._wasted[size, number] >= (WARM + number) * size else min(larger)


def round_up_rows(rows: int, most: int) -> int:
    """Round a number of rows up to one of four sizes between a power of two and the next.

    >>> [round_up_rows(n, 100) for n in (1, 3, 9, 17, 63, 64, 65, 97)]
    [1, 3, 10, 20, 64, 64, 80, 100]

    Args:
        rows: Number of rows, at least 1.
        most: Largest size.

    Returns:
        The size: less than a quarter larger than `rows`.
    """
    step = max(1, (1 << rows.bit_length()) // 8)
    return min(-(-rows // step) * step, most)


def capture_graph(
    step: Step, static: ActiveBatch, number: int, memory: CaptureMemory
) -> Callable[[], None]:
    """Capture steps as a graph that changes buffers in place; they are left as they were.

    Everything happens on one explicit stream of the tensors' device: on a stream of another device
    no kernel would be recorded. Other threads may go on calling CUDA meanwhile, such as the one
    that pins the memory of the next images.

    Args:
        step: Makes the steps.
        static: The buffers.
        number: Number of steps.
        memory: Memory that graphs share.

    Returns:
        A function that replays the graph.

    Raises:
        CaptureError: The step cannot be captured, such as where its model asks for values of the
            GPU, or a replay changes nothing.
        RuntimeError: The step itself raised, or memory ran out.
    """
    device = list_tensors(static)[0].device
    if device.type != "cuda":
        raise CaptureError(f"tensors on {device.type} have no CUDA graphs")
    with enter_device(device):
        stream, pool = memory.find(device)
        before = map_tensors(torch.clone, static)
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                after = step(static, 1)
            try:
                with torch.cuda.graph(
                    graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ):
                    copy_changed(step(static, number), static)
            except Exception as error:  # foreign code: the forward of the model
                # Into no variable: an exception that its own frame refers to is not freed.
                if is_out_of_memory(_first_cause(error)):
                    raise torch.OutOfMemoryError(str(_first_cause(error))) from None
                raise CaptureError(describe(_first_cause(error))) from None
        torch.cuda.current_stream(device).wait_stream(stream)
        copy_changed(before, static)  # where steps are executed while they should be recorded
        graph.replay()
        idle = _differ(before, after) and not _differ(before, static)
        copy_changed(before, static)
        if idle:
            raise CaptureError("its replay changes nothing")
    launch: Callable[[], None] = graph.replay
    return launch


def _first_cause(error: Any) -> Any:
    """Return what broke a capture, whose end then raises, too."""
    return error.__context__ or error


def _differ(one: Batch, other: Batch) -> bool:
    """Return whether any number differs; NaN equals NaN."""

    def differs(a: Tensor, b: Tensor) -> bool:
        return bool(((a != b) & ((a == a) | (b == b))).any())

    return any(map(differs, list_tensors(one), list_tensors(other)))


# ------------------------------------------------------------------------------- graphs that stay


class _Kept(NamedTuple):
    """Graphs of an attack on a model."""

    graphs: StepGraphs
    about: tuple[object, ...]
    """What the models were when the graphs were made."""
    alive: tuple[object, ...]
    """Models and attack, so that no other object gets the address of one in the key."""


class KeptGraphs:
    """Graphs that stay for the next chunk of an evaluation, and captures that failed."""

    def __init__(self) -> None:
        self.failures = CaptureFailures()
        self._memory = CaptureMemory()
        self._kept: dict[tuple[object, ...], _Kept] = {}

    def find(self, model: nn.Module, accelerated: nn.Module, spec: AttackSpec) -> StepGraphs:
        """Return the graphs of an attack's steps.

        A graph reads parameters and buffers where they lay when it was captured, and repeats what
        the model's code decided then. So graphs are made anew if one lies elsewhere now, or if a
        number, text or truth value among the attributes of a module is another.

        Args:
            model: Model under attack.
            accelerated: Model to differentiate; may be `model`.
            spec: The attack; its eps do not count, since its step does not depend on them.

        Returns:
            Graphs of an earlier call where nothing has changed that they depend on.
        """
        key = (id(model), id(accelerated), _describe_step(spec), spec.radii, spec.budgets)
        about = _describe(model), _describe(accelerated)
        found = self._kept.pop(key, None)
        if found is None or found.about != about:
            del found  # its memory is free before more is taken
            graphs = StepGraphs(accelerated, spec, self.failures, self._memory)
            found = _Kept(graphs, about, (model, accelerated, spec))
        self._kept[key] = found  # the latest one is the last
        for oldest in list(self._kept)[:-MOST_KEPT]:
            del self._kept[oldest]
        return found.graphs

    def drop(self) -> None:
        """Release all graphs and their memory."""
        self._kept = {}
        self._memory = CaptureMemory()


def _describe(model: nn.Module) -> tuple[object, ...]:
    """Describe what a graph of a model's pass depends on beside the numbers in its tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    modules = [
        (type(module), {key: value for key, value in vars(module).items() if _is_plain(value)})
        for module in model.modules()
    ]
    return list(map(_describe_place, tensors)), modules


def _describe_place(tensor: Tensor) -> object:
    """Describe where a tensor lies; one of a kind that need not say so is never the same."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return object()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


_kept: ContextVar[KeptGraphs | None] = ContextVar("kept_graphs", default=None)


@contextlib.contextmanager
def keep_graphs(kept: KeptGraphs) -> Iterator[None]:
    """Let every attack inside use and leave graphs, and try no capture again that has failed.

    Args:
        kept: Where they stay, such as for one evaluation.

    Yields:
        With the graphs in use.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def find_graphs(model: nn.Module, accelerated: nn.Module, spec: AttackSpec) -> StepGraphs:
    """Return graphs of an attack's steps: those that were kept, or new ones.

    Args:
        model: Model under attack.
        accelerated: Model to differentiate; may be `model`.
        spec: The attack.

    Returns:
        The graphs.
    """
    kept = _kept.get()
    return StepGraphs(accelerated, spec) if kept is None else kept.find(model, accelerated, spec)


def drop_graphs() -> None:
    """Release all graphs that are kept, after memory ran out."""
    if (kept := _kept.get()) is not None:
        kept.drop()
