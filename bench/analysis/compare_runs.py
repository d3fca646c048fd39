"""Compare two runs by cell and example: another seed, version of a model, device or library.

Cells of two runs correspond if the suites give them the same model, attack, norm, goal, target and
eps. Their outcomes are paired by example and compared by the exact McNemar test, corrected for all
cells of the comparison. Runs on other data are not compared; cells of one run only are named. The
module does not read, write or print.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.analysis import pairwise
from bench.analysis.pairwise import OutcomePair
from bench.analysis.results import RunResults
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.suite.labels import WORST_CASE
from bench.suite.plan import Cell

FIRST, SECOND = "A", "B"
"""Names of the two runs in sentences."""
UNATTACKED = "no attack"
"""In place of an attack: clean images."""
KEY = ("model", "attack", "norm", "goal", "target", "eps")
"""Columns that name a cell in both runs."""
COLUMNS = (
    *KEY, "eps_text", "n", "first_robust", "first_low", "first_high", "second_robust",
    "second_low", "second_high", "only_first", "only_second", "p_value", "p_corrected", "sentence",
)  # fmt: skip
CHANGED = (
    *KEY, "eps_text", "example", "label", "change", "first_clean_pred", "second_clean_pred",
    "first_adv_pred", "second_adv_pred", "first_confidence", "second_confidence",
)  # fmt: skip


class RunComparison(NamedTuple):
    """Two runs, compared on the same examples."""

    table: pd.DataFrame
    """One row per shared cell, columns COLUMNS; `only_first` and `only_second` count the examples
    that are robust in one run only."""
    changed: pd.DataFrame
    """One row per example and cell that is robust in one run only, columns CHANGED; `change` is
    "lost" if it is not robust in the second run, else "gained"."""
    apart: list[str]
    """A sentence for each model and attack that was not compared at some eps, with the reason."""
    notes: list[str]
    """Other differences between the runs, a sentence each."""
    refusal: str
    """Why nothing was compared; empty if something was."""


class CellPair(NamedTuple):
    """The same cell of both runs: its name, and its records in each, indexed by example."""

    place: Mapping[str, Any]
    first: pd.DataFrame
    second: pd.DataFrame

    def robust(self) -> tuple[Outcomes, Outcomes]:
        """Compute which examples are robust.

        Returns:
            Outcomes in the first and in the second run.
        """
        return metrics.robust_examples(self.first), metrics.robust_examples(self.second)


def compare_runs(first: RunResults, second: RunResults) -> RunComparison:
    """Compare two runs on the examples that both have.

    Args:
        first: Run A.
        second: Run B.

    Returns:
        The comparison, or the reason why nothing was compared.
    """
    refused = _name_unrecorded(first, second) or _describe_other_data(first, second)
    sides = [] if refused else list(pair_shared_cells(first, second))
    if not refused and not sides:
        refused = f"no finished cell in common; {_holds(FIRST, first)}, {_holds(SECOND, second)}"
    attacked = [OutcomePair("models", each.place, FIRST, SECOND, each.robust()) for each in sides]
    pairs = [*_unattacked(sides), *attacked, *_together(attacked)]
    return RunComparison(
        table=_table(pairs),
        changed=_changed(sides),
        apart=[] if refused else list(_apart(first, second)),
        notes=list(_notes(first, second)),
        refusal=refused,
    )


# --------------------------------------------------------------------------- corresponding cells


def _name_unrecorded(first: RunResults, second: RunResults) -> str:
    """Say which run has no records; empty if both have some."""
    bare = [name for name, run in ((FIRST, first), (SECOND, second)) if run.stored.frame.empty]
    why = "no records of examples, and only they can be paired; run its suite again"
    return f"{' and '.join(bare)} {'hold' if len(bare) > 1 else 'holds'} {why}" if bare else ""


def _describe_other_data(first: RunResults, second: RunResults) -> str:
    """Say why the examples are not the same; empty if they are.

    A run may use fewer examples of the same data set: then the labels of the shared ones are
    compared.
    """
    a, b = first.provenance["data"], second.provenance["data"]
    if a["fingerprint"] == b["fingerprint"]:
        return ""
    what = f"{FIRST} has {a['n']} examples of {a['name']}, {SECOND} {b['n']} of {b['name']}"
    if a["name"] != b["name"]:
        return f"other data: {what}"
    labels, others = (_labels(run) for run in (first, second))
    common = labels.index.intersection(others.index)
    if a["n"] == b["n"] or len(common) == 0 or (labels[common] != others[common]).any():
        return f"other data: {what}, of other content"
    return ""


def _labels(run: RunResults) -> "pd.Series[int]":
    return run.stored.frame.drop_duplicates("example").set_index("example")["label"]


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(getattr(cell, name) for name in KEY)


def index_statuses(run: RunResults) -> dict[tuple[Any, ...], tuple[Cell, str, str]]:
    """Index the cells of a run by name.

    Args:
        run: A run.

    Returns:
        Values of KEY -> (cell, status, reason).
    """
    rows = zip(run.plan, run.table["status"], run.table["reason"], strict=True)
    return {_key(cell): (cell, str(status), str(reason)) for cell, status, reason in rows}


def pair_shared_cells(first: RunResults, second: RunResults) -> Iterator[CellPair]:
    """Pair the cells above eps 0 that both runs finished.

    Args:
        first: Run A.
        second: Run B.

    Yields:
        Each cell with the records of the examples that both runs have.
    """
    here, there = index_statuses(first), index_statuses(second)
    frames = [_by_cell(run) for run in (first, second)]
    for key, (cell, status, _) in here.items():
        if key not in there or (status, there[key][1]) != ("ok", "ok") or cell.eps == 0:
            continue
        a, b = frames[0][cell.identity], frames[1][there[key][0].identity]
        common = a.index.intersection(b.index).sort_values()
        place = {**dict(zip(KEY, key, strict=True)), "eps_text": cell.eps_text}
        yield CellPair(place, a.loc[common], b.loc[common])


def _by_cell(run: RunResults) -> dict[str, pd.DataFrame]:
    groups = run.stored.frame.groupby("cell", observed=True)
    return {str(cell): rows.set_index("example") for cell, rows in groups}


# ------------------------------------------------------------------------------------ what differs


def _unattacked(sides: Sequence[CellPair]) -> Iterator[OutcomePair]:
    """Pair the clean predictions of each model, from the first of its cells."""
    for each in {each.place["model"]: each for each in reversed(sides)}.values():
        nothing = {"attack": UNATTACKED, "norm": "", "goal": "", "target": ""}
        place = {**each.place, **nothing, "eps": 0.0, "eps_text": "0"}
        clean, other = (rows["clean_correct"].astype(bool) for rows in (each.first, each.second))
        yield OutcomePair("models", place, FIRST, SECOND, (clean, other))


def _together(pairs: Sequence[OutcomePair]) -> Iterator[OutcomePair]:
    """Pair the worst cases over the untargeted attacks that both runs have."""
    groups: dict[tuple[Any, ...], list[OutcomePair]] = {}
    for pair in pairs:
        if pair.place["goal"] == "untargeted":
            place = tuple(pair.place[name] for name in ("model", "norm", "eps"))
            groups.setdefault(place, []).append(pair)
    for group in groups.values():
        if len(group) > 1:
            first, second = (
                metrics.worst_case([pair.outcomes[side] for pair in group]) for side in (0, 1)
            )
            shared = {**group[0].place, "attack": WORST_CASE}
            yield group[0]._replace(place=shared, outcomes=(first, second))


def _table(pairs: Sequence[OutcomePair]) -> pd.DataFrame:
    """Tabulate pairs, models in the order of the first run."""
    tested = pairwise.tabulate_pairs(pairs).to_dict("records")
    rows = [{**row, **pair.place, **_rates(pair)} for row, pair in zip(tested, pairs, strict=True)]
    order = {model: k for k, model in enumerate(dict.fromkeys(row["model"] for row in rows))}
    rows.sort(key=lambda row: order[row["model"]])  # stable
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rates(pair: OutcomePair) -> dict[str, float]:
    rates: dict[str, float] = {}
    for side, outcomes in zip(("first", "second"), pair.outcomes, strict=True):
        rate = metrics.rate(int(outcomes.sum()), len(outcomes))
        rates |= {f"{side}_robust": rate.k, f"{side}_low": rate.low, f"{side}_high": rate.high}
    return rates


def _changed(sides: Sequence[CellPair]) -> pd.DataFrame:
    """List the examples that are robust in one run only, with the predictions in both."""
    frames = [_list_flips(each) for each in sides]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(CHANGED))


def _list_flips(sides: CellPair) -> pd.DataFrame:
    before, after = sides.robust()
    flipped = before != after
    a, b = sides.first[flipped], sides.second[flipped]
    columns: dict[str, Any] = {name: [value] * len(a) for name, value in sides.place.items()}
    columns |= {"example": a.index, "label": a["label"].to_numpy()}
    columns["change"] = ["lost" if robust else "gained" for robust in before[flipped]]
    for name in ("clean_pred", "adv_pred", "confidence"):
        columns |= {f"first_{name}": a[name].to_numpy(), f"second_{name}": b[name].to_numpy()}
    return pd.DataFrame(columns, columns=list(CHANGED))


# --------------------------------------------------------------------------- what was not compared


def _holds(name: str, run: RunResults) -> str:
    """Say how many cells of each status a run has, and of which models."""
    counts = ", ".join(
        f"{count} {status}" for status, count in run.table["status"].value_counts().items()
    )
    return f"{name} has {counts} of {', '.join(dict.fromkeys(run.table['model']))}"


def _apart(first: RunResults, second: RunResults) -> Iterator[str]:
    """Name the cells that only one run finished, the eps of one model and attack together."""
    here, there = index_statuses(first), index_statuses(second)
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for key in dict.fromkeys([*here, *there]):
        cell = (here.get(key) or there[key])[0]
        why = _missing(here.get(key), there.get(key))
        if why and cell.eps > 0:
            reasons.setdefault((cell.model, cell.attack, why), []).append(cell.eps_text)
    for (model, attack, why), radii in reasons.items():
        yield f"{model} · {attack} at eps {', '.join(radii)}: {why}"


def _missing(here: tuple[Cell, str, str] | None, there: tuple[Cell, str, str] | None) -> str:
    if here is None or there is None:
        return f"only {FIRST if there is None else SECOND} has it"
    unfinished = [
        f"{status} in {name} ({reason})"
        for name, (_, status, reason) in ((FIRST, here), (SECOND, there))
        if status != "ok"
    ]
    return "; ".join(unfinished)


def _notes(first: RunResults, second: RunResults) -> Iterator[str]:
    """Describe differences in n, seed, models, settings, software and device, a sentence each."""
    a, b = first.provenance, second.provenance
    if a["data"]["n"] != b["data"]["n"]:
        sizes = f"{FIRST} has {a['data']['n']} examples, {SECOND} {b['data']['n']}"
        yield f"{sizes}: those that both have are compared, on their labels they agree"
    for label in dict.fromkeys([*a["models"], *b["models"]]):
        prints = [run["models"].get(label, {}).get("fingerprint") for run in (a, b)]
        if all(prints) and prints[0] != prints[1]:
            yield f"{label} is another model in {SECOND}: other weights or another architecture"
    if a["suite"]["seed"] != b["suite"]["seed"]:
        yield f"the seed is {a['suite']['seed']} in {FIRST}, {b['suite']['seed']} in {SECOND}"
    yield from _settings(first, second)
    where, other = (run["sessions"][-1]["environment"] for run in (a, b))
    machine = ("device", "device_name", "processor", "python")
    here, there = (
        {**{name: run.get(name) for name in machine}, **run["packages"]} for run in (where, other)
    )
    for name in dict.fromkeys([*here, *there]):
        if here.get(name) != there.get(name):
            label = name.replace("_", " ")
            yield f"{label}: {here.get(name)} in {FIRST}, {there.get(name)} in {SECOND}"


def _settings(first: RunResults, second: RunResults) -> Iterator[str]:
    """Describe attacks of one name with other parameters; each once, at the first eps."""
    there, described = index_statuses(second), set()
    for key, (cell, _, _) in index_statuses(first).items():
        if key not in there or cell.eps == 0:
            continue
        a, b = (
            {"stop": c.stop, "precision": c.precision, **c.traits} for c in (cell, there[key][0])
        )
        differ = ", ".join(
            f"{name} {a.get(name, 'unknown')} in {FIRST}, {b.get(name, 'unknown')} in {SECOND}"
            for name in dict.fromkeys([*a, *b])
            if a.get(name) != b.get(name)
        )
        if differ and cell.attack not in described:
            described.add(cell.attack)
            yield f"{cell.attack} is another attack: {differ}"
