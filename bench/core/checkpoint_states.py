"""Find the state of a model in a checkpoint and load it; nothing is dropped without being named.

A checkpoint may hold several states under any keys ("model", "model_ema", ...), beside an
optimiser, numbers and settings. A state fits a model if its keys are the model's, once the prefixes
that wrappers add are taken off on both sides, and all shapes are equal. Of parameters that the
model ties, one is enough. A tensor whose values the model's type cannot take does not fit.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core import checkpoint
from bench.core.errors import SuiteError, nearest

WRAPPERS = frozenset({"module", "model", "net", "network", "backbone", "_orig_mod"})
"""Names under which wrappers hold a network: DataParallel, Lightning, torch.compile and others. A
number is one, too: nn.Sequential(normalise, network)."""
TRANSPARENT = frozenset({"module", "_orig_mod"})
"""Names of wrappers that may also be inside a key, where a part of a network is wrapped."""
COUNTER = "num_batches_tracked"
"""Batch norm's counter, which evaluation does not read and old checkpoints lack."""
AVERAGED = "n_averaged"
"""The counter of torch's AveragedModel, which belongs to no network."""
MAX_DEPTH, MAX_MAPPINGS = 5, 1000
"""Bounds of the search for states in nested mappings."""
LISTED = 5
"""Most keys of a kind that a message lists."""


class State(NamedTuple):
    """Tensors of one mapping in a checkpoint."""

    tensors: Mapping[str, Tensor]
    ignored: tuple[str, ...] = ()
    """Keys beside these tensors, in this mapping and in those around it."""


class Match(NamedTuple):
    """How a state relates to a model's own state."""

    keys: Mapping[str, str]
    """Key of the model -> key of the state."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    """Descriptions of tensors of another shape or kind."""

    def fits(self) -> bool:
        """Return whether every tensor has its place.

        Returns:
            False if any is missing, left over, or of another shape or kind.
        """
        return not (self.missing or self.unexpected or self.misfits)


def load_checkpoint(where: str, model: nn.Module, path: Path, part: str = "") -> str:
    """Load the state of a checkpoint that fits a model.

    Args:
        where: Name of the setting or file, with which error messages begin.
        model: Model whose parameters and buffers are overwritten.
        path: File or folder, as in `checkpoint.read_checkpoint`.
        part: Dotted path of the state in the checkpoint, or of its keys' common prefix; empty for
            the only one that fits.

    Returns:
        What was chosen, ignored and converted, as a clause; empty if the file is a plain state.

    Raises:
        SuiteError: The file cannot be read, no state fits, or several different ones do.
    """
    states = find_states(checkpoint.read_checkpoint(where, path))
    if not states:
        raise SuiteError(f"{where}: {path}: expected a state_dict, got a mapping without tensors")
    if part:
        states = {part: _select_part(where, path, states, part)}
    wanted = model.state_dict()
    matches = {name: match_keys(wanted, state.tensors) for name, state in states.items()}
    fitting = [name for name, match in matches.items() if match.fits()]
    if not fitting:
        raise SuiteError(_describe_misfit(where, path, wanted, states, matches, part))
    chosen, *others = fitting
    for other in others:
        if not _are_equal(states[chosen], matches[chosen], states[other], matches[other]):
            known = ", ".join(repr(name or "the file itself") for name in fitting)
            file = path.name
            raise SuiteError(
                f"{where}: {len(fitting)} states in the file fit ({known}) and differ; name one, "
                f'such as weights = "{file}#{other}"'
            )
    _load(model, states[chosen].tensors, matches[chosen])
    return _describe_choice(path, chosen, states[chosen], matches[chosen], wanted)


def load_tensors(where: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors into a model; prefixes that wrappers add to keys may be missing or extra.

    Args:
        where: Name of the setting or file, with which error messages begin.
        model: Model whose parameters and buffers are overwritten.
        state: Tensors by key.

    Raises:
        SuiteError: Keys or shapes are those of another architecture.
    """
    match = match_keys(model.state_dict(), state)
    if not match.fits():
        raise SuiteError(f"{where} belong to another architecture: {_describe_match(match)}")
    _load(model, state, match)


# --------------------------------------------------------------------------------- finding states


