"""Write what a run shows to readers: tables as CSV and JSON, the plots, both report pages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd
from torch import Tensor

from bench.analysis import tables
from bench.analysis.results import RunResults
from bench.core import files
from bench.evaluation.audit import symptoms
from bench.evaluation.audit.findings import UncheckedSymptom
from bench.reporting.formats import exports
from bench.reporting.plots import figures, transfer_matrix
from bench.reporting.report import writer
from bench.storage import fingerprint, spreadsheet
from bench.storage.images import read_images

EXAMPLES_SHOWN = 5
"""Examples per row of an example grid."""


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
    frames = {
        "table.csv": results.table,
        "crosscheck.csv": results.crosschecks,
        "comparisons.csv": results.comparisons,
        "worst.csv": results.worst,
        "audit.csv": symptoms.to_frame(results.audit.symptoms),
        "unchecked.csv": pd.DataFrame(
            results.audit.unchecked, columns=list(UncheckedSymptom._fields)
        ),
    }
    for name, frame in (
        ("unions.csv", results.unions),
        ("classes.csv", results.classes),
        ("rejections.csv", results.rejections),
        ("distances.csv", results.distances),
        ("queries.csv", results.queries),
        ("query_pairs.csv", results.query_pairs),
        ("published.csv", results.published),
        ("seeds.csv", results.seeds),
        ("stages.csv", results.stages),
        ("certified.csv", results.certified.table),
        ("contradictions.csv", results.certified.contradictions),
        ("smoothing.csv", results.smoothed.table),
        ("smoothing_curve.csv", results.smoothed.curve),
        ("corruptions.csv", results.corruptions.errors),
        ("corruption_means.csv", results.corruptions.means),
    ):
        if len(frame):
            frames[name] = frame
        else:  # a file of an earlier suite would contradict the page
            (folder / name).unlink(missing_ok=True)
    for name, frame in frames.items():
        files.write_atomic(folder / name, spreadsheet.to_csv(frame))
    files.write_atomic(folder / "table.json", exports.to_json(results.table))
    # Tables are shared without records: with the hash, a repeated run is compared with them.
    files.write_atomic(
        folder / fingerprint.FILE, f"{fingerprint.records_hash(results.stored.frame)}\n".encode()
    )
    examples = list(_load_examples(results, folder))
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


def _load_examples(results: RunResults, folder: Path) -> Iterator[figures.AttackedExample]:
    """Yield the first attacked examples of every cell with stored adversarial images.

    The reference of a cross-check is left out: its images are compared pixel by pixel elsewhere.
    So is a cell with examples of another model: they are shown under the model that they were
    crafted on.
    """
    data = results.provenance["data"]
    images = read_images(folder)
    places = results.stored.row_positions()
    if data["fingerprint"] not in images:
        return
    clean = images[data["fingerprint"]]
    references = {reference for _, reference in results.provenance["crosschecks"]}
    for cell in results.plan:
        there = cell.identity in images and cell.identity in places
        if not there or cell.attack in references or cell.source not in ("", cell.model):
            continue
        rows = results.stored.frame.iloc[places[cell.identity]]
        seen = rows["example"] < min(len(images[cell.identity]), len(clean))
        for row in rows[rows["clean_correct"] & seen].head(EXAMPLES_SHOWN).to_dict("records"):
            at = row["example"]
            yield figures.AttackedExample(
                model=cell.model,
                attack=cell.attack,
                norm=cell.norm,
                eps=cell.eps,
                eps_text=cell.eps_text,
                example=at,
                label=_class_name(data["classes"], row["label"]),
                before=_class_name(data["classes"], row["clean_pred"]),
                after=(
                    "rejected"
                    if row["adv_pred"] == row["rejection"]
                    else _class_name(data["classes"], row["adv_pred"])
                ),
                clean=_to_plot(clean[at]),
                adversarial=_to_plot(images[cell.identity][at]),
            )


def _class_name(classes: list[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)


def _to_plot(image: Tensor) -> npt.NDArray[Any]:
    """Convert an image (c, h, w) to (h, w) if grey, else (h, w, c); non-finite pixels are black."""
    finite = image.nan_to_num().clamp(0, 1)
    return (finite[0] if len(finite) == 1 else finite.permute(1, 2, 0)).numpy()
