"""Isolate the judged model from foreign code, and undo what that code changes in the process.

An external attack gets a copy of the model. Where there can be none (a program that refuses, a
service behind a callable, more than MAX_COPY_BYTES, a copy that does not answer alike) it gets the
model itself, and changes that can be detected afterwards are undone.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.errors import ContractError
from bench.engine.model_state import eval_mode
from bench.evaluation.process_state import LOST, ProcessState
from bench.models.query_only import QueryOnlyModel

MAX_COPY_BYTES = 2 * 2**30
"""A model of more bytes is not copied."""
PROBE_IMAGES = 4
"""Images on which a copy must answer exactly as the model does, and the model as before."""
LOGIT_TOLERANCE = 1e-4
"""How far the model's logits may be apart before and after, as a share of the largest: the same
passes on a GPU need not give the same bits."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Attributes that are compared by value; others are compared by identity."""
TABLES = ("_modules", "_parameters", "_buffers")
MODES = ("training", "_is_full_backward_hook")
"""Attributes that libraries set at will: restored without a report."""


class StateGuard:
    """Restores the process and a model after each call of foreign code."""

    def __init__(self, model: nn.Module | None = None) -> None:
        """Record the state of the process; `isolate_model` adds that of the model.

        Args:
            model: What the foreign code is given; without one the process alone is guarded.
        """
        self.model = model
        self.process = ProcessState()
        self.structures: list[_Structure] = []
        self.weights: list[tuple[str, Tensor, Tensor]] = []
        """Name, the tensor that foreign code gets and the one that it must equal."""

    @contextmanager
    def restore_after(self) -> Iterator[None]:
        """Restore the process and the structure and weights of the model on exit.

        Yields:
            Nothing; foreign code is called inside.

        Raises:
            ContractError: Something was changed, by name; not if the code inside raised.
        """
        process: list[str] = []
        model: list[str] = []
        try:
            yield
        finally:
            process = self.process.restore()  # first: what follows calls functions
            model = [name for structure in self.structures for name in structure.restore()]
            for name, given, expected in self.weights:
                if not _are_same(given, expected):
                    model.append(name)
                    with torch.no_grad():
                        given.copy_(expected)
        if model:
            raise ContractError(f"the attack changed the model: {_list_first(model)}")
        if process:
            rest = "all else" if any(name.endswith(LOST) for name in process) else "it"
            raise ContractError(
                f"the attack changed what every other cell relies on: {_list_first(process)}; "
                f"{rest} was put back"
            )


@contextmanager
def isolate_model(model: nn.Module, x: Tensor, random: bool) -> Iterator[StateGuard]:
    """Copy a model for an external attack, and check on exit that the original is unchanged.

    Args:
        model: The model to protect.
        x: Images (n, c, h, w), on the first of which a copy must answer as the model does.
        random: Whether the model answers at random; then answers are not compared.

    Yields:
        A guard whose `model`, in evaluation mode, is the copy, or `model` itself where it cannot be
        copied.

    Raises:
        ContractError: The model answers otherwise afterwards.
    """
    probe = None if random or _is_remote(model) else x[:PROBE_IMAGES]
    plain = probe is not None
    with eval_mode(model):
        before = _Structure(model, frozenset(), plain)
        answer = _answer(model, probe)
        own = _copy(model)
        if own is not None and not _are_alike(_answer(own, probe), answer):
            own = None
        # What a pass alone changes, such as what a layer caches, is not the attack's doing.
        unstable_names = frozenset(before.find_changes())
        guard = StateGuard(model if own is None else own)
        guard.structures.append(_Structure(model, unstable_names, plain))
        if own is not None:
            guard.structures.append(_Structure(own, unstable_names, plain))
            guard.weights = [
                (name, given, expected)
                for (name, expected), (_, given) in zip(_tensors(model), _tensors(own), strict=True)
                if _are_same(given, expected)  # a counter among its buffers need not be
            ]
        elif _size(model) <= MAX_COPY_BYTES:
            guard.weights = [
                (name, given, given.detach().clone()) for name, given in _tensors(model)
            ]
    yield guard
    with eval_mode(model):
        after = _answer(model, probe)
    if answer is not None and after is not None and not _are_close(after, answer):
        raise ContractError(
            "the model answers otherwise after the attack than before it, and nothing that could "
            "be put back is found to have changed"
        )


