"""A fake of `torch.cuda` on a CPU: two devices, streams, and graphs that record operations.

Inside `FakeCuda.pretend` every tensor claims to be on one of the devices. What differs from torch
on a CPU is what a GPU does differently:

- each thread has a current device, the first one by default, and a current stream on each device;
- during a capture on a stream of the tensors' device, operations are recorded; those that write are
  not executed; those that the host reads from raise and invalidate the capture;
- during a capture on a stream of another device, operations are executed and nothing is recorded;
- a replay repeats what was recorded on the same memory, which the graph holds (so memory that the
  graph reads and nobody else holds stays, unlike on a GPU);
- memory cannot be pinned beside a capture in "global" error mode, nor by the thread of a capture.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICES = 2
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
FORBIDDEN = "CUDA error: operation not permitted when stream is capturing"


class Call(NamedTuple):
    """A recorded operation."""

    function: Any
    args: Any
    kwargs: Any
    outputs: list[Tensor]
    """Memory that a replay writes; empty for an operation that writes into its arguments."""


class Capture:
    """A capture under way."""

    def __init__(self, device: int, mode: str, memory: Any) -> None:
        self.device, self.mode, self.thread = device, mode, threading.get_ident()
        self.memory = memory
        """Stream and pool: captures of the same two share their memory."""
        self.invalid = False
        self.calls: list[Call] = []


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self, count: Callable[["FakeGraph"], contextlib.AbstractContextManager[None]]):
        self.calls: list[Call] = []
        self.count = count

    def replay(self) -> None:
        with self.count(self), torch.no_grad():
            for function, args, kwargs, outputs in self.calls:
                again = filter(_is_tensor, tree_leaves(function(*args, **kwargs)))
                for buffer, new in zip(outputs, again if outputs else (), strict=True):
                    buffer.copy_(new)


class FakeStream:
    """Stands in for torch.cuda.Stream."""

    def __init__(self, device: int) -> None:
        self.device_index = device

    def wait_stream(self, other: "FakeStream") -> None:
        assert other.device_index < DEVICES


class FakeCuda:
    """The state of the pretended machine."""

    def __init__(self, at: int) -> None:
        self.at = at
        """Device of all tensors."""
        self.capability = (9, 0)
        self.records = True
        """Whether a capture records anything."""
        self.replays = 0
        self.replayed: list[int] = []
        """Kernels of each replay."""
        self.replaying = False
        self.captures: list[Capture] = []
        self.graphs: list[weakref.ref[FakeGraph]] = []
        self.memory: list[weakref.ref[Any]] = []
        """Storages that graphs hold."""
        self.pinned_on: list[int] = []
        """Current device of each thread that pinned memory."""
        self._under_way: list[Capture] = []
        # As torch makes it at the first capture of a process, on the device current then.
        self._default_stream = FakeStream(0)
        self._thread = threading.local()

    # -------------------------------------------------------------------------- devices, streams

    def current_device(self) -> int:
        return getattr(self._thread, "device", 0)

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.current_device()
        self._thread.device = self._index(device)
        try:
            yield
        finally:
            self._thread.device = before

    def new_stream(self, device: Any = None) -> FakeStream:
        return FakeStream(self._index(device))

    def current_stream(self, device: Any = None) -> FakeStream:
        streams: dict[int, FakeStream] = self._thread.__dict__.setdefault("streams", {})
        index = self._index(device)
        return streams.setdefault(index, FakeStream(index))

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        with self.device(stream.device_index):
            before = self.current_stream()
            self._thread.streams[stream.device_index] = stream
            try:
                yield
            finally:
                self._thread.streams[stream.device_index] = before

    def _index(self, device: Any) -> int:
        index = device.index if isinstance(device, torch.device) else device
        return self.current_device() if index is None else index

    # ----------------------------------------------------------------------------------- graphs

    def new_graph(self) -> FakeGraph:
        graph = FakeGraph(self._count_replay)
        self.graphs.append(weakref.ref(graph))
        return graph

    @contextlib.contextmanager
    def _count_replay(self, graph: FakeGraph) -> Iterator[None]:
        self.replays += 1
        self.replayed.append(len(graph.calls))
        self.replaying = True
        try:
            yield
        finally:
            self.replaying = False

    @contextlib.contextmanager
    def graph(
        self,
        graph: FakeGraph,
        pool: Any = None,
        stream: FakeStream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        stream = stream or self._default_stream
        capture = Capture(stream.device_index, capture_error_mode, (stream, pool))
        self.captures.append(capture)
        self._under_way.append(capture)
        recorded = self.records and capture.device == self.at
        try:
            with self.stream(stream), Recorder(capture) if recorded else contextlib.nullcontext():
                yield
        finally:
            self._under_way.remove(capture)
            if capture.invalid:
                capture.calls.clear()
                raise RuntimeError("CUDA error: operation failed due to a previous error")
        graph.calls, capture.calls = capture.calls, []
        held = [tensor for call in graph.calls for tensor in call.outputs]
        self.memory += [weakref.ref(tensor) for tensor in held]

    def is_capturing(self) -> bool:
        """Whether a capture is under way."""
        return bool(self._under_way)

    def pin_memory(self, tensor: Tensor) -> Tensor:
        for capture in self._under_way:
            if capture.mode == "global" or capture.thread == threading.get_ident():
                capture.invalid = True
                raise RuntimeError(FORBIDDEN)
        self.pinned_on.append(self.current_device())
        return tensor

    # ----------------------------------------------------------------------------------- pretence

    @contextlib.contextmanager
    def pretend(self) -> Iterator[torch.device]:
        """Replace `torch.cuda`; every tensor claims to be on the device, which is yielded."""
        device = torch.device("cuda", self.at)
        with self.replace_module(), Claims(device):
            yield device

    @contextlib.contextmanager
    def replace_module(self) -> Iterator[None]:
        """Replace `torch.cuda` alone."""
        replaced: dict[str, Any] = {
            "is_available": lambda: True, "device_count": lambda: DEVICES, "device": self.device,
            "current_device": self.current_device, "Stream": self.new_stream, "graph": self.graph,
            "current_stream": self.current_stream, "stream": self.stream,
            "CUDAGraph": self.new_graph, "graph_pool_handle": object,
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None, "mem_get_info": lambda device=None: (2**30, 2**31),
            "get_device_name": lambda device=None: "pretended",
            "get_device_capability": lambda device=None: self.capability,
            "get_rng_state": lambda device=None: torch.empty(0),
            "set_rng_state": lambda state, device=None: None,
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, value in replaced.items():
                patch.setattr(torch.cuda, name, value)
            patch.setattr(torch.random, "_fork_rng_warned_already", True)
            patch.setattr(Tensor, "pin_memory", self.pin_memory_of())
            yield

    def pin_memory_of(self) -> Callable[[Tensor], Tensor]:
        """`pin_memory` as a method of a tensor."""
        return lambda tensor: self.pin_memory(tensor)


class Claims(TorchFunctionMode):
    """Every tensor claims to be on a device, and what is placed there stays on the CPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return self.device
        if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        args, kwargs = tree_map(self._place, (args, kwargs or {}))
        return function(*args, **kwargs)

    def _place(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return value


class Recorder(TorchDispatchMode):
    """Records operations for a graph."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._reads(function, args):
            self.capture.invalid = True
            raise RuntimeError(FORBIDDEN)
        if function._schema.is_mutable:
            self.capture.calls.append(Call(function, args, kwargs, []))
            if not function._schema.returns:
                return None
            return self._written(function, args, kwargs)
        returned = function(*args, **kwargs)
        inputs = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        outputs = [leaf for leaf in tree_leaves(returned) if _is_tensor(leaf)]
        if not all(_storage(leaf) in inputs for leaf in outputs):
            fresh = [leaf.detach() for leaf in outputs]
            self.capture.calls.append(Call(function, args, kwargs, fresh))
        return returned

    def _reads(self, function: Any, args: Any) -> bool:
        """Whether the host waits for values: a number, or how many entries of a mask are true."""
        name = function._schema.name.split("::")[1]
        masks = [leaf for leaf in tree_leaves(args[1:]) if _is_tensor(leaf)]
        masked = name.startswith("index") and any(mask.dtype == torch.bool for mask in masks)
        return name in READS or (masked and name in ("index", "index_put", "index_put_"))

    def _written(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The argument that an operation writes into."""
        for position, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                return kwargs[argument.name] if argument.kwarg_only else args[position]
        raise AssertionError(function)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
