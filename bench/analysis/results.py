"""Read a run back from its folder; compute the tables that a report or check asks for."""

import copy
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import (
    certified,
    classes,
    corruptions,
    crosscheck,
    explanations,
    min_norm,
    pairwise,
    queries,
    query_pairs,
    references,
    rejections,
    stages,
    tables,
    unions,
)
from bench.analysis.certified import CertifiedResults
from bench.analysis.corruptions import CorruptionResults
from bench.analysis.explanations import Explanation
from bench.analysis.min_norm import Search
from bench.analysis.smoothed import SmoothedResults, read_smoothed
from bench.core.errors import RecordError
from bench.evaluation import metrics
from bench.evaluation.audit import findings
from bench.storage import manifest, reader
from bench.storage.environment import describe_mixed_versions
from bench.storage.images import read_images
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell
from bench.suite.references import ReferenceFigure
from bench.suite.unions import ThreatUnion, UnionThreat


class RunResults:
    """The results of a run.

    A table is computed when it is first accessed and then cached: a gate needs two of fifteen, a
    report all. Images, certificates and explanations are read from the folder at that time.

    Attributes:
        folder: Folder of the run.
        provenance: The manifest, as `bench.storage.manifest` reads it.
        plan: The cells of the suite, in its order.
        stored: The records of these cells.
    """

    def __init__(
        self, folder: Path, provenance: dict[str, Any], plan: list[Cell], stored: StoredRecords
    ) -> None:
        """Use results that are in memory; `read_results` reads them from a folder.

        Args:
            folder: Folder of the run.
            provenance: The manifest.
            plan: The cells of the suite, in its order.
            stored: The records of these cells.
        """
        self.folder, self.provenance, self.plan, self.stored = folder, provenance, plan, stored

    def replace(self, **changes: Any) -> "RunResults":
        """Copy the results with some attributes replaced.

        Args:
            **changes: Attribute -> value. Tables that are computed already do not change with it.

        Returns:
            The copy; it shares all other attributes.

        Raises:
            TypeError: There is no attribute of a name.
        """
        for name in changes:
            if name not in vars(self) and not isinstance(
                getattr(type(self), name, None), cached_property
            ):
                raise TypeError(f"RunResults has no attribute '{name}'")
        twin = copy.copy(self)
        vars(twin).update(changes)
        return twin

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per cell; see `bench.analysis.columns`."""
        suite, data = self.provenance["suite"], self.provenance["data"]
        return tables.cell_table(self.plan, self.stored, suite["name"], data["name"], data["n"])

    @cached_property
    def worst(self) -> pd.DataFrame:
        """Worst case over attacks, one row per model, norm, goal and eps."""
        return tables.worst_case_table(self.plan, self.table, self._robust)

    @cached_property
    def chosen_unions(self) -> list[ThreatUnion]:
        """The [[unions]] of the suite."""
        entries = self.provenance.get("unions", [])  # absent in runs of earlier versions
        return [
            ThreatUnion(
                label=entry["label"],
                threats=tuple(
                    UnionThreat(**threat)
                    for threat in manifest.select_known_fields(UnionThreat, entry["threats"])
                ),
            )
            for entry in entries
        ]

    @cached_property
    def unions(self) -> pd.DataFrame:
        """Robust accuracy under threat models of several norms together, one row per union."""
        return unions.union_table(self.table, self._robust, self.chosen_unions)

    @cached_property
    def classes(self) -> pd.DataFrame:
        """Outcomes by class, one row per class of each cell and of the worst case at each eps."""
        names = self.provenance["data"].get("classes")
        return classes.class_table(self.table, self.stored, names)

    @cached_property
    def rejections(self) -> pd.DataFrame:
        """What the detectors of models rejected, one row per cell of such a model."""
        return rejections.rejection_table(self.table, self.stored, self.provenance["models"])

    @cached_property
    def searches(self) -> list[Search]:
        """Minimum-norm searches with the distances that they found."""
        return min_norm.collect_searches(self.plan, self.table, self.stored)

    @cached_property
    def distances(self) -> pd.DataFrame:
        """Scores of the minimum-norm searches, one row per search."""
        return min_norm.search_table(self.searches)

    @cached_property
    def query_curves(self) -> list[queries.QueryCurve]:
        """Cells of attacks that search by scores or labels, with when their examples fell."""
        return queries.collect_curves(self.plan, self.table, self.stored)

    @cached_property
    def queries(self) -> pd.DataFrame:
        """Results within fewer queries, one row per such cell and budget."""
        return queries.query_table(self.query_curves)

    @cached_property
    def query_pairs(self) -> pd.DataFrame:
        """Pairs of searches by scores or labels on the same examples, a row per pair and budget."""
        return query_pairs.compare_searches(self.query_curves)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Pairs of attacks and pairs of models, compared by example."""
        fooled = tables.outcomes_by_cell(self.plan, self.stored, metrics.fooled_examples)
        return pairwise.compare_pairs(self.table, self._robust, fooled)

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """Attacks that ran with several seeds."""
        return pairwise.seed_table(self.table, self._robust)

    @cached_property
    def stages(self) -> pd.DataFrame:
        """Robust accuracy after each part of the ensembles."""
        return stages.stage_table(self.plan, self.table, self.stored)

    @cached_property
    def crosschecks(self) -> pd.DataFrame:
        """Our attacks compared with reference implementations."""
        by_example = self.stored.frame["clean_confidence"].set_axis(self.stored.frame["example"])
        positions = self.stored.row_positions()
        confidence = {cell: by_example.iloc[at] for cell, at in positions.items()}
        return crosscheck.compare_implementations(
            self._crosscheck_pairs,
            self.table,
            self._robust,
            confidence,
            read_images(self.folder),
        )

    @cached_property
    def missing_crosschecks(self) -> list[crosscheck.MissingComparison]:
        """Cross-checks of the suite that could not be made."""
        return crosscheck.find_missing_comparisons(self._crosscheck_pairs, self.table)

    @cached_property
    def _crosscheck_pairs(self) -> list[crosscheck.CrosscheckPair]:
        wanted = [(ours, reference) for ours, reference in self.provenance["crosschecks"]]
        return crosscheck.pair_cells(self.plan, wanted)

    @cached_property
    def explanations(self) -> list[Explanation]:
        """What `bench explain` found about pairs of cells."""
        return explanations.read_explanations(self.folder, {cell.identity for cell in self.plan})

    @cached_property
    def published(self) -> pd.DataFrame:
        """Measured figures compared with reference figures."""
        entries = manifest.select_known_fields(
            ReferenceFigure,
            self.provenance.get("published", []),  # absent in runs of earlier versions
        )
        figures = [
            ReferenceFigure(
                **{**entry, "eps": tuple(entry["eps"]), "values": tuple(entry["values"])}
            )
            for entry in entries
        ]
        return references.compare_with_references(self.table, figures)

    @cached_property
    def violations(self) -> pd.DataFrame:
        """Returned images that break their threat model, one row each."""
        return tables.violation_table(self.stored)

    @cached_property
    def audit(self) -> findings.Audit:
        """Symptoms of a failed attack, and those that were not checked."""
        models: Mapping[str, Any] = self.provenance["models"]
        random = [label for label, about in models.items() if about.get("random")]
        probes = self.provenance.get("probes", {})  # absent in runs of earlier versions
        return findings.audit_run(self.plan, self.table, self.stored, probes, random)

    @cached_property
    def certified(self) -> CertifiedResults:
        """Certified robust accuracy, and contradictions to attacks."""
        return certified.read_certified(self.folder, self.provenance, self.worst, self.stored.frame)

    @cached_property
    def smoothed(self) -> SmoothedResults:
        """What randomised smoothing certified of the models' smoothed classifiers."""
        return read_smoothed(self.folder, self.provenance)

    @cached_property
    def corruptions(self) -> CorruptionResults:
        """Errors under common corruptions; empty unless the suite has such attacks."""
        baseline = self.provenance.get("corruption_baseline", "")
        return corruptions.summarize_corruptions(self.plan, self.table, self.stored, baseline)

    @cached_property
    def notes(self) -> list[str]:
        """What preflight found, versions of the records, and certified examples left out."""
        models = self.provenance["models"].values()
        found = [finding for model in models for finding in model["findings"]]
        mixed = describe_mixed_versions(self.provenance["sessions"])
        return [*found, *mixed, *tables.describe_certified(self.table)]

    @cached_property
    def _robust(self) -> dict[str, metrics.Outcomes]:
        """Identity of a cell -> which examples are robust."""
        return tables.outcomes_by_cell(self.plan, self.stored)

    def unfinished(self) -> pd.DataFrame:
        """Select the cells that failed or are not finished.

        Returns:
            Their rows of `table`.
        """
        return self.table[self.table["status"].isin(["failed", "missing"])]


