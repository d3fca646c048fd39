"""What a run shows to people: its tables as CSV, plots and the two report pages."""

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
from bench.reporting.plots import figures, transfer_matrix
from bench.reporting.report import writer
from bench.storage import fingerprint, spreadsheet
from bench.storage.images import read_images

EXAMPLES_SHOWN = 5
"""Examples in each row of an example grid."""


def write_run_output(found: RunResults, folder: Path) -> Path:
    """Write every table, plot and page of a run into its folder; returns the HTML page's path.

    Raises: SuiteError if the folder cannot be written.
    """
    frames = {
        "table.csv": found.table,
        "crosscheck.csv": found.crosschecks,
        "comparisons.csv": found.comparisons,
        "worst.csv": found.worst,
        "audit.csv": symptoms.to_frame(found.audit.signs),
        "unchecked.csv": pd.DataFrame(
            found.audit.unchecked, columns=list(UncheckedSymptom._fields)
        ),
    }
    for name, some in (
        ("distances.csv", found.distances),
        ("published.csv", found.published),
        ("seeds.csv", found.seeds),
        ("certified.csv", found.certified.table),
        ("contradictions.csv", found.certified.contradictions),
    ):
        if len(some):
            frames[name] = some
        else:  # one left by a suite that had some would contradict the page
            (folder / name).unlink(missing_ok=True)
    for name, frame in frames.items():
        files.write_atomic(folder / name, spreadsheet.to_csv(frame))
    # Tables travel further than records: with this, a run made again is held against them.
    files.write_atomic(
        folder / fingerprint.FILE, f"{fingerprint.records_hash(found.stored.frame)}\n".encode()
    )
    pictures = list(_pictures(found, folder))
    drawn = figures.draw_figures(
        found.table, pictures, folder, found.published, found.searches, found.certified.table
    )
    page, _ = writer.write_report(
        found,
        folder,
        notes=[
            *found.notes,
            *transfer_matrix.find_hidden_gradients(found.table),
            *tables.describe_split_votes(found.table),
        ],
        provenance=_told(found.provenance),
        plots=drawn,
    )
    return page


def _told(provenance: dict[str, Any]) -> dict[str, Any]:
    """The part of provenance.json that a reader wants on the page."""
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


def _pictures(found: RunResults, folder: Path) -> Iterator[figures.Picture]:
    """The first attacked examples of every cell whose adversarial images were kept.

    A cross-check's reference is left out: its images are compared pixel by pixel elsewhere. So is
    what was crafted on another model: it is shown where it was crafted.
    """
    data = found.provenance["data"]
    kept = read_images(folder)
    places = found.stored.row_positions()
    if data["fingerprint"] not in kept:
        return
    clean = kept[data["fingerprint"]]
    references = {reference for _, reference in found.provenance["crosschecks"]}
    for cell in found.plan:
        there = cell.identity in kept and cell.identity in places
        if not there or cell.attack in references or cell.source not in ("", cell.model):
            continue
        rows = found.stored.frame.iloc[places[cell.identity]]
        seen = rows["example"] < min(len(kept[cell.identity]), len(clean))
        for row in rows[rows["clean_correct"] & seen].head(EXAMPLES_SHOWN).to_dict("records"):
            at = row["example"]
            yield figures.Picture(
                model=cell.model,
                attack=cell.attack,
                norm=cell.norm,
                eps=cell.eps,
                eps_text=cell.eps_text,
                example=at,
                label=_name(data["classes"], row["label"]),
                before=_name(data["classes"], row["clean_pred"]),
                after=_name(data["classes"], row["adv_pred"]),
                clean=_shown(clean[at]),
                adversarial=_shown(kept[cell.identity][at]),
            )


def _name(classes: list[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)


def _shown(image: Tensor) -> npt.NDArray[Any]:
    """(c, h, w) as a plot wants it: (h, w) if grey, else (h, w, c); not finite shows as black."""
    finite = image.nan_to_num().clamp(0, 1)
    return (finite[0] if len(finite) == 1 else finite.permute(1, 2, 0)).numpy()
