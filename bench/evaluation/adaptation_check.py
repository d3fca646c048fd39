"""Check the adaptations of a suite's attacks on its loaded models, before anything runs."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError, describe, nearest
from bench.engine.adaptation import WRAPPER, AdaptedModel, list_module_names
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

    A model without a module that an attack names is left out, since the planner skips its cells;
    if no model has the module, the name is a mistake.

    Args:
        attacks: The suite's attacks.
        models: Loaded models by label.
        data: The data, whose first images are used.
        device: Device of the models.

    Raises:
        SuiteError: No model has a module of a name, one sentence for each table, or a function
            raises, or returns what cannot be ascended, one for each attack and model.
    """
    adapted = [entry for entry in attacks if entry.adaptation is not None]
    if not adapted:
        return
    names = {label: list_module_names(loaded.model) for label, loaded in models.items()}
    problems = [*_find_unknown_modules(adapted, models, names)]
    images = data.read(0, min(data.n, PROBED)).to(device)
    for entry in adapted:
        for label in _list_attacked(entry, models):
            if label not in models or _list_missing(entry, names[label]):
                continue  # unfit, or its cells are skipped
            try:
                _try_adaptation(entry, models[label], images)
            except SuiteError as error:
                problems += [
                    f"attack '{entry.label}' on '{label}': {each}" for each in error.problems
                ]
    if problems:
        raise SuiteError(*problems)


def _list_attacked(entry: AttackEntry, models: Mapping[str, LoadedModel]) -> list[str]:
    """List the models that an attack looks into; those that show labels alone have no cells."""
    labels = [entry.source] if entry.source else [*models]
    return [label for label in labels if label not in models or models[label].access != "labels"]


def _list_missing(entry: AttackEntry, names: Sequence[str]) -> list[str]:
    """List the modules that an attack is adapted to and a model does not have."""
    modules = () if entry.adaptation is None else entry.adaptation.modules
    return [name for name in modules if name not in names]


def _find_unknown_modules(
    adapted: Sequence[AttackEntry],
    models: Mapping[str, LoadedModel],
    names: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """Yield a sentence for each module that no model has which its [[attacks]] table attacks."""
    tables: dict[str, list[AttackEntry]] = {}
    for entry in adapted:
        tables.setdefault(entry.family or entry.label, []).append(entry)
    for table, entries in tables.items():
        attacked = {label for entry in entries for label in _list_attacked(entry, models)}
        if not attacked <= models.keys():
            continue  # a model that could not be loaded may have the module
        features = entries[0].adaptation.features if entries[0].adaptation else ()
        everywhere = [set(_list_missing(entries[0], names[label])) for label in attacked]
        for name in sorted(set.intersection(*everywhere)) if everywhere else ():
            known = {name for label in attacked for name in names[label]} - {WRAPPER.rstrip(".")}
            key = "features" if name in features else "backward"
            what = "the model has no" if len(attacked) == 1 else "no model that it attacks has a"
            yield f"attack '{table}': {key}: {what} module '{name}'; {nearest(name, known)}"


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
