"""A stranger's loop has a model of its own, and what it changes in the process is put back.

The model that judges is never handed out where it can be copied. Where it cannot (a program that
refuses, a service behind a callable, more than HUGE bytes, a copy that does not answer alike) it is
lent itself, and what can be told apart afterwards is put back.
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
from bench.evaluation.process_state import ProcessState
from bench.models.query_only import QueryOnlyModel

MAX_COPY_BYTES = 2 * 2**30
"""A model of more bytes is not copied."""
PROBE_IMAGES = 4
"""Images on which a copy must answer exactly as the model does, and the model as before."""
LOGIT_TOLERANCE = 1e-4
"""How far the model's logits may be apart before and after, as a share of the largest: the same
passes on a GPU need not give the same bits."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Attributes that are compared by value; of others it is told whether they were exchanged."""
TABLES = ("_modules", "_parameters", "_buffers")
MODES = ("training", "_is_full_backward_hook")
"""What libraries set as they please: put back without a word."""


class StateGuard:
    """What a stranger's code is given, and what is held against how it was, time and again."""

    def __init__(self, model: nn.Module | None = None) -> None:
        """Without a `model` the process alone is looked after."""
        self.model = model
        self.process = ProcessState()
        self.structures: list[_Structure] = []
        self.weights: list[tuple[str, Tensor, Tensor]] = []
        """Name, tensor lent and the one that it must equal."""

    @contextmanager
    def restore_after(self) -> Iterator[None]:
        """The process, and what a model is made of, are afterwards as they were.

        Raises: ContractError naming what was changed, unless the code inside raised.
        """
        process: list[str] = []
        model: list[str] = []
        try:
            yield
        finally:
            process = self.process.restore()  # first: what follows calls functions
            model = [name for structure in self.structures for name in structure.restore()]
            for name, mine, theirs in self.weights:
                if not _same(mine, theirs):
                    model.append(name)
                    with torch.no_grad():
                        mine.copy_(theirs)
        if model:
            raise ContractError(f"the attack changed the model: {_few(model)}")
        if process:
            raise ContractError(
                f"the attack changed what every other cell relies on: {_few(process)}; "
                "it was put back"
            )


@contextmanager
def isolate_model(model: nn.Module, x: Tensor, random: bool) -> Iterator[StateGuard]:
    """A model for a stranger's loop: a copy that answers as `model` does on the first of x
    (n, c, h, w), or `model` itself; in evaluation mode.

    Of a model that answers at random, answers are not compared.
    Raises: ContractError if the model answers otherwise afterwards.
    """
    asked = None if random or _elsewhere(model) else x[:PROBE_IMAGES]
    plain = asked is not None
    with eval_mode(model):
        before = _Structure(model, frozenset(), plain)
        answer = _answer(model, asked)
        own = _copy(model)
        if own is not None and not _alike(_answer(own, asked), answer):
            own = None
        # What a pass alone changes, such as what a layer remembers of it, is the model's own.
        unstable_names = frozenset(before.changed())
        guard = StateGuard(model if own is None else own)
        guard.structures.append(_Structure(model, unstable_names, plain))
        if own is not None:
            guard.structures.append(_Structure(own, unstable_names, plain))
            guard.weights = [
                (name, mine, theirs)
                for (name, theirs), (_, mine) in zip(_tensors(model), _tensors(own), strict=True)
                if _same(mine, theirs)  # a counter among its buffers need not be
            ]
        elif _size(model) <= MAX_COPY_BYTES:
            guard.weights = [(name, mine, mine.detach().clone()) for name, mine in _tensors(model)]
    yield guard
    with eval_mode(model):
        after = _answer(model, asked)
    if answer is not None and after is not None and not _close(after, answer):
        raise ContractError(
            "the model answers otherwise after the attack than before it, and nothing that could "
            "be put back is found to have changed"
        )


