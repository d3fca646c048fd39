"""Capture one step of the engine as a CUDA graph: one launch in place of a hundred.

The pass of a small network ends before the host has launched its next kernel. A captured step
(forward, backward, update and the test for success) costs one launch. Unused rows of the buffers
hold old values; as no row reads another, they change nothing but the time.
"""

import contextlib
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
from bench.engine.device import enter_device
from bench.engine.model_state import is_out_of_memory
from bench.engine.tensor_tree import Batch, count_rows, list_tensors, map_tensors, take_rows

WARM = 3
"""Calls before the capture, as torch requires: libraries choose their kernels in them."""


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


_failures: ContextVar[CaptureFailures | None] = ContextVar("capture_failures", default=None)


@contextlib.contextmanager
def remember_failures(failures: CaptureFailures) -> Iterator[None]:
    """Let every attack inside add the captures that fail, and try none again that has failed.

    Args:
        failures: Where they are remembered, such as for one evaluation.

    Yields:
        With the failures in use.
    """
    token = _failures.set(failures)
    try:
        yield
    finally:
        _failures.reset(token)


# ------------------------------------------------------------------------------------- the graphs


class StepGraphs:
    """The graphs of one attack's step, captured when they are first needed and then replayed.

    Graphs are captured for `most` rows and its halves; the smallest that holds a batch is used.
    They hold buffers and memory of the GPU, but never the step itself: a bound method would keep
    its object, which holds these graphs, alive until a garbage collection.
    """

    def __init__(self, model: nn.Module, spec: AttackSpec, most: int) -> None:
        """Capture nothing yet.

        Args:
            model: The model that the step differentiates.
            spec: The attack.
            most: Largest number of rows.
        """
        self._model, self._spec, self._most = model, spec, most
        self._failures = _failures.get() or CaptureFailures()
        self._graphs: dict[int, Callable[[Any], Any]] = {}

    def run(self, step: Callable[[Batch], Batch], batch: Batch) -> Batch:
        """Make a step by a graph; kernel by kernel if it cannot be captured.

        Args:
            step: Function of a batch that returns a batch of its kind; the same at every call.
            batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.

        Returns:
            What `step` returns.

        Raises:
            RuntimeError: The step itself raised, or memory ran out.
        """
        held = self._most
        while held // 2 >= count_rows(batch):
            held //= 2
        known = held in self._graphs or self._failures.is_known(self._model, self._spec)
        if not known:
            try:
                self._graphs[held] = capture_graph(step, pad_rows(batch, held))
            except CaptureError as error:
                self._failures.add(self._model, self._spec, str(error))
        if held not in self._graphs:
            return step(batch)
        replayed: Batch = self._graphs[held](batch)
        return replayed


def capture_graph(step: Callable[[Batch], Batch], example: Batch) -> Callable[[Batch], Batch]:
    """Capture a step as a graph over buffers of the example's shapes.

    Everything happens on one explicit stream of the tensors' device: on a stream of another device
    no kernel would be recorded. Other threads may go on calling CUDA meanwhile, such as the one
    that pins the memory of the next images.

    Args:
        step: Function of a batch that returns a batch of its kind.
        example: A batch of as many rows as the graph holds.

    Returns:
        A function that replays the graph; it does not refer to `step`.

    Raises:
        CaptureError: The step cannot be captured, such as where its model asks for values of the
            GPU, or a replay changes nothing.
        RuntimeError: The step itself raised, or memory ran out.
    """
    device = list_tensors(example)[0].device
    if device.type != "cuda":
        raise CaptureError(f"tensors on {device.type} have no CUDA graphs")
    with enter_device(device):
        static = map_tensors(torch.clone, example)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                after = step(static)
            try:
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    copy_rows(step(static), static)
            except Exception as error:  # foreign code: the forward of the model
                # Into no variable: an exception that its own frame refers to is not freed.
                if is_out_of_memory(_first_cause(error)):
                    raise torch.OutOfMemoryError(str(_first_cause(error))) from None
                raise CaptureError(describe(_first_cause(error))) from None
        torch.cuda.current_stream(device).wait_stream(stream)
        copy_rows(example, static)
        graph.replay()
        if _differ(example, after) and not _differ(example, static):
            raise CaptureError("its replay changes nothing")
    return lambda batch: replay(graph.replay, static, batch)


def _first_cause(error: Any) -> Any:
    """Return what broke a capture, whose end then raises, too."""
    return error.__context__ or error


def _differ(one: Batch, other: Batch) -> bool:
    """Return whether any number differs; NaN equals NaN."""

    def differs(a: Tensor, b: Tensor) -> bool:
        return bool(((a != b) & ((a == a) | (b == b))).any())

    return any(map(differs, list_tensors(one), list_tensors(other)))


def replay(launch: Callable[[], None], static: Batch, batch: Batch) -> Batch:
    """Fill the buffers from a batch, run a recording, and read as many rows back.

    Args:
        launch: Replays the recording over the buffers.
        static: The buffers, with at least as many rows as the batch.
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.

    Returns:
        The rows of the batch after the recorded function.
    """
    copy_rows(batch, static)
    launch()
    heartbeat.beat()  # no module is called here that could report one
    return map_tensors(lambda buffer: buffer[: count_rows(batch)].clone(), static)


def copy_rows(source: Batch, into: Batch) -> None:
    """Copy each tensor into the first rows of its buffer.

    Args:
        source: Batch to copy.
        into: Buffers of the same structure.
    """
    for new, buffer in zip(list_tensors(source), list_tensors(into), strict=True):
        buffer[: len(new)].copy_(new)


def pad_rows(batch: Batch, held: int) -> Batch:
    """Repeat the rows of a batch until there are `held`.

    Args:
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.
        held: Number of rows.

    Returns:
        The padded batch.
    """
    return take_rows(
        batch, torch.arange(held, device=list_tensors(batch)[0].device) % count_rows(batch)
    )