def find_states(content: Mapping[Any, Any]) -> dict[str, State]:
    """Find every mapping of tensors in a checkpoint.

    Args:
        content: The outermost mapping.

    Returns:
        States by dotted path, outer ones first; the path of the outermost mapping is empty.
    """
    found: dict[str, State] = {}
    open_: list[tuple[str, Mapping[Any, Any], tuple[str, ...], int]] = [("", content, (), 0)]
    for path, mapping, around, depth in open_:  # which grows while it is read
        tensors = {
            key: value
            for key, value in mapping.items()
            if isinstance(key, str) and isinstance(value, Tensor) and key != AVERAGED
        }
        others = [str(key) for key in mapping if key not in tensors]
        if tensors:
            found[path] = State(tensors, (*around, *(_join(path, key) for key in others)))
        if depth == MAX_DEPTH:
            continue
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Mapping) and len(open_) < MAX_MAPPINGS:
                beside = tuple(_join(path, str(other)) for other in mapping if other != key)
                open_.append((_join(path, key), value, (*around, *beside), depth + 1))
    return found


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _select_part(where: str, path: Path, states: Mapping[str, State], part: str) -> State:
    """Return the state at a dotted path, or the tensors whose keys begin with it."""
    if part in states:
        return states[part]
    for name, state in states.items():
        head = f"{part}." if not name else f"{part}.".removeprefix(f"{name}.")
        if name and not part.startswith(f"{name}."):
            continue
        inside = {
            key.removeprefix(head): value
            for key, value in state.tensors.items()
            if key.startswith(head)
        }
        if inside:
            outside = (_join(name, key) for key in state.tensors if not key.startswith(head))
            return State(inside, (*state.ignored, *outside))
    known = nearest(part, [name for name in states if name])
    raise SuiteError(f"{where}: {path.name} has no part '{part}'; {known}")


# -------------------------------------------------------------------------------- matching of keys


