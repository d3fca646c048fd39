"""Describe the tables of a publication: how to read them, parameters, versions, reproduction."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.evaluation import metrics
from bench.reporting.formats.numbers import (
    format_number,
    format_plural,
    format_rate,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Row
from bench.reporting.site.sources import PublishedRun
from bench.suite.plan import Cell

CLEAN = "clean"
"""Heading of the column without attack."""
INTERVALS = (
    "Brackets hold 95 % Wilson intervals. An example that the model misclassifies without attack "
    "is not robust."
)
_OWN = "bench"
_BEST = {
    False: "the attack that breaks most examples",
    True: "the model that stays robust on most examples",
}
"""Meaning of bold, by whether the lines are models."""


def describe_table(
    run: PublishedRun, rows: Sequence[Row], attacks: Sequence[str], by_model: bool
) -> list[str]:
    """Describe a table in sentences.

    Args:
        run: The run.
        rows: The cells of the table, as rows of table.csv.
        attacks: Labels of the attacks in the table.
        by_model: True for a table of models, False for a table of attacks on one model.

    Returns:
        The sentences.
    """
    sentences = [
        INTERVALS,
        _emphasis(run, by_model),
        describe_parameters(_select_cells(run, rows, set(attacks))),
        describe_versions(run.found.provenance["sessions"][-1]["environment"], rows),
    ]
    return [sentence for sentence in sentences if sentence]


def describe_source(run: PublishedRun) -> list[str]:
    """State the command that reproduces a run and the hash of its records.

    Args:
        run: The run.

    Returns:
        Two sentences.
    """
    records_hash = run.records_hash
    records = (
        f"Records: sha256 {records_hash}."
        if records_hash
        else "Records: not available, hash unknown."
    )
    return [f"Reproduce with: {run.command}, then bench publish.", records]


def format_clean_accuracy(row: Row) -> str:
    """Format the clean accuracy of a finished cell.

    Args:
        row: A row of table.csv.

    Returns:
        The accuracy with its interval.
    """
    found = metrics.rate(int(row["clean_correct"]), int(row["n"]))
    return f"clean accuracy {format_rate(found.k, found.n, found.low, found.high)}"


def without_attack(row: Row) -> Row:
    """Compute the row that a finished cell would have without attack.

    Args:
        row: A row of table.csv.

    Returns:
        Goal, n, robust count and interval.
    """
    found = metrics.rate(int(row["clean_correct"]), int(row["n"]))
    return {
        "goal": row["goal"],
        "n": found.n,
        "robust_correct": found.k,
        "robust_low": found.low,
        "robust_high": found.high,
    }


def _emphasis(run: PublishedRun, by_model: bool) -> str:
    """Explain bold cells, and the number of comparisons behind them."""
    kind = "models" if by_model else "attacks"
    if not len(run.found.comparisons):
        return "Nothing is bold: no paired tests of this run are available."
    if not (run.found.comparisons["compared"] == kind).any():
        return ""
    tested = format_plural(len(run.found.comparisons), "comparison")
    but = " The column without attack is not tested." if by_model else ""
    return (
        f"Bold: {_BEST[by_model]}, and all that the exact McNemar test on the same examples "
        f"finds not significantly different (5 %, Holm-corrected for the {tested} of the run); "
        f"nothing if that is the whole column.{but}"
    )


# -------------------------------------------------------------------------------------- parameters


def _select_cells(run: PublishedRun, rows: Sequence[Row], shown: set[str]) -> dict[str, list[Cell]]:
    wanted = {row["cell"] for row in rows if row["attack"] in shown}
    cells: dict[str, list[Cell]] = {}
    for cell in run.found.plan:
        if cell.identity in wanted and not cell.reason:
            cells.setdefault(cell.attack, []).append(cell)
    return cells


def describe_parameters(cells: Mapping[str, Sequence[Cell]]) -> str:
    """List each attack's parameters; those that all attacks share, once.

    Args:
        cells: Name of each attack -> its cells.

    Returns:
        One or two sentences; empty without cells.
    """
    traits = {attack: _traits(own) for attack, own in cells.items()}
    if not traits:
        return ""
    everywhere = set.intersection(*(set(own.items()) for own in traits.values()))
    common = everywhere if len(traits) > 1 else set()
    first = next(iter(traits.values()))
    shared = _format_traits({key: value for key, value in first.items() if (key, value) in common})
    alike: dict[str, list[str]] = {}
    for attack, own in traits.items():
        listed = _format_traits(
            {key: value for key, value in own.items() if (key, value) not in common}
        )
        if listed:
            alike.setdefault(listed, []).append(format_text(attack))
    distinct = [f"{' and '.join(attacks)}: {listed}" for listed, attacks in alike.items()]
    return ". ".join(filter(None, ["; ".join(distinct), shared and f"All: {shared}"])) + "."


def _format_traits(traits: Mapping[str, str]) -> str:
    return ", ".join(f"{format_text(key)} = {format_text(value)}" for key, value in traits.items())


def _traits(cells: Sequence[Cell]) -> dict[str, str]:
    """Collect an attack's parameters over all eps; a value proportional to eps as a multiple."""
    keys = dict.fromkeys(key for cell in cells for key in (*cell.traits, "stop"))
    every = [(cell.eps, {"stop": cell.stop, **cell.traits}) for cell in cells]
    return {key: _trait([(eps, traits.get(key, "")) for eps, traits in every]) for key in keys}


def _trait(values: Sequence[tuple[float, str]]) -> str:
    texts = list(dict.fromkeys(text for _, text in values))
    if len(texts) == 1:
        return texts[0]
    try:
        shares = [float(text) / eps for eps, text in values]
    except ValueError:  # words
        shares = []
    if shares and all(math.isclose(share, shares[0], rel_tol=1e-6) for share in shares):
        return "eps" if math.isclose(shares[0], 1) else f"{format_number(shares[0], 4)} eps"
    return " or ".join(texts)


# ---------------------------------------------------------------------------------------- versions


def describe_versions(environment: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Name the software and the device behind the numbers.

    Args:
        environment: The environment of a session in the manifest.
        rows: The cells of the table, as rows of table.csv.

    Returns:
        One sentence.
    """
    packages = environment["packages"]
    own = next((name for name in packages if _OWN in name), _OWN)
    foreign = {str(row["implementation"]) for row in rows} - {_OWN}
    named = [own, "torch", *sorted(foreign & set(packages))]
    versions = [f"{name} {packages[name]}" for name in named if not is_missing(packages.get(name))]
    checkout = environment.get("git")
    if versions and checkout:
        changed = ", with changes" if checkout["changed"] else ""
        versions[0] += f" (commit {checkout['commit'][:12]}{changed})"
    hardware = environment.get("device_name") or environment.get("processor") or ""
    device = ", ".join(filter(None, [str(environment["device"]), format_text(hardware)]))
    return (
        f"Made with {', '.join([*versions, f'''python {environment['python']}'''])}, on {device}."
    )
