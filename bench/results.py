"""All that a report, a check or a publication is made of, from a run's folder alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench import beside, comparisons, crosscheck, distances, metrics, records, tables
from bench.audit import findings
from bench.distances import Search
from bench.errors import RecordError, SuiteError
from bench.explain import explanations
from bench.explain.explanations import Explanation
from bench.plan import Cell
from bench.published import Published


class Results(NamedTuple):
    """A run, read back: its plan, its records and the tables made of them."""

    provenance: dict[str, Any]
    plan: list[Cell]
    stored: records.Stored
    table: pd.DataFrame
    worst: pd.DataFrame
    searches: list[Search]
    distances: pd.DataFrame
    comparisons: pd.DataFrame
    seeds: pd.DataFrame
    crosschecks: pd.DataFrame
    explanations: list[Explanation]
    published: pd.DataFrame
    violations: pd.DataFrame
    audit: findings.Audit

    @property
    def notes(self) -> list[str]:
        """What preflight found of the models, for the reader of their numbers."""
        models = self.provenance["models"].values()
        return [finding for model in models for finding in model["findings"]]

    def unfinished(self) -> pd.DataFrame:
        """The rows of cells that failed or were not finished."""
        return self.table[self.table["status"].isin(["failed", "missing"])]


def read(folder: Path) -> Results:
    """The results in a run's folder.

    Raises: SuiteError if there is no run; RecordError if its records are damaged.
    """
    path = folder / "provenance.json"
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SuiteError(
            f"{folder}: expected the folder of a run, found no provenance.json; "
            "make one with bench run"
        ) from None
    except (OSError, ValueError) as error:
        raise SuiteError(f"{path}: could not be read ({error}); run the suite again") from error
    try:
        if provenance["schema"] > records.SCHEMA:
            raise RecordError(
                f"{path}: schema {provenance['schema']}, this bench reads up to {records.SCHEMA}; "
                "use the bench that wrote it"
            )
        plan = [Cell(**cell) for cell in provenance["cells"]]
        data, suite = provenance["data"], provenance["suite"]
        pairs = [(ours, reference) for ours, reference in provenance["crosschecks"]]
        # A run made before suites could carry figures has none.
        entries = [
            Published(**{**entry, "eps": tuple(entry["eps"]), "values": tuple(entry["values"])})
            for entry in provenance.get("published", [])
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: damaged ({error!r}); run the suite again") from error
    stored = records.load(folder)
    wanted = {cell.identity for cell in plan}
    frame = stored.frame[stored.frame["cell"].isin(wanted)]
    stored = stored._replace(frame=frame.reset_index(drop=True))
    table = tables.cells(plan, stored, suite["name"], data["name"], data["n"])
    robust = tables.outcomes(plan, stored)
    sides = crosscheck.pairs(plan, pairs)
    kept = records.images(folder, {cell.identity for pair in sides for cell in pair})
    places = stored.frame.groupby("cell", observed=True).indices
    confidence = stored.frame.set_index("example")["clean_confidence"]
    searches = distances.searches(plan, table, stored)
    return Results(
        provenance=provenance,
        plan=plan,
        stored=stored,
        table=table,
        worst=tables.worst_case(plan, table, robust),
        searches=searches,
        distances=distances.table(searches),
        comparisons=comparisons.compare(
            table, robust, tables.outcomes(plan, stored, metrics.fooled)
        ),
        seeds=comparisons.seeds(table, robust),
        crosschecks=crosscheck.compare(
            sides, table, robust, {str(c): confidence.iloc[at] for c, at in places.items()}, kept
        ),
        explanations=explanations.read(folder, wanted),
        published=beside.join(table, entries),
        violations=tables.violations(stored),
        # A run made before models were probed has no probes.
        audit=findings.audit(plan, table, stored, provenance.get("probes", {})),
    )
