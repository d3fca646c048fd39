"""The [[published]] entries of a suite: figures reported elsewhere, to lie beside the measured.

They change no cell; `beside` joins them with the table once there is one.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bench.core.errors import nearest
from bench.core.validation import Validator

Figure = Literal["robust_accuracy", "attack_success_rate", "error_rate", "mean_confidence_fooled"]
"""As in table.csv; error_rate = 1 - robust_accuracy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceFigure:
    """What a source reports of one attack on one model, eps by eps."""

    model: str
    """Label of the suite's model that the figure lies beside; seldom the very net of the source."""
    attack: str
    """Label of the suite's attack."""
    source: str
    figure: Figure
    eps: tuple[float, ...]
    values: tuple[float, ...]
    """Shares of 1, one for each eps."""
    note: str


@dataclasses.dataclass
class _Published:
    """A [[published]] table as written: eps as text."""

    model: str
    attack: str
    source: str
    eps: list[float | str]
    values: list[float]
    figure: Figure = "robust_accuracy"
    note: str = ""


def read_references(
    check: Validator,
    raw: dict[str, Any],
    models: Sequence[str],
    attacks: Mapping[str, Mapping[float, str]],
) -> tuple[ReferenceFigure, ...]:
    """The entries of the suite `raw`; what is wrong with them gathers in `check`.

    `models` are the labels that there are, `attacks` the labels with the eps that each runs, as
    numbers and as written; an attack with mistakes of its own may have none.
    """
    entries = tuple(
        check.each(raw, "published", lambda e, key: _entry(check, e, key, models, attacks))
    )
    places = Counter((e.source, e.model, e.attack, e.figure) for e in entries)
    for (source, model, attack, figure), count in places.items():
        if count > 1:
            told = f"expected one entry for {figure} of {model} under {attack} from '{source}'"
            check.say("published", f"{told}, got {count}")
    return entries


def _entry(
    check: Validator,
    raw: Any,
    key: str,
    models: Sequence[str],
    attacks: Mapping[str, Mapping[float, str]],
) -> ReferenceFigure | None:
    entry: _Published | None = check.fill(_Published, raw, key)
    if entry is None:
        return None
    for what, label, known in (("model", entry.model, models), ("attack", entry.attack, attacks)):
        if label not in known:
            told = f"no {what} has the label '{label}'; {nearest(label, known)}"
            check.say(f"{key}.{what}", told)
    if len(entry.eps) != len(entry.values):
        got = f"{len(entry.eps)} eps and {len(entry.values)} values"
        check.say(f"{key}.values", f"expected a value for each eps, got {got}")
    for index, value in enumerate(entry.values):
        if not 0 <= value <= 1:
            check.say(f"{key}.values[{index}]", f"expected a share in [0, 1], got {value:g}")
    eps = tuple(_radii(check, entry, f"{key}.eps", attacks.get(entry.attack, {})))
    read = {**dataclasses.asdict(entry), "eps": eps, "values": tuple(entry.values)}
    return ReferenceFigure(**read)


def _radii(
    check: Validator, entry: _Published, key: str, run: Mapping[float, str]
) -> Iterator[float]:
    """The eps as numbers, each once and each one that the attack runs."""
    if not entry.eps:
        check.say(key, "expected at least one eps, got an empty list")
    seen: set[float] = set()
    for index, written in enumerate(entry.eps):
        at = f"{key}[{index}]"
        value = check.radius(written, at)
        if value is None:
            continue
        shown = written if isinstance(written, str) else f"{written:g}"
        if value in seen:
            check.say(at, f"expected each eps once, got {shown} again")
        elif run and value not in run:
            known = ", ".join(run.values())
            told = f"expected an eps that attack '{entry.attack}' runs ({known}), got {shown}"
            check.say(at, told)
        seen.add(value)
        yield value
