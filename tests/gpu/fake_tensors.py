"""Tensors of a pretended GPU: real numbers in the processor's memory, with a device of their own.

Inside `FakeDevice` each memory of a tensor is either the host's or the GPU's, and `Tensor.device`
says so. All operations are computed as usual, autograd included, so that whole attacks run on real
models and end as they do on a CPU. What a GPU would make of each operation is noted as an `Event`,
with the file and line that caused it:

- "read": the host waits for a value of the GPU (`item`, `bool`, `tolist`, a mask as an index);
- "upload", "download": memory is copied from host to GPU or back;
- "mixed": an operation on memory of both. A GPU refuses it; so does `FakeDevice`.

A tensor without axes on the host may take part in any operation, as torch allows, except where it
costs a copy (`torch.where`). What is not seen: the device of a tensor within Python code that torch
itself calls, such as the backward of a function of one's own, and values that C++ code reads.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import bench
from bench.attacks import apgd, square_windows, surfree

PACKAGE = Path(bench.__file__).parent
TORCH = Path(torch.__file__).parent
LAYER = {Path(__file__).name, "fake_cuda.py"}
"""Files of this layer, which cause nothing themselves."""
LIBRARIES = ("site-packages", "/lib/python")

READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
         "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount",
         "repeat_interleave"}  # fmt: skip
"""Operations whose result, or its size, the host waits for."""
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_",
               "set_", "lift_fresh", "detach_", "is_same_size"}  # fmt: skip
"""Operations without a kernel beside views."""
CACHED = (
    apgd._mark_checkpoints, square_windows.make_tables, square_windows.make_tile,
    surfree.make_cosines,
)  # fmt: skip
"""Functions that keep tensors by device: those of another test are on no pretended GPU."""
CONVERSIONS = {"tensor", "as_tensor", "asarray", "new_tensor", "scalar_tensor"}
"""Functions that copy from Python's objects to a device that they are given."""


class Event(NamedTuple):
    """What a GPU would wait for, copy or refuse."""

    kind: str
    operation: str
    file: str
    """In the package, or the name of a file outside."""
    line: int
    function: str
    """Qualified name of the function that caused it."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function}): {self.kind} by {self.operation}"


class MixedDeviceError(RuntimeError):
    """An operation on tensors of two devices, as a GPU refuses it."""


class FakeDevice:
    """A GPU of which the tensors are pretended, and what happened there."""

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        self.events: list[Event] = []
        self.kernels: Counter[str] = Counter()
        """Operations that launched at least one kernel, by name."""
        self.explicit: torch.device | None = None
        """Device of what the function under way creates; None for that of its arguments."""
        self.expected = False
        """Whether the function under way is a copy that has been noted already."""
        self._placed: dict[int, StorageWeakRef] = {}

    @contextmanager
    def pretend(self) -> Iterator[torch.device]:
        """Note everything inside; yields the device."""
        for function in CACHED:
            function.cache_clear()
        with Functions(self), Operations(self):
            yield self.device

    # --------------------------------------------------------------------------------- placement

    def is_placed(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the GPU."""
        return tensor.untyped_storage()._cdata in self._placed

    def place(self, tensor: Tensor) -> Tensor:
        """Say that the memory of a tensor is the GPU's."""
        # As long as there is a weak reference, the address is given to no other memory.
        reference = StorageWeakRef(tensor.untyped_storage())
        self._placed[reference.cdata] = reference
        return tensor

    def upload(self, tensor: Tensor) -> Tensor:
        """A copy on the GPU, for the arguments of a test; not noted."""
        return self.place(tensor.detach().clone())

    def upload_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Say that a module's parameters and buffers are on the GPU; not noted."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.place(tensor)
        return module

    # ------------------------------------------------------------------------------------- notes

    @contextmanager
    def note_apart(self) -> Iterator[tuple[list[Event], Counter[str]]]:
        """Note events and kernels in places of their own, which are yielded."""
        before = self.events, self.kernels
        self.events, self.kernels = [], Counter()
        try:
            yield self.events, self.kernels
        finally:
            self.events, self.kernels = before

    def note(self, kind: str, operation: str) -> Event:
        """Note what happens now."""
        event = Event(kind, operation, *_cause(sys._getframe(1)))
        self.events.append(event)
        return event

    def of_kind(self, *kinds: str) -> list[Event]:
        """The events of some kinds."""
        return [event for event in self.events if event.kind in kinds]


