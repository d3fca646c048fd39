"""Check the adaptations of a suite's attacks on its loaded models, before anything runs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError, describe
from bench.engine.adaptation import AdaptedModel
from bench.engine.functional.gradients import forward_pass, gradient_pass
from bench.engine.functional.logits import predict_class, widen
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import frozen
from bench.evaluation.containment import StateGuard
from bench.models.preflight.checks import LoadedModel
from bench.suite.schema import AttackEntry

PROBED = 4
"""Images that a user's functions are tried on."""


def check_adaptations(
    attacks: Sequence[AttackEntry],
    models: Mapping[str, LoadedModel],
    data: Data,
    device: torch.device,
) -> None:
    """Try the functions of adaptive attacks on every model that they attack.

    Args:
        attacks: The suite's attacks.
        models: Loaded models by label.
        data: The data, whose first images are used.
        device: Device of the models.

    Raises:
        SuiteError: A model has no module of a name, or a function raises, or returns what cannot be
            ascended; one sentence for each attack and model.
    """
    problems = []
    adapted = [entry for entry in attacks if entry.adaptation is not None]
    if not adapted:
        return
    images = data.read(0, min(data.n, PROBED)).to(device)
    for entry in adapted:
        for label in [entry.source] if entry.source else models:
            if label not in models or models[label].access == "labels":
                continue  # unfit, or its cells are skipped
            try:
                _try_adaptation(entry, models[label], images)
            except SuiteError as error:
                problems += [
                    f"attack '{entry.label}' on '{label}': {each}" for each in error.problems
                ]
    if problems:
        raise SuiteError(*problems)


def _try_adaptation(entry: AttackEntry, loaded: LoadedModel, x: Tensor) -> None:
    """Make one pass of an adapted model on the classes that it predicts."""
    assert entry.adaptation is not None
    model = AdaptedModel(loaded.model, entry.adaptation)
    own = make_objective("cross-entropy", "untargeted")
    make_pass = gradient_pass if loaded.access == "gradient" else forward_pass
    names = [each.name for each in entry.adaptation.functions]
    with frozen(loaded.model), StateGuard().restore_after():
        with torch.no_grad():
            y = predict_class(widen(loaded.model(x.clone())))
        try:
            observed = make_pass(model, model.make_objective(own), x, y, y)
        except (SuiteError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's function may raise anything
            raise SuiteError(
                f"{', '.join(names)}: raised on the first images: {describe(error)}"
            ) from error
    if entry.adaptation.loss is not None and not observed.loss.isfinite().any():
        raise SuiteError(
            f"{entry.adaptation.loss.name}: expected finite losses, got "
            f"{float(observed.loss[0])} on the first image"
        )
