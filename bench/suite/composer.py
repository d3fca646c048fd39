"""Compose the text of the suite that the options of one command mean.

`bench run --model net.py:make --data cifar10 --attack pgd --eps 8/255` is a suite without a file:
the text is stored in the run's folder, so that the run is repeated, reported and compared as any
other.
"""

import dataclasses
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.core import checkpoint, files, registry
from bench.core.checkpoint import SUFFIXES
from bench.core.contracts.attack import Attack
from bench.core.contracts.dataset import Dataset
from bench.core.contracts.model import Model
from bench.core.errors import SuiteError, nearest
from bench.core.optional import Unchecked

HEADER = "# Written by bench from the options of a command line."
OBJECTS_HEADER = (
    "# Made by bench.benchmark of Python objects, which this text names and does not contain."
)
"""First line of a suite that no file can repeat."""
FILE = "suite.toml"
"""File of a run's folder with the suite that was composed for it."""
_KINDS = {"attack": "attacks", "model": "models", "data": "datasets"}
_OFFERED = {"split", "limit", "data_dir"}
"""Parameters of a data set's function that no `--param` sets."""


class Param(NamedTuple):
    """A parameter as typed: `KEY=VALUE`, or `OWNER.KEY=VALUE`."""

    key: str
    value: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """What the options of a command ask for; file names start from the working folder."""

    models: tuple[str, ...]
    weights: tuple[str | None, ...]
    """One for each model; None where the model needs none."""
    data: str = ""
    attacks: tuple[str, ...] = ()
    norm: str = "linf"
    eps: tuple[str, ...] = ()
    params: tuple[Param, ...] = ()
    limit: int | None = None
    trust: bool = False
    """Whether the models' files may be read although that can run code in them."""
    suite: Path | None = dataclasses.field(default=None, repr=False)
    """A suite's file, whose models are replaced; None if data, attacks, norm and eps are given."""


def compose_suite(request: SuiteRequest, base: Path) -> str:
    """Compose the text of a suite.

    Args:
        request: What is asked for.
        base: Folder that the suite is to be stored in; relative paths are written for it.

    Returns:
        TOML; the same for every command that means the same.

    Raises:
        SuiteError: A parameter belongs to nothing that is asked for, or to things of two kinds.
    """
    params = assign_params(request)
    data = {
        "name": registry.relocate_name("datasets", request.data, base),
        "limit": request.limit,
        "params": params["data", request.data],
    }
    attacks = [
        {
            "name": registry.relocate_name("attacks", name, base),
            "label": name,
            "norm": request.norm,
            "eps": [_radius(text) for text in request.eps],
            "params": _relocate_loss(params["attack", name], base),
        }
        for name in request.attacks
    ]
    top = {
        "schema": 1,
        "name": name_request(request, request.data),
        "title": f"{', '.join(dict.fromkeys(request.models))} on {request.data}",
    }
    return format_suite(HEADER, top, data, compose_models(request, params, base), attacks)


def name_request(request: SuiteRequest, stem: str) -> str:
    """Name the folder of a run: the first model, what it is attacked on, a hash of all options.

    Args:
        request: What is asked for.
        stem: Name of the data set or of the suite.

    Returns:
        A name that two different requests do not share.
    """
    stems = "-".join([_stem(request.models[0]), _stem(stem)])
    about = repr(request) + str(request.suite or "")
    return f"{files.slug(stems)}-{files.short_hash(about.encode())[:6]}"


def compose_models(
    request: SuiteRequest, params: Mapping[tuple[str, str], Mapping[str, Any]], base: Path
) -> list[dict[str, Any]]:
    """Compose the [[models]] tables.

    Args:
        request: What is asked for.
        params: As `assign_params` returns them.
        base: Folder that the suite is to be stored in.

    Returns:
        A table for each model.
    """
    return [
        {
            "name": registry.relocate_name("models", name, base),
            "label": _label(request, name, weights),
            "weights": _relocate_weights(weights, base),
            "params": params["model", name],
            "trust": request.trust or None,
        }
        for name, weights in zip(request.models, request.weights, strict=True)
    ]


