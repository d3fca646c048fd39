"""Fingerprint models by everything that they compute with.

Parameters and buffers are not enough: a forward may read any attribute and any global value, call
any function, or be changed by a hook. All of these are described as text and hashed. The text
contains no addresses, no orders of sets and no paths of this machine, so it is the same in every
process. Objects that cannot be inspected are described by the name of their type.
"""

import argparse
import collections
import contextlib
import contextvars
import datetime
import decimal
import functools
import hashlib
import math
import numbers
import operator
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.core import source_hash
from bench.engine.opaque_model import OpaqueModel
from bench.models import read_values

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Dictionaries of a module's hooks; their keys are arbitrary."""
MODULE_ATTRIBUTES = frozenset({*vars(nn.Module()), *HOOKS})
"""Attributes that every module has; parameters, buffers and hooks are described separately."""
RELATIVE_TOLERANCE = 1e-3
"""Largest difference of logits that counts as rounding, as a share of the largest logit."""
MAX_TEXT = 500
"""Longer texts are replaced by their hash, so that shared parts do not add up."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SCALARS = (int, float, complex, bool, str, bytes, type(None), type(...))
_SPELLED = (
    torch.dtype, torch.layout, torch.memory_format, torch.Size, range, slice, re.Pattern,
    numbers.Number, decimal.Decimal, datetime.date, datetime.timedelta,
)  # fmt: skip
_TORCH = ("torch", "numpy")
_SETTINGS = (
    argparse.Namespace, types.SimpleNamespace,
    torch.distributions.Distribution, torch.utils.data.Dataset,
)  # fmt: skip
"""Objects of Python and torch that hold nothing but values which a user sets."""
_GETTERS = (operator.itemgetter, operator.attrgetter, operator.methodcaller)
_OF_CLASSES = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__",
                         "__qualname__", "__firstlineno__", "__static_attributes__",
                         "__annotate_func__", "__annotations_cache__"})  # fmt: skip


def fingerprint(model: nn.Module, about: Any = None) -> str:
    """Hash a model without running it.

    Args:
        model: The model.
        about: Plain values that belong to it as well, such as the params that it was built with.

    Returns:
        64 hexadecimal digits, the same in every process and on every machine.
    """
    digest, describer = hashlib.sha256(), _Describer()
    for line in (describer.describe(about), *describer.describe_model(model)):
        digest.update(line.encode(errors="surrogatepass") + b"\x1e")
    return digest.hexdigest()


def describe_value(value: Any) -> str:
    """Describe a value as a fingerprint does.

    Args:
        value: Any value; functions are described with their code.

    Returns:
        Its text, or the hash of a long text.
    """
    return _Describer().describe(value)


def sketch_logits(logits: Tensor) -> str:
    """Describe logits coarsely, so that the rounding of another machine is no change.

    Args:
        logits: (n, classes).

    Returns:
        The class of each image, -1 where it is not clear, and the size of the largest logit in
        steps of a factor of 1.4.
    """
    finite = logits.detach().double().nan_to_num(0.0, 0.0, 0.0).cpu()
    size = float(finite.abs().max())
    first, second = finite.topk(2, dim=1).values.T
    clear = first - second > RELATIVE_TOLERANCE * size
    classes = torch.where(clear, finite.argmax(1), -1).tolist()
    return f"{classes} {round(2 * math.log2(size)) if size > 0 else None}"


def sketch_scores(scores: Tensor) -> str:
    """Describe the scores of a detector as coarsely.

    Args:
        scores: Distances beyond the threshold, (n, 1).

    Returns:
        Whether each image is rejected, 1, or accepted, 0, and the size of the largest distance.
    """
    return sketch_logits(torch.cat([torch.zeros_like(scores), scores], 1))


def logits_differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two models' logits on the same images differ by more than rounding.

    Args:
        one: Logits, (n, classes).
        other: Logits, (n, classes).

    Returns:
        True if shapes differ, or values by more than RELATIVE_TOLERANCE of the largest.
    """
    if one.shape != other.shape:
        return True
    a, b = (each.detach().double().nan_to_num().cpu() for each in (one, other))
    return float((a - b).abs().max()) > RELATIVE_TOLERANCE * float(
        torch.maximum(a.abs(), b.abs()).max()
    )