def read_results(folder: Path) -> RunResults:
    """Read the results of a run.

    Args:
        folder: Folder of the run.

    Returns:
        The results; their tables are computed on access, which raises RecordError where a file
        that only they need is damaged.

    Raises:
        SuiteError: There is no run.
        RecordError: The manifest or the records are damaged or contradict each other.
    """
    provenance, plan = manifest.read_manifest(folder)
    stored = reader.read_records(folder)
    planned = {cell.identity for cell in plan}
    in_plan = stored.frame["cell"].isin(planned)
    if not in_plan.all():  # cells of an earlier plan; without any, a million rows are not copied
        stored = stored._replace(frame=stored.frame[in_plan].reset_index(drop=True))
    _check_records(folder, stored, planned, provenance["data"]["n"])
    return RunResults(folder, provenance, plan, stored)


def _check_records(folder: Path, stored: StoredRecords, planned: Collection[str], n: int) -> None:
    """Raise RecordError if the records are not of the examples that the plan is for."""
    beyond = {piece.cell for piece in stored.pieces if piece.cell in planned and piece.last > n}
    if beyond:
        why = f"records of more than the {n} examples that {manifest.FILE} tells of"
        raise RecordError(f"{folder}: {why}; run the suite again with --fresh")
    fooled = stored.frame["fooled"].to_numpy(dtype=bool)
    if (fooled & ~metrics.eligible_examples(stored.frame).to_numpy()).any():
        why = "records of examples fooled that no attack was run on"
        raise RecordError(f"{folder}: {why}; run the suite again with --fresh")
    certified, attacked = (stored.frame[name].to_numpy(bool) for name in ("certified", "attacked"))
    if (certified & (attacked | ~metrics.eligible_examples(stored.frame).to_numpy())).any():
        why = "records of certified examples that are attacked or misclassified"
        raise RecordError(f"{folder}: {why}; run the suite again with --fresh")
