"""Write what a run shows to readers: tables as CSV and JSON, the plots, both report pages."""

from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import tables
from bench.analysis.results import RunResults
from bench.core import files
from bench.evaluation.audit import symptoms
from bench.evaluation.audit.findings import UncheckedSymptom
from bench.reporting.example_images import load_examples
from bench.reporting.formats import exports
from bench.reporting.plots import figures, transfer_matrix
from bench.reporting.report import writer
from bench.storage import fingerprint, spreadsheet


def write_run_output(results: RunResults, folder: Path) -> Path:
    """Write every table, plot and page of a run into its folder.

    Args:
        results: The results of the run.
        folder: The run's folder.

    Returns:
        Path of the HTML page.

    Raises:
        SuiteError: The folder cannot be written.
    """
    for name, frame in _collect_frames(results).items():
        files.write_atomic(folder / name, spreadsheet.to_csv(frame))
    for name, frame in _collect_optional_frames(results).items():
        if len(frame):
            files.write_atomic(folder / name, spreadsheet.to_csv(frame))
        else:  # a file of an earlier suite would contradict the page
            (folder / name).unlink(missing_ok=True)
    files.write_atomic(folder / "table.json", exports.to_json(results.table))
    # Tables are shared without records: with the hash, a repeated run is compared with them.
    files.write_atomic(
        folder / fingerprint.FILE, f"{fingerprint.records_hash(results.stored.frame)}\n".encode()
    )
    examples = list(load_examples(results, folder))
    drawn = figures.draw_figures(
        results.table,
        examples,
        folder,
        published=results.published,
        searches=results.searches,
        certified=results.certified.table,
        classes=results.classes,
        query_curves=results.query_curves,
        queries=results.queries,
    )
    drawn += figures.draw_smoothing_figures(results.smoothed.curve, folder)
    page, _ = writer.write_report(
        results,
        folder,
        notes=[
            *results.notes,
            *transfer_matrix.find_hidden_gradients(results.table),
            *tables.describe_split_votes(results.table),
        ],
        provenance=_select_provenance(results.provenance),
        plots=drawn,
    )
    return page


def _collect_frames(results: RunResults) -> dict[str, pd.DataFrame]:
    """Return the tables that every run has, by the names of their files."""
    unchecked = pd.DataFrame(results.audit.unchecked, columns=list(UncheckedSymptom._fields))
    return {
        "table.csv": results.table,
        "crosscheck.csv": results.crosschecks,
        "comparisons.csv": results.comparisons,
        "worst.csv": results.worst,
        "audit.csv": symptoms.to_frame(results.audit.symptoms),
        "unchecked.csv": unchecked,
    }


def _collect_optional_frames(results: RunResults) -> dict[str, pd.DataFrame]:
    """Return the tables that a run has if its suite asks for what they show, likewise."""
    return {
        "unions.csv": results.unions,
        "classes.csv": results.classes,
        "rejections.csv": results.rejections,
        "distances.csv": results.distances,
        "queries.csv": results.queries,
        "query_pairs.csv": results.query_pairs,
        "published.csv": results.published,
        "seeds.csv": results.seeds,
        "stages.csv": results.stages,
        "certified.csv": results.certified.table,
        "contradictions.csv": results.certified.contradictions,
        "smoothing.csv": results.smoothed.table,
        "smoothing_curve.csv": results.smoothed.curve,
        "corruptions.csv": results.corruptions.errors,
        "corruption_means.csv": results.corruptions.means,
    }


def _select_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """Select the parts of the manifest that the report prints."""
    session, hidden = provenance["sessions"][-1], ("text", "base")
    data = {key: value for key, value in provenance["data"].items() if key != "classes"}
    return {
        "suite": {key: value for key, value in provenance["suite"].items() if key not in hidden},
        "data": data,
        "models": {
            label: {key: value for key, value in model.items() if key not in ("findings", "logits")}
            for label, model in provenance["models"].items()
        },
        **{key: session[key] for key in ("command", "started", "finished")},
        **session["environment"],
    }
