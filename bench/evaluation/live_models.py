"""Build an evaluator of models and images that are Python objects, for a suite made of them."""

from collections.abc import Mapping
from typing import Any

import torch

from bench.core.contracts.dataset import Data
from bench.evaluation import loading
from bench.evaluation.adaptation_check import check_adaptations
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.model_pool import choose_rows
from bench.models import maite_models
from bench.models.preflight.prepare import prepare_model
from bench.suite.schema import Suite


def build_evaluator(
    suite: Suite,
    models: Mapping[str, Any],
    data: Data,
    device: torch.device,
    batch_size: int | None = None,
    use_acceleration: bool = True,
) -> Evaluator:
    """Build the evaluator of a suite whose models and data are given as objects.

    Args:
        suite: The suite, with an entry for each model.
        models: Label -> module; any callable where the entry's access is "scores" or "labels".
        data: Checked images and labels.
        device: Where models and images are placed.
        batch_size: Rows per pass; by the memory of one row unless given.
        use_acceleration: Whether attacks may use accelerated models.

    Returns:
        The evaluator.

    Raises:
        SuiteError: A model fails preflight.
    """
    assert data.labels is not None
    loaded = {}
    for entry in suite.models:
        model, n_classes = models[entry.label], int(data.labels.max()) + 1
        module = loading.restrict_access(entry.label, model, entry.access, n_classes)
        ready = prepare_model(
            entry.label, module.to(device), data, device,
            predictions=entry.predictions, allow=entry.allow,
        )  # fmt: skip
        if maite_models.is_maite_model(model):
            sentence = maite_models.FINDING.format(label=entry.label)
            ready = ready._replace(findings=(*ready.findings, sentence))
        loaded[entry.label] = ready
    check_adaptations(suite.attacks, loaded, data, device)
    return Evaluator(
        suite=suite.name,
        seed=suite.seed,
        device=device,
        data=data,
        models=loaded,
        rows={label: choose_rows(each, data, device, batch_size) for label, each in loaded.items()},
        fixed_rows=batch_size is not None,
        use_acceleration=use_acceleration,
    )