def restore_paths(sentence: str, request: SuiteRequest, base: Path) -> str:
    """Restore the paths in a sentence about a composed suite as the user typed them.

    Args:
        sentence: Message of an error, with paths that start from `base`.
        request: What the suite was composed of.
        base: Folder that the suite was composed for.

    Returns:
        The sentence with paths from the working folder.
    """
    typed = {}
    for file in _list_files(request):
        relocated = registry.relocate_path(file, base)
        typed[relocated] = typed[(base.resolve() / relocated).as_posix()] = file
    if not typed:
        return sentence
    longest_first = sorted(typed, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    return re.sub(rf"(?<![\w./-])(?:{pattern})(?!\w)", lambda found: typed[found[0]], sentence)


def format_suite(
    header: str,
    top: Mapping[str, Any],
    data: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    attacks: Sequence[Mapping[str, Any]],
    unions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Format the tables of a suite.

    Args:
        header: First line, a comment.
        top: Keys at the top.
        data: The [data] table.
        models: The [[models]] tables.
        attacks: The [[attacks]] tables.
        unions: The [[unions]] tables.

    Returns:
        TOML; keys without a value are left out.
    """
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("", top),
        ("[data]", data),
        *(("[[models]]", each) for each in models),
        *(("[[attacks]]", each) for each in attacks),
        *(("[[unions]]", each) for each in unions),
    ]
    return f"{header}\n" + "\n".join("\n".join(_lines(*table)) for table in tables)


def write_suite(folder: Path, text: str, earlier: str, fresh: bool) -> Path:
    """Store the suite of a run in its folder.

    Args:
        folder: Folder of the run.
        text: As `compose_suite` returns it.
        earlier: Text of the suite that the folder holds a run of; empty if it holds none.
        fresh: Whether the run that the folder holds is discarded.

    Returns:
        Path of the file.

    Raises:
        SuiteError: The folder holds the run of another suite.
    """
    check_folder(folder, text, fresh)
    if earlier not in ("", text) and not fresh:
        raise SuiteError(_describe_conflict(folder, earlier, text, True))
    return files.write_atomic(folder / FILE, text.encode())


def check_folder(folder: Path, text: str, fresh: bool, path: Path | None = None) -> None:
    """Check that a folder holds no run of other options.

    A composed suite in the folder that another suite is to replace is removed if `fresh`.

    Args:
        folder: Folder of the run.
        text: The suite's text.
        fresh: Whether the run that the folder holds is discarded.
        path: The suite's file; None for a suite that is composed.

    Raises:
        SuiteError: The folder holds a run of another suite.
    """
    stored = folder / FILE
    try:
        found = stored.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    is_this = path is not None and path.resolve() == stored.resolve()
    is_composed = found.startswith(HEADER)
    if found == text or is_this or (path is not None and not is_composed):
        return
    if fresh and is_composed:
        files.remove(stored)
        return
    raise SuiteError(_describe_conflict(stored, found, text, is_composed))


def _describe_conflict(where: Path, found: str, text: str, may_discard: bool) -> str:
    """Say that a folder holds the run of another suite, with the first lines that differ."""
    first, second = (
        [line for line in each.splitlines()[1:] if line and not line.startswith(("#", "name = "))]
        for each in (found, text)
    )
    lines = itertools.zip_longest(first, second, fillvalue="nothing")
    there, here = next((pair for pair in lines if pair[0] != pair[1]), ("other names", "these"))
    return (
        f"{where}: expected the suite of this command, got another ({there} there, {here} here); "
        "run into another folder by --out"
        + (", or discard the run in this one by --fresh" if may_discard else "")
    )


# ------------------------------------------------------------------------------------------ params


def assign_params(request: SuiteRequest) -> dict[tuple[str, str], dict[str, Any]]:
    """Assign the parameters to what has them.

    Args:
        request: What is asked for.

    Returns:
        (kind, name) -> params, for everything that is asked for.

    Raises:
        SuiteError: A parameter belongs to nothing that is asked for, or to things of two kinds.
    """
    named = [
        *(("model", name) for name in request.models),
        *(("data", name) for name in (request.data,) if name),
        *(("attack", name) for name in request.attacks),
    ]
    owners = {owner: _list_parameters(*owner) for owner in named}
    assigned: dict[tuple[str, str], dict[str, Any]] = {owner: {} for owner in owners}
    for key, value in request.params:
        named, name = _split_owner(key, owners)
        takers = [owner for owner in named if name in (owners[owner] or ())]
        if not takers and named != [*owners]:
            takers = named  # of unknown parameters, or a mistake that the suite's check names
        kinds = dict.fromkeys(kind for kind, _ in takers)
        if not takers:
            known = {each for parameters in owners.values() for each in parameters or ()}
            anything = "a model, the data set or an attack" if request.data else "the model"
            raise SuiteError(
                f"--param {key}: expected a parameter of {anything}; {nearest(name, known)}"
            )
        if len(kinds) > 1:
            forms = " or ".join(f"{kind}.{name}" for kind in kinds)
            raise SuiteError(
                f"--param {key}: it is a parameter of the {' and of the '.join(kinds)}; "
                f"write {forms}"
            )
        for owner in takers:
            assigned[owner][name] = value
    return assigned


def _split_owner(
    key: str, owners: Mapping[tuple[str, str], Any]
) -> tuple[list[tuple[str, str]], str]:
    """Split `attack.steps` or `pgd.steps` into those that it names and the parameter."""
    prefix, dot, name = key.rpartition(".")
    named = [owner for owner in owners if prefix in owner]
    if not dot:
        return [*owners], key
    if not named:
        known = {each for owner in owners for each in owner}
        raise SuiteError(
            f"--param {key}: expected the name of what it is for before the dot, got '{prefix}'; "
            f"{nearest(prefix, known)}"
        )
    return named, name


def _list_parameters(kind: str, name: str) -> list[str] | None:
    """List the parameters of a model, a data set or an attack; None where that is unknown."""
    try:
        found = registry.find(_KINDS[kind], name, Path())
    except SuiteError:  # the suite's check names the mistake
        return None
    if isinstance(found, Attack):
        unknown = found.params is Unchecked  # only the library knows its parameters
        return [] if unknown else [each.name for each in dataclasses.fields(found.params)]
    function: Callable[..., Any] | None = (
        found.load
        if isinstance(found, Dataset)
        else found.build
        if isinstance(found, Model)
        else found
    )
    try:
        signature = inspect.signature(function) if callable(function) else None
    except ValueError:  # some callables written in C have none
        return None
    if signature is None:
        return None
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        each.name
        for each in signature.parameters.values()
        if each.kind not in variable and not (kind == "data" and each.name in _OFFERED)
    ]


# ------------------------------------------------------------------------------------------- names


def _stem(name: str) -> str:
    """Return the last part of a name: the function, the library's class or the file."""
    last = name.rpartition(":")[2]
    return Path(last).stem if last.endswith(tuple(SUFFIXES)) else Path(last).name


def _label(request: SuiteRequest, name: str, weights: str | None) -> str:
    """Return the label of a model: its name, with its weights if it occurs twice."""
    return f"{name}, {weights}" if request.models.count(name) > 1 and weights else name


def _relocate_loss(params: dict[str, Any], base: Path) -> dict[str, Any]:
    """Rewrite the path of a loss of the user's in an attack's params."""
    loss = params.get("loss")
    if not isinstance(loss, str) or ":" not in loss:
        return params
    return {**params, "loss": registry.relocate_name("attacks", loss, base)}


def _relocate_weights(weights: str | None, base: Path) -> str | None:
    """Rewrite the path of a file of weights; names of weights are left as they are."""
    return registry.relocate_path(weights, base) if weights and _is_path(weights) else weights


def _is_path(weights: str) -> bool:
    """Return whether weights are a file, or a part of one, and not a name."""
    return "/" in weights or checkpoint.is_checkpoint(Path(), weights)


def _list_files(request: SuiteRequest) -> Iterator[str]:
    """Yield the paths of files in what was typed."""
    kinds = {"models": request.models, "datasets": (request.data,), "attacks": request.attacks}
    for kind, names in kinds.items():
        for name in filter(None, names):
            if file := registry.split_file(kind, name)[0]:
                yield file
    for weights in request.weights:
        if weights and _is_path(weights):
            _, part = checkpoint.split_name(Path(), weights)
            yield weights.removesuffix(f"#{part}") if part else weights


# -------------------------------------------------------------------------------------------- TOML


def _radius(text: str) -> float | str:
    """Return a radius as a number, or as text if it is a fraction or no number at all."""
    try:
        return float(text)
    except ValueError:
        return text


def _lines(head: str, table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table, without keys that are empty."""
    if head:
        yield head
    for key, value in table.items():
        if value is not None and value != {}:
            yield f"{key} = {format_toml(value)}"
    yield ""


def format_toml(value: Any) -> str:
    """Format a value as TOML.

    >>> format_toml({"steps": 40, "alpha": "eps/10", "list": [True, 0.5]})
    '{ steps = 40, alpha = "eps/10", list = [true, 0.5] }'

    Args:
        value: Text, a number, a truth value, or lists and mappings of them.

    Returns:
        The text of the value.
    """
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {format_toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(format_toml(each) for each in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(name: str) -> str:
    plain = name.replace("_", "").replace("-", "")
    return name if plain.isascii() and plain.isalnum() else format_toml(name)