def match_keys(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Match:
    """Match the keys of a state with those of a model.

    Common prefixes of wrappers are taken off, in any order and number, where all keys then match.

    Args:
        wanted: The model's own state.
        state: The tensors to load.

    Returns:
        The match; where none is exact, that with most keys in common.
    """
    best = None
    for drop in (False, True):
        mine = {key: _without_wrappers(key) if drop else key for key in wanted}
        theirs = {key: _without_wrappers(key) if drop else key for key in state}
        for ours in _stripped(mine, None):
            for other in _stripped(theirs, WRAPPERS):
                match = _compare(wanted, state, ours, other)
                if match is not None and (best is None or len(match.keys) > len(best.keys)):
                    best = match
                if best is not None and not best.missing and not best.unexpected:
                    return best
    return best or Match({}, tuple(sorted(wanted)), tuple(sorted(state)), ())


def _without_wrappers(key: str) -> str:
    """Remove the names of transparent wrappers from a key."""
    return ".".join(part for part in key.split(".") if part not in TRANSPARENT)


def _stripped(
    names: Mapping[str, str], allowed: frozenset[str] | None
) -> Iterator[Mapping[str, str]]:
    """Yield names without their first component as often as all share it and it is allowed."""
    yield names
    while names:
        firsts = {name.partition(".")[0] for name in names.values()}
        rests = [name.partition(".")[2] for name in names.values()]
        (first, *more) = firsts
        if more or not all(rests):
            return
        if allowed is not None and first not in allowed and not first.isdecimal():
            return
        names = {key: name.partition(".")[2] for key, name in names.items()}
        yield names


def _compare(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    ours: Mapping[str, str],
    theirs: Mapping[str, str],
) -> Match | None:
    """Match keys by names; None if two keys have the same name."""
    mine = {name: key for key, name in ours.items()}
    given = {name: key for key, name in theirs.items()}
    if len(mine) < len(ours) or len(given) < len(theirs):
        return None
    keys = {mine[name]: given[name] for name in mine if name in given}
    ties = _find_ties(wanted)
    for group in ties:  # safetensors' save_model stores one of several tied parameters
        stored = next((keys[key] for key in group if key in keys), None)
        if stored is not None:
            keys |= {key: stored for key in group if key not in keys}
    # Without batch norm's running mean the counter alone would not be missing.
    missing = sorted(key for key in wanted if key not in keys and not key.endswith(COUNTER))
    unexpected = sorted(key for name, key in given.items() if name not in mine)
    misfits = [
        f"{key} {text}"
        for key, other in keys.items()
        if (text := _compare_kinds(wanted[key], state[other]))
    ]
    if not misfits:
        misfits = [
            f"{key} other than {group[0]}, with which the model ties it"
            for group in ties
            for key in group[1:]
            if key in keys and not _have_same_values(state[keys[group[0]]], state[keys[key]])
        ]
    return Match(keys, tuple(missing), tuple(unexpected), tuple(misfits))


def _find_ties(wanted: Mapping[str, Tensor]) -> list[list[str]]:
    """List the groups of keys of a model that are one and the same parameter or buffer."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for key, value in wanted.items():
        if value.numel() and not value.is_meta:
            place = value.device, value.data_ptr(), value.shape, value.stride(), value.dtype
            groups.setdefault(place, []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def _compare_kinds(wanted: Tensor, given: Tensor) -> str:
    """Describe why a tensor cannot take the place of a model's; empty if it can."""
    for is_so, kind in (
        (given.is_meta, "without values"),
        (given.layout != torch.strided, given.layout),
        (given.is_quantized, given.dtype),
    ):
        if is_so:
            return f"{str(kind).removeprefix('torch.')} instead of plain values"
    if given.shape != wanted.shape:
        return f"{tuple(given.shape)} instead of {tuple(wanted.shape)}"
    loses_imaginary = given.is_complex() and not wanted.is_complex()
    if loses_imaginary or (
        given.is_floating_point()
        and not (wanted.is_floating_point() or wanted.is_complex())
        and not torch.equal(given.to(wanted.dtype).to(given.dtype), given)
    ):
        names = [str(each.dtype).removeprefix("torch.") for each in (given, wanted)]
        return f"{names[0]} instead of {names[1]}"
    return ""


def _have_same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape are equal, where NaN equals NaN."""
    return one is other or bool(((one == other) | ((one != one) & (other != other))).all())


def _load(model: nn.Module, tensors: Mapping[str, Tensor], match: Match) -> None:
    """Load matched tensors; a counter that the state lacks keeps its value."""
    given = {key: tensors[other] for key, other in match.keys.items()}
    model.load_state_dict({**model.state_dict(), **given})


def _are_equal(one: State, match: Match, other: State, other_match: Match) -> bool:
    """Return whether two states give a model the same tensors."""
    pairs = [
        (one.tensors[key], other.tensors[other_match.keys[name]])
        for name, key in match.keys.items()
        if name in other_match.keys
    ]
    same = match.keys.keys() == other_match.keys.keys()
    return same and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


# ------------------------------------------------------------------------------------- in sentences


def _describe_choice(
    path: Path, chosen: str, state: State, match: Match, wanted: Mapping[str, Tensor]
) -> str:
    """Describe what of a checkpoint was loaded, as a clause; empty if all of it was, as it is."""
    parts = []
    if state.ignored:
        parts.append(f"ignored in it: {_enumerate(sorted(state.ignored))}")
    kinds = {
        (state.tensors[other].dtype, wanted[key].dtype)
        for key, other in match.keys.items()
        if state.tensors[other].dtype != wanted[key].dtype
    }
    for given, made in sorted(kinds, key=str):
        names = [str(each).removeprefix("torch.") for each in (given, made)]
        parts.append(f"{names[0]} converted to {names[1]}")
    if absent := len(wanted) - len(match.keys):
        parts.append(f"{absent} {COUNTER} are not in it, which evaluation does not use")
    if not parts:
        return ""
    place = f"'{chosen}' of {path.name}" if chosen else path.name
    return f"loaded from {place} ({'; '.join(parts)})"


def _describe_misfit(
    where: str,
    path: Path,
    wanted: Mapping[str, Tensor],
    states: Mapping[str, State],
    matches: Mapping[str, Match],
    part: str,
) -> str:
    """Describe why no state fits: the closest one, what differs, and a part of it that fits."""
    closest = max(matches, key=lambda name: len(matches[name].keys) - len(matches[name].misfits))
    which = f" ('{closest}', the closest of {len(states)} parts)" if len(states) > 1 else ""
    if len(states) == 1 and closest and not part:
        which = f" ('{closest}')"
    sentence = f"{where}{which} belong to another architecture: {_describe_match(matches[closest])}"
    fitting = [f'"{path.name}#{part}"' for part in _find_fitting_parts(wanted, states)]
    if not fitting:
        return sentence
    known = " or ".join(fitting[:LISTED])
    return f"{sentence}; a part of it fits: name {known} to leave the rest out"


def _find_fitting_parts(wanted: Mapping[str, Tensor], states: Mapping[str, State]) -> list[str]:
    """Find common prefixes under which the keys fit a model, beside others."""
    least = sum(not key.endswith(COUNTER) for key in wanted)
    found: list[str] = []
    for name, state in states.items():
        for prefix in _list_prefixes(state.tensors):
            part = _join(name, prefix)
            inside = {
                key.removeprefix(prefix): value
                for key, value in state.tensors.items()
                if key.startswith(prefix)
            }
            nested = any(part.startswith(f"{each}.") for each in found)
            if len(inside) >= least and not nested and match_keys(wanted, inside).fits():
                found.append(part.rstrip("."))
    return found


def _list_prefixes(keys: Mapping[str, Tensor]) -> list[str]:
    """List the dotted prefixes of keys, short ones first."""
    found: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")[:-1]
        found |= dict.fromkeys(".".join(parts[: n + 1]) + "." for n in range(min(len(parts), 3)))
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _describe_match(match: Match) -> str:
    """List what is missing, left over and of another kind; with the nearest key of the other."""
    parts = []
    for what, keys, others in (
        ("missing", match.missing, match.unexpected),
        ("unexpected", match.unexpected, match.missing),
    ):
        if keys:
            parts.append(f"{len(keys)} {what} ({_enumerate(_with_nearest(keys, others))})")
    if match.misfits:
        parts.append(f"{len(match.misfits)} misshapen ({_enumerate(match.misfits)})")
    return "; ".join(parts)


def _with_nearest(keys: Sequence[str], others: Sequence[str]) -> list[str]:
    """Add to the first keys the nearest one on the other side, if it is similar."""
    known = others[:1000]
    shown = []
    for key in keys[:LISTED]:
        close = difflib.get_close_matches(key[:200], [each[:200] for each in known], 1, 0.6)
        shown.append(f"{key} like {close[0]}" if close else key)
    return [*shown, *keys[LISTED:]]


def _enumerate(texts: Sequence[str]) -> str:
    """Join the first texts and count the others."""
    more = len(texts) - LISTED
    return ", ".join(texts[:LISTED]) + (f" and {more} more" if more > 0 else "")
