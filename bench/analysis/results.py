"""All that a report, a check or a publication is made of, from a run's folder alone."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.analysis import certified as brackets
from bench.analysis import crosscheck, explanations, min_norm, pairwise, references, tables
from bench.analysis.certified import CertifiedResults
from bench.analysis.explanations import Explanation
from bench.analysis.min_norm import Search
from bench.core.errors import RecordError
from bench.evaluation import metrics
from bench.evaluation.audit import findings
from bench.storage import manifest, records
from bench.storage.environment import mixed_versions
from bench.suite.plan import Cell
from bench.suite.references import ReferenceFigure


class RunResults(NamedTuple):
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
    certified: CertifiedResults

    @property
    def notes(self) -> list[str]:
        """What preflight found of the models, and of the versions that the records were made with,
        for the reader of their numbers."""
        models = self.provenance["models"].values()
        found = [finding for model in models for finding in model["findings"]]
        return [*found, *mixed_versions(self.provenance["sessions"])]

    def unfinished(self) -> pd.DataFrame:
        """The rows of cells that failed or were not finished."""
        return self.table[self.table["status"].isin(["failed", "missing"])]


def read(folder: Path) -> RunResults:
    """The results in a run's folder.

    Raises: SuiteError if there is no run; RecordError if its records are damaged.
    """
    provenance, plan = manifest.read(folder)
    data, suite = provenance["data"], provenance["suite"]
    pairs = [(ours, reference) for ours, reference in provenance["crosschecks"]]
    # A run made before suites could carry figures has none.
    entries = [
        ReferenceFigure(**{**known, "eps": tuple(known["eps"]), "values": tuple(known["values"])})
        for known in manifest.known(ReferenceFigure, provenance.get("published", []))
    ]
    stored = records.load(folder)
    wanted = {cell.identity for cell in plan}
    planned = stored.frame["cell"].isin(wanted)
    if not planned.all():  # an earlier plan's cells; else a million rows need not be copied
        stored = stored._replace(frame=stored.frame[planned].reset_index(drop=True))
    _check(folder, stored, wanted, data["n"])
    table = tables.cell_table(plan, stored, suite["name"], data["name"], data["n"])
    robust = tables.outcomes(plan, stored)
    sides = crosscheck.pairs(plan, pairs)
    kept = records.images(folder)
    sure = stored.frame["clean_confidence"].set_axis(stored.frame["example"])
    confidence = {cell: sure.iloc[at] for cell, at in stored.places().items()}
    searches = min_norm.searches(plan, table, stored)
    worst = tables.worst_case(plan, table, robust)
    return RunResults(
        provenance=provenance,
        plan=plan,
        stored=stored,
        table=table,
        worst=worst,
        searches=searches,
        distances=min_norm.table(searches),
        comparisons=pairwise.compare(
            table, robust, tables.outcomes(plan, stored, metrics.fooled_examples)
        ),
        seeds=pairwise.seeds(table, robust),
        crosschecks=crosscheck.compare(sides, table, robust, confidence, kept),
        explanations=explanations.read(folder, wanted),
        published=references.compare_with_references(table, entries),
        violations=tables.violations(stored),
        # A run made before models were probed has no probes.
        audit=findings.audit_run(
            plan,
            table,
            stored,
            provenance.get("probes", {}),
            [label for label, about in provenance["models"].items() if about.get("random")],
        ),
        certified=brackets.read(folder, provenance, worst, stored.frame),
    )


def _check(folder: Path, stored: records.Stored, wanted: Collection[str], n: int) -> None:
    """Raises: RecordError if the records are not of the examples that the plan is for."""
    beyond = {piece.cell for piece in stored.pieces if piece.cell in wanted and piece.last > n}
    if beyond:
        told = f"records of more than the {n} examples that {manifest.FILE} tells of"
        raise RecordError(f"{folder}: {told}; run the suite again with --fresh")
    fooled = stored.frame["fooled"].to_numpy(dtype=bool)
    if (fooled & ~metrics.eligible_examples(stored.frame).to_numpy()).any():
        told = "records of examples fooled that no attack was run on"
        raise RecordError(f"{folder}: {told}; run the suite again with --fresh")