def _few(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


# ---------------------------------------------------------------------------------------- the copy


def _elsewhere(model: nn.Module) -> bool:
    """Whether a pass asks somebody else, who may count or charge it."""
    return any(
        isinstance(each, QueryOnlyModel) and not isinstance(each.ask, nn.Module)
        for each in model.modules()
    )


def _copy(model: nn.Module) -> nn.Module | None:
    """A copy that shares nothing with the model; None where there can be none."""
    compiled = any(
        type(each).__name__ == "OptimizedModule" or vars(each).get("_compiled_call_impl")
        for each in model.modules()
    )  # a copy would be compiled anew
    if compiled or _size(model) > MAX_COPY_BYTES:
        return None
    try:
        own = copy.deepcopy(model)
    except Exception:  # a stranger's model: whatever it holds may refuse in its own way
        return None
    ours, theirs = _tensors(own), _tensors(model)
    kept = [*(tensor for _, tensor in theirs), *model.modules()]
    parts = [*(tensor for _, tensor in ours), *own.modules()]
    shared_parts = {id(part) for part in parts} & {id(part) for part in kept}
    named = [name for name, _ in ours] == [name for name, _ in theirs]
    return own if named and not shared_parts else None


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _size(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(model))


def _answer(model: nn.Module, x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    with torch.no_grad():
        found: Tensor = model(x.clone()).detach().clone()
    return found


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else _same(one, other)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, NaN and NaN being the same."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _close(one: Tensor, other: Tensor) -> bool:
    if _same(one, other):
        return True
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    return bool((one - other).abs().max() <= LOGIT_TOLERANCE * other.abs().max())


# ----------------------------------------------------------------------------------- its structure


_GONE = object()
"""Stands for an attribute that is no longer there."""


class _Held(NamedTuple):
    """One module as it was."""

    name: str
    module: nn.Module
    kind: type
    attributes: dict[str, Any]
    tables: dict[str, dict[Any, Any]]
    """What its own tables held: submodules, parameters, buffers and hooks."""
    contents: dict[str, Any]
    """What lists, dicts and tensors among its attributes held."""


class _Structure:
    """What a model is made of, beside the values of its weights: classes, submodules, hooks,
    attributes; all of it can be put back."""

    def __init__(self, model: nn.Module, unstable_names: frozenset[str], plain: bool) -> None:
        """`unstable_names` change by themselves; with `plain`, attributes that are no functions
        are compared, too."""
        self.unstable_names, self.plain = unstable_names, plain
        self.held = [_held(name, module) for name, module in model.named_modules()]

    def changed(self) -> list[str]:
        """Names of what is not as it was."""
        return [name for name, _ in self._differences()]

    def restore(self) -> list[str]:
        """Make everything as it was; names of what was not."""
        found = self._differences()
        for _, put in found:
            put()
        for each in self.held:
            space = vars(each.module)
            space.update({key: each.attributes[key] for key in MODES if key in each.attributes})
            for key in TABLES:  # an equal tensor may stand in the place of what was there
                space[key].update(each.tables[key])
            for key in space.keys() - each.attributes.keys() if self.plain else ():
                del space[key]
        return [name for name, _ in found]

    def _differences(self) -> list[tuple[str, Callable[[], Any]]]:
        return [
            (name, put)
            for held in self.held
            for name, put in _differences(held, self.plain)
            if name not in self.unstable_names
        ]


def _held(name: str, module: nn.Module) -> _Held:
    attributes = dict(vars(module))
    tables = {
        key: dict(value)
        for key, value in attributes.items()
        if isinstance(value, dict) and (key in TABLES or "hooks" in key)
    }
    contents = {key: _content(value) for key, value in attributes.items() if key not in tables}
    return _Held(name, module, type(module), attributes, tables, contents)


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in (list, dict, set) else None


def _differences(held: _Held, plain: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is not as it was in one module, by name, and what puts it back."""
    module, space = held.module, vars(held.module)
    where = f"{held.name}." if held.name else ""
    if type(module) is not held.kind:
        yield f"{where}__class__", lambda: object.__setattr__(module, "__class__", held.kind)
    for key in space.keys() - held.attributes.keys():
        if callable(space[key]) and hasattr(held.kind, key):  # it hides a method
            yield f"{where}{key}", partial(space.pop, key)
    for key, value in held.attributes.items():
        if key in held.tables:
            yield from _in_table(held, where, key)
            continue
        looked = key not in MODES and (plain or callable(value))
        if looked and not _unchanged(value, space.get(key, _GONE), held.contents.get(key)):
            yield f"{where}{key}", partial(_put_attribute, held, key)


def _in_table(held: _Held, where: str, key: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What differs in a table of submodules, parameters, buffers or hooks."""
    before, table = held.tables[key], held.attributes[key]
    now = vars(held.module).get(key)

    def put() -> None:
        table.clear()
        table.update(before)
        held.module.__dict__[key] = table

    if now is None or (key not in TABLES and _other(now, before)):
        module = f" of {where[:-1]}" if where else ""
        yield f"{key.strip('_').replace('_', ' ')}{module}", put
    elif key in TABLES:
        names = [*before, *(name for name in now if name not in before)]
        for name in names:
            if name not in now or name not in before or not _are_equal(now[name], before[name]):
                yield f"{where}{name}", put


def _are_equal(now: Any, before: Any) -> bool:
    """Whether two entries of a table are one, or tensors that hold the same, as after `double()`
    and `float()`, which make every buffer anew."""
    both = isinstance(now, Tensor) and isinstance(before, Tensor)
    return now is before or (both and type(now) is type(before) and _same(now, before))


def _other(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return [*now] != [*before] or any(now[key] is not before[key] for key in before)


def _unchanged(before: Any, now: Any, content: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        return _same(now, content)
    if isinstance(before, PLAIN) and type(before) is type(now):
        return bool(before == now or before != before)
    if before is not now:
        return False
    if content is None:
        return True
    if isinstance(content, dict):
        return not _other(now, content)
    if isinstance(content, list):
        return len(now) == len(content) and all(a is b for a, b in zip(now, content, strict=True))
    return bool(now == content)


def _put_attribute(held: _Held, key: str) -> None:
    value, content = held.attributes[key], held.contents.get(key)
    if isinstance(value, Tensor) and isinstance(content, Tensor):
        with torch.no_grad():
            value.copy_(content)
    elif isinstance(content, dict | set):
        value.clear()
        value.update(content)
    elif isinstance(content, list):
        value[:] = content
    held.module.__dict__[key] = value