class _Describer:
    """Converts values to text; repeated values have the same text, cycles give their length."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._open: list[int] = []
        self._codes: dict[Path, str] = {}
        self._alive: list[Any] = []
        """Holds described objects, so that no other object gets their id."""

    def describe_model(self, model: nn.Module) -> Iterator[str]:
        """Yield lines that describe structure, attributes, parameters and buffers."""
        yield _representation(model)
        inside: set[int] = set()
        for name, module in model.named_modules():
            if id(module) not in inside:
                yield f"{name}: {self._class(type(module))} {self._describe_attributes(module)}"
            # The text of an opaque module covers its submodules.
            if isinstance(module, OpaqueModel | torch.jit.ScriptModule):
                inside |= {id(each) for each in module.modules()}
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **_state(model)}
        yield from (f"{key}: {self.describe(value)}" for key, value in sorted(tensors.items()))

    def _describe_attributes(self, module: nn.Module) -> str:
        """Describe hooks and attributes of a module; no parameters, buffers and submodules."""
        if isinstance(module, torch.jit.ScriptModule):
            return describe_program(module)
        if isinstance(module, OpaqueModel):
            return module.content
        hooks = {name: [*getattr(module, name, {}).values()] for name in HOOKS}
        theirs = type(module).__module__.split(".")[0] in _TORCH
        named = {
            name: value
            for name, value in vars(module).items()
            # torch holds internal state in private names, and adds some with each version.
            if name not in MODULE_ATTRIBUTES
            and value is not None
            and not (theirs and name.startswith("_"))
        }
        if isinstance(module, torch.fx.GraphModule):
            named = {"code": module.code}
        return self._describe_fields(
            {**named, **{name: each for name, each in hooks.items() if each}}
        )

    def _describe_fields(self, values: Mapping[str, Any]) -> str:
        return (
            "{" + ",".join(f"{name}={self.describe(values[name])}" for name in sorted(values)) + "}"
        )

    def describe(self, value: Any) -> str:
        """Describe any value."""
        if isinstance(value, _SCALARS) and not isinstance(value, np.generic):
            return _scalar(value)
        key = id(value)
        if key in self._texts:
            return self._texts[key]
        if key in self._open:
            return f"<up {len(self._open) - self._open.index(key)}>"
        self._open.append(key)
        self._alive.append(value)
        try:
            text = self._compound(value)
        except Exception:  # foreign code may raise anything when inspected
            text = f"<{type(value).__qualname__}>"
        finally:
            self._open.remove(key)
        if len(text) > MAX_TEXT:
            text = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        self._texts[key] = text
        return text

    def _compound(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray | np.generic):
            return _array(np.asarray(value))
        if isinstance(value, Mapping):
            pairs = [f"{self.describe(key)}:{self.describe(each)}" for key, each in value.items()]
            if isinstance(value, collections.defaultdict):
                pairs.append(self.describe(value.default_factory))
            return f"{type(value).__name__}{{{','.join(pairs)}}}"
        if isinstance(value, set | frozenset):
            return f"set{{{','.join(sorted(describe_value(each) for each in value))}}}"
        if isinstance(value, PurePath):
            return _path(value)
        if isinstance(value, _SPELLED):
            return repr(value)
        if isinstance(value, _GETTERS):
            return f"{type(value).__name__} {self.describe(value.__reduce__()[1:])}"
        if isinstance(value, torch.Generator):  # its state changes with every pass
            of_torch = value is torch.default_generator  # seeded anew in each process
            return f"generator {value.device.type} {'' if of_torch else value.initial_seed()}"
        if isinstance(value, Sequence):
            return f"{type(value).__name__}[{','.join(self.describe(each) for each in value)}]"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, torch.jit.ScriptFunction):
            return describe_program(value)
        if isinstance(value, contextvars.ContextVar):
            return f"ContextVar {self.describe(value.get())}"
        if isinstance(value, nn.Module):
            return "; ".join(self.describe_model(value))
        if callable(value) or isinstance(value, functools.partialmethod):
            return self._callable(value)
        return self._object(value)

    def _module(self, module: types.ModuleType) -> str:
        file = source_hash.module_file(module)
        name = f"module {module.__name__} {self._code(file)}"
        values = read_values.read_module(module) if file and source_hash.is_own(file) else {}
        return f"{name} {self._describe_fields(values)}" if values else name

    def _callable(self, value: Any) -> str:
        if isinstance(value, functools.partial | functools.partialmethod):
            parts = (value.func, value.args, value.keywords)
            return f"partial({','.join(self.describe(part) for part in parts)})"
        if isinstance(value, types.MethodType):
            return f"method({self.describe(value.__func__)},{self.describe(value.__self__)})"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.BuiltinFunctionType):
            return f"function {value.__module__}.{value.__qualname__}"
        if type(value).__module__ in source_hash.STANDARD and hasattr(value, "__wrapped__"):
            return self.describe(value.__wrapped__)  # as that of functools.cache
        return self._object(value)

    def _function(self, function: types.FunctionType) -> str:
        code = function.__code__
        file = Path(code.co_filename)
        if file.is_file() and not source_hash.is_own(file):
            name = f"function {function.__qualname__} {_version(function.__module__)}"
            return f"{name}{self._wrapped(function, file)}"
        content = file.read_bytes() if file.is_file() else b""
        tree = source_hash.hash_function(content, code.co_name, code.co_firstlineno)
        parts = [
            function.__qualname__,
            tree or self._compiled(code, function.__doc__),
            self._code(file),
            self._bound(function) + self._read_values([function]),
        ]
        if not content:  # typed at a prompt or in a notebook: no file has what it refers to
            parts.append(self._describe_fields(read_values.read_global_variables(function)))
        return (
            f"function({','.join(parts)},{self.describe(getattr(function, '__wrapped__', None))})"
        )

    def _read_values(self, functions: Sequence[types.FunctionType]) -> str:
        """Describe the global values that functions read; "" without any."""
        values = read_values.read_values(functions)
        return self._describe_fields(values) if values else ""

    def _wrapped(self, function: types.FunctionType, file: Path) -> str:
        """Describe what a function of bench or of a library is bound to, as a decorator's is."""
        if source_hash.is_of_bench(file):
            return self._bound(function)
        if hasattr(function, "__wrapped__"):
            return self.describe(function.__wrapped__)
        return self.describe(read_values.read_bound(function)) if function.__closure__ else ""

    def _bound(self, function: types.FunctionType) -> str:
        """Describe the default arguments and the closure of a function."""
        bound = read_values.read_bound(function)
        return self.describe(bound) if bound else ""

    def _compiled(self, code: types.CodeType, doc: str | None) -> str:
        """Hash the bytecode of a function whose source no file contains alone."""
        parts = [
            self._compiled(each, None) if isinstance(each, types.CodeType) else self.describe(each)
            for each in code.co_consts
            if each is not doc
        ]
        names = [code.co_names, code.co_varnames, code.co_freevars]
        return hashlib.sha256(repr((code.co_code, names, parts)).encode()).hexdigest()

    def _code(self, file: Path | None) -> str:
        if file is None or not file.is_file() or not source_hash.is_own(file):
            return ""
        if file not in self._codes:
            self._codes[file] = source_hash.hash_code(file)
        return self._codes[file]

    def _class(self, kind: type) -> str:
        """Describe the code of a class and of its bases."""
        return " ".join(dict.fromkeys(self._one_class(each) for each in kind.__mro__[:-1]))

    def _one_class(self, kind: type) -> str:
        top = kind.__module__.split(".")[0]
        if top in _TORCH or top in source_hash.STANDARD:
            return kind.__name__
        file = source_hash.module_file(kind.__module__)
        if file is not None and not source_hash.is_own(file):
            return f"{kind.__qualname__} {_version(kind.__module__)}"
        if file is not None and "<locals>" not in kind.__qualname__:
            fields = self._describe_fields(read_values.read_class(kind))
            read = self._read_values(read_values.list_functions(kind))
            return f"{kind.__qualname__} {self._code(file)} {fields}{read}"
        # Made by a function, or typed at a prompt: no file contains the class as it is.
        own = {name: each for name, each in vars(kind).items() if name not in _OF_CLASSES}
        return f"{kind.__qualname__} {self._code(file)} {self._describe_fields(own)}"

    def _object(self, value: Any) -> str:
        kind = type(value)
        top = kind.__module__.split(".")[0]
        if top in _TORCH or top in source_hash.STANDARD:
            name = f"<{kind.__module__}.{kind.__qualname__}>"
            set_ = vars(value) if isinstance(value, _SETTINGS) else {}
            return f"{name} {self._describe_fields(set_)}" if set_ else name
        state = _read_state(value)
        return f"{self._class(kind)} {self._describe_fields(state)}"


