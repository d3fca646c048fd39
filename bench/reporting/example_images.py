"""Select the images of a run that its grids show."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import Tensor

from bench.analysis.results import RunResults
from bench.core.contracts.types import BALLS
from bench.engine.functional.norms import distance
from bench.reporting.plots.example_grids import AttackedExample
from bench.storage.images import read_images
from bench.suite.plan import Cell

EXAMPLES_SHOWN = 5
"""Examples per row of an example grid."""
TOLERATED = 1 + 1e-4
"""Distance over eps of an image that is drawn as within eps, which covers rounding."""


def load_examples(results: RunResults, folder: Path) -> Iterator[AttackedExample]:
    """Yield attacked examples of every cell with stored images: fooled ones before others.

    The reference of a cross-check is left out: its images are compared pixel by pixel elsewhere.
    So is a cell with examples of another model: they are shown under the model that they were
    crafted on.

    Args:
        results: The results of the run.
        folder: The run's folder.

    Yields:
        At most EXAMPLES_SHOWN examples of each cell, the same at every eps of an attack.
    """
    data = results.provenance["data"]
    images = read_images(folder)
    places = results.stored.row_positions()
    if data["fingerprint"] not in images:
        return
    clean = images[data["fingerprint"]]
    references = {reference for _, reference in results.provenance["crosschecks"]}
    chosen: dict[tuple[str, str], list[int]] = {}
    for cell in sorted(results.plan, key=lambda cell: -cell.eps):  # at the largest eps first
        there = cell.identity in images and cell.identity in places
        if not there or cell.attack in references or cell.source not in ("", cell.model):
            continue
        rows = results.stored.frame.iloc[places[cell.identity]]
        seen = rows["example"] < min(len(images[cell.identity]), len(clean))
        shown = rows[rows["clean_correct"] & seen].set_index("example", drop=False)
        # The same examples at every eps: those first that are fooled at the largest.
        best = shown.sort_values("fooled", ascending=False, kind="stable").index[:EXAMPLES_SHOWN]
        ids = chosen.setdefault((cell.model, cell.attack), list(best))
        for row in shown.loc[[each for each in ids if each in shown.index]].to_dict("records"):
            at = row["example"]
            # A search for the least distance keeps what it found beyond this eps, too.
            found = images[cell.identity][at]
            within = bool(row["fooled"]) or _is_within(found, clean[at], cell)
            prediction = row["adv_pred" if within else "clean_pred"]
            yield AttackedExample(
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
                    if within and prediction == row["rejection"]
                    else _class_name(data["classes"], prediction)
                ),
                clean=_to_plot(clean[at]),
                adversarial=_to_plot(found if within else clean[at]),
                fooled=bool(row["fooled"]),
                n_fooled=int(rows["fooled"].sum()),
                n_attacked=int(rows["clean_correct"].sum()),
            )


def _is_within(image: Tensor, clean: Tensor, cell: Cell) -> bool:
    """Whether an image lies within the eps of a cell, if its threat is a ball."""
    if cell.norm not in BALLS:
        return True
    return float(distance(image[None], clean[None], cell.norm)) <= cell.eps * TOLERATED


def _class_name(classes: list[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)


def _to_plot(image: Tensor) -> npt.NDArray[Any]:
    """Convert an image (c, h, w) to (h, w) if grey, else (h, w, c); non-finite pixels are black."""
    finite = image.nan_to_num().clamp(0, 1)
    return (finite[0] if len(finite) == 1 else finite.permute(1, 2, 0)).numpy()
