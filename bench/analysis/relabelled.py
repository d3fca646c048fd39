"""Give the models of a run other labels, so that several runs can be shown together."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from bench.analysis.results import RunResults
from bench.evaluation.audit.findings import Audit

TABLES = ("table", "worst", "unions", "classes", "rejections", "queries", "comparisons")
"""Tables of `RunResults` that are relabelled."""


def relabel_models(run: RunResults, labels: Mapping[str, str]) -> RunResults:
    """Copy results with other labels of models in TABLES, the audit and the manifest.

    Args:
        run: The results; they are not changed.
        labels: Label of a model -> label to show; a model that is absent keeps its label.

    Returns:
        The copy. Plan and records keep the labels of the suite.
    """
    frames = {name: _relabel(getattr(run, name), labels) for name in TABLES}
    audit = run.audit
    models = {labels.get(label, label): about for label, about in run.provenance["models"].items()}
    return run.replace(
        **frames,
        audit=Audit(
            [labels.get(model, model) for model in audit.models],
            [replace(each, model=labels.get(each.model, each.model)) for each in audit.symptoms],
            [each._replace(model=labels.get(each.model, each.model)) for each in audit.unchecked],
        ),
        provenance={**run.provenance, "models": models},
    )


def _relabel(frame: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    columns = {"model": frame["model"].replace(dict(labels))}
    if "compared" in frame:  # the pairs of models name them as sides, with no model in common
        pairs = frame["compared"] == "models"
        for side in ("first", "second"):
            columns[side] = frame[side].where(~pairs, frame[side].replace(dict(labels)))
    return frame.assign(**columns)