# ------------------------------------------------------------------------------------------ leaves


def _read_state(value: Any) -> dict[str, Any]:
    """Return the attributes of an object; of a library's, what it is pickled as, if it says so."""
    kind = type(value)
    file = source_hash.module_file(kind.__module__)
    if file is not None and not source_hash.is_own(file):
        ways = ("__reduce__", "__reduce_ex__", "__getstate__")
        if any(getattr(kind, way) is not getattr(object, way) for way in ways):
            with contextlib.suppress(Exception):  # foreign code, or an object that is not pickled
                return {"state": value.__reduce_ex__(2)[1:3]}
    state = dict(getattr(value, "__dict__", {}))
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                state[name] = getattr(value, name)
    return state


def _scalar(value: Any) -> str:
    if isinstance(value, str) and len(value) > 1 and PurePath(value).is_absolute():
        return _path(PurePath(value))
    return f"{type(value).__name__}:{value!r}"


def _path(path: PurePath) -> str:
    """Describe an absolute path by its name alone, since folders differ between machines."""
    return f"path:{path.name if path.is_absolute() else path.as_posix()}"


def _tensor(tensor: Tensor) -> str:
    plain = tensor.detach()
    head = f"{plain.dtype} {tuple(plain.shape)}"
    if plain.is_meta:
        return head
    if plain.is_quantized:
        steps = (
            f"{plain.q_scale()} {plain.q_zero_point()}"
            if plain.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
            else f"{plain.q_per_channel_scales().tolist()} "
            f"{plain.q_per_channel_zero_points().tolist()}"
        )
        return f"{head} {steps} {_tensor(plain.int_repr())}"
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    flat = plain.cpu().contiguous().view(-1)
    content: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return f"{head} {hashlib.sha256(content).hexdigest()}"