def _list_first(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


# ---------------------------------------------------------------------------------------- the copy


def _is_remote(model: nn.Module) -> bool:
    """Check whether a pass queries a service, which may count or charge it."""
    return any(
        isinstance(each, QueryOnlyModel) and not isinstance(each.ask, nn.Module)
        for each in model.modules()
    )


def _copy(model: nn.Module) -> nn.Module | None:
    """Copy a model so that nothing is shared; None where that is impossible."""
    compiled = any(
        type(each).__name__ == "OptimizedModule" or vars(each).get("_compiled_call_impl")
        for each in model.modules()
    )  # a copy would be compiled anew
    if compiled or _size(model) > MAX_COPY_BYTES:
        return None
    try:
        own = copy.deepcopy(model)
    except Exception:  # of the user's model: any of its attributes may refuse to be copied
        return None
    copied, originals = _tensors(own), _tensors(model)
    ids = {id(part) for part in (*(tensor for _, tensor in copied), *own.modules())}
    original_ids = {id(part) for part in (*(tensor for _, tensor in originals), *model.modules())}
    same_names = [name for name, _ in copied] == [name for name, _ in originals]
    return own if same_names and not ids & original_ids else None


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _size(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(model))


def _answer(model: nn.Module, x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    with torch.no_grad():
        logits: Tensor = model(x.clone()).detach().clone()
    return logits


def _are_alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else _are_same(one, other)


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Check whether two tensors are equal, NaN being equal to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _are_close(one: Tensor, other: Tensor) -> bool:
    if _are_same(one, other):
        return True
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    return bool((one - other).abs().max() <= LOGIT_TOLERANCE * other.abs().max())


# ----------------------------------------------------------------------------------- its structure


_GONE = object()
"""Marks an attribute that is no longer there."""


class _ModuleSnapshot(NamedTuple):
    """The state of one module at one moment."""

    name: str
    module: nn.Module
    kind: type
    attributes: dict[str, Any]
    tables: dict[str, dict[Any, Any]]
    """Contents of its own tables: submodules, parameters, buffers and hooks."""
    contents: dict[str, Any]
    """Contents of lists, dicts and tensors among its attributes."""


class _Structure:
    """Records and restores a model's classes, submodules, hooks and attributes, without weights."""

    def __init__(self, model: nn.Module, unstable_names: frozenset[str], plain: bool) -> None:
        """Record the current structure.

        Args:
            model: The model.
            unstable_names: What a forward pass changes, and is not compared.
            plain: Whether attributes that are no functions are compared, too.
        """
        self.unstable_names, self.plain = unstable_names, plain
        self.snapshots = [_take_snapshot(name, module) for name, module in model.named_modules()]

    def find_changes(self) -> list[str]:
        """Name what differs from the recorded state."""
        return [name for name, _ in self._differences()]

    def restore(self) -> list[str]:
        """Restore the recorded state and name what differed."""
        differences = self._differences()
        for _, put in differences:
            put()
        for each in self.snapshots:
            space = vars(each.module)
            space.update({key: each.attributes[key] for key in MODES if key in each.attributes})
            for key in TABLES:  # an equal tensor may have replaced the recorded one
                space[key].update(each.tables[key])
            for key in space.keys() - each.attributes.keys() if self.plain else ():
                del space[key]
        return [name for name, _ in differences]

    def _differences(self) -> list[tuple[str, Callable[[], Any]]]:
        return [
            (name, put)
            for snapshot in self.snapshots
            for name, put in _differences(snapshot, self.plain)
            if name not in self.unstable_names
        ]


def _take_snapshot(name: str, module: nn.Module) -> _ModuleSnapshot:
    attributes = dict(vars(module))
    tables = {
        key: dict(value)
        for key, value in attributes.items()
        if isinstance(value, dict) and (key in TABLES or "hooks" in key)
    }
    contents = {key: _copy_content(value) for key, value in attributes.items() if key not in tables}
    return _ModuleSnapshot(name, module, type(module), attributes, tables, contents)


def _copy_content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in (list, dict, set) else None


def _differences(snapshot: _ModuleSnapshot, plain: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Find what differs in one module: names, each with a function that restores it."""
    module, space = snapshot.module, vars(snapshot.module)
    where = f"{snapshot.name}." if snapshot.name else ""
    if type(module) is not snapshot.kind:
        yield f"{where}__class__", lambda: object.__setattr__(module, "__class__", snapshot.kind)
    for key in space.keys() - snapshot.attributes.keys():
        if callable(space[key]) and hasattr(snapshot.kind, key):  # it hides a method
            yield f"{where}{key}", partial(space.pop, key)
    for key, value in snapshot.attributes.items():
        if key in snapshot.tables:
            yield from _table_differences(snapshot, where, key)
            continue
        compared = key not in MODES and (plain or callable(value))
        if compared and not _is_unchanged(value, space.get(key, _GONE), snapshot.contents.get(key)):
            yield f"{where}{key}", partial(_restore_attribute, snapshot, key)


def _table_differences(
    snapshot: _ModuleSnapshot, where: str, key: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Find what differs in a table of submodules, parameters, buffers or hooks."""
    before, table = snapshot.tables[key], snapshot.attributes[key]
    now = vars(snapshot.module).get(key)

    def put() -> None:
        table.clear()
        table.update(before)
        snapshot.module.__dict__[key] = table

    if now is None or (key not in TABLES and _entries_differ(now, before)):
        module = f" of {where[:-1]}" if where else ""
        yield f"{key.strip('_').replace('_', ' ')}{module}", put
    elif key in TABLES:
        names = [*before, *(name for name in now if name not in before)]
        for name in names:
            if name not in now or name not in before or not _are_equal(now[name], before[name]):
                yield f"{where}{name}", put


def _are_equal(now: Any, before: Any) -> bool:
    """Check whether two entries of a table are one object or equal tensors.

    `double()` and `float()` create every buffer anew.
    """
    both = isinstance(now, Tensor) and isinstance(before, Tensor)
    return now is before or (both and type(now) is type(before) and _are_same(now, before))


def _entries_differ(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return [*now] != [*before] or any(now[key] is not before[key] for key in before)


def _is_unchanged(before: Any, now: Any, content: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        return _are_same(now, content)
    if isinstance(before, PLAIN) and type(before) is type(now):
        return bool(before == now or before != before)
    if before is not now:
        return False
    if content is None:
        return True
    if isinstance(content, dict):
        return not _entries_differ(now, content)
    if isinstance(content, list):
        return len(now) == len(content) and all(a is b for a, b in zip(now, content, strict=True))
    return bool(now == content)


def _restore_attribute(snapshot: _ModuleSnapshot, key: str) -> None:
    value, content = snapshot.attributes[key], snapshot.contents.get(key)
    if isinstance(value, Tensor) and isinstance(content, Tensor):
        with torch.no_grad():
            value.copy_(content)
    elif isinstance(content, dict | set):
        value.clear()
        value.update(content)
    elif isinstance(content, list):
        value[:] = content
    snapshot.module.__dict__[key] = value
