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
from bench.storage import images, manifest, reader
from bench.storage.environment import describe_mixed_versions
from bench.suite.plan import Cell
from bench.suite.references import ReferenceFigure


class RunResults(NamedTuple):
    """A run, read back: its plan, its records and the tables made of them."""

    provenance: dict[str, Any]
    plan: list[Cell]
    stored: reader.StoredRecords
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
        return [*found, *describe_mixed_versions(self.provenance["sessions"])]

    def unfinished(self) -> pd.DataFrame:
        """The rows of cells that failed or were not finished."""
        return self.table[self.table["status"].isin(["failed", "missing"])]


def read_results(folder: Path) -> RunResults:
    """The results in a run's folder.

    Raises: SuiteError if there is no run; RecordError if its records are damaged.
    """
    provenance, plan = manifest.read_manifest(folder)
    data, suite = provenance["data"], provenance["suite"]
    pairs = [(ours, reference) for ours, reference in provenance["crosschecks"]]
    # A run made before suites could carry figures has none.
    entries = [
        ReferenceFigure(**{**known, "eps": tuple(known["eps"]), "values": tuple(known["values"])})
        for known in manifest.select_known_fields(ReferenceFigure, provenance.get("published", []))
    ]
    stored = reader.read_records(folder)
    wanted = {cell.identity for cell in plan}
    planned = stored.frame["cell"].isin(wanted)
    if not planned.all():  # an earlier plan's cells; else a million rows need not be copied
        stored = stored._replace(frame=stored.frame[planned].reset_index(drop=True))
    _check(folder, stored, wanted, data["n"])
    table = tables.cell_table(plan, stored, suite["name"], data["name"], data["n"])
    robust = tables.outcomes_by_cell(plan, stored)
    sides = crosscheck.pair_cells(plan, pairs)
    kept = images.read_images(folder)
    sure = stored.frame["clean_confidence"].set_axis(stored.frame["example"])
    confidence = {cell: sure.iloc[at] for cell, at in stored.row_positions().items()}
    searches = min_norm.collect_searches(plan, table, stored)
    worst = tables.worst_case_table(plan, table, robust)
    return RunResults(
        provenance=provenance,
        plan=plan,
        stored=stored,
        table=table,
        worst=worst,
        searches=searches,
        distances=min_norm.search_table(searches),
        comparisons=pairwise.compare_pairs(
            table, robust, tables.outcomes_by_cell(plan, stored, metrics.fooled)
        ),
        seeds=pairwise.seed_table(table, robust),
        crosschecks=crosscheck.compare_implementations(sides, table, robust, confidence, kept),
        explanations=explanations.read_explanations(folder, wanted),
        published=references.compare_with_references(table, entries),
        violations=tables.violation_table(stored),
        # A run made before models were probed has no probes.
        audit=findings.audit(
            plan,
            table,
            stored,
            provenance.get("probes", {}),
            [label for label, about in provenance["models"].items() if about.get("random")],
        ),
        certified=brackets.read_certified(folder, provenance, worst, stored.frame),
    )


def _check(folder: Path, stored: reader.StoredRecords, wanted: Collection[str], n: int) -> None:
    """Raises: RecordError if the records are not of the examples that the plan is for."""
    beyond = {piece.cell for piece in stored.pieces if piece.cell in wanted and piece.last > n}
    if beyond:
        told = f"records of more than the {n} examples that {manifest.FILE} tells of"
        raise RecordError(f"{folder}: {told}; run the suite again with --fresh")
    fooled = stored.frame["fooled"].to_numpy(dtype=bool)
    if (fooled & ~metrics.eligible(stored.frame).to_numpy()).any():
        told = "records of examples fooled that no attack was run on"
        raise RecordError(f"{folder}: {told}; run the suite again with --fresh")