def _array(array: Any) -> str:
    content = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    return f"{array.dtype.str} {array.shape} {hashlib.sha256(content).hexdigest()}"


def _representation(model: nn.Module) -> str:
    try:
        return _ADDRESS.sub("", repr(model))
    except Exception:  # foreign code: a user's __repr__
        return type(model).__qualname__


def _state(model: nn.Module) -> dict[str, Any]:
    try:
        return dict(model.state_dict())
    except Exception:  # foreign code, or layers that store their state elsewhere
        return {}


def describe_program(program: "torch.jit.ScriptModule | torch.jit.ScriptFunction[Any, Any]") -> str:
    """Hash the graph of a TorchScript program.

    Args:
        program: The program: a module or a function.

    Returns:
        64 hexadecimal digits, independent of source locations; empty without a forward.
    """
    try:
        graph: Any = program.inlined_graph
    except RuntimeError:  # without a forward
        return ""
    return hashlib.sha256(graph.str(False).encode()).hexdigest()


def _version(module: str | None) -> str:
    """Return the version of an installed library; empty for torch and bench.

    Their versions are recorded elsewhere.
    """
    top = (module or "bench").split(".")[0]
    return (
        "" if top in ("bench", *_TORCH, *source_hash.STANDARD) else source_hash.package_version(top)
    )
