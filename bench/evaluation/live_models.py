"""Prepare models that are Python objects, as those of a suite are prepared."""

from collections.abc import Mapping
from typing import Any

import torch

from bench.core.contracts.dataset import Data
from bench.core.contracts.detector import Detector
from bench.core.errors import SuiteError
from bench.core.validation import Validator
from bench.evaluation import loading
from bench.models import maite_models
from bench.models.preflight.checks import LoadedModel
from bench.models.preflight.prepare import prepare_model
from bench.models.wrapping import unwrap_model
from bench.suite.call_arguments import to_plain
from bench.suite.schema import ModelEntry


def make_entry(
    model: Any,
    label: str = "",
    *,
    detector: Detector | Mapping[str, Any] | None = None,
    **settings: Any,
) -> ModelEntry:
    """Make the entry of a model that is an object.

    Args:
        model: A module, or any callable that answers queries.
        label: Name in tables; that of its class if empty.
        detector: How it rejects images: the fields of a Detector, or the record itself.
        settings: Further fields of the entry.

    Returns:
        The entry. Its name is that of the class with its module, so that no class is taken for the
        registered model of the same name.

    Raises:
        SuiteError: The detector is no mapping, a field of it is invalid, or it does not go with the
            settings.
    """
    kind = type(unwrap_model(model))
    name = f"{kind.__module__}:{kind.__qualname__}"
    chosen: Detector | None = detector if isinstance(detector, Detector) else None
    if isinstance(detector, Mapping):
        check = Validator("detector")
        chosen = check.fill(Detector, to_plain(detector), "")
        check.stop_if_wrong()
    elif detector is not None and chosen is None:
        raise SuiteError(
            "detector: expected a mapping with the keys output, threshold, rejects and rejected, "
            f"got {detector!r}"
        )
    try:
        return ModelEntry(name=name, label=label or kind.__name__, detector=chosen, **settings)
    except ValueError as error:  # fields that do not go together
        raise SuiteError(str(error)) from error


def prepare_live_model(
    entry: ModelEntry, model: Any, data: Data, device: torch.device, classes: int | None = None
) -> LoadedModel:
    """Restrict a model to its access, place it and check it on the first images.

    Args:
        entry: The model's entry.
        model: A module; any callable where the entry's access is "scores" or "labels".
        data: Checked images and labels.
        device: Where the model is placed.
        classes: Classes of a model that shows labels alone; those of the data by default.

    Returns:
        The model with its fingerprint and findings.

    Raises:
        SuiteError: It is no model of that access, or fails preflight.
    """
    classes = classes or loading.count_classes(data)
    module = loading.restrict_access(entry.name, model, entry.access, classes, entry.output)
    loaded = prepare_model(
        entry.label, module.to(device), data, device, output=entry.output,
        batch_size=entry.batch_size, predictions=entry.predictions, allow=entry.allow,
        detector=entry.detector,
    )  # fmt: skip
    if not maite_models.is_maite_model(model):
        return loaded
    finding = maite_models.FINDING.format(label=entry.label)
    return loaded._replace(findings=(finding, *loaded.findings))