def _cause(frame: FrameType | None) -> tuple[str, int, str]:
    """File, line and function of the innermost frame outside torch and this layer."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        inside = PACKAGE in path.parents
        foreign = TORCH in path.parents or any(part in str(path) for part in LIBRARIES)
        if inside or not (foreign or path.name in LAYER):
            name = path.relative_to(PACKAGE).as_posix() if inside else path.name
            function = frame.f_code.co_qualname.replace(".<locals>", "").removesuffix(".<lambda>")
            return name, frame.f_lineno, function
        frame = frame.f_back
    return "?", 0, "?"


# ---------------------------------------------------------------------------- Python's functions


class Functions(TorchFunctionMode):
    """What Python calls: devices are asked for, and tensors are placed and copied by name."""

    def __init__(self, gpu: FakeDevice) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, gpu = kwargs or {}, self.gpu
        name = getattr(function, "__name__", "")
        if name == "one_hot" and len(args) + len(kwargs) > 1:
            # Of a stated number of classes, a GPU does not check the values.
            with gpu.note_apart() as (_, kernels):
                returned = self._call(function, name, args, kwargs)
            gpu.kernels.update(kernels)
            return returned
        if name == "__get__" and args and isinstance(args[0], Tensor):
            placed = gpu.is_placed(args[0]) if args[0].layout == torch.strided else False
            if function == Tensor.device.__get__ and placed:  # type: ignore[attr-defined]
                return gpu.device
            if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
                return placed
            if function == Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
                return not placed
        if name in ("cpu", "cuda", "to", "type") and args and isinstance(args[0], Tensor):
            return self._move(function, name, args, kwargs)
        if name in ("numpy", "__array__", "tolist") and gpu.is_placed(args[0]):
            event = gpu.note("read", name)
            if name != "tolist":
                raise TypeError(f"can't convert cuda:0 device type tensor to numpy: {event}")
        if name in ("__getitem__", "__setitem__") and gpu.is_placed(args[0]):
            lists = any(isinstance(part, list) for part in _parts(args[1]))
            if lists:
                gpu.note("upload", "a list as an index")
        if name == "_parse_to":  # the arguments of `Module.to`, whose tensors then move
            return function(*args, **kwargs)
        if name == "pin_memory":
            return args[0].clone()
        if name == "__deepcopy__" and gpu.is_placed(args[0]):  # copies the memory by itself
            with gpu.note_apart():
                return gpu.place(function(*args, **kwargs))
        return self._call(function, name, args, kwargs)

    def _call(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Call a function; what it creates is on the device that it names, or on its arguments'."""
        gpu = self.gpu
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        if isinstance(kwargs.get("device"), str | int):
            given.append(_as_device(kwargs["device"]))
        before = gpu.explicit
        if given:
            args, kwargs = tree_map(_on_processor, (args, kwargs))
            if kwargs.get("device") is not None:
                kwargs["device"] = torch.device("cpu")
            gpu.explicit = given[0]
            there = any(isinstance(a, Tensor) and gpu.is_placed(a) for a in args)
            if given[0].type == "cuda" and name in CONVERSIONS and not there:
                gpu.note("upload", name)
        elif any(
            isinstance(leaf, Tensor) and gpu.is_placed(leaf) for leaf in _tensors(args, kwargs)
        ):
            gpu.explicit = gpu.device
            if name == "new_tensor":
                gpu.note("upload", name)
        else:
            gpu.explicit = torch.device("cpu")
        try:
            returned = function(*args, **kwargs)
        finally:
            explicit, gpu.explicit = gpu.explicit, before
        if (given or name == "new_tensor") and explicit is not None and explicit.type == "cuda":
            for leaf in _tensors(returned):
                gpu.place(leaf)
        return returned

    def _move(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Copy a tensor to a device or dtype, as `to`, `cpu` and `cuda` do."""
        gpu, tensor = self.gpu, args[0]
        source = gpu.is_placed(tensor)
        target = _target(name, args[1:], kwargs, gpu)
        moved_args, moved_kwargs = tree_map(_on_processor, (args, dict(kwargs)))
        if "device" in moved_kwargs:
            moved_kwargs["device"] = torch.device("cpu")
        if target is None or target == source:
            call = Tensor.cpu if name == "cuda" else function
            moved = [] if name in ("cuda", "cpu") else moved_args[1:]
            moved_kwargs = {} if name in ("cuda", "cpu") else moved_kwargs
            return self._call_on(source, call, (tensor, *_texts(moved)), moved_kwargs)
        gpu.note("upload" if target else "download", name)
        gpu.expected = True
        try:
            fresh = (
                tensor.clone()
                if name in ("cuda", "cpu")
                else function(tensor, *_texts(moved_args[1:]), **moved_kwargs)
            )
            if fresh.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                fresh = tensor.clone()
        finally:
            gpu.expected = False
        return _replace_memory(fresh, gpu, target)

    def _call_on(self, placed: bool, function: Any, args: Any, kwargs: Any) -> Any:
        gpu, before = self.gpu, self.gpu.explicit
        gpu.explicit = gpu.device if placed else torch.device("cpu")
        try:
            return function(*args, **kwargs)
        finally:
            gpu.explicit = before


def _replace_memory(tensor: Tensor, gpu: FakeDevice, placed: bool) -> Tensor:
    """Say where the memory of a fresh tensor is."""
    gpu._placed.pop(tensor.untyped_storage()._cdata, None)
    return gpu.place(tensor) if placed else tensor


def _target(name: str, args: Any, kwargs: Any, gpu: FakeDevice) -> bool | None:
    """Whether a tensor is to be on the GPU afterwards; None where it stays."""
    if name in ("cpu", "cuda"):
        return name == "cuda"
    for value in (*args, kwargs.get("device"), kwargs.get("other")):
        if isinstance(value, Tensor):
            return gpu.is_placed(value)
        if isinstance(value, torch.device):
            return value.type == "cuda"
        if isinstance(value, str | int) and not isinstance(value, bool):
            return _as_device(value).type == "cuda"
    return None


def _as_device(value: Any) -> torch.device:
    return torch.device("cuda", value) if isinstance(value, int) else torch.device(value)


def _texts(values: Any) -> list[Any]:
    """Positional arguments with the processor in place of a device's name."""
    return [
        torch.device("cpu")
        if isinstance(value, str | int) and not isinstance(value, bool)
        else value
        for value in values
    ]


def _on_processor(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _tensors(*values: Any) -> list[Tensor]:
    return [
        leaf for leaf in tree_leaves(values)
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided
    ]  # fmt: skip


# ------------------------------------------------------------------------------ torch's operations


class Operations(TorchDispatchMode):
    """What torch computes: where each operation's memory is, and what the host waits for."""

    def __init__(self, gpu: FakeDevice) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, gpu = kwargs or {}, self.gpu
        name = function._schema.name.split("::")[1]
        inputs = _tensors(args, kwargs)
        placed = [tensor for tensor in inputs if gpu.is_placed(tensor)]
        host = [tensor for tensor in inputs if not gpu.is_placed(tensor)]
        if placed and not gpu.expected:
            self._check(name, args, placed, host)
        returned = function(*args, **kwargs)
        there = bool(placed) and not gpu.expected
        if not inputs and gpu.explicit is not None:
            there = gpu.explicit.type == "cuda"
        if there:
            self._count(function, name, inputs, returned)
        return returned

    def _check(self, name: str, args: Any, placed: list[Tensor], host: list[Tensor]) -> None:
        """Note what an operation waits for or copies; raise where it mixes devices."""
        gpu = self.gpu
        if name in READS:
            gpu.note("read", name)
            return
        if name == "copy_" and host:
            gpu.note("upload" if gpu.is_placed(args[0]) else "download", name)
            return
        if name in INDEXED:
            self._check_index(name, args)
            return
        if any(tensor.dim() for tensor in host) or not any(map(gpu.is_placed, placed)):
            event = gpu.note("mixed", name)
            raise MixedDeviceError(f"tensors on cuda:0 and cpu: {event}")
        if name == "where" and host:
            gpu.note("upload", "where, of a tensor without axes")

    def _check_index(self, name: str, args: Any) -> None:
        """Note what an index costs: a mask is counted by the host, one of the host is copied."""
        gpu, target = self.gpu, gpu_is_placed(self.gpu, args[0])
        indices = [index for index in args[1] if index is not None]
        values = [args[2]] if name.startswith("index_put") or name.startswith("_index") else []
        foreign = [value for value in values if gpu.is_placed(value) != target and value.dim()]
        if foreign or (not target and any(gpu.is_placed(index) for index in indices)):
            event = gpu.note("mixed", name)
            raise MixedDeviceError(f"tensors on cuda:0 and cpu: {event}")
        if any(not gpu.is_placed(index) for index in indices) and target:
            gpu.note("upload", "an index of the host")
        elif any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            fills = bool(values) and values[0].numel() == 1 and len(indices) == 1
            if not fills:  # as torch does where one value is written by one mask
                gpu.note("read", "a mask as an index")

    def _count(self, function: Any, name: str, inputs: list[Tensor], returned: Any) -> None:
        """Place what was created, and count an operation that launches a kernel."""
        gpu = self.gpu
        outputs = _tensors(returned)
        memory = {tensor.untyped_storage()._cdata for tensor in inputs}
        fresh = [leaf for leaf in outputs if leaf.untyped_storage()._cdata not in memory]
        for leaf in fresh:
            gpu.place(leaf)
        if name in ALLOCATIONS or name in READS - {"nonzero", "masked_select"}:
            return
        written = fresh or function._schema.is_mutable
        if written and any(leaf.numel() for leaf in outputs or inputs):
            gpu.kernels[name] += 1


def gpu_is_placed(gpu: FakeDevice, tensor: Tensor) -> bool:
    """As `FakeDevice.is_placed`."""
    return gpu.is_placed(tensor)
